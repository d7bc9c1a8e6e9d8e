"""Files and folders that are written whole or not at all, and files of JSON."""

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import AllMemError, reason

# On a full disk, libraries raise exceptions of their own with the system's words in
# them; MLX's begin with these.
UNWRITABLE = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
UNWRITABLE += ["[write]", "[save_safetensors]"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its place once it is on disk."""
    # Not the file's name and more, which may be too long. MLX insists on the suffix.
    handle, name = tempfile.mkstemp(".safetensors", ".allmem.", path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is there; not every file system syncs a folder
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def creating(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file or folder beside ``path``, renamed to it at the end.

    After an error or an interruption nothing is left, not even parents of ``path``.

    Args:
        path (Path): the new file or folder.
        make (callable): ``Path.touch`` or ``Path.mkdir``.

    Raises:
        AllMemError: if ``path`` exists or cannot be written.
    """
    if os.path.lexists(path):
        raise AllMemError(f"{path} already exists; delete it or choose another name")
    missing = [parent for parent in path.parents if not parent.exists()]
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(temporary)
        except OSError as error:
            raise AllMemError(f"{path} cannot be written: {error.strerror}") from None
        yield temporary
        if temporary.is_file():
            _sync(temporary)
        os.rename(temporary, path)
    except AllMemError:
        raise
    except Exception as error:
        for cause in (error, error.__context__):  # PyTorch hides the system's words
            if cause and any(words in str(cause) for words in UNWRITABLE):
                text = f"{path} cannot be written: {reason(cause)}"
                raise AllMemError(text) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()
        for parent in missing:
            with suppress(OSError):  # it holds the new file or folder
                parent.rmdir()


def read_json(file: Path) -> dict[str, Any]:
    """Reads an object from a file of JSON.

    Raises:
        AllMemError: if the file cannot be read or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AllMemError(f"{file} cannot be read: {reason(error)}") from None
    if not isinstance(value, dict):
        raise AllMemError(f"{file} does not hold an object")
    return value
