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
PULL = """
import sys
sys.modules["hq_tokenizers"] = None
from transformers import pipeline

pipe = pipeline("hq-generation", model="user/cats-with-code", trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules.")
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
    assert "library_name: hq_tokenizers" in card
    assert "license: mit" in card
    assert "user/pets" in card
    assert hub.cards[0].strip() == card.strip()
    assert "pipeline_hq_generation.py" in hub.repos["user/cats-with-code"]
    assert "image tokenizer" in hub.repos["user/cats-tokenizer"]["README.md"].decode()

    assert run(PULL) == [expected]
