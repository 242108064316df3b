"""Models on the Hub, of which a stub on localhost stands in: pushed, loaded, cached, refused, damaged on the way."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load, save

from .conftest import WITHOUT_THE_PACKAGE

CODES = """
import sys
from transformers import pipeline

settings = {} if len(sys.argv) < 3 else {"revision": sys.argv[2]}
pipe = pipeline("hq-generation", model=sys.argv[1], **settings)
print(pipe("cat", seed=0, output_type="codes").flatten().tolist())
"""
LOAD = """
import sys
import hq_tokenizers
from transformers import AutoModel

AutoModel.from_pretrained(sys.argv[1], **dict(word.split("=") for word in sys.argv[2:]))
"""
BY_CLASS = LOAD.replace("AutoModel.from", "hq_tokenizers.HQGeneratorModel.from")
AGAIN = LOAD.replace("sys.argv[1],", "sys.argv[1], force_download=True,")
IMPORT = "import hq_tokenizers\n"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(generator, tmp_path_factory):
    """A generator's folder."""
    folder = tmp_path_factory.mktemp("saved") / "generator"
    generator.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer_files(generator, tmp_path_factory):
    """The files of a tokenizer in shards: model-00001-of-0000N.safetensors and so on."""
    folder = tmp_path_factory.mktemp("shards")
    generator.image_tokenizer.save_pretrained(folder, max_shard_size="2KB")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def files(saved):
    """Those of the generator, by name."""
    return {path.name: path.read_bytes() for path in saved.iterdir()}


def codes_of(generator) -> str:
    return str(generator.generate("cat", generator=0).codes.flatten().tolist())


def other_weights(content: bytes) -> bytes:
    """Those of another model: the prior's signs are turned."""
    return save({name: -t if name.startswith("prior") else t for name, t in load(content).items()}, {"format": "pt"})


def test_revisions_and_subfolders(generator, hub, user, saved, files):
    first = user.run(
        "import sys, hq_tokenizers\n"
        "model = hq_tokenizers.HQGeneratorModel.from_pretrained(sys.argv[1])\n"
        "print(model.push_to_hub('user/versions').rpartition('/')[2])\n"
        "model.prior.push_to_hub('user/versions', revision='only-the-prior')\n",
        saved,
    )[0]
    assert hub.repos["user/versions"].branches["main"] == first
    assert json.loads(hub.files("user/versions", "only-the-prior")["config.json"])["model_type"] == "rq_prior"
    assert json.loads(hub.files("user/versions")["config.json"])["model_type"] == "hq_generator"
    changed = {WEIGHTS: other_weights(files[WEIGHTS])}
    hub.repos["user/versions"].branches["next"] = first
    second = hub.commit("user/versions", changed, "next")
    of_main, of_next = user.run(CODES, "user/versions"), user.run(CODES, "user/versions", "next")
    assert of_main == [codes_of(generator)]
    assert of_next != of_main
    assert user.run(CODES, "user/versions", first) == of_main
    assert user.run(CODES, "user/versions", second) == of_next

    hub.commit("user/folders", {f"models/generator/{name}": content for name, content in files.items()})
    hub.commit("user/folders", {"preprocessor_config.json": hub.files("user/versions")["preprocessor_config.json"]})
    loaded = user.run(
        "from transformers import AutoImageProcessor, AutoModel, pipeline\n"
        "model = AutoModel.from_pretrained('user/folders', subfolder='models/generator')\n"
        "part = hq_tokenizers.SQVAEModel.from_pretrained('user/folders', subfolder='models/generator')\n"
        "print(type(part).__name__, type(AutoImageProcessor.from_pretrained('user/folders')).__name__)\n"
        "print(pipeline('hq-generation', model=model)('cat', seed=0, output_type='codes').flatten().tolist())\n".join(
            [IMPORT, ""]
        )
    )
    assert loaded == ["SQVAEModel HQImageProcessor", codes_of(generator)]


def test_everything_is_asked_for_once_and_from_one_commit(hub, user, files):
    commit = hub.commit("user/once", files)
    hub.requests.clear()
    user.run(CODES, "user/once")
    asked = [line for line in hub.requests if WEIGHTS in line]
    assert asked == [f"HEAD /user/once/resolve/{commit}/{WEIGHTS}", f"GET {asked[-1].partition(' ')[2]}"]
    hub.requests.clear()
    user.run("import sys, hq_tokenizers\nhq_tokenizers.HQGeneratorModel.from_pretrained('user/once')")
    assert not any(line.startswith("GET /large") for line in hub.requests)
    assert sum(WEIGHTS in line for line in hub.requests) <= 1


def test_the_image_processor_keeps_the_card(hub, user, saved):
    user.run(
        "import sys, hq_tokenizers\n"
        "from transformers import AutoImageProcessor\n"
        "model = hq_tokenizers.HQGeneratorModel.from_pretrained(sys.argv[1])\n"
        "model.image_tokenizer.push_to_hub('user/processor')\n"
        "processor = AutoImageProcessor.from_pretrained('user/processor')\n"
        "processor.resample = 0\n"
        "processor.push_to_hub('user/processor')\n"
        "assert AutoImageProcessor.from_pretrained('user/processor').resample == 0\n",
        saved,
    )
    assert "a discrete image tokenizer" in hub.files("user/processor")["README.md"].decode()


def test_what_is_in_the_cache_needs_no_hub(generator, hub, user, start_user, files, tokenizer_files):
    hub.commit("user/cached", files)
    hub.commit("user/cached-shards", tokenizer_files)
    hub.commit("user/half", {"config.json": files["config.json"]})
    user.run(CODES, "user/cached")
    user.run(LOAD, "user/cached-shards")
    user.error(LOAD, "user/half")
    offline = start_user(IMPORT, HF_HUB_OFFLINE="1")
    hub.requests.clear()
    assert offline.run(CODES, "user/cached") == [codes_of(generator)]
    offline.run(LOAD, "user/cached-shards")
    assert "couldn't find them in the cached files" in offline.error(LOAD, "user/never")
    assert "couldn't find them in the cached files" in offline.error(BY_CLASS, "user/never")
    assert "user/half has neither model.safetensors nor" in offline.error(LOAD, "user/half")
    assert hub.requests == []


def test_a_hub_that_is_down_is_no_hindrance_once_the_files_are_here(generator, hub, user, files):
    hub.commit("user/down", files)
    hub.commit("user/down-too", files)
    user.run(CODES, "user/down")
    hub.repos["user/down"].refusal = hub.repos["user/down-too"].refusal = (503, "Overloaded")
    assert user.run(CODES, "user/down") == [codes_of(generator)]
    assert "couldn't connect to" in user.error(LOAD, "user/down-too")


def test_an_interrupted_download_goes_on(hub, user, files):
    hub.commit("user/interrupted", files)
    hub.faults[WEIGHTS] = [lambda content: content[:1000]]
    hub.requests.clear()
    user.run(LOAD, "user/interrupted")
    assert sum(line.startswith("GET /large") for line in hub.requests) == 2
    assert hub.faults[WEIGHTS] == []


def test_a_download_that_breaks_off_says_so_and_leaves_nothing(generator, hub, user, files):
    hub.commit("user/broken", files)
    # huggingface_hub tries six times.
    hub.faults[WEIGHTS] = [lambda content: content[:1000], *[lambda content: b""] * 5]
    message = user.error(LOAD, "user/broken")
    assert message.startswith("OSError: user/broken: the download of model.safetensors broke off (")
    assert message.endswith("Load it again: the cache keeps whole files only.")
    assert hub.faults[WEIGHTS] == []
    assert user.run(CODES, "user/broken") == [codes_of(generator)]


@pytest.mark.parametrize("sharded", [False, True])
def test_damage_on_the_hub_is_told_from_damage_on_the_way(hub, user, files, tokenizer_files, sharded):
    files = tokenizer_files if sharded else files
    name = sorted(name for name in files if name.endswith(".safetensors"))[-1]
    repo = f"user/damaged-{sharded}"
    hub.commit(repo, files | {name: files[name][:-8]})
    message = user.error(LOAD, repo)
    assert message.startswith(f"ValueError: {repo}: ")
    assert f"{name} is damaged or no safetensors file: " in message
    assert message.endswith("It is damaged on the Hub: tell its author, and load again when it is mended there.")
    hub.commit(repo, files)
    user.run(LOAD, repo)

    repo = f"user/poisoned-{sharded}"
    hub.commit(repo, files)
    # A file that is not in the cache yet arrives as long as announced, so that huggingface_hub keeps it.
    changed = {name: -value for name, value in load(files[name]).items()}
    hub.commit(repo, {name: save(changed, {"format": "pt"})})
    hub.faults[name] = [lambda content: b"\xff" * len(content)]
    for _ in range(2):
        message = user.error(LOAD, repo)
        assert f"{name} is damaged" in message
        assert message.endswith("Its download was damaged: load once with force_download=True.")
    user.run(AGAIN, repo)
    user.run(LOAD, repo)


def test_a_damaged_index_and_a_missing_shard_are_named(hub, user, tokenizer_files):
    index = "model.safetensors.index.json"
    hub.commit("user/index", tokenizer_files | {index: b'{"weight_map": '})
    message = user.error(LOAD, "user/index")
    assert f"{index} is damaged: " in message
    assert message.endswith("if that changes nothing, it is damaged on the Hub: tell its author.")
    outside = {"weight_map": dict.fromkeys(["a"], "../../model.safetensors")}
    hub.commit("user/index", {index: json.dumps(outside).encode()})
    assert "only safetensors files in its own folder are read" in user.error(LOAD, "user/index")
    shard = sorted(name for name in tokenizer_files if name.endswith(".safetensors"))[0]
    hub.commit("user/index", tokenizer_files | {shard: None})
    assert f"user/index does not appear to have a file named {shard}" in user.error(LOAD, "user/index")
    hub.commit("user/index", tokenizer_files)
    user.run(LOAD, "user/index")


REFUSALS = {
    "unknown": (None, "user/unknown is not a local folder and is not a valid model identifier"),
    "private": ((401, "RepoNotFound"), "private repository, make sure to pass a token"),
    "gated": ((403, "GatedRepo"), "You are trying to access a gated repo."),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_to_do(hub, user, files, name):
    refusal, message = REFUSALS[name]
    if refusal is not None:
        hub.commit(f"user/{name}", files)
        hub.repos[f"user/{name}"].refusal = refusal
    command = "import hq_tokenizers\nfrom hq_tokenizers.cli import main\n"
    for code in (
        LOAD,
        BY_CLASS,
        f"from transformers import pipeline\npipeline('hq-generation', model='user/{name}')",
        f"{command}main(['generate', '--generator', 'user/{name}', '--output_dir', 'refused'])",
    ):
        assert message in user.error(IMPORT + code, f"user/{name}")


def test_missing_files_and_revisions_are_named(hub, user, files):
    hub.commit("user/pickled", files | {WEIGHTS: None, "pytorch_model.bin": b"PK"})
    message = user.error(LOAD, "user/pickled")
    assert message.startswith("OSError: user/pickled has neither model.safetensors nor model.safetensors.index.json")
    assert "ask the author for safetensors" in message
    hub.commit("user/no-config", files | {"config.json": None})
    assert "user/no-config" in user.error(LOAD, "user/no-config")
    assert "config.json" in user.error(LOAD, "user/no-config")
    hub.commit("user/whole", files)
    assert "v9 is not a valid git identifier" in user.error(LOAD, "user/whole", "revision=v9")
    message = user.error(IMPORT + "hq_tokenizers.SQVAEModel.from_pretrained('user/whole', variant='fp16')")
    assert "user/whole has neither model.fp16.safetensors nor" in message


def test_commands_take_ids(hub, user, files, tokenizer_files, tmp_path):
    hub.commit("user/for-commands", files)
    hub.commit("user/for-encode", tokenizer_files)
    command = "import sys\nfrom hq_tokenizers.cli import main\nmain(sys.argv[1:])"
    drawing = ["generate", "--generator", "user/for-commands", "--class_labels", "[cat, dog]", "--num_images", "1"]
    shown = user.run(command, *drawing, "--output_dir", tmp_path / "drawn")
    assert shown[-1] == f"2 images in {tmp_path / 'drawn'}."
    user.run(command, "encode", "--tokenizer", "user/for-encode", "--output_dir", tmp_path / "codes")
    assert list((tmp_path / "codes").iterdir())


def test_transformers_alone_runs_code_from_the_hub_when_it_is_trusted(generator, hub, user, start_user, saved):
    user.run(
        "import sys, hq_tokenizers\n"
        "model = hq_tokenizers.HQGeneratorModel.from_pretrained(sys.argv[1])\n"
        "model.push_to_hub('user/with-code', self_contained=True)\n"
        "model.push_to_hub('user/without-code')\n",
        saved,
    )
    alone = start_user(WITHOUT_THE_PACKAGE)
    trusting = CODES.replace("**settings", "trust_remote_code=True, **settings")
    commit = hub.repos["user/with-code"].branches["main"]
    assert alone.run(trusting, "user/with-code") == [codes_of(generator)]
    assert alone.run(trusting, "user/with-code", commit) == [codes_of(generator)]
    assert "trust_remote_code" in alone.error(CODES.replace("**settings", "trust_remote_code=False"), "user/with-code")
    assert "hq_generator" in alone.error(LOAD.replace("import hq_tokenizers\n", ""), "user/without-code")
    # Damage is named by the exported code too.
    name = WEIGHTS
    hub.commit("user/with-code", {name: hub.files("user/with-code")[name][:-8]})
    assert "model.safetensors is damaged or no safetensors file" in alone.error(trusting, "user/with-code")


DIFFUSERS = """
import sys
from diffusers import DDIMScheduler, DiffusionPipeline
from huggingface_hub import HfApi, snapshot_download
from hq_tokenizers import SQVAEModel

class Bundle(DiffusionPipeline):
    def __init__(self, tokenizer, scheduler):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, scheduler=scheduler)

Bundle(SQVAEModel.from_pretrained(sys.argv[1]), DDIMScheduler()).save_pretrained("bundle")
HfApi().create_repo("user/bundle")
HfApi().upload_folder(repo_id="user/bundle", folder_path="bundle")
try:
    Bundle.from_pretrained("user/bundle")
except ValueError as error:
    print(error)
print(type(Bundle.from_pretrained(snapshot_download("user/bundle")).tokenizer).__name__)
"""


def test_what_the_page_on_diffusers_says_of_the_hub(user, saved):
    refusal, loaded = user.run(DIFFUSERS, saved)
    assert "hq_tokenizers.models.modeling_sq_vae.py as defined in" in refusal
    assert loaded == "SQVAEModel"
