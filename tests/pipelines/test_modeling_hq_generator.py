from __future__ import annotations

import inspect
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, GenerationConfig

from hq_tokenizers import Codes, HQGeneratorConfig, HQGeneratorModel, HQVAEModel, RQPriorModel, SQVAEModel
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.priors import CodeGenerationConfig

from .conftest import CLASS_NAMES, build_prior, build_tokenizer


def assert_equal_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


class TestConfig:
    def test_defaults_are_a_working_pair(self):
        config = HQGeneratorConfig()
        assert (config.image_tokenizer_config.model_type, config.prior_config.model_type) == ("sq_vae", "rq_prior")
        assert config.id2label == {}
        assert config.num_classes == 0

    def test_round_trip_through_json(self, generator, tmp_path):
        generator.config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(loaded, HQGeneratorConfig)
        assert type(loaded.image_tokenizer_config) is type(generator.config.image_tokenizer_config)
        assert loaded.prior_config.code_layout == generator.config.prior_config.code_layout
        assert loaded.id2label == CLASS_NAMES
        assert loaded.label2id == {"cat": 0, "dog": 1, "frog": 2}

    def test_folders_that_the_parts_came_from_are_not_saved(self, generator, tmp_path):
        generator.image_tokenizer.save_pretrained(tmp_path / "mine" / "tokenizer")
        generator.prior.save_pretrained(tmp_path / "mine" / "prior")
        parts = (tmp_path / "mine" / "tokenizer", tmp_path / "mine" / "prior")
        HQGeneratorModel.from_sub_models_pretrained(*parts).save_pretrained(tmp_path / "generator")
        assert str(tmp_path) not in (tmp_path / "generator" / "config.json").read_text()

    def test_class_names_come_from_the_prior(self):
        config = HQGeneratorConfig(
            prior_config={"model_type": "rq_prior", "num_classes": 2, "id2label": {0: "a", 1: "b"}}
        )
        assert config.id2label == {0: "a", 1: "b"}

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"prior_config": {"hidden_size": 16}}, 'prior_config needs the "model_type"'),
            ({"image_tokenizer_config": {"model_type": "nothing"}}, "got 'nothing'"),
            (
                {"prior_config": {"model_type": "rq_prior", "num_classes": 2}, "id2label": {0: "a"}},
                r"0 to 1 .*got \[0\]",
            ),
            (
                {"image_tokenizer_config": {"model_type": "rq_prior"}},
                "image_tokenizer_config must have image_size, but a rq_prior",
            ),
            ({"prior_config": {"model_type": "hq_vae"}}, "prior_config must have code_layout, but a hq_vae has none"),
            ({"image_tokenizer_config": {"model_type": "sq_vae", "quantizer": "none"}}, "a prior needs codes"),
            ({"id2label": {0: "a"}}, "must be empty for an unconditional prior"),
        ],
    )
    def test_refuses(self, values, message):
        with pytest.raises(ValueError, match=message):
            HQGeneratorConfig(**values)


class TestJoining:
    def test_shares_the_weights(self, tokenizer):
        before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
        prior = build_prior(tokenizer)
        joined = HQGeneratorModel.from_sub_models(tokenizer, prior)
        assert joined.image_tokenizer is tokenizer
        assert joined.prior is prior
        assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())

    def test_keeps_the_settings_of_the_parts(self, tokenizer):
        prior = build_prior(tokenizer)
        prior.set_attn_implementation("eager")
        prior.generation_config = prior.generation_config.with_overrides(top_k=5)
        joined = HQGeneratorModel.from_sub_models(tokenizer, prior)
        assert joined.config.prior_config is prior.config
        assert prior.config._attn_implementation == "eager"
        assert joined.generation_config.top_k == 5

    def test_from_directories(self, generator, tmp_path):
        generator.image_tokenizer.save_pretrained(tmp_path / "tokenizer")
        generator.prior.save_pretrained(tmp_path / "prior")
        joined = HQGeneratorModel.from_sub_models_pretrained(tmp_path / "tokenizer", tmp_path / "prior", CLASS_NAMES)
        assert_equal_weights(joined, generator)
        assert not joined.training
        wide = HQGeneratorModel.from_sub_models_pretrained(
            tmp_path / "tokenizer", tmp_path / "prior", dtype=torch.bfloat16
        )
        assert wide.prior.dtype == wide.dtype == torch.bfloat16

    def test_parts_in_the_wrong_order(self, generator, tokenizer, tmp_path):
        generator.image_tokenizer.save_pretrained(tmp_path / "tokenizer")
        generator.prior.save_pretrained(tmp_path / "prior")
        with pytest.raises(
            TypeError, match=r"image_tokenizer must .*got RQPriorModel, which would do as prior\. The order"
        ):
            HQGeneratorModel.from_sub_models_pretrained(tmp_path / "prior", tmp_path / "tokenizer")
        with pytest.raises(TypeError, match=r"prior must be .*got SQVAEModel, which would do as image_tokenizer"):
            HQGeneratorModel.from_sub_models(tokenizer, tokenizer)
        with pytest.raises(TypeError, match=r"prior must be .*got HQGeneratorModel\."):
            HQGeneratorModel.from_sub_models(tokenizer, generator)

    def test_layouts_must_agree(self, tokenizer):
        other = build_tokenizer(image_size=16)
        with pytest.raises(ValueError, match=r"8×8×1 of 16, but .*size 8 have the layout 4×4×1 of 16"):
            HQGeneratorModel.from_sub_models(tokenizer, build_prior(other))


class TestLoading:
    def test_whole(self, generator, generator_dir):
        loaded, report = AutoModel.from_pretrained(generator_dir, output_loading_info=True)
        assert isinstance(loaded, HQGeneratorModel)
        assert_equal_weights(loaded, generator)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    @pytest.mark.parametrize(("part_class", "name"), [(SQVAEModel, "image_tokenizer"), (RQPriorModel, "prior")])
    def test_one_part_alone(self, generator, generator_dir, part_class, name):
        part, report = part_class.from_pretrained(generator_dir, output_loading_info=True)
        assert_equal_weights(part, getattr(generator, name))
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    def test_shards(self, generator, tmp_path):
        generator.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        assert_equal_weights(HQGeneratorModel.from_pretrained(tmp_path), generator)

    def test_reduced_precision_spares_the_quantizer(self, generator_dir):
        loaded = HQGeneratorModel.from_pretrained(generator_dir, dtype=torch.bfloat16)
        assert loaded.prior.dtype == torch.bfloat16
        assert {p.dtype for p in loaded.image_tokenizer.quantizer.parameters()} == {torch.float32}
        images = loaded.generate("cat", generator=0).images
        assert images.isfinite().all()

    def test_device_map_and_attention(self, generator, generator_dir):
        loaded = HQGeneratorModel.from_pretrained(generator_dir, device_map="cpu", attn_implementation="eager")
        assert loaded.prior.config._attn_implementation == "eager"
        assert loaded.generate([0, 1], generator=0).codes == generator.generate([0, 1], generator=0).codes

    def test_attention_of_one_part(self, generator_dir):
        loaded = HQGeneratorModel.from_pretrained(generator_dir, attn_implementation={"prior_config": "eager"})
        assert loaded.prior.config._attn_implementation == "eager"

    def test_generation_settings(self, generator, tmp_path):
        copy = HQGeneratorModel.from_sub_models(generator.image_tokenizer, build_prior(generator.image_tokenizer))
        copy.generation_config = CodeGenerationConfig(temperature=[0.7], guidance_scale=3.0)
        copy.save_pretrained(tmp_path)
        loaded = HQGeneratorModel.from_pretrained(tmp_path)
        assert loaded.prior.generation_config is loaded.generation_config
        assert (loaded.generation_config.temperature, loaded.generation_config.guidance_scale) == ([0.7], 3.0)

    def test_code_of_an_export_is_not_noted_again(self, generator, tmp_path):
        generator.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        note = {"custom_pipelines": {"hq-generation": {}}, "auto_map": {"AutoConfig": "a.B"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | note))
        HQGeneratorConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
        assert not note.keys() & json.loads((tmp_path / "again" / "config.json").read_text()).keys()


def test_hierarchical_tokenizer(hierarchical_generator, tmp_path):
    hierarchical_generator.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert_equal_weights(loaded, hierarchical_generator)
    assert_equal_weights(HQVAEModel.from_pretrained(tmp_path), hierarchical_generator.image_tokenizer)
    assert loaded.code_layout.codebook_sizes == (16, 8, 8)
    assert loaded.generate("cat", num_images=3, generator=0, batch_size=2).images.shape == (3, 3, 8, 12)


class TestGenerate:
    def test_is_the_prior_followed_by_the_decoder(self, generator):
        output = generator.generate(["cat", 2], num_images=2, generator=5)
        codes = generator.prior.generate(class_labels=[0, 2], num_images=2, generator=5)
        assert output.codes == codes
        torch.testing.assert_close(output.images, generator.image_tokenizer.decode(codes))

    @pytest.mark.parametrize("batch_size", [1, 2, 7])
    def test_batch_size_does_not_matter(self, generator, batch_size):
        whole = generator.generate([0, 1, None], num_images=2, generator=0)
        parts = generator.generate([0, 1, None], num_images=2, generator=0, batch_size=batch_size)
        assert parts.codes == whole.codes
        torch.testing.assert_close(parts.images, whole.images)

    def test_labels_matter(self, generator):
        cats, frogs = (generator.generate(name, num_images=20, generator=0).codes for name in ("cat", "frog"))
        assert not torch.equal(cats.flatten(), frogs.flatten())

    def test_settings_replace_those_of_the_config(self, generator):
        greedy = generator.generate(0, num_images=3, temperature=0).codes.flatten()
        assert torch.equal(greedy[0], greedy[1])
        config = CodeGenerationConfig(temperature=0)
        assert torch.equal(generator.generate(0, generation_config=config).codes.flatten()[0], greedy[0])
        plain = GenerationConfig(top_k=1, do_sample=True)
        assert torch.equal(generator.generate(0, generation_config=plain).codes.flatten()[0], greedy[0])

    @pytest.mark.parametrize("batch_size", [1, 64])
    def test_known_codes_are_kept(self, generator, batch_size):
        torch.manual_seed(0)
        known = generator.code_layout.unflatten(torch.randint(16, (3, 16)))
        mask = torch.rand(3, 4, 4, 1) < 0.5
        output = generator.generate(
            0, num_images=2, known_codes=known, known_mask=[mask], generator=0, batch_size=batch_size
        )
        kept, expected = output.codes.groups[0], known.groups[0].repeat_interleave(2, dim=0)
        chosen = mask.repeat_interleave(2, dim=0)
        assert torch.equal(kept[chosen], expected[chosen])
        assert not torch.equal(kept, expected)

    def test_one_image_of_known_codes_serves_all_labels(self, generator):
        known = generator.code_layout.unflatten(torch.arange(16)[None])
        mask = torch.zeros(1, 4, 4, 1, dtype=torch.bool)
        mask[:, :2] = True
        codes = generator.generate([0, 1, 2], known_codes=known, known_mask=[mask], batch_size=2).codes
        assert torch.equal(codes.groups[0][:, :2], known.groups[0][:, :2].expand(3, -1, -1, -1))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"class_labels": 3}, ValueError, "out of range"),
            ({"class_labels": []}, ValueError, "empty"),
            ({"num_images": 0}, ValueError, "num_images must be an integer of at least 1, got 0"),
            ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
            ({"num_images": 1.5}, ValueError, "num_images must be an integer of at least 1, got 1.5"),
            ({"batch_size": "2"}, ValueError, "batch_size must be an integer of at least 1, got '2'"),
            ({"temperature": -1}, ValueError, "temperature"),
            ({"temperature": [1.0, 1.0]}, ValueError, "1 levels"),
            ({"max_new_tokens": 5}, ValueError, "max_new_tokens"),
            ({"generator": [torch.Generator()], "num_images": 2}, ValueError, "1 generators for 2"),
            ({"generator": "0"}, TypeError, "str"),
        ],
    )
    def test_refuses(self, generator, arguments, error, message):
        with pytest.raises(error, match=message):
            generator.generate(**arguments)

    def test_refuses_known_codes_that_are_none(self, generator):
        flat = generator.generate(0, generator=0).codes.flatten()
        with pytest.raises(TypeError, match="known_codes must be a Codes, got Tensor"):
            generator.generate(0, known_codes=flat, known_mask=[torch.ones(1, 4, 4, 1, dtype=torch.bool)])

    def test_refuses_known_codes_of_another_number(self, generator):
        known = generator.code_layout.unflatten(torch.zeros(3, 16, dtype=torch.long))
        mask = torch.ones(1, 4, 4, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match="2 class_labels and known_codes of 3"):
            generator.generate([0, 1], known_codes=known, known_mask=[mask])
        with pytest.raises(ValueError, match="one boolean tensor per group"):
            generator.generate(0, known_codes=known, known_mask=mask)

    @pytest.mark.parametrize(("num_known", "labels", "rows"), [(1, 0, 3), (2, [0, 1], 3), (1, [0, 1, 2], 2), (1, 0, 0)])
    def test_refuses_masks_of_another_number(self, generator, num_known, labels, rows):
        known = generator.code_layout.unflatten(torch.zeros(num_known, 16, dtype=torch.long))
        mask = torch.ones(rows, 4, 4, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match=rf"first dimension of known_mask\[0\] must be 1.*shape \({rows}, 4"):
            generator.generate(labels, known_codes=known, known_mask=[mask], batch_size=1)

    def test_unconditional(self, unconditional_generator):
        output = unconditional_generator.generate(num_images=3, generator=0, batch_size=2)
        assert isinstance(output.codes, Codes)
        assert output.images.shape == (3, 1, 8, 8)
        with pytest.raises(ValueError, match="unconditional"):
            unconditional_generator.generate("cat")

    @pytest.mark.parametrize("batch_size", [1, 64])
    def test_progress(self, generator, capsys, batch_size):
        generator.generate(0, num_images=3, generator=0, batch_size=batch_size, progress=True)
        assert "100%" in capsys.readouterr().err


def test_forward_is_the_priors_loss_on_the_codes(generator):
    pixels = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, -1])
    expected = -generator.prior.log_prob(generator.image_tokenizer.encode(pixels), labels).mean() / 16
    torch.testing.assert_close(generator(pixels, labels).loss, expected)


def test_gradient_checkpointing_keeps_the_gradients(tokenizer):
    pixels = torch.rand(2, 1, 8, 8)
    prior = build_prior(tokenizer, dropout=0.0, label_dropout=0.0)
    model = HQGeneratorModel.from_sub_models(tokenizer, prior)
    gradients = []
    for enable in (False, True):
        if enable:
            enable_gradient_checkpointing(model)
            assert any(getattr(module, "gradient_checkpointing", False) for module in prior.modules())
        prior.train()
        model.zero_grad()
        model(pixels).loss.backward()
        gradients.append([p.grad.clone() for p in prior.parameters() if p.grad is not None])
        prior.eval()
    assert gradients[0]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_priors_and_generators_take_their_arguments_in_one_order_and_by_name(generator):
    both = (generator.prior.generate, generator.generate)
    prior, whole = (list(inspect.signature(method).parameters.values()) for method in both)
    shared = {parameter.name for parameter in prior} & {parameter.name for parameter in whole}
    assert [one.name for one in prior if one.name in shared] == [one.name for one in whole if one.name in shared]
    for parameters in (prior, whole):
        by_place = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        assert by_place == ["class_labels", "num_images"]
