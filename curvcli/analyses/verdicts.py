"""What each sanity trial says: a row with its number, what was expected, and the verdict."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curvcli.report import Check, Status, column

if TYPE_CHECKING:
    from curvcli.trials.answers import Examined
    from curvcli.trials.apart import Averaging, Leak
    from curvcli.trials.chance import Chance
    from curvcli.trials.labels import Permuted
    from curvcli.trials.subset import Fitted

SURE = 3.0
"""Standard errors, or deviations, that are no chance any more: one case in 700."""

# Default initial weights put the loss of a classifier within some per cent of chance; logits of
# standard deviation 1.5 put it 50 % above. A regression has no scale of its own.
ABOVE = {True: 1.5, False: 10.0}
"""Times chance from which a loss is too high: with classes, and without."""

BELOW = 0.75
"""Times chance below which fresh weights know what they cannot know."""

FITTED = 0.5
"""Times chance below which a model has learned its examples."""

ENOUGH = 50
"""Examples with which a permutation test would see what a model has learned."""

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


def _trial(
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


def _chances(chance: "Chance") -> str:
    said = f"{chance.equal:.4g}"
    k = chance.classes
    if k and k > 1 and math.isclose(chance.equal, math.log(k), rel_tol=1e-3):
        said += f" (log {k})"
    if chance.best is not None and not math.isclose(chance.best, chance.equal, rel_tol=1e-3):
        said += f", {chance.best:.4g} (best constant)"
    return said


def scaled(level: float, times: float) -> float:
    """Move a loss by its own size: upward for times > 1, also where it is negative."""
    return level + (times - 1) * abs(level)


def fresh_loss(loss: float, error: float | None, chance: "Chance") -> Trial:
    """Judge the loss at fresh weights, which knows nothing."""
    name, off = "fresh weights at chance", SURE * (error or 0.0)
    times = ABOVE[chance.classes is not None]
    wrong = advice = ""
    if not loss - off <= scaled(chance.equal, times):
        wrong = f"the loss of fresh weights is {loss:.4g}, and chance {chance.equal:.4g}"
        advice = "are initial weights too large, inputs not scaled, or terms summed, not averaged?"
    elif loss + off < scaled(chance.least, BELOW):
        wrong = f"the loss of fresh weights is {loss:.4g}, below the {chance.least:.4g} of chance"
        advice = "does the factory load trained weights, or do the inputs hold the answer?"
    right = f"{loss:.4g}, chance is {_chances(chance)}"
    return _trial(name, (loss, error), _chances(chance), wrong, right, advice)


def equal_outputs(chance: "Chance", axes: dict[str, int]) -> Trial:
    """Judge the loss of equal outputs: the log of the number of classes, and of nothing else."""
    k = chance.classes or 0
    wrong = ""
    for name, n in axes.items():
        for size, how in ((math.log(n) if n > 1 else 0.0, "normalised over"),
                          (math.log(k) / n, "averaged once more over"),
                          (math.log(k) * n, "summed over")):  # fmt: skip
            same = size > 0 and math.isclose(chance.equal, size, rel_tol=1e-3)
            if same and not math.isclose(size, math.log(k), rel_tol=1e-2):
                wrong = (f"equal outputs for {k} classes have the loss {chance.equal:.4g}, "
                         f"not log {k} = {math.log(k):.4g}: {how} {name} ({n})?")  # fmt: skip
                break
    advice = "check the dim= of softmax and the reduction of the loss" if wrong else ""
    right = f"{chance.equal:.4g}, for {k} classes"
    name, expected = "equal outputs", f"{math.log(k):.4g} (log {k})"
    remark = "another loss than cross-entropy" if not (
        wrong or math.isclose(chance.equal, math.log(k), rel_tol=1e-3)) else ""  # fmt: skip
    return _trial(name, (chance.equal, None), expected, wrong, right, advice, remark)


def penalty(name: str, value: float, slope: float) -> Trial:
    """Judge a penalty: it raises the loss, and has a gradient."""
    wrong = ""
    if not value > 0:
        wrong = f"it is {value:.4g}, so it does not raise the loss"
    elif slope == 0:
        wrong = f"it is {value:.4g} and has no gradient: it changes nothing"
    return _trial(
        f"penalty {name}", (value, None), "> 0, with a gradient", wrong,
        f"it adds {value:.4g} to the loss", "check the sign of the penalty, and for detach()",
    )  # fmt: skip


def arriving(unused: list[str], zero: list[str], total: int) -> Trial:
    """Judge which tensors the gradient over all data is zero for."""
    wrong, bad = "", len(unused) + len(zero)
    if bad == total and zero:
        wrong = "every gradient is zero on these examples"
    elif bad:
        parts = [f"the loss does not depend on {_listed(unused)}"] if unused else []
        parts += [f"the gradient is zero for {_listed(zero)}"] if zero else []
        wrong = "; ".join(parts)
    return _trial(
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
            wrong += f", and {leak.gradient:.1e} of the gradient is by others' inputs"
        advice = (
            "batch normalisation in train mode does this by design; use --mode eval to look at "
            "what is deployed"
            if normalised
            else "look for a mean, softmax or attention over the batch axis (batch_first=?)"
        )
    right = "no output depends on another example"
    return _trial("examples apart", (leak.size, None), "0", wrong, right, advice)


def averaged(found: "Averaging") -> Trial:
    """Judge whether the loss is a mean over examples."""
    wrong = ""
    if not found.relative <= min(ROUNDING * found.eps, 0.1):
        wrong = (f"the loss of {found.size} examples together is {found.batch:.5g}, the mean over "
                 f"them one by one {found.examples:.5g}")  # fmt: skip
        times = found.batch / found.examples if found.examples else math.inf
        if math.isclose(times, found.size, rel_tol=1e-3):
            wrong += ": a sum over the examples"
    return _trial(
        "mean over examples", (found.batch, None), f"{found.examples:.5g}", wrong,
        "the loss is the mean over the examples",
        "average over the examples, and normalise over the classes; a loss with weights returns "
        "(sum, weight)",
    )  # fmt: skip


def loss(found: "Examined", chance: "Chance | None", where: str = "") -> Trial:
    """Judge the loss on the data against chance."""
    name = f"loss{where}"
    if chance is None:
        return Trial(SanityRow(name, found.loss, found.error, "", "known", "no outputs to compare"))
    times = ABOVE[chance.classes is not None]
    wrong = ""
    if not found.loss - SURE * (found.error or 0.0) <= scaled(chance.equal, times):
        wrong = f"it is {found.loss:.4g}, and outputs that know nothing have {chance.equal:.4g}"
    if not wrong and found.loss >= chance.least:
        row = SanityRow(name, found.loss, found.error, f"< {_chances(chance)}", "not below", "")
        return Trial(row)
    return _trial(
        name, (found.loss, found.error), f"< {_chances(chance)}", wrong, f"{found.loss:.4g}",
        "was the learning rate too high, or do the data and the checkpoint not belong together?",
    )  # fmt: skip


def told(check: str, found: float, error: float | None, expected: str = "") -> Trial:
    """Tell a number without a verdict."""
    return Trial(SanityRow(check, found, error, expected, "known", ""))


def labels(found: "Permuted", *, constant: bool, where: str = "") -> Trial:
    """Judge whether outputs say more of the targets than of permuted ones."""
    name, expected = f"labels against permuted{where}", f"> {SURE:g} std"
    if found.examples < ENOUGH:
        return not_run(name, f"{found.examples} examples are too few, {ENOUGH} are enough")
    if constant:
        said = f"the outputs are the same for all {found.examples} examples"
        advice = "is the model trained? are units dead (see curv activations)?"
        return _trial(name, (0.0, None), expected, said, "", advice)
    if math.isnan(found.z):
        return not_run(name, "the loss is the same for any order of the targets")
    wrong = advice = ""
    if found.z < SURE:
        wrong = (f"the loss is {found.loss:.4g} on the labels as they are, and "
                 f"{found.mean:.4g} ± {found.std:.2g} when they change places")  # fmt: skip
        advice = "are inputs and labels in different orders? or is the model not trained yet?"
        if where:
            advice = "labels shuffled in training, a split of another kind, or mere memory"
    right = f"{found.z:.3g} standard deviations better than on permuted labels"
    return _trial(name, (found.z, found.error), expected, wrong, right, advice)


def subset(found: "Fitted", share: float, fresh: bool) -> Trial:
    """Judge whether a handful of examples was learned by heart."""
    origin = "from fresh weights" if fresh else "from the checkpoint"
    run = f"{found.steps} steps of Adam, lr {found.rate:g}, {origin}"
    goal = found.floor + share * (found.chance - found.floor)
    wrong, name = "", "tiny subset overfitted"
    if found.chance < found.floor:  # as of a loss without a least one
        return not_run(name, "no loss below chance is known to be possible")
    if not found.share <= share:
        if found.parameters < found.values:
            few = f"{found.parameters} parameters cannot meet {found.values} real targets"
            return not_run(name, few)
        wrong = f"{found.examples} examples cannot be overfitted: {found.loss:.4g} after {run}"
        if found.contradicted:
            wrong += f"; {found.contradicted} targets contradict others for the same input"
    return _trial(
        name, (found.loss, None), f"<= {goal:.3g}", wrong, f"after {run}",
        "is the model too small, frozen, blocked (see curv activations), or the gradient wrong?",
        run,
    )  # fmt: skip


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
