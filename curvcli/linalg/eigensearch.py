"""The search for extreme eigenpairs in a Krylov space: which step is next, and when it is over."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvcli.linalg.krylov import Krylov, Run
from curvcli.linalg.missed import Hunt, alone, ends, escaped, levels, sharp, slack
from curvcli.linalg.ritz import DOUBT, FLOOR, Watch, Which, small, wanted

EXTRA = 0.5
"""The share of the room beside the wanted pairs that a restart fills with the next ones.

Measured on spectra of n = 2000 with 9 to 30 vectors, geometric to clustered: between 0.4 and 0.6
products mostly differ by less than a tenth; 0 and 0.8 take up to a quarter more where there are
many restarts.
"""

HUNT = 30
"""Vectors that are left to the search for missed ones before more than the wanted are kept."""

FEW = 16
"""Dimensions left of a space that are cheaper to see than to search."""

Outcome = Literal["found", "nothing", "unknown"]


@dataclass
class Search:
    """What is asked of a Krylov space, and what may be spent on it."""

    K: Krylov
    top: int
    which: Which
    tolerance: float
    max_matvecs: int
    rng: torch.Generator
    block: int = 1
    watch: Watch | None = None
    hunt: Hunt | None = None
    doubt: float = 1.0
    restarts: int = 0
    short_of: Literal["nothing", "matvecs", "vectors"] = "nothing"
    told: tuple[float, float] | None = None

    @property
    def count(self) -> int:
        """How many pairs are wanted."""
        return min(self.top * (2 if self.which == "both" else 1), self.K.A.size)

    @property
    def left(self) -> int:
        """How many products may still be spent."""
        return self.max_matvecs - self.K.A.matvecs

    def pairs(self, size: int) -> tuple[Tensor, Tensor]:
        """Give the wanted values (k,) and their coefficients (m, k) in the first m=size vectors."""
        theta, S = self.K.ritz(size)
        chosen, _ = wanted(theta, self.top, self.which)
        return theta[chosen], S[:, chosen]

    def _wanted(self, size: int) -> tuple[Tensor, Tensor]:
        """Give the wanted values (k,) and bounds of their residuals, without rounding."""
        theta, S = self.pairs(size)
        return theta, self.K.residuals(S)

    def _small(self, theta: Tensor, residuals: Tensor) -> bool:
        enough = len(theta) == self.count
        return enough and small(residuals, theta, self.K.norm, self.tolerance)

    def fulfilled(self, size: int) -> bool:
        """Decide whether every wanted pair is there and has a small residual."""
        return self._small(*self._wanted(size))

    @property
    def size(self) -> int:
        """How many vectors the answer is taken from: all, unless a hunt has unsharpened it."""
        size = len(self.K.H)
        return self.hunt.run.begin if self.hunt and not self.fulfilled(size) else size

    def converge(self) -> bool:
        """Step until every wanted pair is sharp; False where the products ran out."""
        self.hunt, self.doubt = None, 1.0
        theta, residuals = self._wanted(len(self.K.H))
        while len(self.K.Q) < self.K.A.size and not self._sharp(theta, residuals):
            if self.left < 1:
                self.short_of = "matvecs"
                return False
            run = self._open()
            if run is None:
                break
            count = min(self.block, len(run.U), self.left)
            if not self.K.fits(count):
                self._restart(run, count)
            self.K.step(run, self._neediest(run, count))
            theta, residuals = self._wanted(len(self.K.H))
            self._tell(float(theta[0]), float(residuals[0]))
        return True

    def verify(self) -> Outcome:
        """Look for what was missed, from a random start in the complement of the pairs."""
        if self._bounded_by_itself():
            return "nothing"
        theta, residuals = self._cut_back()
        found = levels(theta, residuals, self.top, self.which, self.K.norm)
        run = self.K.start(self.rng)
        if run is None:  # the basis fills the space: nothing can have been missed
            self.doubt = 0.0
            return "nothing"
        self.hunt = Hunt(self.K, run, found)
        return self._follow(self.hunt)

    def _bounded_by_itself(self) -> bool:
        """Go on with a run that was alone until it bounds what it may have missed, if it can."""
        while self.top == 1 and alone(self.K):
            theta, norm = self.pairs(len(self.K.H))[0].sort().values, self.K.norm
            bounds = levels(theta, torch.zeros_like(theta), 1, self.which, norm)
            self.doubt = escaped(self.K, self.K.runs[0], bounds)
            if self.doubt <= DOUBT:
                return True
            if self.left < 1 or not self.K.fits(1):
                return False
            self.K.step(self.K.runs[0])
        return False

    def _sharp(self, theta: Tensor, residuals: Tensor) -> bool:
        """Decide whether the pairs have converged, and enough for a search for missed ones."""
        n, K = self.K.A.size, self.K
        if not self._small(theta, residuals):
            return False
        if n - len(K.Q) <= FEW and (K.most is None or K.most >= n):
            return False
        order, norm = torch.argsort(theta), self.K.norm
        theta, bounds = theta[order], residuals[order] + self.K.rounding
        found = levels(theta, bounds, self.top, self.which, norm)
        return sharp(found, theta, self.top, self.which, norm)

    def _bounds(self, S: Tensor) -> Tensor:
        return self.K.residuals(S) + self.K.rounding

    def _open(self) -> Run | None:
        """Give the run to go on with, a new one where there is none; None where Q is full."""
        if self.K.runs and self.K.runs[0].U:
            return self.K.runs[0]
        self.K.runs.clear()
        return self.K.start(self.rng, min(self.block, self.left))

    def _weights(self, run: Run) -> Tensor:
        """Say how much every remainder of a run weighs in the wanted pairs: (p,)."""
        theta, S = self.pairs(len(self.K.H))
        scale = theta.abs().clamp_min(FLOOR * self.K.norm)
        return (run.C @ S / scale).abs().amax(dim=1) if len(theta) else torch.zeros(len(run.U))

    def _neediest(self, run: Run, count: int) -> list[int]:
        if count == len(run.U):
            return list(range(count))
        return sorted(torch.argsort(self._weights(run), descending=True)[:count].tolist())

    def _restart(self, run: Run, count: int) -> None:
        """Cut the basis back to the wanted pairs and the next ones, with room for a step."""
        assert self.K.most is not None
        most = self.K.most - count
        while len(run.U) > count and most - len(run.U) <= self.count:
            self.K.forget(run, int(self._weights(run).argmin()))
        room = most - len(run.U) - self.count
        keep = self.count + max(1, int(EXTRA * room))
        theta, _ = self.K.ritz(len(self.K.H))
        each = -(-keep // 2) if self.which == "both" else keep
        self.K.keep(wanted(theta, each, self.which)[0][:keep])
        self.restarts += 1

    def _cut_back(self) -> tuple[Tensor, Tensor]:
        """Leave of the basis what is sharp, and give its values, ascending, and residuals (k,).

        What is not wanted but as sharp stays, too: what it takes out of the complement's spectrum
        need not be found there again. It may take an eighth of the slack.
        """
        K = self.K
        theta, S = K.ritz(len(K.H))
        residuals = self._bounds(S)
        chosen = wanted(theta, self.top, self.which)[0]
        points = [x for end in ends(theta, self.top, self.which) for x in end]
        limit = min(slack(x, K.norm) for x in points) / math.sqrt(8)
        room = len(theta)
        if K.most is not None:
            room = K.most - sum(len(run.U) for run in K.runs) - HUNT
        rho = 0.0
        for i in torch.argsort(residuals).tolist():
            rho = math.hypot(rho, float(residuals[i]))
            if rho > limit or len(chosen) >= room:
                break
            if i not in chosen:
                chosen.append(i)
        if len(chosen) < len(theta):
            K.keep(chosen)
        theta, S = K.ritz(len(K.H))
        return theta, self._bounds(S)

    def _follow(self, hunt: Hunt) -> Outcome:
        """Step a run that looks for what was missed, until it has, or need not, or cannot."""
        while self.left >= 1 and self.K.fits(1):
            self.K.step(hunt.run)
            if self.told:
                self._tell(*self.told)
            if hunt.look():
                self.K.join()
                return "found"
            self.doubt = hunt.doubt
            if self.doubt <= DOUBT:
                return "nothing"
        self.short_of = "matvecs" if self.left < 1 else "vectors"
        return "unknown"

    def _tell(self, value: float, residual: float) -> None:
        self.told = value, residual
        if self.watch:
            self.watch(self.K.A.matvecs, None, value, residual)
