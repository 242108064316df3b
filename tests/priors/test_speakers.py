"""Speakers as a second condition of all priors, beside the class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors.conditions import Conditions
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

Make = Callable[..., CodePriorModel]
Draw = Callable[..., Codes]
SEQUENCE = CodeLayout((CodeGroup(1, 5, (4, 6)),))


@pytest.fixture
def make(make_any: Make) -> Make:
    return lambda layout=SEQUENCE, **settings: make_any(layout, **{"num_speakers": 2} | settings)


def test_codes_of_speakers_and_classes_are_learned(make: Make, random_codes: Draw) -> None:
    sounds = random_codes(SEQUENCE, 4, seed=4)
    classes, speakers = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    model = make(initializer_range=0.05, label_dropout=0.1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    # The others learn some hidden codes of a sound at a time.
    repeats = 4 if model.config.model_type == "rq_prior" else 12
    for _ in range(200):
        loss = model(
            Codes.cat([sounds] * repeats),
            class_labels=classes.repeat(repeats),
            speaker_ids=speakers.repeat(repeats),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = model.generate(classes, speaker_ids=speakers, temperature=0).flatten()
    assert (drawn == sounds.flatten()).float().mean() > 0.9
    guided = model.generate([1], speaker_ids=[1, 0], temperature=0, guidance_scale=2.0).flatten()
    assert (guided == sounds[[3, 2]].flatten()).float().mean() > 0.9
    model.eval()
    for who in (0, 1):
        likely = model.log_prob(sounds, classes, speaker_ids=torch.full((4,), who))
        assert (likely[speakers == who] > likely[speakers != who]).all()


def test_everything_is_hidden_together() -> None:
    given = Conditions(torch.tensor([2, 0]), speakers=torch.tensor([1, -1]))
    assert given.given().tolist() == [True, True]
    hidden = given.hide(torch.tensor([True, False]))
    assert (hidden.labels.tolist(), hidden.speakers.tolist()) == ([-1, 0], [-1, -1])
    assert hidden.given().tolist() == [False, True]
    both = given.with_null()
    assert (both.labels.tolist(), both.speakers.tolist()) == ([2, 0, -1, -1], [1, -1, -1, -1])
    assert Conditions(torch.tensor([-1]), speakers=torch.tensor([1])).given().tolist() == [True]


def test_samples_do_not_depend_on_the_batch(make: Make) -> None:
    model, seeds = make(), [3, 4, 5]
    together = model.generate(
        [0, 1, -1], speaker_ids=[1, -1, 0], generator=[torch.Generator().manual_seed(seed) for seed in seeds]
    )
    for index, (label, speaker) in enumerate([(0, 1), (1, -1), (-1, 0)]):
        alone = model.generate(label, speaker_ids=speaker, generator=seeds[index])
        assert alone == together[index]


def test_a_prior_without_speakers_is_as_it_was_and_refuses_them(make: Make, random_codes: Draw) -> None:
    model, sounds = make(num_speakers=0), random_codes(SEQUENCE, 2)
    assert not any("speaker" in name for name in model.state_dict())
    with pytest.raises(ValueError, match=r"Speaker 1 is out of range; this prior accepts -1 or None only"):
        model.generate(0, speaker_ids=1)
    with pytest.raises(ValueError, match=r"Speaker 0 is out of range"):
        model(sounds, speaker_ids=torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"speaker_ids must have shape \(2,\)"):
        make()(sounds, speaker_ids=torch.tensor([0]))
    with pytest.raises(ValueError, match="2 class_labels and 3 speaker_ids"):
        make().generate([0, 1], speaker_ids=[0, 1, 0])


def test_names_are_saved(make: Make, tmp_path: Path) -> None:
    make(speaker_names=["ann", "bob"]).save_pretrained(tmp_path)
    again = type(make()).from_pretrained(tmp_path)
    assert again.config.speaker_names == ["ann", "bob"]
    with pytest.raises(ValueError, match="speaker_names names 1 speakers, num_speakers is 2"):
        make(speaker_names=["ann"])
