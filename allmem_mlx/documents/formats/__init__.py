"""Documents that are not plain text, as streams of text, known by their content.

PDF, EPUB, DOCX, HTML and RTF are read. Other kinds of files that are recognised are
refused with what to do about them. Nothing is fetched from the network, and nothing is
written to disk.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ...errors import AllMemError, reason
from .archive import Archive
from .docx import read_docx
from .epub import CONTAINER, read_epub
from .html import read_html, starts_page
from .part import Part, Reader
from .pdf import read_pdf
from .rtf import read_rtf

__all__ = ["Part", "Reader", "find_reader", "looks_like_format"]

PDF = re.compile(rb"%PDF-\d")
ZIP = re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)")

PICTURE = "is a picture; OCR makes a PDF with text: ocrmypdf --image-dpi 300 OLD NEW"
# Where it stands, what stands there, and what to do.
REFUSED = (
    (
        0,
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "is an old Word document or an encrypted Office document; save it as .docx "
        "without a password",
    ),
    (60, rb"BOOKMOBI|TEXtREAd", "is a Kindle or Palm book; convert it to EPUB"),
    (0, rb"AT&TFORM", "is a DjVu document; convert it: ddjvu -format=pdf OLD NEW"),
    (0, rb"\x04?%!PS", "is a PostScript document; convert it: ps2pdf OLD NEW"),
    (0, rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*", PICTURE),
    (0, rb"RIFF....WEBP", PICTURE),
    (0, rb"BZh[1-9]1AY&SY", "is compressed; decompress it first: bunzip2 FILE"),
    (0, rb"\xfd7zXZ\0", "is compressed; decompress it first: unxz FILE"),
    (0, rb"\x28\xb5\x2f\xfd", "is compressed; decompress it first: unzstd FILE"),
    (0, rb"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it first: 7z x FILE"),
    (0, rb"Rar!\x1a\x07", "is a RAR archive; unpack it first: unrar x FILE"),
    (257, rb"ustar", "is a tar archive; unpack it first: tar -xf FILE"),
)
# By a folder that the archive has.
OFFICE = {
    "xl": "is an Excel workbook; export it as CSV or PDF",
    "ppt": "is a PowerPoint presentation; export it as PDF",
    "visio": "is a Visio drawing; export it as PDF",
}


def looks_like_format(head: bytes) -> bool:
    """Whether a file that begins so may be other than plain text, so that finding its
    reader and reading it take a file that can be sought in."""
    return bool(
        PDF.search(head, 0, 1024)
        or ZIP.match(head)
        or head.startswith(rb"{\rtf")
        or starts_page(head)
        or _refusal(head)
    )


def find_reader(head: bytes, file: BinaryIO, name: str) -> Reader | None:
    """What reads a file, by its content and not by its name.

    Args:
        head (bytes): its first 64 KiB, or all of it.
        file (BinaryIO): the file; it can be sought in.
        name (str): what messages call it.

    Returns:
        Reader, optional: None if the file is none of the formats, but perhaps text.

    Raises:
        AllMemError: if it is of a kind that cannot be read, with what to do about it.
    """
    if refusal := _refusal(head):
        raise AllMemError(f"{name} {refusal}")
    if _is_pdf(head, file):
        return _guarded(read_pdf, "PDF")
    if ZIP.match(head):
        return _archive_reader(file, name)
    if head.startswith(rb"{\rtf"):
        return _guarded(read_rtf, "RTF document")
    if starts_page(head):
        return _guarded(read_html, "HTML page")
    return None


def _refusal(head: bytes) -> str | None:
    for offset, pattern, what in REFUSED:
        if re.compile(pattern, re.DOTALL).match(head, offset):
            return what
    return None


def _is_pdf(head: bytes, file: BinaryIO) -> bool:
    if PDF.match(head.lstrip(b"\xef\xbb\xbf\0 \t\r\n")):
        return True
    if not PDF.search(head, 0, 1024):
        return False
    # Something may stand before it; a text that speaks of PDF does not end like one.
    file.seek(max(0, file.seek(0, 2) - 1024))
    return b"%%EOF" in file.read(1024)


def _archive_reader(file: BinaryIO, name: str) -> Reader:
    archive = Archive(file, name)
    kind = b""
    if "mimetype" in archive:
        with _errors_as_damage(name, "ZIP archive"):
            kind = archive.read("mimetype").strip()
    if kind == b"application/epub+zip" or CONTAINER in archive:
        return _guarded(read_epub, "EPUB")
    if kind.startswith(b"application/vnd."):
        raise AllMemError(
            f"{name} is an OpenDocument file; export it as PDF, DOCX or text"
        )
    if "[Content_Types].xml" in archive:
        folders = {member.partition("/")[0] for member in archive.names()}
        if "word" in folders:
            return _guarded(read_docx, "Word document")
        for folder in folders & OFFICE.keys():
            raise AllMemError(f"{name} {OFFICE[folder]}")
    raise AllMemError(
        f"{name} is a ZIP archive, but neither EPUB nor DOCX; unpack it and give the "
        "folder"
    )


def _guarded(read: Reader, kind: str) -> Reader:
    def reader(
        file: BinaryIO, name: str, warn: Callable[[str], None]
    ) -> Iterator[Part]:
        with _errors_as_damage(name, kind):
            yield from read(file, name, warn)

    return reader


@contextmanager
def _errors_as_damage(name: str, kind: str) -> Iterator[None]:
    """Whatever a library says of a damaged file is one line."""
    try:
        yield
    except AllMemError:
        raise
    except Exception as error:
        raise AllMemError(
            f"{name} is a damaged {kind} ({reason(error)}); get a whole copy, or "
            "export its text"
        ) from error
