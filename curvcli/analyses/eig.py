"""Extreme eigenvalues of a curvature matrix, each with an interval that holds it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column, plus_minus

if TYPE_CHECKING:
    from curvcli.linalg.operator import LinearOperator
    from curvcli.linalg.ritz import Ritz
    from curvcli.problem import Problem
    from curvcli.work import Work


@dataclass(frozen=True)
class EigRow:
    """One eigenvalue: [low, high] holds it; `residual` is ||H y - theta y||.

    `block` names the tensor whose diagonal block it belongs to, and is empty for the whole;
    `sampling` is the standard error over the examples, with the eigenvector kept.
    """

    block: str = column("block")
    index: int = column("#", "count")
    eigenvalue: float = column("eigenvalue", "real", error="radius")
    radius: float = column("radius", "relative")
    low: float = column("low", "real", detail=True)
    high: float = column("high", "real", detail=True)
    residual: float = column("residual", "relative")
    sampling: float | None = column("± sampling", "relative")


class Eig(Analysis):
    """How sharp is the loss here: the extreme eigenvalues of the Hessian, or of another matrix?

    Lanczos with full reorthogonalisation runs until the pairs asked for have converged, then looks
    from an independent random start for an eigenvalue that it may have missed. Every interval holds
    an eigenvalue, and k intervals hold k different ones.
    """

    name: ClassVar[str] = "eig"
    Row: ClassVar[type] = EigRow

    matrix: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = option(
        "hessian", "Hessian, Gauss-Newton matrix, Fisher of the model's own labels, of the data's"
    )
    top: int = option(5, "how many eigenvalues", ge=1, short="-k")
    which: Literal["largest", "smallest", "both", "magnitude"] = option(
        "largest", "which end of the spectrum; both gives that many from either end"
    )
    per_layer: bool = option(False, "the extreme eigenvalue of every tensor's block too")
    tolerance: float = option(1e-2, "relative residual at which a pair counts", gt=0, le=0.5)
    method: Literal["lanczos", "power"] = option("lanczos", "power iteration is there to compare")
    max_matvecs: int = option(500, "products after which to give up", ge=2)
    label_samples: int = option(1, "labels drawn for each term of the Fisher", ge=1)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Find the pairs and put their certificates beside them."""
        from curvcli.curvature.matrices import described, matrix
        from curvcli.linalg.lanczos import lanczos
        from curvcli.linalg.power import power

        if self.method == "power" and self.which == "both":
            raise CurvError(
                "E_USAGE",
                "power iteration finds eigenvalues by size, not both ends",
                "use --method lanczos, or --which magnitude",
            )
        chosen = matrix(self.matrix, problem, work, self.label_samples)
        solve = lanczos if self.method == "lanczos" else power
        ritz = solve(
            chosen.operator,
            self.top,
            self.tolerance,
            work.rng,
            which=self.which,
            max_matvecs=min(self.max_matvecs, self._room(problem, work)),
            watch=work.announce("eigenvalues"),
        )
        notes = described(self.matrix, chosen)
        if self.top > problem.layout.size:
            notes.append(f"there are {problem.layout.size} parameters, so no more eigenvalues")
        if len(ritz.values) == 0:
            return self.result("no eigenvalue is known yet", notes=notes, interrupted=True)
        rows = self._rows(ritz, sampling=self._sampling(ritz, chosen.method, problem, work))
        blocks = self._blocks(chosen.operator, problem, work) if self.per_layer else {}
        return self.result(
            self._headline(rows),
            rows=[*rows, *(self._rows(r, n)[0] for n, r in blocks.items() if len(r.values))],
            metrics=self._metrics(rows, ritz),
            checks=[
                self._convergence(ritz),
                self._search(ritz),
                *(self._block(n, r) for n, r in blocks.items()),
                *self.doubts(chosen.notes),
            ],
            notes=notes,
            interrupted="interrupted" in {ritz.status, *(r.status for r in blocks.values())},
        )

    def _sampling(
        self, ritz: "Ritz", method: str, problem: "Problem", work: "Work"
    ) -> list[float] | None:
        """Take the standard errors over the data, unless Ctrl-C ended the work before."""
        from curvcli.curvature.sampling import sampling_errors

        if ritz.status == "interrupted":
            return None
        watch = work.announce("sampling errors")
        try:
            return sampling_errors(self.matrix, method, problem, ritz.vectors, watch)
        except KeyboardInterrupt:
            return None

    def _blocks(
        self, operator: "LinearOperator", problem: "Problem", work: "Work"
    ) -> "dict[str, Ritz]":
        """Find the extreme eigenvalue of every tensor's diagonal block, until Ctrl-C."""
        from curvcli.linalg.lanczos import lanczos
        from curvcli.linalg.operator import Restricted

        found: dict[str, Ritz] = {}
        which = "largest" if self.which == "both" else self.which
        watch = work.announce("eigenvalues of every tensor's block")
        for name, block in problem.layout.slices.items():
            if block.start == block.stop:
                continue
            inner = Restricted(operator, block)
            limit = min(self.max_matvecs, self._room(problem, work))
            found[name] = lanczos(
                inner, 1, self.tolerance, work.rng, which=which, max_matvecs=limit
            )
            if found[name].status == "interrupted":
                break
            watch(len(found), len(problem.names), None, None)
        return found

    def _block(self, name: str, ritz: "Ritz") -> Check:
        """Say whether a block's eigenvalue is certain."""
        if ritz.converged:
            return Check(f"block {name}", "pass", f"converged in {ritz.matvecs} products")
        said = f"not converged in {ritz.matvecs} products"
        return Check(f"block {name}", "undecided", said, "raise --max-matvecs or --tolerance")

    def _room(self, problem: "Problem", work: "Work") -> int:
        """Say how many vectors of a basis fit in memory; every product adds one.

        Raises: CurvError (E_MEMORY) where those of the answer alone do not.
        """
        from curvcli.curvature.memory import spare

        like = problem.like
        room = spare(like.device) if work.memory is None else work.memory
        fits = int(room // (like.numel() * like.element_size()))
        if fits < 2 * self.top + 2:
            raise CurvError(
                "E_MEMORY",
                f"{self.top} eigenvectors of {like.numel():,} entries need more than "
                f"{room / 1e9:.2g} GB",
                "raise --memory, or choose fewer --top or --params",
            )
        return fits

    def _rows(
        self, ritz: "Ritz", block: str = "", sampling: list[float] | None = None
    ) -> list[EigRow]:
        theta, radius = ritz.values.tolist(), ritz.radius.tolist()
        return [
            EigRow(block, i + 1, t, r, t - r, t + r, s, sampling[i] if sampling else None)
            for i, (t, r, s) in enumerate(zip(theta, radius, ritz.residuals.tolist(), strict=True))
        ]

    def _headline(self, rows: list[EigRow]) -> str:
        if self.which == "smallest":
            return f"smallest eigenvalue {plus_minus(rows[0].eigenvalue, rows[0].radius)}"
        said = f"largest eigenvalue {plus_minus(rows[0].eigenvalue, rows[0].radius)}"
        if self.which == "magnitude":
            return said.replace("largest eigenvalue", "eigenvalue largest in size")
        if self.which == "both":
            least = rows[min(self.top, len(rows) - 1)]
            said += f", smallest {plus_minus(least.eigenvalue, least.radius)}"
        return said

    def _metrics(self, rows: list[EigRow], ritz: "Ritz") -> dict[str, Metric]:
        most = max(rows, key=lambda r: r.eigenvalue)
        least = min(rows, key=lambda r: r.eigenvalue)
        found = {}
        if self.which in ("largest", "both"):
            found["lambda_max"] = Metric(most.eigenvalue, "largest eigenvalue", "real", most.radius)
        if self.which in ("smallest", "both"):
            found["lambda_min"] = Metric(
                least.eigenvalue, "smallest eigenvalue", "real", least.radius
            )
        if self.which == "magnitude":
            found["spectral_norm"] = Metric(
                abs(rows[0].eigenvalue), "spectral norm", "real", rows[0].radius
            )
        return found | {
            "matvecs": Metric(ritz.matvecs, "products used", "count"),
            "doubt": Metric(ritz.doubt, "chance that one was missed, at most", "percent"),
        }

    def _convergence(self, ritz: "Ritz") -> Check:
        if ritz.status in ("converged", "unverified"):
            return Check(
                "converged", "pass", f"every residual is below {self.tolerance:g} of its eigenvalue"
            )
        if ritz.status == "inexact":
            return Check(
                "converged",
                "undecided",
                "the recurrence converged, but a true product leaves a residual of "
                f"{float(ritz.residuals.max()):.1e}: products are too inexact for this tolerance",
                "use --dtype float64, another --hvp, or a larger --tolerance",
            )
        return Check(
            "converged",
            "undecided",
            f"not every residual fell below {self.tolerance:g} of its eigenvalue in "
            f"{ritz.matvecs} products",
            "raise --max-matvecs or --tolerance, or ask for fewer",
        )

    def _search(self, ritz: "Ritz") -> Check:
        from curvcli.linalg.ritz import DOUBT

        if ritz.converged or (ritz.status == "inexact" and ritz.doubt <= DOUBT):
            return Check(
                "none missed",
                "pass",
                "an independent random start found no further eigenvalue beyond these "
                f"(chance of a miss by more than 5 %: at most {ritz.doubt:.1%})",
            )
        return Check(
            "none missed",
            "undecided",
            "the search for a missed eigenvalue did not end",
            "raise --max-matvecs",
        )
