"""EPUB: the chapters of its spine in order, each parsed by :mod:`html`.

Notes, and a table of contents in the spine, stay in their place.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from ...errors import AllMemError, reason
from .html import decode, sections, xhtml_tree
from .part import Part, Warn, one_line
from .zip_archive import ZipArchive, resolve

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")


class _Book(NamedTuple):
    chapters: list[str]  # members in reading order
    titles: dict[str, str]  # of chapters, from the table of contents


def parse_epub(file: BinaryIO, name: str, warn: Warn) -> Iterator[Part]:
    """Yields the text of each section of each chapter.

    The section is the chapter's title in the table of contents, up to the second of its
    headings h1 to h3, and the last of these headings from there on. A chapter without a
    title begins with its first heading, or continues the section before it.

    Raises:
        AllMemError: if a file that the book needs is missing or encrypted, or a chapter
            has more than 32 MiB.
    """
    archive = ZipArchive(file, name)
    book = _open(archive, warn)
    section, empty = None, True
    for number, chapter in enumerate(book.chapters, 1):
        tree = _tree(archive, chapter)
        parts = list(sections(tree, f"{chapter!r} in {name}"))
        headings = [heading for heading, _ in parts if heading]
        section = book.titles.get(chapter) or next(iter(headings), section)
        for heading, text in parts:
            if heading and heading != headings[0]:
                section = heading
            # A chapter ends with an empty line.
            end = "\n" if text is parts[-1][1] and not text.endswith("\n\n") else ""
            yield Part(text + end, section=section, done=number / len(book.chapters))
            empty = False
    if empty:
        raise AllMemError(
            f"{name} is an EPUB without text; if its pages are pictures, convert it to "
            "PDF and add the text by OCR: ocrmypdf OLD NEW"
        )


def _tree(archive: ZipArchive, member: str) -> Any:
    text = decode(archive.read(member))
    return xhtml_tree(text, f"{member!r} in {archive.name}")


def _open(archive: ZipArchive, warn: Warn) -> _Book:
    rootfile = _first(archive.xml(CONTAINER), "rootfile")
    if rootfile is None or not (package := resolve("", rootfile.get("full-path", ""))):
        raise AllMemError(
            f"{archive.name} names no package file in {CONTAINER!r}; get a whole copy"
        )
    root = archive.xml(package)
    items = {item.get("id"): item for item in root.iter("{*}item")}
    chapters: dict[str, None] = {}  # each once, in order
    for reference in root.iter("{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            raise AllMemError(
                f"{archive.name} lacks the chapter {reference.get('idref')!r} of its "
                "spine; get a whole copy"
            )
        if item.get("media-type") in PAGES:
            chapters[resolve(package, item.get("href", ""))] = None
    missing = [chapter for chapter in chapters if chapter not in archive]
    if missing:
        raise AllMemError(
            f"{archive.name} lacks {len(missing)} of the {len(chapters)} files of its "
            f"spine, {missing[0]!r} first; get a whole copy"
        )
    _check_encryption(archive, chapters)
    return _Book(list(chapters), _titles(archive, package, items, warn))


def _check_encryption(archive: ZipArchive, chapters: dict[str, None]) -> None:
    if ENCRYPTION not in archive:
        return
    for data in archive.xml(ENCRYPTION).iter("{*}EncryptedData"):
        target = _first(data, "CipherReference")
        # Encrypted fonts do not matter.
        if target is not None and resolve("", target.get("URI", "")) in chapters:
            raise AllMemError(
                f"{archive.name} is encrypted (DRM), so that its text cannot be read; "
                "use a copy without DRM"
            )


def _titles(
    archive: ZipArchive,
    package: str,
    items: dict[str, Any],
    warn: Warn,
) -> dict[str, str]:
    """The first title of each member in the table of contents."""
    titles: dict[str, str] = {}
    for item in items.values():
        member = resolve(package, item.get("href", ""))
        if member not in archive:
            continue
        if "nav" in item.get("properties", "").split():
            links = _nav
        elif item.get("media-type") == "application/x-dtbncx+xml":
            links = _ncx
        else:
            continue
        try:
            found = list(links(archive, member))
        except (AllMemError, SyntaxError) as error:
            warn(f"its table of contents {member!r} is not used ({reason(error)})")
            continue
        for reference, text in found:
            if title := one_line(text):
                titles.setdefault(resolve(member, reference), title)
    return titles


def _nav(archive: ZipArchive, member: str) -> Iterator[tuple[str, str]]:
    """Links and titles in the navigation document of EPUB 3."""
    for nav in _tree(archive, member).iter("nav"):
        kinds = [value for key, value in nav.attrib.items() if key.endswith("type")]
        if not kinds or "toc" in kinds[0].split():
            for link in nav.iter("a"):
                yield link.get("href", ""), "".join(link.itertext())


def _ncx(archive: ZipArchive, member: str) -> Iterator[tuple[str, str]]:
    """Links and titles in the table of contents of EPUB 2."""
    for point in archive.xml(member).iter("{*}navPoint"):
        label, content = _first(point, "text"), _first(point, "content")
        if label is not None and content is not None:
            yield content.get("src", ""), label.text or ""


def _first(root: Any, tag: str) -> Any:
    return next(root.iter(f"{{*}}{tag}"), None)
