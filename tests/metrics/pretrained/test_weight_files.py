"""Weights are found, downloaded, checked, and read without running code."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.metrics.pretrained.weight_files import (
    BACKBONES,
    INCEPTION,
    WeightFile,
    backbone_features,
    load_state,
    locate,
)

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the folder its files belong in."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server with the one file `net-….pth`."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / f"net-{SHA256[:8]}.pth").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_names_are_those_the_libraries_cache() -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

    assert INCEPTION.url == URL_INCEPTION_V3
    assert BACKBONES["squeeze"].url == SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    assert BACKBONES["alex"].url == AlexNet_Weights.IMAGENET1K_V1.url
    assert BACKBONES["vgg"].url == VGG16_Weights.IMAGENET1K_V1.url
    for source in (INCEPTION, *BACKBONES.values()):
        assert torch.hub.HASH_REGEX.search(source.name).group(1) == source.sha256_prefix
    assert INCEPTION.name == "weights-inception-2015-12-05-6726825d.pth"


def test_download_shows_progress_and_is_cached(hub: Path, server: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = WeightFile(f"{server}/net-{SHA256[:8]}.pth", SHA256[:8])
    path = locate(source, None)
    assert path == hub / source.name
    assert path.read_bytes() == CONTENT
    assert "100%" in capfd.readouterr().err
    assert locate(WeightFile(f"http://127.0.0.1:1/{source.name}", SHA256[:8]), None) == path


def test_damaged_download_is_refused_and_not_kept(hub: Path, server: str) -> None:
    source = WeightFile(f"{server}/net-{SHA256[:8]}.pth", "00000000")
    with pytest.raises(ValueError, match=rf"damaged or another file: .*00000000.*{SHA256}"):
        locate(source, None)
    assert not list(hub.iterdir())


def test_damaged_cache_is_refused(hub: Path) -> None:
    hub.mkdir(parents=True)
    (hub / INCEPTION.name).write_bytes(CONTENT)
    with pytest.raises(ValueError, match=rf"its SHA-256 is {SHA256}, expected 6726825d….*Delete"):
        locate(INCEPTION, None)


def test_offline_says_which_file_goes_where(hub: Path) -> None:
    source = WeightFile("http://127.0.0.1:1/net-abcdef01.pth", "abcdef01")
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        locate(source, None)
    message = str(caught.value)
    for part in ("net-abcdef01.pth", "SHA-256 abcdef01", source.url, str(hub / "net-abcdef01.pth"), "weights=…"):
        assert part in message


def test_path_given(tmp_path: Path, hub: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    assert locate(INCEPTION, tmp_path / "mine.pth") == tmp_path / "mine.pth"
    with pytest.raises(FileNotFoundError, match=rf"no weight file at {tmp_path}/no.pth.*{INCEPTION.name}"):
        locate(INCEPTION, str(tmp_path / "no.pth"))


def test_both_formats_are_read(tmp_path: Path) -> None:
    state = {"features.0.weight": torch.rand(2, 3), "classifier.1.bias": torch.rand(2)}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        loaded = load_state(tmp_path / file)
        assert set(loaded) == set(state)
        assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert set(backbone_features(state)) == {"0.weight"}
    assert set(backbone_features({"0.weight": torch.rand(1)})) == {"0.weight"}


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


def test_code_in_a_weight_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hq_tokenizers.metrics.pretrained.feature_networks import inception_network

    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malicious()}, tmp_path / "evil.pth", pickle_protocol=2)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for file in ("evil.pth", "evil.pkl"):
        with pytest.raises(ValueError, match="does not hold plain weights"):
            load_state(tmp_path / file)
        with pytest.raises(ValueError, match="does not hold plain weights"):
            inception_network(tmp_path / file)
    assert not (tmp_path / "ran").exists()


def test_other_contents_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors"):
        load_state(tmp_path / "list.pth")
    (tmp_path / "junk.safetensors").write_text("junk")
    with pytest.raises(ValueError, match=r"junk\.safetensors is damaged or no safetensors file"):
        load_state(tmp_path / "junk.safetensors")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match="does not hold plain weights"):
        load_state(tmp_path / "empty.pth")


def test_module_hash_names_the_weights() -> None:
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    assert weights_sha256(first) != weights_sha256(second)
    second.load_state_dict(first.state_dict())
    assert weights_sha256(first) == weights_sha256(second)
    assert weights_sha256(first) != weights_sha256(first.double())
