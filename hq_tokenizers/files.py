"""Files that are whole or not there: written beside, forced to the disk, then renamed; and what a full disk says."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNKNOWN_TO_THE_FILE_SYSTEM = {errno.EINVAL, errno.ENOTSUP}
PARTIAL = ".partial"


class DiskFullError(OSError):
    """There was no space for a file; says for which, and what to do.

    Args:
        path: The file, or the folder where it is not known which of its files.
        cause: What the system said.
    """

    def __init__(self, path: str | Path, cause: Exception | str) -> None:
        super().__init__(
            f"There was no space to write {path} ({cause}). What was written before is intact: free some space on "
            "that disk, then run the same command again."
        )
        self.errno = errno.ENOSPC
        self._said = str(path), str(cause)

    def __reduce__(self) -> tuple[Any, ...]:
        """What other processes are told; what the system raised may not be for them."""
        return type(self), self._said


@contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Says what could not be written when the disk is full: the errors of most libraries name no file.

    Raises:
        DiskFullError: If there was no space.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise DiskFullError(path, error) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that there was no space: on the disk, in a quota, or under a limit of files' sizes."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors, written in Rust, has the number in its text.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return number is not None and int(number[1]) in _FULL


def sync(path: Path) -> None:
    """Waits until a file, or the list of the files in a folder, is on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folders.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in _UNKNOWN_TO_THE_FILE_SYSTEM):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to: what is written there takes the place of `path` when the block ends.

    An interruption, a crash or a full disk leaves the file that was there before.

    Raises:
        DiskFullError: If there was no space.
    """
    partial = path.with_name(path.name + PARTIAL)
    with naming_full_disk(path):
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A folder to write to: the files that are written there take their places in `folder` when the block ends.

    For libraries that write several files. What is written is whole before the first file that was there before is
    replaced.

    Raises:
        DiskFullError: If there was no space.
    """
    partial = folder / f"new{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    with naming_full_disk(folder):
        try:
            partial.mkdir(parents=True)
            yield partial
            new = [path for path in partial.rglob("*") if path.is_file()]
            for path in new:
                sync(path)
            for path in new:
                place = folder / path.relative_to(partial)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
                sync(place.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        remedy: What to do when it is damaged, for the error.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is damaged, it holds no whole JSON ({error}): {remedy}.") from error
