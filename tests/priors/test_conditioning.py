"""Free-form conditioning of both priors by cross-attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.priors import MaskedPriorModel
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

Make = Callable[..., CodePriorModel]
Draw = Callable[..., Codes]

WIDTH = 6
NAMES = ["ant", "bee", "grasshopper"]


class TextEncoder(nn.Module):
    """A recurrent network over the characters of words: the smallest thing that has hidden states and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(27, WIDTH)
        self.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, words: Sequence[str]) -> dict[str, torch.Tensor]:
        """Hidden states (B, S, E) and the mask of real characters (B, S)."""
        ids = [torch.tensor([ord(letter) - 96 for letter in word]) for word in words]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        states, _ = self.recurrent(self.embedding(padded))
        return {"encoder_hidden_states": states, "encoder_attention_mask": padded > 0}


def vectors(batch_size: int, length: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch_size, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make(make_any: Make) -> Make:
    return lambda layout, **settings: make_any(layout, **{"cross_attention_dim": WIDTH} | settings)


def test_a_text_encoder_on_class_names_learns_together_with_the_prior(
    make: Make, random_codes: Draw, mixed_layout: CodeLayout
) -> None:
    encoder, images = TextEncoder(), random_codes(mixed_layout, 3, seed=4)
    model = make(mixed_layout, num_classes=0, initializer_range=0.05, label_dropout=0.1).train()
    optimizer = torch.optim.Adam([*model.parameters(), *encoder.parameters()], lr=5e-3)
    # A masked prior learns one level of an image at a time.
    repeats = 1 if model.config.model_type == "rq_prior" else 12
    for _ in range(160):
        loss = model(Codes.cat([images] * repeats), **encoder(NAMES * repeats)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    texts = encoder(NAMES)
    assert model.generate(temperature=0, **texts) == images
    assert model.generate(temperature=0, guidance_scale=2.0, **encoder(NAMES[::-1])) == images[[2, 1, 0]]
    matrix = torch.stack(
        [model.eval().log_prob(Codes.cat([images[index]] * 3), **texts).detach() for index in range(3)]
    )
    assert torch.equal(matrix.argmax(1), torch.arange(3))


def test_conditioning_matters_and_no_vectors_is_the_null_condition(
    make: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, codes = make(layout), Codes.cat([random_codes(layout, 1)] * 3)
    states, mask = vectors(3), torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [False] * 4])
    log_prob = model.log_prob(codes, None, states, mask)
    assert len(set(log_prob.tolist())) == 3
    # The third image sees none of its vectors.
    torch.testing.assert_close(log_prob[2], model.log_prob(codes)[2])
    # Hidden vectors are not seen; integers do as a mask, as tokenizers give them.
    padded = torch.cat([states[:, :2], torch.full((3, 5, WIDTH), 99.0)], dim=1)
    short = torch.tensor([[1, 1] + [0] * 5] * 3)
    torch.testing.assert_close(model.log_prob(codes, None, padded, short)[1], log_prob[1])


def test_labels_and_vectors_together(make: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes, labels = make(layout), Codes.cat([random_codes(layout, 1)] * 2), torch.tensor([0, 1])
    both, only_vectors = model.log_prob(codes, labels, vectors(2)), model.log_prob(codes, None, vectors(2))
    assert len({*both.tolist(), *only_vectors.tolist(), *model.log_prob(codes, labels).tolist()}) == 6


def test_training_hides_label_and_vectors_together(make: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make(layout, label_dropout=0.999999).train(), random_codes(layout, 4)

    def loss(*condition: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return model(codes, *condition[:1], encoder_hidden_states=None if not condition else condition[1]).loss

    with_condition = loss(torch.tensor([0, 1, 2, 0]), vectors(4))
    # The null run draws the same random numbers: the condition is dropped where there is none, too.
    torch.testing.assert_close(with_condition, loss(torch.full((4,), -1), vectors(4, seed=9)))
    model.eval()
    assert loss(torch.tensor([0, 1, 2, 0]), vectors(4)) != with_condition


def test_gradient_reaches_every_parameter_and_the_encoder(make: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, states = make(layout, dropout=0.1).train(), vectors(100).requires_grad_()
    model(random_codes(layout, 100), torch.arange(100) % 4 - 1, encoder_hidden_states=states).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert states.grad.abs().sum() > 0


def test_samples_do_not_depend_on_the_batch(make: Make, layout: CodeLayout) -> None:
    model, states = make(layout), vectors(6)
    mask = torch.arange(4) < torch.tensor([4, 3, 2, 1, 0, 4])[:, None]
    for scale in (1.0, 2.5):
        options = {"guidance_scale": scale}
        whole = model.generate(encoder_hidden_states=states, encoder_attention_mask=mask, generator=10, **options)
        parts = [
            model.generate(
                encoder_hidden_states=states[i : i + 1],
                encoder_attention_mask=mask[i : i + 1],
                generator=10 + i,
                **options,
            )
            for i in range(6)
        ]
        assert Codes.cat(parts) == whole
        # Row 4 has no vectors: the unconditional model, guided or not.
        assert whole[4] == model.generate(generator=14)


def test_inputs_are_paired(make: Make, mixed_layout: CodeLayout) -> None:
    model, states = make(mixed_layout), vectors(2)
    pairs = model.generate([1, 0], num_images=2, encoder_hidden_states=states, generator=5)
    rows = model.generate([1, 1, 0, 0], encoder_hidden_states=states.repeat_interleave(2, 0), generator=5)
    assert pairs == rows
    one = model.generate([1, 0], encoder_hidden_states=states[:1], generator=5)
    assert one == model.generate([1, 0], encoder_hidden_states=states[[0, 0]], generator=5)
    with pytest.raises(ValueError, match="Got 3 class_labels and 2 encoder_hidden_states: give equally many, or one"):
        model.generate([0, 1, 2], encoder_hidden_states=states)


def test_cached_logits_equal_teacher_forced_ones(make_prior: Make, layout: CodeLayout) -> None:
    model, states = make_prior(layout, cross_attention_dim=WIDTH, position_embedding="rotary"), vectors(2)
    mask = torch.tensor([[True] * 4, [True, False, True, False]])
    seen: list[list[torch.Tensor]] = [[] for _ in model.heads]
    for level, head in enumerate(model.heads):
        head.register_forward_hook(lambda module, args, out, level=level: seen[level].append(out))
    options = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    codes = model.generate([0, 1], generator=0, **options)
    cached = [torch.cat(steps, dim=1) for steps in seen]
    for steps, forced in zip(cached, model(codes, torch.tensor([0, 1]), **options).logits, strict=True):
        torch.testing.assert_close(steps, forced, atol=1e-5, rtol=1e-5)


def test_eager_attention_and_compilation(make: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make(mixed_layout), random_codes(mixed_layout, 2)
    options = {
        "encoder_hidden_states": vectors(2),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
    }

    def loss(function: Callable) -> torch.Tensor:
        torch.manual_seed(0)
        return function(codes, torch.tensor([0, -1]), **options).loss

    sdpa = loss(model)
    torch.testing.assert_close(loss(torch.compile(model, backend="eager", fullgraph=True)), sdpa)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(loss(model), sdpa, atol=1e-5, rtol=1e-5)


def test_save_and_load(make: Make, random_codes: Draw, mixed_layout: CodeLayout, tmp_path: Path) -> None:
    model, codes = make(mixed_layout), random_codes(mixed_layout, 2)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.cross_attention_dim == WIDTH
    assert torch.equal(loaded.log_prob(codes, None, vectors(2)), model.log_prob(codes, None, vectors(2)))


def test_guidance_needs_a_condition_to_guide_towards(make: Make, make_any: Make, mixed_layout: CodeLayout) -> None:
    assert len(make(mixed_layout, num_classes=0).generate(guidance_scale=2.0)) == 1
    with pytest.raises(ValueError, match="needs a class-conditional prior, or one with cross-attention"):
        make_any(mixed_layout, num_classes=0).generate(guidance_scale=2.0)


def test_bad_vectors_are_named(make: Make, make_any: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make(mixed_layout), random_codes(mixed_layout, 2)

    def refuses(message: str, model: CodePriorModel, **kwargs: object) -> None:
        for call in (lambda: model(codes, **kwargs), lambda: model.generate(**kwargs)):
            with pytest.raises(ValueError, match=message):
                call()

    refuses(r"must have shape \(.*, length, 6\) .*got \(2, 4, 5\)", model, encoder_hidden_states=torch.zeros(2, 4, 5))
    refuses(r"must have shape .* got \(2, 6\)", model, encoder_hidden_states=torch.zeros(2, 6))
    refuses(
        r"encoder_attention_mask must have shape \(2, 4\), one value per vector, got \(2, 3\)",
        model,
        encoder_hidden_states=vectors(2),
        encoder_attention_mask=torch.ones(2, 3),
    )
    refuses("encoder_attention_mask needs encoder_hidden_states", model, encoder_attention_mask=torch.ones(2, 3))
    plain = make_any(mixed_layout)
    refuses(
        r"need a prior with cross-attention: set cross_attention_dim .*\(6\)", plain, encoder_hidden_states=vectors(2)
    )
    with pytest.raises(ValueError, match=r"must have shape \(2, length, 6\)"):
        model(codes, encoder_hidden_states=vectors(3))


def test_conditioning_vectors_reach_the_codes_of_every_level(make_masked_prior: Make, mixed_layout: CodeLayout) -> None:
    model: MaskedPriorModel = make_masked_prior(mixed_layout, cross_attention_dim=WIDTH)
    states = vectors(2)
    codes = Codes.cat([model.generate(generator=0)] * 2)
    per_level = model.log_prob_per_level(codes, None, states)
    assert (per_level[0] != per_level[1]).all()


def test_the_null_condition_of_a_prior_trained_without_it_is_warned_of(
    make_any: Make, layout: CodeLayout, recwarn: pytest.WarningsRecorder
) -> None:
    reason = "which this prior has not learned unless .* its label_dropout is 0"
    untrained = make_any(layout, label_dropout=0.0)
    with pytest.warns(UserWarning, match=f"guidance_scale=2.0 compares with samples that have no condition, {reason}"):
        untrained.generate([0], guidance_scale=2.0)
    for labels in (None, [0, -1]):
        with pytest.warns(UserWarning, match=f"There are samples without a condition .*, {reason}"):
            untrained.generate(labels)
    with_vectors = make_any(layout, label_dropout=0.0, cross_attention_dim=WIDTH)
    hidden = torch.tensor([[True] * 4, [False] * 4])
    with pytest.warns(UserWarning, match=f"There are samples without a condition .*, {reason}"):
        with_vectors.generate(encoder_hidden_states=vectors(2), encoder_attention_mask=hidden)
    recwarn.clear()
    untrained.generate([0, 1])
    with_vectors.generate(encoder_hidden_states=vectors(2))
    make_any(layout, label_dropout=0.1).generate([0, -1], guidance_scale=2.0)
    make_any(layout, label_dropout=0.0, num_classes=0).generate()
    assert [str(warning.message) for warning in recwarn if "label_dropout" in str(warning.message)] == []
