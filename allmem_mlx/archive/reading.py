"""A document on its way from its files into an archive and to a model."""

from collections.abc import Callable, Iterator
from typing import Any

from ..documents import Document
from ..errors import AllMemError
from .archive import Archive, key_of
from .database import ArchiveError


class Reading:
    """A document that is indexed first and read second.

    A file is added to the archive as a whole, in seconds, before the model reads it.
    Standard input and pipes are added while they are read.

    Args:
        archive (Archive): where it is added.
        document (Document): what is read.
        begun (str): the key of a pipe of which a state has read the beginning, and
            that comes again; ``None`` for what is new.
        allow_special_tokens (bool): as for ``Document.pieces``.

    Attributes:
        key (str): what a state calls the document.
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
        self.key = key_of(document, allow_special_tokens)
        if not self.ahead and begun is not None and archive.entry(begun) is not None:
            self.key = begun
        self._failure: AllMemError | None = None

    def index(self, progress: Callable[[int], Any] = lambda tokens: None) -> None:
        """Adds a file to the archive. If it turns out to be damaged, what comes before
        is added, and :meth:`pieces` fails where it ends.

        Args:
            progress: called with the tokens so far.

        Raises:
            ArchiveError: if the archive cannot be written.
        """
        entry = self.archive.entry(self.key)
        if not self.ahead or (entry is not None and entry.complete):
            return
        done = 0
        try:
            for ids in self.archive.stream(self.document, self.key, self._trusted):
                progress(done := done + len(ids))
        except ArchiveError:
            raise
        except AllMemError as error:
            self._failure = error
            self.archive.commit()
        except BaseException:
            self.archive.rollback()
            raise

    def pieces(self) -> Iterator[list[int]]:
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
