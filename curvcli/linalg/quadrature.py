"""Stochastic Lanczos quadrature: nodes and weights that stand for the spectrum of an operator.

Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974; Ghorbani, Krishnan and Xiao 2019,
arXiv:1901.10159. From a random unit vector z, m steps of Lanczos give m nodes and weights that
integrate polynomials of degree 2m - 1 exactly in the measure sum_i (z, v_i)^2 delta(lambda_i),
whose mean over z is the density.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """Nodes (m,), ascending, and weights (m,) that sum to one; float64, on the CPU."""

    nodes: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Probe:
    """What one random start found.

    residuals: (m,), ||A y - theta y|| of each node's Ritz vector y: so near is an eigenvalue
    earlier:   the rules after fewer steps, which tell how much the last ones have changed
    """

    rule: Rule
    residuals: Tensor
    earlier: tuple[Rule, ...]


@dataclass(frozen=True)
class Quadrature:
    """The probes of a density on n = `size` eigenvalues; an exact one has one, with all of them."""

    size: int
    probes: tuple[Probe, ...]
    exact: bool
    matvecs: int
    interrupted: bool

    @property
    def rule(self) -> Rule:
        """The mean of the probes' measures."""
        return _pooled([p.rule for p in self.probes])

    @property
    def earlier(self) -> tuple[Rule, ...]:
        """The same after fewer steps."""
        return tuple(_pooled(r) for r in zip(*(p.earlier for p in self.probes), strict=True))

    @property
    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The least and the largest node, each with the residual of its pair."""
        low = min((float(p.rule.nodes[0]), float(p.residuals[0])) for p in self.probes)
        most = max(self.probes, key=lambda p: float(p.rule.nodes[-1]))
        return low, (float(most.rule.nodes[-1]), float(most.residuals[-1]))

    @property
    def largest(self) -> float:
        """The largest node in size: a lower estimate of ||A||_2."""
        (low, _), (high, _) = self.ends
        return max(abs(low), abs(high))

    @property
    def span(self) -> float:
        """The length of the interval that holds the nodes and zero; 1 where it has none."""
        (low, _), (high, _) = self.ends
        return max(high, 0.0) - min(low, 0.0) or 1.0


def _pooled(rules: Sequence[Rule]) -> Rule:
    nodes, order = torch.cat([r.nodes for r in rules]).sort()
    return Rule(nodes, torch.cat([r.weights for r in rules])[order] / len(rules))
