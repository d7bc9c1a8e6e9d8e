"""Documents are read as the text that they show, part by part, with right marks."""

import io
import re
import subprocess
import sys
import zipfile
import zlib
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from document_files import (
    XHTML,
    archive,
    book,
    docx_members,
    epub_members,
    page,
    paper,
    pdf,
    pdf_stream,
    report,
    unpacked,
)
from processes import alone, peak

from allmem_mlx.documents.formats import Part, find_parser, looks_like_format
from allmem_mlx.documents.formats.page_text import mend
from allmem_mlx.errors import AllMemError

ROOT = Path(__file__).parents[1]
NAME = "'book.pdf'"


def parts_of(data: bytes, warnings: list[str] | None = None) -> list[Part]:
    file, warnings = io.BytesIO(data), [] if warnings is None else warnings
    assert looks_like_format(data[:65536])
    reader = find_parser(data[:65536], file, NAME)
    assert reader is not None
    return list(reader(file, NAME, warnings.append))


def text_of(data: bytes) -> str:
    return "".join(part.text for part in parts_of(data))


def refusal(data: bytes) -> str:
    with pytest.raises(AllMemError) as error:
        parts_of(data)
    message = str(error.value)
    assert NAME in message and len(message.splitlines()) == 1
    return message


def assert_read_as(data: bytes, expected: list[Part]) -> None:
    """The text is equal, and so are the marks at 50 places."""
    read = parts_of(data)
    text = "".join(part.text for part in read)
    assert text == "".join(part.text for part in expected)
    rng = Random(0)
    for _ in range(50):
        place = rng.randrange(len(text))
        actual, right = at(read, place), at(expected, place)
        assert (actual.page, actual.section) == (right.page, right.section), place
    shares = [part.done for part in read]
    assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] == 1


def at(parts: list[Part], place: int) -> Part:
    ends = list(accumulate(len(part.text) for part in parts))
    return parts[bisect_right(ends, place)]


# ---- PDF


@pytest.fixture(scope="module")
def long_report() -> tuple[bytes, list[Part]]:
    return report(300)


def test_pdf_of_300_pages(long_report):
    data, expected = long_report
    assert_read_as(data, expected)
    assert [part.page for part in parts_of(data)] == list(range(1, 301))


def test_pdf_without_outline_has_no_sections():
    data = pdf(pdf_stream(b"BT /F1 12 Tf 72 720 Td (The treaty was signed.) Tj ET"))
    assert parts_of(data) == [Part("The treaty was signed.\n", 1, None, 1.0)]
    # Something before its start does not hide it, and may not make a PDF of a text.
    assert text_of(b"From a mail\r\n\r\n" + data) == "The treaty was signed.\n"
    text = b"A file that starts with %PDF-1.4 is a PDF."
    assert find_parser(text, io.BytesIO(text), NAME) is None


def test_pdf_with_filters():
    import base64

    shown = b"BT /F1 12 Tf 72 720 Td (The treaty was signed.) Tj ET"
    encoded = base64.a85encode(zlib.compress(shown)) + b"~>"
    stream = pdf_stream(encoded, b"/Filter [/ASCII85Decode /FlateDecode] ")
    assert text_of(pdf(stream)) == "The treaty was signed.\n"


def test_pdf_is_read_lazily(long_report):
    """The first page is there before the tenth is parsed."""
    data, expected = long_report

    class Counting(io.BytesIO):
        touched: set[int] = set()

        def readinto(self, buffer):
            start = self.tell()
            self.touched.update(range(start // 1024, (start + len(buffer)) // 1024))
            return super().readinto(buffer)

    file = Counting(data)
    parts = find_parser(data[:65536], file, NAME)(file, NAME, print)
    assert next(parts).text == expected[0].text
    first = len(file.touched)
    list(parts)
    assert first < 0.5 * len(file.touched)


def sizes(*paths: Path) -> list[tuple[int, int]]:
    """Characters of files, and the largest size of the process that has read them."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            parts = find_parser(file.read(65536), file, NAME)(file, NAME, print)
            found.append((sum(len(part.text) for part in parts), peak()))
    return found


def large_epub(chapters: int) -> bytes:
    body = "<p>Some words of a chapter &amp; more of them.</p>" * 2000
    names = [f"c{number}.xhtml" for number in range(chapters)]
    return archive(epub_members(dict.fromkeys(names, body), {}))


def large_docx(rows: int) -> bytes:
    texts = (f"<w:r><w:t>{n} and some words {n * n}</w:t></w:r>" for n in range(rows))
    body = "".join(f"<w:tr><w:tc><w:p>{text}</w:p></w:tc></w:tr>" for text in texts)
    return archive(docx_members(f"<w:tbl>{body}</w:tbl>"))


@pytest.mark.parametrize("kind", ["pdf", "epub", "docx"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_document(kind, tmp_path, long_report):
    if kind == "pdf":
        small, large = report(30)[0], long_report[0]
    else:
        make, size = {"epub": (large_epub, 8), "docx": (large_docx, 4000)}[kind]
        small, large = make(size), make(10 * size)
    (tmp_path / "small").write_bytes(small)
    (tmp_path / "large").write_bytes(large)
    small, large = alone(sizes, tmp_path / "small", tmp_path / "large")
    assert large[0] > 8 * small[0]
    assert large[1] - small[1] < 2**21, (small, large)


def test_encrypted_pdf():
    from reportlab.lib.pdfencrypt import StandardEncryption

    message = refusal(report(2, encrypt=StandardEncryption("secret"))[0])
    assert "password" in message and "qpdf --decrypt" in message
    # A PDF that anyone may open, but not print.
    free = report(12, encrypt=StandardEncryption("", ownerPassword="x", canPrint=0))
    assert_read_as(*free)


def test_broken_pdf(long_report):
    assert "damaged PDF" in refusal(b"%PDF-1.7\n%%EOF")
    assert "damaged PDF" in refusal(b"%PDF-1.7\n" + bytes(range(256)) * 9)


def test_scanned_pdf():
    message = refusal(pdf(pdf_stream(b"0 0 100 100 re f")))
    assert "no text on any page" in message and "ocrmypdf OLD NEW" in message


def test_pages_without_text_are_told_of():
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for number in range(5):
        if number in (0, 3):
            canvas.drawString(72, 700, f"Text {number}")
        canvas.showPage()
    canvas.save()
    warnings = []
    parts = parts_of(buffer.getvalue(), warnings)
    assert [(part.text, part.page) for part in parts] == [
        ("Text 0\n", 1),
        ("Text 3\n", 4),
    ]
    (warning,) = warnings
    assert warning.startswith("pages without text: 3 of 5") and "ocrmypdf" in warning


# ---- the rules of mending


def mended(*pages: str) -> list[str]:
    return list(mend(pages))


def numbered(form: str, count: int = 6) -> list[str]:
    """Pages of three lines of their own, within such lines."""
    rng = Random(1)
    return [
        form.format(n=n, body="\n".join(f"text {rng.random()}" for _ in range(3)))
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    "form",
    [
        "A Title\n{body}\n{n}",
        "{n} | Annual Report 2024\n{body}",
        "{body}\nPage {n} of 6",
        "The Company\nA Title, {n}\n{body}\n7 July 2024\n{n}",
        "A  Title\r\n{body}\r\n - {n} - ",
    ],
)
def test_running_lines_are_dropped(form):
    bodies = numbered("{body}\n")
    assert mended(*numbered(form)) == bodies
    # Two pages are too few to tell.
    kept = "".join(mended(*numbered(form, 2)))
    assert len(kept.splitlines()) == sum(len(x.splitlines()) for x in numbered(form, 2))


def test_lines_that_are_not_running_are_kept():
    # Rows of figures, and a line that is on every fifth page only.
    assert mended(*numbered("{n}.5 {n}{n}\n{body}")) == numbered(
        "{n}.5 {n}{n}\n{body}\n"
    )
    pages = numbered("{body}\n", 20)
    marked = [f"Part\n{x}" if i % 5 == 0 else x for i, x in enumerate(pages)]
    assert mended(*marked) == marked
    # A text that repeats itself, and pages with no more than running lines.
    assert mended(*["ditto\n" * 9] * 9) == ["ditto\n" * 9] * 9
    assert mended(*["A Title\n"] * 9) == ["A Title\n"] * 9
    assert mended() == [] and mended("", "a", "") == ["", "a\n", ""]


def test_headers_that_alternate():
    pages = numbered("{body}\n", 12)
    headers = ["Left {n}", "{n} Right"]
    printed = [f"{headers[i % 2].format(n=i)}\n{x}" for i, x in enumerate(pages)]
    assert mended(*printed) == pages


def test_numbers_that_count_up_otherwise_are_kept():
    pages = [f"Table {2 * n}\n{x}" for n, x in enumerate(numbered("{body}\n"))]
    assert mended(*pages) == pages


def test_hyphens_and_ligatures():
    assert mended("exam-\nple") == ["example\n"]
    assert mended("exam\u2010\nple soft\u00ad\nly so\u00adft") == [
        "example softly soft\n"
    ]
    for kept in (
        "well-\nKnown\n",
        "3-\nb\n",
        "a-\n3\n",
        "a -\nb\n",
        "a-b\nc\n",
        "a-\n\nb\n",
    ):
        assert mended(kept) == [kept]
    assert mended("o\ufb03ce \ufb01ne \ufb06") == ["office fine st\n"]
    assert mended("a\0b\x02\r\nc\td ") == ["ab\nc\td\n"]
    assert mended("exam-", "ple") == ["exam-\n", "ple\n"]


# ---- a PDF of other makers


@pytest.fixture(scope="session")
def manual(once) -> Path:
    """The manual of Libtasn1, made by TeX."""

    def make(folder: Path) -> None:
        apt = ["apt-get", "download", "--quiet", "libtasn1-doc"]
        for command in (apt, ["apt-get", "update"], apt):
            if not any(folder.glob("*.deb")):
                subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)

    try:
        files = list(once("manual", make).rglob("libtasn1.pdf"))
    except (OSError, subprocess.SubprocessError):
        files = []
    if not files:
        pytest.skip("needs Debian's packages")
    return files[0]


def reference_text(path: Path) -> str:
    """What another tool reads."""
    try:
        command = ["pdftotext", str(path), "-"]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout
    except FileNotFoundError:
        pypdf = pytest.importorskip("pypdf")
        return "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)


@pytest.mark.slow
def test_a_real_pdf(manual):
    parts = parts_of(manual.read_bytes())
    ours, theirs = (
        Counter(re.findall(r"\w{3,}", text.lower()))
        for text in ("".join(part.text for part in parts), reference_text(manual))
    )
    common = (ours & theirs).total()
    assert common > 0.95 * ours.total() and common > 0.93 * theirs.total()
    sections = {part.section for part in parts}
    assert "ASN.1 syntax" in sections
    for part in parts:  # the page on which a chapter begins
        if part.text.startswith("1 Introduction"):
            assert (part.page, part.section) == (4, "1 Introduction")
            break
    else:
        raise AssertionError("the first chapter is not there")


# ---- EPUB


@pytest.mark.parametrize("nav", [True, False], ids=["nav", "ncx"])
def test_epub(nav):
    assert_read_as(*book(nav=nav))


@pytest.mark.parametrize(
    "member", ["META-INF/container.xml", "OEBPS/book.opf", "OEBPS/text/chapter 3.xhtml"]
)
def test_epub_that_lacks_a_member(member):
    members = unpacked(book()[0])
    del members[member]
    message = refusal(archive(members))
    assert "lacks" in message and repr(member) in message


def test_epub_whose_spine_names_what_is_not_there():
    members = unpacked(book()[0])
    package = members["OEBPS/book.opf"]
    members["OEBPS/book.opf"] = package.replace(b'idref="c3"', b'idref="nowhere"')
    assert "'nowhere'" in refusal(archive(members))


ENCRYPTED = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"
xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>
<enc:EncryptionMethod Algorithm="{}"/><enc:CipherData><enc:CipherReference URI="{}"/>
</enc:CipherData></enc:EncryptedData></encryption>"""
CIPHER = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"


def test_epub_with_drm():
    data, expected = book()
    members, name = unpacked(data), "META-INF/encryption.xml"
    members[name] = ENCRYPTED.format(CIPHER, "OEBPS/text/chapter%203.xhtml")
    assert "DRM" in refusal(archive(members))
    # Fonts alone may be encrypted, or scrambled.
    members[name] = ENCRYPTED.format(CIPHER, "OEBPS/font.otf")
    assert_read_as(archive(members), expected)


def test_epub_of_bad_xhtml():
    members = epub_members({"a.xhtml": ""}, {})
    members["OEBPS/a.xhtml"] = b"<html><body><p>One<p>Two &hellip; <b>three</p>"
    assert text_of(archive(members)) == "One\n\nTwo … three\n\n"
    members["OEBPS/a.xhtml"] = (
        XHTML.format("<p>Один</p>").replace("utf-8", "windows-1251").encode("cp1251")
    )
    assert text_of(archive(members)) == "Один\n\n"
    members["OEBPS/a.xhtml"] = XHTML.format("<img src='a.png'/>")
    assert "without text" in refusal(archive(members))


def test_epub_whose_table_of_contents_is_damaged():
    members = unpacked(book(nav=False)[0])
    members["OEBPS/toc.ncx"] = members["OEBPS/toc.ncx"][:-30]
    warnings = []
    parts = parts_of(archive(members), warnings)
    assert "".join(x.text for x in parts) == "".join(x.text for x in book()[1])
    assert len(warnings) == 1 and "'OEBPS/toc.ncx' is not used" in warnings[0]


# ---- DOCX


def test_docx():
    assert_read_as(*paper())


def docx_text(body: str) -> str:
    return text_of(archive(docx_members(body)))


def run(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


def test_docx_with_tracked_changes():
    body = (
        f"<w:p>{run('a')}<w:ins>{run('b')}</w:ins><w:del><w:r><w:delText>c</w:delText>"
        f"</w:r></w:del><w:moveFrom>{run('d')}</w:moveFrom><w:moveTo>{run('e')}</w:moveTo>"
        f"<w:hyperlink>{run('f')}</w:hyperlink><w:sdt><w:sdtContent>{run('g')}"
        "</w:sdtContent></w:sdt><m:oMath><m:r><m:t>x</m:t></m:r></m:oMath></w:p>"
    )
    assert docx_text(body) == "abefgx\n"


def test_docx_with_text_boxes():
    box = f"<w:txbxContent><w:p>{run('box')}</w:p></w:txbxContent>"
    both = f"<mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}"
    both = f"<w:r>{both}</mc:Fallback></mc:AlternateContent></w:r>"
    assert docx_text(f"<w:p>{run('a')}{both}{run('b')}</w:p>") == "ab\nbox\n"
    table = f"<w:tbl><w:tr><w:tc><w:p>{run('a')}{both}</w:p></w:tc><w:tc><w:p/></w:tc>"
    inner = f"<w:tbl><w:tr><w:tc><w:p>{run('n')}</w:p></w:tc></w:tr></w:tbl>"
    row = f"{table}<w:tc>{inner}<w:p>{run('o')}</w:p></w:tc></w:tr></w:tbl>"
    assert docx_text(row) == "a box\t\tn o\n"


def test_docx_in_german():
    styles = """<w:styles xmlns:w=
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main">
    <w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
    <w:style w:styleId="Eigene"><w:name w:val="Eigene"/><w:basedOn w:val="berschrift1"/>
    </w:style><w:style w:styleId="a"><w:name w:val="a"/><w:basedOn w:val="b"/>
    </w:style><w:style w:styleId="b"><w:name w:val="b"/><w:basedOn w:val="a"/>
    </w:style></w:styles>
    """
    titles = {"A": "berschrift1", "B": "Eigene", "c": "a", "d": "nowhere", "e": None}
    body = "".join(
        f"<w:p><w:pPr><w:pStyle w:val='{style}'/></w:pPr>{run(text)}</w:p>"
        for text, style in titles.items()
    )
    body += f"<w:p><w:pPr><w:outlineLvl w:val='2'/></w:pPr>{run('F')}</w:p>"
    members = docx_members(body)
    members["word/styles.xml"] = styles
    members["word/_rels/document.xml.rels"] = (
        '<Relationships><Relationship Type="http://x/styles" Target="styles.xml"/>'
        "</Relationships>"
    )
    sections = [part.section for part in parts_of(archive(members))]
    assert sections == ["A", "B", "B", "B", "B", "F"]


def test_docx_without_text():
    assert "without text" in refusal(archive(docx_members("<w:p/>")))
    members = docx_members("<w:p/>")
    strict = "http://purl.oclc.org/ooxml/wordprocessingml/main"
    members["word/document.xml"] = f'<w:document xmlns:w="{strict}"/>'
    assert "Strict Open XML" in refusal(archive(members))


# ---- HTML and RTF


def test_html():
    assert_read_as(*page())


def test_html_shows_what_a_browser_shows():
    head = b"<html><head><style>p{color:red}</style><script>var x=1;</script></head>"
    assert text_of(head + b"<body><p>The treaty &amp; pact</p></body></html>") == (
        "The treaty & pact\n"
    )
    body = (
        b"<p>&amp;lt; <q>a<i>b</i> c</q> d<!-- no -->e</p><img alt='A cat'><img src=b>"
        b"<p hidden>no</p>f<div style='Display : none'>no</div>g<svg><title>no</title>"
        b"</svg><dl><dt>h<dd>i</dl>x<sup>2</sup><br>j<table><tr><td>k<td>"
        b"<table><tr><td>l<td>m</table></table>n"
    )
    assert text_of(b"<html>" + body) == (
        '&lt; "ab c" de\n\n[A cat]fg\nh\ni\nx2\nj\nk\t\nl\tm\nn\n'
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<html>\ufeffé".encode(), "é"),
        ("<html>é".encode("cp1252"), "é"),
        ("<html><meta charset='koi8-r'>да".encode("koi8-r"), "да"),
        ("<html><meta content='text/html; charset=latin1'>“é".encode("cp1252"), "“é"),
        ("<html><meta charset='utf-16'>é".encode(), "é"),
        ("<html><meta charset='idna'>é".encode(), "é"),
        ("\ufeff<html>é".encode("utf-16"), "é"),
        ("\ufeff<?xml version='1.0'?><!--a--><!DOCTYPE html><html>é".encode(), "é"),
    ],
)
def test_encodings_of_html(data, text):
    assert text_of(data).strip("\ufeff") == f"{text}\n"


def test_text_with_tags_is_no_page():
    for data in (b"<p>Markdown", b"# html\n<html>", b"<!-- a -->" * 99, b"<htmlish>"):
        assert not looks_like_format(data)
        assert find_parser(data, io.BytesIO(data), NAME) is None


def test_rtf():
    note = (
        rb"{\rtf1\ansi\deff0{\fonttbl{\f0 Times;}}\f0\fs24 The treaty was signed.\par}"
    )
    assert parts_of(note) == [Part("The treaty was signed.\n", done=1.0)]
    link = rb'{\field{\*\fldinst{HYPERLINK "http://x"}}{\fldrslt{link}}}'
    body = rb"\f0 caf\'e9 \u-10179?\u-8694? C:\\f0 " + link + rb"\par end}"
    assert text_of(note[:-1] + body) == (
        "The treaty was signed.\ncafé \U0001f60a C:\\f0 link\nend\n"
    )
    assert "damaged RTF" in refusal(rb"{\rtf1{\pict\bin x}}")
    assert "without text" in refusal(rb"{\rtf1}")


def test_too_large_to_be_held():
    for start in (b"<html>", rb"{\rtf1 "):
        assert "more than 32 MiB" in refusal(start + b"a " * (16 << 20))


# ---- what is refused

REFUSED = {
    "old Word": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "save it as .docx"),
    "ZIP": (archive({"a.txt": "a"}), "unpack it"),
    "empty ZIP": (archive({}), "unpack it"),
    "ODT": (
        archive({"mimetype": "application/vnd.oasis.opendocument.text"}),
        "export it as PDF",
    ),
    "PPTX": (archive({"[Content_Types].xml": "", "ppt/a.xml": ""}), "export it as PDF"),
    "XLSX": (archive({"[Content_Types].xml": "", "xl/a.xml": ""}), "export it as CSV"),
    "MOBI": (b"A_Book".ljust(60, b"\0") + b"BOOKMOBI", "convert it to EPUB"),
    "DjVu": (b"AT&TFORM\0\0\0\0DJVU", "ddjvu"),
    "PostScript": (b"%!PS-Adobe-3.0\n", "ps2pdf"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0", "ocrmypdf"),
    "JPEG": (b"\xff\xd8\xff\xe0\0", "ocrmypdf"),
    "TIFF": (b"II*\0\0\0", "ocrmypdf"),
    "GIF": (b"GIF89a\0\0", "ocrmypdf"),
    "WebP": (b"RIFF\0\n\0\0WEBPVP8 ", "ocrmypdf"),
    "bzip2": (b"BZh91AY&SY\0", "bunzip2"),
    "xz": (b"\xfd7zXZ\0\0", "unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd\0", "unzstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0", "unpack it"),
    "RAR": (b"Rar!\x1a\x07\0", "unpack it"),
    "tar": (b"a.txt".ljust(257, b"\0") + b"ustar", "unpack it"),
    "half a ZIP": (archive({"a": "a" * 999})[:-30], "damaged or incomplete ZIP"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_refused(kind):
    data, advice = REFUSED[kind]
    assert advice in refusal(data)


@pytest.mark.parametrize("start", [b"BZh", b"GIF", b"MM", b"II", b"7z", b"%!", b"PK"])
def test_texts_that_begin_like_them(start):
    data = start + b" is how this text begins."
    assert not looks_like_format(data)
    assert find_parser(data, io.BytesIO(data), NAME) is None


@pytest.mark.parametrize(
    ("module", "package", "make"),
    [
        ("pypdfium2", "pypdfium2", lambda: report(1)[0]),
        ("lxml.etree", "lxml", lambda: book(1)[0]),
        ("inscriptis.html_engine", "inscriptis", lambda: page(1)[0]),
        ("docx.oxml", "python-docx", lambda: archive(docx_members("<w:p/>"))),
        ("striprtf.striprtf", "striprtf", lambda: rb"{\rtf1 a}"),
    ],
)
def test_a_library_that_is_missing(module, package, make, monkeypatch):
    data = make()
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal(data)
    assert f"reading it needs {package}: pip install 'allmem-mlx[documents]'" in message


# ---- what is not to be trusted


def test_password_of_a_zip():
    data = bytearray(book(2)[0])
    for match in re.finditer(rb"PK\x03\x04|PK\x01\x02", bytes(data)):
        data[match.start() + (6 if match[0][2] == 3 else 8)] |= 1
    assert "save it without a password" in refusal(bytes(data))


def test_bombs():
    members = epub_members({"a.xhtml": "<p>a</p>"}, {})
    bomb = members | {"OEBPS/a.xhtml": b"<p>" + b"a" * (20 << 20)}
    assert "as a ZIP bomb does" in refusal(archive(bomb))
    large = members | {"OEBPS/a.xhtml": Random(0).randbytes(33 << 20)}
    assert "more than 32 MiB" in refusal(archive(large))
    bomb = docx_members("<w:p/>" * (4 << 20))
    assert "as a ZIP bomb does" in refusal(archive(bomb))


def test_a_size_that_is_not_true():
    """A member ends where its size says, whatever is in it."""
    data = archive(docx_members(f"<w:p>{run('a' * 5000)}</w:p>"))
    size = zipfile.ZipFile(io.BytesIO(data)).getinfo("word/document.xml").file_size
    lie = data.replace(size.to_bytes(4, "little"), (300).to_bytes(4, "little"))
    assert lie != data
    assert "damaged Word document" in refusal(lie)


def test_members_that_overlap():
    data = archive({"mimetype": "a" * 20, "b": Random(0).randbytes(4000)})
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    directory = data[start:end] * 3
    tail = bytearray(data[end:])
    tail[8:10] = tail[10:12] = (6).to_bytes(2, "little")
    tail[12:16] = len(directory).to_bytes(4, "little")
    assert "overlap" in refusal(data[:start] + directory + bytes(tail))


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">{}]>'.format(
    "".join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">'
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
)
OUTSIDE = '<!DOCTYPE x [<!ENTITY i SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("entities", [LAUGHS, OUTSIDE], ids=["laughs", "outside"])
def test_entities_are_not_expanded(entities):
    members = docx_members(f"<w:p>{run('&i;')}</w:p>")
    xml = members["word/document.xml"]
    members["word/document.xml"] = xml.replace("?>\n", f"?>{entities}")
    message = refusal(archive(members))
    assert "document type declaration" in message or "amplification" in message

    chapters = {"a.xhtml": "<p>text &i;</p>"}
    members = epub_members(chapters, {})
    container = members["META-INF/container.xml"]
    members["META-INF/container.xml"] = container.replace("?>", f"?>{entities}", 1)
    assert "entities" in refusal(archive(members))
    members = epub_members(chapters, {})
    chapter = members["OEBPS/a.xhtml"]
    members["OEBPS/a.xhtml"] = re.sub(r"<!DOCTYPE[^>]*>", entities, chapter)
    text = text_of(archive(members))
    assert "text &i;" in text and "haha" not in text and "root:" not in text


def test_names_of_members_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("../../a.xhtml", "/etc/passwd", "..\\a.xhtml", "C:/a.xhtml"):
        members = epub_members({name: "<p>text</p>"}, {})
        members[name.lstrip("/")] = members.pop(f"OEBPS/{name}")
        try:
            assert "root:" not in text_of(archive(members))
        except AllMemError as error:
            assert "lacks" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_deep_nesting():
    deep = b"<html>" + b"<div>" * 100_000 + b"x"
    assert "nests its elements more than 300 deep" in refusal(deep)
    assert text_of(b"<html>" + b"<b>" * 1500 + b"x") == "x\n"
    wide = b"<html><p " + b" ".join(b"a%d=1" % i for i in range(10**5)) + b">x"
    assert "more than 10,000 attributes" in refusal(wide)
    picture = b"<html><img alt='a' src='" + b"a/ =" * 10**6 + b"'>"
    assert text_of(picture) == "[a]\n"
    nested = "<w:sdt><w:sdtContent>" * 5000
    assert "damaged Word document" in refusal(archive(docx_members(nested)))
