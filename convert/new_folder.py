"""A folder that appears under its name when it is complete, or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from allmem_mlx.errors import AllMemError

UNWRITABLE = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, renamed to it at the end.

    After an error or an interruption nothing is left, not even parents of ``path``.

    Raises:
        AllMemError: if ``path`` exists or cannot be written.
    """
    if os.path.lexists(path):
        raise AllMemError(f"{path} already exists; delete it or choose another name")
    missing = [parent for parent in path.parents if not parent.exists()]
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        _make(temporary, path)
        yield temporary
        os.rename(temporary, path)
    except AllMemError:
        raise
    except Exception as error:
        # Some libraries raise exceptions of their own with the system's words in them.
        for words in UNWRITABLE:
            if words in str(error):
                raise AllMemError(f"{path} cannot be written: {words}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # it holds the new folder
                parent.rmdir()


def _make(temporary: Path, path: Path) -> None:
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise AllMemError(f"{path} cannot be written: {error.strerror}") from None
