"""What a linear step law makes of one mode of a quadratic: the two roots that move it.

In coordinates where the preconditioner is 1, a law takes the gradient g = lambda x and steps

    m' = momentum m + g,    x' = (1 - decay) x - rate (alpha g + beta m'),

which has solutions z^t x with (z - 1 + decay) / G(z) + rate lambda = 0 for the transfer function
G(z) = alpha + beta z / (z - momentum). On the upper unit circle the imaginary part of the first
term is positive where alpha, beta >= 0 and momentum < 1, whatever the law. So with A symmetric and
the laws diagonal, also where they differ from parameter to parameter, a root can leave the circle
at z = 1 (growth) or at z = -1 only; and at z = -1 the matrix rate G(-1) A + decay has the
eigenvalue 2. A quadratic is stable while that matrix lies below 2, and the other one,
rate G(1) A + decay, above 0.
"""

import cmath
import math
import sys
from dataclasses import dataclass

ROUNDING = 8 * sys.float_info.epsilon
"""A root so close to the circle is on it; roots are solved for to a few units of rounding."""


@dataclass(frozen=True)
class Law:
    """One parameter's step law; `rate` has the bias corrections in it.

    decay:   share of the parameter that each step takes away apart from the gradient
    coupled: weight decay that is added to the gradient, and so to the curvature
    sign:    -1 where the step goes up the gradient of the loss
    """

    rate: float
    alpha: float = 1.0
    beta: float = 0.0
    momentum: float = 0.0
    decay: float = 0.0
    coupled: float = 0.0
    sign: float = 1.0

    @property
    def gain(self) -> float:
        """How strongly a gradient acts that turns its sign at every step: G(-1)."""
        return self.alpha + self.beta / (1 + self.momentum)

    @property
    def scale(self) -> float:
        """What curvature is multiplied by before it is held against 2."""
        return self.rate * self.gain

    @property
    def formula(self) -> str:
        """Write the threshold 2 / scale with this law's numbers in it."""
        if not self.beta:
            return f"2 / {self.alpha * self.rate:g}"
        above, below = f"2 (1 + {self.momentum:g})", f"{self.beta:g}"
        if self.alpha:
            below = f"({self.alpha:g} (1 + {self.momentum:g}) + {self.beta:g})"
        return f"{above} / ({self.rate:g} x {below})"

    def mode(self, lead: float) -> "Mode":
        """Solve for a mode of which rate G(-1) A + decay is `lead`, unstable from 2 on."""
        pull = (lead - self.decay) / self.gain  # rate lambda
        # [[1 - decay - (alpha + beta) pull, -beta momentum], [pull, momentum]] takes (x, m) one on.
        trace = 1 - self.decay - (self.alpha + self.beta) * pull + self.momentum
        determinant = self.momentum * (1 - self.decay - self.alpha * pull)
        root = cmath.sqrt(trace * trace / 4 - determinant)
        far = trace / 2 + (root if trace * root.real >= 0 else -root)
        # Vieta's rule keeps the small root's digits.
        return Mode((far, determinant / far if far else far))


@dataclass(frozen=True)
class Mode:
    """How a mode moves: its size follows the powers of two roots, the larger one first."""

    roots: tuple[complex, complex]

    @property
    def radius(self) -> float:
        """The spectral radius: by what a step multiplies the mode in the long run."""
        return abs(self.roots[0])

    @property
    def kind(self) -> str:
        """How it looks: monotone, alternating, oscillating over a period, and whether it grows."""
        first = self.roots[0]
        if abs(first.imag) > 1e-12 * abs(first):
            period = 2 * math.pi / abs(cmath.phase(first))
            said = f"oscillating, period {period:.3g}"
        else:
            said = "alternating" if first.real < 0 else "monotone"
        return f"{said}, growing" if self.radius > 1 else said

    @property
    def steps(self) -> float | None:
        """Steps over which it shrinks by e, or grows where that is negative; None for neither."""
        if self.radius == 0 or abs(self.radius - 1) < ROUNDING:
            return None
        return -1 / math.log(self.radius)
