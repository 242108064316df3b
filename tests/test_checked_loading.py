"""Models from strangers: every damage gives one line that names file and cause, every absurd size its size."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from hq_tokenizers import (
    ContextualPriorConfig,
    ContextualPriorModel,
    HQGeneratorModel,
    HQVAEConfig,
    HQVAEModel,
    MaskedPriorConfig,
    MaskedPriorModel,
    RQPriorConfig,
    RQPriorModel,
    SQVAEConfig,
    SQVAEModel,
)
from hq_tokenizers.checked_loading import check_config_memory
from hq_tokenizers.models.presets import PRESETS
from hq_tokenizers.models.trained_models import load_tokenizer
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.priors import CodeGenerationConfig

BOOK = "quantizer.codebook.weight"


def small_tokenizer() -> SQVAEModel:
    sizes = {"image_size": 8, "num_channels": 1, "hidden_size": 8, "num_residual_blocks": 1}
    return SQVAEModel(SQVAEConfig(codebook_size=8, codebook_dim=4, **sizes)).eval()


def small_prior(model_class: type = RQPriorModel, config_class: type = RQPriorConfig, **fields: Any) -> PreTrainedModel:
    layout = small_tokenizer().code_layout().to_dict()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return model_class(config_class(code_layout=layout, num_classes=2, **sizes, **fields)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tokenizer, all priors and a generator."""
    root = tmp_path_factory.mktemp("saved")
    tokenizer, prior = small_tokenizer(), small_prior()
    models = {"tokenizer": tokenizer, "rq": prior, "masked": small_prior(MaskedPriorModel, MaskedPriorConfig)}
    models["contextual"] = small_prior(ContextualPriorModel, ContextualPriorConfig)
    models["generator"] = HQGeneratorModel.from_sub_models(tokenizer, prior)
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in models}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def first_matrix(state: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in sorted(state.items()) if value.ndim >= 2 and value.is_floating_point())


def changed(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    """Changes the first matrix, or leaves it out."""

    def damage(folder: Path) -> None:
        state = weights(folder)
        name = first_matrix(state)
        value = change(state.pop(name))
        write(folder, state if value is None else state | {name: value.contiguous()})

    return damage


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([1]), value).view(tensor.shape)


def bytes_changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def as_pickle(folder: Path) -> None:
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_index(content: Callable[[list[str]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = content(list(weights(folder)))
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


FILE = r"model\.safetensors"
INDEX = r"model\.safetensors\.index\.json"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (bytes_changed(lambda content: b""), f"{FILE} is damaged or no safetensors file: header too small"),
    "header cut": (bytes_changed(lambda content: content[:100]), f"{FILE} is damaged .*: invalid header"),
    "data cut": (bytes_changed(lambda content: content[:-64]), f"{FILE} is damaged .*: .*not fully covered"),
    "another file": (bytes_changed(lambda content: b"PK\3\4" + content), f"{FILE} is damaged or no safetensors file"),
    "other shape": (changed(lambda tensor: torch.cat([tensor] * 2)), f"{FILE}: .* has the shape .*, config.json wants"),
    "missing": (changed(lambda tensor: None), f"{FILE} lacks the weights "),
    "pickle": (as_pickle, r"has weights as a pickle only \(pytorch_model\.bin\)"),
    "index outside": (
        as_index(lambda names: {"weight_map": dict.fromkeys(names, "../outside.safetensors")}),
        f"{INDEX} names the file '../outside.safetensors'; only safetensors files in its own folder are read",
    ),
    "no shard": (
        as_index(lambda names: {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}),
        f"{INDEX} names the file 'model-00001-of-00001.safetensors', which is not there",
    ),
    "index without map": (as_index(lambda names: {"metadata": {}}), f'{INDEX} is damaged: it has no "weight_map"'),
    "NaN": (changed(with_value(torch.nan)), f"{FILE}: .* has values that are NaN or infinite"),
    "infinite": (changed(with_value(-torch.inf)), f"{FILE}: .* has values that are NaN or infinite"),
    "integers": (changed(lambda tensor: tensor.long()), f"{FILE}: .* has the type I64"),
}
CLASSES = {"tokenizer": SQVAEModel, "rq": RQPriorModel, "masked": MaskedPriorModel, "generator": HQGeneratorModel}
CLASSES["contextual"] = ContextualPriorModel


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", CLASSES)
def test_damage_is_one_line_with_file_and_cause(saved: dict[str, Path], tmp_path: Path, kind: str, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved[kind], folder)
    harm, message = DAMAGES[damage]
    harm(folder)
    for load in (CLASSES[kind].from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=rf"{tmp_path}/model.*{message}") as caught:
            load(folder)
        assert len(str(caught.value).splitlines()) == 1
    if kind == "tokenizer":
        with pytest.raises(ValueError, match=rf"tokenizer '{folder}': the tokenizer cannot be loaded \(.*{message}"):
            load_tokenizer(str(folder))


def test_what_is_whole_is_loaded_as_transformers_loads_it(saved: dict[str, Path], tmp_path: Path) -> None:
    for kind, model_class in CLASSES.items():
        model = model_class.from_pretrained(saved[kind])
        stored = weights(saved[kind])
        state = model.state_dict()
        assert set(state) == set(stored)
        assert all(torch.equal(state[name], stored[name]) for name in stored)
    # Parts of a generator, with what is not theirs left aside; shards; another type; a subfolder; loading_info.
    part = SQVAEModel.from_pretrained(saved["generator"])
    assert torch.equal(part.state_dict()[BOOK], weights(saved["tokenizer"])[BOOK])
    part.save_pretrained(tmp_path / "inside" / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "inside" / "shards").glob("*.safetensors"))) > 1
    again, info = SQVAEModel.from_pretrained(tmp_path / "inside", subfolder="shards", output_loading_info=True)
    assert torch.equal(again.state_dict()[BOOK], part.state_dict()[BOOK])
    assert not info["missing_keys"]
    assert RQPriorModel.from_pretrained(saved["rq"], dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_counters_whole(preset: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = AutoModel.from_config(PRESETS[preset]("digits", hidden_size=8))
    model.save_pretrained(tmp_path)
    counters = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert {name for name, value in loaded.items() if not value.is_floating_point()} == counters


def test_parts_may_start_anew_when_that_is_asked_for(saved: dict[str, Path]) -> None:
    config = RQPriorConfig.from_pretrained(saved["rq"], num_classes=5, id2label=None, label2id=None)
    with pytest.raises(ValueError, match=r"has the shape \(3, 8\), config.json wants \(6, 8\)"):
        RQPriorModel.from_pretrained(saved["rq"], config=config)
    model = RQPriorModel.from_pretrained(saved["rq"], config=config, ignore_mismatched_sizes=True)
    assert model.class_embedding.table.weight.shape == (6, 8)


def test_pickles_cannot_be_asked_for(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="use_safetensors=False would read pickles"):
        SQVAEModel.from_pretrained(saved["tokenizer"], use_safetensors=False)


def test_code_vectors_that_are_not_set_may_be_saved(tmp_path: Path) -> None:
    small_prior(input_embeddings="code_vectors", code_vector_dim=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no code vectors yet"):
        RQPriorModel.from_pretrained(tmp_path).generate([0])


ABSURD = [
    SQVAEConfig(codebook_size=2**24, codebook_dim=65_536),
    SQVAEConfig(hidden_size=65_536, num_residual_blocks=100),
    HQVAEConfig(code_groups=["stride 4: 16777216 x 256"], codebook_dim=1024),
    RQPriorConfig(num_classes=0, hidden_size=65_536, num_hidden_layers=100),
    MaskedPriorConfig(cross_attention_dim=65_536, hidden_size=65_536, num_hidden_layers=30),
    ContextualPriorConfig(hidden_size=65_536, num_depth_layers=100),
]


@pytest.mark.parametrize("config", ABSURD, ids=lambda config: config.model_type)
def test_models_that_no_memory_holds_are_refused_before_they_are_built(config: Any, tmp_path: Path) -> None:
    model_class = {"sq_vae": SQVAEModel, "hq_vae": HQVAEModel, "rq_prior": RQPriorModel}
    model_class |= {"masked_prior": MaskedPriorModel, "contextual_prior": ContextualPriorModel}
    size = r"The [\d,]{14,} numbers of this \w+Model take [\d,.]+ GiB, this machine has [\d,.]+ GiB: lower the sizes"
    with pytest.raises(ValueError, match=size):
        model_class[config.model_type](config)
    with pytest.raises(ValueError, match=size):
        AutoModel.from_config(config)
    # The same in a stranger's config.json, whose weights lack what would be allocated.
    config.save_pretrained(tmp_path)
    write(tmp_path, {"a": torch.zeros(1)})
    for load in (model_class[config.model_type].from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=size):
            load(tmp_path)


def test_sizes_out_of_range_are_refused_by_configurations_and_options() -> None:
    for cls, field, value in (
        *((SQVAEConfig, name, 10**9) for name in ("num_residual_blocks", "codebook_size", "hidden_size")),
        (RQPriorConfig, "num_classes", 10**10),
        (CodeGenerationConfig, "num_candidates", 10**9),
        *((GenerateConfig, "num_images", value) for value in (10**12, 1e12)),
        (EvaluateConfig, "num_images", 10**12),
        (LoopConfig, "epochs", 1e308),
    ):
        given = {"generator": "folder"} if cls is EvaluateConfig else {}
        with pytest.raises(ValueError, match=rf"{field} must be (an integer|a number) .*, got {re.escape(str(value))}"):
            cls(**given | {field: value})


def test_the_check_draws_no_noise_and_lets_meta_models_pass() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_config_memory(SQVAEModel, SQVAEConfig())
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert SQVAEModel(ABSURD[0]).device.type == "meta"


def test_samples_that_no_memory_holds_are_refused_before_they_are_drawn(saved: dict[str, Path]) -> None:
    generator = HQGeneratorModel.from_pretrained(saved["generator"])
    for draw in (generator.generate, generator.prior.generate):
        with pytest.raises(ValueError, match=r"4,294,967,294 samples take .* GiB, this machine has"):
            draw([0, 1], num_images=2**31 - 1)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tokenizer", {"kl_weight": float("nan")}),
        ("tokenizer", {"hidden_size": "x"}),
        ("tokenizer", {"gumbel_temperature": "1.0"}),
        ("rq", {"dropout": -1}),
        ("masked", {"num_hidden_layers": 1.5}),
    ],
)
def test_fields_given_when_loading_are_checked(saved: dict[str, Path], name: str, fields: dict[str, Any]) -> None:
    (field,) = fields
    with pytest.raises(ValueError, match=f"^{field} must be"):
        AutoModel.from_pretrained(saved[name], **fields)
