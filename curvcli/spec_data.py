"""The spec's data blocks: which examples, from which file or from which seed."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from curvcli.mistakes import wrong
from curvcli.options import FilePath, Options, option

Names = str | tuple[str, ...] | dict[str, str]
Keys = str | int | tuple[str | int, ...] | dict[str, str | int]
Shape = tuple[PositiveInt, ...]


class Source(Options):
    """What every format of data has."""

    batch_size: int = option(256, "examples per batch; the results do not depend on it", gt=0)
    samples: int | None = option(None, "use only the first N examples", gt=0, shown="all")
    scale: float | None = option(None, "multiply the input by this", shown="1")


class Npz(Source):
    """Arrays by name in a NumPy .npz archive."""

    format: Literal["npz"] = option(..., "arrays by name in one .npz archive")
    path: FilePath = option(..., "the archive")
    x: Names = option("x", "name of the input, or several: a list, or a mapping by keyword")
    y: Names | None = option("y", "name of the target; null for none")


class Npy(Source):
    """One NumPy .npy file for the input and one for the target."""

    format: Literal["npy"] = option(..., "one array per .npy file")
    x: FilePath = option(..., "file of the input")
    y: FilePath | None = option(None, "file of the target")


class Pt(Source):
    """Tensors in a mapping or a tuple that torch.save wrote."""

    format: Literal["pt"] = option(..., "tensors in one file of torch.save")
    path: FilePath = option(..., "the file")
    x: Keys = option("x", "key or index of the input, or several: a list, or a mapping by keyword")
    y: Keys | None = option("y", "key or index of the target; null for none")


class Csv(Source):
    """Columns of numbers in a text file."""

    format: Literal["csv"] = option(..., "columns of numbers in a text file")
    path: FilePath = option(..., "the file")
    x: tuple[str, ...] | None = option(None, "columns of the input", shown="all but y")
    y: str | None = option(None, "column of the target; null for none")
    header: bool = option(True, "the first line names the columns; else 0, 1 and so on do")


class Drawn(Options):
    """An input drawn at random."""

    shape: Shape = option(..., "shape of one example")
    kind: Literal["normal", "uniform", "integers"] = option("normal", "what to draw")
    high: int | None = option(None, "integers are below this", gt=0)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.kind == "integers" and self.high is None:
            raise wrong((), "needs high: N, below which the integers are drawn")
        if self.kind != "integers" and self.high is not None:
            raise wrong(("high",), "goes only with kind: integers", self.high)
        return self


class Answers(Options):
    """A target drawn at random: one of `classes`, or numbers of a shape."""

    classes: int | None = option(None, "draw class indices below this", gt=0)
    shape: Shape | None = option(None, "shape of one example's target; [] is one number")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.classes is None and self.shape is None:
            raise wrong((), "needs classes: K or shape: [...]")
        return self


def _one_or_named(value: Any) -> str:
    """Tell named inputs by their being all mappings; one of them may be named shape."""
    several = isinstance(value, dict) and bool(value)
    named = several and all(isinstance(each, dict | Drawn) for each in value.values())
    return "named inputs" if named else "one input"


Drawing = Annotated[
    Annotated[Drawn, Tag("one input")] | Annotated[dict[str, Drawn], Tag("named inputs")],
    Discriminator(_one_or_named),
]


class Synthetic(Source):
    """Seeded random data of given shapes: enough to check a gradient, and no file to carry."""

    format: Literal["synthetic"] = option(..., "random data of given shapes")
    samples: int = option(..., "how many examples", gt=0)
    x: Drawing = option(..., "the input, or several by keyword")
    y: Answers | None = option(None, "the target; null for none")
    seed: int = option(0, "seed of the data", ge=0)


Data = Annotated[Npz | Npy | Pt | Csv | Synthetic, Field(discriminator="format")]


class Held(Options):
    """Held-out examples: those that follow the block's own in the same source."""

    samples: int = option(..., "how many of the examples that follow those of data", gt=0)


def _held_or_data(value: Any) -> str:
    keys = set(value) if isinstance(value, dict) else set()
    block = isinstance(value, Source) or keys & {"format", "path"}
    return "a data block" if block else "the examples that follow"


Heldout = Annotated[
    Annotated[Held, Tag("the examples that follow")] | Annotated[Data, Tag("a data block")],
    Discriminator(_held_or_data),
]
