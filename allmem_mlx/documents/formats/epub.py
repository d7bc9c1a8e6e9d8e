"""EPUB: the chapters of its spine, one after another, each as :mod:`html` reads it.

Notes, and a table of contents that is in the spine, stay where the spine has them.
"""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from ...errors import AllMemError, reason
from .archive import Archive, resolve
from .html import decode, parse_xhtml, sections
from .part import Part, one_line

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")


class _Book(NamedTuple):
    chapters: list[str]  # members in reading order
    titles: dict[str, str]  # of chapters, from the table of contents


def read_epub(file: BinaryIO, name: str, warn: Callable[[str], None]) -> Iterator[Part]:
    """Yields the text of each section of each chapter.

    The section is the chapter's title in the table of contents, until the second of its
    headings h1 to h3, and from then on the nearest of them. A chapter without a title
    begins with its first heading, or goes on with the section before it.

    Raises:
        AllMemError: if a file that the book needs is missing or encrypted, or a chapter
            has more than 32 MiB.
    """
    archive = Archive(file, name)
    book = _open(archive, warn)
    section, empty = None, True
    for number, chapter in enumerate(book.chapters, 1):
        tree = parse_xhtml(decode(archive.read(chapter)), f"{chapter!r} in {name}")
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


def _open(archive: Archive, warn: Callable[[str], None]) -> _Book:
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


def _check_encryption(archive: Archive, chapters: dict[str, None]) -> None:
    if ENCRYPTION not in archive:
        return
    for data in archive.xml(ENCRYPTION).iter("{*}EncryptedData"):
        target = _first(data, "CipherReference")
        # Encrypted fonts keep no one from reading the text.
        if target is not None and resolve("", target.get("URI", "")) in chapters:
            raise AllMemError(
                f"{archive.name} is encrypted (DRM), so that its text cannot be read; "
                "use a copy without DRM"
            )


def _titles(
    archive: Archive,
    package: str,
    items: dict[str, Any],
    warn: Callable[[str], None],
) -> dict[str, str]:
    """The first title that the table of contents has for each member."""
    titles: dict[str, str] = {}
    for item in items.values():
        member = resolve(package, item.get("href", ""))
        if member not in archive:
            continue
        if "nav" in item.get("properties", "").split():
            read = _nav
        elif item.get("media-type") == "application/x-dtbncx+xml":
            read = _ncx
        else:
            continue
        try:
            found = list(read(archive, member))
        except (AllMemError, SyntaxError) as error:
            warn(f"its table of contents {member!r} is not used ({reason(error)})")
            continue
        for reference, text in found:
            if title := one_line(text):
                titles.setdefault(resolve(member, reference), title)
    return titles


def _nav(archive: Archive, member: str) -> Iterator[tuple[str, str]]:
    """Links and titles in the navigation document of EPUB 3."""
    tree = parse_xhtml(decode(archive.read(member)), f"{member!r} in {archive.name}")
    for nav in tree.iter("nav"):
        kinds = [value for key, value in nav.attrib.items() if key.endswith("type")]
        if not kinds or "toc" in kinds[0].split():
            for link in nav.iter("a"):
                yield link.get("href", ""), "".join(link.itertext())


def _ncx(archive: Archive, member: str) -> Iterator[tuple[str, str]]:
    """Links and titles in the table of contents of EPUB 2."""
    for point in archive.xml(member).iter("{*}navPoint"):
        label, content = _first(point, "text"), _first(point, "content")
        if label is not None and content is not None:
            yield content.get("src", ""), label.text or ""


def _first(root: Any, tag: str) -> Any:
    return next(root.iter(f"{{*}}{tag}"), None)
