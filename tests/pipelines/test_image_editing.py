from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hq_tokenizers import CodeGroup, CodeLayout, Codes, HQImageProcessor
from hq_tokenizers.image_decoding import UnreadableImageError
from hq_tokenizers.pipelines.image_editing import prepare_image_and_mask, untouched_codes


@pytest.fixture(scope="module", params=["hierarchical_generator", "contextual_generator"])
def pipe(request):
    """8 × 12 colour images; codes on grids of 2 × 3 (one level) and 4 × 6 (two levels)."""
    return pipeline("hq-generation", model=request.getfixturevalue(request.param), batch_size=4)


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


def palette_image(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def png_of(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# Touches the coarse cell (0, 1) and the fine cells (1, 2) and (1, 3).
MASK = mask_of(slice(3, 4), slice(5, 7))


class TestReconstruct:
    def test_columns_are_lists(self, pipe, images):
        import datasets
        import pandas

        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]})
        expected = pipe.reconstruct(images)
        assert pipe.reconstruct(rows["image"], batch_size=2) == expected
        assert pipe.reconstruct(pandas.Series(images)) == expected
        with pytest.raises(TypeError, match=r"a Dataset of image, label: give one of these, such as data\['image'\]"):
            pipe.reconstruct(rows)
        with pytest.raises(TypeError, match="a dict of image, label: give one of these"):
            pipe.reconstruct(rows[:2])
        labels = rows["label"]
        assert pipe(labels, seed=rows["label"]) == pipe([0, 1, 0], seed=[0, 1, 0])

    def test_an_open_file_is_one_image(self, pipe, images):
        (expected,) = pipe.reconstruct(images[:1])
        data = png_of(images[0])
        assert pipe.reconstruct(BytesIO(data)) == expected
        assert pipe.reconstruct([BytesIO(data)]) == [expected]
        assert pipe.inpaint(BytesIO(data), BytesIO(png_of(Image.fromarray(~MASK & False)))).size == (12, 8)
        with pytest.raises(UnreadableImageError, match="image cannot be read"):
            pipe.reconstruct(BytesIO(b"no image"))

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


@pytest.fixture
def files(tmp_path):
    """An animation of three frames, a clear image and a turned one, all 8 × 12, and the pixels they show."""
    rng = np.random.default_rng(1)
    frames = [Image.new("L", (12, 8), level) for level in (40, 120, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    clear = np.dstack([rng.integers(0, 256, (8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8)])
    clear[:, 6:, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = rng.integers(0, 256, (12, 8, 3), np.uint8)
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    shown = [
        np.full((8, 12, 3), 40, np.uint8),
        np.where(clear[..., 3:] == 0, 255, clear[..., :3]).astype(np.uint8),
        np.rot90(stored, -1).copy(),
    ]
    return [tmp_path / name for name in ("moving.gif", "clear.png", "turned.png")], shown


class TestFiles:
    def test_one_image_per_file_and_the_same_as_of_arrays(self, pipe, files):
        paths, shown = files
        expected = pipe.reconstruct(shown)
        assert pipe.reconstruct(paths) == expected
        assert pipe.reconstruct([str(path) for path in paths], batch_size=1) == expected
        assert pipe.reconstruct([path.read_bytes() for path in paths]) == expected
        assert pipe.reconstruct([Image.open(path) for path in paths]) == expected
        assert pipe.reconstruct(paths[0]) == expected[0]
        assert pipe.reconstruct(paths[2].read_bytes()) == expected[2]

    def test_variations_and_inpainting_read_them_alike(self, pipe, files):
        paths, shown = files
        arguments = {"seed": 0, "output_type": "codes"}
        assert pipe.variations(paths, 1, **arguments) == pipe.variations(shown, 1, **arguments)
        assert pipe.inpaint(paths, MASK, **arguments) == pipe.inpaint(shown, MASK, **arguments)

    def test_what_cannot_be_read_is_named(self, pipe, files, tmp_path):
        (paths, _), broken = files, tmp_path / "broken.png"
        broken.write_bytes(paths[1].read_bytes()[:60])
        for method in (pipe.reconstruct, lambda images: pipe.variations(images, 1), lambda x: pipe.inpaint(x, MASK)):
            with pytest.raises(UnreadableImageError, match=r"^image\[1\] '.*broken\.png' cannot be read"):
                method([paths[0], broken])
            with pytest.raises(UnreadableImageError, match=r"^image\[1\] cannot be read"):
                method([paths[0], broken.read_bytes()])
        with pytest.raises(UnreadableImageError, match=r"^mask '.*broken\.png' cannot be read"):
            pipe.inpaint(paths[0], broken)


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
            ({"temprature": 1}, TypeError, "Did you mean temperature"),
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
        arguments = {"class_labels": ["cat", None, "dog"], "num_images": 2, "seed": 3, "output_type": "codes"}
        whole = pipe.inpaint(images, masks, batch_size=6, **arguments)
        for batch_size in (1, 4):
            assert pipe.inpaint(images, masks, batch_size=batch_size, **arguments) == whole
        assert pipe.inpaint(images[2], MASK, class_labels="dog", seed=8, output_type="codes") == whole[2][1]

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
            Image.fromarray(MASK.astype(np.uint8)),
            Image.fromarray(MASK.astype(np.uint8)).convert("RGB"),
            Image.fromarray(MASK.astype(np.uint16)),
            Image.fromarray(MASK.astype(np.int32)),
            Image.frombytes("I;16B", (12, 8), MASK.astype(">u2").tobytes()),
            palette_image(MASK, (0, 0, 0), (128, 0, 0)),
            palette_image(MASK, (0, 0, 0), (1, 1, 1)),
            palette_image(MASK, (0, 0, 0), (255, 255, 255)),
            palette_image(~MASK, (255, 255, 255), (0, 0, 0)),
            png_of(Image.fromarray(MASK.astype(np.uint8))),
            png_of(palette_image(MASK, (0, 0, 0), (128, 0, 0))),
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
        for mask in (np.zeros((8, 12), bool), Image.new("L", (12, 8)), Image.new("P", (12, 8))):
            assert pipe.inpaint(images[0], mask).tobytes() == images[0].tobytes()

    @pytest.mark.parametrize(
        "mask",
        [
            np.where(MASK, 100, 0),
            np.where(MASK, 0.4, 0.0),
            Image.fromarray(np.where(MASK, 2, 0).astype(np.uint8)),
            palette_image(np.where(MASK, 3, 0), (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)),
        ],
    )
    def test_a_mask_that_is_not_black_but_marks_nothing_is_refused(self, pipe, images, mask):
        with pytest.raises(ValueError, match=r"mask marks nothing: greys count from one half on, .* black and white"):
            pipe.inpaint(images[0], mask)

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

    def test_masks_of_another_size_in_the_same_proportions(self, pipe, images):
        around = mask_of(slice(2, 5), slice(4, 8))
        for factor in (2, 4):
            large = np.kron(MASK, np.ones((factor, factor), bool))
            pixels, repaint = prepare_image_and_mask(images[0], large, pipe.image_processor)
            found = repaint[0, 0].numpy()
            assert (found | MASK).sum() == found.sum()
            assert not (found & ~around).any()
            result = pipe.inpaint(images[0], large, seed=0, output_type="pt")
            assert torch.equal(result[:, ~found], pixels[0][:, ~found])
            assert (result[:, found] != pixels[0][:, found]).any()
        with pytest.raises(ValueError, match="same proportions"):
            pipe.inpaint(images[0], np.ones((16, 27), bool))

    def test_masks_as_lists_of_numbers_and_of_floats(self, pipe, images):
        expected = pipe.inpaint(images[0], MASK, seed=0)
        for mask in (MASK.tolist(), MASK.astype(int).tolist(), Image.fromarray(MASK.astype(np.float32))):
            assert pipe.inpaint(images[0], mask, seed=0) == expected
        assert pipe.inpaint(images[:2], [MASK.tolist()] * 2, seed=0)[0] == expected
        with pytest.raises(ValueError, match="mask: the rows of a list of numbers have one length"):
            pipe.inpaint(images[0], [[0, 1], [1]])

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"mask": MASK[:4]}, ValueError, "same height and width, .* got 4×12 and 8×12"),
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
