"""ZIP archives, as EPUB and DOCX are, read without trust in what they say.

Nothing is unpacked to disk, and the name of a member is never taken for a path there.
"""

import posixpath
import zipfile
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ...errors import AllMemError
from .part import HELD, library

STREAMED = 256 * 2**20  # the most bytes of a member that is read piece by piece
RATIO = 200  # the most bytes out of one byte in ...
UNSUSPICIOUS = 2**20  # ... if there are more than so many


class Archive:
    """The members of a ZIP archive by their names.

    Args:
        file (BinaryIO): the archive.
        name (str): what messages call it.

    Raises:
        AllMemError: if it is damaged, or its members overlap as those of a ZIP bomb.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # a damaged directory raises a dozen kinds
            raise AllMemError(
                f"{name} is a damaged or incomplete ZIP archive, as EPUB and Word "
                "documents are; get a whole copy"
            ) from error
        size = file.seek(0, 2)
        if sum(member.compress_size for member in self._zip.infolist()) > size:
            raise AllMemError(
                f"{name} is a ZIP archive whose members overlap, and is not unpacked; "
                "get another copy"
            )

    def __contains__(self, member: str) -> bool:
        return member in self._zip.NameToInfo

    def size(self, member: str) -> int:
        """Bytes that a member says it has, and at least 1."""
        return max(1, self._zip.getinfo(member).file_size) if member in self else 1

    def names(self) -> list[str]:
        return self._zip.namelist()

    def read(self, member: str, limit: int = HELD) -> bytes:
        """A member as a whole.

        Raises:
            AllMemError: if it is missing, damaged, encrypted or larger than ``limit``.
        """
        with self.open(member, limit) as stream:
            return stream.read()

    def open(self, member: str, limit: int = STREAMED) -> IO[bytes]:
        """A member to be read piece by piece; it ends where its size says."""
        if member not in self:
            raise AllMemError(f"{self.name} lacks {member!r}; get a whole copy of it")
        info = self._zip.getinfo(member)
        if info.flag_bits & 1:
            raise AllMemError(
                f"{self.name} is encrypted ({member!r}); save it without a password"
            )
        if info.file_size > limit:
            raise AllMemError(
                f"{member!r} in {self.name} unpacks to more than {limit >> 20} MiB; "
                "split it, or export it as text"
            )
        if info.file_size > max(UNSUSPICIOUS, RATIO * info.compress_size):
            raise AllMemError(
                f"{member!r} in {self.name} unpacks to more than {RATIO} times its "
                "size, as a ZIP bomb does, and is not read; export the text by hand"
            )
        return self._zip.open(info)

    def xml(self, member: str) -> Any:
        """The root of an XML member, in which no entity is expanded."""
        etree = library("lxml.etree", self.name, "an EPUB or Word document")
        root = etree.fromstring(self.read(member), xml_parser(etree))
        declared = root.getroottree().docinfo.internalDTD
        if declared is not None and any(True for _ in declared.iterentities()):
            raise AllMemError(
                f"{member!r} in {self.name} declares XML entities, which are not "
                "expanded; export the document anew"
            )
        return root


def xml_parser(etree: Any) -> Any:
    """A parser that takes nothing from outside and expands nothing."""
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )


def resolve(member: str, reference: str) -> str:
    """The member that a URL in another member means, without its fragment."""
    path = unquote(urlsplit(reference).path)
    folder = "" if path.startswith("/") else posixpath.dirname(member)
    return posixpath.normpath(posixpath.join(folder, path.lstrip("/")))
