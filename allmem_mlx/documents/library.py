"""Libraries of the ``documents`` extra, imported when a document needs them."""

from typing import Any

from .. import errors


def import_library(module: str, name: str, kind: str, package: str = "") -> Any:
    """Imports a module that only documents of one kind need.

    Args:
        module (str): the module.
        name (str): the document's name in messages.
        kind (str): the kind of document, with its article.
        package (str): the package to install, if its name is not the module's.

    Raises:
        MissingLibrary: if it is not installed.
    """
    package = package or module.partition(".")[0]
    need = f"{name} is {kind}; reading it needs {package}"
    return errors.import_library(module, need, "documents")
