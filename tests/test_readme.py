"""What the README tells people to run does what it says."""

import re
import shlex
from pathlib import Path

import pytest

from curvcli.__main__ import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def ci_command() -> list[str]:
    """Take the CI step that checks gradients, as it is written."""
    (line,) = re.findall(r"^- run: curv (gradcheck .*)$", README, re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize(("model", "code"), [("digits_mlp", 0), ("broken", 1)])
def test_the_ci_step_fails_on_a_bad_relative_error(
    model: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    monkeypatch.chdir(tmp_path)
    written = [a.replace("digits_mlp", model) for a in ci_command()]
    assert run(written) == code
    assert (tmp_path / "gradcheck.json").exists()


def test_every_command_is_in_the_readme() -> None:
    from curvcli.analyses import registry

    for name in [*registry(), "run", "render", "selftest"]:
        assert f"| `curv {name}" in README


def test_every_option_of_gradcheck_is_in_the_readme() -> None:
    from curvcli.analyses.gradcheck import Gradcheck

    for name in Gradcheck.model_fields:
        assert f"`--{name.replace('_', '-')}" in README or f"--{name.replace('_', '-')}`" in README
