"""The spectral density of a symmetric operator, by stochastic Lanczos quadrature.

Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974; Ghorbani, Krishnan and Xiao 2019,
arXiv:1901.10159. From a random unit vector z, m steps of Lanczos give m nodes and weights that
integrate polynomials of degree 2m - 1 exactly in the measure sum_i (z, v_i)^2 delta(lambda_i),
whose mean over z is the density. Cost: `steps` products a probe; memory: a vector a step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.lanczos import Krylov
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import Watch

DENSE = 2000
"""Up to this size a matrix is formed whole if that takes no more products than probes would."""

TINY = torch.finfo(torch.float64).tiny

BLOCK = 1 << 22
"""Values of Gaussians that are held at a time."""

REACH = 5.0
"""Widths beyond which a Gaussian has less than 1e-6 of its mass."""


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


@dataclass(frozen=True)
class Estimate:
    """A mean over the eigenvalues, or a tensor of them.

    stderr: its standard error over probes: mean +- 1.96 stderr holds the truth in 95 % of runs
    drift:  by how much the last quarter of the steps, or the last one, has changed it
    """

    mean: Tensor
    stderr: Tensor
    drift: Tensor

    def times(self, factor: float) -> "Estimate":
        """Multiply by a positive number."""
        return Estimate(self.mean * factor, self.stderr * factor, self.drift * factor)

    @property
    def error(self) -> float:
        """Both errors together."""
        return math.hypot(float(self.stderr), float(self.drift))


def slq(
    A: LinearOperator,
    probes: int,
    steps: int,
    rng: torch.Generator,
    watch: Watch | None = None,
) -> Quadrature:
    """Integrate over the spectrum, from random starts or, if that is no dearer, over all of it.

    Ctrl-C leaves the probes that were finished, perhaps none.
    """
    counted = Counted(A)
    found: list[Probe] = []
    exact = A.size <= min(probes * steps, DENSE)
    interrupted = False
    try:
        if exact:
            found.append(_whole(counted, watch))
        while not exact and len(found) < probes:
            found.append(_probe(counted, steps, rng, _ticker(counted, found, probes, steps, watch)))
    except KeyboardInterrupt:
        interrupted = True
    return Quadrature(A.size, tuple(found), exact, counted.matvecs, interrupted)


def expectation(q: Quadrature, f: Callable[[Tensor], Tensor]) -> Estimate:
    """Average f, applied to eigenvalues (m,) and giving (..., m), over the spectrum: tr f(A) / n.

    The probes z are uniform on the sphere: E z_i^4 = 3 / n(n+2) and E z_i^2 z_j^2 = 1 / n(n+2), so
    that z^T f(A) z has mean E f and variance 2 / (n+2) (E f^2 - (E f)^2), E being the average over
    the eigenvalues. The probes tell E f^2 much better than the scatter of a few tells the variance,
    so an error is known from one probe on, and needs no quantile of Student's. Where one eigenvalue
    makes E f^2, k probes see it with a weight of chi^2_k / k, and too little of it would pass for
    certainty: as with proportions [Agresti and Coull 1998, doi:10.1080/00031305.1998.10480550], a
    part of one more is counted, 2 / k of the value farthest out. Over spectra with one to many
    eigenvalues of a kind, intervals of 1.96 errors then cover in 94 to 98 of 100 runs of 8 probes,
    and in 93 to 100 of fewer.
    """
    rule = q.rule
    values = f(rule.nodes)
    mean = values @ rule.weights
    drift = torch.zeros_like(mean)
    for before in q.earlier:
        drift = torch.maximum(drift, (f(before.nodes) @ before.weights - mean).abs())
    if q.exact:
        return Estimate(mean, torch.zeros_like(mean), drift)
    # Centred and scaled before it is squared: nothing cancels, overflows or vanishes.
    off = values - mean.unsqueeze(-1)
    scale = off.abs().amax(-1, keepdim=True).clamp_min(TINY)
    few = 2 / (q.size * len(q.probes))
    square = (off / scale) ** 2 @ rule.weights + (scale.squeeze(-1) > TINY) * few
    spread = scale.squeeze(-1) * square.sqrt()
    return Estimate(mean, spread * math.sqrt(2 / (q.size + 2) / len(q.probes)), drift)


def trace(q: Quadrature) -> Estimate:
    """Estimate the sum of the eigenvalues."""
    return expectation(q, lambda x: x).times(q.size)


def moment(q: Quadrature, power: int) -> Estimate:
    """Estimate tr A^power / n; the quadrature itself is exact up to a power of 2 * steps - 1."""
    return expectation(q, lambda x: x**power)


def mass(q: Quadrature, low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Estimate the fraction of the eigenvalues in [low, high]; its drift holds the resolution."""
    found = expectation(q, lambda x: ((x >= low) & (x <= high)).double())
    blurred = math.hypot(_blurred(q, low), _blurred(q, high))
    return Estimate(found.mean, found.stderr, found.drift.clamp_min(blurred))


def below(q: Quadrature, x: float) -> Estimate:
    """Estimate the fraction of the eigenvalues less than x."""
    return mass(q, high=math.nextafter(x, -math.inf))


def rank(q: Quadrature, threshold: float) -> Estimate:
    """Estimate how many eigenvalues are larger than `threshold` in size."""
    small = mass(q, -threshold, threshold)
    return Estimate(1 - small.mean, small.stderr, small.drift).times(q.size)


def density(q: Quadrature, x: Tensor, sigma: float) -> Estimate:
    """Estimate the density at x (g,), every eigenvalue smoothed to a Gaussian of that width."""
    found = []
    for part in torch.split(x, max(1, BLOCK // len(q.rule.nodes))):

        def kernel(nodes: Tensor, part: Tensor = part) -> Tensor:
            return torch.exp(-(((part[:, None] - nodes) / sigma) ** 2) / 2)

        found.append(expectation(q, kernel))
    whole = Estimate(
        torch.cat([e.mean for e in found]),
        torch.cat([e.stderr for e in found]),
        torch.cat([e.drift for e in found]),
    )
    return whole.times(1 / (sigma * math.sqrt(2 * math.pi)))


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


def outlying(q: Quadrature, gap: float, few: float) -> Callable[[Tensor], Tensor]:
    """Tell apart the bulk and what lies off it, by the indicator of what lies off it.

    Gaps of more than `gap` between neighbouring nodes, of any probes, part the spectrum into
    groups; a group that holds less than the share `few` of the eigenvalues is off the bulk.
    """
    nodes, weights = q.rule.nodes, q.rule.weights
    cuts = (nodes[1:] - nodes[:-1] > gap).nonzero().flatten()
    edges = (nodes[cuts] + nodes[cuts + 1]) / 2
    held = torch.zeros(len(edges) + 1, dtype=torch.float64)
    held.index_add_(0, torch.searchsorted(edges, nodes), weights)
    # Where all groups are small there is no bulk to lie off, unless the largest is it.
    off = (held < few) & (held < held.max())
    return lambda x: off[torch.searchsorted(edges, x)].double()


def _blurred(q: Quadrature, x: float) -> float:
    """Tell how much of the mass may be on either side of x for all that the nodes know.

    What a rule has up to its k-th node and the measure up to there differ by less than the node's
    weight w (Chebyshev, Markov and Stieltjes), so an error at x is taken as uniform in +-w/2. The
    rules of a large matrix are nearly the same for all probes: the error does not average out. A
    node whose residual r is less than its distance d from x has its own eigenvalue, and of others
    the square of r / d.
    """
    if math.isinf(x):
        return 0.0
    total = 0.0
    for probe in q.probes:
        nodes = probe.rule.nodes
        k = int(torch.searchsorted(nodes, x))
        near = slice(max(k - 1, 0), k + 1)
        d = (nodes[near] - x).abs().clamp_min(TINY)
        share = (probe.residuals[near] / d).clamp_max(1.0) ** 2
        total += float((share * probe.rule.weights[near]).max())
    return total / len(q.probes) / math.sqrt(12)


def _pooled(rules: Sequence[Rule]) -> Rule:
    nodes, order = torch.cat([r.nodes for r in rules]).sort()
    return Rule(nodes, torch.cat([r.weights for r in rules])[order] / len(rules))


def _probe(A: Counted, steps: int, rng: torch.Generator, tick: Callable[[], None]) -> Probe:
    """Run Lanczos from a vector drawn uniformly from the sphere."""
    K = Krylov(A)
    run = K.start(rng)
    assert run is not None
    while len(K.Q) < min(steps, A.size) and run.remainder is not None:
        K.step(run)
        tick()
    m = len(K.Q)
    # A Krylov space that has closed holds all that its start has to tell.
    closed = run.remainder is None or m == A.size
    sizes = (m, m) if closed else (max(m - max(m // 4, 1), 1), max(m - 1, 1))
    _, S = K.ritz(m)
    return Probe(
        rule=_rule(K, m),
        residuals=K.residuals(S) + K.rounding,
        earlier=tuple(_rule(K, size) for size in sizes),
    )


def _rule(K: Krylov, size: int) -> Rule:
    """Take nodes and weights from the leading part of T [Golub and Welsch 1969]."""
    theta, S = K.ritz(size)
    return Rule(theta, S[0] ** 2)


def _whole(A: Counted, watch: Watch | None) -> Probe:
    """Multiply by every unit vector, and take the eigenvalues of what comes out."""
    n = A.size
    M = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        e = torch.zeros_like(A.like)
        e[i] = 1
        M[i] = A.matvec(e).double().cpu()
        if watch:
            watch(i + 1, n, None, None)
    theta = torch.linalg.eigvalsh((M + M.T) / 2)
    # Products are as far from those of a symmetric matrix as rounding takes them, at least.
    rounding = 4 * math.sqrt(max(n, 4)) * torch.finfo(A.like.dtype).eps * norm(theta)
    wrong = max(rounding, norm((M - M.T) / 2))
    rule = Rule(theta, torch.full_like(theta, 1 / n))
    return Probe(rule, torch.full_like(theta, wrong), (rule,))


def _ticker(
    A: Counted, found: list[Probe], probes: int, steps: int, watch: Watch | None
) -> Callable[[], None]:
    """Make what tells of every product, with the trace as the finished probes have it."""
    so_far = trace(Quadrature(A.size, tuple(found), False, 0, False)) if found else None
    known = (float(so_far.mean), float(so_far.stderr)) if so_far else (None, None)

    begun = A.matvecs

    def tick() -> None:
        if watch:
            watch(len(found) * steps + A.matvecs - begun, probes * steps, *known)

    return tick
