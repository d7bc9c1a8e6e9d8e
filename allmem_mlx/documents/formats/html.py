"""HTML, and the chapters of EPUB: lxml parses, inscriptis lays out the text.

Headings h1 to h3 begin a section. The head of the page, scripts, styles and elements
hidden by ``hidden`` or ``display: none`` are left out. A table row is a line with its
cells separated by tabs; lists keep their bullets and numbers, without indentation; an
image becomes its alternative text in brackets, or nothing if it has none.
"""

import codecs
import re
from collections.abc import Iterator, Set
from html.entities import html5
from typing import Any, BinaryIO

from ...errors import AllMemError
from ..encodings import marked_encoding
from ..library import import_library
from .part import SAFE_XML, Part, Warn, load_whole, one_line

DEEPEST = 300  # elements within elements; inscriptis recurs
ATTRIBUTES = 10_000  # of an element; the time that lxml takes is quadratic in them

DECLARED = re.compile(
    rb"<(?:meta\b[^>]*?\bcharset|\?xml\b[^>]*?\bencoding)\s*=\s*[\"']?\s*([\w.:-]+)",
    re.IGNORECASE,
)
# Some of Python's codecs are not for pages, or take quadratic time.
ENCODINGS = re.compile(
    r"utf-8|iso8859|cp\d|koi8|mac|shift_jis|euc_|gb|big5|hz|iso2022|tis|johab"
)

# Characters that occur in no text. They mark the start and the end of a heading, a cell
# of a table after the first, and the start and the end of a row.
HEADING, END, CELL, ROW = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
DROPPED = re.compile("[\0-\x08\x0b-\x1f\x7f\ufdd0-\ufdef]")

TAG = re.compile(r"""<[a-z](?>[^<>"']+|"[^"]*"|'[^']*')*+""", re.IGNORECASE)
START = re.compile(
    r"\s*(<\?xml\b[^>]*>)?(?>\s*<!--.*?-->)*+\s*<(!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
HEADINGS, CELLS = ("h1", "h2", "h3"), ("td", "th")
UNSEEN = tuple(f"{{*}}{x}" for x in ("head", "title", "script", "style", "template"))
HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
LINES = (  # elements on lines of their own that inscriptis does not know
    *("caption", "center", "dd", "details", "dl", "dt", "fieldset", "form", "hr"),
    *("legend", "menu", "ol", "option", "section", "summary", "ul"),
)


def starts_page(head: bytes) -> bool:
    """Whether a file that begins so is an HTML page, and not text with tags in it."""
    text = head.decode(marked_encoding(head) or "latin-1", "replace")
    return bool(START.match(text.lstrip("\ufeff")))


def parse_html(file: BinaryIO, name: str, warn: Warn) -> Iterator[Part]:
    """Yields the text of each section of a page of up to 32 MiB.

    The encoding is the first that applies: that of a byte order mark, the declared
    one, UTF-8, Windows-1252.

    Raises:
        AllMemError: if the page is larger, nested too deeply, or has no text.
    """
    data = load_whole(file, name, "an HTML page")
    parts = list(sections(html_tree(decode(data), name), name))
    if not parts:
        raise AllMemError(
            f"{name} is an HTML page without text; if a browser shows some, save or "
            "print it from there as PDF"
        )
    total, done = sum(len(text) for _, text in parts), 0
    for section, text in parts:
        done += len(text)
        yield Part(text, section=section, done=done / total)


def decode(data: bytes) -> str:
    """The text of a page, in the encoding that it declares or seems to have."""
    if marked := marked_encoding(data):
        return _clean(data.decode(marked, "replace").lstrip("\ufeff"))
    declared = DECLARED.search(data[:4096])
    try:
        text = data.decode(declared and _encoding(declared[1].decode()) or "utf-8")
    except UnicodeDecodeError:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
    return _clean(text)


def _clean(text: str) -> str:
    return DROPPED.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _encoding(label: str) -> str | None:
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    if name in ("ascii", "iso8859-1"):
        return "cp1252"  # as in browsers
    return name if ENCODINGS.match(name) else None


def html_tree(text: str, name: str) -> Any:
    """The tree of a page, however malformed."""
    html = import_library("lxml.html", name, "an HTML page")
    # No part of a page of at most 32 MiB is too large; there are no entities to expand.
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True, no_network=True)
    if not text.strip():
        return html.Element("html")
    for tag in TAG.finditer(text):
        if tag.end() - tag.start() > ATTRIBUTES:
            bare = re.sub("\"[^\"]*\"|'[^']*'", " ", tag[0])
            if len(re.findall(r"[\s/]+", bare)) > ATTRIBUTES:
                raise AllMemError(
                    f"{name} is damaged: it has a tag of more than {ATTRIBUTES:,} "
                    "attributes; open it in a browser and copy its text"
                )
    try:
        tree = html.document_fromstring(text.encode("utf-8", "replace"), parser)
    except html.etree.ParserError:  # nothing but comments
        return html.Element("html")
    if any(error.type_name == "ERR_RESOURCE_LIMIT" for error in parser.error_log):
        raise _too_deep(name)
    return tree


def xhtml_tree(text: str, name: str) -> Any:
    """The tree of a page that should be XML; if it is not, it is parsed as HTML."""
    etree = import_library("lxml.etree", name, "an EPUB")
    html = import_library("lxml.html", name, "an EPUB")
    # The DTD that declares these is not loaded.
    text = re.sub(r"&(\w+;)", _character, text)
    data = re.sub(r"^\s*<\?xml.*?\?>", "", text, flags=re.DOTALL)
    parser = html.XHTMLParser(**SAFE_XML)
    try:
        tree = etree.fromstring(data.encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:
        return html_tree(data, name)
    if any(True for _ in tree.iter(etree.Entity)):
        return html_tree(data, name)
    html.xhtml_to_html(tree)
    etree.cleanup_namespaces(tree)
    return tree


def _character(match: re.Match[str]) -> str:
    if match[1] in ("amp;", "lt;", "gt;", "quot;", "apos;"):
        return match[0]
    return html5.get(match[1], match[0])


def sections(tree: Any, name: str) -> Iterator[tuple[str | None, str]]:
    """Yields the heading and the text of each section; the first may have no heading.

    The tree is modified. Each text ends with a newline.

    Raises:
        AllMemError: if its elements are nested more than 300 deep.
    """
    text = _layout(tree, name)
    text = re.sub(rf"[ \n]*{CELL}[ \n]*", "\t", text)
    text = re.sub(rf"[ \n]*(?:{ROW}[ \n]*)+", "\n", text)
    heading = None
    for piece in text.split(HEADING):
        title, found, _ = piece.partition(END)
        heading = found and one_line(title) or heading
        piece = piece.replace(END, "").replace("\u00ad", "")  # soft hyphens
        if piece.strip():
            yield heading, piece if piece.endswith("\n") else f"{piece}\n"


def _layout(tree: Any, name: str) -> str:
    """The text of a tree, with the characters that mark its structure."""
    etree = import_library("lxml.etree", name, "an HTML page")

    def inscriptis(module: str) -> Any:
        return import_library(f"inscriptis.{module}", name, "an HTML page")

    display = inscriptis("html_properties").Display.block
    line = inscriptis("model.html_element").HtmlElement(display=display)
    # No indentation: nested a hundred deep, it would be more than the text.
    css = inscriptis("css_profiles").STRICT_CSS_PROFILE | dict.fromkeys(LINES, line)
    _mark(tree, css.keys() - {"q"} | {"br"})
    etree.strip_elements(tree, *UNSEEN, etree.Comment, etree.PI, with_tail=False)
    etree.strip_tags(tree, "span")
    # Parsed again, text in a thousand pieces becomes one.
    plain = etree.XMLParser(**SAFE_XML | {"huge_tree": True, "recover": True})
    tree = etree.fromstring(etree.tostring(tree, encoding="utf-8"), plain)
    depth = deepest = 0
    for event, _ in etree.iterwalk(tree, ("start", "end")):
        depth += 1 if event == "start" else -1
        deepest = max(depth, deepest)
    if deepest > DEEPEST:
        raise _too_deep(name)
    config = inscriptis("model.config").ParserConfig(css=css)
    text: str = inscriptis("html_engine").Inscriptis(tree, config).get_text()
    return text


def _too_deep(name: str) -> AllMemError:
    return AllMemError(
        f"{name} nests its elements more than {DEEPEST} deep; open it in a browser and "
        "copy its text"
    )


def _mark(tree: Any, known: Set[str]) -> None:
    """Puts the marks into a tree and removes the attributes of its elements.

    Unknown elements become ``span``, which has no layout and may be stripped. Hidden
    ones become ``template``.
    """
    for element in tree.iter():
        tag, attributes = element.tag, element.attrib
        if not isinstance(tag, str):
            continue
        text, end, tail = element.text or "", "", element.tail or ""
        if tag == "img" and (alt := attributes.get("alt", "").strip()):
            text = f"[{alt}]"
        # inscriptis decodes character references again.
        text = text.replace("&", "&amp;")
        if "&" in tail:
            element.tail = tail.replace("&", "&amp;")
        if tag in HEADINGS and any(x.strip() for x in element.itertext()):
            text, end = HEADING + text, END
        elif tag == "tr":
            text, end = ROW + text, ROW
        elif tag == "q":
            text, end = f'"{text}', '"'
        elif tag in CELLS and (before := element.getprevious()) is not None:
            text = CELL + text if before.tag == "span" else text
        if end and len(element):
            element[-1].tail = (element[-1].tail or "") + end
        else:
            text += end
        element.text = text
        if tag in ("table", "tr"):
            element.tag = "section"
        elif tag not in ("html", "body") and (
            "hidden" in attributes or HIDDEN.search(attributes.get("style", ""))
        ):
            element.tag = "template"
        elif tag not in known:
            element.tag = "span"
        attributes.clear()
