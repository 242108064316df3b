from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.data.images import ImageFormat
from hq_tokenizers.evaluation.validation import evaluate_tokenizer
from hq_tokenizers.models.modeling_outputs import ImageTokenizerOutput
from hq_tokenizers.processes import create_accelerator

LAYOUT = CodeLayout((CodeGroup(2, 2, (5,)), CodeGroup(1, 2, (3, 4))))


class Images:
    def __init__(self, pixels):
        self.pixels = pixels
        self.image_format = ImageFormat(4, 4, 1)

    def __len__(self):
        return len(self.pixels)

    def batches(self, index_batches, device):
        return ({"pixel_values": self.pixels[indices], "indices": indices} for indices in index_batches)


class Tokenizer:
    """Answers from tables: looks an image up by its first pixel, which is its number."""

    config = SimpleNamespace(is_stochastic=True, has_codes=True, draws_relaxed_samples=True)

    def __init__(self, pixels, reconstructions, codes):
        self.pixels, self.reconstructions, self.codes = pixels, reconstructions, codes

    def compare_codes(self, pixel_values, generators=()):
        rows = (pixel_values[:, 0, 0, 0] * len(self.pixels)).round().long()
        batch_loss = pixel_values.mean() * 10
        output = ImageTokenizerOutput(
            loss=batch_loss,
            reconstruction=self.reconstructions[rows],
            codes=self.codes[rows],
            terms={"reconstruction": batch_loss / 2, "discrete": batch_loss / 4},
            diagnostics={
                "entropy": pixel_values.mean() + torch.arange(3.0),
                "perplexity": torch.full((3,), float(len(rows))),
                "active_codes": torch.ones(3),
                "variance": torch.ones(3) * 2,
                "latent_energy": torch.ones(3) * 3,
                "residual_energy": pixel_values.mean() / (1 + torch.arange(3.0)),
            },
        )
        noise = [torch.rand(1, 4, 4, generator=generator) for generator in generators]
        others = {"relaxed": torch.stack(noise), "sampled": 1 - torch.stack(noise)} if noise else {}
        return output, others

    def code_levels(self, codes, attention_mask=None):
        assert attention_mask is None
        return [level for group in codes.groups for level in group.unbind(-1)]

    def codebooks(self):
        return [torch.full((size, 2), float(size)) for size in (5, 3, 4)]

    def temperature(self):
        return torch.tensor(0.75)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_figures_against_numpy(batch_size):
    number = 10
    pixels = torch.rand(number, 1, 4, 4)
    pixels[:, 0, 0, 0] = torch.arange(number) / number
    reconstructions = (pixels + 0.1 * torch.randn_like(pixels)).clone()
    flat = torch.stack([torch.randint(size, (number,)) for size in (5,) * 4 + (3, 4) * 2], dim=1)
    codes = LAYOUT.unflatten(flat)
    model = Tokenizer(pixels, reconstructions, codes)
    figures = evaluate_tokenizer(model, Images(pixels), batch_size, create_accelerator())

    x, y = (t.double().numpy().reshape(number, -1) for t in (pixels, reconstructions))
    errors = ((x - y) ** 2).mean(1)
    assert figures["num_images"] == number
    assert figures["mse"] == pytest.approx(errors.mean(), rel=1e-6)
    assert figures["mse_per_image"] == pytest.approx(errors.mean() * 16, rel=1e-6)
    assert figures["psnr"] == pytest.approx(np.mean([10 * math.log10(1 / e) for e in errors]), rel=1e-6)
    assert figures["loss"] == pytest.approx(10 * x.mean(), rel=1e-6)
    assert figures["reconstruction"] == pytest.approx(5 * x.mean(), rel=1e-6)
    assert figures["entropy"] == pytest.approx([x.mean() + level for level in range(3)], rel=1e-6)
    assert figures["variance"] == [2.0] * 3
    assert figures["latent_energy"] == [3.0] * 3
    assert figures["residual_energy"] == pytest.approx([x.mean() / (level + 1) for level in range(3)], rel=1e-6)
    assert figures["codebook_energy"] == [25.0, 9.0, 16.0]
    assert figures["temperature"] == 0.75
    assert figures["kl_bits_per_image"] == pytest.approx(2.5 * x.mean() / math.log(2), rel=1e-6)
    bits = []
    for level, indices in enumerate(codes.levels()):
        _, counts = np.unique(indices.numpy(), return_counts=True)
        p = counts / counts.sum()
        assert figures["perplexity"][level] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert figures["active_codes"][level] == len(counts)
        bits.append(-(counts * np.log2(p)).sum() / number)
    assert figures["histogram_bits_by_level"] == pytest.approx(bits)
    assert figures["histogram_bits_per_image"] == pytest.approx(sum(bits))
    sizes = [len(part) for part in torch.arange(number).split(batch_size)]
    assert figures["batch_perplexity"] == pytest.approx([np.mean(sizes)] * 3)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_kinds_of_codes_are_compared_on_the_first_images_only(batch_size, monkeypatch):
    monkeypatch.setattr("hq_tokenizers.evaluation.validation.COMPARED_IMAGES", 8)
    torch.manual_seed(0)
    pixels = torch.rand(10, 1, 4, 4)
    pixels[:, 0, 0, 0] = torch.arange(10) / 10
    reconstructions = torch.rand(10, 1, 4, 4)
    codes = LAYOUT.unflatten(torch.zeros(10, LAYOUT.num_codes, dtype=torch.long))
    before = torch.get_rng_state()
    figures = evaluate_tokenizer(
        Tokenizer(pixels, reconstructions, codes), Images(pixels), batch_size, create_accelerator()
    )
    assert torch.equal(torch.get_rng_state(), before)
    # Image i has the noise of seed i.
    noise = torch.stack([torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(8)])
    for kind, images in (("argmax", reconstructions[:8]), ("relaxed", noise), ("sampled", 1 - noise)):
        expected = (images - pixels[:8]).double().square().mean()
        assert figures[f"mse_{kind}"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_process_without_compared_images_has_the_sums_of_the_others(monkeypatch):
    monkeypatch.setattr("hq_tokenizers.evaluation.validation.COMPARED_IMAGES", 2)
    pixels = torch.rand(4, 1, 4, 4)
    pixels[:, 0, 0, 0] = torch.arange(4) / 4
    codes = LAYOUT.unflatten(torch.zeros(4, LAYOUT.num_codes, dtype=torch.long))
    names = []

    def reduce(sums, how):
        names.append(set(sums))
        return sums

    for process in (0, 1):
        accelerator = SimpleNamespace(num_processes=2, process_index=process, device=torch.device("cpu"), reduce=reduce)
        evaluate_tokenizer(Tokenizer(pixels, pixels, codes), Images(pixels), 2, accelerator)
    assert names[0] == names[1]


def test_a_perfect_image_has_a_finite_psnr():
    pixels = torch.zeros(1, 1, 4, 4)
    codes = Codes((torch.zeros(1, 2, 2, 1).long(), torch.zeros(1, 1, 2, 2).long()), LAYOUT)
    figures = evaluate_tokenizer(Tokenizer(pixels, pixels, codes), Images(pixels), 1, create_accelerator())
    assert figures["psnr"] == pytest.approx(100)
    assert figures["mse"] == 0


def test_more_processes_than_batches():
    accelerator = SimpleNamespace(num_processes=2, process_index=1)
    with pytest.raises(ValueError, match="too few for 2 processes"):
        evaluate_tokenizer(None, Images(torch.zeros(3, 1, 4, 4)), 4, accelerator)


def test_label_maps_against_scikit_learn():
    from sklearn.metrics import accuracy_score, jaccard_score

    truth = torch.randint(4, (7, 5, 6))
    guess = torch.where(torch.rand(7, 5, 6) < 0.7, truth, torch.randint(4, (7, 5, 6)))
    answers = {tuple(label_map.flatten().tolist()): other for label_map, other in zip(truth, guess, strict=True)}

    def compare_codes(pixel_values, generators):
        label_maps = pixel_values
        found = torch.stack([answers[tuple(label_map.flatten().tolist())] for label_map in label_maps])
        return ImageTokenizerOutput(loss=torch.tensor(1.0), reconstruction=found, terms={}), {
            "relaxed": label_maps[: len(generators)],
            "sampled": 9 - label_maps[: len(generators)],
        }

    model = SimpleNamespace(
        compare_codes=compare_codes,
        config=SimpleNamespace(is_stochastic=True, has_codes=False, draws_relaxed_samples=True),
        temperature=lambda: torch.tensor(1.0),
    )
    figures = evaluate_tokenizer(model, Images(truth), 3, create_accelerator())
    expected = truth.flatten().numpy(), guess.flatten().numpy()
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(*expected), abs=1e-12)
    assert figures["mean_iou"] == pytest.approx(jaccard_score(*expected, average="macro"), abs=1e-12)
    assert "mse" not in figures
    kinds = [figures[f"pixel_accuracy_{kind}"] for kind in ("argmax", "relaxed", "sampled")]
    assert kinds == pytest.approx([figures["pixel_accuracy"], 1.0, 0.0])
