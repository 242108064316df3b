"""The modules as `evaluate` loads, documents and combines them; what importing the package costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch

import hq_tokenizers.metrics
from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork

FOLDER = Path(hq_tokenizers.metrics.__file__).parent
CLASSES = {
    "codebook_usage": "CodebookUsage",
    "fid": "FID",
    "lpips": "LPIPS",
    "reconstruction": "Reconstruction",
    "segmentation": "Segmentation",
}


@pytest.fixture
def options(lpips_folder: Path, pixel_network: FeatureNetwork) -> dict[str, dict[str, object]]:
    return {
        "fid": {"feature_network": pixel_network},
        "lpips": {"weights": lpips_folder / "squeeze.backbone.pth"},
        "segmentation": {"num_classes": 3},
    }


@pytest.fixture
def inputs(images: torch.Tensor) -> dict[str, dict[str, object]]:
    images = images.repeat(1, 1, 3, 3)
    pair = {"predictions": images[:20], "references": images[20:]}
    labels = torch.arange(2 * 5 * 6).view(2, 5, 6) % 3
    codes = Codes((torch.arange(8).view(2, 2, 2, 1),), CodeLayout((CodeGroup(2, 2, (8,)),)))
    return {
        "codebook_usage": {"codes": codes},
        "fid": pair,
        "lpips": pair,
        "reconstruction": pair,
        "segmentation": {"predictions": labels, "references": labels.flip(0)},
    }


@pytest.mark.parametrize("name", CLASSES)
def test_loaded_module_equals_the_class(
    name: str, options: dict[str, dict[str, object]], inputs: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    own = options.get(name, {})
    direct = getattr(hq_tokenizers.metrics, CLASSES[name])(**own)
    expected = direct.compute(**inputs[name])
    # As a file where it lies, and as a folder of its own, anywhere.
    shutil.copytree(FOLDER, tmp_path / "elsewhere")
    (tmp_path / name).mkdir()
    shutil.copy(FOLDER / f"{name}.py", tmp_path / name)
    for path in (FOLDER / f"{name}.py", tmp_path / name):
        loaded = evaluate.load(str(path), **own)
        assert loaded.name == name
        assert type(loaded).__module__ != type(direct).__module__
        loaded.add_batch(**inputs[name])
        assert loaded.compute() == expected


@pytest.mark.parametrize("name", CLASSES)
def test_methods_have_documentation_and_inputs(name: str, options: dict[str, dict[str, object]]) -> None:
    metric = getattr(hq_tokenizers.metrics, CLASSES[name])(**options.get(name, {}))
    for method in (metric.add, metric.add_batch, metric.compute):
        assert method.__doc__.endswith(metric.inputs_description)
        assert len(method.__doc__) > len(metric.inputs_description) > 10
    assert metric.description


def test_combine(options: dict[str, dict[str, object]], inputs: dict[str, dict[str, object]]) -> None:
    names = ["fid", "reconstruction", "codebook_usage"]

    def make() -> list[evaluate.Metric]:
        return [getattr(hq_tokenizers.metrics, CLASSES[name])(**options.get(name, {})) for name in names]

    combined = evaluate.combine(make())
    combined.add_batch(**inputs["fid"], **inputs["codebook_usage"])
    result = combined.compute()
    direct = {name: metric.compute(**inputs[name]) for name, metric in zip(names, make(), strict=True)}
    for name, values in direct.items():
        assert result[f"{name}_provenance"] == values.pop("provenance")
        for key, value in values.items():
            assert result[key] == value
    at_once = evaluate.combine(make()).compute(**inputs["fid"], **inputs["codebook_usage"])
    assert at_once == result

    one_by_one = evaluate.combine(make()[:2])
    for prediction, reference in zip(*inputs["fid"].values(), strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute()["mse"] == pytest.approx(result["mse"], rel=1e-12)


def test_combine_loads_paths() -> None:
    combined = evaluate.combine([str(FOLDER / "reconstruction.py")])
    images = torch.rand(2, 3, 16, 16)
    assert combined.compute(predictions=images, references=images)["mse"] == 0


def test_result_can_be_saved_by_evaluate(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 16, 16)
    result = hq_tokenizers.metrics.Reconstruction().compute(predictions=images, references=1 - images)
    path = evaluate.save(tmp_path / "result.json", **result)
    assert json.loads(Path(path).read_text())["provenance"] == result["provenance"]


def test_no_example_is_written_to_disk(tmp_path: Path) -> None:
    metric = hq_tokenizers.metrics.Reconstruction(cache_dir=str(tmp_path))
    images = torch.rand(2, 3, 16, 16)
    metric.add_batch(predictions=images, references=images)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_importing_the_packages_imports_no_slow_library() -> None:
    code = (
        "import sys, hq_tokenizers, hq_tokenizers.metrics\n"
        "slow = {'evaluate', 'datasets', 'torchmetrics', 'torch_fidelity'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[1])


def test_public_names() -> None:
    assert set(CLASSES.values()) <= set(dir(hq_tokenizers.metrics))
    for name in hq_tokenizers.metrics.__all__:
        assert getattr(hq_tokenizers.metrics, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Fid'"):
        hq_tokenizers.metrics.Fid  # noqa: B018
