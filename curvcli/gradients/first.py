"""The gradient of a problem against differences of its loss, tensor by tensor.

The gradient comes from one joint backward, as in training; each tensor's differences come from two
evaluations at each place where the first step tells, and 14 where it does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from curvcli.gradients.grain import coarsest, grain
from curvcli.gradients.perturbed import Perturbed
from curvcli.gradients.places import Group, Places, choose, grouped, padding
from curvcli.gradients.reading import Found, Reading, zeros
from curvcli.linalg.differences import Accuracy, Comparison, judge
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

HUNTS = 3
"""How many times a wrong tensor is bisected for a wrong entry."""

NUDGE = 0.01
"""How far from the parameters a failure is looked for again, relative to their size."""

SWEEP = tuple(10.0 ** (-k / 2) for k in range(21))
"""Steps of a sweep, relative to the parameter's size: half-decades from 1 to 1e-10."""


@dataclass(frozen=True)
class Reach:
    """How closely a tensor is looked at; `entries` None is every one."""

    directions: int
    entries: int | None
    tolerance: float


class First:
    """Checks the tensors of a problem whose model is held in its mode."""

    def __init__(
        self, problem: Problem, reach: Reach, rng: torch.Generator, memory: float | None = None
    ) -> None:
        self.problem = problem
        self.reach = reach
        self.rng = rng
        self.memory = memory
        self.gradient = problem.layout.named(problem.gradient())
        self.evaluate = Perturbed(problem, memory)
        self.grain = grain(problem)
        # What the gradient's own rounding leaves of a derivative that is zero.
        sizes = {
            n: float(g.norm()) * size_of(self.evaluate.values[n]) for n, g in self.gradient.items()
        }
        self.nil = 1e3 * torch.finfo(problem.like.dtype).eps * max(sizes.values())
        self.padding = padding(problem)
        self.dtype = coarsest([problem.share(b) for b in problem.batches])

    def readings(self) -> Iterator[Reading]:
        """Check one tensor after the other, in the model's order, but those without entries."""
        for name, g in self.gradient.items():
            if g.numel():
                yield self.read(name)

    def read(self, name: str) -> Reading:
        """Compare at every chosen place of one tensor; in a wrong one, hunt for bad entries."""
        g = self.gradient[name].cpu()
        places = choose(
            g, self.reach.directions, self.reach.entries, self.rng, self.padding.get(name)
        )
        looked = [(places, self._judged(name, places))]
        if self.reach.entries is None:
            looked += self._every(name)
        reading = Reading(name, g.shape, _found(looked), zeros(g))
        if reading.verdict != "fail":
            return reading
        wrong = _wrong(looked)
        if not self._fails_plainly(name, wrong):
            self.evaluate.why_looped = "batched evaluations differ from plain ones"
            return self.read(name)
        if not self._elsewhere._fails_plainly(name, wrong):
            return reading.doubted()
        if self.reach.entries is not None and g.numel() > 1:
            step = reading.worst.comparison.step
            hunted = {self._bisected(name, step) for _ in range(HUNTS)} - set(places.entries)
            more = Places(g.shape, places.dense[:0], tuple(hunted))
            looked.append((more, self._judged(name, more)))
        return replace(reading, found=_found(looked))

    def _every(self, name: str) -> "list[Looked]":
        """Look at every entry: in groups, and alone at those of a group that does not pass."""
        groups, exactness = grouped(self.gradient[name].cpu(), self.rng, self.padding.get(name))
        together = self._judged(name, groups, exactness=exactness)
        sure = [c.verdict in ("pass", "vacuous") for c in together]
        kept = tuple(g for g, s in zip(groups.groups, sure, strict=True) if s)
        rest = [i for g, s in zip(groups.groups, sure, strict=True) if not s
                for i in g.entries.tolist()]  # fmt: skip
        alone = replace(groups, groups=(), entries=tuple(rest))
        passed = [c for c, s in zip(together, sure, strict=True) if s]
        return [(replace(groups, groups=kept), passed), (alone, self._judged(name, alone))]

    @cached_property
    def _elsewhere(self) -> "First":
        """The same check from parameters nearby, in which no kink lies where it lies here.

        Where several kinks meet at the very point, as where a row of zeros meets a bias of zeros,
        what they do to the one-sided differences may cancel, and a right gradient looks wrong.
        """
        nearby = {
            n: t + NUDGE * size_of(t) * normal(t, self.rng) for n, t in self.evaluate.values.items()
        }
        with self.problem.displaced(nearby):
            return First(self.problem, self.reach, self.rng, self.memory)

    def sweep(self, name: str) -> list[float]:
        """Take the relative error along one direction at every step of SWEEP; NaN without value."""
        g = self.gradient[name].cpu()
        places = choose(g, 1, 0, self.rng, self.padding.get(name))
        steps = size_of(self.evaluate.values[name]) * torch.tensor(SWEEP, dtype=torch.float64)
        which = torch.zeros(2 * len(steps), dtype=torch.int64)
        values = self.evaluate.at(name, places, which, torch.cat([steps, -steps])).view(2, -1)
        numeric = (values[0] - values[1]) / (2 * steps)
        analytic = places.slopes(g)
        relative: list[float] = (
            (analytic - numeric).abs() / torch.maximum(analytic.abs(), numeric.abs())
        ).tolist()
        return relative

    def _judged(
        self, name: str, places: Places, *, plain: bool = False, exactness: Tensor | float = 1.0
    ) -> list[Comparison]:
        how = self.evaluate.plainly if plain else self.evaluate.at
        return judge(
            places.slopes(self.gradient[name]),
            size_of(self.evaluate.values[name]),
            self.evaluate.plain,
            partial(how, name, places),
            Accuracy(
                exactness * self.reach.tolerance,
                torch.finfo(self.dtype).eps,
                self.grain,
                self.nil / size_of(self.evaluate.values[name]),
            ),
        )

    def _fails_plainly(self, name: str, place: Places) -> bool:
        """Look again at one place without batching: nobody is blamed for what vmap does."""
        return self._judged(name, place, plain=True)[0].verdict == "fail"

    def _bisected(self, name: str, step: float) -> int:
        """Find an entry of a wrong gradient that is off by much: 4 log2(n) evaluations.

        Of the two halves of what is left, follow the one along which a random direction disagrees
        more; a lone wrong entry is found surely, one of many by chance, likelier the worse it is.
        """
        g = self.gradient[name].cpu()
        weights = torch.randn(g.numel(), generator=self.rng, dtype=torch.float64)
        if name in self.padding:
            weights[self.padding[name]] = 0
        which = torch.tensor([0, 1, 0, 1])
        steps = step * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
        left, right = 0, g.numel()
        while right - left > 1:
            middle = (left + right) // 2
            spans = (torch.arange(left, middle), torch.arange(middle, right))
            halves = tuple(Group(span, weights[span]) for span in spans)
            places = Places(g.shape, torch.zeros(0, g.numel(), dtype=torch.float64), (), halves)
            values = self.evaluate.at(name, places, which, steps)
            off = (places.slopes(g) - (values[:2] - values[2:]) / (2 * step)).abs()
            left, right = (left, middle) if off[0] >= off[1] else (middle, right)
        return left


Looked = tuple[Places, list[Comparison]]


def _found(looked: Sequence[Looked]) -> tuple[Found, ...]:
    found = []
    for places, comparisons in looked:
        d, e = len(places.dense), len(places.entries)
        for i, (name, c) in enumerate(zip(places.names, comparisons, strict=True)):
            size = 1 if i < d + e else len(places.groups[i - d - e].entries)
            found.append(Found(name, i < d, c, size))
    return tuple(found)


def _wrong(looked: Sequence[Looked]) -> Places:
    """Pick the first place that fails."""
    for places, comparisons in looked:
        d = len(places.dense)
        for at, c in enumerate(comparisons):
            if c.verdict == "fail" and at < d:
                return Places(places.shape, places.dense[at : at + 1])
            if c.verdict == "fail":
                return Places(places.shape, places.dense[:0], (places.entries[at - d],))
    raise ValueError("nothing fails")


def size_of(t: Tensor) -> float:
    """Give the size that steps are relative to; zeros have none of their own, nor has nothing."""
    root = float(t.detach().double().square().mean().sqrt()) if t.numel() else 0.0
    return root or 1.0
