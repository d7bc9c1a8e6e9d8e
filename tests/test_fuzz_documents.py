"""Damaged documents: each is read as text or refused with one line, and nothing else.

They are read in a process of its own, in which opening a connection, starting a program
and writing a file are errors, so that a crash of a library is noticed too and the file
that it comes from is named.
"""

import copy
import io
import random
import signal
import sys
import zipfile
from pathlib import Path

import pytest
from document_files import archive, book, page, paper, report, unpacked
from lxml import etree
from processes import run

from allmem_mlx.documents.formats import find_parser
from allmem_mlx.errors import AllMemError

FILES = 1000  # of each format
SECONDS = 10  # of the processor for one file; it takes milliseconds
NAME = "'a file'"


def flip_bits(content, rng):
    for _ in range(rng.randint(1, 12)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def fill(content, rng):
    at, size = rng.randrange(len(content)), rng.randint(1, 200)
    content[at : at + size] = bytes([rng.choice((0, 32, 60, 255))]) * size


def delete(content, rng):
    at = rng.randrange(len(content))
    del content[at : at + rng.choice((1, 8, 64, 2000))]


def swap(content, rng):
    size = rng.choice((4, 64, 1000))
    a, b = (rng.randrange(len(content)) for _ in range(2))
    first, second = content[a : a + size], content[b : b + size]
    content[a : a + size] = second
    content[b : b + size] = first


def repeat(content, rng):
    at = rng.randrange(len(content))
    part = content[at : at + rng.choice((1, 16, 300))]
    content[at:at] = part * rng.choice((1, 2, 500))


def truncate(content, rng):
    del content[rng.randrange(len(content)) :]


def write_number(content, rng):
    """A number in the place of another, as sizes and references of PDF are."""
    digits = [i for i, byte in enumerate(content) if byte in b"0123456789"]
    if digits:
        at = rng.choice(digits)
        number = rng.choice((b"0", b"-1", b"7", b"65536", b"4294967295", b"9" * 30))
        content[at : at + 1] = number


TAGS = (
    *(b"<", b">", b"</p>", b"<p>", b"</", b"<!--", b"<![CDATA[", b"&#0;", b"&#xD800;"),
    *(b"<table>", b"<tr><td>", b"<ul><li value='\xc2\xb2'>", b"<h1>", b"&a;", b"<?x"),
    *(b"<p style='padding-left:9999em'>", b"<template>", b"<plaintext>", b"\xff\xfe"),
    *(b"<w:tbl>", b"<w:p>", b"<w:r>", b"<w:txbxContent>", b"</w:p>", b"<w:t>"),
)


def insert_tags(content, rng):
    at = rng.randrange(len(content))
    content[at:at] = rng.choice(TAGS) * rng.choice((1, 1, 3, 400, 5000))


DAMAGE = (flip_bits, fill, delete, swap, repeat, truncate, write_number)


def damaged(data: bytes, rng: random.Random, *more) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        if content:
            rng.choice((*DAMAGE, *more))(content, rng)
    return bytes(content)


VALUES = ("", "0", "-1", "9" * 30, "a b", "../../x", "nav toc", "\u00b2", "w:p")


def reshaped(data: bytes, rng: random.Random) -> bytes:
    """Well-formed XML still, but elements are missing, elsewhere, or others."""
    root = etree.fromstring(data, etree.XMLParser(recover=True))
    elements = list(root.iter(etree.Element))[1:]
    for _ in range(rng.choice((1, 3, 30))):
        a, b = rng.choice(elements), rng.choice(elements)
        kind = rng.randrange(6)
        if kind == 0 and a.getparent() is not None:
            a.getparent().remove(a)
        elif kind == 1:
            a.append(copy.deepcopy(b))
        elif kind == 2 and a is not b and a not in b.iterancestors():
            b.append(a)
        elif kind == 3:
            a.tag = b.tag
        elif kind == 4 and b.attrib:
            a.set(rng.choice(list(b.attrib)), rng.choice(VALUES))
        elif kind == 5:
            for _ in range(rng.choice((5, 200))):
                a.append(etree.Element(a.tag))
                a = a[-1]
    return etree.tostring(root, encoding="utf-8", xml_declaration=True)


def damaged_archive(data: bytes, rng: random.Random) -> bytes:
    """The archive itself is damaged, or what it has is, under right checksums."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    originals = unpacked(data)
    members: dict = dict(originals)
    texts = [name for name in members if name.endswith((".xml", "html", "ncx", "opf"))]
    if "word/document.xml" in members:
        texts += ["word/document.xml", "word/footnotes.xml"] * 5
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(texts)
        if rng.random() < 0.6:
            members[name] = reshaped(originals[name], rng)
        else:
            members[name] = damaged(members[name], rng, insert_tags, insert_tags)
    if rng.random() < 0.1:
        del members[rng.choice(list(members))]
    if rng.random() < 0.1:
        name = rng.choice(list(members))
        path = rng.choice(("../../", "/", "C:\\", "a\0", "a" * 300 + "/"))
        members[f"{path}{name}"] = members.pop(name)
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return damaged(buffer.getvalue(), rng) if rng.random() < 0.05 else buffer.getvalue()


RTF = (
    rb"{\fonttbl{\f0\fcharset0 Times;}{\f1\fcharset128 Mincho;}}{\colortbl;}\f0\fs24 "
    rb"caf\'e9 \u233? \u-10179?\u-8694?\par{\f1 \'82\'a0}\trowd a\cell b\cell\row"
    rb'{\field{\*\fldinst{HYPERLINK "x"}}{\fldrslt{link}}}'
    rb"{\pict\bin4 abcd}\par "
)


def good(kind: str) -> list[bytes]:
    if kind == "pdf":
        return [report(4)[0], report(6, pageCompression=0)[0]]
    if kind == "epub":
        return [book(5)[0], book(5, nav=False)[0]]
    if kind == "rtf":
        return [RTF * 3]
    if kind == "docx":
        members = unpacked(paper(40)[0])
        needed = ("[Content", "_rels", "word/_rels", "word/document", "word/footnotes")
        return [archive({k: x for k, x in members.items() if k.startswith(needed)})]
    return [page(12)[0]]


def file_of(kind: str, seed: int, files: list[bytes]) -> bytes:
    rng = random.Random(seed)
    data = rng.choice(files)
    if kind == "pdf":
        return damaged(data, rng, write_number, write_number)
    if kind == "rtf":
        return rb"{\rtf1" + damaged(data, rng, write_number)
    if kind == "html":
        return b"<html>" + damaged(data, rng, insert_tags, insert_tags)
    return damaged_archive(data, rng)


def watch() -> None:
    """From now on nothing may leave this process but what it prints."""

    def hook(event, arguments):
        if event == "open":
            _, mode, flags = arguments
            writes = flags & 3 if mode is None else set(mode) & set("wax+")
            if not writes:
                return
        elif not event.startswith(
            ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.sys")
        ) and event not in ("os.mkdir", "os.rename", "os.remove", "os.symlink"):
            return
        print("forbidden", event, arguments, flush=True)
        raise SystemError(f"{event} {arguments}")

    sys.addaudithook(hook)


def read(data: bytes) -> tuple[int, str]:
    """Characters of the text, and the message if it was refused."""
    file, characters, warnings = io.BytesIO(data), 0, []
    try:
        reader = find_parser(data[:65536], file, NAME)
        if reader is None:
            return len(data), ""
        for part in reader(file, NAME, warnings.append):
            part.text.encode()  # no halves of characters
            assert "\0" not in part.text and part.section != ""
            assert 0 <= part.done <= 1
            characters += len(part.text)
    except AllMemError as error:
        message = str(error)
        assert NAME in message and len(message.splitlines()) == 1, message
        return characters, message
    assert characters and all(len(text.splitlines()) == 1 for text in warnings)
    return characters, ""


def main() -> None:
    kind, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.dont_write_bytecode = True
    files = good(kind)
    watch()
    for seed in range(start, stop):
        print("reading", seed, flush=True)
        # Ends the process, even within a library.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        data = file_of(kind, seed, files)
        characters, message = read(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("refused" if message else "read", characters, message, flush=True)


@pytest.mark.parametrize("kind", ["pdf", "epub", "docx", "html", "rtf"])
@pytest.mark.parametrize("start", range(0, FILES, FILES // 2))
@pytest.mark.slow
def test_damaged_files(kind, start, tmp_path):
    stop = start + FILES // 2
    result = run(__file__, kind, start, stop, cwd=tmp_path)
    lines = result.stdout.decode().splitlines()
    ended = [line for line in lines if line.startswith(("read ", "refused "))]
    assert result.returncode == 0, (
        f"{kind} {start + len(ended)} ended in {result.returncode}: {lines[-1:]} "
        f"{result.stderr[-1500:].decode()}"
    )
    assert len(ended) == stop - start and not any("forbidden" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
    refused = sum(line.startswith("refused") for line in ended)
    assert refused < len(ended) and (refused > 10 or kind == "html")


def test_the_watch_notices():
    """Otherwise the test above would prove nothing."""
    for act in (
        "open('x', 'w')",
        "__import__('socket').create_connection(('localhost', 9))",
        "__import__('os').system('true')",
    ):
        code = f"import test_fuzz_documents as t; t.watch(); {act}"
        folder = Path(__file__).parent
        result = run("-c", code, cwd=folder)
        assert result.returncode == 1 and b"forbidden" in result.stdout


def test_an_archive_within_an_archive():
    """It is a member like any other."""
    data, _ = book(3)
    assert read(archive(unpacked(data) | {"more.epub": data}))[1] == ""


if __name__ == "__main__":
    main()
