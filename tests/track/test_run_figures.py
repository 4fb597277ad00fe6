"""Where the checkpoints of a run stand, what is drawn of them, and how their names are shown."""

import io
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from curvcli.analyses.eig import Eig
from curvcli.progress import Announcer
from curvcli.report import Result
from curvcli.track import asked
from curvcli.track.drawn import figures
from curvcli.track.place import sources, step_of
from curvcli.track.rows import TrackRow, Visit


def seen(step: float | None, source: str, **known: Any) -> Visit:
    found = {**dict.fromkeys(f.name for f in fields(TrackRow)), **known}
    row = TrackRow(**found | {"step": step, "checkpoint": f"{step}.pt", "verdict": "pass"})
    return Visit(row, {}, {}, {"notes": []}, source)


def test_places_are_counted_where_one_has_no_step() -> None:
    (figure,) = figures([seen(5, "step", loss=1.0), seen(None, "", loss=2.0)])
    assert (figure.x.title, figure.lines[0].x) == ("checkpoint", (1.0, 2.0))
    (figure,) = figures([seen(5, "step", loss=1.0), seen(9, "step", loss=2.0)])
    assert (figure.x.title, figure.lines[0].x) == ("step", (5, 9))


def test_it_is_told_where_steps_come_from() -> None:
    assert step_of(Path("w-3.pt"), {"step": float("nan"), "epoch": 2}) == (2, "epoch")
    assert step_of(Path("w-3.pt"), {"step": float("inf")}) == (3, "file name")
    assert step_of(Path(f"w-{'9' * 40}.pt"), {}) == (None, "")
    told = list(sources([seen(1, "epoch"), seen(20, "step"), seen(3, "file name")]))
    assert told[0] == "step read off the file name: 3.pt"
    assert "step, epoch" in told[1]
    assert not list(sources([seen(1, "step"), seen(2, "step")]))


def test_only_tensors_are_drawn_among_the_steps() -> None:
    both = ({"tensor": "w", "next": 1e-3, "scope": "tensor"},
            {"tensor": "group 0: 2 tensors", "next": 1e-3, "scope": "group"})  # fmt: skip
    (figure,) = figures(
        [replace(seen(1, "step"), results={"ratio": Result("ratio", "?", "!", rows=both)})]
    )
    assert figure.cells is not None
    assert figure.cells.labels == ("w",)


def test_bands_are_the_errors_of_the_rows() -> None:
    row = replace(seen(1, "step").row, loss=0.5, loss_error=0.125, accuracy=0.75)
    (loss, accuracy) = figures([replace(seen(1, "step"), row=row)])
    assert (loss.lines[0].y, loss.lines[0].band) == ((0.5,), ((0.375,), (0.625,)))
    assert "one standard error over the examples" in loss.caption
    assert accuracy.lines[0].band == ((0.75,), (0.75,))


def test_arrays_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    analysis, said = asked.without_arrays(Eig(vectors=tmp_path / "v.csv", top=2))
    assert (analysis.file, analysis.model_dump()["top"]) == (None, 2)
    assert said == ["eig: vectors is left out: track writes no arrays"]
    assert asked.without_arrays(Eig())[1] == []


def test_file_names_are_no_markup_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    announcer = Announcer(quiet=False)
    announcer.announce("[/b]x[red]\x1b]0;y\x07.pt: modes")(1, 2, 3.0, 0.1)
    announcer.close()
    announcer.tell("\x1b[2Jdone\udc80")
    text = screen.getvalue()
    assert "[/b]x[red]\\x1b]0;y\\x07.pt" in text
    assert "curv: \\x1b[2Jdone\\udc80" in text
    assert "\x07" not in text
