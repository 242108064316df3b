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


def _tokenizer(pixels, reconstructions, codes):
    """Answers from tables: looks an image up by its first pixel, which is its number."""

    def model(pixel_values):
        rows = (pixel_values[:, 0, 0, 0] * len(pixels)).round().long()
        batch_loss = pixel_values.mean() * 10
        return ImageTokenizerOutput(
            loss=batch_loss,
            reconstruction=reconstructions[rows],
            codes=codes[rows],
            terms={"reconstruction": batch_loss / 2},
            diagnostics={
                "entropy": pixel_values.mean() + torch.arange(3.0),
                "perplexity": torch.full((3,), float(len(rows))),
                "active_codes": torch.ones(3),
                "variance": torch.ones(3) * 2,
            },
        )

    return model


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_figures_against_numpy(batch_size):
    number = 10
    pixels = torch.rand(number, 1, 4, 4)
    pixels[:, 0, 0, 0] = torch.arange(number) / number
    reconstructions = (pixels + 0.1 * torch.randn_like(pixels)).clone()
    flat = torch.stack([torch.randint(size, (number,)) for size in (5,) * 4 + (3, 4) * 2], dim=1)
    codes = LAYOUT.unflatten(flat)
    model = _tokenizer(pixels, reconstructions, codes)
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
    for level, indices in enumerate(codes.levels()):
        _, counts = np.unique(indices.numpy(), return_counts=True)
        p = counts / counts.sum()
        assert figures["perplexity"][level] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert figures["active_codes"][level] == len(counts)
    sizes = [len(part) for part in torch.arange(number).split(batch_size)]
    assert figures["batch_perplexity"] == pytest.approx([np.mean(sizes)] * 3)


def test_a_perfect_image_has_a_finite_psnr():
    pixels = torch.zeros(1, 1, 4, 4)
    codes = Codes((torch.zeros(1, 2, 2, 1).long(), torch.zeros(1, 1, 2, 2).long()), LAYOUT)
    figures = evaluate_tokenizer(_tokenizer(pixels, pixels, codes), Images(pixels), 1, create_accelerator())
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

    def model(label_maps):
        found = torch.stack([answers[tuple(label_map.flatten().tolist())] for label_map in label_maps])
        return ImageTokenizerOutput(loss=torch.tensor(1.0), reconstruction=found, terms={})

    figures = evaluate_tokenizer(model, Images(truth), 3, create_accelerator())
    expected = truth.flatten().numpy(), guess.flatten().numpy()
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(*expected), abs=1e-12)
    assert figures["mean_iou"] == pytest.approx(jaccard_score(*expected, average="macro"), abs=1e-12)
    assert "mse" not in figures
