"""What the metrics share: running state instead of stored examples, merging, and the provenance of a result."""

from __future__ import annotations

import abc
import inspect
from typing import Any, Generic, Protocol, Self, TypeVar

import evaluate
import torch

from hq_tokenizers.codes import Codes
from hq_tokenizers.metrics.provenance import check_equal, library_versions
from hq_tokenizers.metrics.running.set_identity import SetIdentity
from hq_tokenizers.processes import is_distributed


class RunningState(Protocol):
    """Sums over what a process has seen; those of several processes merge into the sums over everything."""

    @property
    def num_images(self) -> int:
        """Number of images (or codes, label maps) the metric is about."""

    def merge(self, other: Any) -> None:
        """Adds another state of the same kind."""


State = TypeVar("State", bound=RunningState)


# Abstract, so that `evaluate.load`, which takes the first concrete metric it finds in a script, passes over it.
class StreamingMetric(evaluate.Metric, abc.ABC, Generic[State]):
    """An `evaluate.Metric` with running float64 statistics in place of a cache of examples.

    Args:
        reference_name: Name of the reference set, such as "cifar10".
        reference_split: Its split, such as "validation".
        resize_filter: How the images were brought to the size at which they are given, such as
            "centre crop, Lanczos"; "none" for images at their own size.
        **evaluate_options: What every `evaluate.Metric` takes (`config_name`, `experiment_id`, …).

    Raises:
        TypeError: If an option is unknown.
        ValueError: If `num_process` is not 1; processes are merged by `gather`.
    """

    def __init__(
        self,
        *,
        reference_name: str = "unnamed",
        reference_split: str = "unnamed",
        resize_filter: str = "none",
        **evaluate_options: Any,
    ) -> None:
        _check_options(type(self), evaluate_options)
        super().__init__(**evaluate_options)
        self.reference_name = reference_name
        self.reference_split = reference_split
        self.resize_filter = resize_filter
        self.reset()

    @abc.abstractmethod
    def _new_state(self) -> State:
        """An empty state."""

    @abc.abstractmethod
    def _update(self, inputs: dict[str, Any]) -> None:
        """Adds a batch to `self._state`; `inputs` maps each name of `features` to a batch or None."""

    @abc.abstractmethod
    def _result(self) -> dict[str, Any]:
        """The numbers, from `self._state`, with their provenance."""

    @abc.abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What the value depends on beside the data: goes into the provenance, must be equal for merging."""

    def __len__(self) -> int:
        return self._state.num_images

    def reset(self) -> None:
        """Forgets everything added so far."""
        self._state = self._new_state()
        self._gathered = False

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Adds a single example: an image (C, H, W) or PIL image, a label map (H, W), or the codes of one image.

        Raises:
            TypeError, ValueError: As `add_batch`.
        """
        example = {"predictions": prediction, "references": reference, **inputs}
        self.add_batch(**{name: value if value is None else _batch_of_one(value) for name, value in example.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """Adds a batch to the running statistics; a batch that is refused leaves them as they were.

        Raises:
            TypeError: If an input is of the wrong type.
            ValueError: If an input is unknown or missing, or its shape or range is wrong.
        """
        given = {"predictions": predictions, "references": references, **inputs}
        names = self._feature_names()
        unknown = [name for name, value in given.items() if name not in names and value is not None]
        if unknown:
            raise ValueError(f"{self.name} takes {', '.join(names)}; got {', '.join(unknown)}.")
        if self._gathered:
            raise RuntimeError(
                f"{self.name} has been gathered over processes: call compute() or reset() before adding."
            )
        batch = {name: given.get(name) for name in names}
        if all(value is None for value in batch.values()):
            raise ValueError(f"{self.name} takes {', '.join(names)}; got none of them.")
        with torch.no_grad():
            self._update(batch)

    def compute(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> dict[str, Any]:
        """The result over everything added (and over a batch given here), with its provenance; then starts afresh.

        Inputs of other metrics, which `evaluate.combine` passes to all of them, are ignored, as `evaluate` does.

        Raises:
            ValueError: If nothing or too little was added; what was added is kept.
        """
        given = {"predictions": predictions, "references": references, **inputs}
        batch = {name: given[name] for name in self._feature_names() if given.get(name) is not None}
        if batch:
            self.add_batch(**batch)
        if not len(self):
            raise ValueError(f"{self.name} has seen no {self._feature_names()[0]}: call add_batch() first.")
        result = self._result()
        self.reset()
        return result

    def merge(self, other: StreamingMetric[State]) -> None:
        """Adds what another metric of the same kind and settings has seen.

        Raises:
            ValueError: If the kind, a setting or the image size differs, naming both values.
        """
        ours = {"metric": self.name, **self._settings()}
        check_equal(ours, {"metric": other.name, **other._settings()}, "The other metric")
        self._state.merge(other._state)

    def gather(self) -> Self:
        """Merges the statistics of all processes of `torch.distributed` (which `accelerate` uses), on all of them.

        Call it once on every process, then `compute()` wherever the result is wanted. Does nothing with one process.

        Raises:
            RuntimeError: If called twice, which would count everything several times.
        """
        if not is_distributed():
            return self
        if self._gathered:
            raise RuntimeError(f"{self.name} has been gathered already: call compute() or reset() first.")
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, self._state)
        merged = self._new_state()
        for state in states:
            merged.merge(state)
        self._state, self._gathered = merged, True
        return self

    def _provenance(self, references: SetIdentity) -> dict[str, Any]:
        return {
            "metric": self.name,
            "num_images": len(self),
            "reference": {
                "name": self.reference_name,
                "split": self.reference_split,
                "sha256": references.sha256,
                "num_images": references.num_images,
            },
            "image_size": references.image_size,
            "resize_filter": self.resize_filter,
            **self._settings(),
            "library_versions": library_versions(),
        }


def _check_options(metric: type, options: dict[str, Any]) -> None:
    # `evaluate.Metric` swallows unknown arguments: a misspelt option would be ignored silently.
    known = inspect.signature(evaluate.EvaluationModule.__init__).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        own = inspect.signature(metric).parameters
        names = [name for name, parameter in own.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        raise TypeError(f"{metric.__name__} has no option {', '.join(unknown)}; its options are {', '.join(names)}.")
    if options.get("num_process", 1) != 1:
        raise ValueError(
            f"num_process is {options['num_process']}: these metrics merge processes by gather() and need no shared "
            "file system. Leave num_process at 1."
        )


def _batch_of_one(value: Any) -> Any:
    if isinstance(value, Codes):
        return value
    return value[None] if isinstance(value, torch.Tensor) else [value]
