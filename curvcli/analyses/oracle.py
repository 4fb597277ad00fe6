"""What the dense spectrum of a matrix says of pairs that were estimated, and of the whole."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from curvcli.analyses.pairs import CONDITION
from curvcli.report import Check, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.linalg.ritz import Ritz, Which

ROUNDING = 1e3
"""How many roundings of the norm a product may be off by: errors of a loss add up."""

SYMMETRIC = 1e-6
"""Asymmetry relative to the norm, up to which it is rounding."""


@dataclass(frozen=True)
class Oracle:
    """What the dense matrix says.

    values:    (n,) ascending, its eigenvalues
    slack:     by how much they may themselves be off: rounding, which the matrix's asymmetry shows
    residuals: (k,) of the estimated pairs, by products in float64
    """

    ritz: "Ritz"
    which: "Which"
    top: int
    values: "Tensor"
    slack: float
    residuals: "Tensor"

    @classmethod
    def of(cls, H: "Tensor", ritz: "Ritz", which: "Which", top: int) -> "Oracle":
        """Hold pairs of a matrix against itself, H (n, n) float64 as products give it."""
        import torch

        skew = float((H - H.T).norm()) / 2
        H = (H + H.T) / 2
        theta, Y = ritz.values.cpu(), ritz.vectors.double().cpu()
        residuals = (Y @ H - theta[:, None] * Y).norm(dim=1)
        return cls(ritz, which, top, torch.linalg.eigvalsh(H), skew, residuals)

    @cached_property
    def truth(self) -> "Tensor":
        """The eigenvalues (k,) that have the ranks of the estimated ones."""
        from curvcli.linalg.ritz import wanted

        chosen, _ = wanted(self.values, self.top, self.which)
        return self.values[chosen[: len(self.ritz.values)]]

    @property
    def errors(self) -> list[float]:
        """How far each estimated eigenvalue is from the one of its rank."""
        found: list[float] = (self.ritz.values.cpu() - self.truth).abs().tolist()
        return found

    @property
    def norm(self) -> float:
        """The spectral norm."""
        return float(self.values.abs().max())

    @property
    def floor(self) -> float:
        """The size up to which an eigenvalue is zero to rounding."""
        import torch

        return max(len(self.values) * torch.finfo(torch.float64).eps * self.norm, self.slack)

    def check(self) -> Check:
        """Hold the intervals, and the claim that none was missed, against the eigenvalues."""
        from curvcli.linalg.matching import matched

        theta, radius = self.ritz.values.cpu(), self.ritz.radius.cpu() + self.floor
        held = matched(theta, radius, self.values)
        lost = held.count(None)
        inexact = lost > 0 and self._inexact()
        if inexact:
            held = matched(theta, radius + self._rounding, self.values)
        wrong = [f"the interval of #{i} holds no eigenvalue of its own"
                 for i, j in enumerate(held, 1) if j is None]  # fmt: skip
        wrong += self._missed()
        worst = f"by the dense float64 matrix; errors are up to {max(self.errors):.1e}"
        if wrong:
            more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
            advice = "try another --seed or --method block, and trust no figure of this run"
            return Check("oracle", "fail", f"{wrong[0]}{more}, {worst}", advice)
        if self.slack > SYMMETRIC * self.norm:
            said = f"the dense float64 matrix is asymmetric, by {self.slack / self.norm:.1e}"
            advice = "a backward may be wrong: try curv gradcheck --second-order"
            return Check("oracle", "warn", f"{said} of its norm", advice)
        if inexact:
            said = f"products are too inexact for {lost} of {len(held)} intervals"
            return Check("oracle", "warn", f"{said}, {worst}", "use --dtype float64")
        each = "interval holds an eigenvalue" if len(held) == 1 else "intervals hold one each"
        return Check("oracle", "pass", f"{len(held)} {each}, {worst}{self._swapped(radius)}")

    def _swapped(self, radius: "Tensor") -> str:
        """Name the pairs that are not those of their rank, as near ties need not be."""
        from curvcli.linalg.ritz import SLACK

        off = zip(self.errors, (radius + self._rounding).tolist(), strict=True)
        found = ", ".join(f"#{i}" for i, (error, most) in enumerate(off, 1) if error > most)
        claimed = f", but within {SLACK:.0%}" if self.ritz.converged else ""
        return f"; {found} not of that rank{claimed}" if found else ""

    @property
    def _rounding(self) -> float:
        """What rounding may do to products in the precision of the pairs."""
        import torch

        return ROUNDING * torch.finfo(self.ritz.vectors.dtype).eps * self.norm

    def _inexact(self) -> bool:
        """Tell whether float64 products leave residuals that rounding alone sets off the others.

        Then the intervals are those of a matrix that the estimator could not know better.
        """
        return bool((self.residuals <= self.ritz.radius.cpu() + self._rounding).all())

    def _missed(self) -> list[str]:
        """Say which eigenvalues were missed, where the search says that it has ended."""
        from curvcli.linalg.ritz import FLOOR, SLACK

        if not self.ritz.converged:
            return []
        theta, upper = self.ritz.values.cpu(), self.top if self.which == "both" else len(self.truth)
        beyond = self.truth - theta
        if self.which == "magnitude":
            beyond = self.truth.abs() - theta.abs()
        elif self.which == "smallest":
            beyond = -beyond
        beyond[upper:] *= -1
        most = SLACK * theta.abs().clamp_min(FLOOR * self.norm) + self.ritz.radius.cpu()
        pairs = zip(self.truth.tolist(), theta.tolist(), strict=True)
        return [
            f"an eigenvalue was missed, #{i} is {true:.6g} and not {found:.6g}"
            for i, ((true, found), miss) in enumerate(zip(pairs, beyond > most, strict=True), 1)
            if miss
        ]

    def metrics(self) -> dict[str, Metric]:
        """Give what only the whole spectrum says: signs, rank, condition number, traces."""
        below, above = self.values < -self.floor, self.values > self.floor
        negative, total = float(self.values[below].sum()), float(self.values.abs().sum())
        found = {
            "rank": Metric(
                int((below | above).sum()), f"numerical rank, of {len(self.values):,}", "count"
            ),
            "negative": Metric(int(below.sum()), "negative eigenvalues", "count"),
            "trace": Metric(float(self.values.sum()), "trace", "real"),
            "negative_trace": Metric(negative, "trace of the negative part", "real"),
        }
        if total:
            share = -negative / total
            found["negative_share"] = Metric(share, "negative share of curvature", "percent")
        if above.any():
            most, least = float(self.values[-1]), float(self.values[above][0])
            # Relative, the largest is off by far less than the smallest.
            error = most / least * min(self.slack / least, 1.0)
            found["condition"] = Metric(most / least, CONDITION, "real", error)
        return found

    def note(self) -> str:
        """Say what was done, and what the rank counts."""
        n = len(self.values)
        return (
            f"the dense float64 matrix was formed by {n:,} products; eigenvalues up to "
            f"{self.floor:.1e} in size count as zero: n eps ||H||, or rounding where that is more"
        )
