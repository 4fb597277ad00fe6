"""Everything that is seen in one forward and one backward pass over all the data.

One batch and its graph are held at a time. Cost: one gradient, and for each activation one more
evaluation and derivative of it alone.
"""

import math
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvcli.batches import Batch
from curvcli.derivatives import optional_derivatives
from curvcli.problem import Problem
from curvcli.signals.place import Place
from curvcli.signals.recorder import Line, Recorder
from curvcli.work import Watch, silent


@dataclass(frozen=True)
class Recording:
    """What was seen: the places in the order of their first call, over so many examples.

    Gradients are those of L; times the number of all examples, they are of an example's own loss.
    """

    places: tuple[Place, ...]
    examples: int
    of: int
    interrupted: bool = False

    @property
    def layers(self) -> list[Place]:
        """The places that hold parameters, from the input on."""
        return [p for p in self.places if p.layered]

    def norm(self, place: Place) -> float | None:
        """Give the root mean square, over examples, of |d loss_i / d outputs_i|."""
        if not place.hooked:
            return None
        # Entries are 1 / of of an example's gradient; `examples` of them are seen.
        return self.of * math.sqrt(place.gradient.power / self.examples)

    def is_final(self, place: Place) -> bool:
        """Tell whether no layer comes after this place, so that it shapes the outputs alone."""
        return all(layer.last < place.last for layer in self.layers)


def record(problem: Problem, watch: Watch = silent) -> Recording:
    """Hear every batch; Ctrl-C leaves what was heard of the batches before."""
    # Gradients reach every place, whichever parameters are chosen or frozen.
    floats = [n for n, p in problem.model.named_parameters() if p.is_floating_point()]
    weight = problem.measure.weight
    whole = replace(problem, names=tuple(floats))
    places: dict[str, Place] = {}
    named: dict[Line, str] = {}
    done, interrupted = 0, False
    try:
        with whole.engaged():
            for module in unseen(whole):
                module.train()
            for batch in whole.batches:
                for name, place in _heard(whole, batch, weight, named).items():
                    if name in places:
                        places[name].merge(place)
                    else:
                        places[name] = place
                done += batch.size
                watch(done, whole.examples, None, None)
    except KeyboardInterrupt:
        interrupted = True
    ordered = tuple(sorted(places.values(), key=lambda p: p.first))
    return Recording(ordered, done, problem.examples, interrupted)


def unseen(problem: Problem) -> list[nn.Module]:
    """List the batch normalisations that have no statistics yet, and so do not normalise.

    In eval mode they would leave signals as they are, which neither training nor use does.
    """
    # A single example has no spread to normalise by.
    if problem.mode == "train" or any(b.size < 2 for b in problem.batches):
        return []
    return [
        m for m in problem.model.modules()
        if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
        and not int(m.num_batches_tracked)
    ]  # fmt: skip


def _heard(
    problem: Problem, batch: Batch, weight: float, named: dict[Line, str]
) -> dict[str, Place]:
    recorder = Recorder(problem.model, batch.size, named)
    try:
        with recorder.hearing():
            share = problem.terms(batch).total / weight
        if share.requires_grad:
            optional_derivatives([share], tuple(problem.params.values()))
    finally:
        recorder.close()
    return recorder.places
