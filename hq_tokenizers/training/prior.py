"""Stage two: training a prior on encoded images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, set_seed

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.images import Batch
from hq_tokenizers.data.sound_loading import load_front_end
from hq_tokenizers.data.synthetic import synthetic_codes
from hq_tokenizers.evaluation.generator import compare_samples
from hq_tokenizers.evaluation.image_sets import SetComparison
from hq_tokenizers.evaluation.networks import check_packages
from hq_tokenizers.evaluation.sampling import NumberedSamples
from hq_tokenizers.evaluation.sound import spectrogram_pictures
from hq_tokenizers.evaluation.validation import evaluate_prior, prior_conditions
from hq_tokenizers.files import replacing_files
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.models.processors import save_processor
from hq_tokenizers.models.trained_models import load_tokenizer, set_beam_width
from hq_tokenizers.options.evaluation import EvaluateConfig, MetricConfig, check_unused_in_training
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import PriorTrainingConfig
from hq_tokenizers.pipelines.code_decoding import decode_codes, layout_for, num_speakers
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.pretrained_models import folder_of
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.priors.likelihood import dense_soft_targets
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.figures import image_grid, save_curves, save_png
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.reports import images_per_second, write_report
from hq_tokenizers.reporting.tracking import Record, Tracker, read_history

from .dry_run import dry_run, layout_in_words, smaller_run
from .loop import TrainingLoop
from .model_options import PRIOR_CONFIGS, build_model_config
from .optimization import decay_groups
from .stage import Metrics, Stage

_PANELS = {
    "loss (nats per code)": ["loss"],
    "bits per code, by level": ["bits_per_code_by_level", "unigram_bits_by_level"],
    "learning rate": ["learning_rate"],
    "samples": ["fid", "frechet_distance"],
}


def train_prior(config: PriorTrainingConfig) -> dict[str, Any]:
    """Trains a prior on a folder of codes, or continues the run in `config.output_dir`, and writes it there.

    The folder ends up with config.json, model.safetensors and generation_config.json, which `from_pretrained` loads;
    samples.png when the tokenizer is at hand, curves.png, report.json, metrics.jsonl and the checkpoints.

    Returns:
        The report; its "validation" figures are those of `evaluate_prior`. With `config.dry_run` what `dry_run` found,
        and nothing is written.

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir`.
        OSError: If evaluations are asked for and their weights or reference cannot be had.
        ValueError: For options, codes and tokenizer that do not fit together, sampling settings that the prior does not
            accept, or a run in `config.output_dir` on other codes, before anything is trained.
    """
    accelerator = create_accelerator()
    if config.dry_run:
        return _dry_run(config, accelerator)
    with lock_folder("output_dir", config.output_dir):
        return _train_prior(config, accelerator)


def _train_prior(config: PriorTrainingConfig, accelerator: Accelerator) -> dict[str, Any]:
    check_unused_in_training(config)
    encoded = EncodedImages.load(config.codes)
    tokenizer = _load_tokenizer(config, encoded, accelerator)
    stage = PriorStage(config, accelerator, _build_model(config, encoded, tokenizer), encoded, tokenizer)
    loop = TrainingLoop(config, accelerator, stage.train, stage)
    model = loop.run()
    report = {
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        "code_layout": str(encoded.layout),
        "steps": loop.step,
        "epochs": loop.feed.epochs(loop.step),
        "validation": stage.validate(model),
        "options": options_to_dict(config),
    }
    if accelerator.is_main_process:
        output_dir = Path(config.output_dir)
        with replacing_files(output_dir) as new:
            model.save_pretrained(new)
        history = read_history(output_dir)
        save_curves(history, _PANELS, output_dir / "curves.png")
        report["images_per_second"] = images_per_second(history)
        write_report(output_dir, report)
        if tokenizer is not None and config.samples:
            save_png(_sample_grid(model, tokenizer, config, encoded), output_dir / "samples.png")
        print(f"The prior, its curves and report.json are in {output_dir}.")
    accelerator.wait_for_everyone()
    return report


def _dry_run(config: PriorTrainingConfig, accelerator: Accelerator) -> dict[str, Any]:
    """See `dry_run`; the layout is that of the codes, or of the options where there are none yet."""
    layout, num_classes, names = _shape_of_codes(config)
    smaller = smaller_run(config, layout.num_codes, accelerator.num_processes)
    encoded = synthetic_codes(layout, num_classes, smaller.batch_size, config.soft_targets, names)
    vector_dim = config.model.get("code_vector_dim")
    if config.model.get("input_embeddings") == "code_vectors" and vector_dim is None:
        raise ValueError("A dry run reads no tokenizer: give model.code_vector_dim, the width of its code vectors.")
    model_config = _model_config(config, encoded, vector_dim)

    def prepare() -> tuple[Stage, CodeRows]:
        model = AutoModel.from_config(model_config)
        if vector_dim is not None:
            dims = zip(layout.groups, model_config.code_vector_dims, strict=True)
            model.set_code_vectors(
                tuple(torch.zeros(size, dim) for group, dim in dims for size in group.codebook_sizes)
            )
        stage = PriorStage(smaller, accelerator, model, encoded, None)
        return stage, stage.train

    with torch.device("meta"):
        model = AutoModel.from_config(model_config)
    return dry_run(config, smaller, accelerator, model, prepare, {"codes": layout_in_words(layout)})


def _shape_of_codes(config: PriorTrainingConfig) -> tuple[CodeLayout, int, list[str] | None]:
    """Layout, number and names of classes of the codes to train on, or of the options where there are no codes yet.

    Of codes, classes without names are counted only when they are read: what the options say is believed.
    """
    given, num_classes = _given_layout(config), config.model.get("num_classes", 0)
    try:
        description = EncodedImages.load_description(config.codes)
    except FileNotFoundError as error:
        if given is None:
            raise ValueError(
                f"A dry run needs the layout of the codes, and {config.codes!r} holds none: give model.code_layout, "
                "such as '8x8x4 of 512' (and model.num_classes), or encode the images first."
            ) from error
        return given, num_classes, None
    names = description["id2label"]
    layout = CodeLayout.from_dict(description["code_layout"])
    return (layout, num_classes, None) if names is None else (layout, len(names), list(names.values()))


def _given_layout(config: PriorTrainingConfig) -> CodeLayout | None:
    """The layout that the options name."""
    given = config.model.get("code_layout")
    try:
        return None if given is None else CodeLayout.parse(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.code_layout describes no layout: {error}") from error


def train_prior_and_save_generator(config: PriorTrainingConfig) -> dict[str, Any]:
    """`train_prior`, then the generator in `output_dir/generator` when the tokenizer is at hand; returns the report."""
    accelerator = create_accelerator()
    if config.dry_run:
        return _dry_run(config, accelerator)
    with lock_folder("output_dir", config.output_dir):
        report = _train_prior(config, accelerator)
        description = EncodedImages.load_description(config.codes)
        made_the_codes = description["tokenizer"]
        tokenizer = _tokenizer_path(config, made_the_codes)
        if accelerator.is_main_process and tokenizer is not None:
            folder = Path(config.output_dir) / "generator"
            save_generator(tokenizer, config.output_dir, folder, description.get("beam_width", 1))
            print(f"The generator, tokenizer and prior in one, is in {folder}.")
        elif accelerator.is_main_process:
            print(
                f"No generator was written: the tokenizer {made_the_codes!r} is not there. Say where with --tokenizer."
            )
    return report


def save_generator(tokenizer: str, prior: str, output_dir: Path, beam_width: int = 1) -> HQGeneratorModel:
    """Joins a tokenizer, or that of a generator, and a prior, each loaded from its folder, and saves the generator with
    its image processor or front end.

    The generator chooses the codes of given images as those were that the prior knows, by `beam_width`.
    """
    generator = HQGeneratorModel.from_sub_models(load_tokenizer(tokenizer), AutoModel.from_pretrained(prior))
    config = generator.image_tokenizer.config
    set_beam_width(generator.image_tokenizer, beam_width)
    front_end = load_front_end(tokenizer, config) if is_of_sound(config) else None
    with replacing_files(output_dir) as new:
        generator.save_pretrained(new)
        save_processor(generator, new, front_end)
    return generator


class PriorStage(Stage):
    """Trains a prior on codes.

    Args:
        config: Options.
        accelerator: Whose processes share the work.
        model: The prior, with its initial weights.
        encoded: The codes.
        tokenizer: What decodes samples; None where it is not needed.

    Raises:
        OSError, ValueError: If evaluations are asked for and cannot be had.
    """

    title = "prior"

    def __init__(
        self,
        config: PriorTrainingConfig,
        accelerator: Accelerator,
        model: PreTrainedModel,
        encoded: EncodedImages,
        tokenizer: PreTrainedModel | None,
    ) -> None:
        super().__init__(model)
        self.config = config
        self.accelerator = accelerator
        self.encoded = encoded
        self.tokenizer = tokenizer
        self.train = _training_rows(config, encoded)
        self._inputs = {
            "tokenizer_sha256": encoded.tokenizer_sha256,
            "training_codes_sha256": self.train.sha256(),
            "validation_codes_sha256": encoded.splits["validation"].sha256(),
        }
        self._comparison = _sample_comparison(config, tokenizer, accelerator)

    def step(self, wrapped: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """The cross-entropy of a batch of codes, in nats per code."""
        layout, soft_targets = self.encoded.layout, None
        if self.config.soft_targets:
            soft_targets = dense_soft_targets(layout, batch["soft_codes"], batch["soft_probabilities"])
        conditions = prior_conditions(self.model, batch)
        loss = wrapped(layout.unflatten(batch["codes"]), soft_targets=soft_targets, **conditions).loss
        return loss, {"bits_per_code": loss.detach() / math.log(2)}

    def validate(self, model: PreTrainedModel) -> Record:
        """See `evaluate_prior`."""
        return evaluate_prior(model, self.encoded, "validation", self.config.batch_size, self.accelerator)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices with weight decay, the rest without."""
        return decay_groups(self.model)

    def inputs(self) -> dict[str, str]:
        """Hashes of the tokenizer and of the codes."""
        return self._inputs

    def after_validation(self, model: PreTrainedModel, tracker: Tracker, step: int, figures: Record) -> None:
        """Draws samples.png."""
        if self.tokenizer is not None and self.config.samples:
            grid = _sample_grid(model, self.tokenizer, self.config, self.encoded)
            save_png(grid, Path(self.config.output_dir) / "samples.png")
            tracker.image("samples", grid, step)

    def evaluate(self, model: PreTrainedModel) -> Record:
        """Compares samples with `evaluation_reference`; no figures when it was not asked for."""
        if self._comparison is None:
            return {}

        def sample(labels: list[int], generators: list[torch.Generator]) -> torch.Tensor:
            assert self.tokenizer is not None
            return self.tokenizer.decode(model.generate(torch.tensor(labels), generator=generators))

        samples = NumberedSamples(sample, model.config.num_classes, self.config.seed)
        share = samples.share(self.config.evaluation_images, self.config.batch_size, self.accelerator)
        found = self._comparison.compare(share)
        return {name: value for name, value in found.items() if name != "provenance"}


def _sample_comparison(
    config: PriorTrainingConfig, tokenizer: PreTrainedModel | None, accelerator: Accelerator
) -> SetComparison | None:
    """The comparison of samples with `evaluation_reference`; None when not asked for."""
    if config.evaluation_steps is None:
        return None
    assert tokenizer is not None
    if tokenizer.config.modality == "sound":
        raise ValueError("evaluation_steps is for images: samples of sound are judged by `evaluate` afterwards.")
    check_packages()
    options = EvaluateConfig(
        generator=config.output_dir,
        reference=config.evaluation_reference,
        metrics=MetricConfig(**options_to_dict(config.metrics)),
        num_images=config.evaluation_images,
        batch_size=config.batch_size,
    )
    return compare_samples(options, tokenizer, accelerator, "evaluation_reference")


def _model_config(config: PriorTrainingConfig, encoded: EncodedImages, code_vector_dim: int | None) -> PreTrainedConfig:
    """The configuration of the prior over these codes."""
    train = encoded.splits["train"]
    if config.conditional and train.labels is None and train.speakers is None:
        raise ValueError(f"conditional is true, but the codes in {config.codes!r} have no labels.")
    conditional = config.conditional is not False
    num_classes, names = 0, encoded.label_names
    if conditional and train.labels is not None:
        num_classes = len(names) if names else int(train.labels.max()) + 1
    from_data: dict[str, Any] = {"code_layout": encoded.layout.to_dict(), "num_classes": num_classes}
    if conditional and train.speakers is not None:
        from_data |= {"num_speakers": len(encoded.speaker_names or ()), "speaker_names": encoded.speaker_names}
    if code_vector_dim is not None:
        from_data["code_vector_dim"] = code_vector_dim
    if _given_layout(config) not in (None, encoded.layout):
        raise ValueError(
            f"model.code_layout is {_given_layout(config)}, but the codes in {config.codes!r} have the layout "
            f"{encoded.layout}: leave it out."
        )
    section = {name: value for name, value in config.model.items() if name != "code_layout"}
    model_config = build_model_config(section, from_data, PRIOR_CONFIGS)
    if num_classes and names:
        model_config.id2label = dict(enumerate(names))
        model_config.label2id = {name: index for index, name in enumerate(names)}
    return model_config


def _build_model(
    config: PriorTrainingConfig, encoded: EncodedImages, tokenizer: PreTrainedModel | None
) -> PreTrainedModel:
    with_code_vectors = config.model.get("input_embeddings") == "code_vectors"
    code_vector_dim = None
    if with_code_vectors:
        assert tokenizer is not None  # loaded where it is needed
        code_vector_dim = tokenizer.config.codebook_dim
    model_config = _model_config(config, encoded, code_vector_dim)
    set_seed(config.seed)
    model = AutoModel.from_config(model_config)
    if with_code_vectors:
        model.set_code_vectors(tokenizer.codebooks())  # type: ignore[union-attr]
    try:
        settings = settings_from_options(config.generation)
        model.generation_config = model.generation_config.with_overrides(**settings)
        model.check_generation_config(model.generation_config)
    except ValueError as error:
        raise ValueError(f"generation: {error}") from error
    return model


def _tokenizer_path(config: PriorTrainingConfig, made_the_codes: str) -> str | None:
    """The tokenizer that was asked for, or the one that made the codes where it still is."""
    if config.tokenizer is not None:
        return folder_of(config.tokenizer)
    path = folder_of(made_the_codes)
    return path if Path(path, "config.json").is_file() else None


def _load_tokenizer(
    config: PriorTrainingConfig, encoded: EncodedImages, accelerator: Accelerator
) -> PreTrainedModel | None:
    """The tokenizer, checked; None where this process does not need it, or only could have used it."""
    path = _tokenizer_path(config, encoded.tokenizer)
    needed = config.evaluation_steps is not None or config.model.get("input_embeddings") == "code_vectors"
    if not needed and (path is None or not accelerator.is_main_process):
        return None
    path = encoded.tokenizer if path is None else path
    tokenizer = load_tokenizer(path)
    if weights_sha256(tokenizer) != encoded.tokenizer_sha256:
        other = "" if config.tokenizer is None else f"give the tokenizer that made them ({encoded.tokenizer!r}), or "
        raise ValueError(
            f"The codes in {config.codes!r} were made by other weights than those in {path!r}: {other}encode the "
            "images again."
        )
    own = layout_for(tokenizer, encoded.layout)
    if own != encoded.layout:
        raise ValueError(
            f"The codes in {config.codes!r} have the layout {encoded.layout}, the tokenizer {path!r} has {own}, that "
            f"of images of size {tokenizer.config.image_size}: encode images of that size (data.image_size)."
        )
    return tokenizer.to(accelerator.device)


def _training_rows(config: PriorTrainingConfig, encoded: EncodedImages) -> CodeRows:
    """The training codes, with posterior probabilities exactly when they are asked for."""
    rows = encoded.splits["train"]
    if config.soft_targets and rows.soft is None:
        raise ValueError(
            f"soft_targets is true, but the codes in {config.codes!r} were stored without the tokenizer's "
            "probabilities: encode the images again with a stochastic tokenizer and --soft_targets 8."
        )
    return rows if config.soft_targets else replace(rows, soft=None)


def _sample_grid(
    model: PreTrainedModel, tokenizer: PreTrainedModel, config: PriorTrainingConfig, encoded: EncodedImages
) -> Any:
    """Samples of the classes in turn, one class per column where there are up to ten, as often as there is room."""
    classes = model.config.num_classes
    columns = max(1, 8 // classes) * classes if 0 < classes <= 10 else 8
    number = max(1, config.samples // columns) * columns
    labels = [index % classes for index in range(number)] if classes else [-1] * number
    # Speakers in turn, one per row.
    speakers = torch.arange(number) // columns % max(1, _num_speakers(model, tokenizer))
    known = {"speaker_ids": speakers} if model.config.num_speakers else {}
    codes = model.generate(torch.tensor(labels), generator=config.seed, **known)
    images, mask = decode_codes(tokenizer, codes, speakers.to(codes.device))
    if mask is not None:
        front_end = load_front_end(_tokenizer_path(config, encoded.tokenizer) or encoded.tokenizer, tokenizer.config)
        images = spectrogram_pictures({"samples": images}, {"attention_mask": mask}, front_end)["samples"]
    # Columns of one class each are titled once.
    titled = labels[:columns] if classes <= 10 else labels
    titles = [model.config.id2label[label] for label in titled] if classes else []
    return image_grid(images, columns, titles)


def _num_speakers(model: PreTrainedModel, tokenizer: PreTrainedModel) -> int:
    return model.config.num_speakers or num_speakers(tokenizer.config)
