"""Reports such as curv makes, for the tests of every sink."""

import pytest
from sinks.drawn import DENSITY, figured, sweep

from curvcli.report import Check, Column, Metric, Report, Result

EIG = Result(
    name="eig",
    question="How sharp is the loss here?",
    headline="The largest curvature is 12.310 ± 0.001; gradient descent is stable below lr 0.162",
    columns=(
        Column("rank", "rank", "count"),
        Column("value", "eigenvalue", "real", error="residual"),
        Column("residual", "residual", "real"),
        Column("gap", "gap to next", "real"),
        Column("converged", "converged"),
    ),
    rows=(
        {"rank": 1, "value": 12.3104, "residual": 0.00098, "gap": 4.1, "converged": True},
        {"rank": 2, "value": 8.21012, "residual": 0.0031, "gap": 2.75, "converged": True},
        {"rank": 3, "value": 5.4601, "residual": 0.012, "gap": 1.02, "converged": True},
        {"rank": 4, "value": 4.44, "residual": 0.13, "gap": 0.3, "converged": True},
        {"rank": 5, "value": -0.0213, "residual": 0.31, "gap": None, "converged": False},
    ),
    metrics={
        "lambda_max": Metric(12.3104, "largest eigenvalue", "real", 0.00098),
        "lambda_min": Metric(-1.234e-7, "smallest eigenvalue", "real", 2e-10),
        "matvecs": Metric(1248, "products", "count"),
        "cost": Metric(2.13, "product cost, in gradients", "factor"),
        "mass": Metric(0.8712, "share of the trace", "percent"),
        "method": Metric("thick-restart Lanczos, exact double backward", "method", "text"),
    },
    checks=(
        Check("symmetry", "pass", "asymmetry 3.1e-09 is below 1e-05"),
        Check("stability", "pass", "lr 0.1 is below 2 / 12.31 = 0.162"),
        Check(
            "convergence",
            "undecided",
            "1 of 5 eigenvalues did not converge in 1,248 products (residual 0.31, tolerance 0.13)",
            "raise --max-matvecs, or ask for --top 4",
        ),
    ),
    notes=("2 parameters are frozen and left out: embed.weight, embed.bias",),
    seconds=3.21,
)

TENSORS = tuple(
    f"transformer.h.{layer}.{part}"
    for layer in (0, 3, 7, 10, 11)
    for part in ("attn.c_attn.weight", "attn.c_proj.bias", "mlp.c_fc.weight", "ln_1.weight")
)

GRADCHECK = Result(
    name="gradcheck",
    question="Is the gradient right?",
    headline="2 of 20 tensors have a gradient that differences of the loss contradict",
    columns=(
        Column("tensor", "tensor"),
        Column("entries", "entries", "count"),
        Column("norm", "gradient norm", "real"),
        Column("analytic", "directional derivative", "real"),
        Column("numeric", "by differences", "real", error="numeric_error"),
        Column("numeric_error", "error", "real"),
        Column("relative", "relative error", "relative"),
        Column("step", "step", "relative"),
        Column("seconds", "time", "seconds"),
        Column("verdict", "verdict"),
        Column("shape", "shape", detail=True),
    ),
    rows=tuple(
        {
            "tensor": tensor,
            "entries": 1769472 // (i + 1),
            "norm": 0.31 / (1 + i * i),
            "analytic": -0.0123456 * (1 + i),
            "numeric": -0.0123457 * (1 + i) * (1.5 if i in {3, 11} else 1),
            "numeric_error": 2.1e-6 * (1 + i),
            "relative": 0.33 if i in {3, 11} else 8.1e-6 / (1 + i),
            "step": 1e-3 / (1 + i),
            "seconds": 0.0132 * (1 + i),
            "verdict": "FAIL" if i in {3, 11} else "pass",
            "shape": "768×2304",
        }
        for i, tensor in enumerate(TENSORS)
    ),
    metrics={
        "worst": Metric(0.33, "worst relative error", "relative"),
        "tensors": Metric(20, "tensors", "count"),
        "bytes": Metric(498_000_000, "memory", "bytes"),
    },
    checks=(
        Check(
            "transformer.h.0.ln_1.weight",
            "fail",
            "the gradient is 1.5 times what differences of the loss give (relative error 0.33)",
            "look at the backward of LayerNorm in transformer.h.0.ln_1",
        ),
        Check("transformer.h.7.ln_1.weight", "fail", "relative error 0.33 is above 1e-05"),
        *(Check(tensor, "pass", "agrees") for tensor in TENSORS[:18]),
    ),
)

SUMMARY = {
    "model": "GPT, 124,439,808 parameters in 148 tensors",
    "checkpoint": "gpt2-small.pt (sha256 3f2a9c1e…)",
    "spec": "curv.yaml",
    "data": "tokens.npy, 1,024 examples in 4 batches",
    "loss": "3.2981, cross_entropy, mean over tokens",
}


@pytest.fixture
def swept() -> Report:
    """A result with two figures."""
    return figured(sweep(), DENSITY)


@pytest.fixture
def eig() -> Report:
    return Report(provenance={"summary": SUMMARY}, results={"eig": EIG})


@pytest.fixture
def full() -> Report:
    """Two results, and an analysis that had none."""
    return Report(
        provenance={"curv": "0.1.0", "summary": SUMMARY, "notes": ["casts: 2 tensors to float32"]},
        results={"eig": EIG, "gradcheck": GRADCHECK},
        errors={"hvp": "E_MEMORY: 12.1 GB are needed, 4.0 GB are free — lower --batch-size"},
        run={"started": "2026-01-01T00:00:00Z"},
    )
