"""Errors that a user can mend. Commands print them as one line."""

import importlib
import sys
import textwrap
from contextlib import suppress
from typing import Any


class AllMemError(Exception):
    """Something the user can mend: a file, a folder, a model that does not fit."""

    exit_code = 1


class SettingError(AllMemError, ValueError):
    """A setting that cannot be obeyed."""

    exit_code = 2


class MissingLibrary(AllMemError):
    """A library of an extra that is not installed."""


def import_library(module: str, need: str, extra: str) -> Any:
    """Imports a library that an extra installs, for a need: "FILE needs PACKAGE".

    Raises:
        MissingLibrary: with the need, if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingLibrary(f"{need}: pip install 'allmem-mlx[{extra}]'") from None


def reason(error: BaseException) -> str:
    """The message of an error of another library, in one line of 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(text, 300, placeholder=" ...")


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    with suppress(OSError):  # nobody is there to read it
        print(f"[WARNING] {text}", file=sys.stderr)
