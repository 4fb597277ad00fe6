"""Everything that is seen in one forward and one backward pass over all the data.

One batch and its graph are held at a time. Cost: one gradient, and for each activation one more
evaluation and derivative of it alone.
"""

import math
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from curvcli.batches import Batch
from curvcli.derivatives import optional_derivatives
from curvcli.problem import Problem
from curvcli.signals.calls import Key, settled
from curvcli.signals.place import Place, plain
from curvcli.signals.recorder import Recorder
from curvcli.work import Watch, silent

INPUT = "input"
"""The kind of the places that are what the model is given."""


@dataclass(frozen=True)
class Recording:
    """What was seen: the inputs, then the places in the order of their first call.

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
        power = place.gradient.power + place.beside
        return self.of * math.sqrt(power / self.examples)

    def is_final(self, place: Place) -> bool:
        """Tell whether no layer comes after this place, so that it shapes the outputs alone."""
        return all(layer.last < place.last for layer in self.layers)


def record(problem: Problem, watch: Watch = silent) -> Recording:
    """Hear every batch; Ctrl-C leaves what was heard of the batches before."""
    # Gradients reach every place, whichever parameters are chosen or frozen.
    floats = [n for n, p in problem.model.named_parameters() if p.is_floating_point()]
    weight = problem.measure.weight
    whole = replace(problem, names=tuple(floats))
    places: dict[Key, Place] = {}
    done, interrupted = 0, False
    try:
        with whole.engaged():
            for module in unseen(whole):
                module.train()
            for batch in whole.batches:
                heard = _given(whole, batch) | _heard(whole, batch, weight)
                for key, place in heard.items():
                    if key in places:
                        places[key].merge(place)
                    else:
                        places[key] = place
                done += batch.size
                watch(done, whole.examples, None, None)
    except KeyboardInterrupt:
        interrupted = True
    return Recording(settled(places), done, problem.examples, interrupted)


def unseen(problem: Problem) -> list[nn.Module]:
    """List the batch normalisations that have no statistics yet, and so do not normalise.

    In eval mode they would leave signals as they are, which neither training nor use does.
    """
    # A single example has no spread to normalise by.
    if problem.mode != "eval" or any(b.size < 2 for b in problem.batches):
        return []
    return [
        m for m in problem.model.modules()
        if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
        and not int(m.num_batches_tracked)
    ]  # fmt: skip


def _given(problem: Problem, batch: Batch) -> dict[Key, Place]:
    """See what the model is given, so that inputs of a strange size stand out."""
    found = {}
    name = "the input" if "input" in dict(problem.model.named_modules()) else INPUT
    for path, t in pytree.tree_leaves_with_path(batch.inputs):
        if plain(t) and t.numel():
            place = Place(name, INPUT, -1, problem.model, calls=1)
            place.give(t)
            found[Key(name + pytree.keystr(path), line=INPUT)] = place
    return found


def _heard(problem: Problem, batch: Batch, weight: float) -> dict[Key, Place]:
    recorder = Recorder(problem.model, batch.size)
    try:
        with recorder.hearing():
            share = problem.terms(batch).total / weight
        if share.requires_grad:
            optional_derivatives([share], tuple(problem.params.values()))
    finally:
        recorder.close()
    return recorder.places
