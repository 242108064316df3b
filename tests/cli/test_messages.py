from __future__ import annotations

import pytest

from hq_tokenizers.cli.messages import errors_as_messages


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, FloatingPointError])
def test_what_says_what_to_do_ends_as_a_message(error):
    message = r"^error: system 'A': set it to 3$"
    with pytest.raises(SystemExit, match=message) as exit_, errors_as_messages("system 'A': "):
        raise error("set it to 3")
    assert isinstance(exit_.value.__cause__, error)


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyError, BrokenPipeError])
def test_others_keep_their_traceback(error):
    with pytest.raises(error, match="defect"), errors_as_messages():
        raise error("defect")


def test_nothing_else_is_touched():
    with errors_as_messages():
        value = 1
    assert value == 1
