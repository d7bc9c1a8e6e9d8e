"""State files: safetensors whose metadata carry a checksum of every byte.

A file is written whole or not at all, and refused if a bit of it has changed.
"""

import errno
import hashlib
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from .errors import AllMemError
from .files import replacing
from .weight_files import read_header

FORMAT = "allmem-state"
UNSIGNED = "0" * 64  # stands for the checksum while it is computed


def write(
    path: str | Path, arrays: dict[str, mx.array], metadata: dict[str, str]
) -> None:
    """Writes a state file, whole or not at all.

    Args:
        path (str | Path): the file; one that exists is replaced.
        arrays (dict): the arrays by their names.
        metadata (dict): texts by their names; format and checksum are added.

    Raises:
        AllMemError: if it cannot be written; a file that was there is still as it was.
    """
    path = _place(path)
    metadata = {"format": FORMAT, "checksum": UNSIGNED, **metadata}
    try:
        with replacing(path) as temporary:
            mx.save_safetensors(str(temporary), arrays, metadata)
            with open(temporary, "r+b") as file:
                at, checksum = _checksum(file)
                file.seek(at)
                file.write(checksum.encode())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AllMemError(
            f"the state cannot be saved to {str(path)!r} ({reason}); a file that was "
            "there is as it was"
        ) from error


def read_metadata(path: str | Path, version: int) -> tuple[dict[str, str], int]:
    """Reads the metadata of a state file, and verifies its checksum.

    Args:
        path (str | Path): the file.
        version (int): the version of the format that is understood.

    Returns:
        tuple: the metadata without format and checksum; the size of the file in bytes.

    Raises:
        AllMemError: if it is not a state file, is damaged or from another version.
    """
    with _opening(path) as file:
        metadata = _metadata(file)
        if int(metadata["version"]) != version:
            raise AllMemError(
                f"{str(path)!r} has format version {metadata['version']}; this version "
                f"of allmem_mlx reads {version}: read the text again, or use the "
                "version that saved it"
            )
        if _checksum(file)[1] != metadata.pop("checksum"):
            raise ValueError("the checksum is wrong")
        del metadata["format"]
        return metadata, os.fstat(file.fileno()).st_size


def check(path: str | Path) -> None:
    """Refuses another kind of file, at once; :func:`read_metadata` verifies all of it.

    Raises:
        AllMemError: if it cannot be read, or is something else.
    """
    with _opening(path) as file:
        _metadata(file)


def check_place(path: str | Path) -> None:
    """Refuses a place where no state can be saved, before anything is read.

    Raises:
        AllMemError: if the name is impossible, the folder cannot be written to, or the
            file is something else than a state.
    """
    place = _place(path)
    try:
        if place.exists():
            check(place)
        longest = os.pathconf(place.parent, "PC_NAME_MAX")
        if len(os.fsencode(place.name)) > longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise AllMemError(
            f"the state cannot be saved to {str(path)!r} ({error.strerror}); choose "
            "another place"
        ) from None


def _place(path: str | Path) -> Path:
    """The place of a file of this name: a link is followed."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise AllMemError(
            f"the name of a state must be UTF-8: {str(path)!r} is not"
        ) from None
    return Path(os.path.realpath(path))


@contextmanager
def _opening(path: str | Path) -> Iterator[Any]:
    """An open state file; errors while it is read are one line."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise _NotAState  # it would be waited for
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise AllMemError(
            f"{str(path)!r} cannot be read ({error.strerror or error})"
        ) from error
    except _NotAState:
        raise AllMemError(f"{str(path)!r} is not a state file of allmem_mlx") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AllMemError(
            f"{str(path)!r} is damaged or incomplete ({error}); use another copy"
        ) from None


class _NotAState(ValueError):
    """Another kind of file, or a state file whose beginning is lost."""


def _metadata(file: Any) -> dict[str, str]:
    """The metadata of a safetensors file, if it is one of ours."""
    try:
        metadata = read_header(file)["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _NotAState from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _NotAState
    return metadata


def _checksum(file: Any) -> tuple[int, str]:
    """The place of the checksum in a file, and its right value: SHA-256 of the file
    with zeros in that place."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(b'"checksum":"')
        if at < 0:
            raise ValueError("it has no checksum")
        at += len(b'"checksum":"')
        running = hashlib.sha256(content[:at])
        running.update(UNSIGNED.encode())
        with memoryview(content) as view, view[at + len(UNSIGNED) :] as rest:
            running.update(rest)
    return at, running.hexdigest()
