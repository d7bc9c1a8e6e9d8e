"""PDF: a part for each page, in the order in which its text stands in the file."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO

from ...errors import AllMemError
from ..library import import_library
from .page_text import mend
from .part import Part, Warn, one_line

PASSWORD = 4  # PDFium's error for a document that needs one


def parse_pdf(file: BinaryIO, name: str, warn: Warn) -> Iterator[Part]:
    """Yields the text of each page that has any, mended by :mod:`page_text`.

    The section is the last bookmark of the outline at or before the page.

    Raises:
        AllMemError: if it needs a password, is damaged, or has no text.
    """
    pdfium = import_library("pypdfium2", name, "a PDF")
    try:
        document = pdfium.PdfDocument(file)
    except pdfium.PdfiumError as error:
        if error.err_code == PASSWORD:
            raise AllMemError(
                f"{name} is a PDF that needs a password; save a copy without it: "
                "qpdf --decrypt --password=PASSWORD OLD NEW"
            ) from None
        raise
    with closing(document):
        total, damaged, empty = len(document), 0, 0

        def texts() -> Iterator[str]:
            nonlocal damaged, empty
            for index in range(total):
                try:
                    text = _page_text(document, index)
                except pdfium.PdfiumError:
                    damaged += 1
                    text = ""
                else:
                    empty += not text.strip()
                yield text

        starts, titles = _outline(document)
        for index, text in enumerate(mend(texts())):
            if text:
                at = bisect_right(starts, index)
                section = titles[at - 1] if at else None
                yield Part(text, index + 1, section, (index + 1) / total)
        if empty + damaged == total:
            raise AllMemError(
                f"{name} has no text on any page; if it is a scan, OCR adds it: "
                "ocrmypdf OLD NEW"
            )
        if empty:
            warn(
                f"pages without text: {empty} of {total}; if they are scans, OCR adds "
                "it: ocrmypdf OLD NEW"
            )
        if damaged:
            warn(f"damaged pages, which were left out: {damaged} of {total}")


def _page_text(document: Any, index: int) -> str:
    with closing(document[index]) as page, closing(page.get_textpage()) as text_page:
        # PDFium joins the lines at a hyphen and leaves U+FFFE there.
        text: str = text_page.get_text_range()
    return text.replace("\ufffe", "-\n")


def _outline(document: Any) -> tuple[list[int], list[str]]:
    """The pages of bookmarks in ascending order, from 0, and the bookmarks' titles."""
    found = []
    for bookmark in document.get_toc():
        target, title = bookmark.get_dest(), one_line(bookmark.get_title())
        page = target and target.get_index()
        if page is not None and title:
            found.append((page, title))
    found.sort(key=lambda pair: pair[0])
    return [page for page, _ in found], [title for _, title in found]
