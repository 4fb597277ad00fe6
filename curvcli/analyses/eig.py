"""Extreme eigenvalues of a curvature matrix, each with an interval that holds it."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from curvcli.analyses.base import Analysis
from curvcli.analyses.blocks import Blocks, Grain, Groups, Solve, grouped
from curvcli.analyses.dense import affordable, dense_matrix, refuse_dense
from curvcli.analyses.oracle import Oracle
from curvcli.analyses.pairs import (
    EigRow,
    along_gradient,
    convergence,
    extremes,
    headline,
    pair_rows,
    search,
    signs,
    vector_arrays,
)
from curvcli.errors import CurvError
from curvcli.options import ArrayFile, option
from curvcli.report import Check, Metric, Result

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.curvature.alignment import Alignment
    from curvcli.linalg.operator import LinearOperator
    from curvcli.linalg.ritz import Ritz
    from curvcli.problem import Problem
    from curvcli.work import Watch, Work


@dataclass
class Found:
    """What is known, in the order in which it is found."""

    ritz: "Ritz"
    sampling: list[float] | None = None
    aligned: "Alignment | None" = None
    oracle: Oracle | None = None
    blocks: Blocks = field(default_factory=Blocks)
    interrupted: bool = False


class Eig(Analysis):
    """How sharp is the loss here: the extreme eigenvalues of the Hessian, or of another matrix?

    Lanczos with full reorthogonalisation runs until the pairs asked for have converged, then looks
    from an independent random start for an eigenvalue that it may have missed. Every interval holds
    an eigenvalue, and k intervals hold k different ones. Where the matrix is small it is formed
    whole in float64, too, and every estimate is held against its own eigenvalues.
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
    layers: Grain | None = option(None, "of every tensor's block, or of every module's")
    tolerance: float = option(1e-2, "relative residual at which a pair counts", gt=0, le=0.5)
    method: Literal["lanczos", "block", "power"] = option(
        "lanczos", "block sees every copy of a repeated eigenvalue; power is there to compare"
    )
    block_size: int = option(4, "vectors of --method block", ge=2)
    max_matvecs: int = option(500, "products after which to give up", ge=2)
    vectors: ArrayFile | None = option(
        None, "write the eigenvectors, a tensor for each parameter (.safetensors, .csv)",
        metavar="FILE",
    )  # fmt: skip
    dense_below: int | None = option(
        None, "form the matrix in float64 up to that many parameters, and hold the estimates "
        "against its eigenvalues", ge=0, shown="1000 where that takes no second",
    )  # fmt: skip
    label_samples: int = option(1, "labels drawn for each term of the Fisher", ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> "Eig":
        if self.method == "power" and self.which == "both":
            raise ValueError(
                "power iteration finds eigenvalues by size, not both ends: use method lanczos or "
                "block, or which magnitude"
            )
        if "block_size" in self.model_fields_set and self.method != "block":
            raise ValueError(f"block_size is for method block, not {self.method}")
        return self

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Find the pairs, then what puts them in their place, and tell all with certificates."""
        from curvcli.curvature.alignment import alignment
        from curvcli.curvature.matrices import described, matrix
        from curvcli.curvature.sampling import sampling_errors

        groups = grouped(problem, self.layers or "tensor") if self.layers or self.per_layer else {}
        dense, before = self._dense(problem, work), work.rng.get_state()
        chosen = matrix(self.matrix, problem, work, self.label_samples)
        A, room = chosen.operator, self._room(problem, work)
        solve = self._solver(room, work)
        planned = self._planned(A, room, problem, work, groups)
        found = Found(solve(planned, self.top, work.announce("eigenvalues")))
        notes = [*described(self.matrix, chosen), *self._notes(found.ritz, problem)]
        if len(found.ritz.values) == 0:
            return self._nothing(found.ritz, notes)
        sampling = partial(sampling_errors, self.matrix, chosen.method, memory=work.memory)
        try:
            if found.ritz.status == "interrupted":
                raise KeyboardInterrupt
            vectors = found.ritz.vectors
            found.sampling = sampling(problem, vectors, work.announce("sampling errors"))
            found.aligned = alignment(problem, A, vectors)
            if found.aligned is None:
                notes.append("the gradient is zero: no curvature lies along it")
            if dense:
                found.oracle = self._oracle(found.ritz, problem, work, before)
            if groups:
                found.blocks.find(A, problem, groups, solve, work)
                found.blocks.sample(problem, groups, sampling, work)
        except KeyboardInterrupt:
            found.interrupted = True
        return self._told(found, problem, notes, self.doubts(chosen.notes))

    def _told(
        self, found: Found, problem: "Problem", notes: list[str], doubts: list[Check]
    ) -> Result:
        """Put everything that is known together."""
        ritz, oracle, blocks = found.ritz, found.oracle, found.blocks
        errors = oracle.errors if oracle else None
        rows = pair_rows(ritz, self.which, self.top, sampling=found.sampling, errors=errors)
        inner = blocks.rows(self.which)
        result = self.result(
            headline(rows, self.which, inner, complete=found.ritz.complete),
            rows=[*rows, *inner],
            metrics=self._metrics(found, rows, problem.layout.size),
            checks=[
                convergence(ritz, self.tolerance),
                search(ritz),
                *([oracle.check()] if oracle else []),
                *blocks.checks(),
                *doubts,
            ],
            notes=[*notes, *([oracle.note()] if oracle else []), *blocks.notes()],
            interrupted=found.interrupted,
            arrays=vector_arrays(ritz, problem.layout) if self.vectors else None,
        )
        if oracle is None:
            return result
        # The true errors are no detail where they are known.
        shown = (replace(c, detail=c.detail and c.name != "error") for c in result.columns)
        return replace(result, columns=tuple(shown))

    @property
    def _block(self) -> int:
        return self.block_size if self.method == "block" else 1

    def _fits(self, size: int, room: float, itemsize: int) -> int:
        """Say how many vectors the basis of a matrix may have, where `room` bytes are free."""
        pairs = min(size, self.top * (2 if self.which == "both" else 1))
        # Besides the basis: what a step of Lanczos needs, and the answer.
        return int(room // (size * itemsize)) - (3 * self._block + 4) - pairs

    def _room(self, problem: "Problem", work: "Work") -> float:
        """Say how many bytes there are for a basis.

        Raises: CurvError (E_MEMORY) where the least that Lanczos takes does not fit.
        """
        from curvcli.curvature.memory import spare
        from curvcli.linalg.lanczos import least_vectors

        like = problem.like
        # The graphs are there by now, and what is free is for the basis.
        room = spare(like.device, 0.75) if work.memory is None else work.memory
        least = least_vectors(like.numel(), self.top, self.which, self._block)
        if self._fits(like.numel(), room, like.element_size()) < least:
            raise CurvError(
                "E_MEMORY",
                f"{self.top} eigenvectors of {like.numel():,} entries need more than "
                f"{room / 1e9:.2g} GB",
                "raise --memory, or choose fewer --top or --params",
            )
        return room

    def _solver(self, room: float, work: "Work") -> Solve:
        """Make what finds the extreme pairs of the whole, or of a block."""
        from curvcli.linalg.lanczos import lanczos
        from curvcli.linalg.power import power

        def solve(A: "LinearOperator", top: int, watch: "Watch") -> "Ritz":
            if self.method == "power":
                return power(
                    A, top, self.tolerance, work.rng,
                    which=self.which, max_matvecs=self.max_matvecs, watch=watch,
                )  # fmt: skip
            return lanczos(
                A, top, self.tolerance, work.rng, which=self.which, max_matvecs=self.max_matvecs,
                max_vectors=self._fits(A.size, room, A.like.element_size()), block=self._block,
                watch=watch,
            )  # fmt: skip

        return solve

    def _planned(
        self, A: "LinearOperator", room: float, problem: "Problem", work: "Work", groups: Groups
    ) -> "LinearOperator":
        """Tell what the pairs of the whole and of the blocks may take."""
        from curvcli.curvature.plan import planned

        def most(size: int) -> int:  # a basis ends where it fills the space
            return (
                self.max_matvecs if self.method == "power" else min(self.max_matvecs, 2 * size + 1)
            )

        entries = dict(zip(problem.names, problem.layout.sizes, strict=True))
        blocks = sum(most(sum(entries[n] for n in names)) for names in groups.values())
        fits = self._fits(A.size, room, A.like.element_size())
        return planned(
            A,
            work,
            most(A.size) + blocks,
            vectors=self.top if self.method == "power" else min(fits, most(A.size)),
            besides=f", {most(A.size):,} of them for the whole" if groups else "",
        )

    def _dense(self, problem: "Problem", work: "Work") -> bool:
        """Decide whether the dense matrix is formed: where that was asked for, or costs little.

        Raises: CurvError (E_MEMORY, E_USAGE) where it was asked for and cannot be had.
        """
        if self.dense_below is None:
            return affordable(problem, work)
        wanted = problem.layout.size <= self.dense_below
        if wanted:
            refuse_dense(problem, work)
        return wanted

    def _oracle(self, ritz: "Ritz", problem: "Problem", work: "Work", before: "Tensor") -> Oracle:
        same = work.rng.clone_state()
        same.set_state(before)
        # The estimator's own way to multiply, --hvp, is part of what is held against it.
        alike = replace(work, rng=same, method="auto")
        H = dense_matrix(self.matrix, problem, alike, self.label_samples)
        return Oracle.of(H, ritz, self.which, self.top)

    # --- what is told --------------------------------------------------------------------------

    def _nothing(self, ritz: "Ritz", notes: list[str]) -> Result:
        """Tell that there is nothing: Ctrl-C came early, or power iteration met the wrong signs."""
        if ritz.status == "interrupted":
            return self.result("no eigenvalue is known yet", notes=notes, interrupted=True)
        said = f"no eigenvalue of that sign appeared in {ritz.matvecs} products"
        check = Check("converged", "undecided", said, "use --method lanczos, or --which magnitude")
        return self.result(said, checks=[check], notes=notes)

    def _metrics(self, found: Found, rows: list[EigRow], size: int) -> dict[str, Metric]:
        exact = found.oracle.metrics() if found.oracle else signs(rows, self.which, size)
        known = extremes(rows, self.which) | exact
        if found.aligned:
            known |= along_gradient(found.aligned, len(rows))
        known["matvecs"] = Metric(found.ritz.matvecs, "products used", "count")
        if found.blocks.pairs:
            known["block_matvecs"] = Metric(found.blocks.matvecs, "products of blocks", "count")
        doubt = Metric(found.ritz.doubt, "chance that one was missed, at most", "percent")
        return known | {"doubt": doubt}

    def _notes(self, ritz: "Ritz", problem: "Problem") -> list[str]:
        notes = []
        if self.top > problem.layout.size:
            notes.append(f"there are {problem.layout.size} parameters, so no more eigenvalues")
        if ritz.restarts:
            often = "once" if ritz.restarts == 1 else f"{ritz.restarts:,} times"
            notes.append(f"restarted {often} from the best vectors: memory holds no more")
        return notes
