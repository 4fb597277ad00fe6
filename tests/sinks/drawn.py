"""Figures such as analyses make: a sweep of steps, a density with its band."""

import math

from curvcli.report import Axis, Figure, Level, Line, Report, Result

STEPS = tuple(10.0**-k for k in range(11))


def sweep(right: int = 5, wrong: int = 2) -> Figure:
    """Make the Vs of right gradients, and the flat curves of wrong ones."""
    lines = [
        Line(
            f"h.{i}.weight",
            STEPS,
            tuple(10**-i * h * h + 1e-16 / h for h in STEPS),
            "pass",
        )
        for i in range(right)
    ]
    lines += [Line(f"bad.{i}", STEPS, (0.5 + i / 100,) * len(STEPS), "fail") for i in range(wrong)]
    return Figure(
        "sweep",
        "relative error against the step",
        Axis("step", "log"),
        Axis("relative error", "log"),
        tuple(lines),
        levels=(Level(1e-5, "tolerance"),),
        caption="A right gradient makes a V, a wrong one stays flat.",
    )


PLACES = tuple(i / 10 for i in range(50))
DENSITY = Figure(
    "density",
    "spectral density",
    Axis("eigenvalue"),
    Axis("density", "log"),
    (
        Line(
            "10 vectors",
            PLACES,
            tuple(math.exp(-x) for x in PLACES),
            band=(
                tuple(math.exp(-x) - 0.1 for x in PLACES),
                tuple(math.exp(-x) + 0.1 for x in PLACES),
            ),
        ),
    ),
    ticks=(Level(4.9, "top eigenvalues"), Level(4.2, "top eigenvalues")),
)


def figured(*figures: Figure) -> Report:
    """Make a report of these figures."""
    return Report({}, {"gradcheck": Result("gradcheck", "Is it?", "It is.", figures=figures)})
