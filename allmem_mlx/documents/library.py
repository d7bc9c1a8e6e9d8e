"""Libraries of the ``documents`` extra, imported when a document needs them."""

from typing import Any

from .. import errors


def import_library(module: str, name: str, kind: str, package: str = "") -> Any:
    """Imports a module for a document of one kind, such as "a PDF"; ``package`` has
    it, if that is not called as the module.

    Raises:
        MissingLibrary: if it is not installed.
    """
    package = package or module.partition(".")[0]
    need = f"{name} is {kind}; reading it needs {package}"
    return errors.import_library(module, need, "documents")
