"""A symmetric map on R^n that is known only through its products."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class LinearOperator(ABC):
    """A symmetric map; `like` is a vector of the space and tells its size, dtype and device."""

    like: Tensor  # (n,)

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """Apply the map to a vector (n,) of `like`'s dtype and device."""

    def matmat(self, V: Tensor) -> Tensor:
        """Apply the map to the rows of V (k, n): one by one, where nothing faster is known."""
        return torch.stack([self.matvec(v) for v in V])

    @property
    def size(self) -> int:
        """The dimension n of the space."""
        return self.like.numel()


class Counted(LinearOperator):
    """The same map, counting its products."""

    def __init__(self, inner: LinearOperator) -> None:
        self.inner = inner
        self.like = inner.like
        self.matvecs = 0

    def matvec(self, v: Tensor) -> Tensor:
        """Apply the inner map and count it."""
        self.matvecs += 1
        return self.inner.matvec(v)

    def matmat(self, V: Tensor) -> Tensor:
        """Apply the inner map and count every row."""
        self.matvecs += len(V)
        return self.inner.matmat(V)


class Dense(LinearOperator):
    """A symmetric matrix (n, n) that is held whole."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.like = matrix[0]

    def matvec(self, v: Tensor) -> Tensor:
        """Multiply."""
        return self.matrix @ v

    def matmat(self, V: Tensor) -> Tensor:
        """Multiply every row."""
        return V @ self.matrix


class Restricted(LinearOperator):
    """A diagonal block of a map: the rows and columns of one slice, or of indices (m,)."""

    def __init__(self, inner: LinearOperator, block: slice | Tensor) -> None:
        self.inner = inner
        self.block = block
        self.like = inner.like[block]

    def matvec(self, v: Tensor) -> Tensor:
        """Multiply by the block."""
        whole = torch.zeros(self.inner.size, dtype=v.dtype, device=v.device)
        whole[self.block] = v
        return self.inner.matvec(whole)[self.block]


class Mapped(LinearOperator):
    """A map given as a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self.function = function
        self.like = like

    def matvec(self, v: Tensor) -> Tensor:
        """Call the function."""
        return self.function(v)


def normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw a standard normal vector of `like`'s kind; the same numbers on every device."""
    # float64 and then rounded, so that the stream does not depend on the precision asked for.
    drawn = torch.randn(like.shape, generator=rng, device=rng.device, dtype=torch.float64)
    return drawn.to(device=like.device, dtype=like.dtype)


def rademacher(like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw independent signs of `like`'s kind; the same numbers on every device."""
    signs = torch.randint(0, 2, like.shape, generator=rng, device=rng.device)
    return (2 * signs - 1).to(device=like.device, dtype=like.dtype)
