"""From a `DataConfig` to splits of sounds: which column, which classes and speakers, which normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import AutoFeatureExtractor, PreTrainedConfig

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.pretrained_models import folder_of
from hq_tokenizers.processes import is_main_process

from .classes import read_classes
from .images import MEMORY_LIMIT
from .loading import holds_bytes, select_rows
from .sound import SoundRows
from .sources import load_source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def feature_extractor(config: DataConfig, grid_dims: int, stride: int) -> HQFeatureExtractor:
    """The front end that options describe, without a normalisation where it is to be measured.

    Args:
        config: Options.
        grid_dims: Of the model.
        stride: Of the model along time.
    """
    sound = config.sound
    return HQFeatureExtractor(
        feature_size=sound.num_mel_bands,
        sampling_rate=sound.sampling_rate,
        hop_length=sound.hop_length,
        win_length=sound.win_length,
        n_fft=sound.n_fft,
        min_frequency=sound.min_frequency,
        max_frequency=sound.max_frequency,
        power=float(sound.power),
        preemphasis=sound.preemphasis,
        floor_db=sound.floor_db,
        mean_db=0.0 if sound.mean_db is None else sound.mean_db,
        std_db=1.0 if sound.std_db is None else sound.std_db,
        grid_dims=grid_dims,
        pad_to_multiple_of=stride,
    )


def load_front_end(path: str, config: PreTrainedConfig) -> HQFeatureExtractor:
    """The front end that is saved beside a tokenizer.

    Args:
        path: Folder, Hub id or name that `pretrained` knows, of the tokenizer.
        config: Its configuration.

    Raises:
        ValueError: If there is none, or one of another form.
    """
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder_of(path))
    except (OSError, ValueError):
        extractor = None
    if not isinstance(extractor, HQFeatureExtractor) or not extractor.suits(config):
        raise ValueError(f"{path} has no preprocessor_config.json of a front end that suits its model.")
    return extractor


def check_speakers(config: PreTrainedConfig, rows: SoundRows) -> None:
    """Checks that sounds have the speakers that a tokenizer decodes for.

    Raises:
        ValueError: If they do not, naming the option.
    """
    known = 0 if rows.speaker_names is None else len(rows.speaker_names)
    if config.num_speakers and known != config.num_speakers:
        raise ValueError(
            f"The tokenizer decodes for {config.num_speakers} speakers, the data name {known}: set "
            "data.sound.speaker_column to the column that it was trained with."
        )


def load_sound_splits(
    config: DataConfig,
    extractor: HQFeatureExtractor,
    *split_options: str,
    measure: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[SoundRows, ...]:
    """The splits that options of a `DataConfig` name. What is silent, clipped or left out is said.

    Args:
        config: Options.
        extractor: The front end.
        *split_options: "train_split", …
        measure: Whether the extractor gets the normalisation of the first of them.
        memory_limit: Bytes of spectrograms of a split up to which they are kept in memory.

    Raises:
        FileNotFoundError: For a wrong path.
        ValueError: For a wrong split, column, label or speaker, naming the accepted values; for a sound that cannot be
            read, by its name.
    """
    _check_options(config)
    source = load_source(config)
    notes: dict[str, None] = {}
    loaded = []
    for option in split_options:
        rows = _load_split(config, source, extractor, option, notes, memory_limit)
        notes |= dict.fromkeys(rows.survey.notes(getattr(config, option)))
        loaded.append(rows)
    if measure:
        extractor.mean_db, extractor.std_db = loaded[0].moments()
        extractor.check()
    for note in notes if is_main_process() else ():
        print(f"data: {note}")
    return tuple(loaded)


def _check_options(config: DataConfig) -> None:
    """Refuses options of images, which would have no effect, or a wrong one."""
    defaults = DataConfig()
    of_images = ("image_column", "image_size", "num_channels", "label_map_classes")
    for name in (*of_images, "horizontal_flip", "random_crop", "random_resized_crop", "color_jitter", "streaming"):
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"data.{name} is for images, and the model is one of sound: leave it out.")


def _load_split(
    config: DataConfig,
    source: DatasetDict,
    extractor: HQFeatureExtractor,
    option: str,
    notes: dict[str, None],
    memory_limit: int,
) -> SoundRows:
    from datasets import Audio

    rows, names = select_rows(config, source, option, notes, "sound", _sound_column)
    column = _sound_column(config, rows)
    labels, label_names = read_classes(config.label_column, source, rows, notes)
    speakers, speaker_names = None, None
    if config.sound.speaker_column is not None:
        speakers, speaker_names = read_classes(
            config.sound.speaker_column, source, rows, notes, "data.sound.speaker_column"
        )
    if isinstance(rows.features[column], Audio):
        rows = rows.cast_column(column, Audio(decode=False))
    return SoundRows(
        rows, column, names, extractor, labels, label_names, speakers, speaker_names, config.num_workers, memory_limit
    )


def _sound_column(config: DataConfig, rows: Dataset) -> str:
    from datasets import Audio

    typed = [name for name, kind in rows.features.items() if isinstance(kind, Audio)]
    encoded = [name for name, kind in rows.features.items() if holds_bytes(kind)]
    chosen = config.sound.audio_column
    if chosen is None:
        columns = typed or encoded
        if len(columns) == 1:
            return columns[0]
        found = f"several columns of sounds: {', '.join(columns)}" if columns else "no column of sounds"
        raise ValueError(
            f"The data set has {found}. Set data.sound.audio_column; the columns are {', '.join(rows.column_names)}."
        )
    if chosen not in typed + encoded:
        raise ValueError(
            f"data.sound.audio_column {chosen!r} is no column of sounds. Columns of sounds: "
            f"{', '.join(typed + encoded) or 'none'}; all columns: {', '.join(rows.column_names)}."
        )
    return chosen
