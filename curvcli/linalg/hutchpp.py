"""Hutch++: the range of a sketch taken out exactly, and what remains estimated by probes.

Meyer, Musco, Musco and Woodruff 2021, doi:10.1137/1.9781611976496.16; the number of sketches after
Persson, Cortinovis and Kressner 2022, doi:10.1137/21M1447623. Cost: two products a sketch, one a
probe.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curvcli.linalg.basis import Basis, norm
from curvcli.linalg.operator import Counted, normal, rademacher
from curvcli.linalg.probing import CHUNK, Known, Method, drawn
from curvcli.linalg.scatter import Scatter, gathered

HELD = 4
"""Vectors held for every sketch: its direction and product, a probe and what R makes of it."""

BESIDE = 4
"""Vectors held besides, at most: two means of products in float64."""


class HutchPP(Method):
    """The remainder R of A after directions q have been taken out of it, one by one.

    With u = R q, what goes is T = q u^T + u q^T - (q.u) q q^T, which leaves (I - q q^T) R
    (I - q q^T). T is symmetric and known, and so are its blocks' traces: probes of A - sum T tell
    the rest without bias, whatever the rounding in q and u.
    """

    def __init__(
        self, A: Counted, rng: torch.Generator, blocks: Sequence[slice], vectors: int
    ) -> None:
        super().__init__(A, rng, blocks)
        self.room = max(0, (vectors - BESIDE) // HELD)
        self.Q, self.U = Basis(A.like), Basis(A.like)
        self.qu = torch.zeros(0, dtype=torch.float64)  # (sketches,)
        self.exact = torch.zeros(len(blocks), dtype=torch.float64)  # the traces of what is out
        self.Z, self.RZ = Basis(A.like), Basis(A.like)  # probes that later sketches will change
        self.plain, self.rest = Scatter(blocks), Scatter(blocks)
        self.yields: list[tuple[float, float]] = []  # variance taken off, and variance before

    @property
    def sketches(self) -> int:
        """How many directions are out."""
        return len(self.qu)

    def step(self, matvecs: int) -> bool:
        """Take some probes, or the sketches that go with them."""
        pays = self._pays(matvecs)
        if pays and len(self.plain) > self.sketches:
            self._sketch(min(CHUNK, (matvecs - 1) // 2, self.room - self.sketches))
        elif matvecs >= 1:
            self._probe(min(CHUNK, matvecs), hold=pays)
        return matvecs >= 1

    def _pays(self, matvecs: int) -> bool:
        """Decide whether another sketch promises more than the two probes that it costs.

        By the sketches alone: were it by the probes, they would no longer be independent of the
        remainder that they are asked about.
        """
        if matvecs < 3 or self.sketches >= self.room:
            return False
        if not self.yields:
            return True
        gain, before = map(sum, zip(*self.yields[-CHUNK:], strict=True))
        return gain * matvecs > 2 * before

    def _sketch(self, count: int) -> None:
        W = self.A.matmat(drawn(normal, count, self.A.like, self.rng)).double()
        new = Basis(self.A.like)
        lefts = []
        for w in W:
            square = float(w.square().sum())
            left = self._outward(w, new)
            if left <= torch.finfo(self.A.like.dtype).eps * math.sqrt(square):
                self.room = 0  # nothing but rounding remains outside
                break
            self._outward(w.div_(left), new)
            new.append((w / w.norm()).to(self.A.like.dtype))
            self.squares.append(square)
            lefts.append(left)
        if not lefts:
            return
        Q = torch.stack([new[i] for i in range(len(new))])
        for q, Aq, left in zip(Q, self.A.matmat(Q), lefts, strict=True):
            self._take_out(q, self._remainder(q, Aq), left)
        self.rest = Scatter(self.blocks)
        for i in range(0, len(self.Z), CHUNK):
            js = range(i, min(i + CHUNK, len(self.Z)))
            self.rest.add(*(torch.stack([held[j] for j in js]) for held in (self.Z, self.RZ)))

    def _outward(self, w: Tensor, new: Basis) -> float:
        """Orthogonalise w (n,) float64, in place, and give what length is left."""
        self.Q.remove(w)
        new.remove(w)
        return norm(w)

    def _remainder(self, z: Tensor, Az: Tensor) -> Tensor:
        """Take what is out off a product: R z in float64."""
        if not self.sketches:
            return Az.double()
        a, b = self.U.dots(z.double()), self.Q.dots(z.double())
        return Az.double() - self.Q.combine(a - self.qu * b) - self.U.combine(b)

    def _take_out(self, q: Tensor, u: Tensor, left: float) -> None:
        """Take a direction (n,) out, also of what is known of the probes."""
        u = u.to(q.dtype)
        x, y = q.double(), u.double()
        qu = float(x @ y)
        for i, s in enumerate(self.blocks):
            self.exact[i] += float(2 * (x[s] @ y[s]) - qu * x[s].square().sum())
        self.yields.append((2 * float(y.square().sum()) - qu**2, left**2))
        qZ, uZ = self.Z.dots(x).tolist(), self.Z.dots(y).tolist()
        for i, (a, b) in enumerate(zip(uZ, qZ, strict=True)):
            self.RZ[i].sub_((x * (a - qu * b) + y * b).to(q.dtype))
        self.Q.append(q)
        self.U.append(u)
        self.qu = torch.cat([self.qu, torch.tensor([qu], dtype=torch.float64)])

    def _probe(self, count: int, *, hold: bool) -> None:
        if not hold:  # no sketch will ask for them any more
            self.Z, self.RZ = Basis(self.A.like), Basis(self.A.like)
        Z = drawn(rademacher, count, self.A.like, self.rng)
        Y = self.A.matmat(Z)
        RZ = torch.stack([self._remainder(z, y) for z, y in zip(Z, Y, strict=True)])
        self.squares += [float(y.double().square().sum()) for y in Y]
        self.plain.add(Z, Y)
        self.rest.add(Z, RZ)
        if hold:
            for z, Rz in zip(Z, RZ, strict=True):
                self.Z.append(z)
                self.RZ.append(Rz.to(z.dtype))

    def known(self, *, last: bool) -> Known:
        """Add the trace of what is out to what every probe says of the remainder."""
        rest, plain = gathered(self.rest, self.exact), gathered(self.plain)
        # Signs know a diagonal exactly, whose remainder is one no more.
        return plain if plain.whole[1] < rest.whole[1] / 2 else rest
