"""Examples from the spec's data block, in a fixed order, cut into batches."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.batches import Batch
from curvcli.errors import CurvError
from curvcli.load.checkpoint import read_tensors
from curvcli.load.names import shown
from curvcli.options import unknown
from curvcli.spec import Csv, Data, Drawn, Held, Heldout, Npy, Npz, Pt, Source, Synthetic


@dataclass(frozen=True)
class Examples:
    """All examples of a source: inputs as the model takes them, and targets."""

    inputs: Any
    target: Any
    size: int

    def cut(self, start: int, stop: int) -> "Examples":
        """Take the examples from start up to stop."""
        rows = slice(start, stop)
        inputs, target = (
            pytree.tree_map_only(Tensor, lambda t: t[rows], x) for x in (self.inputs, self.target)
        )
        return Examples(inputs, target, stop - start)

    def batches(self, size: int) -> tuple[Batch, ...]:
        """Cut into batches of `size`, the last one ragged."""
        ends = [min(i + size, self.size) for i in range(0, self.size, size)]
        parts = [self.cut(i, end) for i, end in zip(range(0, self.size, size), ends, strict=True)]
        return tuple(Batch(p.inputs, p.target, p.size) for p in parts)

    def digest(self) -> str:
        """Hash the values, shapes and types of everything."""
        whole = hashlib.sha256()
        for t in pytree.tree_leaves((self.inputs, self.target)):
            if isinstance(t, Tensor):
                whole.update(f"{t.dtype}{tuple(t.shape)}".encode())
                whole.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()


def read(data: Data, heldout: Heldout | None) -> tuple[Examples, Examples | None]:
    """Read the examples, and the held-out ones where the spec names some.

    Raises: CurvError (E_DATA) where the source does not hold what the spec says.
    """
    extra = heldout.samples if isinstance(heldout, Held) else 0
    whole = _whole(data, extra)
    used = data.samples or whole.size - extra
    if not 0 < used <= whole.size - extra:
        wanted = f"{used:,}" + (f" + {extra:,} held out" if extra else "")
        raise CurvError(
            "E_DATA",
            f"the data has {whole.size:,} examples, not {wanted}",
            "lower --samples, or data.samples in the spec",
        )
    held: Examples | None = None
    if isinstance(heldout, Held):
        held = whole.cut(used, used + extra)
    elif heldout is not None:
        held, _ = read(heldout, None)
    return whole.cut(0, used), held


def _whole(data: Source, extra: int) -> Examples:
    if isinstance(data, Synthetic):
        return _drawn(data, extra)
    readers: dict[type[Source], Callable[[Any], tuple[Any, Any]]] = {
        Npz: _npz, Npy: _npy, Pt: _pt, Csv: _csv,
    }  # fmt: skip
    inputs, target = readers[type(data)](data)
    inputs = pytree.tree_map_only(Tensor, lambda t: _input(t, data.scale), inputs)
    target = pytree.tree_map_only(Tensor, _integers, target)
    return _counted(inputs, target)


def _counted(inputs: Any, target: Any) -> Examples:
    leaves = [t for t in pytree.tree_leaves((inputs, target)) if isinstance(t, Tensor)]
    sizes = {t.shape[0] if t.ndim else 0 for t in leaves}
    if sizes == {0}:
        raise CurvError("E_DATA", "the data holds no examples", "check data: in the spec")
    if len(sizes) != 1:
        shapes = ", ".join(str(tuple(t.shape)) for t in leaves)
        raise CurvError(
            "E_DATA", f"arrays of shapes {shapes} do not hold the same number of examples",
            "the first axis counts examples",
        )  # fmt: skip
    return Examples(inputs, target, sizes.pop())


def _input(t: Tensor, scale: float | None) -> Tensor:
    if scale is None:
        return _integers(t)
    return (t if t.is_floating_point() else t.to(torch.float32)) * scale


def _integers(t: Tensor) -> Tensor:
    """Widen integers, which index embeddings and classes, to the type that torch wants there."""
    small = not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
    return t.to(torch.int64) if small else t


def _pick(names: Any, take: Callable[[Any], Tensor]) -> Any:
    """Gather one input, several in order, or several by keyword."""
    if isinstance(names, dict):
        return {keyword: take(name) for keyword, name in names.items()}
    if isinstance(names, tuple | list):
        return tuple(take(name) for name in names)
    return take(names)


def _array(found: Any, where: str) -> Tensor:
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise CurvError(
            "E_DATA", f"{where} holds {getattr(found, 'dtype', type(found))}, not numbers"
        )
    if found.dtype.kind == "f" and found.dtype.itemsize not in (4, 8):
        found = found.astype(np.float32 if found.dtype.itemsize < 4 else np.float64)
    found = found.astype(found.dtype.newbyteorder("="), copy=False)  # torch knows no other order
    return torch.from_numpy(np.asarray(found, order="C"))


def _load_numpy(path: Path) -> Any:
    _exists(path)
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:
        raise CurvError(
            "E_DATA", f"{path} is no numpy file, or a damaged one ({type(error).__name__})",
            "save it with numpy.savez or numpy.save, without objects",
        ) from error  # fmt: skip


def _exists(path: Path) -> None:
    if not path.is_file():
        raise CurvError("E_DATA", f"{path} does not exist", "check data: in the spec")


def _npz(data: Npz) -> tuple[Any, Any]:
    archive = _load_numpy(data.path)
    if isinstance(archive, np.ndarray):
        raise CurvError("E_DATA", f"{data.path} holds one array", "use format: npy")

    def take(name: str) -> Tensor:
        if name not in archive:
            raise unknown(name, archive.files, str(data.path), "E_DATA")
        try:
            found = archive[name]
        except Exception as error:  # zipfile and zlib have classes of their own
            raise CurvError(
                "E_DATA", f"{data.path}: {shown(name)} is damaged, or holds objects",
                "save it with numpy.savez, numbers only",
            ) from error  # fmt: skip
        return _array(found, f"{data.path}: {shown(name)}")

    with archive:
        return _pick(data.x, take), None if data.y is None else _pick(data.y, take)


def _npy(data: Npy) -> tuple[Any, Any]:
    x = _array(_load_numpy(data.x), str(data.x))
    return x, None if data.y is None else _array(_load_numpy(data.y), str(data.y))


def _pt(data: Pt) -> tuple[Any, Any]:
    _exists(data.path)
    root = read_tensors(data.path)

    def take(key: str | int) -> Tensor:
        keys = list(root) if isinstance(root, Mapping) else list(range(len(root)))
        if key not in keys:
            raise unknown(str(key), map(str, keys), str(data.path), "E_DATA")
        found = root[key]
        if not isinstance(found, Tensor):
            raise CurvError("E_DATA", f"{data.path}: {shown(key)} is no tensor")
        return found

    if not isinstance(root, Mapping | tuple | list):
        raise CurvError("E_DATA", f"{data.path} holds neither a dict nor a list of tensors")
    return _pick(data.x, take), None if data.y is None else _pick(data.y, take)


def _csv(data: Csv) -> tuple[Any, Any]:
    import pandas as pd

    _exists(data.path)
    try:
        table = pd.read_csv(data.path, header=0 if data.header else None)
    except Exception as error:
        raise CurvError("E_DATA", f"{data.path} is no table: {_line(error)}") from error
    table.columns = [str(c) for c in table.columns]
    names = list(data.x) if data.x is not None else [c for c in table.columns if c != data.y]
    for name in [*names, *([data.y] if data.y is not None else [])]:
        if name not in table.columns:
            raise unknown(name, table.columns, str(data.path), "E_DATA")
        column = table[name]
        if column.dtype.kind not in "biuf" or column.isna().any():
            raise CurvError(
                "E_DATA", f"{data.path}: column {shown(name)} has cells that are no numbers",
                "clean it, or name the columns in data.x",
            )  # fmt: skip
    x = torch.tensor(table[names].to_numpy(dtype=np.float64)).to(torch.float32)
    if data.y is None:
        return x, None
    return x, _array(np.array(table[data.y]), f"{data.path}: {data.y}")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _drawn(data: Synthetic, extra: int) -> Examples:
    rng = torch.Generator().manual_seed(data.seed)
    count = data.samples + extra

    def draw(kind: Drawn) -> Tensor:
        shape = (count, *kind.shape)
        if kind.kind == "integers":
            return torch.randint(kind.high or 1, shape, generator=rng)
        drawn = torch.randn if kind.kind == "normal" else torch.rand
        return _input(drawn(shape, generator=rng), data.scale)

    x = {k: draw(v) for k, v in data.x.items()} if isinstance(data.x, dict) else draw(data.x)
    if data.y is None:
        return Examples(x, None, count)
    shape = (count, *(data.y.shape or ()))
    if data.y.classes is not None:
        return Examples(x, torch.randint(data.y.classes, shape, generator=rng), count)
    return Examples(x, torch.randn(shape, generator=rng), count)
