"""What an analysis is: options that are its fields, a question that is its docstring, an answer."""

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from curvcli.errors import listed
from curvcli.options import ArrayFile, Options
from curvcli.report import Check, Figure, Metric, Result, columns, rows_of

if TYPE_CHECKING:
    from curvcli.problem import Problem
    from curvcli.work import Work


class Analysis(Options):
    """One question about a Problem.

    A subclass names itself, declares its options as fields, its rows as a dataclass of columns, and
    answers in `run`; one whose answer has figures says so in `draws`. Nothing else is needed: the
    command, its help, the YAML key, the Python call and every sink follow from these.
    """

    name: ClassVar[str]
    Row: ClassVar[type]

    @abstractmethod
    def run(self, problem: "Problem", work: "Work") -> Result:
        """Answer the question.

        Raises: CurvError where the question cannot be answered for this model.
        """

    def result(
        self,
        headline: str,
        *,
        rows: Sequence[Any] = (),
        metrics: Mapping[str, Metric] | None = None,
        checks: Sequence[Check] = (),
        notes: Sequence[str] = (),
        figures: Sequence[Figure] = (),
        arrays: Mapping[str, Any] | None = None,
        interrupted: bool = False,
    ) -> Result:
        """Put an answer together; numbers only, tensors stop here.

        `arrays` are NumPy's, by name: what is written to the file that an option names.
        """
        assert self.draws or not figures, "an analysis says beforehand that it draws"
        return Result(
            name=self.name,
            question=self.question(),
            headline=headline,
            columns=columns(self.Row),
            rows=rows_of(rows),
            metrics=dict(metrics or {}),
            checks=(*checks, *self._finite(rows, metrics or {})),
            notes=tuple(n for n in notes if n not in {c.message for c in checks}),
            figures=tuple(figures),
            options=self.model_dump(),
            interrupted=interrupted,
            arrays=dict(arrays or {}),
            file=self.file,
        )

    @property
    def draws(self) -> bool:
        """Whether its answer has figures."""
        return False

    @property
    def file(self) -> Path | None:
        """Where the arrays of the answer are to go: what the option for an ArrayFile says."""
        named = (n for n, f in type(self).model_fields.items()
                 if ArrayFile in (f.annotation, *get_args(f.annotation)))  # fmt: skip
        return next((getattr(self, n) for n in named), None)

    def doubts(self, notes: Sequence[str]) -> list[Check]:
        """Warn where a second derivative had to be taken another way, or could not be trusted."""
        return [
            Check("second derivative", "warn", n, "a backward may be wrong: try curv gradcheck")
            for n in notes
            if n.startswith(("not by", "this product is doubtful"))
        ]

    def _finite(self, rows: Sequence[Any], metrics: Mapping[str, Metric]) -> list[Check]:
        """Refuse to decide on figures that are no numbers."""
        shown = [c.name for c in columns(self.Row) if not c.detail]
        # A row goes by the name in it, where it has one.
        named = next((c.name for c in columns(self.Row) if c.format == "text"), None)
        ids = [str(getattr(r, named)) if named else f"row {i + 1}" for i, r in enumerate(rows)]
        figures = [
            (f"{n} of {i}", getattr(r, n)) for i, r in zip(ids, rows, strict=True) for n in shown
        ]
        figures += [(n, m.value) for n, m in metrics.items()]
        bad = [n for n, x in figures if isinstance(x, float) and not math.isfinite(x)]
        return [Check("finite", "undecided", f"no number: {listed(bad)}")] if bad else []

    def answer(self, problem: "Problem", work: "Work") -> Result:
        """Run on a problem whose model is held in its mode, and take the time."""
        start = time.perf_counter()
        with problem.engaged():
            result = self.run(problem, work)
        return replace(result, seconds=time.perf_counter() - start)

    @classmethod
    def question(cls) -> str:
        """Give the first line of the docstring: the question."""
        return (cls.__doc__ or "").strip().splitlines()[0]
