"""ZIP archives, which EPUB and DOCX are, opened without trust in what they claim.

Nothing is unpacked to disk, and a member's name is never used as a path there.
"""

import posixpath
import zipfile
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ...errors import AllMemError
from ..library import import_library
from .part import HELD, SAFE_XML

STREAMED = 256 * 2**20  # maximum bytes of a member that is read piece by piece
RATIO = 200  # maximum bytes unpacked from one byte ...
UNSUSPICIOUS = 2**20  # ... of a member that is larger than this


class ZipArchive:
    """The members of a ZIP archive by their names.

    Args:
        file (BinaryIO): the archive.
        name (str): its name in messages.

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
        """The size of a member in bytes, as declared, and at least 1."""
        return max(1, self._zip.getinfo(member).file_size) if member in self else 1

    def names(self) -> list[str]:
        return self._zip.namelist()

    def read(self, member: str) -> bytes:
        """The bytes of a member, at most 32 MiB; raises as :meth:`open` does."""
        with self.open(member, HELD) as stream:
            return stream.read()

    def open(self, member: str, limit: int = STREAMED) -> IO[bytes]:
        """A member as a stream, which ends after the declared size.

        Raises:
            AllMemError: if it is missing, encrypted or larger than ``limit``, or
                unpacks as a ZIP bomb does.
        """
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
        etree = import_library("lxml.etree", self.name, "an EPUB or Word document")
        root = etree.fromstring(self.read(member), etree.XMLParser(**SAFE_XML))
        declared = root.getroottree().docinfo.internalDTD
        if declared is not None and any(True for _ in declared.iterentities()):
            raise AllMemError(
                f"{member!r} in {self.name} declares XML entities, which are not "
                "expanded; export the document anew"
            )
        return root


def resolve(member: str, reference: str) -> str:
    """The member that a URL in another member refers to, without its fragment."""
    path = unquote(urlsplit(reference).path)
    folder = "" if path.startswith("/") else posixpath.dirname(member)
    return posixpath.normpath(posixpath.join(folder, path.lstrip("/")))
