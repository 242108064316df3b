"""Makes the models known to transformers' Auto classes and to `transformers.pipeline`."""

from __future__ import annotations

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from hq_tokenizers.hub.model_card import PIPELINE_TAGS
from hq_tokenizers.hub.upload import push_to_hub
from hq_tokenizers.models.modeling_hq_vae import HQVAEModel
from hq_tokenizers.models.modeling_image_tokenizer import ImageTokenizerPreTrainedModel
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel

from .feature_extraction_hq import HQFeatureExtractor
from .image_processing_hq import HQImageProcessor
from .pipelines.code_sampling_pipeline import CodeSamplingPipeline
from .pipelines.modeling_hq_generator import HQGeneratorModel
from .pipelines.pipeline_hq_audio_generation import HQAudioGenerationPipeline
from .pipelines.pipeline_hq_generation import HQGenerationPipeline
from .pretrained_models import DEFAULT, DEFAULT_OF_SOUNDS, pretrained, pretrained_names
from .priors.modeling_code_prior import CodePriorModel
from .priors.modeling_contextual_prior import ContextualPriorModel
from .priors.modeling_masked_prior import MaskedPriorModel
from .priors.modeling_rq_prior import RQPriorModel

TASKS = {
    **dict.fromkeys(("hq-generation", PIPELINE_TAGS["generator"]), HQGenerationPipeline),
    "hq-audio-generation": HQAudioGenerationPipeline,
}
"""Pipelines by our names, and by the Hub's of images, by which `pipeline(model="user/cats")` finds it."""


def register() -> None:
    """Registers all that transformers can find by name; calling it again changes nothing.

    These are the models, the image processor, the feature extractor of sounds and the tasks "hq-generation" and
    "hq-audio-generation", with the generators of the package where no model is named. The method
    `push_to_hub` of the models and of the pipeline becomes that of `hq_tokenizers.hub`.
    """
    priors = (RQPriorModel, MaskedPriorModel, ContextualPriorModel)
    for model in (SQVAEModel, HQVAEModel, *priors, HQGeneratorModel):
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    for model in (SQVAEModel, HQVAEModel, HQGeneratorModel):
        AutoImageProcessor.register(
            model.config_class, image_processor_classes={"torchvision": HQImageProcessor}, exist_ok=True
        )
    for config_class in (SQVAEModel.config_class, HQVAEModel.config_class, HQGeneratorModel.config_class):
        AutoFeatureExtractor.register(config_class, HQFeatureExtractor, exist_ok=True)
    for task in set(TASKS) - set(PIPELINE_REGISTRY.get_supported_tasks()):
        name = DEFAULT if TASKS[task] is HQGenerationPipeline else DEFAULT_OF_SOUNDS
        # A folder has no revision, which transformers wants. Without its folders the package can still make them anew.
        default = {"model": (pretrained(name), "main")} if name in pretrained_names() else None
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=TASKS[task], pt_model=AutoModel, default=default)
    # Here, since the models know nothing of cards; transformers' own would write a boilerplate one.
    for uploaded in (ImageTokenizerPreTrainedModel, CodePriorModel, HQGeneratorModel, CodeSamplingPipeline):
        uploaded.push_to_hub = push_to_hub
