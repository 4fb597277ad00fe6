"""Arrays too large for a document, in a file of their own: safetensors, or CSV by entry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(arrays: Mapping[str, Any], named: Path, path: Path) -> None:
    """Write NumPy arrays to `path` in the format that the suffix of the name `named` says.

    CSV has a row for every entry: the array's name, the entry's index there, and the value.
    """
    import numpy

    if named.suffix.lower() == ".safetensors":
        from safetensors.numpy import save_file

        save_file({n: numpy.ascontiguousarray(a) for n, a in arrays.items()}, path)
        return
    import pandas

    from curvcli.sinks.data import guarded

    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("array,index,value\n")
        for name, array in arrays.items():
            places = (" ".join(map(str, at)) for at in numpy.ndindex(array.shape))
            frame = pandas.DataFrame(
                {"array": guarded(name), "index": list(places), "value": array.reshape(-1)}
            )
            frame.to_csv(file, index=False, header=False, lineterminator="\n")
