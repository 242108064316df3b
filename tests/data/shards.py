"""Streams of images whose grey levels count them, written for tests."""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from hq_tokenizers.options.data import DataConfig

SHARDS = (10, 4, 9, 7)  # images of each
TOTAL = sum(SHARDS)


def png(level: int) -> bytes:
    """An image of a level with a white edge on the right."""
    file = io.BytesIO()
    image = Image.new("L", (4, 4), level)
    image.paste(255, (3, 0, 4, 4))
    image.save(file, "PNG")
    return file.getvalue()


def write_tar(path, levels):
    with tarfile.open(path, "w") as tar:
        for level in levels:
            for name, content in ((f"{level:03d}.png", png(level)), (f"{level:03d}.cls", str(level % 5).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_parquet(path, levels):
    images = [{"bytes": png(level), "path": f"{level}.png"} for level in levels]
    parquet.write_table(pa.table({"image": images}), path, row_group_size=6)


def write_all(folder, write, ending):
    """Training images of the levels 0 to 29, in shards; of validation, 100 to 119."""
    folder.mkdir(exist_ok=True)
    first = 0
    for number, size in enumerate(SHARDS):
        write(folder / f"train-{number}.{ending}", range(first, first + size))
        first += size
    write(folder / f"test.{ending}", range(100, 120))
    return folder


def config_of(folder, name="webdataset", **options):
    return DataConfig(
        **{"name": name, "path": str(folder), "streaming": True, "num_workers": 0, "shuffle_buffer": 8, **options}
    )
