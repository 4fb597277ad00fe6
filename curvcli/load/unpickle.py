"""Load an audited torch.save file: shapes first, then values, and no code in either."""

import argparse
import struct
import warnings
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import torch

from curvcli.errors import CurvError
from curvcli.load import audit
from curvcli.load.container import plain_dense, tensors_in
from curvcli.load.names import shown


def unpickle(file: BinaryIO, size: int, where: str) -> object:
    """Load the object in an audited file, after its shapes alone were judged."""
    _check_shapes(_torch_load(file, "meta", where), size, where)
    return _torch_load(file, "cpu", where)


def _torch_load(file: BinaryIO, device: str, where: str) -> object:
    """Call torch.load and relay nothing that it says: its messages quote the file."""
    invariants: Any = torch.sparse.check_sparse_tensor_invariants  # torch gives it no types
    file.seek(0)
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_plain_data()),
            invariants(),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location=device, weights_only=True)
    except MemoryError:
        raise CurvError("E_MEMORY", f"{where} does not fit into memory", "") from None
    except Exception as error:  # eleven unrelated classes on damaged files
        message = f"{where} is damaged: torch cannot read it"
        raise CurvError("E_CORRUPT", message, audit.DAMAGED) from error


def _check_shapes(root: object, size: int, where: str) -> None:
    """Refuse tensors that are not dense, and views that would unfold into more than the file."""
    excess = 0
    try:
        for name, tensor in tensors_in(root):
            if not plain_dense(tensor):
                message = f"{where}: {shown(name)} is not a dense tensor"
                raise CurvError("E_CONTENT", message, "convert it with to_dense() and save again")
            stored = tensor.untyped_storage().nbytes()
            excess += max(0, tensor.numel() * tensor.element_size() - stored)
            if excess > size:
                shape = tuple(tensor.shape)
                message = f"{where}: {shown(name)} {shape} is an expanded view of {stored} bytes"
                raise CurvError("E_CONTENT", message, "save it as it is: call contiguous() first")
    except CurvError:
        raise
    except Exception as error:
        raise CurvError("E_CORRUPT", f"{where} holds odd tensors", audit.DAMAGED) from error


class _Dtype:
    """Stand for numpy.dtype, which would take sizes in gigabytes from the file."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = "=" if state[1] == "|" else state[1]


FORMATS = {"b1": "?", "f2": "e", "f4": "f", "f8": "d"} | {
    f"{kind}{size}": letter if kind == "i" else letter.upper()
    for kind in "iu"
    for size, letter in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
}


def _scalar(dtype: _Dtype, data: bytes) -> object:
    """Stand for numpy's scalar: return the Python number, None for what is not one."""
    form = FORMATS.get(dtype.code)
    return struct.unpack(dtype.order + form, data)[0] if form else None


def _plain_data() -> list[Any]:
    """List the plain data that the audit lets through beyond torch's own list."""
    paths = [
        (PureWindowsPath if "Windows" in name else PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in audit.PATHS
    ]
    scalars = [(_scalar, name) for name in audit.NUMPY_SCALARS]
    return [(argparse.Namespace, "argparse.Namespace"), (_Dtype, "numpy.dtype"), *paths, *scalars]
