"""Run by test_encoding: encodes over existing codes, killed at one moment after the other, and says what is left.

A kill comes either just before an operation on files, which the interpreter's audit events announce, or at a random
time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.training.encoding import encode_images

OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")


def in_child(work: Callable[[], None]) -> int:
    """Starts the work in a child process and gives its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def main(folder: Path, kills: int, random_kills: int) -> None:
    torch.set_num_threads(1)
    codes, kept = folder / "codes", folder / "kept"
    data = DataConfig(train_split="train[:100]", validation_split="test[:40]", test_split="test[40:60]")

    def encode(tokenizer: str) -> None:
        config = EncodeConfig(tokenizer=str(folder / tokenizer), output_dir=str(codes), batch_size=4, data=data)
        encode_images(config)

    def hashes() -> dict[str, str]:
        encoded = EncodedImages.load(codes)
        return {"tokenizer": encoded.tokenizer_sha256} | {name: s.sha256() for name, s in encoded.splits.items()}

    def encode_again(last: int) -> None:
        """Kills itself before the operation of that number."""
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in OPERATIONS and (event != "open" or str(codes) in str(arguments[0])):
                seen += 1
                (folder / "seen").write_text(str(seen)) if last < 0 and event != "open" else None
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        encode("new")

    encode("new")
    new = hashes()
    shutil.rmtree(codes)
    encode("old")
    old = hashes()
    assert all(old[name] != new[name] for name in new)
    codes.rename(kept)

    mended: set[str] = set()

    def left_by(start: Callable[[], int]) -> str:
        shutil.rmtree(codes, ignore_errors=True)
        shutil.copytree(kept, codes)
        os.waitpid(start(), 0)
        try:
            found = hashes()
            outcome = "old" if found == old else "new" if found == new else "mixture"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        left = f"{outcome} {sorted(path.name for path in codes.iterdir())}"
        if left not in mended:
            # Whatever it is, running the command again goes on, and mends it.
            mended.add(left)
            encode("new")
            assert hashes() == new
            assert not {".parts", ".new", ".old"} & {path.name for path in codes.iterdir()}
        return outcome

    def started_and_killed(seconds: float) -> int:
        child = in_child(lambda: encode("new"))
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        return child

    started = time.perf_counter()
    complete = left_by(lambda: in_child(lambda: encode_again(-1)))
    duration = time.perf_counter() - started
    count = int((folder / "seen").read_text())
    moments = [1 + index * (count - 1) // (kills - 1) for index in range(kills)]
    outcomes = [left_by(lambda last=last: in_child(lambda: encode_again(last))) for last in moments]
    draw = random.Random(0)
    timed = [left_by(lambda: started_and_killed(draw.uniform(0.3, 1) * duration)) for _ in range(random_kills)]
    result = {"complete": complete, "operations": dict(zip(moments, outcomes, strict=True)), "timed": timed}
    (folder / "outcomes.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
