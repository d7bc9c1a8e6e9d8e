"""The third level of memory: what was read, word for word, on disk, with the page."""

from .archive import Archive, Passage

__all__ = ["Archive", "Passage"]
