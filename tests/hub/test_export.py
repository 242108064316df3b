from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, pipeline

from hq_tokenizers import ContextualPriorConfig, ContextualPriorModel, HQVAEConfig, HQVAEModel, SQVAEConfig, SQVAEModel
from hq_tokenizers.hub import create_model_card, export_self_contained
from hq_tokenizers.hub.source_bundle import bundle_sources

from .conftest import WITHOUT_THE_PACKAGE

GENERATOR_WITHOUT_THE_PACKAGE = (
    WITHOUT_THE_PACKAGE
    + """
from transformers import AutoModel, pipeline

def codes(directory):
    pipe = pipeline("hq-generation", model=directory, trust_remote_code=True)
    assert type(pipe).__module__.startswith("transformers_modules.")
    assert type(pipe.image_processor).__module__.startswith("transformers_modules.")
    image = pipe(["cat", None], num_images=2, batch_size=3, seed=0)[1][1]
    assert (image.mode, image.size) == ("L", (8, 8))
    return pipe, [c.flatten().tolist() for c in pipe(["cat", None], seed=0, output_type="codes")]

pipe, first = codes(sys.argv[1])
pipe.save_pretrained(sys.argv[2])
_, second = codes(sys.argv[2])
assert first == second
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, attn_implementation="eager")
assert model.prior.config._attn_implementation == "eager"
try:
    pipeline("hq-generation", model=sys.argv[1], trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("ran remote code without being trusted")
print(first)
"""
)


@pytest.fixture(scope="module")
def exported(generator, tmp_path_factory):
    return export_self_contained(generator, tmp_path_factory.mktemp("export") / "cats")


def test_every_module_parses_and_imports_only_its_folder(exported):
    modules = {path.stem for path in exported.glob("*.py")}
    assert {"codes", "modeling_sq_vae", "modeling_rq_prior", "pipeline_hq_generation", "sub_models"} <= modules
    for path in exported.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] != "hq_tokenizers", path.name
                assert node.level == 0 or node.module in modules, path.name
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] != "hq_tokenizers" for alias in node.names), path.name


def test_loads_where_the_package_is_absent(generator, exported, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", GENERATOR_WITHOUT_THE_PACKAGE, str(exported), str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    expected = generator.generate(["cat", None], generator=0).codes.flatten().tolist()
    assert result.stdout.strip().splitlines()[-1] == str([[row] for row in expected])


PARTS_WITHOUT_THE_PACKAGE = (
    WITHOUT_THE_PACKAGE
    + """
import torch
from transformers import AutoImageProcessor, AutoModel

tokenizer = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
pixels = processor(torch.linspace(0, 1, 64).reshape(1, 8, 8), do_rescale=False)["pixel_values"]
codes = tokenizer.encode(pixels)
tokenizer.save_pretrained(sys.argv[2])
again = AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True).eval()
assert again.encode(pixels).flatten().tolist() == codes.flatten().tolist()
priors = [AutoModel.from_pretrained(folder, trust_remote_code=True).eval() for folder in sys.argv[3:]]
for part in (tokenizer, processor, *priors):
    assert type(part).__module__.startswith("transformers_modules."), type(part)
print(codes.flatten().tolist(), *(prior.generate([1], generator=0).flatten().tolist() for prior in priors))
"""
)


def test_parts_load_where_the_package_is_absent(generator, tmp_path):
    tokenizer, prior = generator.image_tokenizer, generator.prior
    sizes = {"num_classes": 3, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    contextual = ContextualPriorModel(ContextualPriorConfig(code_layout=prior.layout.to_dict(), **sizes)).eval()
    for name, part in {"tokenizer": tokenizer, "prior": prior, "contextual": contextual}.items():
        export_self_contained(part, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert "custom_pipelines" not in config
        assert "trust_remote_code=True" in (tmp_path / name / "README.md").read_text()
    assert not (tmp_path / "prior" / "preprocessor_config.json").exists()
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            PARTS_WITHOUT_THE_PACKAGE,
            *(str(tmp_path / n) for n in ("tokenizer", "again", "prior", "contextual")),
        ],
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    codes = tokenizer.encode(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)).flatten().tolist()
    sampled = [model.generate([1], generator=0).flatten().tolist() for model in (prior, contextual)]
    assert result.stdout.strip() == f"{codes} {sampled[0]} {sampled[1]}"


@pytest.mark.parametrize("part", ["image_tokenizer", "prior"])
def test_parts_saved_with_installed_code_name_no_code(generator, tmp_path, part):
    export_self_contained(getattr(generator, part), tmp_path / "export")
    assert "auto_map" in json.loads((tmp_path / "export" / "config.json").read_text())
    loaded = AutoModel.from_pretrained(tmp_path / "export")
    assert type(loaded) is type(getattr(generator, part))
    loaded.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize("trust_remote_code", [None, True])
def test_installed_code_is_used_where_it_is_imported(exported, trust_remote_code):
    pipe = pipeline("hq-generation", model=str(exported), trust_remote_code=trust_remote_code)
    assert type(pipe.model).__module__ == "hq_tokenizers.pipelines.modeling_hq_generator"
    assert type(pipe).__module__ == "hq_tokenizers.pipelines.pipeline_hq_generation"
    assert type(pipe.image_processor).__module__ == "hq_tokenizers.image_processing_hq"


def test_saved_with_installed_code_names_no_code(exported, tmp_path):
    pipeline("hq-generation", model=str(exported)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", "custom_pipelines"} & config.keys()
    assert pipeline("hq-generation", model=str(tmp_path))("cat").size == (8, 8)


def test_card(generator, exported, tmp_path):
    assert "trust_remote_code=True" in (exported / "README.md").read_text()
    card = create_model_card(generator, "user/own", license="mit")
    text = (export_self_contained(generator, tmp_path, card) / "README.md").read_text()
    assert "user/own" in text
    # Whoever reads it knows how to load it without the package, whatever card was given.
    assert "trust_remote_code=True" in text
    assert "trust_remote_code" not in card.content
    own = create_model_card(generator, "user/own", self_contained=True)
    assert (export_self_contained(generator, tmp_path, own) / "README.md").read_text() == str(own)


class TestBundle:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        import hq_tokenizers

        monkeypatch.setattr(hq_tokenizers, "__path__", [*hq_tokenizers.__path__, str(tmp_path)])
        for name in ("made_up", "other"):
            # Finding a submodule imports its package, which must not outlive the test.
            monkeypatch.setitem(sys.modules, f"hq_tokenizers.{name}", None)
            monkeypatch.delitem(sys.modules, f"hq_tokenizers.{name}")

        def write(**modules: str) -> None:
            for name, text in modules.items():
                path = tmp_path / f"{name.replace('__', '/')}.py"
                path.parent.mkdir(exist_ok=True)
                (path.parent / "__init__.py").touch()
                path.write_text(text)

        return write

    def test_follows_and_rewrites_every_form(self, package):
        package(
            made_up__one="import math\nfrom hq_tokenizers.made_up.two import b\n",
            made_up__two="from typing import Any\n\n\ndef b():\n    from ..other.three import (\n        c,\n    )\n",
            other__three="c = 'from hq_tokenizers.made_up.two import b'\n",
        )
        sources = bundle_sources(["hq_tokenizers.made_up.one"])
        assert sorted(sources) == ["one.py", "three.py", "two.py"]
        bodies = {name: text.partition("\n")[2] for name, text in sources.items()}
        assert bodies["one.py"] == "import math\nfrom .two import b\n"
        assert "    from .three import (\n" in bodies["two.py"]
        assert bodies["three.py"] == "c = 'from hq_tokenizers.made_up.two import b'\n"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("from hq_tokenizers.made_up import two", "not a single-file module"),
            ("import hq_tokenizers.codes", "line 1: write `from hq_tokenizers.x import y`"),
            ("from hq_tokenizers.other.one import x", "both become one.py"),
        ],
    )
    def test_refuses_what_cannot_be_flattened(self, package, text, message):
        package(made_up__one=text, other__one="x = 1")
        with pytest.raises(ValueError, match=message):
            bundle_sources(["hq_tokenizers.made_up.one"])


BACKBONE_WITHOUT_PACKAGES = (
    WITHOUT_THE_PACKAGE.replace('== "hq_tokenizers"', "in sys.argv[2:]")
    + """
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
print(model.encode(torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)).flatten().tolist())
"""
)


def _codes_without_packages(model, folder, *absent):
    """The finished process that encodes an image with the exported model where packages are absent."""
    export_self_contained(model, folder / "export")
    return subprocess.run(
        [sys.executable, "-c", BACKBONE_WITHOUT_PACKAGES, str(folder / "export"), *absent],
        cwd=folder,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("backbone", "absent"), [("diffusers", ["hq_tokenizers"]), ("resnet", ["hq_tokenizers", "diffusers"])]
)
def test_only_the_backbone_of_diffusers_needs_it(tmp_path, backbone, absent):
    groups = ["stride 4: 8", "stride 2: 8"]
    config = HQVAEConfig(backbone=backbone, hidden_size=32, codebook_dim=4, image_size=16, code_groups=groups)
    model = HQVAEModel(config).eval()
    result = _codes_without_packages(model, tmp_path, *absent)
    assert result.returncode == 0, result.stderr
    pixels = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    assert result.stdout.strip() == str(model.encode(pixels).flatten().tolist())


def test_a_backbone_that_is_not_installed_is_named(tmp_path):
    config = SQVAEConfig(backbone="diffusers", hidden_size=32, codebook_dim=4, image_size=16, codebook_size=8)
    result = _codes_without_packages(SQVAEModel(config), tmp_path, "hq_tokenizers", "diffusers")
    assert result.returncode != 0
    assert "backbone='diffusers' needs that package: pip install diffusers" in result.stderr
