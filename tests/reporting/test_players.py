from __future__ import annotations

import base64
import re

import numpy as np

from hq_tokenizers.reporting.players import save_players
from hq_tokenizers.sound_decoding import decode_sound


def test_the_page_holds_every_sound_and_no_markup_of_titles(tmp_path) -> None:
    sounds = [np.linspace(-0.5, 0.5, number, dtype=np.float32) for number in (5, 9)]
    versions = {"original": sounds, "half": [sound / 2 for sound in sounds]}
    save_players(tmp_path / "page.html", versions, 8000, ["<one>", "two"], "page.png")
    page = (tmp_path / "page.html").read_text()
    assert "<one>" not in page
    assert "&lt;one&gt;" in page
    assert 'src="page.png"' in page
    data = [base64.b64decode(text) for text in re.findall(r"data:audio/wav;base64,([^\"]+)", page)]
    expected = [sounds[0], sounds[0] / 2, sounds[1], sounds[1] / 2]
    for found, sound in zip(data, expected, strict=True):
        np.testing.assert_allclose(decode_sound(found, 8000), sound, atol=1e-4)
