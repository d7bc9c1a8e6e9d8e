"""Corrupted and malicious weight files: one clear error each, or a conversion."""

import io
import json
import pickle
import random
import shutil
import struct
import tarfile
import zipfile

import pytest
import torch
from helpers import tiny_base_folder
from safetensors.torch import save, save_file
from test_torch_weights import legacy, memory_tensors, shards

from allmem_mlx.convert import convert
from allmem_mlx.errors import AllMemError

COUNT = 300
SIZES = (0, 1, 2**20, 2**31, 2**40, 2**62, 2**63 - 1, -1, -(2**40), 1.5, None, "4", [])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base_folder(tmp_path_factory.mktemp("base"), "qwen3")


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bits of one byte or some, more often where the structure is."""
    out = bytearray(data)
    near = rng.choice((100, 3000, len(data)))
    places = [rng.randrange(min(near, len(data))), rng.randrange(len(data))]
    if rng.random() < 0.5:
        places += [-rng.randrange(1, 3000) for _ in range(4)]
    for place in places:
        out[place] ^= 1 << rng.randrange(8)
    return bytes(out)


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """A run of other bytes, longer or shorter than what was there."""
    start = rng.randrange(len(data))
    new = rng.randbytes(rng.choice((0, 1, 8, 300)))
    return data[:start] + new + data[start + rng.choice((0, 1, 8, 300)) :]


def lying(data: bytes, rng: random.Random) -> bytes:
    """A safetensors header of another length, or that says something else."""
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.3:
        length = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**40, 2**64 - 1))
        return struct.pack("<Q", length) + data[8:]
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, field = header[name], rng.choice(("shape", "data_offsets", "dtype", "name"))
    if field == "dtype":
        types = ("F64", "F16", "BF16", "I32", "F8_E4M3", "F32", "X9", "", 3, None)
        entry["dtype"] = rng.choice(types)
    elif field == "name":
        header[rng.choice(("", "\0", "../x", "é" * 1000, "model." * 900))] = entry
    else:
        entry[field][rng.randrange(len(entry[field]))] = rng.choice(SIZES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def other(data: bytes, rng: random.Random) -> bytes:
    """Files that are something else."""
    text = b"once upon a time " * rng.choice((1, 1000))
    return rng.choice((b"", b"\0", text, b"PK\3\4" + text, b"{}", rng.randbytes(5000)))


def compressed(data: bytes, rng: random.Random) -> bytes:
    """The archive's files compressed, and one that would be large."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as old:
                for name in old.namelist():
                    archive.writestr(name, old.read(name))
        archive.writestr("archive/data/99", bytes(10**7))
    return out.getvalue()


def nested(data: bytes, rng: random.Random) -> bytes:
    """An archive in an archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(rng.choice(("archive/data.pkl", "a/b.zip", "data.pkl")), data)
    return out.getvalue()


CORRUPTIONS = (truncated, flipped, flipped, scrambled, other, compressed, nested)


def other_tensors(tensors: dict, rng: random.Random) -> dict:
    """Good files of tensors that are not what they should be."""
    name = rng.choice(sorted(tensors))
    x = tensors[name]
    ways = {
        "gone": lambda: None,
        "turned": lambda: x.mT.contiguous() if x.ndim > 1 else x[None],
        "flat": lambda: x.flatten(),
        "cut": lambda: x[1:].clone(),
        "empty": lambda: x[:0].clone(),
        "scalar": lambda: x.flatten()[0].clone(),
        "NaN": lambda: torch.where(x == x.max(), torch.nan, x),
        "another type": lambda: x.to(
            rng.choice((torch.int8, torch.float64, torch.bool, torch.bfloat16))
        ),
        "another layer": lambda: x,
        "another name": lambda: x,
    }
    way = rng.choice(list(ways))
    new = {key: y for key, y in tensors.items() if key != name}
    if way == "another layer":
        name = name.replace(".0.", f".{rng.choice(('1', '7', '-1', '99999999'))}.")
    if way == "another name":
        name = rng.choice(
            (f"{name}s", name[5:], f"x.{name}", name.upper(), "\n" + name)
        )
    x = ways[way]()
    return new if x is None else {**new, name: x}


def attempt(base, folder, torch_path) -> str | None:
    """The message if it is refused; whatever else goes wrong is raised."""
    before = sorted(path.name for path in folder.iterdir())
    try:
        convert(base, folder / "new", torch_path=torch_path)
    except AllMemError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, error
        assert sorted(path.name for path in folder.iterdir()) == before
        return str(error)
    shutil.rmtree(folder / "new")
    return None


def write_good(kind: str, folder) -> None:
    tensors = memory_tensors()
    if kind == "pt":
        torch.save({"model": tensors}, folder / "memory.pt")
    elif kind == "legacy":
        legacy(tensors, folder / "memory.pth")
    elif kind == "shards":
        shards(folder, tensors, save_file, "model.safetensors")
    else:
        save_file(tensors, folder / "memory.safetensors")


@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy", "shards"])
def test_corrupted_weights(base, tmp_path, kind):
    folder = tmp_path / "weights"
    rng, refused = random.Random(kind), 0
    for case in range(COUNT // 4):
        folder.mkdir()
        write_good(kind, folder)
        file = rng.choice(sorted(folder.iterdir()))
        ways = CORRUPTIONS
        if file.suffix == ".safetensors":
            ways = (*CORRUPTIONS, *[lying] * 6)
        way = rng.choice(ways)
        file.write_bytes(way(file.read_bytes(), rng))
        try:
            refused += attempt(base, tmp_path, folder) is not None
        except BaseException as error:
            raise AssertionError(f"case {case}, {way.__name__}: {error!r}") from error
        shutil.rmtree(folder)
    assert refused > COUNT // 8


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_other_tensors(base, tmp_path, suffix):
    rng, refused = random.Random(suffix), 0
    file = tmp_path / f"memory.{suffix}"
    for case in range(COUNT // 4):
        tensors = other_tensors(memory_tensors(), rng)
        (save_file if suffix == "safetensors" else torch.save)(tensors, file)
        try:
            refused += attempt(base, tmp_path, file) is not None
        except BaseException as error:
            raise AssertionError(f"case {case}: {error!r}") from error
    assert refused > COUNT // 8


def test_corrupted_bases(base, tmp_path):
    """Of the base model's own weights."""
    rng, refused = random.Random(0), 0
    good = (base / "model.safetensors").read_bytes()
    shutil.copytree(base, tmp_path / "base")
    for case in range(COUNT // 4):
        way = rng.choice((*CORRUPTIONS, *[lying] * 6))
        (tmp_path / "base" / "model.safetensors").write_bytes(way(good, rng))
        try:
            refused += attempt(tmp_path / "base", tmp_path, None) is not None
        except BaseException as error:
            raise AssertionError(f"case {case}, {way.__name__}: {error!r}") from error
    assert refused > COUNT // 8


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls(canary):
    """Ways to create a file while a pickle is read."""
    import os
    import subprocess

    code = f"open({str(canary)!r}, 'w').close()"
    yield Call(os.system, f"touch {canary}")
    yield Call(eval, code)
    yield Call(exec, code)
    yield Call(subprocess.call, ["touch", str(canary)])
    yield Call(open, str(canary), "w")
    yield Call(getattr(Call, "__init__", None).__class__, code)  # types.FunctionType
    inner = pickle.dumps(Call(eval, code))
    yield Call(pickle.loads, inner)
    yield Call(torch.load, io.BytesIO(inner), None, pickle)
    yield Call(torch.utils._pytree.tree_map, eval, [code])


def test_malicious_pickles_do_not_run(base, tmp_path):
    """In every container that torch.load or pickle reads, at every place in it."""
    canary, folder = tmp_path / "canary", tmp_path / "weights"
    made = 0
    for call in calls(canary):
        for place in (
            lambda x: x,
            lambda x: {"model": x},
            lambda x: {**memory_tensors(), "extra": x},
            lambda x: {"optimizer": [{"state": x}], **memory_tensors()},
        ):
            for write in (
                lambda x, file: torch.save(x, file),
                legacy,
                lambda x, file: file.write_bytes(pickle.dumps(x)),
            ):
                folder.mkdir()
                try:
                    write(place(call), folder / "memory.pt")
                except (AttributeError, TypeError, pickle.PicklingError):
                    # What cannot be pickled cannot do harm.
                    shutil.rmtree(folder)
                    continue
                made += 1
                message = attempt(base, tmp_path, folder)
                assert message and "memory.pt" in message
                assert "weights_only" not in message  # PyTorch's advice to run it
                assert not canary.exists()
                shutil.rmtree(folder)
    assert made > 50
    # These would have run: the same bytes, read carelessly.
    pickle.loads(pickle.dumps(next(calls(canary))))
    assert canary.exists()


def pickled(data: bytes, file) -> None:
    """``data`` as the pickle of an archive of torch.save."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")


def cyclic(file) -> None:
    inner: dict = {}
    inner["model"] = inner
    torch.save(inner, file)


def tar(file) -> None:
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("../storages"), io.BytesIO())


def repeated(file) -> None:
    """A whole memory that would be large, of one value each."""
    tensors = {
        name: torch.zeros(1).expand(*x.shape[:-1], 10**9)
        for name, x in memory_tensors().items()
    }
    torch.save(tensors, file)


def deflated(file) -> None:
    """A good file, compressed: what is mapped into memory would be other values."""
    torch.save(memory_tensors(), file)
    with zipfile.ZipFile(file) as old:
        files = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


NAME = "model.layers.0.self_attn.memory.w0_gate"
LISTS = b"\x80\x02]q\0" + b"".join(b"]q\1(h\0h\0h\0h\0eq\0" for _ in range(60)) + b"."
ODD = "is not an ordinary tensor"
BOMBS = {
    "a dictionary in itself": (cyclic, "no memory"),
    "a tar archive": (tar, "is damaged"),
    "a compressed archive": (deflated, "compressed"),
    "deep nesting": (lambda f: pickled(b"\x80\x02" + b"]" * 10**5 + b".", f), "list"),
    "marks": (lambda f: pickled(b"\x80\x02" + b"(" * 10**5 + b".", f), "is damaged"),
    "lists of lists": (lambda f: pickled(LISTS, f), "list"),
    "a length that lies": (
        lambda f: pickled(b"\x80\x02X" + struct.pack("<I", 2**31) + b"a.", f),
        "is damaged",
    ),
    "values repeated": (repeated, "repeats values"),
    "no values": (
        lambda f: torch.save({NAME: torch.empty(10**6, device="meta")}, f),
        ODD,
    ),
    "sparse": (
        lambda f: torch.save(
            {NAME: torch.sparse_coo_tensor([[0], [1], [2]], [1.0], (10**5,) * 3)}, f
        ),
        ODD,
    ),
    "nested": (
        lambda f: torch.save(
            {NAME: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, f
        ),
        ODD,
    ),
    "quantised": (
        lambda f: torch.save(
            {NAME: torch.quantize_per_tensor(torch.ones(2, 3, 4), 0.1, 0, torch.qint8)},
            f,
        ),
        ODD,
    ),
    "numbers for names": (
        lambda f: torch.save({1: torch.ones(1), (): {}}, f),
        "no memory",
    ),
    "TorchScript": (
        lambda f: torch.jit.script(torch.nn.Linear(2, 2)).save(f),
        "compressed",
    ),
    "safetensors by another name": (
        lambda f: f.write_bytes(save(memory_tensors())),
        "is damaged",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write, words", BOMBS.values(), ids=BOMBS)
def test_bombs(base, tmp_path, write, words):
    write(tmp_path / "memory.pt")
    message = attempt(base, tmp_path, tmp_path / "memory.pt")
    assert "memory.pt" in message and words in message, message


INDEXES = (
    "[]",
    "[" * 10**5,
    '{"weight_map": []}',
    '{"weight_map": {"a": 3}}',
    '{"weight_map": {"a": null}}',
    '{"weight_map": {"a": "."}}',
    '{"weight_map": {"a": ".."}}',
    '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": {"a": "../secret.safetensors"}}',
    '{"weight_map": {"a": "folder"}}',
    '{"weight_map": {"a": "nul\\u0000"}}',
    '{"weight_map": {"a": "' + "x" * 10**4 + '"}}',
    '{"weight_map": {"a": "\\ud800"}}',
    '{"weight_map": {"a": "model.safetensors.index.json"}}',
)


@pytest.mark.parametrize("whose", ["weights", "base"])
@pytest.mark.parametrize("text", INDEXES, ids=range(len(INDEXES)))
def test_indexes(base, tmp_path, whose, text):
    save_file(memory_tensors(), tmp_path / "secret.safetensors")
    folder = tmp_path / whose
    if whose == "base":
        shutil.copytree(base, folder)
    else:
        folder.mkdir()
        save_file(memory_tensors(), folder / "model.safetensors")
    (folder / "folder").mkdir()
    (folder / "model.safetensors.index.json").write_text(text)
    if whose == "base":
        message = attempt(folder, tmp_path, None)
    else:
        message = attempt(base, tmp_path, folder)
    assert "index.json" in message
