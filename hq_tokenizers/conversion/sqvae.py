"""SQ-VAE of sony/sqvae (Takida et al., ICML 2022), the experiments on images and label maps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.models.presets import sq_vae

from .foreign_checkpoints import read_state

_NETWORKS = {
    "mnist": "mnist",
    "fashionmnist": "mnist",
    "fashion_mnist": "mnist",
    "cifar10": "cifar10",
    "celeba": "celeba",
    "celebamask_hq": "celebamask",
}
_TYPES = {"gaussian_1": "I", "gaussian_2": "II", "gaussian_3": "III", "gaussian_4": "IV"}
_NAMES = (
    (r"^module\.", ""),
    # The first convolution for CelebA lies in a list of its own.
    (r"^encoder\.conv\.0\.0\.", "encoder.stem.0."),
    (r"^encoder\.conv\.", "encoder.stem."),
    (r"^encoder\.res_m\.block\.", "encoder.mean_head.layers."),
    (r"^encoder\.res_v\.block\.", "encoder.variance_head.layers."),
    (r"^(encoder|decoder)\.res\.(\d+)\.block\.", r"\1.blocks.\2.layers."),
    (r"^decoder\.convt\.", "decoder.head."),
    (r"^codebook$", "quantizer.codebook.weight"),
    (r"^logvar_x$", "likelihood.log_variance"),
    (r"^log_kappa_inv$", "likelihood.log_inverse_concentration"),
)


def convert_sqvae(checkpoint: Path, settings: Mapping[str, Any], image_size: int | None) -> PreTrainedModel:
    """The same SQ-VAE.

    Args:
        checkpoint: best.pt or current.pt.
        settings: configs.json beside it, or the YAML file of its training.
        image_size: Instead of that of its data set.

    Raises:
        ValueError: Without settings, for those of another data set, and for another checkpoint.
    """
    if not {"dataset", "model", "network", "quantization"} <= settings.keys():
        raise ValueError(
            "config is needed: the weights of an SQ-VAE do not say which of its types they are. It is configs.json "
            "beside best.pt, or the YAML file of the training in vision/configs."
        )
    state = read_state(checkpoint)
    renamed = {_renamed(name, settings): tensor for name, tensor in state.items()}
    fields = _fields(settings)
    if "likelihood.log_variance" in renamed:
        fields["decoder_variance"] = "learned"
    if image_size is not None:
        fields["image_size"] = image_size
    model = SQVAEModel(sq_vae(_network(settings), recipe="paper", **fields))
    _load(model, renamed, checkpoint)
    return model.eval()


def _network(settings: Mapping[str, Any]) -> str:
    name = str(settings["dataset"].get("name"))
    if name.lower() not in _NETWORKS:
        raise ValueError(f"dataset.name is {name!r}, and one of {', '.join(_NETWORKS)} is needed.")
    return _NETWORKS[name.lower()]


def _fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    network, dim = settings["network"], settings["quantization"]["dim_dict"]
    kind, blocks = settings["model"].get("param_var_q"), network["num_rb"]
    fields = {
        "hidden_size": dim,
        "codebook_dim": dim,
        "codebook_size": settings["quantization"]["size_dict"],
        "num_residual_blocks": blocks,
        # At 64 pixels their decoders have one less.
        "num_decoder_residual_blocks": blocks - (_network(settings) in ("celeba", "celebamask")),
    }
    if _network(settings) == "celebamask":
        activation = network.get("act_decoder", "linear")
        if activation not in ("exp", "linear"):
            raise ValueError(f"network.act_decoder is {activation!r}, and 'exp' or 'linear' is needed.")
        fields |= {"num_classes": network["num_class"], "decoder_softplus": activation == "exp"}
        if kind == "vmf":
            return fields
    if kind == "vmf":
        return {**fields, "quantizer": "vmf"}
    if kind not in _TYPES:
        raise ValueError(f"model.param_var_q is {kind!r}, and one of {', '.join(_TYPES)} and vmf is needed.")
    return {**fields, "quantizer": "gaussian", "variance_type": _TYPES[kind]}


def _renamed(name: str, settings: Mapping[str, Any]) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if name == "log_param_q_scalar":
        vmf = settings["model"].get("param_var_q") == "vmf"
        return "quantizer.log_concentration" if vmf else "quantizer.variance.log_variance"
    return name


@torch.no_grad()
def _load(model: SQVAEModel, tensors: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    own = model.state_dict()
    wanted = {name for name in own if not name.startswith("temperature.")}
    different = sorted(wanted ^ set(tensors))
    if different:
        raise ValueError(
            f"{checkpoint} and its config are of different models: {', '.join(different[:3])} in one only."
        )
    for name in wanted:
        # One concentration is a list of one number there.
        if tensors[name].numel() != own[name].numel():
            raise ValueError(
                f"{checkpoint} and its config are of different models: {name} has the shape "
                f"{tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}."
            )
        own[name].copy_(tensors[name].reshape(own[name].shape))
