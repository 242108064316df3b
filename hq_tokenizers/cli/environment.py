"""What a report of a bug needs to say about the machine."""

from __future__ import annotations

import os
import platform

import torch

from hq_tokenizers.memory import machine_memory
from hq_tokenizers.metrics.provenance import library_versions
from hq_tokenizers.options.generation import EnvConfig

LIBRARIES = (
    *("torch", "torchvision", "transformers", "huggingface_hub", "accelerate", "safetensors", "datasets", "evaluate"),
    *("diffusers", "numpy", "pillow", "torchmetrics", "torch-fidelity", "soundfile", "tensorboard", "gradio"),
)


def print_environment(_config: EnvConfig) -> None:
    """Prints versions and devices, one a line; packages that are not installed are left out."""
    lines = {
        "python": f"{platform.python_version()}, {platform.platform()}",
        "processors": f"{os.cpu_count()}, {torch.get_num_threads()} threads",
        "memory": f"{machine_memory() / 2**30:.1f} GiB",
        "accelerator": _accelerator(),
        **library_versions(LIBRARIES),
        "torch": torch.__version__,  # says for which devices it was built
    }
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))


def _accelerator() -> str:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{torch.accelerator.device_count()} × {name}"
