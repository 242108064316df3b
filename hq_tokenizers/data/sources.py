"""From a `DataConfig` to `datasets` splits, with every mistake named before any work is done."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hq_tokenizers.image_decoding import image_endings
from hq_tokenizers.options.data import FILE_NAMES, DataConfig
from hq_tokenizers.sound_decoding import SOUND_ENDINGS

from .digits import load_digits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, DatasetDict, IterableDataset
    from datasets.data_files import DataFilesDict

_TARS = (".tar", ".tar.gz", ".tgz")
_ARCHIVES = (".zip", *_TARS, ".7z", ".rar")


def load_source(config: DataConfig) -> DatasetDict:
    """All splits of the configured data set.

    Raises:
        FileNotFoundError: If the path does not exist, holds no such files, or a pattern matches nothing.
        ValueError: If files cannot be read, or parquet files are not those of one data set.
        ConnectionError: If a Hub data set cannot be reached.
    """
    from datasets import DatasetDict
    from datasets.exceptions import DatasetGenerationError

    if config.name == "digits":
        return load_digits()
    try:
        source = _load_files(config) if config.name in FILE_NAMES else _load_hub_dataset(config)
    except DatasetGenerationError as error:
        # Its own text says that there was an error; what it was is the first of its causes.
        raise ValueError(f"data.path {config.path!r} cannot be read: {_first_cause(error)}") from error
    if not isinstance(source, DatasetDict):
        raise TypeError(f"data.name {config.name!r} gave {type(source).__name__}, expected splits.")
    return source


def select_split(source: DatasetDict, split: str, option_name: str = "split") -> Dataset:
    """The rows of a split or of a slice of it, such as "train[:40000]", "train[90%:]" or "train+test".

    Args:
        source: All splits.
        split: What to select, in the notation of `datasets`.
        option_name: The option to name in errors.

    Raises:
        ValueError: If the split is unknown, malformed, empty, or reaches beyond the data.
    """
    from datasets import ReadInstruction, concatenate_datasets

    sizes = {name: rows.num_rows for name, rows in source.items()}
    accepted = ", ".join(f"{name} ({size} rows)" for name, size in sizes.items())
    others = [name for name in sizes if name != "train"]
    try:
        asked = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f'data.{option_name} {split!r} is not one of {accepted}, nor a slice of one such as "train[:1000]".'
            + (f" Set data.{option_name} to {others[0]}." if len(others) == 1 and split == "test" else "")
        ) from error
    for name, bounds in re.findall(r"(\w+)\[([-\d:]+)\]", split):
        # `datasets` silently cuts a slice to what is there, which would train on less than the recipe says.
        if any(abs(int(bound)) > sizes[name] for bound in bounds.split(":") if bound):
            raise ValueError(f"data.{option_name} {split!r} reaches beyond the data: there are {accepted}.")
    parts = [source[str(part.splitname)].select(range(part.from_ or 0, part.to)) for part in asked]
    rows = concatenate_datasets(parts)
    if rows.num_rows == 0:
        raise ValueError(f"data.{option_name} {split!r} selects no rows; there are {accepted}.")
    return rows


def image_files(root: Path) -> list[Path]:
    """The image files of a folder and its subfolders, but for hidden ones and links that lead nowhere.

    Args:
        root: The folder.

    Raises:
        ValueError: For a name that is not UTF-8.
    """
    # Patterns match no hidden names, and "**" follows links to folders.
    found = (Path(name) for name in glob.iglob("**/*", root_dir=root, recursive=True))
    # `datasets` leaves out folders such as __MACOSX as well.
    usual = (name for name in found if not any(part.startswith("__") for part in name.parent.parts))
    return [root / name for name in usual if _is_file_of(root / name, image_endings())]


def _is_file_of(path: Path, endings: frozenset[str]) -> bool:
    if path.suffix.lower() not in endings or not path.is_file():
        return False
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # Arrow, which keeps the paths, stores nothing else.
        raise ValueError(f"The file name {os.fsencode(path)!r} is not UTF-8: rename the file.") from error
    return True


def _load_files(config: DataConfig) -> DatasetDict:
    from datasets import load_dataset

    # Absolute, since `datasets` takes relative names to be relative to the folder that it is given besides.
    root = Path(str(config.path)).expanduser().absolute()
    files = _data_files(config, root)
    if config.name in ("imagefolder", "audiofolder"):
        return _folder_builder(root, files, sounds=config.name == "audiofolder").as_dataset()
    chosen = _whole_files(config, root, files)
    return load_dataset(config.name, data_files={split: list(map(glob.escape, many)) for split, many in chosen.items()})


def load_streams(config: DataConfig) -> tuple[dict[str, IterableDataset], dict[str, list[str]]]:
    """All splits of the configured data set as streams, and what they are made from: names and sizes of their files.

    Raises:
        FileNotFoundError: If the path does not exist, holds no such files, or a pattern matches nothing.
        ValueError: If parquet files are broken, or not those of one data set.
        ConnectionError: If a Hub data set cannot be reached.
    """
    from datasets import load_dataset

    if config.name not in FILE_NAMES:
        builder = _hub_builder(config.name)
        files = {str(split): list(map(str, many)) for split, many in (builder.config.data_files or {}).items()}
        if type(builder).__name__ == "Parquet":
            streams = {split: _row_groups(many, whole=True) for split, many in files.items()}
        else:
            streams = builder.as_streaming_dataset()
        # Without the revision, of which other files may be the reason.
        return dict(streams), {
            split: [re.sub(r"@[0-9a-f]{40}", "", file) for file in many] for split, many in files.items()
        }
    root = Path(str(config.path)).expanduser().absolute()
    files = _data_files(config, root)
    if config.name == "imagefolder":
        builder = _folder_builder(root, files, sounds=False, prepare=False)
        chosen = {str(split): list(map(str, many)) for split, many in builder.config.data_files.items()}
        streams = builder.as_streaming_dataset()
    else:
        chosen = _whole_files(config, root, files)
        if config.name == "parquet":
            streams = {split: _row_groups(many) for split, many in chosen.items()}
        else:
            escaped = {split: list(map(glob.escape, many)) for split, many in chosen.items()}
            streams = load_dataset(config.name, data_files=escaped, streaming=True)
    sizes = {split: [f"{Path(f).name} {Path(f).stat().st_size}" for f in many] for split, many in chosen.items()}
    return dict(streams), sizes


def _row_groups(files: list[str], whole: bool = False) -> IterableDataset:
    """Parquet files as a stream whose shards are their row groups, or whole files: then only the first is opened yet.

    That of `datasets` reads ahead in threads, which abort the program when it ends before they do.
    """
    import fsspec
    from datasets import Features, IterableDataset
    from pyarrow import parquet

    def read(files: list[str], groups: list[int | None]) -> Iterator[dict[str, Any]]:
        for file, group in zip(files, groups, strict=True):
            with fsspec.open(file, "rb") as raw, parquet.ParquetFile(raw) as opened:
                for number in range(opened.num_row_groups) if group is None else (group,):
                    for batch in opened.read_row_group(number).to_batches(max_chunksize=100):
                        yield from batch.to_pylist()

    numbers = {file: [None] if whole else range(parquet.read_metadata(file).num_row_groups) for file in files}
    names, groups = map(list, zip(*((file, group) for file in files for group in numbers[file]), strict=True))
    with fsspec.open(files[0], "rb") as first:
        features = Features.from_arrow_schema(parquet.read_schema(first))
    return IterableDataset.from_generator(read, features=features, gen_kwargs={"files": names, "groups": groups})


def _whole_files(config: DataConfig, root: Path, files: DataFilesDict) -> dict[str, list[str]]:
    """The parquet or tar files of every split that has some.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If parquet files are broken, empty, or not those of one data set.
    """
    endings = (".parquet",) if config.name == "parquet" else _TARS
    named = config.files is not None or root.is_file()
    chosen = {str(split): [f for f in many if named or f.endswith(endings)] for split, many in files.items()}
    if not any(chosen.values()) or (root.is_file() and root.suffix.lower() in image_endings()):
        raise FileNotFoundError(_none_of_the_kind(root, files, config.name, tuple(image_endings()), "imagefolder"))
    if config.name == "parquet":
        _check_one_data_set(root, [file for many in chosen.values() for file in many])
        # Parts without a row, as Spark leaves them, are none that `datasets` reads.
        chosen = {split: [file for file in many if _num_rows(file)] for split, many in chosen.items()}
        if not any(chosen.values()):
            raise ValueError(f"The parquet files of data.path {str(root)!r} hold no rows.")
    return {split: many for split, many in chosen.items() if many}


def _folder_builder(root: Path, files: DataFilesDict, sounds: bool, prepare: bool = True) -> DatasetBuilder:
    """That of "imagefolder" or "audiofolder", with the formats that are read here and nothing else."""
    from datasets import Audio
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.exceptions import DatasetGenerationError
    from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    kind, endings = ("sound", SOUND_ENDINGS) if sounds else ("image", image_endings())

    class ImageFiles(ImageFolder):
        EXTENSIONS = sorted(endings)

    class SoundPath(Audio):
        def encode_example(self, value: str) -> dict[str, str | None]:
            # The base class wants torchcodec even to keep a path.
            return {"bytes": None, "path": value}

    class SoundFiles(AudioFolder):
        BASE_FEATURE = SoundPath
        EXTENSIONS = sorted(endings)

    chosen, metadata = {}, set()
    for split, many in files.items():
        pairs = [
            (file, origin)
            for file, origin in zip(many, many.origin_metadata, strict=True)
            if _is_file_of(Path(file), endings)
        ]
        if pairs:
            described = [
                (file, origin)
                for file, origin in zip(many, many.origin_metadata, strict=True)
                if Path(file).name in ImageFolder.METADATA_FILENAMES
            ]
            metadata |= {file for file, _ in described}
            chosen[split] = DataFilesList(*map(list, zip(*pairs, *described, strict=True)))
    if not chosen:
        raise FileNotFoundError(_none_of_the_kind(root, files, kind, ".parquet", "parquet"))
    builder = (SoundFiles if sounds else ImageFiles)(data_files=DataFilesDict(chosen))
    if not prepare:
        return builder
    try:
        builder.download_and_prepare()
    except (ValueError, KeyError, DatasetGenerationError) as error:
        if not metadata:
            raise
        raise ValueError(
            f"{', '.join(sorted(metadata))} cannot be joined with the {kind}s of data.path {str(root)!r}: "
            f"{_first_cause(error).rstrip('.')}. A file of that name says something about each {kind}, which its "
            "column file_name names: correct it, or rename it where it is about other things."
        ) from error
    return builder


def _none_of_the_kind(root: Path, files: DataFilesDict, kind: str, others: str | tuple[str, ...], name: str) -> str:
    """What is said where there are no files of a kind, and whether there are some of the other."""
    found = [file for many in files.values() for file in many if file.lower().endswith(others)]
    hint = f" It holds {len(found):,} for data.name {name}: set that." if found else ""
    archives = [Path(file).name for many in files.values() for file in many if file.lower().endswith(_ARCHIVES)]
    if archives and not found:
        shards = ", or set data.name webdataset if it holds numbered images" if archives[0].endswith(_TARS) else ""
        hint = f" Unpack the archive {archives[0]}{shards}."
    return f"data.path {str(root)!r} holds no {kind} files.{hint}"


def _check_one_data_set(root: Path, files: list[str]) -> None:
    """Refuses parquet files that are broken or do not have the same columns, which `datasets` would try to join."""
    from pyarrow import ArrowException, parquet

    columns: dict[tuple[str, ...], str] = {}
    for file in files:
        try:
            names = parquet.read_schema(file).names
        except ArrowException as error:
            raise ValueError(f"{file} is no parquet file, or broken: {str(error).splitlines()[0]}") from error
        columns.setdefault(tuple(sorted(names)), Path(file).name)
    if len(columns) > 1:
        found = "; ".join(f"{name} has {', '.join(names)}" for names, name in list(columns.items())[:3])
        raise ValueError(
            f"The parquet files of data.path {str(root)!r} do not have the same columns: {found}. Name those of one "
            "data set by data.files, such as {train: 'train-*.parquet'}."
        )


def _num_rows(file: str) -> int:
    from pyarrow import parquet

    return parquet.read_metadata(file).num_rows


def _first_cause(error: BaseException) -> str:
    """The first line of what began a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _data_files(config: DataConfig, root: Path) -> DataFilesDict:
    """Existing files per split; of a folder, by the names of its files and subfolders."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    base = glob.escape(str(root))
    if config.files is not None:
        given = {split: [p] if isinstance(p, str) else p for split, p in config.files.items()}
        patterns = {split: [f for p in many for f in _matches(root, p)] for split, many in given.items()}
    elif root.is_dir():
        try:
            patterns = get_data_patterns(base)
        except EmptyDatasetError as error:
            raise FileNotFoundError(
                f"data.path {str(root)!r} holds no files (hidden ones and links to folders do not count)."
            ) from error
        return DataFilesDict.from_patterns(patterns, base_path=base)
    else:
        patterns = {"train": _matches(root, str(root))}
    escaped = {split: list(map(glob.escape, many)) for split, many in patterns.items()}
    return DataFilesDict.from_patterns(escaped, base_path=base)


def _matches(root: Path, name: str) -> list[str]:
    """The file of that name in a folder, or the files that it matches as a pattern."""
    pattern = root / name
    if pattern.is_file():
        return [str(pattern)]
    inside = Path(glob.escape(str(root))) / name
    found = sorted(path for path in glob.glob(str(inside), recursive=True) if Path(path).is_file())
    if not found:
        parent = pattern.parent
        hint = f"the folder {str(parent)!r} does not exist"
        if parent.is_dir():
            there = sorted(p.name for p in parent.iterdir())[:10]
            hint = f"the folder holds {', '.join(there) or 'nothing'}"
        raise FileNotFoundError(f"data.path / data.files: nothing matches {str(pattern)!r}; {hint}.")
    return found


def _load_hub_dataset(config: DataConfig) -> DatasetDict:
    from datasets import load_dataset

    with _reaching_hub(config.name):
        return load_dataset(config.name)


def _hub_builder(name: str) -> DatasetBuilder:
    from datasets import load_dataset_builder

    with _reaching_hub(name):
        return load_dataset_builder(name)


@contextmanager
def _reaching_hub(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield
    except (ConnectionError, DatasetNotFoundError) as error:
        raise ConnectionError(
            f"data.name {name!r} is neither {', '.join(('digits', *FILE_NAMES[:-1]))} nor {FILE_NAMES[-1]}, and no "
            f"data set of that id could be read from the Hub ({error})."
        ) from error
