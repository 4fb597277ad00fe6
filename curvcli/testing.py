"""A gradient check as an assertion, for test suites: pytest's, unittest's or any other."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from curvcli.report import Report, Result
from curvcli.sinks import render
from curvcli.sinks.text import ascii_only, clean

if TYPE_CHECKING:
    from torch import nn


def assert_gradients(
    model: "nn.Module", batch: Any, loss: Any, tolerance: float = 1e-5, **options: Any
) -> Result:
    """Check every tensor's gradient on one batch; return the Result where nothing is wrong.

    batch:   an (inputs, target) pair, as a DataLoader yields it
    loss:    a function of torch.nn.functional, a loss module, or any function(output, target)
    options: those of `curv gradcheck`, such as samples, entries, blame; and the seed

    A tensor without gradient on this batch was not checked: that is a warning of Python's, which
    pytest lists and `-W error` turns into a failure. The model and the generators are left as
    found.

    Raises: AssertionError with the table and the culprit where a tensor is wrong, and where that
    could not be decided; CurvError for a wrong option, or where there is no gradient to check.
    """
    __tracebackhide__ = True
    import curvcli

    result = curvcli.gradcheck(model, loss, [batch], tolerance=tolerance, **options)
    if result.interrupted:
        # The analysis keeps what is known after Ctrl-C; a test suite has to stop.
        raise KeyboardInterrupt
    if result.status in ("fail", "undecided"):
        raise AssertionError(_told(result))
    unchecked = [f"{c.name}: {c.message}" for c in result.checks if c.status == "warn"]
    if unchecked:
        warnings.warn(ascii_only(clean("; ".join(unchecked))), stacklevel=2)
    return result


def _told(result: Result) -> str:
    """Write a result in ASCII, unfolded: the verdict in one line, then the table and the checks."""
    undecided = "whether the gradient is right could not be decided: "
    verdict = (undecided if result.status == "undecided" else "") + result.headline
    # The headline stands in the first line, which is all that a test suite's summary shows; the
    # columns that tables leave out would only be listed, with where else to find them.
    shown = tuple(c for c in result.columns if not c.detail)
    rest = replace(result, headline="", columns=shown)
    report = Report(provenance={}, results={result.name: rest})
    return f"{ascii_only(clean(verdict))}\n\n{render(report, 'table', plain=True)}"
