from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image


def png(level: int, width: int = 4) -> bytes:
    """A grey image of one level, 4 pixels high."""
    file = BytesIO()
    Image.new("L", (width, 4), level).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def png_of():
    return png


@pytest.fixture
def write_parquet(tmp_path):
    """Writes columns without a word on what they are, and gives the file's path."""

    def write(columns: dict[str, Any], name: str = "data.parquet") -> Path:
        path = tmp_path / name
        parquet.write_table(pa.table(columns), path)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path):
    """cat/0.png … cat/2.png and dog/0.png … dog/2.png."""
    root = tmp_path / "photos [2024]"
    for index, (name, number) in enumerate((name, number) for name in ("cat", "dog") for number in range(3)):
        path = root / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index * 40))
    return root


@pytest.fixture
def levels():
    """The grey level of every image of rows."""

    def read(rows) -> list[int]:
        return [int(level) for level in np.asarray(rows.images)[:, 0, 0, 0]]

    return read
