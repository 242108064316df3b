"""Sampling that shows how far it is: the steps of a call, as they are done, then its result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import Queue
from typing import Any, Generic, TypeVar

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.priors.progress import PartialCodes, StepCallback

T = TypeVar("T")

_SECONDS = 0.3


@dataclass(frozen=True)
class Step:
    """Where sampling is.

    Args:
        done: Steps that are done.
        total: Steps in all.
        images: What there is so far, a PIL image for each of the batch.
    """

    done: int
    total: int
    images: list[Any]


@dataclass(frozen=True)
class Result(Generic[T]):
    """What the call returned."""

    value: T


class _NobodyLooks(Exception):  # noqa: N818
    """Ends sampling whose page was closed."""


def sampling_steps(
    pipe: HQGenerationPipeline, call: Callable[[StepCallback], T], seconds: float = _SECONDS
) -> Iterator[Step | Result[T]]:
    """Runs a call of the pipeline in a thread and tells of its steps.

    Args:
        pipe: The pipeline, whose `preview` makes the images.
        call: Called with what to give the pipeline as `callback_on_step_end`. When the iterator is closed before its
            end, sampling stops at the next step.
        seconds: Least time between two steps that are told of; making a preview costs a decode.

    Returns:
        The steps, then the result.

    Raises:
        Exception: What the call raises.
    """
    told: Queue[Step | Result[T] | BaseException] = Queue()
    closed = threading.Event()
    last = time.monotonic()

    def on_step(done: int, total: int, partial: PartialCodes) -> None:
        nonlocal last
        if closed.is_set():
            raise _NobodyLooks
        if time.monotonic() - last >= seconds and done < total:
            told.put(Step(done, total, pipe.preview(partial)))
            last = time.monotonic()

    def work() -> None:
        try:
            told.put(Result(call(on_step)))
        except BaseException as error:  # The other thread raises it.
            told.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            item = told.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Result):
                return
    finally:
        closed.set()
        worker.join()


def gallery_steps(
    pipe: HQGenerationPipeline, call: Callable[..., Any], arguments: Mapping[str, Any]
) -> Iterator[tuple[list[tuple[Any, str]], str]]:
    """What a gallery and the line below it show while a call draws the images of one input.

    Args:
        pipe: The pipeline.
        call: Called with the arguments, the batch size and `callback_on_step_end`.
        arguments: Those of `SamplingControls.arguments`.

    Returns:
        PIL images with their captions, and how far it is; last the images that were asked for.
    """
    number, seed = arguments["num_images"], arguments.get("seed")
    captions = [""] * number if seed is None else [f"seed {seed + index}" for index in range(number)]
    began = time.monotonic()
    for item in sampling_steps(
        pipe, lambda on_step: call(**arguments, batch_size=number, callback_on_step_end=on_step)
    ):
        if isinstance(item, Step):
            yield list(zip(item.images, captions, strict=True)), f"Step {item.done} of {item.total} …"
            continue
        images = item.value if isinstance(item.value, list) else [item.value]
        said = f"{number} image{'s' * (number > 1)} in {time.monotonic() - began:.1f} s."
        yield list(zip(images, captions, strict=True)), said
