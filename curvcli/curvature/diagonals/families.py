"""The columns of a loss's root that belong to one call of it, in closed form."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.curvature.terms import Terms


class Vector(ABC):
    """How the columns of one term come from what is known of it (k, N, C)."""

    @abstractmethod
    def count(self, classes: int) -> int:
        """Say how many a term has."""

    @abstractmethod
    def make(self, known: Tensor, q: Tensor) -> Tensor:
        """Give those of the numbers q (k,): (k, N, C)."""


class Softmax(Vector):
    """The root sqrt(p_q) (e_q - p) of diag(p) - p p^T, from p."""

    def count(self, classes: int) -> int:
        """Say that every class has one."""
        return classes

    def make(self, known: Tensor, q: Tensor) -> Tensor:
        """Scale e_q - p; its entry 1 - p_q is summed from the others, where p_q may round to 1."""
        rows = torch.arange(len(q))
        root = known[rows, :, q].sqrt().unsqueeze(-1)  # (k, N, 1)
        z = -known
        z[rows, :, q] = 0
        z[rows, :, q] = -z.sum(dim=-1)
        return z * root


class Itself(Vector):
    """The one column that is known already."""

    def count(self, classes: int) -> int:
        """Say that there is one."""
        return 1

    def make(self, known: Tensor, q: Tensor) -> Tensor:
        """Hand it on."""
        return known


@dataclass(frozen=True)
class Family:
    """The columns of all terms of one call, of which every example has R.

    known:   (N, R, C), C the classes that a term depends on, or 1 for a single entry
    weights: (N, R), of the terms in L
    rows:    the terms that have a weight in some example
    """

    terms: Terms
    known: Tensor
    weights: Tensor
    rows: Tensor
    vector: Vector

    @classmethod
    def of(
        cls, terms: Terms, examples: int, weights: Tensor, known: Tensor, vector: Vector
    ) -> "Family":
        """Lay the terms out by examples; nothing is known where they cannot be."""
        if terms.values.numel() % examples:
            known, weights = known.new_zeros(0), weights.new_zeros(0)
        classes = known.shape[terms.axis] if terms.axis is not None and known.numel() else 1
        if terms.axis is not None and known.numel():
            known = known.movedim(terms.axis, -1)
        weights = weights.detach().reshape(examples, -1)
        rows = (weights != 0).any(dim=0).nonzero().flatten()
        return cls(terms, known.detach().reshape(examples, -1, classes), weights, rows, vector)

    @property
    def each(self) -> int:
        """How many columns a term has."""
        return self.vector.count(self.known.shape[2])

    @property
    def count(self) -> int:
        """How many columns an example has."""
        return len(self.rows) * self.each

    def make(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Make columns by number: cotangents (k, *x.shape), and signs (k, N)."""
        r = self.rows[which.to(self.rows.device) // self.each]
        weights = self.weights[:, r].T  # (k, N)
        values = self.vector.make(self.known[:, r].transpose(0, 1), which % self.each)
        z = values.new_zeros(len(which), *self.known.shape)
        z[torch.arange(len(which)), :, r] = values * weights.abs().sqrt().unsqueeze(-1)
        return self.laid(z), weights.sign()

    def laid(self, z: Tensor) -> Tensor:
        """Turn (k, N, R, C) into what is shaped like k of the loss's arguments."""
        x, axis = self.terms.x, self.terms.axis
        if axis is None:
            return z.reshape(-1, *x.shape)
        return z.reshape(-1, *x.movedim(axis, -1).shape).movedim(-1, axis + 1)
