"""Images in, images out: the one place for scaling, colour conversion, clamping and de-normalising."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .checks import image_height_width, is_list
from .image_decoding import decode_image

OUTPUT_TYPES = ("pil", "pt", "np")
_PIL_MODES = {1: "L", 3: "RGB"}
# Grey, grey and opacity, colour, colour and opacity.
_CHANNELS = (1, 2, 3, 4)
_MODES_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
GREY_MODES = ("1", "L", "LA", "La", "I", *_MODES_OF_16_BITS)


class HQImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Settings of `HQImageProcessor` besides those all image processors share.

    Args:
        num_channels: 1 for grey images, 3 for colour.
    """

    num_channels: int


class HQImageProcessor(TorchvisionBackend):
    """Prepares images for the image tokenizers and turns their output into images.

    Accepts one image or a list (also a column of `datasets`) of PIL images, NumPy arrays or tensors (H×W, H×W×C or
    C×H×W, also with a leading batch axis), paths, URLs, open files or bytes of image files, of any mode: grey (also of
    16 bits), colour, palette, transparent (laid over white) or bilevel. Files and PIL images are decoded as for
    training, see `decode_image`: upright, the first frame of an animation, up to `PIL.Image.MAX_IMAGE_PIXELS`. Integer
    pixels are multiplied by `rescale_factor`, those of uint16 arrays, as of 16-bit files, once they are reduced to 8
    bits (where `rescale_factor` is 1/255); floating-point pixels are taken to be in [0, 1] already, and booleans are 0
    and 1.

    Args:
        num_channels: 1 turns every image into grey, 3 into colour.
        do_resize: Whether to resize. Needs `size`.
        size: {"height", "width"} in pixels; an integer means a square.
        do_center_crop: With `do_resize`, whether to keep the aspect ratio: the image is scaled until it covers `size`
            and its centre is kept. False stretches it to `size`.
        resample: Interpolation of the resizing; bicubic by default.
        do_rescale: Whether to multiply integer pixels by `rescale_factor`.
        rescale_factor: 1/255 maps 8-bit pixels to [0, 1].
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`; the tokenizers of this library want
            pixels in [0, 1], so this is off. `postprocess` undoes it.
        image_mean: One number or one per channel.
        image_std: One number or one per channel.

    Examples:
        >>> import numpy as np
        >>> from hq_tokenizers import HQImageProcessor
        >>> processor = HQImageProcessor(size=32, do_resize=True)
        >>> pixel_values = processor(np.zeros((48, 64, 3), np.uint8))["pixel_values"]
        >>> pixel_values.shape
        torch.Size([1, 3, 32, 32])
        >>> processor.postprocess(pixel_values)[0].size
        (32, 32)
    """

    valid_kwargs = HQImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012

    num_channels = 3
    do_resize = False
    do_center_crop = True
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    image_mean = 0.5
    image_std = 0.5

    @classmethod
    def for_config(cls, config: PreTrainedConfig, **kwargs: Any) -> HQImageProcessor:
        """The processor of a tokenizer, from its configuration: images are brought to its size and channels."""
        return cls.for_image_size(config.image_size, config.num_channels, **kwargs)

    @classmethod
    def for_image_size(cls, image_size: int | Sequence[int], num_channels: int, **kwargs: Any) -> HQImageProcessor:
        """A processor that brings images to a size and a number of channels.

        Args:
            image_size: Height and width in pixels, or one number for both.
            num_channels: 1 or 3.
            **kwargs: Other settings.
        """
        height, width = image_height_width(image_size)
        return cls(do_resize=True, size={"height": height, "width": width}, num_channels=num_channels, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("num_channels") not in _PIL_MODES:
            raise ValueError(f"num_channels must be 1 (grey) or 3 (colour), got {kwargs.get('num_channels')!r}.")
        size = kwargs.get("size")
        if kwargs.get("do_resize") and not (size and size.height and size.width):
            raise ValueError(f'do_resize needs a size such as 32 or {{"height": 32, "width": 64}}, got {size!r}.')
        return kwargs

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        # The crop follows from `size`; the base class would ask for a second size.
        super()._validate_preprocess_kwargs(**kwargs | {"do_center_crop": False})

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images of paths, URLs, bytes and PIL images by `decode_image`; the base class has ways of its own."""
        if is_list(image_url_or_urls):
            return list(map(self.fetch_images, image_url_or_urls))
        return decode_image(image_url_or_urls)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        # The base class wants all images to have the axes of the first, and refuses H×W arrays.
        flat = list(_flat_images(images))
        if not flat:
            raise ValueError("There are no images to process: the list is empty.")
        names = [f"Image {index} of the list" for index in range(len(flat))] if len(flat) > 1 else [None]
        return list(map(decode_image, flat, names))

    def process_image(
        self, image: ImageInput, num_channels: int = 3, rescale_factor: float = 1 / 255, **kwargs: Any
    ) -> torch.Tensor:
        """One image as a (num_channels, H, W) tensor of its own dtype.

        Raises:
            ValueError: If the image has more than 4 channels, it cannot be told on which side of an array they are, or
                it is a PIL image of 32 bits.
        """
        kwargs.pop("do_convert_rgb", None)
        if isinstance(image, Image.Image):
            image = convert_pil(image, num_channels)
        else:
            if kwargs.get("input_data_format") is None and image.ndim == 3:
                kwargs["input_data_format"] = _side_of_channels(image)
            image = _booleans_to_floats(image)
            if image.dtype in (np.uint16, torch.uint16) and rescale_factor == type(self).rescale_factor:
                image = _to_8_bits(image)
        pixels = super().process_image(image, **kwargs)
        return _convert_channels(pixels, num_channels, 1.0 if pixels.is_floating_point() else 1 / rescale_factor)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool = False,
        size: SizeDict | None = None,
        resample: Any = None,
        do_center_crop: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = False,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        prepared = []
        for image in images:
            pixels = _to_unit_range(image, rescale_factor if do_rescale else 1.0)
            if do_resize and size is not None:
                pixels = self.fit(pixels, size, resample, do_center_crop)
            if do_normalize:
                pixels = (pixels - _per_channel(image_mean, pixels)) / _per_channel(image_std, pixels)
            prepared.append(pixels)
        shapes = sorted({tuple(pixels.shape[-2:]) for pixels in prepared})
        if len(shapes) > 1:
            sizes = ", ".join(f"{height}×{width}" for height, width in shapes)
            raise ValueError(
                f"Images of different sizes ({sizes}) do not fit into one batch: set do_resize=True and a size, or "
                "process them one by one."
            )
        return BatchFeature({"pixel_values": torch.stack(prepared)}, tensor_type=return_tensors or "pt")

    def fit(
        self,
        pixels: torch.Tensor,
        size: SizeDict,
        resample: Any = PILImageResampling.BICUBIC,
        do_center_crop: bool = True,
    ) -> torch.Tensor:
        """Brings an image to a size; training and inference both resize images by this.

        Args:
            pixels: (C, H, W), floats.
            size: Height and width.
            resample: Interpolation, antialiased.
            do_center_crop: Whether the image is scaled until it covers the size and its centre is kept; otherwise it
                is stretched.
        """
        if tuple(pixels.shape[-2:]) == (size.height, size.width):
            return pixels
        cover = covering_size(pixels, size) if do_center_crop else size
        return self.center_crop(self.resize(pixels, cover, resample).clamp_(0, 1), size)

    def postprocess(
        self, pixel_values: torch.Tensor, output_type: str = "pil"
    ) -> list[Image.Image] | torch.Tensor | np.ndarray:
        """Images of a tokenizer's or generator's output: de-normalised, clamped to [0, 1], in the type asked for.

        Args:
            pixel_values: (B, C, H, W), floats.
            output_type: "pil" for a list of PIL images (grey or colour), "pt" for a float32 tensor (B, C, H, W) on the
                same device, "np" for a float32 array (B, H, W, C).

        Raises:
            ValueError: If `output_type` is unknown, or the pixels have another shape.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}, got {output_type!r}.")
        if pixel_values.ndim != 4 or pixel_values.shape[1] not in _PIL_MODES:
            raise ValueError(
                f"pixel_values must have shape (batch, 1 or 3, height, width), got {tuple(pixel_values.shape)}."
            )
        pixels = pixel_values.detach().float()
        if self.do_normalize:
            pixels = pixels * _per_channel(self.image_std, pixels) + _per_channel(self.image_mean, pixels)
        pixels = pixels.clamp(0, 1)
        if output_type == "pt":
            return pixels
        channels_last = pixels.permute(0, 2, 3, 1).cpu()
        if output_type == "np":
            return channels_last.numpy()
        arrays = (channels_last * 255).round().to(torch.uint8).numpy()
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def _flat_images(images: Any) -> Iterator[Any]:
    """The single images of nested lists and of arrays with a batch axis."""
    if is_list(images) or getattr(images, "ndim", 0) == 4:
        for image in images:
            yield from _flat_images(image)
    else:
        yield images


def convert_pil(image: Image.Image, num_channels: int) -> Image.Image:
    """A PIL image of any mode as 8-bit grey or colour; what is transparent becomes white.

    Training and inference both read images through this.

    Args:
        image: The image, as `decode_image` gives it. 16-bit grey is divided by 257, which maps 65535 to 255.
        num_channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: For grey of 32 bits, whose white is unknown.
    """
    if image.mode in _MODES_OF_16_BITS:
        values = np.asarray(image).astype(np.uint16)
        # A PNG file may name one grey that is clear.
        values[values == image.info.get("transparency", -1)] = 65535
        image = Image.fromarray(_to_8_bits(values).numpy())
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"An image of Pillow's mode {image.mode} has 32 bits per pixel, and what is white in it is unknown: scale "
            "it to 8 bits (mode L), or to a floating-point array in [0, 1]."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(_PIL_MODES[num_channels])


def _to_8_bits(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint16 as uint8: 65535 becomes 255."""
    exact = values.astype(np.float32) if isinstance(values, np.ndarray) else values
    return torch.as_tensor(exact).float().div(257).round().to(torch.uint8)


def _side_of_channels(image: np.ndarray | torch.Tensor) -> ChannelDimension:
    """Whether the channels of three axes are the first or the last; of a tensor the first, where both may be."""
    first, last = (image.shape[axis] in _CHANNELS for axis in (0, -1))
    shape = tuple(image.shape)
    if not (first or last):
        raise ValueError(f"Images have 1 to 4 channels before or after height and width, got the shape {shape}.")
    if first and last and isinstance(image, np.ndarray):
        raise ValueError(
            f"An array of shape {shape} may have its channels first or last: say input_data_format='channels_last', or "
            "give a tensor (C, H, W) or a PIL image."
        )
    return ChannelDimension.FIRST if first else ChannelDimension.LAST


def _booleans_to_floats(image: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image.float() if image.dtype == torch.bool else image
    return image.astype(np.float32) if image.dtype == np.bool_ else image


def _convert_channels(image: torch.Tensor, num_channels: int, white: float) -> torch.Tensor:
    """(1 to 4, H, W) to (num_channels, H, W); a second or fourth channel is the opacity, over white."""
    if image.shape[0] not in _CHANNELS:
        raise ValueError(f"Images have 1 to 4 channels, got {image.shape[0]} in one of shape {tuple(image.shape)}.")
    if image.shape[0] in (2, 4):
        opacity = image[-1:].float() / white
        blended = image[:-1].float() * opacity + white * (1 - opacity)
        image = (blended if image.is_floating_point() else blended.round()).to(image.dtype)
    if image.shape[0] == num_channels:
        return image
    return tvF.grayscale_to_rgb(image) if num_channels == 3 else tvF.rgb_to_grayscale(image, num_output_channels=1)


def _to_unit_range(image: torch.Tensor, factor: float) -> torch.Tensor:
    """float32 pixels, checked to lie in [0, 1]: a wrong scale is silent and ruins everything after it."""
    # Divided as in training: the product with 1/255 is another float32 for every second pixel or so.
    pixels = image.float() if image.is_floating_point() else image.float() / (1 / factor)
    low, high = (float(bound) for bound in pixels.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"Pixels must lie in [0, 1] after rescaling, found [{low:.4g}, {high:.4g}] in an image of type "
            f"{str(image.dtype).removeprefix('torch.')}. Floating-point images are not rescaled: divide [0, 255] by "
            "255, map [-1, 1] by (x + 1) / 2; integer images are multiplied by rescale_factor."
        )
    return pixels.clamp(0, 1)


def covering_size(image: torch.Tensor, size: SizeDict) -> SizeDict:
    """The smallest size of the image's aspect ratio that covers `size`."""
    height, width = image.shape[-2:]
    scale = max(size.height / height, size.width / width)
    return SizeDict(height=max(size.height, round(height * scale)), width=max(size.width, round(width * scale)))


def _per_channel(value: float | Sequence[float], pixels: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=pixels.dtype, device=pixels.device).reshape(-1, 1, 1)
