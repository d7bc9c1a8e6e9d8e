"""Corrupted GGUF files: each is refused with one line or converts, and nothing else."""

import math
import random
import shutil
import signal

import numpy as np
import pytest
from family_cases import complete, save_family
from gguf_cases import CASES
from gguf_files import save_gguf, write_gguf
from helpers import slow_beyond, tiny_base_folder
from processes import alone, peak

from allmem_mlx.convert import convert
from allmem_mlx.convert.gguf.families import ARCHITECTURES
from allmem_mlx.convert.gguf.file import read_header
from allmem_mlx.errors import AllMemError, SettingError

FILES = 300
SECONDS = 20  # for one file; it takes less than one
NUMBERS = (0, 1, 7, 8, 9, 30, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
SIZES = {"window": 48, "sinks": 4, "chunk": 64}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A file, and where its data starts."""
    folder = tmp_path_factory.mktemp("good")
    base = tiny_base_folder(
        folder / "base", "llama", hidden_size=32, intermediate_size=32
    )
    save_gguf(base, folder / "good.gguf", **{"general.alignment": 32})
    _, tensors = read_header(folder / "good.gguf")
    data = min(tensor.offset for tensor in tensors.values())
    return (folder / "good.gguf").read_bytes(), data


def flip_bits(content, start, stop, rng):
    for _ in range(rng.randint(1, 6)):
        content[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)


def set_number(content, start, stop, rng):
    size = rng.choice((4, 8))
    at = rng.randrange(start, stop - 8)
    number = rng.choice(NUMBERS) % 2 ** (8 * size)
    content[at : at + size] = number.to_bytes(size, "little")


def fill(content, start, stop, rng):
    at = rng.randrange(start, stop)
    size = rng.randint(1, 64)
    content[at : at + size] = bytes([rng.choice((0, 32, 255))]) * size


def delete(content, start, stop, rng):
    at = rng.randrange(start, stop)
    del content[at : at + rng.randint(1, 64)]


def repeat(content, start, stop, rng):
    at = rng.randrange(start, stop)
    content[at:at] = content[at : at + rng.randint(1, 64)]


def truncate(content, start, stop, rng):
    del content[rng.randrange(start, stop) :]


DAMAGE = (flip_bits, set_number, fill, delete, repeat, truncate)


def corrupted(good, seed) -> bytes:
    content, data = bytearray(good[0]), good[1]
    rng = random.Random(seed)
    # The start, metadata and tensors' places, all of the header, values of tensors.
    regions = (
        (0, 24),
        (24, data),
        (24, 700),
        (data - 1500, data),
        (data, len(content)),
    )
    rng.choice(DAMAGE)(content, *rng.choice(regions), rng)
    return bytes(content)


# In the place of any value of the metadata.
VALUES = (
    *(True, False, 0, 1, 2, 3, 7, 31, 10**4, 10**6, 2**32 - 1, 2**63, 2**64 - 1),
    *(0.0, -1.0, 1e-30, 1e30, math.inf, math.nan),
    *("", "0", "llama", "gemma3", "yarn", "linear", "none", "é" * 1000, "a b"),
    *([0], [1] * 128, ["a"], ["a"] * 128, [True, False], [0.5] * 128, ["a b c"]),
)
# Settings that the file does not have.
ADDED = (
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
    *("attention.sliding_window", "attention.sliding_window_pattern"),
    *("rope.dimension_count", "rope.scaling.original_context_length"),
)


def nonsense(values, rng):
    """Metadata of which one or two values are others, of another family or missing."""
    values = dict(values)
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(list(values))
        if rng.random() < 0.2:
            key = f"llama.{rng.choice(ADDED)}"
        values[key] = None if rng.random() < 0.1 else rng.choice(VALUES)
    name = values["general.architecture"]
    if rng.random() < 0.3 or not isinstance(name, str | None):
        name = rng.choice(list(ARCHITECTURES))
        values = {key.replace("llama.", f"{name}."): x for key, x in values.items()}
        values["general.architecture"] = name
    return values


def write_corrupted(good, path, seed) -> None:
    path.write_bytes(corrupted(good, seed))


def write_nonsense(good, path, seed) -> None:
    """A file without damage, but made by a program that is wrong."""
    path.write_bytes(good[0])
    metadata, tensors = read_header(path)
    arrays = {name: x.read(0, x.rows).reshape(x.shape) for name, x in tensors.items()}
    write_gguf(path, nonsense(metadata.values, random.Random(seed)), arrays)


PART = "tiny-{:05}-of-{:05}.gguf"
SPLIT = ("split.no", "split.count", "split.tensors.count", "general.architecture")


def write_parts(good, path, seed) -> None:
    """Files of a model in several, of which one or two are renamed, missing or say what
    is not so."""
    rng = random.Random(seed)
    path.write_bytes(good[0])
    metadata, tensors = read_header(path)
    arrays = {name: x.read(0, x.rows).reshape(x.shape) for name, x in tensors.items()}
    count = rng.randint(2, 4)
    names = [PART.format(i + 1, count) for i in range(count)]
    for i, name in enumerate(names):
        own = dict.fromkeys(SPLIT[:3], 0)
        own |= {"split.no": i, "split.count": count, "split.tensors.count": len(arrays)}
        values = {**metadata.values, **own} if i == 0 else own
        chosen = {key: x for j, (key, x) in enumerate(arrays.items()) if j % count == i}
        if rng.random() < 0.3:
            key = rng.choice(SPLIT)
            values[key] = None if rng.random() < 0.2 else rng.choice(VALUES)
        if not isinstance(values.get("general.architecture"), str | None):
            values["general.architecture"] = "llama"
        if rng.random() < 0.1:
            chosen.pop(rng.choice(list(chosen)))
        write_gguf(path.with_name(name), values, chosen)
    if rng.random() < 0.2:
        file = path.with_name(rng.choice(names))
        file.write_bytes(corrupted((file.read_bytes(), 200), seed))
    if rng.random() < 0.2:
        a, b = (path.with_name(rng.choice(names)) for _ in range(2))
        rng.choice((lambda: a.unlink(), lambda: b.write_bytes(a.read_bytes())))()
    left = [name for name in names if path.with_name(name).exists()]
    path.unlink()
    path.with_name("given").write_text(rng.choice(left))


OTHERS = (
    *("qwen3_5_moe", "qwen3_next", "gemma4", "gemma4, experts", "gpt_oss", "lfm2_moe"),
    *("granitemoehybrid", "nemotron_h, experts", "glm4_moe", "falcon_h1", "qwen3_moe"),
)


def other_shape(x, rng):
    """A tensor that is cut, turned or flat."""
    return np.ascontiguousarray(
        rng.choice(
            (
                lambda: x[: max(len(x) // 2, 1)],
                lambda: x[..., : max(x.shape[-1] // 2, 1)],
                lambda: x.T,
                lambda: x.reshape(-1),
                lambda: x[None],
                lambda: np.concatenate([x, x]),
                lambda: -x,
            )
        )()
    )


def write_other(others, path, seed) -> None:
    """Files of mixtures and of recurrent models, in which values of the metadata are
    others, and tensors are missing or of another shape."""
    rng = random.Random(seed)
    path.write_bytes(others[seed % len(others)])
    metadata, tensors = read_header(path)
    values = dict(metadata.values)
    arrays = {name: x.read(0, x.rows).reshape(x.shape) for name, x in tensors.items()}
    name = values["general.architecture"]
    keys = [key for key in values if key.startswith(f"{name}.")]
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice(keys)
        new = rng.choice((*VALUES, *(values[rng.choice(keys)] for _ in range(20))))
        values[key] = None if rng.random() < 0.2 else new
    for _ in range(rng.choice((0, 0, 1))):
        tensor = rng.choice(list(arrays))
        x = arrays.pop(tensor)
        if rng.random() < 0.7:
            arrays[tensor] = other_shape(x, rng)
    write_gguf(path, values, arrays)


def is_refused(folder, seed) -> bool:
    """Or it is converted; anything else is an error."""
    given, before = folder / "tiny.gguf", sorted(folder.iterdir())
    if not given.exists():
        given = folder / (folder / "given").read_text()
    signal.alarm(SECONDS)
    try:
        convert(given, folder / "new", **SIZES)
    except AllMemError as error:
        named = isinstance(error, SettingError) or "/tiny" in str(error)
        assert named and "\n" not in str(error), seed
        refused = True
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    else:
        shutil.rmtree(folder / "new")
        refused = False
    signal.alarm(0)
    assert sorted(folder.iterdir()) == before, seed
    return refused


def refusals(write, good, folder, seeds) -> tuple[int, int]:
    """How many files are refused, and by how much the process grows."""

    def hang(*args):
        raise TimeoutError(f"longer than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, hang)
    before, refused = peak(), 0
    for seed in seeds:
        for file in folder.iterdir():
            file.unlink()
        write(good, folder / "tiny.gguf", seed)
        refused += is_refused(folder, seed)
    return refused, peak() - before


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Files of other families."""
    folder = tmp_path_factory.mktemp("others")
    for i, name in enumerate(OTHERS):
        family, changed = CASES[name]
        base = save_family(folder / str(i), family, complete(changed))
        save_gguf(base, folder / f"{i}.gguf")
    return [(folder / f"{i}.gguf").read_bytes() for i in range(len(OTHERS))]


@pytest.mark.parametrize("block", slow_beyond(1, range(0, FILES // 2, 50)))
def test_other_families(others, tmp_path, block):
    seeds = range(block, block + 50)
    refused, growth = alone(refusals, write_other, others, tmp_path, seeds)
    assert 10 < refused < 50
    assert growth < 2**27


@pytest.mark.parametrize("block", slow_beyond(1, range(0, FILES, 50)))
@pytest.mark.parametrize("write", [write_corrupted, write_nonsense, write_parts])
def test_files_that_are_wrong(good, tmp_path, write, block):
    seeds = range(block, block + 50)
    refused, growth = alone(refusals, write, good, tmp_path, seeds)
    assert 10 < refused < 50
    assert growth < 2**26
