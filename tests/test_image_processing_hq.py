from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hq_tokenizers.image_processing_hq import HQImageProcessor

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 10), dtype=np.uint8)


def pixels(images, **settings) -> torch.Tensor:
    return HQImageProcessor(**settings)(images)["pixel_values"]


class TestInputs:
    @pytest.mark.parametrize(
        "image",
        [
            Image.fromarray(COLOUR),
            COLOUR,
            COLOUR.transpose(2, 0, 1),
            torch.from_numpy(COLOUR).permute(2, 0, 1),
            COLOUR.astype(np.int64),
            (COLOUR / 255).astype(np.float32),
            torch.from_numpy(COLOUR / 255).permute(2, 0, 1),
            COLOUR[None],
        ],
        ids=["pil", "hwc", "chw", "tensor", "int64", "float32", "float64 tensor", "batched"],
    )
    def test_every_kind_gives_the_same_pixels(self, image):
        expected = torch.from_numpy(COLOUR.transpose(2, 0, 1)[None] / 255).float()
        result = pixels(image)
        assert (result.shape, result.dtype) == ((1, 3, 6, 10), torch.float32)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(pixels([image]), expected)

    @pytest.mark.parametrize("image", [Image.fromarray(GREY), GREY, GREY[None], torch.from_numpy(GREY)])
    def test_grey(self, image):
        expected = torch.from_numpy(GREY / 255).float()
        torch.testing.assert_close(pixels(image, num_channels=1), expected[None, None])
        torch.testing.assert_close(pixels(image, num_channels=3), expected.expand(1, 3, 6, 10))

    @pytest.mark.parametrize("image", [Image.fromarray(COLOUR), COLOUR, COLOUR / 255])
    def test_colour_to_grey_is_luma(self, image):
        luma = (COLOUR @ np.array([0.299, 0.587, 0.114])) / 255
        result = pixels(image, num_channels=1)
        np.testing.assert_allclose(result[0, 0].numpy(), luma, atol=1.01 / 255)

    def test_bilevel_and_palette(self):
        bilevel = Image.fromarray(GREY).point(lambda value: 255 * (value > 127), mode="1")
        np.testing.assert_array_equal(pixels(bilevel, num_channels=1)[0, 0].numpy(), (GREY > 127).astype(np.float32))
        palette = Image.fromarray(COLOUR).quantize(8)
        expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(pixels(palette)[0].numpy(), expected, atol=1e-6)

    def test_transparent_pixels_become_white(self):
        rgba = np.concatenate([COLOUR, np.zeros((6, 10, 1), np.uint8)], axis=-1)
        rgba[:, :5, 3] = 255
        for image in (Image.fromarray(rgba), rgba, (rgba / 255).astype(np.float32)):
            result = pixels(image)[0]
            np.testing.assert_allclose(result[:, :, :5].numpy(), COLOUR[:, :5].transpose(2, 0, 1) / 255, atol=1e-6)
            assert (result[:, :, 5:] == 1).all()

    def test_several_kinds_in_one_list(self):
        result = pixels([Image.fromarray(GREY), COLOUR, torch.from_numpy(COLOUR / 255).permute(2, 0, 1)])
        assert result.shape == (3, 3, 6, 10)
        torch.testing.assert_close(result[1], result[2])

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (COLOUR.astype(np.float32), r"float32.*divide \[0, 255\] by 255"),
            (COLOUR / 127.5 - 1, r"map \[-1, 1\]"),
            (np.full((6, 6, 3), 65535, np.int32), r"\[257, 257\] in an image of type int32"),
            (np.full((4, 4), np.nan), r"\[nan, nan\]"),
        ],
    )
    def test_wrong_range(self, image, message):
        with pytest.raises(ValueError, match=message):
            pixels(image)

    def test_arrays_of_16_bits_are_what_pil_images_of_them_are(self):
        deep = RNG.integers(0, 65536, (6, 10), dtype=np.uint16)
        expected = pixels(Image.fromarray(deep), num_channels=1)
        np.testing.assert_allclose(expected[0, 0].numpy(), deep / 65535, atol=0.51 / 255)
        for array in (deep, deep[..., None], torch.from_numpy(deep), deep.astype(">u2")):
            assert torch.equal(pixels(array, num_channels=1), expected)

    def test_grey_with_opacity(self):
        array = np.dstack([GREY, np.where(GREY > 99, 255, 0).astype(np.uint8)])
        expected = torch.from_numpy(np.where(GREY > 99, GREY, 255) / 255).float()
        for image in (array, Image.fromarray(array, "LA"), torch.from_numpy(array).permute(2, 0, 1), array / 255):
            torch.testing.assert_close(pixels(image, num_channels=1)[0, 0], expected)
            torch.testing.assert_close(pixels(image), expected.expand(1, 3, 6, 10))

    def test_channels_on_either_side(self):
        flat = RNG.integers(0, 256, (1, 50, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match=r"shape \(1, 50, 3\) may have its channels first or last: say input_data"):
            pixels(flat)
        assert pixels(flat, input_data_format="channels_last").shape == (1, 3, 1, 50)
        assert pixels(torch.from_numpy(flat)).shape == (1, 3, 50, 3)
        assert pixels(Image.fromarray(flat)).shape == (1, 3, 1, 50)

    def test_columns(self):
        import datasets
        import pandas

        images = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1])]
        expected = pixels(images)
        for column in (datasets.Dataset.from_dict({"image": images})["image"], pandas.Series(images)):
            assert torch.equal(pixels(column), expected)

    def test_wrong_number_of_channels(self):
        with pytest.raises(ValueError, match="channel"):
            pixels(np.zeros((6, 5, 7), np.uint8))

    def test_different_sizes(self):
        with pytest.raises(ValueError, match=r"6×10, 8×8.*do_resize=True"):
            pixels([COLOUR, np.zeros((8, 8, 3), np.uint8)])

    def test_sixteen_bit_factor(self):
        result = pixels(np.full((4, 4), 65535, np.uint16), num_channels=1, rescale_factor=1 / 65535)
        assert (result == 1).all()


class TestResizing:
    def test_covers_and_keeps_the_centre(self):
        # A 20 × 60 image with a white middle third is 8 × 24 when it covers 8 × 8: only the middle is left.
        image = np.zeros((20, 60), np.uint8)
        image[:, 20:40] = 255
        result = pixels(image, num_channels=1, do_resize=True, size=8, resample=Image.Resampling.NEAREST)
        assert result.shape == (1, 1, 8, 8)
        assert (result == 1).all()

    def test_stretches(self):
        image = np.zeros((20, 60), np.uint8)
        image[:, 20:40] = 255
        size = {"height": 4, "width": 6}
        result = pixels(
            image, num_channels=1, do_resize=True, size=size, do_center_crop=False, resample=Image.Resampling.NEAREST
        )
        expected = torch.tensor([0, 0, 1, 1, 0, 0]).float().expand(1, 1, 4, 6)
        assert torch.equal(result, expected)

    @pytest.mark.parametrize("shape", [(7, 9), (9, 7), (8, 8), (100, 33), (5, 40), (5, 5)])
    @pytest.mark.parametrize("size", [(8, 8), (8, 12), (12, 8)])
    def test_any_image_becomes_the_size(self, shape, size):
        processor = HQImageProcessor.for_image_size(size, num_channels=3)
        result = processor(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))["pixel_values"]
        assert result.shape == (1, 3, *size)
        assert 0 <= result.min() <= result.max() <= 1

    def test_close_to_pillow(self):
        image = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
            (70, 50), Image.Resampling.BICUBIC
        )
        expected = np.asarray(image.resize((35, 25), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
        result = pixels(image, do_resize=True, size={"height": 25, "width": 35})
        np.testing.assert_allclose(result[0].numpy(), expected, atol=2 / 255)

    def test_needs_a_size(self):
        with pytest.raises(ValueError, match="do_resize needs a size"):
            HQImageProcessor(do_resize=True)


class TestOutput:
    @pytest.mark.parametrize(("array", "num_channels", "mode"), [(COLOUR, 3, "RGB"), (GREY, 1, "L")])
    def test_there_and_back(self, array, num_channels, mode):
        processor = HQImageProcessor(num_channels=num_channels)
        (image,) = processor.postprocess(processor(array)["pixel_values"])
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), array)

    def test_normalisation_is_undone(self):
        processor = HQImageProcessor(do_normalize=True, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.5])
        normalised = processor(COLOUR)["pixel_values"]
        expected = (COLOUR / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.5]
        np.testing.assert_allclose(normalised[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(processor.postprocess(normalised)[0]), COLOUR)

    def test_clamps_and_rounds(self):
        values = torch.tensor([-0.3, 0.5 / 255 + 1e-4, 0.5, 1.4]).reshape(1, 1, 2, 2)
        processor = HQImageProcessor(num_channels=1)
        assert np.asarray(processor.postprocess(values)[0]).ravel().tolist() == [0, 1, 128, 255]
        assert processor.postprocess(values, "pt").flatten()[[0, 3]].tolist() == [0, 1]
        assert values.min() < 0

    def test_types(self):
        values = torch.rand(2, 3, 4, 5, dtype=torch.bfloat16, requires_grad=True)
        processor = HQImageProcessor()
        tensor, array = processor.postprocess(values, "pt"), processor.postprocess(values, "np")
        assert (tensor.shape, tensor.dtype, tensor.requires_grad) == ((2, 3, 4, 5), torch.float32, False)
        assert (array.shape, array.dtype) == ((2, 4, 5, 3), np.float32)
        np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)

    def test_refuses(self):
        with pytest.raises(ValueError, match="'pil', 'pt', 'np', got 'jpeg'"):
            HQImageProcessor().postprocess(torch.rand(1, 3, 4, 4), "jpeg")
        with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
            HQImageProcessor().postprocess(torch.rand(3, 4, 4))


def test_saved_and_loaded(tmp_path):
    processor = HQImageProcessor.for_image_size((8, 12), num_channels=1, do_center_crop=False, image_std=[0.3])
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    loaded = HQImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    torch.testing.assert_close(loaded(COLOUR)["pixel_values"], processor(COLOUR)["pixel_values"])


def test_found_by_the_tokenizers_config(tmp_path):
    from hq_tokenizers import SQVAEConfig

    SQVAEConfig().save_pretrained(tmp_path)
    HQImageProcessor(num_channels=1).save_pretrained(tmp_path)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), HQImageProcessor)


@pytest.mark.parametrize("num_channels", [0, 2, 4])
def test_number_of_channels(num_channels):
    with pytest.raises(ValueError, match=f"1 .grey. or 3 .colour., got {num_channels}"):
        HQImageProcessor(num_channels=num_channels)


def test_no_images():
    with pytest.raises(ValueError, match="the list is empty"):
        pixels([])


def test_settings_of_one_call():
    result = HQImageProcessor()(COLOUR, num_channels=1, do_resize=True, size=4)["pixel_values"]
    assert result.shape == (1, 1, 4, 4)


class TestDepths:
    @pytest.mark.parametrize("num_channels", [1, 3])
    def test_pil_images_of_16_bits(self, num_channels):
        values = np.array([[0, 257], [32896, 65535]], np.uint16)
        expected = torch.from_numpy(values.astype(np.float64) / 65535).float().expand(1, num_channels, 2, 2)
        result = pixels(Image.fromarray(values), num_channels=num_channels)
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("values", [np.array([[70000, 0]], np.int32), np.array([[0.5, 0]], np.float32)])
    def test_pil_images_of_32_bits_are_refused(self, values):
        with pytest.raises(ValueError, match="32 bits per pixel, and what is white in it is unknown"):
            pixels(Image.fromarray(values), num_channels=1)

    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
    def test_booleans_are_0_and_1(self, kind):
        mask = GREY > 127
        result = pixels(kind(mask), num_channels=1)
        assert torch.equal(result[0, 0], torch.from_numpy(mask).float())
