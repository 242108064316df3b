from __future__ import annotations

import pytest
import torch

from hq_tokenizers import Codes, HQVAEConfig, HQVAEModel, SQVAEConfig, SQVAEModel, vae
from hq_tokenizers.evaluation.pictures import decoded_codes, named_reconstructions, spread_over

SIZE = {"image_size": 8, "num_channels": 1, "hidden_size": 8, "codebook_dim": 4}
ONE = {"num_downsampling": 1, "codebook_size": 8}


def test_levels_are_named_and_decoded():
    config = HQVAEConfig(code_groups=["stride 4: 8", "stride 2: 8 x 2"], codebook_init_std=3.0, **SIZE)
    model, images = HQVAEModel(config).eval(), torch.rand(2, 1, 8, 8)
    versions = named_reconstructions(model, images)
    assert list(versions) == ["original", "level 1", "levels 1 to 2", "reconstruction"]
    assert torch.equal(versions["original"], images)
    codes = model.encode(images)
    for number, name in enumerate(list(versions)[1:], start=1):
        torch.testing.assert_close(versions[name], model.decode(codes, num_levels=number))
    assert not torch.equal(versions["level 1"], versions["reconstruction"])


@pytest.mark.parametrize(("num_rows", "expected"), [(10, [0, 2, 5, 7]), (4, [0, 1, 2, 3]), (3, [0, 1, 2]), (0, [])])
def test_rows_are_spread_over_a_split(num_rows, expected):
    assert spread_over(num_rows, 4).tolist() == expected


@pytest.mark.parametrize("config", [SQVAEConfig(**ONE, **SIZE), vae("digits", hidden_size=8, codebook_dim=4)])
def test_one_level_and_none_have_no_previews(config):
    versions = named_reconstructions(SQVAEModel(config).eval(), torch.rand(2, 1, 8, 8))
    assert list(versions) == ["original", "reconstruction"]


def test_codes_are_decoded_over_the_most_used_ones_before():
    config = HQVAEConfig(code_groups=["stride 4: 8", "stride 2: 8 x 2"], codebook_init_std=3.0, **SIZE)
    model = HQVAEModel(config).eval()
    codes = model.encode(torch.rand(6, 1, 8, 8))
    most_used = [torch.bincount(level.flatten(), minlength=8).argmax() for level in codes.levels()]
    indices = torch.tensor([5, 0, 7])
    for level in range(3):
        layout = codes.layout.truncate(level + 1)
        decoded = decoded_codes(model, codes, level, indices)
        for image, index in zip(decoded, indices, strict=True):
            held = [*most_used[:level], index]
            grids = [torch.empty(1, group.height, group.width, group.depth).long() for group in layout.groups]
            for (group, depth), code in zip(layout.levels(), held, strict=True):
                grids[group][..., depth] = code
            torch.testing.assert_close(image, model.decode(Codes(tuple(grids), layout))[0])
        assert not torch.equal(decoded[0], decoded[1])
