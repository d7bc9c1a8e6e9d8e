"""Libraries of the ``documents`` extra, imported when a document needs them."""

import importlib
from typing import Any

from ..errors import MissingLibrary


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
    try:
        return importlib.import_module(module)
    except ImportError:
        package = package or module.partition(".")[0]
        raise MissingLibrary(
            f"{name} is {kind}; reading it needs {package}: "
            "pip install 'allmem-mlx[documents]'"
        ) from None
