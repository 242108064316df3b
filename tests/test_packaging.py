"""What is shipped: every file, importable away from the checkout and beside a user's own `pipelines` package."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import hq_tokenizers

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Folder of the checkout → where its contents are installed.
FOLDERS = {
    "hq_tokenizers": "hq_tokenizers",
    "priors": "hq_tokenizers/priors",
    "pipelines": "hq_tokenizers/pipelines",
}

# Used by every subprocess below: the models come from where `place` says, and they work.
USE = """
import sys

import hq_tokenizers
import hq_tokenizers.pipelines
import hq_tokenizers.priors
import torch
from hq_tokenizers import HQGeneratorModel, RQPriorConfig, RQPriorModel, SQVAEModel, sq_vae
from transformers import pipeline

place = sys.argv[1]
tokenizer = SQVAEModel(sq_vae("digits", hidden_size=8, codebook_size=8, codebook_dim=4)).eval()
images = torch.rand(2, 1, 8, 8)
codes = tokenizer.encode(images)
assert tokenizer.decode(codes).shape == images.shape
prior = RQPriorModel(
    RQPriorConfig(
        code_layout=codes.layout.to_dict(), num_classes=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
).eval()
tokenizer.save_pretrained("tokenizer")
prior.save_pretrained("prior")
HQGeneratorModel.from_sub_models_pretrained("tokenizer", "prior").save_pretrained("generator")
pipe = pipeline("hq-generation", model="generator")
assert [image.size for image in pipe([0, 2], seed=0)] == [(8, 8), (8, 8)]

modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "hq_tokenizers"]
strays = [module.__file__ for module in modules if not module.__file__.startswith(place)]
assert not strays, f"not from {place}: {strays}"
assert {"hq_tokenizers.priors.modeling_rq_prior", "hq_tokenizers.pipelines.modeling_hq_generator"} <= set(sys.modules)
"""


def shipped_files() -> set[str]:
    """Installed path of every file of the three folders."""
    return {
        str(PurePosixPath(target, *path.relative_to(ROOT / folder).parts))
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def run_python(*arguments: str, cwd: Path, python_path: list[Path], options: tuple[str, ...] = ("-S",)) -> str:
    """Runs Python in an environment of its own and returns what it prints.

    `-S` leaves out the .pth files, and with them an editable install of the checkout; the other packages are reached
    through `python_path`.
    """
    site_packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    environment = {
        **kept,
        "HOME": str(cwd),
        "HF_HOME": str(cwd / ".huggingface"),
        "HF_HUB_OFFLINE": "1",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([*map(str, python_path), *site_packages]),
    }
    command = [sys.executable, *options, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing in the original."""
    copy = tmp_path_factory.mktemp("checkout") / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution, on a machine where importing torch fails."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "torch.py").write_text("raise ImportError('the build must not import torch')")
    code = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"

    def build(what: str, source: Path) -> Path:
        output = run_python("-c", code, what, str(folder), cwd=source, python_path=[folder])
        return folder / output.splitlines()[-1]

    with tarfile.open(build("build_sdist", checkout)) as archive:
        archive.extractall(folder, filter="data")
    return build("build_wheel", next(folder.glob("hq_tokenizers-*/")))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the wheel, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    arguments = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    run_python(*arguments, cwd=target, python_path=[], options=())
    return target


def test_every_folder_with_code_is_a_listed_package() -> None:
    folders = {PurePosixPath(path).parent for path in shipped_files() if path.endswith(".py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages
    assert {f"{folder}/__init__.py" for folder in folders} <= shipped_files()


@pytest.mark.parametrize(
    "folder", [name for name in (*FOLDERS, "tests", "examples", "benchmarks", "docs") if (ROOT / name).is_dir()]
)
def test_nothing_imports_priors_or_pipelines_bare(folder: str) -> None:
    """From the root, `import priors` works too, and gives a second, different set of classes."""
    bare = []
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module or ""]
            if {name.split(".")[0] for name in imported} & {"priors", "pipelines"}:
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bare, f"import hq_tokenizers.priors and hq_tokenizers.pipelines instead: {bare}"


def test_every_public_name_resolves() -> None:
    names: dict[str, object] = {}
    exec("from hq_tokenizers import *", names)
    assert len(hq_tokenizers.__all__) == len(set(hq_tokenizers.__all__))
    for name in hq_tokenizers.__all__:
        assert names[name] is getattr(hq_tokenizers, name)
    assert set(hq_tokenizers.__all__) <= set(dir(hq_tokenizers))
    with pytest.raises(AttributeError, match="no attribute 'SQVAEModels'"):
        _ = hq_tokenizers.SQVAEModels


def test_wheel_holds_the_three_folders_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = f"hq_tokenizers-{hq_tokenizers.__version__}.dist-info"
    assert wheel.name == f"hq_tokenizers-{hq_tokenizers.__version__}-py3-none-any.whl"
    assert {name for name in names if not name.startswith(metadata)} == shipped_files()
    assert {"hq_tokenizers/py.typed", f"{metadata}/licenses/LICENSE"} <= names


@pytest.mark.slow
def test_wheel_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    run_python("use.py", str(installed), cwd=tmp_path, python_path=[installed])

    # Importing the package is all that transformers needs.
    code = """
    import hq_tokenizers
    from transformers import AutoModel, pipeline
    print(hq_tokenizers.pretrained("fashion-mnist"))
    print(pipeline("hq-generation", model=hq_tokenizers.pretrained("fashion-mnist"))("sneaker", seed=0).size)
    print(pipeline("hq-audio-generation")("7", speakers="theo", seed=0)["sampling_rate"])
    print(type(AutoModel.from_pretrained("tokenizer")).__name__, pipeline("hq-generation", model="generator")(1).size)
    """
    output = run_python("-c", textwrap.dedent(code), cwd=tmp_path, python_path=[installed])
    shipped = str(installed / "hq_tokenizers" / "pretrained" / "fashion_mnist")
    assert output.splitlines()[-4:] == [shipped, "(28, 28)", "8000", "SQVAEModel (8, 8)"]


@pytest.mark.slow
def test_wheel_works_beside_a_users_own_packages(installed: Path, tmp_path: Path) -> None:
    for name in ("pipelines", "priors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True")
    users = "import pipelines, priors\nassert pipelines.mine and priors.mine\n"
    (tmp_path / "use.py").write_text(users + USE + users)
    run_python("use.py", str(installed), cwd=tmp_path, python_path=[installed])


@pytest.mark.slow
def test_bare_checkout_works_from_its_root(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(checkout, root)
    run_python("-c", USE, str(root), cwd=root, python_path=[])


@pytest.mark.slow
def test_command_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
    from importlib.metadata import distribution
    package = distribution("hq_tokenizers")
    (command,) = package.entry_points.select(group="console_scripts")
    print(package.version, command.name, command.load().__module__)
    """
    output = run_python("-c", textwrap.dedent(code), cwd=tmp_path, python_path=[installed])
    version, name, module = output.split()
    assert (version, name) == (hq_tokenizers.__version__, "hq-tokenizers")
    assert module.startswith("hq_tokenizers.cli")


def test_importing_loads_none_of_the_slow_packages(tmp_path: Path) -> None:
    slow = ["diffusers", "evaluate", "datasets", "torchmetrics", "torch_fidelity", "matplotlib", "skimage"]
    code = f"""
    import sys
    from transformers import pipeline, PreTrainedModel
    before = set(sys.modules)
    import hq_tokenizers.priors, hq_tokenizers.pipelines
    from hq_tokenizers import *
    print(*(name for name in {slow} if name in set(sys.modules) - before))
    """
    assert run_python("-c", textwrap.dedent(code), cwd=tmp_path, python_path=[ROOT]).split() == []


# What a user may write; every line has types that a checker knows.
USERS_FILE = """
import torch
from hq_tokenizers import Codes, HQGeneratorModel, HQVAEConfig, HQVAEModel, SQVAEModel, sq_vae
from hq_tokenizers.hub import create_model_card
from hq_tokenizers.priors import CodeGenerationConfig, MaskedCodeScheduler, MaskedPriorConfig, MaskedPriorModel
from hq_tokenizers import RQPriorConfig, RQPriorModel

tokenizer = SQVAEModel(sq_vae("digits", codebook_size=32))
hierarchy = HQVAEModel(HQVAEConfig(image_size=16, code_groups=["stride 4: 64", "stride 2: 64 x 2"]))
codes: Codes = tokenizer.encode(torch.rand(2, 1, 8, 8))
images: torch.Tensor = tokenizer.decode(codes)
prior = RQPriorModel(RQPriorConfig(code_layout=codes.layout.to_dict(), num_classes=10))
samples: Codes = prior.generate([3, 7], num_images=2, generator=0, temperature=0.9)
masked = MaskedPriorModel(MaskedPriorConfig(code_layout=codes.layout.to_dict(), block_type="gpt"))
masked.scheduler = MaskedCodeScheduler(num_steps=4)
generator: HQGeneratorModel = HQGeneratorModel.from_sub_models(tokenizer, prior)
output = generator.generate(class_labels=["3"], num_images=2, generation_config=CodeGenerationConfig(top_k=8))
create_model_card(generator, "me/digits").save("README.md")
bits: float = samples.layout.bits_per_image
log_prob: torch.Tensor = prior.log_prob(codes, torch.tensor([1, 2]))
"""


@pytest.mark.slow
def test_a_type_checker_knows_every_public_name(installed: Path, tmp_path: Path) -> None:
    lines = []
    for package in ("hq_tokenizers", *(f"hq_tokenizers.{name}" for name in ("priors", "pipelines", "hub", "metrics"))):
        for name in importlib.import_module(package).__all__:
            is_class = isinstance(getattr(importlib.import_module(package), name), type)
            use = f"def _(value: {name}) -> None: reveal_type(value)" if is_class else f"reveal_type({name})"
            lines.append(f"from {package} import {name}\n{use}")
    (tmp_path / "users.py").write_text(USERS_FILE)
    (tmp_path / "wrong.py").write_text("from hq_tokenizers import rsq_vae\nrsq_vae(num_levels='four')\n")
    (tmp_path / "names.py").write_text("\n".join(lines))
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = true\nfollow_imports = silent\n[mypy-transformers.*]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "users.py", "wrong.py", "names.py"]
    environment = os.environ | {"MYPYPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    # That it finds what is wrong shows that it looks.
    assert errors, done.stdout
    assert all(line.startswith("wrong.py") for line in errors), done.stdout
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(lines)
    assert [line for line in revealed if 'is "Any"' in line] == []
