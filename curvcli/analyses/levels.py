"""What sanity says of losses: against chance, held out, on permuted labels, on a tiny subset."""

import math
from typing import TYPE_CHECKING

from curvcli.analyses.verdicts import SanityRow, Trial, not_run, trial

if TYPE_CHECKING:
    from curvcli.trials.answers import Examined
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

# Small models that were trained for a hundred steps stake 0.1 to 3 times the loss at chance, fresh
# weights 0.02 at most; and that varies from one draw of them to the next.
STAKED = {True: 0.1, False: 0.5}
"""Times chance that one stakes which has learned: beside fresh weights, and without them."""

LEARNED = 5.0
"""Times by which that differs from what fresh weights stake."""

NO_VERDICT = "no verdict"
"""Of a figure that is told and not judged."""


def scaled(level: float, times: float) -> float:
    """Move a loss by its own size: upward for times > 1, also where it is negative."""
    return level + (times - 1) * abs(level)


def _chances(chance: "Chance") -> str:
    said = f"{chance.equal:.4g}"
    k = chance.classes
    if k and k > 1 and math.isclose(chance.equal, math.log(k), rel_tol=1e-3):
        said += f" (log {k})"
    if chance.best is not None and not math.isclose(chance.best, chance.equal, rel_tol=1e-3):
        said += f", {chance.best:.4g} (best constant)"
    return said


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
    return trial(name, (loss, error), _chances(chance), wrong, right, advice)


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
    if not wrong and not math.isclose(chance.equal, math.log(k), rel_tol=1e-3):
        return not_run(name, f"the loss of equal outputs is {chance.equal:.4g}, not {expected}: it "
                       "is another than cross-entropy")  # fmt: skip
    return trial(name, (chance.equal, None), expected, wrong, right, advice)


def loss(found: "Examined", chance: "Chance | None", where: str = "") -> Trial:
    """Judge the loss on the data against chance."""
    name = f"loss{where}"
    if chance is None:
        return Trial(
            SanityRow(name, found.loss, found.error, "", NO_VERDICT, "no outputs to compare")
        )
    times = ABOVE[chance.classes is not None]
    wrong = ""
    if not found.loss - SURE * (found.error or 0.0) <= scaled(chance.equal, times):
        wrong = f"it is {found.loss:.4g}, and outputs that know nothing have {chance.equal:.4g}"
    if not wrong and found.loss >= chance.least:
        row = SanityRow(
            name, found.loss, found.error, f"< {_chances(chance)}", "not below chance", ""
        )
        return Trial(row)
    return trial(
        name, (found.loss, found.error), f"< {_chances(chance)}", wrong, f"{found.loss:.4g}",
        "was the learning rate too high, or do the data and the checkpoint not belong together?",
    )  # fmt: skip


def told(check: str, found: float, error: float | None, expected: str = "") -> Trial:
    """Tell a number without a verdict."""
    return Trial(SanityRow(check, found, error, expected, NO_VERDICT, ""))


def untrained(
    found: "Permuted", chance: "Chance", fresh: "Permuted | None", *, classes: bool
) -> str:
    """Say why labels can tell nothing of a model that has not learned; empty of one that has.

    `classes` have a scale of their own, which real targets have not.
    """
    if _learned(found, chance, fresh, classes):
        return ""
    return (f"the model has not learned yet: its loss is {found.loss:.4g}, and {chance.least:.4g} "
            "that of the best constant")  # fmt: skip


def _learned(found: "Permuted", chance: "Chance", fresh: "Permuted | None", classes: bool) -> bool:
    """Tell whether a model has learned something, if perhaps not of these labels.

    It has where the loss is below chance, or where it is sure of what it says and fresh weights are
    not as sure: their outputs vary too, and by how much has nothing to do with the targets.
    """
    if found.loss < chance.least:
        return found.z >= SURE
    if not found.stake >= STAKED[fresh is not None] * abs(chance.least):
        return False
    if fresh is None:
        return classes
    return not 1 / LEARNED < found.stake / max(fresh.stake, 1e-30) < LEARNED


def labels(found: "Permuted", *, constant: bool, untrained: str = "", where: str = "") -> Trial:
    """Judge whether outputs say more of the targets than of permuted ones."""
    name, expected = f"labels against permuted{where}", f"> {SURE:g} standard deviations"
    if found.examples < ENOUGH:
        return not_run(name, f"{found.examples} examples are too few, {ENOUGH} are enough")
    if constant:
        said = f"the outputs are the same for all {found.examples} examples"
        advice = "is the model trained? are units dead (see curv activations)?"
        return trial(name, (0.0, None), expected, said, "", advice)
    if math.isnan(found.z):
        return not_run(name, "the loss is the same for any order of the targets")
    if untrained:
        return not_run(name, untrained)
    wrong = advice = ""
    if found.z < SURE:
        wrong = (f"the loss is {found.loss:.4g} on the labels as they are, and "
                 f"{found.mean:.4g} ± {found.std:.2g} when they change places")  # fmt: skip
        advice = "are inputs and labels in different orders?"
        if where:
            advice = "labels shuffled in training, a split of another kind, or mere memory"
    right = f"{found.z:.3g} standard deviations better than on permuted labels"
    return trial(name, (found.z, found.error), expected, wrong, right, advice)


def subset(found: "Fitted", share: float, fresh: bool) -> Trial:
    """Judge whether a handful of examples was learned by heart."""
    origin = "from fresh weights" if fresh else "from the checkpoint"
    run = f"{found.steps} steps of Adam, lr {found.rate:g}, {origin}"
    goal = found.floor + share * (found.chance - found.floor)
    if found.floor > share * found.chance > 0:
        run += f"; the least that these outputs and targets allow is {found.floor:.4g}"
    wrong, name = "", "tiny subset overfitted"
    if found.chance < found.floor:  # as of a loss without a least one
        return not_run(name, "no loss below chance is known to be possible")
    if not found.share <= share:
        if found.parameters < found.values:
            few = f"{found.parameters} parameters cannot meet {found.values} real targets"
            return not_run(name, few)
        if found.falling:
            return not_run(name, f"{found.loss:.4g} after {run}, and still falling; {goal:.3g} "
                           "is asked for: raise --steps")  # fmt: skip
        wrong = f"{found.examples} examples cannot be overfitted: {found.loss:.4g} after {run}"
        if found.contradicted:
            wrong += f"; {found.contradicted} targets contradict others for the same input"
    return trial(
        name, (found.loss, None), f"<= {goal:.3g}", wrong, f"after {run}",
        "is the model too small, frozen, blocked (see curv activations), or the gradient wrong?",
        run,
    )  # fmt: skip
