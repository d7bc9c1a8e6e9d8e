"""Corrupted GGUF files: each is refused with one line or converts, and nothing else."""

import random
import resource
import shutil
import signal
import sys

import pytest
from gguf_files import save_gguf
from helpers import tiny_base_folder

from allmem_mlx.convert import convert
from allmem_mlx.convert.gguf.file import read_header
from allmem_mlx.errors import AllMemError

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


@pytest.mark.parametrize("block", range(0, FILES, 50))
def test_corrupted_files(good, tmp_path, watched, block):
    path, new = tmp_path / "tiny.gguf", tmp_path / "new"
    refused = 0
    for seed in range(block, block + 50):
        path.write_bytes(corrupted(good, seed))
        signal.alarm(SECONDS)
        try:
            convert(path, new, **SIZES)
        except AllMemError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), seed
            assert not new.exists(), seed
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        else:
            shutil.rmtree(new)
        signal.alarm(0)
        assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"], seed
    assert 10 < refused < 50
