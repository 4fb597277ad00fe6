"""What is told of modes beside an optimizer's threshold: rows, verdict, figures and notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from curvcli.report import Check, Metric, Status, column

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.dynamics.laws import Stepped
    from curvcli.linalg.ritz import Ritz
    from curvcli.optimizer import SavedOptimizer
    from curvcli.params import Layout

Verdict = Literal["stable", "at the edge", "beyond", "undecided"]


@dataclass(frozen=True)
class StabilityRow:
    """One mode: [low, high] holds the eigenvalue; `ratio` is its share of the threshold.

    `radius` is what a step multiplies the mode by in the long run, `steps` over how many steps it
    shrinks by e, or grows where negative. `group` is that of the tensor with most of the mode.
    """

    end: str = column("mode")
    index: int = column("#", "count")
    eigenvalue: float = column("sharpness", "real", error="error")
    error: float = column("error", "relative")
    low: float = column("low", "real", detail=True)
    high: float = column("high", "real", detail=True)
    sampling: float | None = column("± sampling", "relative")
    ratio: float = column("of threshold", "percent")
    kind: str = column("motion")
    radius: float = column("factor per step", "real")
    steps: float | None = column("steps per e-fold", "real")
    group: int = column("group", "count", detail=True)


@dataclass(frozen=True)
class Edge:
    """What sharpness is held against, in the units of the law that acts most strongly.

    `scale` is what the matrix's eigenvalues are multiplied by to be held against 2, and zero where
    the learning rate is; `width` is how far from the threshold either way counts as the edge.
    """

    laws: "Mapping[str, Stepped]"
    scale: float
    width: float

    @property
    def threshold(self) -> float | None:
        """The largest stable sharpness; None where the learning rate is zero."""
        return 2 / self.scale if self.scale else None

    def ratio(self, value: float) -> float:
        """Give a sharpness as a share of the threshold."""
        return value * self.scale / 2

    def row(self, end: str, index: int, pair: tuple[float, float], name: str) -> StabilityRow:
        """Tell of one eigenvalue and its radius; `name` is the tensor with most of the mode."""
        value, error = pair
        step = self.laws[name]
        mode = step.law.mode(value * self.scale)
        return StabilityRow(
            end=end,
            index=index,
            eigenvalue=value,
            error=error,
            low=value - error,
            high=value + error,
            sampling=None,
            ratio=self.ratio(value),
            kind=mode.kind,
            radius=mode.radius,
            steps=mode.steps,
            group=step.group,
        )

    def rows(self, ritz: "Ritz", layout: "Layout", end: str) -> list[StabilityRow]:
        """Tell of every pair; the eigenvectors lie in `layout`."""
        pairs = zip(ritz.values.tolist(), ritz.radius.tolist(), strict=True)
        return [
            self.row(end, i + 1, pair, _heaviest(layout.named(vector)))
            for i, (pair, vector) in enumerate(zip(pairs, ritz.vectors, strict=True))
        ]

    def verdict(self, first: StabilityRow, ritz: "Ritz") -> Verdict:
        """Say where the whole interval lies; only being beyond needs no finished search."""
        low, high = self.ratio(first.low), self.ratio(first.high)
        if low > 1 + self.width:
            return "beyond"
        if not ritz.complete:
            return "undecided"
        return "stable" if high < 1 - self.width else "at the edge"

    def check(self, first: StabilityRow, ritz: "Ritz") -> Check:
        """Put the verdict into a check; full batches live at the edge, so beyond is a warning."""
        if self.threshold is None:
            return Check("stable", "pass", "with a learning rate of zero every step is")
        verdict = self.verdict(first, ritz)
        status, said, advice = _SAID[verdict]
        if verdict == "undecided":
            said += f" in {ritz.matvecs} products"
        else:
            said += f": the sharpness is {self.between(first)} of the threshold"
        if verdict in ("stable", "at the edge"):
            said += f" (chance of a miss by more than 5 %: at most {ritz.doubt:.1%})"
        return Check("stable", status, said, advice)

    def limit(self, first: StabilityRow, ritz: "Ritz", at_most: float) -> Check:
        """Fail where the sharpness certainly exceeds this share of the threshold."""
        said = f"{self.between(first)} of the threshold, asked was at most {at_most:.1%}"
        if self.ratio(first.low) > at_most:
            return Check("at most", "fail", said, "lower the learning rate, or warm it up")
        unsure = self.verdict(first, ritz) == "undecided"
        if unsure or self.ratio(first.high) > at_most:
            return Check("at most", "undecided", said, "lower --tolerance or raise --max-matvecs")
        return Check("at most", "pass", said)

    def between(self, first: StabilityRow) -> str:
        """Write the interval as shares of the threshold."""
        low, high = f"{self.ratio(first.low):.1%}", f"{self.ratio(first.high):.1%}"
        return low if low == high else f"{low} to {high}"

    def metrics(
        self, rows: Sequence[StabilityRow], saved: "SavedOptimizer", ritz: "Ritz"
    ) -> dict[str, Metric]:
        """Give the figures of the sharpest mode, and the largest stable learning rate.

        Where a sharper one may be left, a Rayleigh quotient is a lower bound, and no room is known.
        """
        from curvcli.dynamics.laws import adaptive

        first = rows[0]
        named = "preconditioned sharpness" if adaptive(self.laws) else "sharpness"
        found = {"sharpness": Metric(first.eigenvalue, named, "real", first.error)}
        if not ritz.complete:
            found = {"sharpness": Metric(first.eigenvalue, f"{named}, at least", "real")}
        if self.threshold is None:
            return found
        if not ritz.complete:
            return found | {
                "threshold": Metric(self.threshold, "threshold", "real"),
                "ratio": Metric(first.ratio, "sharpness, of the threshold, at least", "percent"),
            }
        spread = self.ratio(first.error)
        found |= {
            "threshold": Metric(self.threshold, "threshold", "real"),
            "ratio": Metric(first.ratio, "sharpness, of the threshold", "percent", spread),
            "margin": Metric(1 - first.ratio, "room below the threshold", "percent", spread),
        }
        if first.low <= 0:
            return found
        factor = self.threshold / first.eigenvalue
        off = self.threshold / first.low - factor
        rates = {float(saved.groups[step.group].options["lr"]) for step in self.laws.values()}
        title = "largest stable learning rate"
        if len(rates) > 1:
            return found | {"lr_factor": Metric(factor, f"{title}s, over these", "real", off)}
        (rate,) = rates
        return found | {"lr_max": Metric(factor * rate, title, "real", off * rate)}


def _heaviest(parts: "Mapping[str, Tensor]") -> str:
    """Name the tensor in which most of a vector lies."""
    return max(parts, key=lambda n: float(parts[n].double().square().sum()))


_SAID: dict[Verdict, tuple[Status, str, str]] = {
    "stable": ("pass", "stable", ""),
    "at the edge": (
        "warn",
        "at the edge of stability",
        "usual for full batches; mini-batches call for a lower learning rate",
    ),
    "beyond": ("warn", "beyond the edge of stability", "lower the learning rate, or warm it up"),
    "undecided": (
        "undecided",
        "the sharpest mode is not certain",
        "raise --max-matvecs or --tolerance",
    ),
}
