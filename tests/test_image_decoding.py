"""A file gives the same pixels however it comes in, and what cannot be read is named."""

from __future__ import annotations

import base64
import http.server
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from hq_tokenizers.data.loading import load_image_folder, load_image_splits
from hq_tokenizers.image_decoding import UnreadableImageError, decode_image, image_endings
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.options.data import DataConfig

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 6, 5
COLOUR = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
# A clear, an opaque and a half-clear part.
ALPHA = np.where(np.arange(WIDTH) < 2, 0, np.where(np.arange(WIDTH) < 4, 255, 100)).astype(np.uint8)
ALPHA = np.broadcast_to(ALPHA, (HEIGHT, WIDTH))
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
LARGE = 200  # side of the image that is above a limit


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png_with_a_clear_value(clear: int) -> bytes:
    """16-bit grey with tRNS, which Pillow does not write."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(">H", clear)), chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(3, H, W) in [0, 1] of colours or greys with an opacity of 0 … 255."""
    colour = np.broadcast_to(colour[..., None] if colour.ndim == 2 else colour, (HEIGHT, WIDTH, 3)) / 255
    opacity = alpha[..., None] / 255
    return (colour * opacity + 1 - opacity).transpose(2, 0, 1)


def turned_jpeg(orientation: int) -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Stored 5 × 6 where it is turned by a quarter, so that the upright image has the size of the others.
    stored = COLOUR.transpose(1, 0, 2) if orientation >= 5 else COLOUR
    data = encode(Image.fromarray(stored), "JPEG", exif=exif, quality=95)
    plain = np.asarray(Image.open(BytesIO(encode(Image.fromarray(stored), "JPEG", quality=95)))) / 255
    turned = {3: np.rot90(plain, 2), 6: np.rot90(plain, -1), 8: np.rot90(plain, 1), 2: plain[:, ::-1]}[orientation]
    return data, turned.transpose(2, 0, 1)


def build_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """Bytes of image files of all kinds, and their pixels (3, H, W) in [0, 1] from the arrays they are made of."""
    opaque = np.full((HEIGHT, WIDTH), 255)
    rgba, la = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA])
    deep = np.broadcast_to(np.round(DEEP / 257) / 255, (3, HEIGHT, WIDTH))
    palette = Image.fromarray((np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3).astype(np.uint8), "P")
    palette.putpalette([200, 10, 30, 0, 0, 0, 7, 80, 255])
    indices = np.asarray(palette)
    palette_colours = np.array([[200, 10, 30], [0, 0, 0], [7, 80, 255]])[indices]
    frames = [Image.fromarray(np.where(indices == 0, first, 30).astype(np.uint8)) for first in (250, 10, 90)]
    files = {
        "rgb.png": (encode(Image.fromarray(COLOUR), "PNG"), over_white(COLOUR, opaque)),
        "rgba.png": (encode(Image.fromarray(rgba), "PNG"), over_white(COLOUR, ALPHA)),
        "la.png": (encode(Image.fromarray(la, "LA"), "PNG"), over_white(GREY, ALPHA)),
        "palette.png": (encode(palette, "PNG"), over_white(palette_colours, opaque)),
        "clear_palette.png": (
            encode(palette, "PNG", transparency=1),
            over_white(palette_colours, np.where(indices == 1, 0, 255)),
        ),
        "clear_colour.png": (
            encode(Image.fromarray(palette_colours.astype(np.uint8)), "PNG", transparency=(200, 10, 30)),
            over_white(palette_colours, np.where(indices == 0, 0, 255)),
        ),
        "deep.png": (encode(Image.fromarray(DEEP), "PNG"), deep),
        "clear_deep.png": (grey_png_with_a_clear_value(int(DEEP[2, 3])), np.where(DEEP[2, 3] == DEEP, 1, deep)),
        "bilevel.png": (
            encode(Image.fromarray(GREY > 127), "PNG"),
            np.broadcast_to(GREY > 127, (3, HEIGHT, WIDTH)).astype(float),
        ),
        "rgb.bmp": (encode(Image.fromarray(COLOUR), "BMP"), over_white(COLOUR, opaque)),
        "rgba.tiff": (encode(Image.fromarray(rgba), "TIFF"), over_white(COLOUR, ALPHA)),
        "deep.tiff": (encode(Image.fromarray(DEEP), "TIFF"), deep),
        "deep_big_endian.tiff": (
            encode(Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes()), "TIFF"),
            deep,
        ),
        "rgb.ppm": (encode(Image.fromarray(COLOUR), "PPM"), over_white(COLOUR, opaque)),
        "deep.pgm": (f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + DEEP.astype(">u2").tobytes(), deep),
        "rgba.webp": (encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), over_white(COLOUR, ALPHA)),
        "moving.gif": (
            encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            np.broadcast_to(np.where(indices == 0, 250, 30) / 255, (3, HEIGHT, WIDTH)),
        ),
        **{f"turned_{orientation}.jpg": turned_jpeg(orientation) for orientation in (2, 3, 6, 8)},
    }
    if features.check("avif"):
        data = encode(Image.fromarray(COLOUR), "AVIF")
        files["rgb.avif"] = data, np.asarray(Image.open(BytesIO(data))).transpose(2, 0, 1) / 255
    return files


FILES = build_files()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for name, (data, _) in FILES.items():
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def address(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def all_pixels(rows) -> torch.Tensor:
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    return batch["pixel_values"]


@pytest.fixture(scope="module")
def trained_on(folder, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """The pixels of every file as the commands read them: from a folder, a folder to evaluate, parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    names = sorted(FILES)
    data = [FILES[name][0] for name in names]
    tables = {"bytes": data, "records": [{"bytes": raw, "path": name} for name, raw in zip(names, data, strict=True)]}
    settings = {"train_split": "train", "validation_split": "train", "num_channels": 3}
    found = {}
    (rows,) = load_image_splits(DataConfig(name="imagefolder", path=str(folder), **settings), "train_split")
    found["imagefolder"] = dict(zip(names, all_pixels(rows), strict=True))
    rows, stems = load_image_folder(DataConfig(num_channels=3), folder, "images")
    assert sorted(stems) == sorted(Path(name).stem for name in names)
    by_stem = sorted(names, key=lambda name: (Path(name).stem, name))
    found["evaluated folder"] = dict(zip(by_stem, all_pixels(rows), strict=True))
    for kind, column in tables.items():
        path = tmp_path_factory.mktemp("parquet") / "a.parquet"
        parquet.write_table(pa.table({"image": column}), path)
        (rows,) = load_image_splits(DataConfig(name="parquet", path=str(path), **settings), "train_split")
        found[f"parquet of {kind}"] = dict(zip(names, all_pixels(rows), strict=True))
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_way_in_gives_the_pixels_of_the_file(name, folder, address, trained_on):
    data, expected = FILES[name]
    path = folder / name
    with Image.open(path) as opened:
        ways = {
            "text": str(path),
            "path": path,
            "bytes": data,
            "bytearray": bytearray(data),
            "record of bytes": {"bytes": data, "path": None},
            "record of a path": {"bytes": None, "path": str(path)},
            "URL": f"{address}/{name}",
            "data URL": "data:image/any;base64," + base64.b64encode(data).decode(),
            "PIL": opened,
        }
        processor = HQImageProcessor()
        found = {way: processor(source)["pixel_values"] for way, source in ways.items()}
        several = processor(list(ways.values()))["pixel_values"]
    assert several.shape == (len(ways), 3, HEIGHT, WIDTH)
    found |= {way: pixels[name][None] for way, pixels in trained_on.items()}
    for way, pixels in found.items():
        assert pixels.shape == (1, 3, HEIGHT, WIDTH), way
        assert torch.equal(pixels, found["text"]), way
    # Half-clear pixels are rounded to 8 bits by Pillow.
    np.testing.assert_allclose(found["text"][0].numpy(), expected, atol=1.01 / 255)
    exact = (ALPHA == 0) | (ALPHA == 255)
    np.testing.assert_allclose(found["text"][0].numpy()[:, exact], expected[:, exact], atol=1e-6)


def test_arrays_are_taken_as_they_are():
    for array in (COLOUR, torch.from_numpy(COLOUR)):
        assert np.shares_memory(np.asarray(decode_image(array)), COLOUR)


def views(array: np.ndarray) -> dict[str, np.ndarray | torch.Tensor]:
    """The values of an array in arrangements that torch or NumPy do not take."""
    readonly = array.copy()
    readonly.setflags(write=False)
    return {
        "upside down": array[::-1].copy()[::-1],
        "mirrored": np.fliplr(np.fliplr(array).copy()),
        "BGR as RGB": array[..., ::-1].copy()[..., ::-1],
        "columns first": np.asfortranarray(array),
        "other byte order": (array / 255).astype(">f4"),
        "long": (array / 255).astype(np.longdouble),
        "read only": readonly,
        "with a gradient": torch.tensor(array / 255, requires_grad=True),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", list(views(COLOUR)))
def test_arrays_of_any_arrangement(kind):
    found = HQImageProcessor()(views(COLOUR)[kind])["pixel_values"][0]
    np.testing.assert_allclose(found.numpy(), COLOUR.transpose(2, 0, 1) / 255, atol=1e-6)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((0, 6, 3), np.uint8), ValueError, r"mask is an array of shape \(0, 6, 3\)"),
        (torch.zeros(3, 0, 6), ValueError, r"shape \(3, 0, 6\)"),
        (np.zeros(6), ValueError, r"shape \(6,\)"),
        (np.zeros((6, 6), complex), TypeError, "mask is an array of complex128"),
        (torch.zeros(6, 6, dtype=torch.complex64), TypeError, "array of complex64"),
        (np.full((6, 6), None), TypeError, "array of object"),
        (np.array([["a"]]), TypeError, "array of <U1"),
    ],
)
def test_arrays_that_are_no_images(array, error, message):
    with pytest.raises(error, match=message):
        decode_image(array, "mask")


def test_open_files(tmp_path):
    data, expected = FILES["rgb.png"]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    processor = HQImageProcessor()
    with path.open("rb") as file:
        # Twice: it is read from its beginning.
        for given in (file, file, [BytesIO(data)]):
            np.testing.assert_allclose(processor(given)["pixel_values"][0].numpy(), expected, atol=1e-6)
    path.write_bytes(data[:50])
    with path.open("rb") as file, pytest.raises(UnreadableImageError, match=r"^The image '.*a\.png' cannot be read"):
        decode_image(file)
    with path.open() as file, pytest.raises(TypeError, match=r"mask is a file that is open as text: open it .*'rb'"):
        decode_image(file, "mask")


def test_a_pil_image_that_was_turned_already_stays_so():
    data, expected = FILES["turned_6.jpg"]
    image = decode_image(data)
    again = decode_image(image)
    assert again.size == image.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
    np.testing.assert_allclose(np.asarray(again).transpose(2, 0, 1) / 255, expected, atol=1e-6)


BROKEN = {
    "empty.png": b"",
    "text.png": b"hello",
    "half.png": FILES["rgb.png"][0][:80],
    "half.jpg": FILES["turned_3.jpg"][0][:-60],
    "half.webp": FILES["rgba.webp"][0][:40],
    "half.gif": FILES["moving.gif"][0][:30],
    "document.png": b"%PDF-1.4 \n1 0 obj",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "flipped.png": FILES["rgb.png"][0][:45] + b"\xff\xff" + FILES["rgb.png"][0][47:],
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_is_broken_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    for source in (path, str(path), {"bytes": None, "path": str(path)}):
        with pytest.raises(UnreadableImageError, match=f"{name}' cannot be read .*: repair it or leave it out"):
            decode_image(source)
    with pytest.raises(UnreadableImageError, match=r"^image\[3\] cannot be read"):
        decode_image(BROKEN[name], "image[3]")
    with pytest.raises(UnreadableImageError, match="Image 1 of the list cannot be read"):
        HQImageProcessor()([COLOUR, BROKEN[name]])


def test_what_is_not_there_is_named(tmp_path, address):
    for source in (
        "nowhere.png",
        Path("nowhere.png"),
        {"path": "nowhere.png", "bytes": None},
        "cat",
        tmp_path / "a.png",
    ):
        with pytest.raises(FileNotFoundError, match=r"^There is no image file '.*(nowhere.png|cat|a.png)'"):
            decode_image(source)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UnreadableImageError, match=r"folder\.png' cannot be read \(Is a directory\)"):
        decode_image(tmp_path / "folder.png")
    with pytest.raises(UnreadableImageError, match=r"nowhere\.png' cannot be read \(HTTP Error 404"):
        decode_image(f"{address}/nowhere.png")
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        decode_image("A" * 100_000)


@pytest.mark.parametrize("source", [3, None, {"pixels": 3}, {"bytes": None, "path": None}, object()])
def test_other_things_are_refused_by_type(source):
    with pytest.raises(TypeError, match="mask must be a path, a URL, an open file"):
        decode_image(source, "mask")


@pytest.fixture
def large(tmp_path) -> Path:
    path = tmp_path / "large.png"
    Image.new("L", (LARGE, LARGE)).save(path)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [LARGE * LARGE // 4, LARGE * LARGE - 1])
def test_an_image_above_the_limit_is_refused_and_the_limit_can_be_raised(large, limit, monkeypatch):
    pillow = Image.open(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    processor = HQImageProcessor(num_channels=1)
    for source in (large, large.read_bytes(), pillow):
        with pytest.raises(UnreadableImageError, match=r"more than the limit of .*raise data\.max_image_pixels"):
            processor(source)
        assert decode_image(source, max_pixels=LARGE * LARGE).size == (LARGE, LARGE)
        assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LARGE * LARGE)
    assert processor(large)["pixel_values"].shape[-2:] == (LARGE, LARGE)
    with pytest.raises(UnreadableImageError, match=f"more than the limit of {limit:,}"):
        decode_image(large, max_pixels=limit)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    """30,000 × 30,000 pixels in some kilobytes, whose data are not even there."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(
        UnreadableImageError, match=r"bomb\.png' has too many pixels, more than the limit of 89,478,485"
    ):
        decode_image(tmp_path / "bomb.png")


def test_the_limit_of_commands(large):
    config = {"name": "imagefolder", "path": str(large.parent), "validation_split": "train"}
    with pytest.raises(UnreadableImageError, match=r"large\.png' has .* more than the limit of 100 in all"):
        load_image_splits(DataConfig(**config, max_image_pixels=100), "train_split")
    (rows,) = load_image_splits(DataConfig(**config, max_image_pixels=LARGE * LARGE), "train_split")
    assert all_pixels(rows).shape == (1, 1, LARGE, LARGE)


def test_endings_are_those_of_images():
    assert {".png", ".jpg", ".jpeg", ".bmp", ".tiff", ".ppm", ".webp", ".gif"} <= image_endings()
    assert (".avif" in image_endings()) == features.check("avif")
    assert not {".pdf", ".h5", ".hdf", ".mpg", ".eps", ".grib"} & image_endings()
