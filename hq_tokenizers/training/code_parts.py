"""Codes that are not complete yet, part by part on disk: an interrupted `encode` goes on after the last part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.encoded import PARTS, CodeRows, data_set, end_interrupted, with_names
from hq_tokenizers.data.passes import Position
from hq_tokenizers.files import read_json, replacing, write_json
from hq_tokenizers.reporting.reports import changes, check_same_call

if TYPE_CHECKING:
    from datasets import Dataset

CALL = "call.json"
_POSITION = b"position"


class CodeParts:
    """The finished parts, each an Arrow file of the batches that its name says; for the main process only.

    Args:
        output_dir: Folder that the codes are for.
        layout: Of the codes.
    """

    def __init__(self, output_dir: str | Path, layout: CodeLayout) -> None:
        self._output_dir = Path(output_dir)
        self._folder = self._output_dir / PARTS
        self._layout = layout

    def open(self, call: Mapping[str, Any]) -> int:
        """Makes the folder, or goes on with what is in it.

        Args:
            call: All that decides the codes, by name.

        Returns:
            How many rows are finished.

        Raises:
            ValueError: If the folder holds parts of another call, naming what differs.
        """
        end_interrupted(self._output_dir)
        path = self._folder / CALL
        finished = [_position_after(part).rows for part in _last_of_each(self._folder.glob("*.arrow"))]
        if finished:
            start_over = f"delete {str(self._folder)!r} to start over"
            check_same_call(
                "output_dir",
                self._output_dir,
                "the parts of unfinished codes",
                changes(call, read_json(path, start_over)),
                f" (the command that was interrupted goes on there), or {start_over}",
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(path, call)
        return sum(finished)

    def end_of(self, split: str, view: int) -> Position:
        """How far a view of a split is finished."""
        parts = self._parts(split, view)
        return _position_after(parts[-1]) if parts else Position()

    def write(self, split: str, view: int, first: Position, end: Position, rows: CodeRows) -> None:
        """Writes a part.

        Args:
            split: The split.
            view: The view.
            first: Where the part begins in it.
            end: Where it ends.
            rows: What is between.

        Raises:
            DiskFullError: If there was no space.
        """
        import pyarrow

        table = data_set(rows, self._layout).data.table
        schema = table.schema.with_metadata({**table.schema.metadata, _POSITION: json.dumps(end).encode()})
        name = f"{split}-{view:05d}-{first.batches:010d}-{end.batches:010d}.arrow"
        with (
            replacing(self._folder / name) as partial,
            pyarrow.OSFile(str(partial), "wb") as file,
            pyarrow.ipc.new_stream(file, schema) as stream,
        ):
            stream.write_table(table.cast(schema))

    def data_set(
        self,
        split: str,
        views: int,
        label_names: Sequence[str] | None = None,
        speaker_names: Sequence[str] | None = None,
    ) -> Dataset:
        """All parts of a split, view after view, mapped into memory.

        Args:
            split: The split.
            views: How many views it has.
            label_names: Names of the classes, or None.
            speaker_names: Names of the speakers, or None.
        """
        from datasets import Dataset, DatasetInfo, concatenate_datasets

        files = [path for view in range(views) for path in self._parts(split, view)]
        features = with_names(Dataset.from_file(str(files[0])).features, labels=label_names, speakers=speaker_names)
        return concatenate_datasets([Dataset.from_file(str(path), DatasetInfo(features=features)) for path in files])

    def largest_class(self, split: str) -> int:
        """The largest class of a split that has classes."""
        from pyarrow import compute

        return compute.max(self.data_set(split, views=1).data.column("labels")).as_py()

    def _parts(self, split: str, view: int) -> list[Path]:
        """The files of a view, in order.

        Raises:
            FileNotFoundError: If one is missing.
        """
        files = sorted(self._folder.glob(f"{split}-{view:05d}-*.arrow"))
        end = 0
        for path in files:
            first, last = map(int, path.stem.split("-")[-2:])
            if first != end:
                raise FileNotFoundError(
                    f"{str(self._folder)!r} has no part before {path.name}: put it back, or delete the folder to start "
                    "over."
                )
            end = last
        return files


def _last_of_each(files: Iterable[Path]) -> list[Path]:
    """The last part of every view of every split."""
    return list({path.name.rsplit("-", 2)[0]: path for path in sorted(files)}.values())


def _position_after(path: Path) -> Position:
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        return Position(*json.loads(stream.schema.metadata[_POSITION]))
