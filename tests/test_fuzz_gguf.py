"""Corrupted GGUF files: each is refused with one line or converts, and nothing else."""

import math
import random
import resource
import shutil
import signal
import sys

import pytest
from gguf_files import save_gguf, write_gguf
from helpers import tiny_base_folder

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


@pytest.fixture
def watched():
    """Ends a test that hangs, and fails one that takes gigabytes."""

    def hang(*args):
        raise TimeoutError(f"longer than {SECONDS} seconds")

    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    handler = signal.signal(signal.SIGALRM, hang)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert peak - before < 1e9


def assert_refused_or_converted(folder, seed) -> bool:
    """Whether it was refused."""
    signal.alarm(SECONDS)
    try:
        convert(folder / "tiny.gguf", folder / "new", **SIZES)
    except AllMemError as error:
        named = isinstance(error, SettingError) or "tiny.gguf" in str(error)
        assert named and "\n" not in str(error), seed
        refused = True
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    else:
        shutil.rmtree(folder / "new")
        refused = False
    signal.alarm(0)
    assert [file.name for file in folder.iterdir()] == ["tiny.gguf"], seed
    return refused


@pytest.mark.parametrize("block", range(0, FILES, 50))
def test_corrupted_files(good, tmp_path, watched, block):
    refused = 0
    for seed in range(block, block + 50):
        (tmp_path / "tiny.gguf").write_bytes(corrupted(good, seed))
        refused += assert_refused_or_converted(tmp_path, seed)
    assert 10 < refused < 50


@pytest.mark.parametrize("block", range(0, FILES, 50))
def test_metadata_that_makes_no_sense(good, tmp_path, watched, block):
    """A file without damage, but made by a program that is wrong."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(good[0])
    metadata, tensors = read_header(path)
    arrays = {name: x.read(0, x.rows).reshape(x.shape) for name, x in tensors.items()}
    refused = 0
    for seed in range(block, block + 50):
        values = nonsense(metadata.values, random.Random(seed))
        write_gguf(path, values, arrays)
        refused += assert_refused_or_converted(tmp_path, seed)
    assert 10 < refused < 50
