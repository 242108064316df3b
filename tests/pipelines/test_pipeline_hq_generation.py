from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hq_tokenizers import Codes, HQGenerationPipeline, HQGeneratorModel, HQImageProcessor
from hq_tokenizers.priors import CodeGenerationConfig

from .conftest import CLASS_NAMES, build_prior


@pytest.fixture(scope="module")
def pipe(generator_dir):
    return pipeline("hq-generation", model=str(generator_dir))


def as_array(images):
    """Nested lists of PIL images as one array."""
    return np.array([as_array(image) if isinstance(image, list) else np.asarray(image) for image in images])


def codes_of(pipe, *args, **kwargs) -> torch.Tensor:
    return torch.cat([codes.flatten() for codes in pipe(*args, output_type="codes", **kwargs)])


class TestShape:
    def test_one_label_one_image(self, pipe):
        for label in ("cat", 1, None, np.int64(2), torch.tensor(0)):
            image = pipe(label)
            assert isinstance(image, Image.Image)
            assert (image.mode, image.size) == ("L", (8, 8))

    def test_no_label(self, pipe):
        assert isinstance(pipe(), Image.Image)

    def test_one_label_several_images(self, pipe):
        images = pipe("cat", num_images=3)
        assert [type(image) for image in images] == [Image.Image] * 3

    @pytest.mark.parametrize(
        "labels", [["cat", 1, None], ("cat", 1, None), np.array([0, 1, -1]), torch.tensor([0, 1, -1])]
    )
    def test_several_labels(self, pipe, labels):
        assert [type(image) for image in pipe(labels)] == [Image.Image] * 3

    def test_a_list_of_one_is_a_list(self, pipe):
        assert len(pipe(["cat"])) == 1

    def test_several_labels_several_images(self, pipe):
        rows = pipe(["cat", "dog"], num_images=3)
        assert [len(row) for row in rows] == [3, 3]

    def test_nothing(self, pipe):
        assert pipe([]) == []
        assert pipe([], num_images=3, output_type="codes") == []
        with pytest.raises(TypeError, match="temprature"):
            pipe([], temprature=1.0)


class TestOutputTypes:
    def test_all_show_the_same_image(self, pipe):
        pil, tensor, array = (pipe("cat", seed=3, output_type=name) for name in ("pil", "pt", "np"))
        assert (tensor.shape, tensor.dtype) == ((1, 8, 8), torch.float32)
        assert (array.shape, array.dtype) == ((8, 8, 1), np.float32)
        np.testing.assert_array_equal(array[..., 0], tensor[0].numpy())
        np.testing.assert_array_equal(np.asarray(pil), np.rint(array[..., 0] * 255))

    def test_codes_decode_to_the_image(self, pipe):
        codes = pipe("cat", seed=3, output_type="codes")
        assert isinstance(codes, Codes)
        assert codes.layout == pipe.model.code_layout
        decoded = pipe.model.image_tokenizer.decode(codes)
        torch.testing.assert_close(decoded[0], pipe("cat", seed=3, output_type="pt"))

    def test_agrees_with_the_model(self, pipe):
        expected = pipe.model.generate([0, 1], num_images=2, generator=11)
        images = pipe.image_processor.postprocess(expected.images)
        rows = pipe(["cat", "dog"], num_images=2, seed=11)
        np.testing.assert_array_equal(as_array(rows).reshape(4, 8, 8), as_array(images))

    def test_unknown(self, pipe):
        with pytest.raises(ValueError, match=r"'pil', 'pt', 'np', 'codes', got 'jpg'"):
            pipe("cat", output_type="jpg")


class TestSeeds:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
    def test_batch_size_does_not_matter(self, pipe, batch_size):
        labels = ["cat", "dog", None, 2, 0]
        expected = codes_of(pipe, labels, seed=7, batch_size=5)
        assert torch.equal(codes_of(pipe, labels, seed=7, batch_size=batch_size), expected)
        pixels = torch.stack(pipe(labels, seed=7, batch_size=batch_size, output_type="pt"))
        torch.testing.assert_close(pixels, torch.stack(pipe(labels, seed=7, batch_size=5, output_type="pt")))

    def test_images_of_one_call_differ(self, pipe):
        codes = codes_of(pipe, "cat", num_images=8, seed=0, batch_size=3)
        assert len(torch.unique(codes, dim=0)) == 8

    def test_image_of_a_series_alone(self, pipe):
        series = codes_of(pipe, ["cat", "cat", "cat"], seed=40)
        assert torch.equal(pipe("cat", seed=42, output_type="codes").flatten()[0], series[2])

    def test_a_seed_per_image(self, pipe):
        codes = codes_of(pipe, "cat", num_images=3, seed=[9, 4, 9])
        assert torch.equal(codes[0], codes[2])
        assert not torch.equal(codes[0], codes[1])

    @pytest.mark.parametrize(
        ("seed", "expected"),
        [
            (np.int64(3), [3, 4]),
            (torch.tensor(3), [3, 4]),
            (np.array([7, 3]), [7, 3]),
            (torch.tensor([7, 3]), [7, 3]),
            ((np.uint8(7), 3), [7, 3]),
            (2**63 - 2, [2**63 - 2, 2**63 - 1]),
        ],
    )
    def test_integers_of_other_libraries(self, pipe, seed, expected):
        labels = ["cat", "dog"]
        assert torch.equal(codes_of(pipe, labels, seed=seed), codes_of(pipe, labels, seed=expected))

    def test_without_a_seed_torch_decides(self, pipe):
        torch.manual_seed(0)
        first, second = (codes_of(pipe, ["cat"]) for _ in range(2))
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(codes_of(pipe, ["cat"]), first)

    @pytest.mark.parametrize(
        ("seed", "error", "message"),
        [
            ([1], ValueError, "1 seeds for 2 images"),
            ("1", TypeError, "str"),
            (1.5, TypeError, "float"),
            (True, TypeError, "bool"),
            ([1, 2.9], TypeError, r"seed\[1\] is 2.9"),
            (np.array([1.5, 2.0]), TypeError, r"seed\[0\] is 1.5"),
            (2**64, ValueError, "between 0 and"),
            (2**63 - 1, ValueError, f"seed \\+ i. This one is {2**63}"),
            ([0, 2**63], ValueError, "between 0 and"),
            (-1, ValueError, "This one is -1"),
            ([3, -1], ValueError, "This one is -1"),
        ],
    )
    def test_refuses(self, pipe, seed, error, message):
        with pytest.raises(error, match=message):
            pipe(["cat", "dog"], seed=seed)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"temprature": 1.0}, TypeError, "Did you mean temperature.*class_labels.*top_k"),
            ({"max_new_tokens": 3}, TypeError, "Unknown argument 'max_new_tokens'"),
            ({"do_sample": True}, TypeError, "Unknown argument 'do_sample'"),
            ({"temperature": -1}, ValueError, "temperature must be"),
            ({"top_p": 0}, ValueError, "top_p must be"),
            ({"top_k": [1, 2]}, ValueError, "1 levels"),
            ({"guidance_scale": -2}, ValueError, "guidance_scale must be"),
            ({"num_images": 0}, ValueError, "num_images must be an integer of at least 1, got 0"),
            ({"num_images": 2.0}, ValueError, "num_images must be an integer"),
            ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
            ({"class_labels": "cow"}, ValueError, "'cat', 'dog', 'frog'"),
            ({"class_labels": ["cat", 3]}, ValueError, "3 is out of range"),
            ({"class_labels": 0.5}, TypeError, "float"),
            ({"num_steps": 3}, ValueError, "num_steps=3 is a setting of masked_prior models, this is a rq_prior"),
            ({"generation_config": {"temperature": 1}}, TypeError, "must be a CodeGenerationConfig, got dict"),
        ],
    )
    def test_refuses(self, pipe, arguments, error, message):
        with pytest.raises(error, match=message):
            pipe(**arguments)

    def test_reach_the_prior(self, pipe):
        expected = pipe.model.generate(
            [0] * 4, generator=0, temperature=0.5, top_k=3, guidance_scale=2.0
        ).codes.flatten()
        codes = codes_of(pipe, [0] * 4, seed=0, temperature=0.5, top_k=3, guidance_scale=2.0, batch_size=2)
        assert torch.equal(codes, expected)
        assert not torch.equal(codes_of(pipe, [0] * 4, seed=0), expected)

    def test_generation_config(self, pipe):
        config = CodeGenerationConfig(temperature=0)
        greedy = codes_of(pipe, "cat", num_images=2, generation_config=config)
        assert torch.equal(greedy[0], greedy[1])
        sampled = codes_of(pipe, "cat", num_images=2, generation_config=config, temperature=1.0)
        assert not torch.equal(sampled[0], sampled[1])

    def test_settings_of_one_kind_of_prior(self, pipe, generator, masked_generator):
        dynamic = codes_of(pipe, "cat", num_images=2, seed=0, cache_implementation="dynamic")
        assert torch.equal(dynamic, codes_of(pipe, "cat", num_images=2, seed=0))
        masked = pipeline("hq-generation", model=masked_generator)
        settings = {"num_steps": 3, "decoding_order": "random", "choice_temperature": 1.0}
        settings |= {"masking_schedule": "linear"}
        expected = masked_generator.generate([0] * 4, generator=0, **settings).codes.flatten()
        assert torch.equal(codes_of(masked, "cat", num_images=4, seed=0, **settings), expected)
        assert not torch.equal(codes_of(masked, "cat", num_images=4, seed=0), expected)
        built = pipeline("hq-generation", model=masked_generator, **settings)
        assert torch.equal(codes_of(built, "cat", num_images=4, seed=0), expected)
        with pytest.raises(ValueError, match="cache_implementation='static' is a setting of rq_prior models"):
            masked("cat", cache_implementation="static")
        with pytest.raises(ValueError, match="num_steps=2 is a setting of masked_prior models"):
            pipeline("hq-generation", model=generator, num_steps=2)

    def test_settings_of_a_contextual_prior(self, contextual_generator):
        contextual = pipeline("hq-generation", model=contextual_generator)
        settings = {
            "num_draft_steps": [2, 4],
            "num_revise_steps": 3,
            "num_revisions": 1,
            "temperature": [1.0, 0.8, 0.5],
        }
        settings |= {"guidance_scale": 2.0, "guidance_schedule": "linear", "num_candidates": 2}
        expected = contextual_generator.generate([0] * 4, generator=0, **settings).codes.flatten()
        assert torch.equal(codes_of(contextual, "cat", num_images=4, seed=0, batch_size=3, **settings), expected)
        levels = []
        contextual(
            "cat", callback_on_step_end=lambda *call: levels.append(call[2].num_preview_levels), num_draft_steps=2
        )
        # Draft, and twice two steps of revision, of each of two groups with one level and two.
        assert levels == [1] * 6 + [3] * 6
        with pytest.raises(ValueError, match="num_steps=2 is a setting of masked_prior models"):
            pipeline("hq-generation", model=contextual_generator, num_steps=2)

    def test_a_config_replaces_what_the_pipeline_was_built_with(self, generator):
        plain = pipeline("hq-generation", model=generator)
        built = pipeline("hq-generation", model=generator, temperature=0, guidance_scale=3.0)
        warm = CodeGenerationConfig(temperature=1.0)
        expected = codes_of(plain, "cat", num_images=8, seed=1, generation_config=warm)
        assert torch.equal(codes_of(built, "cat", num_images=8, seed=1, generation_config=warm), expected)
        # Settings by name are put over the others.
        guided = codes_of(plain, "cat", num_images=8, seed=1, guidance_scale=3.0)
        assert torch.equal(codes_of(built, "cat", num_images=8, seed=1, temperature=1.0), guided)
        assert not torch.equal(guided, expected)
        from_config = pipeline("hq-generation", model=generator, generation_config=CodeGenerationConfig(temperature=0))
        assert torch.equal(codes_of(from_config, "cat", num_images=8, seed=1, temperature=1.0), expected)

    def test_defaults_given_at_the_start(self, generator):
        pipe = pipeline("hq-generation", model=generator, output_type="codes", temperature=0, batch_size=2)
        codes = pipe("cat", num_images=3)
        assert codes[0] == codes[2]
        assert pipe("cat", num_images=2, temperature=1.0, seed=0)[0] != codes[0]
        assert isinstance(pipe("cat", output_type="pil"), Image.Image)

    @pytest.mark.parametrize(("name", "error"), [("temprature", TypeError), ("output_type", ValueError)])
    def test_wrong_ones_given_at_the_start(self, generator, name, error):
        with pytest.raises(error, match=name):
            pipeline("hq-generation", model=generator, **{name: "x"})

    def test_unconditional(self, unconditional_generator):
        pipe = pipeline("hq-generation", model=unconditional_generator)
        assert len(pipe(num_images=3, batch_size=2)) == 3
        with pytest.raises(ValueError, match="unconditional"):
            pipe("cat")
        with pytest.raises(ValueError, match="num_classes=0"):
            pipe(guidance_scale=2.0)


def test_hierarchical_codes_and_oblong_colour_images(hierarchical_generator, tmp_path):
    pipeline("hq-generation", model=hierarchical_generator).save_pretrained(tmp_path)
    pipe = pipeline("hq-generation", model=str(tmp_path))
    assert (pipe("dog").mode, pipe("dog").size) == ("RGB", (12, 8))
    settings = {"temperature": [1.0, 0.0, 0.5], "top_k": [3, 0, 2], "guidance_scale": 2.0, "seed": 0}
    codes = pipe(["dog", "cat"], output_type="codes", batch_size=1, **settings)
    assert [len(image.layout.groups) for image in codes] == [2, 2]
    expected = hierarchical_generator.generate(["dog", "cat"], generator=settings.pop("seed"), **settings).codes
    assert Codes.cat(codes) == expected
    with pytest.raises(ValueError, match="3 levels"):
        pipe("dog", temperature=[1.0, 0.5])


class TestProgress:
    def test_shown_on_request(self, pipe, capsys):
        pipe("cat", num_images=5, batch_size=2, progress=True)
        assert "5/5" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("terminal", "num_images", "shown"), [(True, 5, True), (True, 2, False), (False, 5, False)]
    )
    def test_by_default_for_several_batches_on_a_terminal(self, pipe, monkeypatch, capsys, terminal, num_images, shown):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        pipe("cat", num_images=num_images, batch_size=2)
        assert ("Generating" in capsys.readouterr().err) == shown


class TestLoading:
    def test_components(self, pipe, generator_dir):
        assert isinstance(pipe, HQGenerationPipeline)
        assert isinstance(pipe.model, HQGeneratorModel)
        # There is no preprocessor_config.json in the directory: the processor follows from the model.
        assert not (generator_dir / "preprocessor_config.json").exists()
        assert isinstance(pipe.image_processor, HQImageProcessor)
        assert (pipe.image_processor.size.height, pipe.image_processor.num_channels) == (8, 1)

    def test_save_and_load_again(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
        again = pipeline("hq-generation", model=str(tmp_path))
        assert again.image_processor.to_dict() == pipe.image_processor.to_dict()
        assert codes_of(again, ["cat", None], seed=0).equal(codes_of(pipe, ["cat", None], seed=0))
        again.save_pretrained(tmp_path)
        assert pipeline("hq-generation", model=tmp_path)("dog", seed=1) == pipe("dog", seed=1)

    def test_saved_settings_hold(self, generator, tmp_path):
        model = HQGeneratorModel.from_sub_models(generator.image_tokenizer, build_prior(generator.image_tokenizer))
        model.generation_config = CodeGenerationConfig(temperature=0)
        pipeline("hq-generation", model=model).save_pretrained(tmp_path)
        codes = codes_of(pipeline("hq-generation", model=str(tmp_path)), 0, num_images=2)
        assert torch.equal(codes[0], codes[1])

    def test_model_object(self, generator, pipe):
        assert pipeline("hq-generation", model=generator)("cat", seed=5) == pipe("cat", seed=5)

    def test_class_directly(self, generator, pipe):
        assert HQGenerationPipeline(generator, device="cpu")("cat", seed=5) == pipe("cat", seed=5)

    def test_dtype(self, generator_dir):
        pipe = pipeline("hq-generation", model=str(generator_dir), dtype=torch.bfloat16)
        assert pipe.model.prior.dtype == torch.bfloat16
        tensor = pipe("cat", output_type="pt")
        assert tensor.dtype == torch.float32
        assert isinstance(pipe("cat"), Image.Image)

    def test_local_files_only(self, generator_dir):
        assert (
            pipeline("hq-generation", model=str(generator_dir), local_files_only=True).model.config.id2label
            == CLASS_NAMES
        )

    def test_needs_a_generator(self, generator, tmp_path):
        generator.image_tokenizer.save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="got SQVAEModel: join a tokenizer and a prior"):
            pipeline("hq-generation", model=str(tmp_path))


def test_works_in_a_fresh_process_elsewhere(generator_dir, pipe, tmp_path):
    code = (
        "import hq_tokenizers\n"
        "from transformers import pipeline\n"
        f"pipe = pipeline('hq-generation', model={str(generator_dir)!r})\n"
        "print(pipe('cat', seed=5, output_type='codes').flatten().tolist())"
    )
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=_environment(root), capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(pipe("cat", seed=5, output_type="codes").flatten().tolist())


def _environment(root: str) -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": root}


class TestStreams:
    def labels(self, taken):
        for label in ["cat", 1, None, "frog", 0, -1, "dog"]:
            taken.append(label)
            yield label

    def test_labels_are_taken_when_images_are_asked_for(self, pipe):
        taken: list = []
        stream = pipe(self.labels(taken), seed=3, batch_size=2, output_type="codes")
        assert len(taken) <= 1  # the base class looks at the first
        first = next(stream)
        assert len(taken) <= 3
        codes = Codes.cat([first, *stream])
        assert torch.equal(codes.flatten(), codes_of(pipe, taken, seed=3))

    def test_several_images_of_each(self, pipe):
        rows = list(pipe(iter(["cat", "dog"]), num_images=3, seed=3, batch_size=2, output_type="codes"))
        assert [len(row) for row in rows] == [3, 3]
        expected = pipe(["cat", "dog"], num_images=3, seed=3, output_type="codes")
        assert all(Codes.cat(row) == Codes.cat(same) for row, same in zip(rows, expected, strict=True))

    def test_columns_of_data_sets(self, pipe):
        rows = [
            {"label": 2, "image": np.full((8, 8), 100, np.uint8)},
            {"label": 0, "image": np.zeros((8, 8), np.uint8)},
        ]
        data = Dataset.from_list([{"label": row["label"]} for row in rows])
        stream = pipe(KeyDataset(data, "label"), seed=0, output_type="codes")
        assert not isinstance(stream, list)
        assert torch.equal(Codes.cat(list(stream)).flatten(), codes_of(pipe, [2, 0], seed=0))

        images = [row["image"] for row in rows]
        again = pipe.reconstruct(KeyDataset(rows, "image"), output_type="codes", batch_size=1)
        expected = Codes.cat(pipe.reconstruct(images, output_type="codes"))
        assert torch.equal(Codes.cat(list(again)).flatten(), expected.flatten())
        others = pipe.variations(KeyDataset(rows, "image"), 0, class_labels="cat", seed=5, output_type="codes")
        expected = pipe.variations(images, 0, class_labels="cat", seed=5, output_type="codes")
        assert torch.equal(Codes.cat(list(others)).flatten(), Codes.cat(expected).flatten())

    def test_repainted_images(self, pipe):
        images = [np.full((8, 8), value, np.uint8) for value in (0, 100, 200)]
        mask = np.arange(8)[:, None].repeat(8, 1) > 3
        settings = {"class_labels": "dog", "num_images": 2, "seed": 3, "output_type": "pt"}
        stream = pipe.inpaint(iter(images), mask, **settings)
        assert not isinstance(stream, list)
        rows, expected = list(stream), pipe.inpaint(images, mask, **settings)
        for row, same in zip(rows, expected, strict=True):
            torch.testing.assert_close(torch.stack(row), torch.stack(same))
        with pytest.raises(ValueError, match="one mask for all of its images, got 3"):
            pipe.inpaint(iter(images), [mask] * 3)
        with pytest.raises(TypeError, match="stream"):
            pipe.inpaint(iter(images), mask, class_labels=["cat", "dog", "frog"])

    def test_images_are_taken_when_asked_for(self, pipe):
        taken: list = []

        def images():
            for index in range(5):
                taken.append(index)
                yield np.full((8, 8), 50 * index, np.uint8)

        stream = pipe.reconstruct(images(), batch_size=2)
        assert taken == []
        assert next(stream).size == (8, 8)
        assert taken == [0, 1]
        assert len(list(stream)) == 4

    def test_nothing(self, pipe):
        assert list(pipe(iter([]))) == []
        assert list(pipe.reconstruct(iter([]))) == []

    def test_what_is_refused_at_once_and_what_when_its_turn_comes(self, pipe):
        with pytest.raises(TypeError, match="seed is an integer or None for a stream"):
            pipe(iter(["cat"]), seed=[1])
        with pytest.raises(TypeError, match="temprature"):
            pipe(iter(["cat"]), temprature=1.0)
        with pytest.raises(TypeError, match="one class label per input"):
            pipe(iter([["cat", "dog"]]))
        stream = pipe(iter(["cat", "cart"]), batch_size=1)
        next(stream)
        with pytest.raises(ValueError, match="Unknown class 'cart'"):
            next(stream)
        with pytest.raises(TypeError, match=r"image\[0\] must be a single image"):
            next(pipe.reconstruct(iter([3])))

    def test_without_a_seed_they_follow_the_global_one(self, pipe):
        def draw():
            return Codes.cat(list(pipe(iter(["cat", "cat"]), output_type="codes"))).flatten()

        torch.manual_seed(9)
        first, second = draw(), draw()
        torch.manual_seed(9)
        assert torch.equal(draw(), first)
        assert len(torch.unique(torch.cat([first, second]), dim=0)) == 4


class TestCallbacks:
    def test_every_step_of_every_batch(self, pipe):
        calls: list = []
        image = pipe(["cat", "dog", "cat"], seed=0, batch_size=2, callback_on_step_end=lambda *call: calls.append(call))
        steps = pipe.model.code_layout.num_positions
        assert [(done, total) for done, total, _ in calls] == [(i + 1, steps) for i in range(steps)] * 2
        assert [partial.codes.batch_size for _, _, partial in calls] == [2] * steps + [1] * steps
        np.testing.assert_array_equal(as_array(pipe.preview(calls[steps - 1][2])), as_array(image[:2]))
        assert pipe.preview(calls[0][2], "pt")[0].shape == (1, 8, 8)
        plain = pipe(["cat", "dog", "cat"], seed=0, batch_size=2)
        np.testing.assert_array_equal(as_array(image), as_array(plain))

    def test_of_edits(self, pipe):
        image = np.zeros((8, 8), np.uint8)
        for edit in (
            lambda **kwargs: pipe.variations(image, 0, seed=0, **kwargs),
            lambda **kwargs: pipe.inpaint(image, np.ones((8, 8), bool), seed=0, **kwargs),
        ):
            calls: list = []
            edit(callback_on_step_end=lambda *call, calls=calls: calls.append(call))
            assert len(calls) == pipe.model.code_layout.num_positions
