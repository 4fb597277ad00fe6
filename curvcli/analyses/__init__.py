"""The questions that curv answers; adding one is a file here and a line in ANALYSES."""

from curvcli.analyses.activations import Activations
from curvcli.analyses.base import Analysis
from curvcli.analyses.diag import Diag
from curvcli.analyses.eig import Eig
from curvcli.analyses.gradcheck import Gradcheck
from curvcli.analyses.hvp import Hvp
from curvcli.analyses.ratio import Ratio
from curvcli.analyses.sanity import Sanity
from curvcli.analyses.spectrum import Spectrum
from curvcli.analyses.stability import Stability
from curvcli.analyses.trace import Trace

ANALYSES: tuple[type[Analysis], ...] = (
    Gradcheck,
    Eig,
    Diag,
    Trace,
    Hvp,
    Ratio,
    Stability,
    Spectrum,
    Activations,
    Sanity,
)


def registry() -> dict[str, type[Analysis]]:
    """Map names to analyses, in the order in which they are shown and run."""
    return {kind.name: kind for kind in ANALYSES}
