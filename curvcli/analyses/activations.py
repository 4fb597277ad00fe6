"""What every layer gives, and what gradient comes back to it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curvcli.analyses.base import Analysis
from curvcli.analyses.hearing import (
    arrays,
    by_depth,
    histograms,
    is_answer,
    named,
    notes,
    of_pictures,
    picture_book,
)
from curvcli.errors import listed
from curvcli.options import ArrayFile, option
from curvcli.report import Check, Metric, Result, column

if TYPE_CHECKING:
    from curvcli.problem import Problem
    from curvcli.signals.depth import Trend
    from curvcli.signals.passes import Recording
    from curvcli.signals.place import Place
    from curvcli.work import Work

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class ActivationsRow:
    """One place: a leaf module, an activation after one layer, or what the model is given."""

    module: str = column("module")
    kind: str = column("kind")
    mean: float = column("mean", "relative")
    std: float = column("std", "relative")
    flat: float | None = column("flat", "percent")
    dead: int | None = column("dead", "count")
    gradient: float | None = column("gradient", "relative")
    zero_gradient: float | None = column("zero", "percent")
    remark: str = column("remark")
    depth: int | None = column("layer", "count", detail=True)
    after: str = column("after", detail=True)
    units: int | None = column("units", "count", detail=True)
    calls: int = column("calls", "count", detail=True)
    low: float = column("smallest", "real", detail=True)
    q05: float = column("5% quantile", "real", detail=True)
    median: float = column("median", "real", detail=True)
    q95: float = column("95% quantile", "real", detail=True)
    high: float = column("largest", "real", detail=True)
    zeros: float = column("zero outputs", "percent", detail=True)
    gradient_mean: float | None = column("mean of the gradient", "real", detail=True)
    gradient_std: float | None = column("std of the gradient", "real", detail=True)


class Activations(Analysis):
    """Do signals get through: dead units, saturation, vanishing or exploding gradients?

    One forward and backward pass over all the data. For the inputs, every module that holds no
    other, and every activation that a forward() calls as a function: mean and spread of its
    outputs, the share of them at which an activation is flat (its slope is below a twentieth of
    its steepest: tanh beyond 0.975, a sigmoid within 0.013 of its ends, ReLU at zero), units that
    were flat for all the data, and the norm of the gradient of an example's loss by the outputs,
    root mean square over the examples. An activation called after several layers has a row for
    each of them; calls after the same layer, as at the steps of a recurrent network, share one.
    """

    name: ClassVar[str] = "activations"
    Row: ClassVar[type] = ActivationsRow

    # CS231n calls 40 % dead a learning rate too high; small ReLU networks that learned the digits
    # well have up to 31 %.
    dead: float = option(0.4, "warn from this share of dead units in a layer", gt=0, le=1)
    saturated: float = option(
        0.5,
        "warn from this share s of saturated outputs (1 - 0.3 (1 - s) of a hardtanh, hardsigmoid)",
        gt=0,
        le=1,
    )
    # An update of 1e-3 of its norm is healthy (CS231n); with 1e-6, ten thousand steps move a layer
    # by one per cent.
    decades: float = option(
        3.0, "warn where gradients shrink or grow by so many powers of ten over the layers", gt=0
    )
    weights: ArrayFile | None = option(
        None, "file for the weights of the first layer as pictures", metavar="FILE"
    )

    @property
    def draws(self) -> bool:
        """Whether its answer has figures."""
        return True

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Hear every batch and judge what was heard."""
        from dataclasses import replace

        import torch

        from curvcli.signals.depth import trend
        from curvcli.signals.passes import record, unseen
        from curvcli.signals.pictures import pictures

        if problem.mode != "eval" and problem.replay is None:
            seed = int(torch.randint(2**31, (), generator=work.rng))
            problem = replace(problem, replay=seed)
        heard = record(problem, work.announce("activations and gradients"))
        if not heard.examples:
            return self.result("no batch is finished yet", interrupted=heard.interrupted)
        line = trend([heard.norm(p) for p in heard.layers])
        rows = [self._row(p, heard) for p in heard.places]
        found = pictures(problem, heard.layers)
        drawn = picture_book(found) if found else None
        return self.result(
            self._headline(rows, line),
            rows=rows,
            metrics=self._metrics(rows, line),
            checks=[
                *self._dead(heard),
                self._saturation(heard),
                self._reached(heard),
                self._trend(heard, line),
            ],
            notes=[
                *notes(heard, problem.mode, len(unseen(problem))),
                *of_pictures(heard, found, asked=bool(self.weights), drawn=drawn is not None),
            ],
            figures=[histograms(heard), *by_depth(heard, line), *([drawn] if drawn else [])],
            arrays=arrays(found) if found else {},
            interrupted=heard.interrupted,
        )

    def _row(self, place: "Place", heard: "Recording") -> ActivationsRow:
        v, g, back = place.values, place.gradient, place.hooked > 0
        layers = heard.layers
        return ActivationsRow(
            module=named(place),
            kind=place.kind,
            mean=v.mean,
            std=v.std,
            flat=place.flat / place.judged if place.judged else None,
            dead=place.dead if place.judgeable else None,
            gradient=heard.norm(place),
            zero_gradient=place.zero_gradient,
            remark=self._remark(place, heard),
            depth=layers.index(place) + 1 if place.layered else None,
            after=place.after,
            units=place.units if place.judgeable else None,
            calls=place.calls,
            low=v.low,
            **{k: place.histogram.quantile(q, v.low, v.high)
               for k, q in zip(("q05", "median", "q95"), QUANTILES, strict=True)},
            high=v.high,
            zeros=v.zeros / max(v.count, 1),
            gradient_mean=g.mean * heard.of if back else None,
            gradient_std=g.std * heard.of if back and g.count else None,
        )  # fmt: skip

    def _remark(self, place: "Place", heard: "Recording") -> str:
        if self._is_saturated(place, heard):
            return "saturated"
        if self._is_dead(place, heard):
            return "dead units"
        if place.layered and heard.norm(place) == 0:
            return "no gradient"
        return "constant" if place.values.low == place.values.high else ""

    def _is_dead(self, place: "Place", heard: "Recording") -> bool:
        from curvcli.signals.dead import beyond_chance

        dead = place.dead
        if not dead or not place.judgeable or is_answer(place, heard):
            return False
        enough = dead >= self.dead * place.units
        return enough and beyond_chance(dead, place.units, place.seen)

    def _is_saturated(self, place: "Place", heard: "Recording") -> bool:
        from curvcli.signals.slopes import BOUNDED, HARD

        judged = place.function in BOUNDED and place.judged > 0 and not is_answer(place, heard)
        limit = self._hard_limit if place.function in HARD else self.saturated
        return judged and place.flat >= limit * place.judged

    @property
    def _hard_limit(self) -> float:
        """The share of flat outputs that is too much of a hard activation."""
        from curvcli.signals.slopes import PASSED

        # It is flat from its corner on, at an input where tanh has 0.42 of its slope, and passes
        # all of the gradient before it: sound networks have 70 % flat. The limit is where it lets
        # as little of the gradient pass as a smooth one at its own; a unit that is flat on every
        # example is a dead one for both.
        return 1 - PASSED * (1 - self.saturated)

    def _dead(self, heard: "Recording") -> list[Check]:
        """Judge what can be judged; where there are activations and none can, say nothing."""
        judged = [p for p in heard.places if p.judgeable]
        if not judged and any(p.judged for p in heard.places):
            return []
        bad = [p for p in judged if self._is_dead(p, heard)]
        if bad:
            parts = [f"{p.dead} of {p.units} units of {named(p)}" for p in bad]
            said = f"never off the flat part of the activation: {listed(parts)}"
            advice = "lower the learning rate, check initial weights and biases, or use leaky ReLU"
            return [Check("dead units", "warn", said, advice)]
        units, dead = sum(p.units for p in judged), sum(p.dead or 0 for p in judged)
        said = f"{dead} of {units:,} units in {len(judged)} activations"
        left = [named(p) for p in heard.places if p.judged and not p.judgeable]
        said += f"; not judged: {listed(left)}" if left else ""
        return [Check("dead units", "pass", said if judged else "there are no activations")]

    def _saturation(self, heard: "Recording") -> Check:
        from curvcli.signals.slopes import HARD

        bad = [p for p in heard.places if self._is_saturated(p, heard)]
        if bad:
            parts = [f"{p.flat / p.judged:.0%} of {named(p)}" for p in bad]
            advice = "smaller weights or inputs, normalisation, or a lower learning rate"
            return Check("saturation", "warn", f"saturated: {listed(parts)}", advice)
        said = f"no place is saturated by {self.saturated:.0%} or more"
        if any(p.function in HARD for p in heard.places):
            said += f" (a hardtanh or hardsigmoid: {self._hard_limit:.0%})"
        return Check("saturation", "pass", said)

    def _reached(self, heard: "Recording") -> Check:
        asked = [p for p in heard.layers if p.hooked]
        bad = [named(p) for p in asked if heard.norm(p) == 0]
        if not bad:
            said = f"a gradient reaches each of {len(asked)} layers"
            return Check("gradient arrives", "pass", said)
        if len(bad) == len(asked):
            said = "every gradient is zero on these examples"
            return Check("gradient arrives", "warn", said, "are all of them fitted, or all dead?")
        advice = (
            "it is unused, detached, behind dead units, or the gradient is too small for floats"
        )
        return Check("gradient arrives", "warn", f"none reaches {listed(bad)}", advice)

    def _trend(self, heard: "Recording", line: "Trend | None") -> Check:
        name = "gradient by depth"
        if line is None:
            return Check(name, "pass", "too few layers to tell a trend from their differences")
        size = f"10^{abs(line.decades):.1f}"
        over = f"from the last of {line.layers} layers to the first"
        if abs(line.decades) < self.decades:
            way = "shrinks" if line.decades > 0 else "grows"
            return Check(name, "pass", f"the gradient {way} by a factor of {size} {over}")
        if line.decades > 0:
            advice = "use ReLU, residual connections, normalisation, or larger initial weights"
            return Check(
                name, "warn", f"vanishing: it shrinks by a factor of {size} {over}", advice
            )
        advice = "use smaller initial weights, normalisation, or clip gradients"
        return Check(name, "warn", f"exploding: it grows by a factor of {size} {over}", advice)

    def _headline(self, rows: list[ActivationsRow], line: "Trend | None") -> str:
        known = [r for r in rows if r.gradient]
        said = [f"{sum(r.kind != 'input' for r in rows)} places"]
        if line is not None:
            way = "shrinks" if line.decades > 0 else "grows"
            said.append(f"the gradient {way} {10 ** abs(line.decades):.2g}-fold toward the input")
        elif known:
            said.append(f"gradients from {min(r.gradient or 0 for r in known):.1e} to "
                        f"{max(r.gradient or 0 for r in known):.1e}")  # fmt: skip
        dead, units = sum(r.dead or 0 for r in rows), sum(r.units or 0 for r in rows)
        if units:
            said.append(f"{dead} of {units:,} units dead")
        return ", ".join(said)

    def _metrics(self, rows: list[ActivationsRow], line: "Trend | None") -> dict[str, Metric]:
        dead, units = sum(r.dead or 0 for r in rows), sum(r.units or 0 for r in rows)
        found = {"units": Metric(units, "units judged", "count")}
        if units:
            found = {"dead_units": Metric(dead, "dead units", "count"), **found}
        if line is not None:
            title = "decades by which the gradient shrinks toward the input"
            found["gradient_decades"] = Metric(line.decades, title, "real", line.decades_error)
        return found
