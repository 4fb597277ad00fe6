"""Who may import whom: the table of the design, held against every import in the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import project

import curvcli

PACKAGE = Path(curvcli.__file__).parent

ROOMS = {
    "version": "",
    "errors": "",
    "work": "",
    "params": "",
    "linalg": "",
    "mistakes": "errors",
    "options": "errors mistakes",
    "report": "errors",
    "document": "errors report",
    "optimizer": "errors",
    "batches": "errors",
    "derivatives": "",
    "modules": "errors",
    "nonfinite": "batches modules",
    "problem": "batches derivatives errors modules nonfinite optimizer params",
    "determinism": "errors modules problem",
    "updates": "derivatives errors optimizer problem",
    "dynamics": "errors optimizer",
    "spec": "errors mistakes options",
    "load": "batches errors mistakes modules options optimizer params problem spec version",
    "likeness": "optimizer",
    "training": "batches curvature errors problem",
    "curvature": "batches derivatives determinism dynamics errors linalg params problem work",
    "gradients": "batches curvature derivatives errors linalg modules params problem work",
    "signals": "batches derivatives modules problem work",
    "trials": "batches derivatives errors modules params problem work",
    "analyses": "errors options report work",
    "selftest": "analyses batches load problem report version work",
    "testing": "report sinks",
    "sinks": "errors report",
    "files": "errors",
    "flags": "options",
    "progress": "work",
    "track": "analyses errors flags options report runner work",
    "runner": "analyses errors report work",
    "output": "errors files options report sinks",
    "commands": "analyses errors flags options output report spec track",
    "cli": "analyses commands flags output spec track version",
    "curvcli": "version",
    "__main__": "errors",
}
"""What each room may import of the others; a package is one room, and so are the spec's files."""

INSIDE = {
    "report": "document",
    "analyses": "curvature determinism dynamics gradients likeness linalg optimizer params problem "
    "signals training trials updates",
    "commands": "load progress runner selftest track work",
    "track": "load trials",
    "testing": "curvcli",
    "curvcli": "analyses batches load modules optimizer options output problem spec work",
    "__main__": "analyses cli mistakes sinks",
}
"""What a room may import besides inside its functions, where it costs nothing at start-up."""

LIBRARIES = {
    "torch": "batches curvature derivatives determinism dynamics gradients likeness linalg load "
    "modules nonfinite optimizer params problem runner selftest signals track training trials "
    "updates",
    "numpy": "load",
    "rich": "sinks",
    "typer": "cli flags",
    "pydantic": "analyses flags mistakes options spec",
    "pydantic_core": "mistakes",
    "yaml": "spec",
}
"""The rooms that may import a library at module level; any other may do so inside functions."""

NEVER = {
    "torch": "sinks spec",
    "pandas": "analyses cli commands",
    "rich": "analyses cli commands linalg spec",
    "matplotlib": "analyses cli commands linalg output report spec",
}
"""The rooms that may not import a library at all."""

PRINTERS = {"cli.py", "__main__.py", "progress.py"}


class Arrow(NamedTuple):
    """One import."""

    path: str
    line: int
    room: str
    target: str
    inside: bool


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """Name the room of a module such as `load.data`, without the leading `curvcli.`."""
    first = module.partition(".")[0]
    return "spec" if first.startswith("spec_") or first == "strict_yaml" else first


def home(path: Path) -> str:
    """Name the room that a file is in."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "curvcli" if parts == ("__init__",) else room_of(parts[0])


def arrows(path: Path) -> Iterator[Arrow]:
    room, where = home(path), str(path.relative_to(PACKAGE))

    def walk(node: ast.AST, inside: bool) -> Iterator[Arrow]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import | ast.ImportFrom):
                for name in imported(child):
                    yield Arrow(where, child.lineno, room, target(name), inside)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports are absolute"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def target(name: str) -> str:
    """Name the room or the library that an import leads to, rooms as `curvcli/ROOM`."""
    package, _, rest = name.partition(".")
    return f"curvcli/{room_of(rest)}" if package == "curvcli" else package


def allowed(arrow: Arrow) -> bool:
    package, _, room = arrow.target.partition("/")
    if room:
        known = ROOMS[arrow.room] + " " + (INSIDE.get(arrow.room, "") if arrow.inside else "")
        return room in known.split() or room == arrow.room
    if package in (*LIBRARIES, *NEVER) and arrow.room in NEVER.get(package, "").split():
        return False
    if package in sys.stdlib_module_names or arrow.inside:
        return True
    return arrow.room in LIBRARIES.get(package, "").split()


def test_every_room_is_in_the_table() -> None:
    assert {home(path) for path in sources()} == set(ROOMS)


def test_imports_follow_the_table() -> None:
    wrong = [arrow for path in sources() for arrow in arrows(path) if not allowed(arrow)]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_table_leads_one_way() -> None:
    done: set[str] = set()
    left = {room: set(known.split()) for room, known in ROOMS.items()}
    while left:
        free = {room for room, known in left.items() if known <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free
        left = {room: known for room, known in left.items() if room not in free}


def test_a_forbidden_arrow_would_be_found() -> None:
    late = Arrow("analyses/eig.py", 1, "analyses", "curvcli/linalg", True)
    assert allowed(late)
    assert not allowed(late._replace(inside=False))
    assert not allowed(Arrow("linalg/cg.py", 1, "linalg", "curvcli/problem", True))
    assert not allowed(Arrow("cli.py", 1, "cli", "torch", False))


def test_only_the_command_line_prints() -> None:
    found = {
        path.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    }
    assert found <= PRINTERS


DRIVER = """
import sys
from curvcli.__main__ import run
code = run(sys.argv[1:])
heavy = [name for name in ("torch", "pandas", "numpy", "matplotlib") if name in sys.modules]
print("code", int(code), *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["eig", "--help"], 0),
        (["eig", "--topp", "3"], 2),
        (["eig", "--top", "many"], 2),
        (["eig", "--spec", "typo.yaml"], 2),
        (["eig", "missing.pt"], 2),
        (["render", "missing.json"], 2),
    ],
)
def test_quick_answers_import_nothing_heavy(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    project(tmp_path)
    project(tmp_path, name="typo.yaml", los="cross_entropy")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == f"code {code}"
