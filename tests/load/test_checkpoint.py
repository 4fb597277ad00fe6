"""Every layout is told apart, every odd file is refused, and nothing in a file runs."""

import argparse
import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from curvcli.errors import CurvError
from curvcli.load.checkpoint import Checkpoint, read


def trained() -> tuple[dict[str, Any], dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


WEIGHTS, STATE = trained()


def saved(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def refused(path: Path, code: str, *words: str, sha256: str | None = None) -> CurvError:
    with pytest.raises(CurvError) as info:
        read(path, sha256)
    assert info.value.code == code, str(info.value)
    for word in words:
        assert word in str(info.value)
    assert "\n" not in str(info.value)
    return info.value


def outcome(path: Path, sha256: str | None = None) -> CurvError | None:
    try:
        read(path, sha256)
    except CurvError as error:
        return error
    return None


def same_weights(checkpoint: Checkpoint) -> bool:
    return checkpoint.weights.keys() == WEIGHTS.keys() and all(
        torch.equal(checkpoint.weights[k], v) for k, v in WEIGHTS.items()
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], deflate: bool = False
) -> Path:
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return target


EXTRA = torch.zeros(2)
LAYOUTS: dict[str, tuple[dict[str, Any], str, dict[str, float]]] = {
    "tutorial": (
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": STATE, "epoch": 3, "loss": 0.5},
        "tutorial",
        {"epoch": 3, "loss": 0.5},
    ),
    "lightning": (
        {"state_dict": WEIGHTS, "optimizer_states": [STATE], "lr_schedulers": [], "epoch": 1,
         "global_step": 7, "pytorch-lightning_version": "2.5",
         "hyper_parameters": {"p": Path("/x")}},
        "Lightning",
        {"epoch": 1, "global_step": 7},
    ),
    "timm": (
        {"epoch": 2, "arch": "vit", "state_dict": WEIGHTS, "optimizer": STATE, "version": 2,
         "args": argparse.Namespace(lr=0.1), "state_dict_ema": WEIGHTS, "metric": np.float64(1)},
        "timm",
        {"epoch": 2},
    ),
    "state_dict + optimizer": (
        {"state_dict": WEIGHTS, "optimizer": STATE, "meta": {}},
        "state_dict + optimizer",
        {},
    ),
    "nanoGPT": (
        {"model": WEIGHTS, "optimizer": STATE, "model_args": {"n_layer": 1}, "iter_num": 9,
         "best_val_loss": torch.tensor(1.5), "config": {"compile": True}},
        "nanoGPT",
        {"iter_num": 9, "best_val_loss": 1.5},
    ),
    "torchvision": (
        {"model": WEIGHTS, "optimizer": STATE, "lr_scheduler": {}, "epoch": 4,
         "args": argparse.Namespace(workers=2), "loss": np.float32(0.25)},
        "model + optimizer",
        {"epoch": 4, "loss": 0.25},
    ),
    "nested": ({"model": WEIGHTS, "epoch": np.int64(2)}, 'nested "model"', {"epoch": 2}),
    "lone": ({"backbone": WEIGHTS, "acc": 0.9}, 'nested "backbone"', {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    value, layout, progress = LAYOUTS[name]
    path = saved(tmp_path / "x.bin", value)
    checkpoint = read(path, digest(path).upper())
    assert checkpoint.layout == layout
    assert same_weights(checkpoint)
    assert checkpoint.progress == progress
    assert checkpoint.sha256 == digest(path)
    if "nested" in layout:
        assert checkpoint.optimizer is None
    else:
        assert checkpoint.optimizer is not None
        assert torch.equal(
            checkpoint.optimizer["state"][0]["exp_avg"], STATE["state"][0]["exp_avg"]
        )
    assert any("averaged" in note for note in checkpoint.notes) == (name == "timm")


def test_plain_state_dict_with_metadata(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    checkpoint = read(saved(tmp_path / "a", model.state_dict()))
    assert checkpoint.layout == "state_dict"
    assert checkpoint.optimizer is None
    assert set(checkpoint.weights) == set(model.state_dict())


def test_parameters_and_cuda_locations_become_plain_cpu_tensors(tmp_path: Path) -> None:
    checkpoint = read(saved(tmp_path / "a", dict(nn.Linear(2, 2).named_parameters())))
    assert all(type(t) is torch.Tensor and not t.requires_grad for t in checkpoint.weights.values())
    source = saved(tmp_path / "b", WEIGHTS)
    path = rewritten(
        source,
        tmp_path / "c",
        lambda _, data: data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"),
    )
    assert same_weights(read(path))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"  # the suffix says nothing
    save_file(dict(WEIGHTS), path, metadata={"format": "evil"})
    checkpoint = read(path)
    assert checkpoint.layout == "safetensors"
    assert same_weights(checkpoint)
    path.write_bytes(path.read_bytes()[:-3])
    refused(path, "E_CORRUPT", "safetensors")
    save_file({}, path)
    refused(path, "E_CONTENT", "no tensors")


def test_averaged_weights_alone_are_used_with_a_note(tmp_path: Path) -> None:
    checkpoint = read(saved(tmp_path / "a", {"model_ema": WEIGHTS}))
    assert any("averaged" in note for note in checkpoint.notes)
    both = read(saved(tmp_path / "b", {"ema": WEIGHTS, "generator": WEIGHTS}))
    assert both.layout == 'nested "generator"'


def test_several_candidates_are_refused(tmp_path: Path) -> None:
    value = {"generator": WEIGHTS, "discriminator": WEIGHTS}
    refused(saved(tmp_path / "a", value), "E_AMBIGUOUS", "generator", "discriminator")


def test_lists_of_optimizers_give_the_first(tmp_path: Path) -> None:
    checkpoint = read(saved(tmp_path / "a", {"net": WEIGHTS, "optimizers": [STATE, STATE]}))
    assert checkpoint.optimizer is not None
    assert "the first of 2 optimizer states used" in checkpoint.notes
    checkpoint = read(saved(tmp_path / "b", {"net": WEIGHTS, "optimizer": {"lr": 1}}))
    assert checkpoint.optimizer is None
    assert any("left out" in note for note in checkpoint.notes)


@pytest.mark.parametrize("value", [{"epoch": 3}, {}, [1, 2], 5, torch.ones(2), {"model": {"a": 1}}])
def test_no_weights(tmp_path: Path, value: object) -> None:
    refused(saved(tmp_path / "a", value), "E_CONTENT")


def test_no_weights_lists_the_keys(tmp_path: Path) -> None:
    refused(saved(tmp_path / "a", {"epoch": 3, "x\x1b[1m": 1}), "E_CONTENT", "epoch", r"\x1b")


def test_missing_names_the_nearest(tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", WEIGHTS)
    refused(tmp_path / "modle.pt", "E_NOT_FOUND", "did you mean", "model.pt")
    refused(tmp_path / "no" / "x.pt", "E_NOT_FOUND", "no directory")
    refused(tmp_path / "a\0b", "E_NOT_FOUND")
    refused(tmp_path / ("a" * 4000), "E_NOT_FOUND")


def test_directory_empty_and_fifo(tmp_path: Path) -> None:
    save_file(dict(WEIGHTS), tmp_path / "model.safetensors")
    refused(tmp_path, "E_DIRECTORY", "model.safetensors")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "E_EMPTY")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "E_NOT_REGULAR")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "a", WEIGHTS)
    monkeypatch.setattr(Path, "open", deny)
    refused(path, "E_PERMISSION")


def test_digest(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", WEIGHTS)
    refused(path, "E_SHA256", digest(path), sha256="0" * 64)
    refused(path, "E_SHA256", sha256="")


CONTENTS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "E_LFS", "lfs"),
    "yaml": (b"version: 1\ncheckpoint: a.pt\n", "E_FORMAT", "YAML"),
    "html": (b"\n<!DOCTYPE html><html></html>", "E_FORMAT", "HTML"),
    "xml": (b"<?xml version='1.0'?>", "E_FORMAT", "XML"),
    "json": (b'{"a": 1, "b": [1, 2, 3]}', "E_FORMAT", "JSON"),
    "text": ("Größe\n".encode(), "E_FORMAT", "plain text"),
    "long text": (b"x" * 1023 + "ö".encode() * 9, "E_FORMAT", "plain text"),
    "gzip": (b"\x1f\x8b" + bytes(50), "E_FORMAT", "gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "E_FORMAT", "HDF5"),
    "npy": (b"\x93NUMPY" + bytes(50), "E_FORMAT", "NumPy"),
    "tar": (bytes(257) + b"ustar" + bytes(200), "E_FORMAT", "tar"),
    "zeros": (bytes(500), "E_FORMAT", "zero"),
    "binary": (bytes(range(1, 256)), "E_FORMAT", "binary"),
    "pickle": (pickle.dumps({"a": 1}), "E_FORMAT", "bare pickle"),
    "short": (b"\x07", "E_FORMAT", "binary"),
    "zip cut": (b"PK\x03\x04" + bytes(60), "E_CORRUPT", "zip"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_foreign_contents(tmp_path: Path, name: str) -> None:
    data, code, word = CONTENTS[name]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    refused(path, code, word)


def archive(path: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in records.items():
            target.writestr(name, data)
    return path


def test_other_zips(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    refused(tmp_path / "a.npz", "E_FORMAT", "npz")
    refused(archive(tmp_path / "b", {"readme.txt": b"hi"}), "E_FORMAT", "data.pkl")
    refused(archive(tmp_path / "c", {}), "E_FORMAT")
    refused(archive(tmp_path / "d", {"model.weights.h5": b""}), "E_FORMAT", "Keras")


def test_program_archives(tmp_path: Path) -> None:
    refused(
        archive(tmp_path / "s.pt", {"s/data.pkl": b"", "s/constants.pkl": b"", "s/code/x.py": b""}),
        "E_UNTRUSTED",
        "TorchScript",
        "state_dict()",
    )
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "e.pt2")
    refused(tmp_path / "e.pt2", "E_UNTRUSTED", "torch.export", "state_dict()")


def test_damaged_zips(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", WEIGHTS)
    data = bytearray(good.read_bytes())
    place = data.index(WEIGHTS["0.weight"].numpy().tobytes())
    data[place] ^= 1
    bad = tmp_path / "bad"
    bad.write_bytes(data)
    refused(bad, "E_CORRUPT", "checksum", "data/0")
    bad.write_bytes(good.read_bytes()[:-50])
    refused(bad, "E_CORRUPT")
    bad.write_bytes(b"PK\x03\x04 something before " + good.read_bytes())
    refused(bad, "E_CORRUPT", "before")
    refused(rewritten(good, bad, lambda _, d: d, deflate=True), "E_CORRUPT", "compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_records(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", WEIGHTS)
    for name in ("x/data.pkl", "x/DATA.pkl"):
        with zipfile.ZipFile(path, "a") as target:
            target.writestr(name, b"other")
        refused(path, "E_CORRUPT", "twice")


def test_two_folders_and_a_comment(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", WEIGHTS)
    with zipfile.ZipFile(path, "a") as target:
        target.comment = b"hello"
    refused(path, "E_CORRUPT", "after")
    path = saved(tmp_path / "y", WEIGHTS)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("other/data.pkl", b"")
    refused(path, "E_CORRUPT", "folder")


def test_a_record_shorter_than_its_storage(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", {"w": torch.ones(4)})
    bad = rewritten(source, tmp_path / "b", lambda n, d: d[:8] if n.endswith("data/0") else d)
    refused(bad, "E_CORRUPT")


def test_without_checksums_a_digest_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(True)
    refused(path, "E_FORMAT", "checksum")
    assert same_weights(read(path, digest(path)))


def test_legacy_files_need_a_digest(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", {"model": WEIGHTS}, _use_new_zipfile_serialization=False)
    refused(path, "E_FORMAT", "1.6", digest(path))
    assert same_weights(read(path, digest(path)))
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "E_CORRUPT", sha256=digest(path))


class Payload:
    """A pickle that would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_pickle_runs(tmp_path: Path, legacy: bool, protocol: int) -> None:
    target = tmp_path / "ran"
    path = saved(
        tmp_path / "a",
        {"w": torch.ones(2), "x": Payload(target)},
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    if legacy and protocol == 4:
        refused(path, "E_FORMAT", "pickle", sha256=digest(path))
    else:
        refused(path, "E_UNTRUSTED", ".system", "state_dict()", sha256=digest(path))
    path.write_bytes(pickle.dumps(Payload(target)))
    refused(path, "E_FORMAT")
    assert not target.exists()


def test_modules_are_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", nn.Linear(2, 2))
    refused(path, "E_UNTRUSTED", "torch.nn.modules.linear.Linear", "save its state_dict()")


def pickled(path: Path, data: bytes) -> Path:
    """Put a handmade pickle into an archive of torch.save."""
    source = saved(path.with_suffix(".src"), {"w": torch.ones(2)})
    return rewritten(source, path, lambda n, d: data if n.endswith("data.pkl") else d)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x02c__builtin__\nexecfile\n.", "builtins"),
        (b"(S'ls'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02\x82\x01.", "copyreg"),
        (b"\x80\x02ctorch\nTensor\nM\xff\xff\x85R.", "torch.Tensor"),
        (b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.", "builtins.bytearray"),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0hex\x86R.", "_codecs.encode"),
    ],
)
def test_handmade_pickles(tmp_path: Path, data: bytes, name: str) -> None:
    refused(pickled(tmp_path / "a", data), "E_UNTRUSTED", name)


def test_damaged_pickles_and_new_protocols(tmp_path: Path) -> None:
    refused(pickled(tmp_path / "a", b"\x80\x02}"), "E_CORRUPT")
    refused(pickled(tmp_path / "b", b"\x80\x02R."), "E_CORRUPT")
    refused(saved(tmp_path / "c", WEIGHTS, pickle_protocol=4), "E_FORMAT", "protocol 4")


def test_small_files_with_many_objects(tmp_path: Path) -> None:
    data = b"\x80\x02ccollections\nOrderedDict\nq\0](" + b"h\0)R" * 70_000 + b"e."
    refused(pickled(tmp_path / "a", data), "E_TOO_LARGE", "70001 objects")


def test_methods_hidden_by_attributes(tmp_path: Path) -> None:
    data = b"\x80\x02ccollections\nOrderedDict\n)RX\x01\0\0\0aK\x01s}X\x05\0\0\0itemsK\x01sb."
    refused(pickled(tmp_path / "a", data), "E_CORRUPT", "odd")


def unusual() -> dict[str, torch.Tensor]:
    return {
        "sparse": torch.eye(2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.ones(2, device="meta"),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sparse", "quantized", "meta", "float8"])
def test_tensors_that_are_not_dense(tmp_path: Path, name: str) -> None:
    refused(saved(tmp_path / "a", {"w": unusual()[name]}), "E_CONTENT", name)


def test_expanded_tensors(tmp_path: Path) -> None:
    bomb = torch.ones(1).expand(10**6, 10**6)
    refused(saved(tmp_path / "a", {"model": {"w": bomb}}), "E_CONTENT", "w (1000000, 1000000)")
    small = read(saved(tmp_path / "b", {"w": torch.ones(1).expand(8)}))
    assert torch.equal(small.weights["w"], torch.ones(8))


def test_deep_shared_and_circular_containers(tmp_path: Path) -> None:
    circular: dict[str, Any] = {"model": WEIGHTS}
    circular["self"] = circular
    assert same_weights(read(saved(tmp_path / "a", circular)))
    laughs: list[Any] = []
    for _ in range(60):
        laughs = [laughs, laughs]
    assert same_weights(read(saved(tmp_path / "b", {"model": WEIGHTS, "x": laughs})))


def test_huge_numbers_are_no_progress(tmp_path: Path) -> None:
    value = {
        "model": WEIGHTS,
        "epoch": 10**300,
        "step": True,
        "loss": float("nan"),
        "iter_num": "x",
    }
    progress = read(saved(tmp_path / "a", value)).progress
    assert list(progress) == ["loss"]


def sources(folder: Path) -> list[bytes]:
    full = LAYOUTS["timm"][0]
    zipped = saved(folder / "zip", full).read_bytes()
    legacy = saved(folder / "old", full, _use_new_zipfile_serialization=False).read_bytes()
    save_file(dict(WEIGHTS), folder / "safe")
    return [zipped, legacy, (folder / "safe").read_bytes()]


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(len(changed))
        match rng.randrange(5):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.randrange(256)
            case 2:
                del changed[place : place + rng.randrange(1, 40)]
            case 3:
                changed[place:place] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                changed[place : place + 8] = struct.pack("<q", rng.choice((0, -1, 2**31, 2**62)))
        if len(changed) < 2:
            break
    return bytes(changed[: rng.randrange(1, len(changed))] if rng.random() < 0.1 else changed)


def test_mutated_files_raise_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    originals = sources(tmp_path)
    path = tmp_path / "mutant"
    for index in range(360):
        data = mutated(originals[index % 3], rng)
        path.write_bytes(data)
        pinned = hashlib.sha256(data).hexdigest() if rng.random() < 0.7 else None
        assert str(outcome(path, pinned)).isprintable()


def test_mutated_pickles_raise_nothing_else(tmp_path: Path) -> None:
    """Mutations behind a sound checksum reach the unpickler."""
    rng = random.Random(1)
    source = saved(tmp_path / "src", LAYOUTS["timm"][0])
    with zipfile.ZipFile(source) as old:
        records = [(record.filename, old.read(record)) for record in old.infolist()]
    for _ in range(240):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for name, data in records:
                new.writestr(name, mutated(data, rng) if name.endswith("data.pkl") else data)
        (tmp_path / "mutant").write_bytes(buffer.getvalue())
        assert str(outcome(tmp_path / "mutant")).isprintable()


def test_hostile_safetensors_headers(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for shape, offsets in (([2**40, 2**40], [0, 4]), ([1], [0, 2**60]), ([-1], [0, 4])):
        header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
        refused(path, "E_CORRUPT")
