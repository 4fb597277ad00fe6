"""What is checked of an optimizer's saved state before its steps are believed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from curvcli.errors import listed
from curvcli.report import Check

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.optimizer import SavedOptimizer


def of_state(saved: "SavedOptimizer", gradients: "Mapping[str, Tensor]") -> list[Check]:
    """Doubt a state that holds no numbers, or that looks like another tensor's."""
    from curvcli.likeness import swapped
    from curvcli.updates import broken

    name, checks = "optimizer state", []
    if no_numbers := broken(saved):
        said = f"no numbers in {listed(no_numbers)}"
        hint = "the next step spoils the weights: take an earlier checkpoint"
        checks.append(Check(name, "undecided", said, hint))
    elif pairs := swapped(saved, gradients):
        said = ", ".join(f"{a} and {b}" for a, b in pairs[:2])
        checks.append(
            Check(
                name,
                "undecided",
                f"it fits the gradients better the other way round: {said}; only the order in the "
                "file tells them apart",
                "give optimizer.groups in the spec, or save it with named parameters",
            )
        )
    return checks
