"""Files are written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from curvcli.errors import CurvError
from curvcli.files import Draft, drafted, folder


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(CurvError) as caught:
        Draft(path)
    assert caught.value.code == "E_OUTPUT"
    return str(caught.value)


def test_it_appears_when_it_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with drafted(path) as draft:
        draft.fill("new: ±\n")
        assert path.read_text() == "old"
        draft.place()
    assert path.read_bytes() == "new: ±\n".encode()
    assert names(tmp_path) == ["report.json"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    def work() -> None:
        with drafted(tmp_path / "report.json") as draft:
            draft.fill("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert names(tmp_path) == []


def test_a_new_file_has_the_mode_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with drafted(tmp_path / "report.json") as draft:
        draft.fill("")
        draft.place()
    assert (tmp_path / "report.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "private.json"
    path.touch(mode=0o600)
    with drafted(path) as draft:
        draft.fill("new")
        draft.place()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "real.json", tmp_path / "link.json"
    real.parent.mkdir()
    link.symlink_to(real)
    with drafted(link) as draft:
        draft.fill("new")
        draft.place()
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert "is a folder" in refusal(tmp_path)
    assert "not a directory" in refusal(tmp_path / "file" / "report.json")
    assert "no such file or directory" in refusal(tmp_path / "none" / "report.json")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert names(tmp_path) == ["file", "pipe"]


def test_a_failure_to_write_is_told(tmp_path: Path) -> None:
    with drafted(tmp_path / "report.json") as draft:
        draft.temporary.unlink()
        draft.temporary.mkdir()
        with pytest.raises(CurvError, match=r"report.json cannot be written: is a directory"):
            draft.fill("new")
        draft.temporary.rmdir()
        with pytest.raises(CurvError, match="cannot be written: no such file"):
            draft.place()


def test_a_folder_that_stayed_empty_goes(tmp_path: Path) -> None:
    with folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []
    with folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert names(tmp_path / "a" / "b") == ["file"]


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with folder(tmp_path / "mine"):
        pass
    assert names(tmp_path) == ["mine"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CurvError, match=r"E_OUTPUT: .*file/inner cannot be made"),
        folder(tmp_path / "file" / "inner"),
    ):
        pass
