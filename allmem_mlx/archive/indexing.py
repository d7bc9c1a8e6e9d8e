"""A document on its way from its files into an archive and to a model."""

from collections.abc import Callable, Iterator
from typing import Any

from ..documents import Document
from ..errors import AllMemError
from .archive import Archive
from .keys import document_key
from .schema import ArchiveError


class IndexedDocument:
    """The tokens of a document, which an archive has before a model reads them.

    A file is added to the archive as a whole, in seconds, by :meth:`index`. Standard
    input and pipes are added while they are read.

    Args:
        archive (Archive): the archive.
        document (Document): the document.
        begun (str): the key of a pipe that a state has begun to read, and that comes
            again; ``None`` for a new document.
        allow_special_tokens (bool): see ``Document.pieces``.

    Attributes:
        key (str): the document's name in states.
        ahead (bool): whether it is indexed first.
    """

    def __init__(
        self,
        archive: Archive,
        document: Document,
        begun: str | None = None,
        allow_special_tokens: bool = False,
    ):
        self.archive, self.document = archive, document
        self._trusted = allow_special_tokens
        self.ahead = document.size is not None
        self.key = document_key(document, allow_special_tokens)
        if not self.ahead and begun is not None and archive.entry(begun) is not None:
            self.key = begun
        self._failure: AllMemError | None = None

    def index(self, progress: Callable[[int], Any] = lambda tokens: None) -> None:
        """Adds a file to the archive. If it turns out to be damaged, the part before
        the damage is added, and iteration fails where it ends.

        Args:
            progress: called with the tokens so far.

        Raises:
            ArchiveError: if the archive cannot be written.
        """
        if not self.ahead:
            return
        try:
            self.archive.add(
                self.document, self._trusted, progress, self.key, partly=True
            )
        except ArchiveError:
            raise
        except AllMemError as error:
            self._failure = error

    @property
    def tokens(self) -> int | None:
        """The number of tokens; ``None`` if it is not known yet."""
        entry = self.archive.entry(self.key) if self.ahead else None
        return None if entry is None else entry.tokens

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the ids of the document's tokens.

        Raises:
            AllMemError: where the document cannot be read any further.
        """
        if not self.ahead:
            yield from self.archive.stream(self.document, self.key, self._trusted)
            return
        entry = self.archive.entry(self.key)
        if entry is not None:
            yield from self.archive.tokens(entry)
        if self._failure is not None:
            raise self._failure
