"""Discrete image tokenizers that do not collapse, and generators on top of them.

Importing this package registers the models with transformers' Auto classes and the task "hq-generation" with
`transformers.pipeline`. Heavy packages that only some features need are imported where they are used.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from ._version import __version__

# In a bare checkout the subpackages `priors` and `pipelines` lie beside this folder, not inside it.
_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "priors").is_dir() and (_root / "priors" / "__init__.py").is_file():
    __path__.append(str(_root))


def _is_the_command() -> bool:
    """Whether this process is `hq-tokenizers` or `python -m hq_tokenizers`.

    The command answers --help and misspelt options without torch, and registers the models itself before it works.
    """
    program = sys.argv[0] if sys.argv else ""
    # While Python looks for the module to run, the program is called "-m".
    with_m = program == "-m" and ("-m", "hq_tokenizers") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return with_m or (Path(program).name in ("hq-tokenizers", "hq-tokenizers.exe") and _is_installed(program))


def _is_installed(program: str) -> bool:
    """Whether a program lies where installers put commands: elsewhere, it is somebody's script of the same name."""
    schemes = {sysconfig.get_preferred_scheme(key) for key in ("prefix", "user")}
    return Path(program).resolve().parent in {Path(sysconfig.get_path("scripts", s)).resolve() for s in schemes}


# Registration cannot wait for its first use: `pipeline("hq-generation", …)` asks transformers, not this package.
if TYPE_CHECKING or not _is_the_command():
    from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
    from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
    from hq_tokenizers.models.modeling_hq_vae import HQVAEModel
    from hq_tokenizers.models.modeling_outputs import ImageTokenizerOutput
    from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
    from hq_tokenizers.models.presets import (
        fsq_vae,
        hybrid_vae,
        robust_vq_vae,
        rq_vae,
        rsq_vae,
        sim_vq_vae,
        sq_vae,
        sq_vae_2,
        vae,
        vq_vae,
        vq_vae_2,
    )
    from hq_tokenizers.quantization.layers import (
        ResidualStochasticQuantize,
        ResidualVectorQuantize,
        StochasticQuantize,
        VectorQuantize,
    )

    from .codes import CodeGroup, CodeLayout, Codes
    from .feature_extraction_hq import HQFeatureExtractor
    from .image_processing_hq import HQImageProcessor
    from .pipelines import (
        HQAudioGenerationPipeline,
        HQGenerationPipeline,
        HQGeneratorConfig,
        HQGeneratorModel,
        HQGeneratorOutput,
    )
    from .pretrained_models import pretrained, pretrained_names
    from .priors import (
        CodeGenerationConfig,
        ContextualPriorConfig,
        ContextualPriorModel,
        MaskedPriorConfig,
        MaskedPriorModel,
        PartialCodes,
        RQPriorConfig,
        RQPriorModel,
    )
    from .registration import register
    from .training.trainer_callback import ImageTokenizerCallback

    register()

__all__ = [
    "CodeGenerationConfig",
    "CodeGroup",
    "CodeLayout",
    "Codes",
    "ContextualPriorConfig",
    "ContextualPriorModel",
    "HQAudioGenerationPipeline",
    "HQFeatureExtractor",
    "HQGenerationPipeline",
    "HQGeneratorConfig",
    "HQGeneratorModel",
    "HQGeneratorOutput",
    "HQImageProcessor",
    "HQVAEConfig",
    "HQVAEModel",
    "ImageTokenizerCallback",
    "ImageTokenizerOutput",
    "MaskedPriorConfig",
    "MaskedPriorModel",
    "PartialCodes",
    "RQPriorConfig",
    "RQPriorModel",
    "ResidualStochasticQuantize",
    "ResidualVectorQuantize",
    "SQVAEConfig",
    "SQVAEModel",
    "StochasticQuantize",
    "VectorQuantize",
    "__version__",
    "fsq_vae",
    "hybrid_vae",
    "pretrained",
    "pretrained_names",
    "robust_vq_vae",
    "rq_vae",
    "rsq_vae",
    "sim_vq_vae",
    "sq_vae",
    "sq_vae_2",
    "vae",
    "vq_vae",
    "vq_vae_2",
]
