"""Hutch++: the range of a sketch taken out exactly, and what remains estimated by probes.

Meyer, Musco, Musco and Woodruff 2021, doi:10.1137/1.9781611976496.16; the number of sketches after
Persson, Cortinovis and Kressner 2022, doi:10.1137/21M1447623. Cost: two products a sketch, one a
probe.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvcli.linalg.basis import Basis, norm
from curvcli.linalg.operator import Counted, normal, rademacher
from curvcli.linalg.probing import Method, Samples

TRIALS = 4
"""Sketches that are always tried, and whose yield is looked at together."""


class HutchPP(Method):
    """The sketch's orthonormal range Q, and for every probe z what any later Q needs of it.

    With P = Q Q^T, A = (PA + AP - PAP) + (I-P) A (I-P). The trace of the first part is tr(Q^T A Q);
    of the second a probe gives z^T A z - 2 c^T d + c^T H c, where c = Q^T z, d = Q^T A z and
    H = Q^T A Q. Both hold block by block with the dot products taken over the block, and for any
    symmetric P, so that rounding in Q does not bias the sum.
    """

    def __init__(
        self,
        A: Counted,
        rng: torch.Generator,
        blocks: Sequence[slice],
        max_matvecs: int,
        room: int,
    ) -> None:
        super().__init__(A, rng, blocks)
        b = len(blocks)
        self.max_matvecs, self.room = max_matvecs, room
        self.Q, self.AQ, self.Z = Basis(A.like), Basis(A.like), Basis(A.like)
        self.zAz = torch.zeros(b, 0).double()
        self.Qz = torch.zeros(b, 0, 0).double()  # (b, sketches, probes)
        self.AQz = torch.zeros(b, 0, 0).double()
        self.QQ = torch.zeros(b, 0, 0).double()  # (b, sketches, sketches)
        self.QAQ = torch.zeros(b, 0, 0).double()
        self.yields: list[tuple[float, float]] = []  # variance taken off, and variance before

    least = 12

    @property
    def sketches(self) -> int:
        """How many vectors the range has."""
        return len(self.Q)

    @property
    def sketching(self) -> bool:
        """Whether another sketch promises more than the two probes that it costs.

        Decided by the sketches alone: were it by the probes, they would no longer be independent of
        the remainder that they are asked about.
        """
        left = self.max_matvecs - self.A.matvecs
        if left < 3 or len(self.Q) >= self.room:
            return False
        if len(self.yields) < TRIALS:
            return True
        gain, before = map(sum, zip(*self.yields[-TRIALS:], strict=True))
        return gain * left > 2 * before

    @property
    def cost(self) -> int:
        """A sketch takes two products, a probe one."""
        return 3 if self.sketching else 1

    def step(self) -> None:
        """Take a sketch where one pays, and a probe."""
        if self.sketching:
            self._sketch()
        self._probe()

    def _sketch(self) -> None:
        w = self.A.matvec(normal(self.A.like, self.rng)).double()
        square = float(w.square().sum())
        self.Q.remove(w)
        left = norm(w)
        if left <= torch.finfo(self.A.like.dtype).eps * math.sqrt(square):
            self.room = len(self.Q)  # nothing but rounding remains outside
            return
        w /= left
        self.Q.remove(w)
        q = (w / w.norm()).to(self.A.like.dtype)
        Aq = self.A.matvec(q)
        QAq = torch.cat([self._dots(self.Q, Aq), self.by_block(q, Aq).unsqueeze(1)], dim=1)
        AQq = torch.cat([self._dots(self.AQ, q), QAq[:, -1:]], dim=1)
        Qq = torch.cat([self._dots(self.Q, q), self.by_block(q, q).unsqueeze(1)], dim=1)
        qz, Aqz = self._dots(self.Z, q), self._dots(self.Z, Aq)
        h = QAq.sum(dim=0)  # a column of Q^T A Q
        gain = 2 * float(Aq.double().square().sum()) - 2 * float(h[:-1].square().sum())
        # Nothing before here has changed what is known.
        self.squares.append(square)
        self.yields.append((gain - float(h[-1]) ** 2, left**2))
        self.QAQ = _bordered(self.QAQ, AQq, QAq)
        self.QQ = _bordered(self.QQ, Qq, Qq)
        self.Qz = torch.cat([self.Qz, qz.unsqueeze(1)], dim=1)
        self.AQz = torch.cat([self.AQz, Aqz.unsqueeze(1)], dim=1)
        self.Q.append(q)
        self.AQ.append(Aq)

    def _probe(self) -> None:
        z = rademacher(self.A.like, self.rng)
        y = self.A.matvec(z)
        zAz = self.by_block(z, y)
        Qz, AQz = self._dots(self.Q, z), self._dots(self.AQ, z)
        self.squares.append(float(y.double().square().sum()))
        self.zAz = torch.cat([self.zAz, zAz.unsqueeze(1)], dim=1)
        self.Qz = torch.cat([self.Qz, Qz.unsqueeze(2)], dim=2)
        self.AQz = torch.cat([self.AQz, AQz.unsqueeze(2)], dim=2)
        if self.sketching:  # else no sketch will ask for it
            self.Z.append(z)

    def samples(self, last: bool) -> Samples:
        """Add the range's own trace to what every probe says of the remainder."""
        H = self.QAQ.sum(dim=0)
        H = (H + H.T) / 2
        exact = 2 * self.QAQ.diagonal(dim1=1, dim2=2).sum(dim=1) - (self.QQ * H).sum(dim=(1, 2))
        c, d = self.Qz.sum(dim=0), self.AQz.sum(dim=0)  # (sketches, probes)
        rest = self.zAz - (self.AQz * c).sum(dim=1) + (self.Qz * (H @ c - d)).sum(dim=1)
        rows, plain = (exact.unsqueeze(1) + rest).T, self.zAz.T
        # Signs know a diagonal exactly, whose remainder is one no more.
        if len(rows) > 1 and plain.sum(dim=1).std() < rows.sum(dim=1).std() / 2:
            rows = plain
        return Samples(rows.sum(dim=1), rows, self.frobenius)

    def _dots(self, held: Basis, w: Tensor) -> Tensor:
        """Multiply the vectors that are held by w, block by block: (b, k)."""
        out = torch.zeros(len(self.blocks), len(held), dtype=torch.float64, device=w.device)
        begin = 0
        for rows in held.blocks:
            filled = rows[: len(held) - begin]
            for i, cut in self.cuts:
                out[i, begin : begin + len(filled)] += filled[:, cut].double() @ w[cut].double()
            begin += len(filled)
        return out.cpu()


def _bordered(M: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Add a row (b, k + 1) and a column (b, k + 1) with the same corner to M (b, k, k)."""
    out = pad(M, (0, 1, 0, 1))
    out[:, -1, :], out[:, :, -1] = row, column
    return out
