from __future__ import annotations

import pytest
import torch

from hq_tokenizers.evaluation.sampling import NumberedSamples
from hq_tokenizers.processes import create_accelerator

REQUEST = {"generator_sha256": "a", "seed": 5}


class Noise:
    """Draws noise with the class in the first pixel, and remembers the classes it was asked for."""

    def __init__(self, channels=1):
        self.labels, self.channels = [], channels

    def __call__(self, labels, generators):
        self.labels += labels
        images = torch.stack([torch.rand(self.channels, 4, 5, generator=g) * 1.5 - 0.2 for g in generators])
        images[:, :, 0, 0] = torch.tensor(labels).float()[:, None] / 10
        return images


def all_images(samples, number, batch_size):
    return torch.cat(list(samples.share(number, batch_size, create_accelerator())))


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_a_sample_depends_on_its_number_only(batch_size):
    images = all_images(NumberedSamples(Noise(), 3, seed=5), 10, batch_size)
    assert images.dtype == torch.uint8
    for index, image in enumerate(images):
        expected = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(5 + index)) * 1.5 - 0.2
        expected[:, 0, 0] = index % 3 / 10
        assert torch.equal(image, (expected.clamp(0, 1) * 255).round().byte())


def test_classes_in_turn_or_none():
    conditional, unconditional = Noise(), Noise()
    all_images(NumberedSamples(conditional, 3, 0), 7, 2)
    all_images(NumberedSamples(unconditional, 0, 0), 3, 2)
    assert conditional.labels == [0, 1, 2, 0, 1, 2, 0]
    assert unconditional.labels == [-1] * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_an_interrupted_run_draws_what_is_missing(tmp_path, channels):
    whole = all_images(NumberedSamples(Noise(channels), 10, 5), 10, 4)
    first = NumberedSamples(Noise(channels), 10, 5, tmp_path)
    first.open_folder(REQUEST, create_accelerator())
    assert torch.equal(all_images(first, 6, 4), whole[:6])
    names = [f"{index:06d}.png" for index in range(6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "request.json"]

    broken = tmp_path / names[2]
    broken.write_bytes(broken.read_bytes()[:45])
    (tmp_path / names[4]).rename(tmp_path / "000004.partial")
    again = Noise(channels)
    samples = NumberedSamples(again, 10, 5, tmp_path)
    samples.open_folder(REQUEST, create_accelerator())
    assert torch.equal(all_images(samples, 10, 3), whole)
    assert again.labels == [2, 4, 6, 7, 8, 9]


def test_a_folder_of_another_request_is_refused(tmp_path):
    samples = NumberedSamples(Noise(), 10, 5, tmp_path)
    samples.open_folder(REQUEST, create_accelerator())
    samples.open_folder({**REQUEST, "seed": 6}, create_accelerator())  # nothing was drawn yet
    samples.draw([0])
    with pytest.raises(ValueError, match=r"holds images of another call \(seed was .*\): choose another images_dir"):
        samples.open_folder(REQUEST, create_accelerator())
    (tmp_path / "request.json").unlink()
    with pytest.raises(ValueError, match="holds images of another call"):
        samples.open_folder(REQUEST, create_accelerator())


def test_a_request_that_breaks_off_is_named(tmp_path):
    samples = NumberedSamples(Noise(), 10, 5, tmp_path)
    samples.open_folder(REQUEST, create_accelerator())
    path = tmp_path / "request.json"
    path.write_bytes(path.read_bytes()[:10])
    # Nothing was drawn yet, so that nothing can be mixed.
    samples.open_folder(REQUEST, create_accelerator())
    samples.draw([0])
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(
        ValueError, match=r"request\.json is damaged, .*delete the folder, or choose another images_dir"
    ):
        samples.open_folder(REQUEST, create_accelerator())
