"""The gradient in the curvature, against closed forms."""

import pytest
import torch
from oracles import dense_hessian
from questions import classify, inputs, mlp
from torch import nn
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.curvature.alignment import alignment
from curvcli.linalg.operator import Dense
from curvcli.load.loss import as_loss
from curvcli.problem import Problem


def test_the_gradient_is_held_against_the_eigenvectors() -> None:
    p = classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 23)).to(torch.float64)
    H, g = dense_hessian(p), p.gradient()
    _, Y = torch.linalg.eigh(H)
    found = alignment(p, Dense(H), Y.T.flip(0)[:3])
    assert found is not None
    assert found.quotient == pytest.approx(float(g @ H @ g / (g @ g)))
    assert found.cosine == pytest.approx(float((Y[:, -1] @ g).abs() / g.norm()))
    assert found.share == pytest.approx(float((Y.T[-3:] @ g).square().sum() / (g @ g)))
    whole = alignment(p, Dense(H), Y.T)
    assert whole is not None
    assert whole.share == pytest.approx(1.0)
    assert whole.share <= 1.0


def test_a_zero_gradient_lies_nowhere() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    batch = Batch(torch.eye(2), torch.zeros(2, 1), 2)
    p = Problem.of(model, as_loss(functional.mse_loss), [batch])
    assert alignment(p, Dense(torch.eye(2)), torch.eye(2)) is None
