"""One run at a time in an output folder.

The operating system holds the lock, and lets go of it when the process ends, however it ends: what a killed one leaves
behind is a file that nobody holds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hq_tokenizers.files import is_full_disk
from hq_tokenizers.processes import is_main_process, main_process_finds

LOCK = ".in-use.lock"
HOLDER = ".in-use.json"
"""Who holds the lock, for the message to whoever else wants it; without the lock it means nothing."""


@contextmanager
def lock_folder(option: str, folder: str | Path) -> Iterator[None]:
    """Keeps an output folder, which is made where there is none, for the command inside.

    Of several processes, all of which call this after `create_accelerator`, the main one holds the lock. A folder that
    was made here and in which nothing was written disappears again.

    Args:
        option: The option that names the folder, for the error.
        folder: The folder.

    Raises:
        BlockingIOError: In every process, if another command is writing there.
        OSError: In every process, if the folder cannot be made or written to.
    """
    root = Path(folder)
    made = [path for path in (root, *root.parents) if not path.exists()]
    lock, problem = FileLock(root / LOCK), None
    if is_main_process():
        problem = _acquire(lock, option, root)
    # Processes that went on without the main one would wait for it for ever.
    problem = main_process_finds(problem)
    if problem is not None:
        raise problem
    try:
        yield
    finally:
        if lock.is_locked:
            _release(lock, root, made)


def _acquire(lock: FileLock, option: str, root: Path) -> OSError | None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(sys.argv)[:500],
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        (root / HOLDER).write_text(json.dumps(holder) + "\n", encoding="utf-8")
    except Timeout:
        return BlockingIOError(
            f"{option} {str(root)!r} is in use: {_describe_holder(root)} is writing there. Wait until it has ended, "
            f"stop it, or choose another {option}."
        )
    except OSError as error:
        if is_full_disk(error):
            return error
        return type(error)(f"{option} {str(root)!r} cannot be made or written to ({error.strerror or error}).")
    return None


def _describe_holder(root: Path) -> str:
    try:
        holder = json.loads((root / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} ({holder['command']}, since {holder['since']})"
    except (OSError, ValueError):
        # It has begun or ended at this moment.
        return "another process"


def _release(lock: FileLock, root: Path, made: list[Path]) -> None:
    (root / HOLDER).unlink(missing_ok=True)
    # While it is held, so that nobody else's is taken away. Windows keeps a file that is open.
    with suppress(PermissionError):
        (root / LOCK).unlink(missing_ok=True)
    lock.release()
    for path in made:
        if not path.is_dir() or any(path.iterdir()):
            break
        path.rmdir()
