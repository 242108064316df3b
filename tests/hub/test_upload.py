from __future__ import annotations

from .conftest import WITHOUT_THE_PACKAGE

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
for name, part in {"frogs": model, "tokenizer": model.image_tokenizer, "prior": model.prior}.items():
    part.push_to_hub(f"user/{name}", commit_message="First", max_shard_size="1GB", tags=["small"])
pipe = pipeline("hq-generation", model=sys.argv[1])
pipe.image_processor.resample = 0
pipe.push_to_hub("user/pipe")
assert AutoImageProcessor.from_pretrained("user/pipe").resample == 0
assert type(AutoImageProcessor.from_pretrained("user/tokenizer")).__name__ == "HQImageProcessor"

found = pipeline(model="user/frogs")
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

AutoModel.from_pretrained(sys.argv[1]).push_to_hub("user/frogs", tags=["more"])
"""
PULL = """
from transformers import pipeline

pipe = pipeline("hq-generation", model="user/cats-with-code", trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules.")
print(pipe("cat", seed=0, output_type="codes").flatten().tolist())
pipe = pipeline(model="user/cats-with-code", trust_remote_code=True)
print(pipe("cat", seed=0, output_type="codes").flatten().tolist())
"""


def test_push_and_load(generator, hub, user, start_user, tmp_path):
    generator.save_pretrained(tmp_path / "generator")
    expected = str(generator.generate("cat", generator=0).codes.flatten().tolist())

    address, plain, with_code = user.run(PUSH, str(tmp_path / "generator"))
    assert address.startswith(f"{hub.url}/user/cats/commit/")
    assert plain == with_code == expected

    files = hub.files("user/cats")
    assert {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"} < files.keys()
    assert not any(name.endswith(".py") for name in files)
    card = files["README.md"].decode()
    assert "library_name: transformers" in card
    assert "license: mit" in card
    assert "user/pets" in card
    assert card.strip() in [checked.strip() for checked in hub.cards]
    assert "pipeline_hq_generation.py" in hub.files("user/cats-with-code")
    assert "image tokenizer" in hub.files("user/cats-tokenizer")["README.md"].decode()

    assert start_user(WITHOUT_THE_PACKAGE).run(PULL) == [expected, expected]


def test_the_method_of_the_models_uploads_our_card_and_the_processor(generator, hub, user, tmp_path):
    generator.save_pretrained(tmp_path / "generator")
    expected = str(generator.generate("cat", generator=0).codes.flatten().tolist())
    name, codes, refusal = user.run(METHOD, str(tmp_path / "generator"))
    assert name == "HQGenerationPipeline"
    assert codes == expected
    assert "meant to be used with hq_tokenizers" in refusal
    for repo, kind in {"frogs": "an image generator", "tokenizer": "a discrete image", "prior": "a code prior"}.items():
        files = hub.files(f"user/{repo}")
        card = files["README.md"].decode()
        assert kind in card
        assert "automatically generated" not in card
        assert "- small" in card
        assert ("preprocessor_config.json" in files) == (repo != "prior")
    assert "an image generator" in hub.files("user/pipe")["README.md"].decode()

    # What somebody has written on the Hub meanwhile is kept.
    hub.commit("user/frogs", {"README.md": hub.files("user/frogs")["README.md"] + b"\nA note by hand.\n"})
    user.run(AGAIN, str(tmp_path / "generator"))
    card = hub.files("user/frogs")["README.md"].decode()
    assert "A note by hand." in card
    assert "- more" in card
