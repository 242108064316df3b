"""Image files, open or not, URLs, bytes and PIL images as upright PIL images: the one place that decodes.

The processor, the pipeline, training, encoding and evaluation read images through `decode_image`, so that a file gives
the same pixels however it comes in: turned as its EXIF orientation says, and the first frame where it is animated.
"""

from __future__ import annotations

import functools
import os
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO, TextIOBase
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ._version import __version__

# What Pillow can only recognise, or would hand to another program (EPS to Ghostscript, WMF to Windows).
_NO_IMAGES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
# What files with the endings of these are in a folder of pictures is none: measurements, textures of games, icons.
_NO_PHOTOGRAPHS = (
    *("BLP", "CUR", "DCX", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT", "IPTC", "MCIDAS", "MSP"),
    *("PCD", "PIXAR", "SPIDER", "XVTHUMB"),
)
_SECONDS_FOR_A_DOWNLOAD = 60


class UnreadableImageError(ValueError):
    """A file or bytes that are no image, broken or cut off, or larger than the limit."""


def decode_image(
    source: Any, name: str | None = None, max_pixels: int | None = None
) -> Image.Image | np.ndarray | torch.Tensor:
    """An image as a PIL image: loaded, upright, of the mode of its file; arrays and tensors with their own values.

    Args:
        source: A path (text or `os.PathLike`), a URL (http, https or data), a file that is open for reading bytes,
            which is read from its beginning, bytes of an image file, the {"bytes", "path"} of `datasets`, a PIL image
            (its current frame), or an array or tensor (H, W), (H, W, C) or (C, H, W) of real numbers, whatever its
            strides, byte order and gradient.
        name: What errors call it; by default its path.
        max_pixels: Height times width up to which it is decoded, since a file of kilobytes can stand for gigabytes.
            None takes Pillow's limit, `PIL.Image.MAX_IMAGE_PIXELS`, where None is no limit.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If it is no image, broken, cut off or too large, or a URL cannot be read.
        TypeError: If it is none of the above.
        ValueError: If an array or tensor has another number of axes, or no pixels.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return _plain_array(source, name or "An image")
    if isinstance(source, Mapping) and {"bytes", "path"} & set(source):
        stored = source.get("bytes")
        source = source.get("path") if stored is None else stored
    if not (is_encoded(source) or isinstance(source, Image.Image)):
        raise TypeError(
            f"{name or 'An image'} must be a path, a URL, an open file, the bytes of an image file, a PIL image, an "
            f"array or a tensor, got {type(source).__name__}."
        )
    if isinstance(source, TextIOBase):
        raise TypeError(f"{name or 'An image'} is a file that is open as text: open it for bytes, by open(path, 'rb').")
    shown = _shown(source, name)
    try:
        with _pixel_limit(max_pixels):
            return _decode(source, shown)
    except FileNotFoundError as error:
        missing = f"here is no image file {str(source)!r}."
        raise FileNotFoundError(f"{name}: t{missing}" if name else f"T{missing}") from error
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:
        # Broken files make Pillow's decoders raise whatever their parts do: SyntaxError, EOFError, struct.error, ….
        raise UnreadableImageError(f"{shown} cannot be read ({_reason(error)}): repair it or leave it out.") from error


def is_encoded(source: Any) -> bool:
    """Whether this is a path, a URL, an open file, the bytes of one, or the {"bytes", "path"} of `datasets`."""
    if isinstance(source, Mapping):
        return bool({"bytes", "path"} & set(source))
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or is_open_file(source)


def is_open_file(source: Any) -> bool:
    """Whether this is a file that is open for reading, or behaves as one."""
    return hasattr(source, "read") and not isinstance(source, os.PathLike)


def is_url(source: Any) -> bool:
    """Whether this is a URL that `decode_image` reads."""
    return isinstance(source, str) and source.startswith(("http://", "https://", "data:"))


@functools.cache
def image_endings() -> frozenset[str]:
    """The endings of what counts as an image in a folder, such as ".png"; `decode_image` reads some others as well."""
    formats = {*_formats()} - {*_NO_PHOTOGRAPHS}
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in formats)


def _formats() -> list[str]:
    """Pillow's formats that are read, the common ones first."""
    Image.init()
    return [kind for kind in Image.ID if kind not in _NO_IMAGES]


def _plain_array(image: np.ndarray | torch.Tensor, name: str) -> np.ndarray | torch.Tensor:
    """The same values as both NumPy and torch take them: in the machine's byte order, one after the other, writable."""
    kind = str(image.dtype).removeprefix("torch.")
    if isinstance(image, torch.Tensor):
        is_real, image = not image.dtype.is_complex, image.detach()
    else:
        is_real = image.dtype.kind in "buif"
        if is_real:
            dtype = np.dtype(np.float64) if kind.startswith("float128") else image.dtype.newbyteorder("=")
            image = np.require(image, dtype, ["C", "W"])
    if not is_real:
        raise TypeError(f"{name} is an array of {kind}: pixels are integers, real numbers or truth values.")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(
            f"{name} is an array of shape {tuple(image.shape)}: one image has height and width, and up to four "
            "channels before or after them."
        )
    return image


def _reason(error: Exception) -> str:
    """What Pillow or the operating system said, without its name of the file."""
    if isinstance(error, UnidentifiedImageError):
        return "no image in a format that is read"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _shown(source: Any, name: str | None) -> str:
    """What errors call an image."""
    source = getattr(source, "name", None) if is_open_file(source) else source
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return f"{name or 'The image'} {text if len(text) <= 500 else text[:60] + '…'!r}"
    return name or "The image"


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow, which looks at sizes itself, has one limit for the whole process."""
    if max_pixels is None:
        yield
        return
    usual = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _decode(source: Any, shown: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return _load(source, shown)
    if is_url(source):
        source = _read_url(source)
    file = BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    try:
        # Pillow warns of what is refused here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_formats())
        with image:
            return _load(image, shown)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(_too_large(shown, "too many")) from error


def _load(image: Image.Image, shown: str) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnreadableImageError(_too_large(shown, f"{image.width}×{image.height}"))
    # Some formats know their orientation only when they are loaded, and TIFF is turned by loading it.
    image.load()
    upright = ImageOps.exif_transpose(image) if _is_turned(image) else image
    # Older versions of Pillow read 16-bit grey as mode I, also of PGM files today; neither has 32 bits.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        info = upright.info
        upright = Image.fromarray(np.asarray(upright).astype(np.uint16))
        upright.info = info
    return upright


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _too_large(shown: str, size: str) -> str:
    return (
        f"{shown} has {size} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS:,} in all, which keeps a small "
        "file from filling the memory. If it is to be trusted, raise data.max_image_pixels in commands, "
        "PIL.Image.MAX_IMAGE_PIXELS in Python."
    )


def _read_url(url: str) -> bytes:
    # Some hosts refuse the usual name of Python's client.
    request = urllib.request.Request(url, headers={"User-Agent": f"hq_tokenizers/{__version__}"})
    with urllib.request.urlopen(request, timeout=_SECONDS_FOR_A_DOWNLOAD) as response:
        return response.read()
