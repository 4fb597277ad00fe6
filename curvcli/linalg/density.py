"""The spectral density of a symmetric operator, every eigenvalue smoothed to a Gaussian.

Cost: no products.
"""

import math

import torch
from torch import Tensor

from curvcli.linalg.averages import TINY, Estimate, expectation
from curvcli.linalg.quadrature import Probe, Quadrature

BLOCK = 1 << 22
"""Values of Gaussians that are held at a time."""

REACH = 5.0
"""Widths beyond which a Gaussian has less than 1e-6 of its mass."""


def density(q: Quadrature, x: Tensor, sigma: float) -> Estimate:
    """Estimate the density at x (g,), every eigenvalue smoothed to a Gaussian of that width.

    The drift holds what nodes too far apart for that width leave open.
    """
    found = []
    for part in torch.split(x, max(1, BLOCK // len(q.rule.nodes))):

        def kernel(nodes: Tensor, part: Tensor = part) -> Tensor:
            return _gaussian(nodes, part, sigma)

        e = expectation(q, kernel)
        blurred = torch.stack([_blurred(p, part, sigma) for p in q.probes]).mean(dim=0)
        found.append((e.mean, e.stderr, torch.maximum(e.drift, blurred)))
    mean, stderr, drift = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Estimate(mean, stderr, drift).times(1 / (sigma * math.sqrt(2 * math.pi)))


def _gaussian(nodes: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Give a Gaussian around every x (g,) at nodes (m,), one at its peak: (g, m)."""
    return torch.exp(-(((x[:, None] - nodes) / sigma) ** 2) / 2)


def _blurred(probe: Probe, x: Tensor, sigma: float) -> Tensor:
    """Tell by how much the average of Gaussians around x (g,) is open for all that the nodes know.

    Between two nodes the measure is known up to a node's weight w, as in the share of what lies
    below a value, so that error is taken as uniform in +-w/2 here too; it counts by how much the
    Gaussian changes from node to node. A node whose residual is small, against the width or its
    distance, has an eigenvalue of its own.
    """
    nodes, weights = probe.rule.nodes, probe.rule.weights
    away = (x[:, None] - nodes).abs().clamp_min(max(sigma, TINY))
    open_ = weights * (probe.residuals / away).clamp_max(1.0) ** 2  # (g, m)
    height = torch.nn.functional.pad(_gaussian(nodes, x, sigma), (1, 1))
    change = (height[:, 1:] - height[:, :-1]).abs()  # (g, m + 1)
    within = torch.searchsorted(nodes, x).unsqueeze(1)  # the gap that holds the peak
    sides = height.gather(1, within) + height.gather(1, within + 1)
    change.scatter_(1, within, 2 - sides)
    open_ = torch.nn.functional.pad(open_, (1, 1))
    return (torch.maximum(open_[:, 1:], open_[:, :-1]) * change).sum(dim=1) / math.sqrt(12)


def peak(q: Quadrature, sigma: float) -> float:
    """Give the height at which the density of a lone eigenvalue peaks."""
    return 1 / (q.size * sigma * math.sqrt(2 * math.pi))


def grid(q: Quadrature, sigma: float) -> Tensor:
    """Choose the points (g,) of the lattice (sigma / 4) Z where the density is not negligible.

    Sums over them times sigma / 4 integrate the density to 1e-6; outside of them it is below a
    hundredth of what a lone eigenvalue's peak is, even next to all of the mass.
    """
    reach = math.ceil(4 * max(REACH, math.sqrt(2 * math.log(100 * q.size))))
    centres = set(torch.round(4 * (q.rule.nodes / sigma)).long().tolist())
    points = sorted({c + i for c in centres for i in range(-reach, reach + 1)})
    return torch.tensor(points, dtype=torch.float64) / 4 * sigma
