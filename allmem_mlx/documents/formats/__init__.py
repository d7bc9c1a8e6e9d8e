"""Documents that are not plain text as streams of text, recognised by their content.

PDF, EPUB, DOCX, HTML and RTF are parsed. Other recognised kinds of files are refused
with advice. Nothing is fetched from the network, and nothing is written to disk.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ...errors import AllMemError, reason
from .docx import parse_docx
from .epub import CONTAINER, parse_epub
from .html import parse_html, starts_page
from .part import Parser, Part, Warn
from .pdf import parse_pdf
from .rtf import parse_rtf
from .zip_archive import ZipArchive

__all__ = ["Parser", "Part", "find_parser", "looks_like_format"]

PDF = re.compile(rb"%PDF-\d")
ZIP = re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)")

PICTURE = "is a picture; OCR makes a PDF with text: ocrmypdf --image-dpi 300 OLD NEW"
# The offset and the pattern of a signature, and the advice for such a file.
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
# By a folder in the archive.
OFFICE = {
    "xl": "is an Excel workbook; export it as CSV or PDF",
    "ppt": "is a PowerPoint presentation; export it as PDF",
    "visio": "is a Visio drawing; export it as PDF",
}


def looks_like_format(head: bytes) -> bool:
    """Whether a file that begins so may be other than plain text, in which case a
    parser needs a file with random access."""
    return bool(
        PDF.search(head, 0, 1024)
        or ZIP.match(head)
        or head.startswith(rb"{\rtf")
        or starts_page(head)
        or _refusal(head)
    )


def find_parser(head: bytes, file: BinaryIO, name: str) -> Parser | None:
    """The parser of a file, chosen by its content and not by its name.

    Args:
        head (bytes): its first 64 KiB, or all of it.
        file (BinaryIO): the file, with random access.
        name (str): its name in messages.

    Returns:
        Parser, optional: ``None`` if the file is in none of the formats, but may be
        text.

    Raises:
        AllMemError: if files of its kind cannot be read, with advice.
    """
    if refusal := _refusal(head):
        raise AllMemError(f"{name} {refusal}")
    if _is_pdf(head, file):
        return _guarded(parse_pdf, "PDF")
    if ZIP.match(head):
        return _zip_parser(file, name)
    if head.startswith(rb"{\rtf"):
        return _guarded(parse_rtf, "RTF document")
    if starts_page(head):
        return _guarded(parse_html, "HTML page")
    return None


def _refusal(head: bytes) -> str | None:
    for offset, pattern, advice in REFUSED:
        if re.compile(pattern, re.DOTALL).match(head, offset):
            return advice
    return None


def _is_pdf(head: bytes, file: BinaryIO) -> bool:
    if PDF.match(head.lstrip(b"\xef\xbb\xbf\0 \t\r\n")):
        return True
    if not PDF.search(head, 0, 1024):
        return False
    # Other bytes may precede it; a text about PDF does not end like one.
    file.seek(max(0, file.seek(0, 2) - 1024))
    return b"%%EOF" in file.read(1024)


def _zip_parser(file: BinaryIO, name: str) -> Parser:
    archive = ZipArchive(file, name)
    kind = b""
    if "mimetype" in archive:
        with _errors_as_damage(name, "ZIP archive"):
            kind = archive.read("mimetype").strip()
    if kind == b"application/epub+zip" or CONTAINER in archive:
        return _guarded(parse_epub, "EPUB")
    if kind.startswith(b"application/vnd."):
        raise AllMemError(
            f"{name} is an OpenDocument file; export it as PDF, DOCX or text"
        )
    if "[Content_Types].xml" in archive:
        folders = {member.partition("/")[0] for member in archive.names()}
        if "word" in folders:
            return _guarded(parse_docx, "Word document")
        for folder in folders & OFFICE.keys():
            raise AllMemError(f"{name} {OFFICE[folder]}")
    raise AllMemError(
        f"{name} is a ZIP archive, but neither EPUB nor DOCX; unpack it and give the "
        "folder"
    )


def _guarded(parse: Parser, kind: str) -> Parser:
    def parser(file: BinaryIO, name: str, warn: Warn) -> Iterator[Part]:
        with _errors_as_damage(name, kind):
            yield from parse(file, name, warn)

    return parser


@contextmanager
def _errors_as_damage(name: str, kind: str) -> Iterator[None]:
    """Reports a library's error as one line about a damaged file."""
    try:
        yield
    except AllMemError:
        raise
    except Exception as error:
        raise AllMemError(
            f"{name} is a damaged {kind} ({reason(error)}); get a whole copy, or "
            "export its text"
        ) from error
