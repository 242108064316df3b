"""Pretrained weights: found in torch's hub cache, given by path, or downloaded and checked."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hq_tokenizers.hashing import file_sha256
from hq_tokenizers.tensor_files import read_tensors

_MESSAGE_LENGTH = 400


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Args:
        url: Where it is published.
        sha256_prefix: First digits of its SHA-256.
    """

    url: str
    sha256_prefix: str

    @property
    def name(self) -> str:
        """The file's name, under which torch's hub caches it."""
        return self.url.rsplit("/", 1)[-1]

    def find(self) -> Path:
        """The file in torch's hub cache (`$TORCH_HOME/hub/checkpoints`), downloaded with a progress bar if absent.

        Raises:
            OSError: If it is absent and cannot be downloaded; says what to put where.
            ValueError: If the cached or the downloaded file has another hash.
        """
        path = Path(torch.hub.get_dir()) / "checkpoints" / self.name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256_prefix, progress=True)
            except OSError as error:
                raise OSError(
                    f"The weights {self.name} (SHA-256 {self.sha256_prefix}…) are not in torch's hub cache and could "
                    f"not be downloaded ({error}). Download {self.url} on a machine with a connection and put it at "
                    f"{path}, or give the path of a copy with weights=…"
                ) from error
            except RuntimeError as error:
                raise ValueError(f"The download of {self.url} is damaged or another file: {error}.") from error
        digest = file_sha256(path)
        if not digest.startswith(self.sha256_prefix):
            raise ValueError(
                f"{path} is damaged or another file: its SHA-256 is {digest}, expected {self.sha256_prefix}…. Delete "
                f"it to download it again, or give the path of a copy with weights=…"
            )
        return path


INCEPTION = WeightFile(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
BACKBONES = {
    "squeeze": WeightFile("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0"),
    "alex": WeightFile("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
    "vgg": WeightFile("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
}


def locate(source: WeightFile, path: str | Path | None) -> Path:
    """The file at `path` when given, else the published one.

    Raises:
        FileNotFoundError: If `path` is given and is no file.
        OSError, ValueError: As `WeightFile.find`.
    """
    if path is None:
        return source.find()
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no weight file at {path}. Leave weights unset to use {source.name} from torch's hub cache "
            f"({Path(torch.hub.get_dir()) / 'checkpoints'})."
        )
    return Path(path)


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors` file or in one written by `torch.save`, which is read without running code.

    Raises:
        ValueError: If the file holds anything but a dictionary of tensors.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own text advises to load the file in a way that runs code.
        raise ValueError(
            f"{path} does not hold plain weights written by torch.save, which is all that is loaded."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors (a state dict), as model.state_dict() gives.")
    return dict(state)


def load_into(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads a state dict whose names and shapes must be exactly those of the module.

    Raises:
        ValueError: If they are not.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {type(module).__name__}: {shorten(error)}") from error


def backbone_features(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `features` part of a torchvision model's state dict, whether the file holds the model or that part alone."""
    prefix = "features."
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inside or dict(state)


def shorten(error: Exception) -> str:
    """An error's text without the hundreds of parameter names that torch lists."""
    text = str(error)
    return text if len(text) <= _MESSAGE_LENGTH else f"{text[:_MESSAGE_LENGTH]}…"
