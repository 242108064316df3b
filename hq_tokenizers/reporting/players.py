"""A page that plays the sounds of a report; it needs no other file but its picture."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hq_tokenizers.files import replacing
from hq_tokenizers.sound_decoding import encode_wav

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px sans-serif; margin: 2em }} img {{ max-width: 100% }} audio {{ width: 220px; height: 32px }}
td, th {{ padding: 2px 8px; text-align: left }}</style>
<h1>{title}</h1>
{picture}
<table><tr><th></th>{head}</tr>
{rows}
</table></html>
"""


def save_players(
    path: Path,
    versions: Mapping[str, Sequence[np.ndarray]],
    sampling_rate: int,
    titles: Sequence[str],
    picture: str | None = None,
) -> None:
    """Writes a page with a player per sound and version.

    Args:
        path: HTML to write.
        versions: Samples (n,) of every sound, by what was done to them: {"original": …, "reconstruction": …}.
        sampling_rate: Samples per second.
        titles: What stands before each sound's players.
        picture: File of a picture of them in the same folder.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in versions)
    rows = []
    for title, sounds in zip(titles, zip(*versions.values(), strict=True), strict=True):
        players = "".join(f"<td>{_player(sound, sampling_rate)}</td>" for sound in sounds)
        rows.append(f"<tr><td>{html.escape(title)}</td>{players}</tr>")
    image = "" if picture is None else f'<p><img src="{html.escape(picture)}" alt="spectrograms"></p>'
    page = _PAGE.format(title=html.escape(path.stem), picture=image, head=head, rows="\n".join(rows))
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _player(sound: np.ndarray, sampling_rate: int) -> str:
    data = base64.b64encode(encode_wav(sound, sampling_rate)).decode()
    return f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>'
