"""Examples of every format, in their order, and one plain line for everything that is wrong."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.load.data import Examples, read
from curvcli.spec import Answers, Csv, Data, Drawn, Held, Heldout, Npy, Npz, Pt, Synthetic

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 0, 1], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", x=X, y=Y, z=X[:, 0], short=X[:3])
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    torch.save({"x": torch.from_numpy(X), "y": torch.from_numpy(Y)}, tmp_path / "a.pt")
    torch.save([torch.from_numpy(X), torch.from_numpy(Y)], tmp_path / "list.pt")
    rows = [f"{a},{b},{y}" for (a, b), y in zip(X.tolist(), Y.tolist(), strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    (tmp_path / "bare.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def sources(folder: Path) -> dict[str, Data]:
    return {
        "npz": Npz(format="npz", path=folder / "a.npz"),
        "npy": Npy(format="npy", x=folder / "x.npy", y=folder / "y.npy"),
        "pt": Pt(format="pt", path=folder / "a.pt"),
        "pt list": Pt(format="pt", path=folder / "list.pt", x=0, y=1),
        "csv": Csv(format="csv", path=folder / "a.csv", y="y"),
        "csv, named": Csv(format="csv", path=folder / "a.csv", x=("a", "b"), y="y"),
        "csv, bare": Csv(format="csv", path=folder / "bare.csv", y="2", header=False),
    }


def refusal(data: Data, heldout: Heldout | None = None) -> CurvError:
    with pytest.raises(CurvError) as caught:
        read(data, heldout)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["npz", "npy", "pt", "pt list", "csv", "csv, named", "csv, bare"])
def test_every_format(folder: Path, name: str) -> None:
    found, held = read(sources(folder)[name], None)
    assert held is None
    assert found.size == 6
    assert found.inputs.dtype == torch.float32
    assert torch.equal(found.inputs, torch.from_numpy(X))
    assert found.target.dtype == torch.int64
    assert found.target.tolist() == Y.tolist()


def test_several_inputs_and_no_target(folder: Path) -> None:
    path = folder / "a.npz"
    both, _ = read(Npz(format="npz", path=path, x=("x", "z"), y=None), None)
    assert both.target is None
    assert [t.shape for t in both.inputs] == [(6, 2), (6,)]
    named, _ = read(Npz(format="npz", path=path, x={"left": "x", "right": "z"}), None)
    assert set(named.inputs) == {"left", "right"}
    pair, _ = read(Pt(format="pt", path=folder / "a.pt", x=("x", "y"), y=None), None)
    assert len(pair.inputs) == 2
    lone, _ = read(Npy(format="npy", x=folder / "x.npy"), None)
    assert lone.target is None
    table, _ = read(Csv(format="csv", path=folder / "a.csv"), None)
    assert table.inputs.shape == (6, 3)
    assert table.target is None


def test_batches_are_cut_in_order(folder: Path) -> None:
    found, _ = read(Npz(format="npz", path=folder / "a.npz", x={"u": "x", "v": "z"}), None)
    batches = found.batches(4)
    assert [b.size for b in batches] == [4, 2]
    assert torch.equal(torch.cat([b.inputs["u"] for b in batches]), torch.from_numpy(X))
    assert torch.equal(torch.cat([b.target for b in batches]), found.target)
    assert [b.size for b in found.batches(6)] == [6]
    assert [b.size for b in found.batches(100)] == [6]


def test_samples_and_scale(folder: Path) -> None:
    found, _ = read(Npz(format="npz", path=folder / "a.npz", samples=4, scale=0.5), None)
    assert torch.equal(found.inputs, torch.from_numpy(X[:4]) * 0.5)
    assert found.target.tolist() == [0, 1, 0, 1]
    bytes_, _ = read(Npz(format="npz", path=folder / "a.npz", x="y", scale=1 / 255), None)
    assert bytes_.inputs.dtype == torch.float32
    assert bytes_.inputs.tolist() == pytest.approx((Y / 255).tolist())


def test_heldout_follows(folder: Path) -> None:
    data = Npz(format="npz", path=folder / "a.npz", samples=3)
    found, held = read(data, Held(samples=2))
    assert held is not None
    assert torch.equal(found.inputs, torch.from_numpy(X[:3]))
    assert torch.equal(held.inputs, torch.from_numpy(X[3:5]))
    rest, held = read(Npz(format="npz", path=folder / "a.npz"), Held(samples=2))
    assert rest.size == 4
    assert held is not None
    assert torch.equal(held.inputs, torch.from_numpy(X[4:]))


def test_heldout_from_elsewhere(folder: Path) -> None:
    other = Csv(format="csv", path=folder / "a.csv", y="y", samples=2)
    found, held = read(Npz(format="npz", path=folder / "a.npz"), other)
    assert found.size == 6
    assert held is not None
    assert held.size == 2


@pytest.mark.parametrize(("samples", "held"), [(7, None), (5, 2), (None, 6), (6, 1)])
def test_more_than_there_is(folder: Path, samples: int | None, held: int | None) -> None:
    data = Npz(format="npz", path=folder / "a.npz", samples=samples)
    error = refusal(data, None if held is None else Held(samples=held))
    assert error.code == "E_DATA"
    assert "the data has 6 examples, not" in error.message


def test_digest(folder: Path) -> None:
    digests = {n: read(s, None)[0].digest() for n, s in sources(folder).items()}
    assert len(set(digests.values())) == 1  # the same numbers by whatever format
    assert digests["npz"] == ("e6d04cf2e56017a821894ccb5cfeb75393493cb3791ed9853e19f1c24b056e8d")
    whole, _ = read(sources(folder)["npz"], None)
    others = [
        whole.cut(0, 5),
        Examples(whole.inputs.double(), whole.target, 6),
        Examples(whole.inputs.reshape(6, 1, 2), whole.target, 6),
        Examples(whole.inputs, whole.target.flip(0), 6),
        Examples(whole.inputs, None, 6),
    ]
    assert len({digests["npz"], *(e.digest() for e in others)}) == 6


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", "f2", ">i4", "i1", "u2", "?", "g"])
def test_numpy_types(folder: Path, dtype: str) -> None:
    values = np.array([0, 1, 1], dtype=dtype)
    np.save(folder / "odd.npy", values)
    found, _ = read(Npy(format="npy", x=folder / "odd.npy"), None)
    assert found.inputs.double().tolist() == [0.0, 1.0, 1.0]
    if values.dtype.kind in "iu":
        assert found.inputs.dtype == torch.int64
    if dtype.endswith("f8"):
        assert found.inputs.dtype == torch.float64


def test_big_endian_numbers_keep_their_digits(folder: Path) -> None:
    np.save(folder / "pi.npy", np.array([np.pi], dtype=">f8"))
    found, _ = read(Npy(format="npy", x=folder / "pi.npy"), None)
    assert float(found.inputs[0]) == np.pi


def damaged(folder: Path) -> Path:
    path = folder / "damaged.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 4)), y=np.zeros(50))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x.npy")
    raw = bytearray(path.read_bytes())
    start = info.header_offset + 60
    raw[start : start + 200] = bytes(200)
    path.write_bytes(bytes(raw))
    return path


def wrongs(folder: Path) -> dict[str, tuple[Data, str]]:
    (folder / "text.npz").write_text("no archive")
    (folder / "empty.csv").write_text("")
    (folder / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    (folder / "words.csv").write_text("a,b\n1,red\n2,blue\n")
    (folder / "holes.csv").write_text("a,b\n1,\n2,3\n")
    (folder / "binary.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    np.savez(folder / "objects.npz", x=np.array([{}, 1], dtype=object), y=Y)
    np.savez(folder / "strings.npz", x=np.array(["a", "b"]), y=Y[:2])
    np.save(folder / "complex.npy", X.astype(np.complex64))
    np.save(folder / "scalar.npy", np.float32(3))
    torch.save({"x": {"deep": torch.zeros(2)}, "y": torch.zeros(2)}, folder / "deep.pt")
    torch.save(torch.zeros(3), folder / "bare.pt")
    (folder / "junk.pt").write_bytes(b"junk")

    def npz(name: str, **keys: Any) -> Npz:
        return Npz(format="npz", path=folder / name, **keys)

    def csv(name: str, **keys: Any) -> Csv:
        return Csv(format="csv", path=folder / name, **keys)

    def pt(name: str, **keys: Any) -> Pt:
        return Pt(format="pt", path=folder / name, **keys)

    return {
        "missing": (npz("none.npz"), "does not exist"),
        "missing csv": (csv("none.csv"), "does not exist"),
        "missing pt": (pt("none.pt"), "does not exist"),
        "missing npy": (Npy(format="npy", x=folder / "none.npy"), "does not exist"),
        "a folder": (npz("."), "does not exist"),
        "no archive": (npz("text.npz"), "is no numpy file, or a damaged one"),
        "one array": (npz("x.npy"), "holds one array"),
        "a key": (npz("a.npz", x="shor"), "did you mean 'short'"),
        "a damaged member": (npz(damaged(folder).name), "'?x'? is damaged"),
        "objects": (npz("objects.npz"), "holds objects"),
        "strings": (npz("strings.npz"), "not numbers"),
        "complex": (Npy(format="npy", x=folder / "complex.npy"), "complex64, not numbers"),
        "a scalar": (Npy(format="npy", x=folder / "scalar.npy"), "holds no examples"),
        "lengths": (npz("a.npz", x="short"), "do not hold the same number of examples"),
        "an empty table": (csv("empty.csv"), "is no table: No columns"),
        "a ragged table": (csv("ragged.csv"), "is no table: Error tokenizing data"),
        "no text": (csv("binary.csv"), "is no table: "),
        "words": (csv("words.csv"), "column '?b'? has cells that are no numbers"),
        "holes": (csv("holes.csv"), "column '?b'? has cells that are no numbers"),
        "a column": (csv("a.csv", y="Y"), "'Y' is not known here — known are a, b, y"),
        "an input column": (csv("a.csv", x=("a", "c")), "'c' is not known"),
        "a key of pt": (pt("a.pt", x="images"), "'images' is not known"),
        "an index of pt": (pt("list.pt", x=0, y=5), "'5' is not known"),
        "no tensor": (pt("deep.pt"), "'?x'? is no tensor"),
        "a bare tensor": (pt("bare.pt"), "neither a dict nor a list"),
        "junk": (pt("junk.pt"), "junk.pt"),
    }


WRONGS = [
    "missing", "missing csv", "missing pt", "missing npy", "a folder", "no archive", "one array",
    "a key", "a damaged member", "objects", "strings", "complex", "a scalar", "lengths",
    "an empty table", "a ragged table", "no text", "words", "holes", "a column", "an input column",
    "a key of pt", "an index of pt", "no tensor", "a bare tensor", "junk",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONGS)
def test_what_is_wrong_takes_one_line(folder: Path, name: str) -> None:
    data, message = wrongs(folder)[name]
    error = refusal(data)
    assert re.search(message, str(error))
    assert error.exit_code == 2


def test_every_wrong_is_tried(folder: Path) -> None:
    assert set(wrongs(folder)) == set(WRONGS)


def synthetic(**keys: Any) -> Synthetic:
    return Synthetic(format="synthetic", samples=20, **keys)


def test_synthetic() -> None:
    data = synthetic(x=Drawn(shape=(2, 3)), y=Answers(classes=4), scale=2.0)
    found, held = read(data, None)
    again, _ = read(data, None)
    assert held is None
    assert found.inputs.shape == (20, 2, 3)
    assert found.target.shape == (20,)
    assert set(found.target.tolist()) <= set(range(4))
    assert found.digest() == again.digest()
    other, _ = read(data.model_copy(update={"seed": 1}), None)
    assert other.digest() != found.digest()
    plain, _ = read(synthetic(x=Drawn(shape=(2, 3)), y=Answers(classes=4)), None)
    assert torch.equal(plain.inputs * 2, found.inputs)


def test_synthetic_kinds() -> None:
    x = {
        "words": Drawn(shape=(5,), kind="integers", high=3),
        "shade": Drawn(shape=(1,), kind="uniform"),
    }
    found, held = read(synthetic(x=x, y=Answers(shape=(2,))), Held(samples=4))
    assert held is not None
    assert found.size == 20
    assert held.size == 4
    assert held.inputs["words"].shape == (4, 5)
    assert found.inputs["words"].dtype == torch.int64
    assert int(found.inputs["words"].max()) == 2
    assert 0 <= float(found.inputs["shade"].min()) <= float(found.inputs["shade"].max()) < 1
    assert found.target.shape == (20, 2)
    numbers, _ = read(synthetic(x=Drawn(shape=(1,)), y=Answers(shape=())), None)
    assert numbers.target.shape == (20,)
    none, _ = read(synthetic(x=Drawn(shape=(1,))), None)
    assert none.target is None


def test_drawing_leaves_the_global_generator_alone() -> None:
    before: Tensor = torch.random.get_rng_state()
    read(synthetic(x=Drawn(shape=(2,))), None)
    assert torch.equal(torch.random.get_rng_state(), before)
