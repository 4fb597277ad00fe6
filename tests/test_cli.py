"""The command line: refusals, precedence, where reports go, and how a run ends."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SPEC, Ran, curv, imports, project, refused, small_model
from torch import nn

import curvcli.__main__ as main_module
from curvcli.errors import CurvError

SAMPLES = Path(__file__).parent.parent / "sample_models"
FRESH = (f"users_code_{n}" for n in count())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a small project, and forget where it imported from."""
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CURV_DEBUG", raising=False)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def module(folder: Path, text: str) -> str:
    """Write a module of the user's, of a name that was not imported before."""
    name = next(FRESH)
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return name


def coded(here: Path, text: str, name: str = "make") -> Ran:
    """Run with a model made by a module of the user's."""
    target = f"{module(here, text)}:{name}"
    project(here, model={"target": target}, python_path=["."])
    return curv("eig", "-q")


# --- refusals: the file ----------------------------------------------------------------------


def test_missing_file() -> None:
    refused(curv("eig", "modle.pt"), "E_NOT_FOUND", 2, "modle.pt", "did you mean model.pt?")


def test_folder(here: Path) -> None:
    (here / "folder.pt").mkdir()
    refused(curv("eig", "folder.pt"), "E_DIRECTORY", 2, "folder.pt")


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (b"", "E_EMPTY", "empty"),
        (b"these are not the weights\n", "E_FORMAT", "model.pt"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
            "E_LFS",
            "git lfs pull",
        ),
    ],
    ids=["empty", "text", "lfs"],
)
def test_not_a_checkpoint(here: Path, content: bytes, code: str, word: str) -> None:
    (here / "model.pt").write_bytes(content)
    refused(curv("eig"), code, 2, word)


def test_checkpoint_of_another_model(here: Path) -> None:
    torch.save(nn.Linear(5, 5).state_dict(), here / "model.pt")
    refused(curv("eig"), "E_KEYS", 2, "weight (5, 5)", "0.weight (3, 4)")


class Trap:
    """Leaves a mark wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("sprung",))


@pytest.mark.parametrize(
    ("zipped", "code", "word"), [(True, "E_UNTRUSTED", "mkdir"), (False, "E_FORMAT", "torch 1.6")]
)
def test_pickled_code_is_refused_and_not_run(
    here: Path, zipped: bool, code: str, word: str
) -> None:
    torch.save({"model": Trap()}, here / "model.pt", _use_new_zipfile_serialization=zipped)
    refused(curv("eig"), code, 2, word)
    assert not (here / "sprung").exists()


# --- refusals: the spec ----------------------------------------------------------------------


def test_typo_in_the_spec(here: Path) -> None:
    project(here, without=["loss"], los="cross_entropy")
    refused(curv("eig"), "E_SPEC", 2, "curv.yaml:6: 'los' is not known", "did you mean 'loss'?")


def test_typo_in_an_analysis(here: Path) -> None:
    project(here, analyses={"eigg": {}})
    refused(curv("eig"), "E_SPEC", 2, "curv.yaml:7: analyses", "did you mean 'eig'?")
    project(here, analyses={"eig": {"topp": 5}})
    refused(curv("gradcheck"), "E_SPEC", 2, "curv.yaml:7: analyses.eig", "did you mean 'top'?")
    project(here, analyses={"eig": {"top": 0}})
    refused(curv("eig", "--top", "3"), "E_SPEC", 2, "curv.yaml:7: analyses.eig.top", "0 should be")


def test_yaml_that_is_none(here: Path) -> None:
    (here / "curv.yaml").write_text("version: 1\nmodel: {layers: [\n")
    refused(curv("eig"), "E_YAML", 2, "curv.yaml:")


def test_no_spec(here: Path) -> None:
    (here / "curv.yaml").unlink()
    refused(curv("eig", "model.pt"), "E_SPEC", 2, "model.yaml, nor curv.yaml")
    refused(curv("eig"), "E_SPEC", 2, "there is no curv.yaml")
    (here / "run").mkdir()
    (here / "model.pt").rename(here / "run" / "a.pt")
    refused(curv("track", "run/a.pt"), "E_SPEC", 2, "there is no curv.yaml in run, here or above")
    refused(curv("eig", "--spec", "other.yaml"), "E_NOT_FOUND", 2, "--spec other.yaml")


def test_no_model_is_named(here: Path) -> None:
    project(here, without=["checkpoint"])
    refused(curv("eig"), "E_USAGE", 2, "no model is named", "curv eig MODEL")
    refused(curv("run"), "E_USAGE", 2, "curv run MODEL")


@pytest.mark.parametrize("key", ["model", "data", "loss"])
def test_a_block_is_missing(here: Path, key: str) -> None:
    project(here, without=[key])
    refused(curv("eig"), "E_SPEC", 2, f"there is no {key}:")


def test_data_is_missing(here: Path) -> None:
    project(here, data={"format": "npz", "path": "gone.npz"})
    refused(curv("eig"), "E_DATA", 2, "gone.npz does not exist")


# --- refusals: the command line --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eig", "--topp", "3"], ["--topp", "did you mean '--top'?"]),
        (["eig", "--colour"], ["--colour"]),
        (["eigg"], ["'eigg'", "'eig'"]),
        (["eig", "--top"], ["'--top' requires an argument"]),
        (["eig", "model.pt", "other.pt"], ["other.pt"]),
        (["eig", "--top", "0"], ["--top: '0' should be greater than or equal to 1"]),
        (["eig", "--top", "many"], ["--top: 'many' should be a whole number"]),
        (["eig", "--tolerance", "nan"], ["--tolerance: 'nan' should be"]),
        (["eig", "--which", "larges"], ["--which: 'larges'", "did you mean 'largest'?"]),
        (["eig", "--format", "jsn"], ["--format: 'jsn'", "did you mean 'json'?"]),
        (["eig", "--samples", "0"], ["--samples: '0' should be greater than 0"]),
        (["eig", "--batch-size", "-1"], ["--batch-size: '-1' should be greater than 0"]),
        (["gradcheck", "--samples", "0"], ["--samples: '0' should be greater than"]),
        (["eig", "--seed", "-1"], ["--seed: '-1' should be greater"]),
        (["eig", "--device", "gpu"], ["--device: 'gpu' is not a device"]),
        (["eig", "--budget", "soon"], ["--budget", "'soon'"]),
        (["eig", "--out", "report.pdf"], ["report.pdf", ".json"]),
        (["eig", "--out", ""], ["--out: '' should not be empty"]),
        (["run", "--format", "csv"], ["csv holds one analysis"]),
        (["run", "--out", "all.csv"], ["csv holds one analysis", "--out DIR/"]),
        (["render"], ["REPORT.json"]),
    ],
)
def test_usage(arguments: list[str], words: list[str]) -> None:
    refused(curv(*arguments), "E_USAGE", 2, *words)


def test_no_arguments() -> None:
    done = curv()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: curv [OPTIONS] COMMAND")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(curv("eig", "--device", "cuda"), "E_USAGE", 2, "no cuda", "--device cpu")


def test_parameters_that_match_nothing() -> None:
    refused(curv("eig", "--params", "head.*"), "E_MODEL", 2, "'head.*'", "0.weight")


# --- refusals: the user's code ----------------------------------------------------------------


def test_model_code_that_raises(here: Path) -> None:
    done = coded(here, "def make():\n    x = 1\n    raise ValueError('no such width')\n")
    refused(done, "E_MODEL", 2, "ValueError: no such width", ".py:3)")


def test_model_code_that_fails_to_import(here: Path) -> None:
    refused(coded(here, "import not_there_at_all\n"), "E_IMPORT", 2, "not_there_at_all")
    refused(coded(here, "1 / 0\n"), "E_IMPORT", 2, "ZeroDivisionError", ".py:1)")
    refused(coded(here, "x = 1\ndef f(:\n"), "E_IMPORT", 2, "SyntaxError", ".py:2)")


def test_model_code_that_exits(here: Path) -> None:
    refused(coded(here, "import sys\nsys.exit(0)\n"), "E_IMPORT", 2, "SystemExit", ".py:2)")
    refused(coded(here, "def make():\n    raise SystemExit\n"), "E_MODEL", 2, "SystemExit")


def test_missing_module(here: Path) -> None:
    project(here, model={"target": "no_such_module_here:Net"})
    refused(curv("eig"), "E_IMPORT", 2, "no module 'no_such_module_here'", "python_path")


def test_missing_name(here: Path) -> None:
    done = coded(here, "def make_net():\n    pass\n", "make_nett")
    refused(done, "E_IMPORT", 2, "'make_nett'", "did you mean 'make_net'?")


def test_not_a_module(here: Path) -> None:
    refused(coded(here, "def make():\n    return 3\n"), "E_MODEL", 2, "gave a int")


def test_model_that_refuses_the_batch(here: Path) -> None:
    project(here, data={**SPEC["data"], "x": {"shape": [5]}})
    done = curv("eig")
    refused(done, "E_MODEL", 2, "float32 (12, 5), int64 (12,)", "RuntimeError", "mat1 and mat2")
    assert ".py:" not in done.err, "no line of the user's is to blame"


def test_the_line_of_the_users_code_is_named(here: Path) -> None:
    done = coded(
        here,
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.view(-1, 7))\n",
        "Net",
    )
    refused(done, "E_MODEL", 2, "refuses a batch", ".py:6)")


def test_loss_that_is_not_a_number(here: Path) -> None:
    state = small_model().state_dict()
    state["2.bias"][0] = float("inf")
    torch.save(state, here / "model.pt")
    refused(curv("eig", "-q"), "E_NONFINITE", 3)


def test_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("curvcli.load.assemble.assemble", broken)
    refused(curv("eig"), "E_INTERNAL", 4, "KeyError: 'oops' at test_cli.py:", "CURV_DEBUG=1")
    monkeypatch.setenv("CURV_DEBUG", "1")
    assert "Traceback" in curv("eig").err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def hungry(*_: Any) -> None:
        raise error

    monkeypatch.setattr("curvcli.load.assemble.assemble", hungry)
    refused(curv("eig"), "E_MEMORY", 3, "--batch-size")
    monkeypatch.undo()


# --- refusals: the output --------------------------------------------------------------------


def test_output_that_cannot_be_written(here: Path) -> None:
    (here / "file").touch()
    before = sorted(here.iterdir())
    refused(curv("eig", "-o", "file/report.json"), "E_OUTPUT", 3, "not a directory")
    refused(curv("eig", "-o", "file/inner/"), "E_OUTPUT", 3, "cannot be made")
    refused(curv("eig", "-o", "none/report.json"), "E_OUTPUT", 3, "no such file")
    assert sorted(here.iterdir()) == before


def test_a_refusal_leaves_no_output_behind(here: Path) -> None:
    (here / "model.pt").write_bytes(b"")
    before = sorted(here.iterdir())
    refused(curv("eig", "--out", "results"), "E_EMPTY", 2)
    refused(curv("eig", "--out", "results/deeper/"), "E_EMPTY", 2)
    refused(curv("eig", "--out", "report.json"), "E_EMPTY", 2)
    assert sorted(here.iterdir()) == before


def test_stdout_that_cannot_be_written() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    assert curv("eig", "--out", "report.json").code == 0
    with open("/dev/full", "w") as full:
        done = shell("render", "report.json", stdout=full)
    assert done.returncode == 3
    assert done.stderr.startswith("curv: E_OUTPUT: stdout cannot be written")
    assert done.stderr.count("\n") == 1


# --- precedence and discovery ----------------------------------------------------------------


def test_flag_before_spec_before_default(here: Path) -> None:
    def options(*arguments: str) -> tuple[Any, ...]:
        document = curv("eig", "--format", "json", *arguments).document
        found = document["results"]["eig"]["options"]
        provenance = document["provenance"]
        return (
            found["top"], found["tolerance"], provenance["seed"], provenance["data"]["examples"]
        )  # fmt: skip

    assert options() == (5, 0.01, 0, 12)
    project(here, analyses={"eig": {"top": 2}}, run={"seed": 7}, data={**SPEC["data"]})
    assert options() == (2, 0.01, 7, 12)
    assert options("--top", "1", "--seed", "3", "--samples", "8") == (1, 0.01, 3, 8)
    assert options("--tolerance", "1e-3") == (2, 0.001, 7, 12)


def test_flags_that_shadow_a_shared_one() -> None:
    document = curv("gradcheck", "--samples", "5", "--format", "json").document
    assert document["results"]["gradcheck"]["options"]["samples"] == 5
    assert document["provenance"]["data"]["examples"] == 12


def test_params_from_flags_and_spec(here: Path) -> None:
    project(here, run={"params": "2.*"})
    selected = curv("eig", "-f", "json", "-k", "1").document["provenance"]["parameters"]
    assert selected["selected"] == ["2.*"]
    both = curv("eig", "-f", "json", "-k", "1", "--params", "0.bias", "--params", "2.bias")
    assert both.document["provenance"]["parameters"]["entries"] == 5


def test_which_spec_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*arguments: str) -> str:
        provenance = curv("eig", "-k", "1", "-f", "json", *arguments).document["provenance"]
        return Path(provenance["spec"]["path"]).name

    project(here, name="model.yaml")
    project(here, name="third.yaml")
    assert found() == "curv.yaml"
    assert found("model.pt") == "model.yaml"
    assert found("model.pt", "--spec", "third.yaml") == "third.yaml"
    (here / "inner" / "deep").mkdir(parents=True)
    monkeypatch.chdir(here / "inner" / "deep")
    assert found() == "curv.yaml"
    assert found("../../model.pt") == "model.yaml"
    # The one beside a checkpoint is nearer to it than that of the working directory.
    other = here / "other"
    other.mkdir()
    project(other, name="curv.yaml", run={"seed": 5})
    monkeypatch.chdir(here)
    for path, told in (("other/model.pt", "other/curv.yaml"), ("model.pt", "model.yaml")):
        ran = curv("eig", "-k", "1", "-f", "json", path)
        assert ran.document["provenance"]["spec"]["path"] == told
    (other / "curv.yaml").unlink()
    assert found("other/model.pt") == "curv.yaml"


# --- where the report goes -------------------------------------------------------------------


def test_svg_without_figures_is_refused_before_the_work() -> None:
    for arguments in (["-f", "svg"], ["--out", "figures.svg"]):
        for command in ("ratio", "stability", "gradcheck"):
            refused(curv(command, *arguments), "E_USAGE", 2, "no figure here", "spectrum")
    assert curv("gradcheck", "--sweep", "-f", "svg").out.startswith("<svg")


def test_a_file_of_another_name_is_suggested_by_its_stem(here: Path) -> None:
    (here / "shuf.pt").write_bytes(b"")
    assert "check the path" in curv("eig", "nosuch.pt").err
    assert "did you mean model.pt?" in curv("eig", "modell.pt").err


def test_stdout_has_the_report_alone(here: Path) -> None:
    name = module(
        here,
        "print('imported')\n"
        "from torch import nn\n"
        "def make():\n"
        "    print('made')\n"
        "    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))\n",
    )
    project(here, model={"target": f"{name}:make"}, python_path=["."])
    done = curv("diag", "--method", "exact", "--format", "json")
    assert done.code == 0
    assert done.report.results["diag"].rows
    assert done.err.startswith("imported\nmade\n")
    assert "curv: exact diagonal" in done.err


def test_quiet() -> None:
    assert curv("diag", "--method", "exact", "--quiet").err == ""


def test_piped_output_has_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = curv("run")
    assert "\x1b" not in done.out + done.err
    assert "eigenvalue" in done.out


def test_a_terminal_has_colour_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from curvcli.output import show

    report = curv("eig", "-k", "1", "-f", "json").report
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(report, "table", plain=False)
    assert "\x1b[" in capsys.readouterr().out
    show(report, "table", plain=True)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    show(report, "table", plain=False)
    assert "\x1b[3" not in capsys.readouterr().out


def test_formats_on_stdout() -> None:
    assert curv("eig", "--format", "json").document["schema"] == "curv.report/1"
    lines = curv("eig", "-k", "2", "--format", "csv").out.splitlines()
    assert lines[0].startswith("block,index,eigenvalue,")
    assert len(lines) == 3
    assert curv("eig", "--plain").out.isascii()


def test_out_by_suffix(here: Path) -> None:
    for suffix in ("json", "csv", "txt"):
        done = curv("eig", "--out", f"report.{suffix}")
        assert done.code == 0
        assert "eigenvalue" in done.out, "the table is on stdout all the same"
    assert json.loads((here / "report.json").read_text())["results"]["eig"]
    assert (here / "report.csv").read_text().startswith("block,")
    assert (here / "report.txt").read_text() == done.out
    printed = curv("eig", "--out", "report.txt", "--format", "json")
    assert printed.document["results"]["eig"], "--format is of what is printed"
    assert (here / "report.txt").read_text() == done.out, "the suffix is of what is written"


@pytest.mark.parametrize("name", ["results", "results.d/", "a/b"])
def test_out_folder(here: Path, name: str) -> None:
    project(here, analyses={"eig": {}, "gradcheck": {}})
    done = curv("run", "--out", name)
    assert done.code == 0
    files = sorted(p.name for p in (here / name).iterdir())
    assert files == ["eig.csv", "gradcheck.csv", "report.json", "report.txt"]
    assert (here / name / "report.txt").read_text() == done.out
    assert curv("run", "--out", name).code == 0, "and again into the same folder"


def test_a_disk_that_fills_up_leaves_the_folder_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curvcli.files import Draft

    assert curv("eig", "-k", "1", "--out", "results").code == 0
    before = {p.name: p.read_bytes() for p in (here / "results").iterdir()}
    fill, filled = Draft.fill, count()

    def full(draft: Draft, text: str) -> None:
        if next(filled) == 2:
            raise CurvError("E_OUTPUT", "no space left on device")
        fill(draft, text)

    monkeypatch.setattr(Draft, "fill", full)
    assert curv("eig", "-k", "2", "--out", "results").code == 3
    assert {p.name: p.read_bytes() for p in (here / "results").iterdir()} == before


def test_json_survives_an_ascii_locale() -> None:
    assert curv("eig", "-k", "1", "--out", "report.json").code == 0
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = shell("render", "report.json", "--format", "json", env=ascii_only)
    assert done.returncode == 0
    assert "±" in json.loads(done.stdout)["results"]["eig"]["headline"]
    done = shell("render", "report.json", env=ascii_only)
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_a_reader_that_leaves() -> None:
    assert curv("eig", "-k", "1", "--out", "report.json").code == 0
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = shell("render", "report.json", stdout=closed)
    assert (done.returncode, done.stderr) == (0, "")


class Terminal(io.StringIO):
    """A text that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    from curvcli.progress import Announcer
    from curvcli.work import silent

    monkeypatch.setenv("TERM", "xterm")
    before = sys.stdout
    for screen in (Terminal(), io.StringIO()):
        with contextlib.redirect_stderr(screen):
            announcer = Announcer(quiet)
            watch = announcer.announce("eigenvalues")
            watch(3, 10, 1.5, 0.1)
            announcer.close()
        shown = screen.isatty() and not quiet
        assert ("1.5 ± 0.1" in screen.getvalue()) == shown
        assert (watch is silent) != shown
    assert sys.stdout is before


def test_a_log_that_nobody_reads() -> None:
    # As in `curv diag 2>&1 | head -1`: the plan is told to nobody, and the work goes on.
    from curvcli.progress import Announcer

    reading, writing = os.pipe()
    os.close(reading)
    with (
        open(writing, "wb", buffering=0) as raw,
        contextlib.redirect_stderr(io.TextIOWrapper(raw, write_through=True)) as stream,
    ):
        Announcer(quiet=False).tell("the plan")
        assert main_module._said(CurvError("E_EMPTY", "nothing")) == 2
        stream.detach()


# --- render ----------------------------------------------------------------------------------


def test_render_gives_the_same_again(here: Path) -> None:
    project(here, analyses={"eig": {}, "diag": {"method": "exact"}, "gradcheck": {}})
    table = curv("run", "--out", "report.json")
    plain = curv("run", "--plain")
    document = (here / "report.json").read_text()
    assert curv("render", "report.json").out == table.out
    assert curv("render", "report.json", "--plain").out == plain.out
    assert curv("render", "report.json", "--format", "json").out == document
    refused(curv("render", "report.json", "--format", "csv"), "E_USAGE", 2, "csv holds one")
    assert curv("render", "report.json", "--out", "again.txt") == Ran(0, "", "")
    assert (here / "again.txt").read_text() == table.out
    assert curv("render", "report.json", "--out", "again.json") == Ran(0, "", "")
    assert (here / "again.json").read_text() == document
    assert curv("render", "report.json", "--out", "folder").code == 0
    assert (here / "folder" / "eig.csv").exists()


def test_render_needs_no_torch(here: Path) -> None:
    assert curv("eig", "--out", "report.json").code == 0
    assert not imports("from curvcli.__main__ import run; run(['render', 'report.json'])", "torch")


def test_render_refuses_what_is_no_report(here: Path) -> None:
    (here / "list.json").write_text("[1]")
    (here / "binary.json").write_bytes(b"\xff\xfe")
    refused(curv("render", "gone.json"), "E_NOT_FOUND", 2, "gone.json")
    refused(curv("render", "."), "E_DIRECTORY", 2)
    refused(curv("render", "list.json"), "E_FORMAT", 2, "schema")
    refused(curv("render", "binary.json"), "E_FORMAT", 2, "not text")
    refused(curv("render", "model.pt/x.json"), "E_PERMISSION", 2, "cannot be read")


def test_render_has_the_exit_code_of_the_report(here: Path) -> None:
    assert curv("eig", "--max-matvecs", "2", "--out", "report.json").code == 3
    assert curv("render", "report.json").code == 3


# --- what a run says and how it ends ----------------------------------------------------------


def test_same_seed_same_document(here: Path) -> None:
    project(here, analyses={"eig": {}, "diag": {"method": "hutchinson"}, "gradcheck": {},
                            "ratio": {}})  # fmt: skip

    def document(seed: int) -> str:
        found = curv("run", "--seed", str(seed), "--format", "json").document
        del found["run"]
        return json.dumps(found)

    assert document(1) == document(1)
    assert document(1) != document(2)


def failing(here: Path) -> None:
    """Give a model whose gradient is wrong."""
    name = module(
        here,
        "import torch\n"
        "from torch import nn\n"
        "class Wrong(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, x):\n"
        "        return 2 * x\n"
        "    @staticmethod\n"
        "    def backward(ctx, g):\n"
        "        return 3 * g\n"
        "class Twice(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return Wrong.apply(x)\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), Twice())\n",
    )
    project(here, model={"target": f"{name}:make"}, python_path=["."], analyses={"gradcheck": {}})


def test_exit_codes_of_checks(here: Path) -> None:
    assert curv("gradcheck").code == 0
    failing(here)
    assert curv("gradcheck").code == 1
    assert curv("gradcheck", "--exit-zero").code == 0
    assert curv("run").code == 1


def test_strict_makes_a_warning_undecided() -> None:
    loose = curv("ratio", "--high", "1e-9", "--low", "1e-12")
    assert (loose.code, "WARN" in loose.out) == (0, True)
    assert curv("ratio", "--high", "1e-9", "--low", "1e-12", "--strict").code == 3


def test_run_goes_on_after_a_failure(here: Path) -> None:
    project(here, without=["optimizer"], analyses={"ratio": {}, "eig": {}})
    done = curv("run")
    assert done.code == 3
    assert "E_OPTIMIZER" in done.out
    assert "eigenvalue" in done.out
    assert curv("run", "--exit-zero").code == 3
    refused(curv("ratio"), "E_OPTIMIZER", 2)


def test_run_without_a_selection_runs_all(here: Path) -> None:
    from curvcli.analyses import registry

    assert list(curv("run", "-f", "json").document["results"]) == list(registry())
    project(here, analyses={"gradcheck": None, "eig": {"top": 1}})
    assert list(curv("run", "-f", "json").document["results"]) == ["gradcheck", "eig"]


def test_version_and_help() -> None:
    from curvcli.analyses import registry
    from curvcli.version import __version__

    assert curv("--version") == Ran(0, f"curv {__version__}\n", "")
    page = curv("-h").out
    assert "..." not in page.replace("COMMAND [ARGS]...", "")
    for name, kind in registry().items():
        said = " ".join(curv(name, "--help").out.split())
        assert kind.question() in " ".join(page.split())
        assert kind.question() in said
        assert "MODEL" in said
        assert "(default" in said
        assert "..." not in said
        assert "--no-plain" not in said


# --- interruption ----------------------------------------------------------------------------

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's may be ignored
from curvcli.__main__ import main
main()
"""


def shell(
    *arguments: str, env: dict[str, str] | None = None, stdout: Any = subprocess.PIPE
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip


def stopped(number: int, *arguments: str | Path) -> Ran:
    """Start a long computation, and send a signal once its plan has been told."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        cwd=SAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            plan = process.stderr.readline()
            assert plan.startswith("curv: exact diagonal: ")
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in err
    return Ran(process.returncode, out, err)


LONG = ("diag", "modular_transformer.pt", "--method", "exact")


def test_ctrl_c_tells_what_is_known(tmp_path: Path) -> None:
    done = stopped(signal.SIGINT, *LONG, "--out", tmp_path / "results")
    assert done.code == 130
    assert "UNDECIDED  interrupted: partial" in done.out
    files = sorted(p.name for p in (tmp_path / "results").iterdir())
    assert files == ["diag.csv", "report.json", "report.txt"]
    document = json.loads((tmp_path / "results" / "report.json").read_text())
    assert document["results"]["diag"]["interrupted"]
    assert (tmp_path / "results" / "report.txt").read_text() == done.out


def test_termination_has_its_own_code(tmp_path: Path) -> None:
    done = stopped(signal.SIGTERM, *LONG, "--out", tmp_path / "report.json")
    assert done.code == 143
    assert "interrupted: partial" in done.out
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "undecided"
    assert list(tmp_path.glob(".curv-*")) == []


def test_ctrl_c_before_there_is_anything(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("curvcli.load.assemble.assemble", interrupted)
    before = sorted(here.iterdir())
    done = curv("eig", "--out", "results")
    assert done == Ran(130, "", "curv: interrupted before there was anything to tell\n")
    assert sorted(here.iterdir()) == before


def test_nohup_is_honoured() -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from curvcli.__main__ import _Signals\n"
        "_Signals(); assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "assert callable(signal.getsignal(signal.SIGTERM))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
