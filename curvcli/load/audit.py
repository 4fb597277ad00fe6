"""Audit a checkpoint's zip and its pickle before torch touches them; nothing here runs the pickle.

torch.load never checks a record's CRC, so that a flipped weight bit loads in silence, and its own
allow-list calls classes that allocate on demand. This one is shorter.
"""

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import IO, BinaryIO

import torch

from curvcli.errors import CurvError
from curvcli.load.names import listed, shown

RESAVE = "save its state_dict() with torch.save and pass that file"
DAMAGED = "copy or download it again, or save it again"
CHUNK = 1 << 20
# Opcodes that make an object at a few bytes each; a megabyte of them costs torch ten seconds. Real
# files spend about three hundred bytes per tensor, which is two calls.
MAKING = frozenset({"REDUCE", "NEWOBJ", "BUILD", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
OBJECTS = 60_000  # allowed in any file, and one more per
BYTES_PER_OBJECT = 100
LONGEST_CODEC = 64  # characters; longer strings are data, never the name of a codec

# Standard storages of plain dtypes; the quantized ones are in UNSUPPORTED.
STORAGES = (
    "Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double",
    "ComplexFloat", "ComplexDouble",
)  # fmt: skip
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
# Missing on purpose, though torch allows them: torch.Tensor, torch.storage.UntypedStorage and
# builtins.bytearray allocate as many bytes as the file asks for.
ALLOWED = frozenset(
    {
        "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex",
        "_codecs.encode", "torch.Size", "torch.device",
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "argparse.Namespace", "numpy.dtype", *NUMPY_SCALARS,
    }
    | {f"torch.{kind}Storage" for kind in STORAGES}
    | {f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS}
    | {str(dtype) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
)  # fmt: skip
UNSUPPORTED = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse tensors",
    "torch.serialization._get_layout": "sparse tensors",
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta tensors, which have no values",
    "torch._utils._rebuild_wrapper_subclass": "tensor subclasses",
    "torch._tensor._rebuild_from_type_v2": "tensor subclasses",
    "torch._utils._rebuild_parameter_with_state": "parameters with attributes of their own",
    "torch._utils._rebuild_tensor_v3": "tensors of float8 or other uncommon types",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensors of a foreign device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "tensors of a foreign device",
}
# What else the unsupported tensors bring along; alone they are refused like any unknown name.
COMPANIONS = frozenset(
    {"torch.storage.UntypedStorage", "torch._tensor.Tensor", "torch.Tensor"}
    | {f"torch.{kind}Storage" for kind in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")}
    | {f"torch.{scheme}" for scheme in ("per_tensor_affine", "per_channel_affine")}
)
# Codecs from bytes to more bytes: a few dozen nested calls of _codecs.encode double a string into
# gigabytes. torch.save itself writes latin1 only.
INFLATING = frozenset({"hex", "hexcodec", "base64", "base64codec", "uu", "uucodec", "quopri",
                       "quopricodec", "quotedprintable"})  # fmt: skip


def audit_zip(file: BinaryIO, size: int, where: str, pinned: bool) -> bytes:
    """Check every record of a torch.save archive and return its pickle.

    `pinned` says that the file's sha256 was given: it replaces checksums that were never written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _recognise([record.filename for record in records], where)
            _structure(archive, size, where)
            unchecked = all(record.CRC == 0 for record in records)
            if unchecked and not pinned:
                raise CurvError(
                    "E_FORMAT",
                    f"{where} was saved without checksums, so damage cannot be told",
                    "save it again with torch.save, or give its sha256 in the spec",
                )
            for record in records:
                if not unchecked:
                    _checksum(archive, record, where)
            pickle = next(r for r in records if r.filename.endswith("/data.pkl"))
            if unchecked:
                del pickle.CRC  # without the attribute zipfile checks nothing
            return archive.read(pickle)
    except CurvError:
        raise
    except Exception as error:  # zipfile raises ten unrelated classes on damaged archives
        raise CurvError("E_CORRUPT", f"{where} is a damaged zip archive", DAMAGED) from error


def _recognise(names: list[str], where: str) -> None:
    """Refuse the archives that are not torch.save's, each with its own explanation."""
    tails = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tails or any(tail.startswith("code/") for tail in tails):
        looks = "a TorchScript archive: loading it runs code from the file"
    elif (
        "archive_format" in tails
        or "models/model.json" in tails
        or any(name.endswith("serialized_exported_program.json") for name in names)
    ):
        looks = "a torch.export archive: loading it runs code from the file"
    elif "data.pkl" in tails:
        return
    elif names and all(name.endswith(".npy") for name in names):
        raise CurvError("E_FORMAT", f"{where} is a NumPy .npz archive, not a checkpoint", RESAVE)
    elif "model.weights.h5" in names:
        hint = "load it in Keras with the torch backend, then torch.save its state_dict()"
        raise CurvError("E_FORMAT", f"{where} is a Keras archive", hint)
    else:
        message = f"{where} is a zip archive without data.pkl, so torch.save did not write it"
        raise CurvError("E_FORMAT", message, "pass the checkpoint itself, unpacked if need be")
    raise CurvError("E_UNTRUSTED", f"{where} is {looks}", RESAVE)


def _structure(archive: zipfile.ZipFile, size: int, where: str) -> None:
    """Leave no room for two readers to see two different archives."""
    records = archive.infolist()
    names = [record.filename.casefold() for record in records]  # torch's reader ignores case
    compressed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED]
    fault = ""
    if len(set(names)) < len(names):
        fault = f"names {listed(sorted({n for n in names if names.count(n) > 1}))} twice"
    elif compressed:
        fault = f"has compressed records ({listed(compressed)}), which torch.save never writes"
    elif any(record.flag_bits & 0x1 for record in records):
        fault = "is encrypted"
    elif len({name.partition("/")[0] for name in names}) > 1:
        fault = "has more than one folder"
    elif min(record.header_offset for record in records) != 0 or archive.comment:
        fault = "has bytes before its first or after its last record"
    elif sum(record.compress_size for record in records) > size:
        fault = "has overlapping records"
    if fault:
        raise CurvError("E_CORRUPT", f"{where} {fault}", "save it again with torch.save")


def _checksum(archive: zipfile.ZipFile, record: zipfile.ZipInfo, where: str) -> None:
    try:
        with archive.open(record) as stream:
            while stream.read(CHUNK):
                pass
    except Exception as error:
        message = f"{where} is damaged: record {shown(record.filename)} fails its checksum"
        raise CurvError("E_CORRUPT", message, DAMAGED) from error


def audit_pickles(stream: IO[bytes], count: int, size: int, where: str) -> None:
    """Read the opcodes of `count` consecutive pickles and refuse every name not on the list.

    `size` is the file's: a small file may not hold many objects.
    """
    names: set[str] = set()
    texts: set[str] = set()
    newest = made = 0
    try:
        for _ in range(count):
            for opcode, argument in _opcodes(stream, texts):
                names.update(_global(opcode, argument))
                made += opcode in MAKING
                if opcode == "PROTO" and isinstance(argument, int):
                    newest = max(newest, argument)
    except Exception as error:  # pickletools raises ValueError and whatever the bytes lead it to
        raise CurvError("E_CORRUPT", f"{where} holds a damaged pickle", DAMAGED) from error
    _judge(names, texts, where)
    if made > OBJECTS + size // BYTES_PER_OBJECT:
        raise CurvError("E_TOO_LARGE", f"{where} holds {made} objects in {size} bytes", RESAVE)
    if newest > 2:
        message = f"{where} was pickled with protocol {newest}; torch reads 2 safely"
        raise CurvError("E_FORMAT", message, "save it again with torch.save, without a protocol")


def _opcodes(stream: IO[bytes], texts: set[str]) -> Iterator[tuple[str, object]]:
    """Yield opcodes by name; STACK_GLOBAL gets the last two strings, which is what it names."""
    last: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STACK_GLOBAL":
            yield opcode.name, " ".join(last[-2:]) if len(last) > 1 else "a computed name"
            continue
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            last = [*last[-1:], argument]
            texts.add(argument[:LONGEST_CODEC])
        yield opcode.name, argument


def _global(opcode: str, argument: object) -> Iterator[str]:
    """Yield the dotted name that an opcode would import, in Python 3's spelling."""
    if opcode in ("GLOBAL", "INST", "STACK_GLOBAL"):
        module, _, name = str(argument).partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        yield f"{module}.{name}"
    elif opcode.startswith("EXT"):
        yield "an entry of copyreg's extension registry"


def _judge(names: set[str], texts: set[str], where: str) -> None:
    special = sorted({UNSUPPORTED[name] for name in names if name in UNSUPPORTED})
    known = ALLOWED | UNSUPPORTED.keys() | (COMPANIONS if special else frozenset())
    foreign = sorted(names - known)
    if foreign:
        raise CurvError("E_UNTRUSTED", f"{where} holds {listed(foreign)}", RESAVE)
    plain = {"".join(c for c in text.lower() if c.isascii() and c.isalnum()) for text in texts}
    if "_codecs.encode" in names and plain & INFLATING:
        message = f"{where} calls _codecs.encode with a codec that torch.save never uses"
        raise CurvError("E_UNTRUSTED", message, RESAVE)
    if special:
        hint = "convert them to dense floating-point tensors and save the state_dict() again"
        raise CurvError("E_CONTENT", f"{where} holds {listed(special)}", hint)
