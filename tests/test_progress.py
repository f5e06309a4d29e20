"""How far a task is, off a terminal and on one."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from landfuse import progress
from landfuse.progress import Meter, bars


def test_off_a_terminal_a_line_comes_soon_and_then_rarely(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.2)
    with bars() as meter:
        meter("reading", 1, 4)
        assert not capsys.readouterr().err, "a short task says nothing"
        time.sleep(0.8)  # nothing is done meanwhile
        meter("reading", 2, 4)
        assert capsys.readouterr().err == "reading: 25%\n"
        meter("reading", 3, 4, "quickly", now=True)
        assert capsys.readouterr().err.startswith("reading: 75%, quickly, 0:00:00 left")
        meter("loading", 0, 0, now=True)
        assert capsys.readouterr().err == "loading: ...\n"
        assert Meter.active == 1
    assert not Meter.active
    with bars(quiet=True) as meter:
        meter("reading", 3, 4, now=True)
    assert not capsys.readouterr().err


def test_the_time_left_follows_from_what_this_command_has_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter(True, {})
    meter("mapping", 60, 100)
    now[0] += 30
    meter("mapping", 70, 100, now=True)
    meter("mapping", 70, 100, now=True, before=40)
    assert capsys.readouterr().err.splitlines() == ["mapping: 70%, 0:01:30 left", "mapping: 70%, 0:00:30 left"]


def test_on_a_terminal_one_bar_covers_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=screen, force_terminal=True, width=90))
    shown = []
    with bars(parts={"pre-training": 1, "training": 3}) as meter:
        for what, done in (("pre-training", 5), ("training", 5), ("training", 10), ("other", 5)):
            meter(what, done, 10)
            shown.append(meter._bar.tasks[0].completed)
    assert shown == [0.125, 0.25 + 0.375, 1, 0.5]
    assert len(meter._bar.tasks) == 1
    assert "other" in screen.getvalue()
