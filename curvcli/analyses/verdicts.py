"""What each sanity trial says of model, loss and targets: a row with its verdict, and advice."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curvcli.errors import listed
from curvcli.report import Check, Status, column

if TYPE_CHECKING:
    from curvcli.trials.apart import Averaging, Leak
    from curvcli.trials.outputs import Kind, Shapes

ROUNDING = 1e3
"""Units of rounding that the order of a sum can make in a loss; no more than a tenth of it."""


@dataclass(frozen=True)
class SanityRow:
    """One trial."""

    check: str = column("check")
    found: float | None = column("found", "real", error="error")
    error: float | None = column("error", "relative", detail=True)
    expected: str = column("expected")
    verdict: str = column("verdict")
    remark: str = column("remark", detail=True)


@dataclass(frozen=True)
class Trial:
    """A row, and what to do where it warns."""

    row: SanityRow
    said: str = ""
    advice: str = ""

    @property
    def check(self) -> Check | None:
        """The verdict as a check; None for what was not run, or is only told."""
        if self.row.verdict not in ("pass", "warn"):
            return None
        status: Status = "warn" if self.row.verdict == "warn" else "pass"
        return Check(self.row.check, status, self.said or self.row.remark, self.advice)


def not_run(check: str, why: str) -> Trial:
    """Say why a trial was not run."""
    return Trial(SanityRow(check, None, None, "", "not run", why))


def trial(
    check: str,
    found: tuple[float | None, float | None],
    expected: str,
    wrong: str,
    right: str,
    advice: str = "",
    remark: str = "",
) -> Trial:
    """Make a row that warns where there is something `wrong` to say."""
    verdict = "warn" if wrong else "pass"
    return Trial(SanityRow(check, *found, expected, verdict, remark), wrong or right, advice)


def penalty(name: str, value: float, slope: float) -> Trial:
    """Judge a penalty: it raises the loss, and has a gradient."""
    wrong = ""
    if not value > 0:
        wrong = f"it is {value:.4g}, so it does not raise the loss"
    elif slope == 0:
        wrong = f"it is {value:.4g} and has no gradient: it changes nothing"
    return trial(
        f"penalty {name}", (value, None), "> 0, with a gradient", wrong,
        f"it adds {value:.4g} to the loss", "check the sign of the penalty, and for detach()",
    )  # fmt: skip


def arriving(unused: list[str], zero: list[str], total: int) -> Trial:
    """Judge which tensors the gradient over all data is zero for."""
    wrong, bad = "", len(unused) + len(zero)
    if bad == total and zero:
        wrong = "every gradient is zero on these examples"
    elif bad:
        parts = [f"the loss does not depend on {listed(unused)}"] if unused else []
        parts += [f"the gradient is zero for {listed(zero)}"] if zero else []
        wrong = "; ".join(parts)
    return trial(
        "tensors with a gradient", (float(total - bad), None), f"{total}", wrong,
        f"all {total} tensors", "use it in forward(), freeze it, or look for detach(), dead units",
    )  # fmt: skip


def apart(leak: "Leak", normalised: bool) -> Trial:
    """Judge how much outputs depend on other examples."""
    wrong = advice = ""
    if leak.size > leak.floor:
        wrong = (f"an example's outputs depend on others: they change by {leak.replaced:.1e} of "
                 "their size when others are replaced")  # fmt: skip
        if leak.gradient is not None:
            share = "all" if leak.gradient == 1 else f"{leak.gradient:.1e}"
            wrong += f", and {share} of the gradient is by others' inputs"
        advice = (
            "batch normalisation in train mode does this by design; use --mode eval to look at "
            "what is deployed"
            if normalised
            else "look for a mean, softmax or attention over the batch axis (batch_first=?)"
        )
    right = "no output depends on another example"
    return trial("examples apart", (leak.size, None), "0", wrong, right, advice)


def averaged(found: "Averaging") -> Trial:
    """Judge whether the loss is a mean over examples."""
    wrong = ""
    if not found.relative <= min(ROUNDING * found.eps, 0.1):
        wrong = (f"the loss of {found.size} examples together is {found.batch:.5g}, the mean over "
                 f"them one by one {found.examples:.5g}")  # fmt: skip
        times = found.batch / found.examples if found.examples else math.inf
        if math.isclose(times, found.size, rel_tol=1e-3):
            wrong += ": a sum over the examples"
    return trial(
        "mean over examples", (found.batch, None), f"{found.examples:.5g}", wrong,
        "the loss is the mean over the examples",
        "average over the examples, and normalise over the classes; a loss with weights returns "
        "(sum, weight)",
    )  # fmt: skip


def repeatable(said: str) -> Trial:
    """Judge whether two evaluations are one; `said` is how they differ."""
    advice = "tell what is random of the mode, as F.dropout(x, training=self.training)"
    return trial("repeatable", (None, None), "one gradient twice", said, "", advice)


def varied(same: bool, examples: int) -> Trial:
    """Judge whether there is anything to learn of the targets."""
    said = f"all targets of these {examples} examples are the same: a constant is right for all"
    return trial(
        "targets vary", (None, None), "more than one", said if same else "", "",
        "check how the labels are read, and that the examples are not sorted by class",
    )  # fmt: skip


def shaped(found: "Shapes") -> Trial:
    """Judge whether outputs and targets that are compared entry by entry have one shape."""
    wrong, expected = "", f"outputs as targets, {_batch(found.target)}"
    if found.wide is not None:
        wrong = (f"outputs {_batch(found.output)} against targets {_batch(found.target)}: torch "
                 f"broadcasts these to {_batch(found.wide)}")  # fmt: skip
        wide, here = found.torch, found.loss
        if wide and here and not math.isclose(wide, here, rel_tol=1e-4):
            wrong += f", where the loss is {wide:.4g}; entry by entry it is {here:.4g}"
    advice = "give the model's output or the targets the shape of the other: squeeze(-1)"
    remark = "torch refuses such shapes; curv lines them up" if found.refused else ""
    return trial("shapes alike", (None, None), expected, wrong, remark, advice, remark)


def _batch(shape: tuple[int, ...]) -> str:
    """Write a shape with N for the number of examples."""
    n = shape[0]
    sizes = ["N" if i == 0 or size == n > 1 else str(size) for i, size in enumerate(shape)]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def logits(found: "Kind") -> Trial:
    """Judge whether outputs are what a loss takes that makes probabilities of them itself."""
    wrong = ""
    if found.probabilities:
        wrong = ("the outputs are probabilities already, and the loss takes logits: it cannot fall "
                 f"below {found.least:.4g}")  # fmt: skip
    advice = "leave the softmax or sigmoid out of the model, or take nll_loss of the logarithms"
    return trial("outputs are logits", (None, None), "any number", wrong, "", advice)
