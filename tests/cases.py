"""Small projects on disk, and the command line run on them within this process."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvcli.__main__ import run
from curvcli.report import Report

SPEC: dict[str, Any] = {
    "version": 1,
    "checkpoint": "model.pt",
    "model": {"layers": [{"Linear": [4, 3]}, "Tanh", {"Linear": [3, 2]}]},
    "data": {"format": "synthetic", "samples": 12, "x": {"shape": [4]}, "y": {"classes": 2}},
    "loss": "cross_entropy",
    "optimizer": {"class": "SGD", "lr": 0.1},
}


def small_model() -> nn.Sequential:
    """Make the model of SPEC, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def project(
    folder: Path, *, name: str = "curv.yaml", without: Sequence[str] = (), **changes: Any
) -> Path:
    """Write model.pt and its spec, a line for each key."""
    torch.save(small_model().state_dict(), folder / "model.pt")
    spec = {key: value for key, value in {**SPEC, **changes}.items() if key not in without}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in spec.items()]
    (folder / name).write_text("".join(lines))
    return folder


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Report:
        """The report on stdout."""
        return Report.from_json(self.out)

    @property
    def document(self) -> dict[str, Any]:
        """The document on stdout, as it stands there."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def curv(*arguments: str | Path) -> Ran:
    """Run a command as a shell would, stdout and stderr being no terminals."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(a) for a in arguments])
    return Ran(int(code), _text(out), _text(err))


def imports(code: str, *names: str) -> set[str]:
    """Run code in a process of its own; tell which of the named modules it imported."""
    told = f"import sys; print('', *{{*{names}}}.intersection(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", f"{code}\n{told}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def refused(ran: Ran, code: str, exit_code: int, *words: str) -> None:
    """Hold a refusal to its form: one line on stderr with its code and these words, no report."""
    assert ran.err.startswith(f"curv: {code}: "), ran.err
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.out == ""
    assert ran.code == exit_code
    for word in words:
        assert word in ran.err, ran.err
