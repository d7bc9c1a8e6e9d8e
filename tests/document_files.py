"""Documents of every format, made in place, and the parts they should be read as."""

import io
import random
import re
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

from allmem_mlx.documents.formats import Part

WORDS = re.findall(r"[a-z]{2,12}", " ".join(topics.values()))[:40_000]
EMPTY = "\n\n"


def words(rng: random.Random, count: int) -> str:
    at = rng.randrange(len(WORDS) - count)
    return " ".join(WORDS[at : at + count])


def sentence(rng: random.Random) -> str:
    return words(rng, rng.randint(8, 30)).capitalize() + "."


# ---- PDF


def pdf(content: bytes, *more: bytes, count: int = 1) -> bytes:
    """A PDF of one page, written by hand, without a table of references."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count %d >>" % count,
        page + b"/Resources << /Font << /F1 5 0 R >> >> >>",
        content,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        *more,
    ]
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % pair for pair in enumerate(objects, 1))
    return b"%%PDF-1.4\n%strailer << /Root 1 0 R /Size %d >>\n%%%%EOF\n" % (
        body,
        len(objects) + 1,
    )


def pdf_stream(data: bytes, filters: bytes = b"") -> bytes:
    return b"<< /Length %d %s>>\nstream\n%s\nendstream" % (len(data), filters, data)


def font_file() -> Path:
    """A font that has ligatures."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def report(pages: int, seed: int = 0, **options) -> tuple[bytes, list[Part]]:
    """A report with a running header, page numbers, words that are divided, ligatures,
    rows of figures at the edges of pages, and an outline."""
    from reportlab.pdfbase.pdfmetrics import registerFont
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.pdfgen.canvas import Canvas

    registerFont(TTFont("DejaVu", font_file()))
    rng, buffer, parts = random.Random(seed), io.BytesIO(), []
    canvas = Canvas(buffer, **options)
    chapter, left, section = 0, 0, None
    for page in range(1, pages + 1):
        lines = []
        canvas.setFont("DejaVu", 9)
        # A header is known by two more pages of its chapter that have it too.
        if left <= 0 and (page == 1 or page < pages - 4):
            chapter, left = chapter + 1, rng.randint(6, 14)
            name = words(rng, 3).title()
            section = f"{chapter} {name}"
            lines.append(section)
            canvas.bookmarkPage(section)
            canvas.addOutlineEntry(section, section, level=0)
        elif rng.random() < 0.3:
            section = f"{chapter}.{page} {words(rng, 2)}"
            lines.append(section)
            canvas.bookmarkPage(section)
            canvas.addOutlineEntry(section, section, level=1)
        left -= 1
        if page % 5 == 2:
            lines.insert(
                0, f"{rng.random():.3f} {rng.random():.2f} {rng.randint(2, 99)}"
            )
        shown, read = _prose(rng, 30)
        if page % 5 == 3:
            row = f"{rng.random():.3f} {rng.randint(2, 99)}"
            shown, read = [*shown, row], [*read, row]
        header = f"{page} | Annual Report 2024" if page % 2 == 0 else f"{name} | {page}"
        footer = f"Page {page} of {pages}"
        printed = [header, *lines, *shown, "For the members of the board", footer]
        for line, text in enumerate(printed):
            canvas.drawString(72, 800 - 14 * line, text)
        canvas.showPage()
        text = "\n".join([*lines, *read]) + "\n"
        parts.append(Part(text, page, section, page / pages))
    canvas.save()
    return buffer.getvalue(), parts


def _prose(rng: random.Random, count: int) -> tuple[list[str], list[str]]:
    """Lines as they are printed, and as they should be read."""
    shown, read, joined = [], [], False
    for _ in range(count):
        line = words(rng, 9)
        rest = ""
        if rng.random() < 0.3:
            line, rest = f"{line} exam-", "ples"
        printed = line.replace("fi", "\ufb01").replace("ffl", "\ufb04")
        shown.append(f"ples {printed}" if joined else printed)
        if joined:
            read[-1] = f"{read[-1][:-1]}ples {line}"
        else:
            read.append(line)
        joined = bool(rest)
    if joined:
        end = words(rng, 4)
        shown.append(f"ples {end}")
        read[-1] = f"{read[-1][:-1]}ples {end}"
    return shown, read


# ---- EPUB

CONTAINER = """<?xml version="1.0"?>
<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf"
media-type="application/oebps-package+xml"/></rootfiles></container>"""
XHTML = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN"
"http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">
<head><title/><script src="a.js"/><style>p {{ color: red }}</style></head>
<body>{}</body></html>"""


def archive(members: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for member, data in members.items():
            stored = zipfile.ZIP_STORED if member == "mimetype" else None
            file.writestr(member, data, stored)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {member: file.read(member) for member in file.namelist()}


def epub_members(
    chapters: dict[str, str], contents: dict[str, str], nav: bool = True
) -> dict[str, str | bytes]:
    """An EPUB.

    Args:
        chapters (dict): the body of each member of the spine.
        contents (dict): titles of the table of contents by their links.
        nav (bool): the table is that of EPUB 3, or of EPUB 2.
    """
    items = [
        f'<item id="c{i}" href="{name.replace(" ", "%20")}" '
        'media-type="application/xhtml+xml"/>'
        for i, name in enumerate(chapters)
    ]
    spine = [f'<itemref idref="c{i}"/>' for i in range(len(chapters))]
    if nav:
        toc, kind = "nav.xhtml", 'media-type="application/xhtml+xml" properties="nav"'
        links = "".join(
            f'<li><a href="{link}">{title}</a></li>' for link, title in contents.items()
        )
        table = XHTML.format(f'<nav epub:type="toc"><ol>{links}</ol></nav>')
    else:
        toc, kind = "toc.ncx", 'media-type="application/x-dtbncx+xml"'
        points = "".join(
            f"<navPoint><navLabel><text>{title}</text></navLabel>"
            f'<content src="{link}"/></navPoint>'
            for link, title in contents.items()
        )
        table = (
            '<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "ncx-2005-1.dtd">'
            '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/">'
            f"<navMap>{points}</navMap></ncx>"
        )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/>'
        f'<manifest><item id="toc" href="{toc}" {kind}/>'
        '<item id="cover" href="cover.png" media-type="image/png"/>'
        f"{''.join(items)}</manifest><spine>{''.join(spine)}</spine></package>"
    )
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": package,
        f"OEBPS/{toc}": table,
        "OEBPS/cover.png": b"\x89PNG\r\n",
        **{f"OEBPS/{name}": XHTML.format(body) for name, body in chapters.items()},
    }


def book(
    chapters: int = 24, nav: bool = True, seed: int = 0
) -> tuple[bytes, list[Part]]:
    """A novel with a cover, titles, headings, notes and pictures."""
    rng = random.Random(seed)
    bodies, contents, parts = {}, {}, []
    total = chapters + 2

    bodies["cover.xhtml"] = '<p><img src="cover.png" alt="The  cover"/></p>'
    parts.append(Part(f"[The cover]{EMPTY}", section=None, done=1 / total))
    for number in range(1, chapters + 1):
        name = f"text/chapter {number}.xhtml"
        name_of = words(rng, 3).title()
        heading = f"{number}. {name_of}"
        section = heading
        if number % 3 == 0:  # of a table of contents that is not the heading
            section = f"Chapter {number}: {words(rng, 2)}"
            contents[f"text/chapter%20{number}.xhtml#top"] = section
        body = [f'<h1 id="top"><a id="x"/>{number}. <i>{name_of}</i></h1>']
        text = [heading]
        part = [(section, text)]
        for paragraph in range(rng.randint(5, 25)):
            if rng.random() < 0.1:
                section = f"{words(rng, 2)} {paragraph}"
                body.append(f"<h2>{section}</h2>")
                text = [section]
                part.append((section, text))
            before, after = words(rng, 20), words(rng, 20)
            body.append(
                f"<p>{before}\n&amp;&nbsp;<b>bo</b>ld<a epub:type='noteref' "
                f"href='notes.xhtml#n{number}'>[{number}]</a>&mdash;{after}"
                '<img src="rule.png"/><img src="rule.png" alt=""/></p>'
            )
            text.append(f"{before} & bold[{number}]\u2014{after}")
        bodies[name] = "\n".join(body)
        parts += [
            Part("\n\n".join(text) + EMPTY, section=section, done=(number + 1) / total)
            for section, text in part
        ]
    notes = [f"[{number}] {sentence(rng)}" for number in range(1, chapters + 1)]
    bodies["notes.xhtml"] = "<h2>Notes</h2>" + "".join(
        f'<aside id="n{i}"><p>{note}</p></aside>' for i, note in enumerate(notes, 1)
    )
    parts.append(
        Part("\n\n".join(["Notes", *notes]) + EMPTY, section="Notes", done=1.0)
    )
    return archive(epub_members(bodies, contents, nav)), parts


# ---- DOCX

NOTES = (
    '<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    '<w:footnote w:type="separator" w:id="-1"><w:p/></w:footnote>{}</w:footnotes>'
)
NOTE = '<w:footnote w:id="{}"><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:footnote>'


def paper(blocks: int = 200, seed: int = 0) -> tuple[bytes, list[Part]]:
    """A paper with headings of several styles, tables and footnotes."""
    import docx
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part as Member
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    rng, document = random.Random(seed), docx.Document()
    mine = document.styles.add_style("Überschrift, meine", 1)
    mine.base_style = document.styles["Heading 2"]
    section, parts, notes = "A Paper", [Part("A Paper\n", section="A Paper")], []
    document.add_paragraph("A Paper", "Title")
    for number in range(blocks):
        kind = rng.choice(["heading", "table", "note", "text", "text", "text"])
        text = sentence(rng)
        if kind == "heading":
            section = f"{number} {words(rng, 3)}"
            style = rng.choice(["Heading 1", "Heading 3", mine])
            document.add_paragraph(section, style)
            text = section
        elif kind == "table":
            rows = [[words(rng, 2) for _ in range(3)] for _ in range(rng.randint(1, 5))]
            table = document.add_table(len(rows), 3)
            for row, texts in zip(table.rows, rows, strict=True):
                for cell, value in zip(row.cells, texts, strict=True):
                    first, second = value.split()
                    cell.text = first
                    cell.add_paragraph(second)
            parts += [Part("\t".join(row) + "\n", section=section) for row in rows[:-1]]
            text = "\t".join(rows[-1])
        else:
            paragraph = document.add_paragraph()
            paragraph.add_run(text[:5]).bold = True
            paragraph.add_run(text[5:])
            if kind == "note":
                notes.append(sentence(rng))
                reference = OxmlElement("w:footnoteReference")
                reference.set(qn("w:id"), str(len(notes) + 1))
                paragraph.add_run()._r.append(reference)
                paragraph.add_run(" and\tso\non")
                text += f"[{len(notes)}] and\tso\non"
        parts.append(Part(f"{text}\n", section=section))
    parts.append(Part("\nNotes\n", section="Notes"))
    parts += [
        Part(f"[{i}] {note}\n", section="Notes") for i, note in enumerate(notes, 1)
    ]
    xml = NOTES.format("".join(NOTE.format(i, x) for i, x in enumerate(notes, 2)))
    kind = (
        "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    )
    member = Member(
        PackURI("/word/footnotes.xml"), kind, xml.encode(), document.part.package
    )
    document.part.relate_to(member, RELATIONSHIP_TYPE.FOOTNOTES)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue(), parts


def docx_members(body: str) -> dict[str, str | bytes]:
    """A document of Word with such a body, and no more than it needs."""
    return {
        "[Content_Types].xml": "<Types/>",
        "word/document.xml": (
            '<?xml version="1.0"?>\n<w:document xmlns:w='
            '"http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
            'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
            'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
            f"<w:body>{body}</w:body></w:document>"
        ),
    }


# ---- HTML


def page(headings: int = 40, seed: int = 0) -> tuple[bytes, list[Part]]:
    """A web page with headings, a list, a table and preformatted text."""
    rng = random.Random(seed)
    body, parts = ["<p>Before</p>"], [["Before", ""]]
    sections = [None]
    for number in range(headings):
        title, text = f"{number} & {words(rng, 2)}", sentence(rng)
        body.append(
            f"<h{number % 3 + 1}>{title.replace('&', '&amp;')}</h{number % 3 + 1}>"
            f"<p>{text} &lt;p&gt;</p><ul><li>one<li>two</ul>"
            "<table><tr><th>a<th>b</tr><tr><td><p>1</p><td></td></tr></table>"
            "<pre>if x:\n    y</pre>"
        )
        lines = [title, "", f"{text} <p>", "", "* one", "* two", "a\tb", "1\t"]
        parts.append([*lines, "if x:", "    y", *[""] * (number + 1 < headings)])
        sections.append(title)
    source = (
        "<!DOCTYPE html>\n<!-- a page --><html><head><meta charset=utf-8>"
        "<title>T</title><style>p {}</style><script>'<h1>'</script></head>"
        f"<body>{''.join(body)}</body>"
    )
    return source.encode(), [
        Part("\n".join(lines) + "\n", section=section)
        for lines, section in zip(parts, sections, strict=True)
    ]
