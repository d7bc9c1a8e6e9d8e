"""The third level of memory: documents on disk, word for word, with their pages."""

from .archive import Archive
from .passage import Passage

__all__ = ["Archive", "Passage"]
