"""DOCX: a part for each paragraph and each row of a table.

python-docx gives the text of a run. Tracked insertions are included, deletions are not.
A table row is a line with its cells separated by tabs. A reference to a footnote or
endnote is ``[1]``, and the note's text is at the end, under a line ``Notes``. The text
of a text box follows its paragraph. Comments, running headers and footers, the numbers
of lists and pictures are left out.
"""

import posixpath
import re
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from ...errors import AllMemError
from ..library import import_library
from .part import SAFE_XML, Part, Warn, one_line
from .zip_archive import ZipArchive, resolve

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
P, R, TR, TC, BOX = (f"{W}{tag}" for tag in ("p", "r", "tr", "tc", "txbxContent"))
FORMULA = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
NOTES = ("footnote", "endnote")
# Deletions, text moved away, properties, phonetic guides, and the substitutes that old
# versions of Word show for drawings.
LEFT_OUT = {f"{W}{tag}" for tag in ("del", "moveFrom", "pPr", "rPr", "rt")} | {
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
}
HEADING = re.compile(r"heading [1-9]|title", re.IGNORECASE)
LEVELS = set("012345678")  # outline levels of headings; 9 is body text

Numbers = dict[tuple[str, str | None], int]  # numbers of notes by kind and id


def parse_docx(file: BinaryIO, name: str, warn: Warn) -> Iterator[Part]:
    """Yields the text of each paragraph and each row of a table.

    The section is the last paragraph, itself included, that has an outline level, or a
    style that is, or is based on, that of a heading or the title.

    Raises:
        AllMemError: if it is damaged, or has no text.
    """
    archive = ZipArchive(file, name)
    document = _related(archive, "").get("officeDocument", "word/document.xml")
    related = _related(archive, document)
    headings = _heading_styles(archive, related.get("styles"))
    for kind in NOTES:
        member = related.get(f"{kind}s")
        if member is not None and member not in archive:
            del related[f"{kind}s"]
            warn(f"its {kind}s are missing ({member!r})")
    notes: Numbers = {}
    section, empty, size = None, True, archive.size(document)
    with archive.open(document) as stream:
        for element in _elements(stream, name, P, TR):
            if element.tag == TR:
                texts = [_row(element, notes)]
            else:
                texts = _texts(element, notes)
                if _is_heading(element, headings):
                    section = one_line(texts[0]) or section
            for text in texts:
                empty = empty and not text.strip()
                yield Part(f"{text}\n", section=section, done=stream.tell() / size)
    if empty:
        raise AllMemError(
            f"{name} is a Word document without text; if its pages are pictures, "
            "export it as PDF and add the text by OCR: ocrmypdf OLD NEW"
        )
    if notes:
        yield Part("\nNotes\n", section="Notes", done=1.0)
        for kind in NOTES:
            if member := related.get(f"{kind}s"):
                with archive.open(member) as stream:
                    for note in _elements(stream, name, f"{W}{kind}"):
                        number = notes.get((kind, note.get(f"{W}id")))
                        if number is not None:
                            text = f"[{number}] {_inline(note, notes)}\n"
                            yield Part(text, section="Notes", done=1.0)


def _elements(stream: IO[bytes], name: str, *tags: str) -> Iterator[Any]:
    """Yields the outermost elements with these tags, and frees each after use."""
    etree = import_library("lxml.etree", name, "a Word document")
    docx = import_library("docx.oxml", name, "a Word document", "python-docx")
    events = etree.iterparse(
        stream, tag=tags, remove_comments=True, remove_pis=True, **SAFE_XML
    )
    events.set_element_class_lookup(docx.parser.element_class_lookup)
    checked = False
    for _, element in events:
        if not checked:
            _check_root(element.getroottree().getroot(), name)
            checked = True
        if next(element.iterancestors(*tags), None) is None:
            yield element
            element.clear()
            for done in (element, *element.iterancestors()):
                while done.getprevious() is not None:
                    del done.getparent()[0]
    if not checked:
        _check_root(events.root, name)


def _check_root(root: Any, name: str) -> None:
    if root.getroottree().docinfo.doctype:
        raise AllMemError(
            f"{name} has a document type declaration, as no Word document does, and is "
            "not read; save it anew"
        )
    if not root.tag.startswith(W):
        raise AllMemError(
            f"{name} is not in the usual format of Word (its root is {root.tag!r}); "
            "save it as .docx, not as Strict Open XML"
        )


def _texts(paragraph: Any, notes: Numbers) -> list[str]:
    """The text of a paragraph, and of each paragraph of the text boxes in it."""
    boxed = next(paragraph.iter(BOX), None) is not None
    others = _inside(paragraph, P, nested=True) if boxed else ()
    return ["".join(_pieces(x, notes)) for x in (paragraph, *others)]


def _row(row: Any, notes: Numbers) -> str:
    return "\t".join(_inline(cell, notes) for cell in _inside(row, TC))


def _inline(element: Any, notes: Numbers) -> str:
    """The text of the paragraphs in an element, as one line."""
    paragraphs = _inside(element, P, nested=True)
    return one_line(" ".join("".join(_pieces(x, notes)) for x in paragraphs))


def _inside(element: Any, tag: str, nested: bool = False) -> Iterator[Any]:
    """Elements with a tag in another, at any depth; those in each other only if
    ``nested``."""
    for child in element:
        if child.tag not in LEFT_OUT:
            if child.tag == tag:
                yield child
            if child.tag != tag or nested:
                yield from _inside(child, tag, nested)


def _pieces(element: Any, notes: Numbers) -> Iterator[str]:
    """The text of runs and formulas, and the numbers of notes."""
    for child in element:
        tag = child.tag
        if tag in LEFT_OUT or tag == BOX:
            continue
        if tag in (R, FORMULA):
            yield child.text or ""
        elif tag in (f"{W}footnoteReference", f"{W}endnoteReference"):
            kind = tag.removeprefix(W).removesuffix("Reference")
            number = notes.setdefault((kind, child.get(f"{W}id")), len(notes) + 1)
            yield f"[{number}]"
        if len(child):
            yield from _pieces(child, notes)


def _is_heading(paragraph: Any, headings: set[str]) -> bool:
    level = paragraph.find(f"{W}pPr/{W}outlineLvl")
    if level is not None:
        return level.get(f"{W}val") in LEVELS
    return paragraph.style in headings


def _heading_styles(archive: ZipArchive, member: str | None) -> set[str]:
    """The ids of heading styles, which depend on Word's language."""
    if member is None or member not in archive:
        return set()
    # Whether a style is a heading's, if it says so, and the style that it is based on.
    known: dict[str, tuple[bool | None, str | None]] = {}
    for style in archive.xml(member).iter(f"{W}style"):
        name, base, level = (
            None if x is None else x.get(f"{W}val", "")
            for x in map(
                style.find, (f"{W}name", f"{W}basedOn", f"{W}pPr/{W}outlineLvl")
            )
        )
        heading = None if level is None else level in LEVELS
        if heading is None and name and HEADING.fullmatch(name):
            heading = True
        known[style.get(f"{W}styleId")] = heading, base
    headings = set()
    for style in known:
        base, chain = style, set()
        while base in known and base not in chain and known[base][0] is None:
            chain.add(base)
            base = known[base][1]
        if base in known and known[base][0]:
            headings.add(style)
    return headings


def _related(archive: ZipArchive, part: str) -> dict[str, str]:
    """The members related to another, by the kinds of their relations."""
    folder, file = posixpath.split(part)
    member = posixpath.join(folder, "_rels", f"{file}.rels")
    if member not in archive:
        return {}
    return {
        relation.get("Type", "").rpartition("/")[2]: resolve(
            part, relation.get("Target")
        )
        for relation in archive.xml(member)
        if relation.get("Target") and relation.get("TargetMode") != "External"
    }
