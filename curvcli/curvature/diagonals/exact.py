"""The exact diagonal of the Hessian, tensor by tensor, at the cost of the layer where that is less.

Four ways: where the model is piecewise linear downstream of a layer, the Hessian's diagonal is the
Gauss-Newton matrix's, a sum of squares over backward passes; for other layers, products with their
outputs, by positions or by fan-in; for parameters that are no layer's own, a product per entry.
Whatever is not computed entry by entry is held against single entries on a few examples.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvcli.batches import Batch
from curvcli.curvature.compat import second_order
from curvcli.curvature.diagonals import plan, roots, units
from curvcli.curvature.diagonals.one_hot import one_hot
from curvcli.curvature.diagonals.parts import Part, Way
from curvcli.curvature.diagonals.second import gradients
from curvcli.curvature.diagonals.squares import Pulled, Tick
from curvcli.curvature.diagonals.uses import Use, accounted, close, layers_of, plain, recording
from curvcli.curvature.memory import held, spare
from curvcli.problem import Problem

FEW = 16
"""Examples on which the plan is made and entries are checked."""

AT_ONCE = 1 << 27
"""Bytes of graphs that are differentiated along several directions at once: beyond a cache's size
batching more of them gains nothing."""


@dataclass(frozen=True)
class Found:
    """The diagonal of one tensor, and the way it was computed in the end."""

    diagonal: Tensor
    way: Way


class ExactDiagonal:
    """Plans and computes exact diagonals; parts are independent of each other."""

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        self.problem = problem
        self.room = spare(problem.like.device) if memory is None else memory
        self.layers = layers_of(problem)
        self.few = problem.sampled(FEW, torch.Generator().manual_seed(0))
        self.few = replace(self.few, batches=self.few.batches[:1])
        # Now, since passes over the data are none of the recorded uses.
        _ = problem.measure, self.few.measure

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model so that it can be differentiated twice."""
        with self.problem.engaged(), second_order(self.problem.model):
            yield

    @cached_property
    def parts(self) -> list[Part]:
        """Divide the parameters, each to the cheapest way."""
        with self.engaged():
            return plan.plan(self.few, self.layers)

    def compute(self, part: Part, tick: Tick = lambda products: None) -> dict[str, Found]:
        """Compute the diagonals of a part by name, exact to rounding.

        `tick` is told of every chunk of products. What turns out not to be as planned (a layer that
        is used elsewhere too, examples that interact, entries that differ from one-hot products) is
        done by the next way.
        """
        with self.engaged():
            found = self._by_layers(self.problem, part, tick)
            right = self._verified(part, found) if found else set()
            done = {n: Found(d, part.way) for n, d in found.items() if n in right}
            for next_best in self._instead(part, set(part.names) - right):
                done |= self.compute(next_best, tick)
            left = {n: self.problem.params[n] for n in part.names if n not in done}
            for n, p in left.items():
                whole = {n: torch.arange(p.numel())}
                d = one_hot(self.problem, whole, self.chunk, tick)[n]
                done[n] = Found(d.view_as(p), "one-hot")
            return done

    def _instead(self, part: Part, names: set[str]) -> list[Part]:
        """Plan anew what was not piecewise linear after all."""
        if part.way != "gauss-newton" or not names:
            return []
        paths = {p: self.layers[p] for p in part.layers if names & {*self.layers[p].names.values()}}
        return [p for found in plan.by_units(self.few, paths).values() for p in found]

    def _by_layers(self, problem: Problem, part: Part, tick: Tick) -> dict[str, Tensor]:
        """Compute a part's diagonals by its way, but for what is not as planned."""
        if part.way == "gauss-newton":
            return self._by_squares(problem, part, tick)
        return self._by_units(problem, part, tick) if part.way in units.WAYS else {}

    def _by_squares(self, problem: Problem, part: Part, tick: Tick) -> dict[str, Tensor]:
        layers = {path: self.layers[path] for path in part.layers}
        total = {n: torch.zeros_like(problem.params[n]) for n in part.names}
        right = set(layers)
        for batch in problem.batches:
            found = Pulled.of(problem, batch, roots.gauss_newton, layers)
            right &= found.linear(problem, batch) & found.sound(problem)
            found.only(right).add(total, tick)
        names = {n for path in right for n in layers[path].names.values()}
        return {n: d.detach() for n, d in total.items() if n in names}

    def _by_units(
        self,
        problem: Problem,
        part: Part,
        tick: Tick,
        entries: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute them by products with a layer's outputs; some rows where `entries` are given."""
        total: dict[str, Tensor] = {}
        use = None
        for batch in problem.batches:
            use, g = self.differentiated(problem, batch, part)
            if use is None:
                return {}
            if not total:
                features = use.features
                total = {n: use.a.new_zeros(use.channels, features[n].fan_in) for n in part.names}
            if g is None:
                continue
            chunk = self.chunk(batch, use.a.numel() * use.a.element_size())
            for which in torch.split(_units(use, part, entries), chunk):
                units.WAYS[part.way](use, g, which, total)
                tick(len(which))
        assert use is not None
        shapes = {n: problem.params[n].shape for n in total}
        return {n: use.features[n].restore(d).reshape(shapes[n]) for n, d in total.items()}

    def differentiated(
        self, problem: Problem, batch: Batch, part: Part
    ) -> tuple[Use | None, Tensor | None]:
        """Evaluate a layer's use, and dL/da with its graph where it bends; no use if it is not so.

        It was planned on other examples, and a batch may go another way.
        """
        (path,) = part.layers
        layer = self.layers[path]
        with recording({path: layer}) as uses:
            share = problem.share(batch)
        if not plain(uses[path], batch.size):
            return None, None
        use = replace(uses[path][0], folded=part.folded)
        params = [problem.params[n] for n in layer.names.values()]
        g, *own = gradients(share, (use.a, *params), create_graph=True)
        if g is None or not g.requires_grad:
            return use, None
        slopes = {
            n: s.detach() for n, s in zip(layer.names.values(), own, strict=True) if s is not None
        }
        if not (accounted([use], [g.detach()], slopes) and units.apart(use, g)):
            return None, None
        return use, g

    def _verified(self, part: Part, found: Mapping[str, Tensor]) -> set[str]:
        """Hold the largest entry and two others of every tensor against one-hot products.

        On a few examples, so that it costs little beside the whole.
        """
        flat = {n: d.reshape(-1) for n, d in found.items()}
        chosen = {
            n: torch.tensor(sorted({0, len(d) // 2, int(d.abs().argmax())}))
            for n, d in flat.items()
        }
        if self.few.examples < self.problem.examples:
            again = self._again(part, chosen)
            flat = {n: again[n].reshape(-1) for n in flat if n in again}
        truth = one_hot(self.few, {n: chosen[n] for n in flat}, lambda batch, size: 3)
        right = set()
        for n, d in flat.items():
            gap = (truth[n] - d[chosen[n].to(d.device)]).abs().max()
            if close(gap, torch.maximum(found[n].abs().max(), truth[n].abs().max())):
                right.add(n)
        return right

    def _again(self, part: Part, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute a part on the few examples, as far as those entries need it."""
        if part.way != "gauss-newton":
            return self._by_units(self.few, part, lambda products: None, entries)
        layers = {path: self.layers[path] for path in part.layers}
        total = {n: torch.zeros_like(self.problem.params[n]) for n in part.names}
        found = Pulled.of(self.few, self.few.batches[0], roots.gauss_newton, layers)
        found.add(total, lambda products: None)
        return {n: d.detach() for n, d in total.items()}

    def chunk(self, batch: Batch, bytes_each: int) -> int:
        """Say how many products to batch: each takes about the graph once more."""
        each = max(self._graph_bytes * batch.size // self._largest.size + 2 * bytes_each, 1)
        return int(max(1, min(128, self.room // each, AT_ONCE // each)))

    @cached_property
    def _largest(self) -> Batch:
        return max(self.problem.batches, key=lambda b: b.size)

    @cached_property
    def _graph_bytes(self) -> int:
        return held(lambda: self.problem.share(self._largest), self.problem.like.device)


def _units(use: Use, part: Part, entries: Mapping[str, Tensor] | None) -> Tensor:
    """Number the products of a part: all, or those that the flat `entries` need."""
    if entries is None:
        return torch.arange(units.count(use, part))
    found: set[int] = set()
    for name in part.names:
        f = use.features[name]
        numbers = torch.arange(f.channels * f.fan_in).view(f.channels, f.fan_in)
        rows = f.restore(numbers).reshape(-1)[entries[name]]
        found |= set(rows.tolist() if part.way == "fan-in" else (rows // f.fan_in).tolist())
    which = torch.tensor(sorted(found))
    if part.way == "fan-in":
        return which
    steps = torch.arange(use.positions) * use.channels
    return (steps[:, None] + which).flatten()
