"""What several processes need, with what they send each other in the place of the processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hq_tokenizers import processes


def say_no(message: str) -> Callable[[], None]:
    def work() -> None:
        raise ValueError(message)

    return work


def test_one_process_does_its_work_itself() -> None:
    assert processes.main_process_does(lambda: 3) == 3
    with pytest.raises(ValueError, match=r"^no$"):
        processes.main_process_does(say_no("no"))


def test_what_the_main_process_got_or_raised_reaches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(processes, "main_process_finds", lambda found: sent.append(found) or found)
    assert processes.main_process_does(lambda: 3) == 3
    with pytest.raises(ValueError, match=r"^no$"):
        processes.main_process_does(say_no("no"))
    # The others do nothing but receive it.
    monkeypatch.setattr(processes, "is_main_process", lambda: False)
    monkeypatch.setattr(processes, "main_process_finds", lambda found: sent.pop(0))
    assert processes.main_process_does(say_no("done by another process")) == 3
    with pytest.raises(ValueError, match=r"^no$"):
        processes.main_process_does(say_no("done by another process"))
