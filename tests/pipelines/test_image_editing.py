from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hq_tokenizers import CodeGroup, CodeLayout, Codes, HQImageProcessor
from hq_tokenizers.pipelines.image_editing import prepare_image_and_mask, untouched_codes


@pytest.fixture(scope="module")
def pipe(hierarchical_generator):
    """8 × 12 colour images; codes on grids of 2 × 3 (one level) and 4 × 6 (two levels)."""
    return pipeline("hq-generation", model=hierarchical_generator, batch_size=4)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="module")
def codes(pipe, images):
    return pipe.model.image_tokenizer.encode(pipe.image_processor(images)["pixel_values"])


def mask_of(rows: slice, columns: slice, size: tuple[int, int] = (8, 12)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


# Touches the coarse cell (0, 1) and the fine cells (1, 2) and (1, 3).
MASK = mask_of(slice(3, 4), slice(5, 7))


class TestReconstruct:
    @pytest.mark.parametrize("num_levels", [None, 1, 2, 3])
    def test_is_encoder_and_decoder(self, pipe, images, codes, num_levels):
        expected = pipe.model.image_tokenizer.decode(codes, num_levels=num_levels).clamp(0, 1)
        for batch_size in (1, 2, None):
            pixels = pipe.reconstruct(images, num_levels=num_levels, output_type="pt", batch_size=batch_size)
            torch.testing.assert_close(torch.stack(pixels), expected)

    def test_shapes_and_types(self, pipe, images, codes):
        single = pipe.reconstruct(images[0])
        assert (single.mode, single.size) == ("RGB", (12, 8))
        assert pipe.reconstruct([images[0]]) == [single]
        assert pipe.reconstruct([]) == []
        batch = np.stack([np.asarray(image) for image in images])
        assert len(pipe.reconstruct(batch)) == 3
        assert pipe.reconstruct(images[1], num_levels=2, output_type="codes") == codes[1].truncate(2)
        assert Codes.cat(pipe.reconstruct(images, output_type="codes", batch_size=2)) == codes

    def test_defaults_of_the_pipeline(self, hierarchical_generator, images):
        pipe = pipeline("hq-generation", model=hierarchical_generator, output_type="np")
        assert pipe.reconstruct(images[0]).shape == (8, 12, 3)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"image": 3}, TypeError, "image is an image .* or a list of images, got int"),
            ({"image": [[np.zeros((8, 12))]]}, TypeError, r"image\[0\] must be a single image, got list"),
            ({"num_levels": 4}, ValueError, "num_levels must be between 1 and 3"),
            ({"num_levels": 1.5}, ValueError, "num_levels must be an integer of at least 1, got 1.5"),
            ({"image": "nowhere.png"}, FileNotFoundError, "image: there is no image file 'nowhere.png'"),
            (
                {"image": [Path("no/where.png")]},
                FileNotFoundError,
                r"image\[0\]: there is no image file",
            ),
            ({"output_type": "jpg"}, ValueError, "output_type must be one of"),
            ({"batch_size": 0}, ValueError, "batch_size must be an integer"),
        ],
    )
    def test_refuses(self, pipe, images, arguments, error, message):
        with pytest.raises(error, match=message):
            pipe.reconstruct(**{"image": images[0]} | arguments)


class TestVariations:
    @pytest.mark.parametrize("keep_levels", [0, 1, 2, 3])
    def test_first_levels_are_kept_and_the_rest_drawn(self, pipe, images, codes, keep_levels):
        rows = pipe.variations(images, keep_levels, num_images=2, seed=0, output_type="codes")
        assert [len(row) for row in rows] == [2, 2, 2]
        for index, row in enumerate(rows):
            pairs = zip(*(variation.levels() for variation in row), codes[index].levels(), strict=True)
            for level, (first, second, given) in enumerate(pairs):
                if level < keep_levels:
                    assert torch.equal(first, given)
                    assert torch.equal(second, given)
                else:
                    assert not torch.equal(first, given)
                    assert not torch.equal(first, second)

    def test_all_levels_give_the_reconstruction(self, pipe, images):
        assert pipe.variations(images[0], keep_levels=3) == pipe.reconstruct(images[0])

    def test_neither_batch_size_nor_company_matter(self, pipe, images):
        def flat(*args, **kwargs):
            rows = pipe.variations(*args, keep_levels=1, class_labels="dog", output_type="codes", **kwargs)
            return torch.cat([codes.flatten() for row in rows for codes in (row if isinstance(row, list) else [row])])

        expected = flat(images, num_images=2, seed=5, batch_size=6)
        for batch_size in (1, 4):
            assert torch.equal(flat(images, num_images=2, seed=5, batch_size=batch_size), expected)
        assert torch.equal(flat([images[1]], seed=8), expected[3:4])
        assert torch.equal(flat([images[1]], seed=[8]), expected[3:4])

    def test_shapes(self, pipe, images):
        assert isinstance(pipe.variations(images[0], 1), Image.Image)
        assert len(pipe.variations(images[0], 1, num_images=2)) == 2
        assert len(pipe.variations([images[0]], 1)) == 1
        assert pipe.variations([], 1) == []

    def test_labels_and_settings_reach_the_prior(self, pipe, images, codes):
        arguments = {"class_labels": ["cat", "frog", None], "seed": 0, "temperature": 0.8, "top_k": 3}
        drawn = Codes.cat(pipe.variations(images, 1, output_type="codes", **arguments))
        mask = [torch.ones(1, 2, 3, 1, dtype=torch.bool), torch.zeros(1, 4, 6, 2, dtype=torch.bool)]
        expected = pipe.model.generate(
            ["cat", "frog", None], known_codes=codes, known_mask=mask, generator=0, temperature=0.8, top_k=3
        )
        assert drawn == expected.codes

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"keep_levels": 4}, ValueError, "keep_levels must be an integer from 0 to 3.* got 4"),
            ({"keep_levels": 1.0}, ValueError, "keep_levels must be an integer"),
            ({"class_labels": ["cat", "dog"]}, ValueError, "2 class_labels for 1 images"),
            ({"class_labels": "cow"}, ValueError, "Unknown class"),
            ({"temprature": 1}, TypeError, "did you mean temperature"),
            ({"num_images": 0}, ValueError, "num_images must be"),
            ({"image": None}, TypeError, "got NoneType"),
        ],
    )
    def test_refuses(self, pipe, images, arguments, error, message):
        with pytest.raises(error, match=message):
            pipe.variations(**{"image": images[0], "keep_levels": 1} | arguments)

    def test_images_of_another_size_need_resizing(self, hierarchical_generator):
        processor = HQImageProcessor(num_channels=3)
        pipe = pipeline("hq-generation", model=hierarchical_generator, image_processor=processor)
        with pytest.raises(ValueError, match=r"16×12 pixels has codes of the layout .*do_resize=True"):
            pipe.variations(np.zeros((16, 12, 3)), 1)


class TestInpaint:
    def test_kept_pixels_are_the_images(self, pipe, images):
        results = np.stack([np.asarray(result) for result in pipe.inpaint(images, MASK, seed=0)])
        given = np.stack([np.asarray(image) for image in images])
        np.testing.assert_array_equal(results[:, ~MASK], given[:, ~MASK])
        assert (results[:, MASK] != given[:, MASK]).any()

    def test_repainted_pixels_are_the_decoders(self, pipe, images):
        arguments = {"image": images[0], "mask": MASK, "seed": 0}
        pixels = pipe.inpaint(**arguments, output_type="pt")
        decoded = pipe.model.image_tokenizer.decode(pipe.inpaint(**arguments, output_type="codes"))[0].clamp(0, 1)
        torch.testing.assert_close(pixels[:, MASK], decoded[:, MASK])

    def test_codes_of_touched_positions_are_drawn(self, pipe, images, codes):
        drawn = Codes.cat(pipe.inpaint(images[0], MASK, num_images=20, seed=0, output_type="codes"))
        coarse, fine = ((new != old).any(dim=0) for new, old in zip(drawn.groups, codes[0].groups, strict=True))
        assert coarse[..., 0].nonzero().tolist() == [[0, 1]]
        for depth in range(2):
            assert fine[..., depth].nonzero().tolist() == [[1, 2], [1, 3]]

    def test_neither_batch_size_nor_company_matter(self, pipe, images):
        masks = [MASK, mask_of(slice(0, 4), slice(None)), MASK]
        whole = pipe.inpaint(images, masks, ["cat", None, "dog"], 2, seed=3, batch_size=6, output_type="codes")
        for batch_size in (1, 4):
            again = pipe.inpaint(
                images, masks, ["cat", None, "dog"], 2, seed=3, batch_size=batch_size, output_type="codes"
            )
            assert again == whole
        assert pipe.inpaint(images[2], MASK, "dog", seed=8, output_type="codes") == whole[2][1]

    @pytest.mark.parametrize(
        "mask",
        [
            MASK.astype(np.uint8) * 255,
            MASK.astype(np.uint8),
            MASK.astype(np.float32),
            MASK[..., None],
            torch.from_numpy(MASK),
            torch.from_numpy(MASK)[None].long(),
            Image.fromarray(MASK),
            Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB"),
            np.where(MASK, 140, 100).astype(np.uint8),
        ],
    )
    def test_kinds_of_masks(self, pipe, images, mask):
        assert pipe.inpaint(images[0], mask, seed=0) == pipe.inpaint(images[0], MASK, seed=0)

    def test_shapes(self, pipe, images):
        assert isinstance(pipe.inpaint(images[0], MASK), Image.Image)
        assert len(pipe.inpaint(images[0], MASK, num_images=2)) == 2
        assert [len(row) for row in pipe.inpaint(images, [MASK] * 3, num_images=2)] == [2, 2, 2]
        assert pipe.inpaint([], MASK) == []

    def test_nothing_masked_gives_the_image_back(self, pipe, images):
        assert pipe.inpaint(images[0], np.zeros((8, 12), bool)).tobytes() == images[0].tobytes()

    def test_larger_images(self, pipe):
        image = np.random.default_rng(1).integers(0, 256, (32, 40, 3), np.uint8)
        mask = mask_of(slice(17, 18), slice(20, 21), (32, 40))
        result = pipe.inpaint(image, mask, seed=0, output_type="pt")
        expected = pipe.image_processor(image)["pixel_values"][0]
        changed = (result != expected).any(dim=0)
        # 32 × 40 covers 8 × 12 when it shrinks by 10/3; of its height the middle is kept. The pixel lies at (4, 6).
        assert changed[4, 6]
        assert not changed[[0, 1, 2, 6, 7]].any()
        assert not changed[:, [0, 1, 2, 3, 8, 9, 10, 11]].any()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"mask": MASK[:4]}, ValueError, "same height and width, got 4×12 and 8×12"),
            ({"mask": [MASK, MASK]}, ValueError, "2 masks for 1 images"),
            ({"mask": None}, TypeError, "mask is an image .*NoneType"),
            ({"image": [[MASK]]}, TypeError, r"image\[0\] must be a single image"),
            ({"class_labels": ["cat", "dog"]}, ValueError, "2 class_labels for 1 images"),
            ({"seed": -1}, ValueError, "Seeds lie between"),
        ],
    )
    def test_refuses(self, pipe, images, arguments, error, message):
        with pytest.raises(error, match=message):
            pipe.inpaint(**{"image": images[0], "mask": MASK} | arguments)


def test_every_pixel_of_the_mask_counts():
    """However small a masked spot is against the pixels of the generator."""
    processor = HQImageProcessor.for_image_size(8, 1)
    layout = CodeLayout((CodeGroup(2, 2, (4,)), CodeGroup(4, 4, (4, 4))))
    for row, column in ((0, 0), (20, 44), (63, 63), (5, 40)):
        mask = np.zeros((64, 64), bool)
        mask[row, column] = True
        pixels, repaint = prepare_image_and_mask(np.zeros((64, 64)), mask, processor)
        assert pixels.shape == repaint.shape == (1, 1, 8, 8)
        assert repaint[0, 0, row // 8, column // 8]
        for kept, cell in zip(untouched_codes(repaint, layout), (32, 16), strict=True):
            assert not kept[0, row // cell, column // cell].any()
            assert kept.any()
