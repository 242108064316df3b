from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PUSH = """
import sys
from hq_tokenizers.hub import create_model_card, push_to_hub

from transformers import AutoImageProcessor, AutoModel, pipeline

model = AutoModel.from_pretrained(sys.argv[1])
card = create_model_card(model, "user/cats", license="mit", datasets=["user/pets"])
print(push_to_hub(model, "user/cats", card=card, commit_message="First"))
push_to_hub(model, "user/cats-with-code", self_contained=True)
push_to_hub(model.image_tokenizer, "user/cats-tokenizer")

for name in ("user/cats", "user/cats-with-code"):
    pipe = pipeline("hq-generation", model=name)
    assert type(pipe).__module__.startswith("hq_tokenizers.")
    print(pipe("cat", seed=0, output_type="codes").flatten().tolist())
assert type(AutoModel.from_pretrained("user/cats-tokenizer")).__name__ == "SQVAEModel"
assert type(AutoImageProcessor.from_pretrained("user/cats-tokenizer")).__name__ == "HQImageProcessor"
"""
METHOD = """
import sys
from transformers import AutoImageProcessor, AutoModel, pipeline
import hq_tokenizers

model = AutoModel.from_pretrained(sys.argv[1])
for name, part in {"cats": model, "tokenizer": model.image_tokenizer, "prior": model.prior}.items():
    part.push_to_hub(f"user/{name}", commit_message="First", max_shard_size="1GB", tags=["small"])
pipe = pipeline("hq-generation", model=sys.argv[1])
pipe.image_processor.resample = 0
pipe.push_to_hub("user/pipe")
assert AutoImageProcessor.from_pretrained("user/pipe").resample == 0
assert type(AutoImageProcessor.from_pretrained("user/tokenizer")).__name__ == "HQImageProcessor"

found = pipeline(model="user/cats")
print(type(found).__name__)
print(found("cat", seed=0, output_type="codes").flatten().tolist())
try:
    pipeline(model="user/tokenizer")
except RuntimeError as error:
    print(error)
"""
AGAIN = """
import sys
from transformers import AutoModel
import hq_tokenizers

AutoModel.from_pretrained(sys.argv[1]).push_to_hub("user/cats", tags=["more"])
"""
PULL = """
import sys
sys.modules["hq_tokenizers"] = None
from transformers import pipeline

pipe = pipeline("hq-generation", model="user/cats-with-code", trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules.")
print(pipe("cat", seed=0, output_type="codes").flatten().tolist())
pipe = pipeline(model="user/cats-with-code", trust_remote_code=True)
print(pipe("cat", seed=0, output_type="codes").flatten().tolist())
"""


@pytest.fixture
def run(hub, tmp_path):
    """Runs code in a process that takes the stub for the Hub: the address is read when the libraries are imported."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "dummy",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": paths,
        "NO_PROXY": "127.0.0.1",
    }

    def run_code(code: str, *arguments: str) -> list[str]:
        home = {"HF_HOME": str(tmp_path / "home")}
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment | home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip().splitlines()

    return run_code


def test_push_and_load(generator, hub, run, tmp_path):
    generator.save_pretrained(tmp_path / "generator")
    expected = str(generator.generate("cat", generator=0).codes.flatten().tolist())

    address, plain, with_code = run(PUSH, str(tmp_path / "generator"))
    assert address.startswith(f"{hub.url}/user/cats/commit/")
    assert plain == with_code == expected

    files = hub.repos["user/cats"]
    assert {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"} < files.keys()
    assert not any(name.endswith(".py") for name in files)
    card = files["README.md"].decode()
    assert "library_name: transformers" in card
    assert "license: mit" in card
    assert "user/pets" in card
    assert hub.cards[0].strip() == card.strip()
    assert "pipeline_hq_generation.py" in hub.repos["user/cats-with-code"]
    assert "image tokenizer" in hub.repos["user/cats-tokenizer"]["README.md"].decode()

    assert run(PULL) == [expected, expected]


def test_the_method_of_the_models_uploads_our_card_and_the_processor(generator, hub, run, tmp_path):
    generator.save_pretrained(tmp_path / "generator")
    expected = str(generator.generate("cat", generator=0).codes.flatten().tolist())
    name, codes, refusal = run(METHOD, str(tmp_path / "generator"))
    assert name == "HQGenerationPipeline"
    assert codes == expected
    assert "meant to be used with hq_tokenizers" in refusal
    for repo, kind in {"cats": "an image generator", "tokenizer": "a discrete image", "prior": "a code prior"}.items():
        files = hub.repos[f"user/{repo}"]
        card = files["README.md"].decode()
        assert kind in card
        assert "automatically generated" not in card
        assert "- small" in card
        assert ("preprocessor_config.json" in files) == (repo != "prior")
    assert "an image generator" in hub.repos["user/pipe"]["README.md"].decode()

    # What somebody has written on the Hub meanwhile is kept.
    hub.repos["user/cats"]["README.md"] = hub.repos["user/cats"]["README.md"] + b"\nA note by hand.\n"
    run(AGAIN, str(tmp_path / "generator"))
    card = hub.repos["user/cats"]["README.md"].decode()
    assert "A note by hand." in card
    assert "- more" in card
