"""Tell what a file is by its content, never by its suffix."""

from enum import Enum
from typing import BinaryIO

from curvcli.errors import CurvError


class Kind(Enum):
    """The containers that curv reads weights from."""

    ZIP = "zip"  # torch.save since 1.6
    SAFETENSORS = "safetensors"
    LEGACY = "legacy"  # torch.save before 1.6: pickles and raw bytes, one after another


HEAD = 1024
LFS = b"version https://git-lfs.github.com/spec/"
# The pickle of torch's magic number 0x1950a86a20f9469cfc6c, which opens every pre-1.6 file;
# LONG1 since pickle protocol 2, and protocol 2 is the only one that torch ever wrote by default.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
SAFETENSORS_HEADER = 100_000_000  # bytes, the format's own limit

FOREIGN = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras?)", "convert it to a PyTorch state_dict"),
    (0, b"\x93NUMPY", "a NumPy array", "pass the checkpoint of the model"),
    (0, b"GGUF", "a GGUF file", "pass the PyTorch or safetensors weights that it was made from"),
    (0, b"\x1f\x8b", "gzip-compressed", "gunzip it first"),
    (0, b"\xfd7zXZ", "xz-compressed", "unxz it first"),
    (0, b"BZh", "bzip2-compressed", "bunzip2 it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "decompress it first"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (0, b"\x7fELF", "an ELF binary", "pass the checkpoint of the model"),
    (0, b"\x89PNG", "a PNG image", "pass the checkpoint of the model"),
    (0, b"%PDF", "a PDF document", "pass the checkpoint of the model"),
    (257, b"ustar", "a tar archive", "unpack it, and pass the checkpoint inside"),
)


def sniff(file: BinaryIO, where: str) -> Kind:
    """Name the container that the file's bytes are, or say what they look like instead."""
    file.seek(0)
    head = file.read(HEAD)
    if head.startswith(LFS):
        raise CurvError("E_LFS", f"{where} is a git-lfs pointer", "run git lfs pull")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.ZIP
    if head.startswith(LEGACY):
        return Kind.LEGACY
    if _safetensors(head):
        return Kind.SAFETENSORS
    looks, hint = _looks(head)
    raise CurvError("E_FORMAT", f"{where} is not a checkpoint: it looks like {looks}", hint)


def _safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= SAFETENSORS_HEADER


def _looks(head: bytes) -> tuple[str, str]:
    for offset, magic, looks, hint in FOREIGN:
        if head.startswith(magic, offset):
            return looks, hint
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a bare pickle, not what torch.save writes", "save the state_dict() with torch.save"
    if not head.strip(b"\0"):
        return "nothing but zero bytes", "the file may be damaged or only partly copied"
    return _text(head)


def _text(head: bytes) -> tuple[str, str]:
    hint = "pass a .pt, .pth, .ckpt or .safetensors file"
    # The head may end inside a character, so a broken last one is still text.
    text = (
        head[:-3].decode("utf-8", "replace")
        if len(head) == HEAD
        else head.decode("utf-8", "replace")
    )
    if "\ufffd" in text or any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return "unknown binary data", "save the model's state_dict() with torch.save"
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page", "the download may have met a login or an error page; " + hint
    if start.startswith("<"):
        return "XML", hint
    if start.startswith(("{", "[")):
        return "JSON", hint
    yaml = any(line.partition(":")[1] for line in start.splitlines() if not line.startswith("#"))
    if start.startswith("---") or yaml:
        return "YAML or plain text", "a spec goes in --spec; " + hint
    return "plain text", hint
