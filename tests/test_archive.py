"""The archive: text cut into passages, their tokens, and what a search finds."""

import io
import random
import re
import sqlite3
import time
import types
import unicodedata
from contextlib import closing
from itertools import accumulate, pairwise

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from test_tokens import (
    ALL,
    CHINESE,
    PROSE,
    WITHOUT_WORDS,
    anything,
    blocks,
    build,
    gpt2,
    llama3,
    phrases,
    qwen2,
    random_text,
    roberta,
    smollm2,
    t5,
    without_decoder,
)
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from allmem_mlx.archive.archive import Archive
from allmem_mlx.archive.cutting import LONGEST, passages
from allmem_mlx.archive.keys import document_key, fingerprint
from allmem_mlx.archive.terms import query, terms
from allmem_mlx.archive.writer import ROW
from allmem_mlx.documents import Document, Mark, Piece
from allmem_mlx.documents.tokens import tokenize
from allmem_mlx.errors import AllMemError

# Cutting.

TEXTS = {
    "prose": PROSE[:12_000],
    "short lines": "a line\n" * 900,
    "paragraphs": "\n\n".join(PROSE[i : i + i % 500] for i in range(0, 9000, 190)),
    "Chinese": "条約は港で調印された，船は北へ向かった。“好。”他说：“去！”" * 90,
    "Chinese without a full stop": "条約は港で調印され船は北へ向か" * 200,
    "base64": "QUJD/0+xYz" * 500,
    "long words": " ".join("x" * length for length in (1, 599, 600, 601, 1300, 2500)),
    "bytes of two to four": "é" * 599 + "第" * 700 + "𝔘" * 900,
    "white space": " \n\t \u3000" * 800 + "word" + "\n \n" * 900 + "end." + " " * 4000,
    "dots and quotes": '."' * 2000 + "…" * 900 + "?! " * 900 + "。」" * 300,
    "anything": random_text(random.Random(0), 8000),
    "one character": "a",
    "nothing but white space": " \n" * 2000,
}


def parts(text: str, mark: Mark | None = None) -> list[Piece]:
    return [Piece(text, mark or Mark("book.txt", None, None, 0))]


def split(pieces: list[Piece], seed: int) -> list[Piece]:
    """The same text in other pieces, down to one character."""
    rng, split_pieces = random.Random(seed), []
    for text, mark in pieces:
        offset = mark.offset
        while text:
            size = rng.choice((1, 2, 50, 700, 3000))
            place = Mark(mark.source, mark.page, mark.section, offset)
            split_pieces.append(Piece(text[:size], place))
            text, offset = text[size:], offset + len(text[:size])
    return split_pieces


@pytest.mark.parametrize("name", TEXTS)
def test_passages(name):
    """Nothing but white space is left out, and how the text comes does not matter."""
    text = TEXTS[name]
    cuts = list(passages(parts(text)))
    end = 0
    for body, mark, start, stop in cuts:
        assert body and body == body.strip() and len(body.encode()) <= LONGEST
        assert text[mark.offset :].startswith(body)
        assert (mark.offset, stop) == (start, start + len(body))
        assert not text[end:start].strip()
        end = stop
    assert not text[end:].strip()
    for seed in range(5):
        assert list(passages(split(parts(text), seed))) == cuts


def test_passages_fill_up():
    """Two that follow each other do not fit into one."""
    for name in ("prose", "base64", "Chinese", "short lines"):
        sizes = [len(cut.text.encode()) for cut in passages(parts(TEXTS[name]))]
        assert sum(sizes) > LONGEST / 2 * (len(sizes) - 1), name


def test_whole_sentences():
    rng, words = random.Random(0), re.findall(r"[a-z]{2,9}", PROSE)
    written = [
        " ".join(rng.choices(words, k=rng.randrange(3, 60))).capitalize()
        + rng.choice([".", "?", "!", '."', "...", ".)"])
        for _ in range(400)
    ]
    text = "".join(sentence + rng.choice([" ", "\n"]) for sentence in written)
    spoken = "".join(
        f"{word}了{'。！？'[i % 3]}" for i, word in enumerate("船北港去" * 99)
    )
    for whole, ends in ((text, tuple('.?!")')), (spoken, tuple("。！？"))):
        found = list(passages(parts(whole)))
        assert len(found) > 3 and all(cut.text.endswith(ends) for cut in found)


def test_what_is_no_end_of_a_sentence():
    filler = "the ship sailed north " * 24
    for words in ("Mr. Smith", "p. 12", "J. Smith", "i.e. north", "Fig. 3", "3.14"):
        (first, *_) = passages(parts(f"{filler}and so. Then {words} {filler}"))
        assert first.text.endswith("and so.")


def test_paragraphs_stay_whole():
    text = "\n\n".join(
        ["One sentence. Another one." + " word" * n for n in range(60, 90)]
        + ["x" * 300 + ". " + "x" * (LONGEST - 303) + "."] * 2
    )
    assert [cut.text for cut in passages(parts(text))] == text.split("\n\n")


def test_passages_of_pages_and_sections():
    """None goes over the end of one; a page without text has none."""
    places = [
        Mark("a.pdf", page, section, 0)
        for page, section in ((1, None), (2, None), (2, "One"), (3, "One"), (4, "Two"))
    ] + [Mark("b.pdf", 4, "Two", 0)]
    rng, pieces, pages, offset = random.Random(0), [], {}, 0
    for place in places:
        offset = 0 if place.source == "b.pdf" else offset
        text = PROSE[offset : offset + rng.choice((1500, 20, 4000))]
        text = " \n" if place.page == 3 else text + "no end of a sentence, "
        mark = Mark(place.source, place.page, place.section, offset)
        pieces.append(Piece(text, mark))
        pages[mark.source, mark.page, mark.section] = mark.offset, text
        offset += len(text)
    cuts = list(passages(pieces))
    for body, mark, _, _ in cuts:
        begin, text = pages[mark.source, mark.page, mark.section]
        assert text[mark.offset - begin :].startswith(body)
    assert {(x.mark.page, x.mark.section) for x in cuts} == {
        (page, section) for _, page, section in pages if page != 3
    }
    for seed in range(5):
        assert list(passages(split(pieces, seed))) == cuts


@pytest.mark.parametrize("piece", [13, 65_536])
def test_passages_of_files(tmp_path, piece):
    """Offsets count in each file; its name, which stands before it, is in none."""
    (tmp_path / "1.md").write_text(
        "Before.\n\n# One\n" + "Text of it. " * 90 + "\n# Two\nA"
    )
    (tmp_path / "2.txt").write_text("a")
    (tmp_path / "3.html").write_text(
        f"<!DOCTYPE html><h1>Three</h1><p>{PROSE[:3000]}</p>"
    )
    opened = Document(tmp_path, piece)
    cuts = list(passages(opened.parts()))
    whole = "".join(opened.text())
    for body, mark, start, end in cuts:
        text = "".join(Document(tmp_path / mark.source).text())
        assert mark.offset >= 0 and text[mark.offset :].startswith(body)
        assert whole[start:end] == body
    assert {(cut.mark.source, cut.mark.section) for cut in cuts} == {
        *(("1.md", None), ("1.md", "One"), ("1.md", "Two")),
        *(("2.txt", None), ("3.html", "Three")),
    }
    left = re.sub(r"\s|# \d\.\w+\n", "", whole)
    assert re.sub(r"\s", "", "".join(cut.text for cut in cuts)) == left


@pytest.mark.parametrize("run", [".", "?!…", '." ', "\n ", "a. ", "。」", "x"])
def test_cutting_takes_a_time_in_proportion(run):
    """To the length of the text, whatever is repeated in it: less than a second of the
    processor, and not a minute."""
    began = time.process_time()
    for _ in passages(parts(run * (200_000 // len(run)))):
        pass
    assert time.process_time() - began < 10


# Tokens, and the characters that they end at.

# Each of their tokens decodes to the characters that it stands for.
DECODED = [llama3, qwen2, phrases, anything]


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_ends_of_tokens(make):
    """They are those of the whole text."""
    for seed in range(12):
        rng = random.Random(seed)
        text = random_text(rng, rng.choice([10, 300, 2000]))
        sizes = {"batch": rng.choice([1, 3, 50, 400]), "longest": 4000}
        pieces = list(tokenize([text], build(make), **sizes))
        assert all(len(ids) == len(ends) for ids, ends in pieces)
        ends = [end for _, ends in pieces for end in ends]
        if make is not blocks:
            whole = build(make).backend_tokenizer.encode(text, add_special_tokens=False)
            assert ends == [*accumulate((end for _, end in whole.offsets), max)]
        else:
            assert ends == [len(text)] * len(ends)


@pytest.mark.parametrize("make", DECODED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("text", ["words", "no words"])
def test_text_up_to_the_end_of_a_token(make, text):
    """Is what the tokens so far decode to; cuts are forced where there are no words."""
    text = {"words": PROSE[:3000], "no words": "QUJD/0+xYz" * 300}[text]
    changes, ids, at = [], [], 0
    pieces = tokenize(
        [text],
        build(make),
        **{"batch": 50, "longest": 200, "on_change": lambda: changes.append(1)},
    )
    decode = build(make).backend_tokenizer.decode
    for more, ends in pieces:
        for token, end in zip(more, ends, strict=True):
            assert decode([token]) == text[at:end]
            ids.append(token)
            at = end
    assert at == len(text) and not changes


@pytest.mark.parametrize("make", [blocks, without_decoder])
def test_ends_of_parts_that_are_encoded_apart(make):
    text, at = "word " * 5000 + "\n" + "x" * 30_000, 0
    for ids, ends in tokenize([text], build(make)):
        (end,) = set(ends)
        part = build(make).encode(text[at:end], add_special_tokens=False)
        assert ids == part
        at = end
    assert at == len(text)


def test_ends_where_there_is_no_place_to_cut():
    """Parts of it are encoded apart, among others that are not."""
    text, changes = "some words " + WITHOUT_WORDS["emoji"] + " and more", []
    pieces = tokenize(
        [text], build(t5), longest=4096, on_change=lambda: changes.append(1)
    )
    ends = [end for _, ends in pieces for end in ends]
    assert changes and ends == sorted(ends) and ends[-1] == len(text)


def test_ends_after_a_cut_that_changed_tokens():
    """Each character before a # is a token of its own, however far away it is."""
    text, changes = "several" * 800 + "#" + " and words" * 200, []
    backend = llama3()
    spelled = pre_tokenizers.Split(Regex(r"\w(?=\w*#)"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([spelled, backend.pre_tokenizer])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    pieces = tokenize(
        [text],
        tokenizer,
        **{"batch": 500, "longest": 500, "on_change": lambda: changes.append(1)},
    )
    at = 0
    for ids, ends in pieces:
        for token, end in zip(ids, ends, strict=True):
            assert backend.decode([token]) == text[at:end]
            at = end
    assert at == len(text) and changes


# Documents in an archive.


@pytest.fixture
def archive(tmp_path):
    with closing(Archive.open(tmp_path / "book.archive", build(gpt2), True)) as opened:
        yield opened


@pytest.fixture
def add(archive, tmp_path):
    """Adds texts, each as a file of its own."""

    def add(*texts: str):
        entries = []
        for text in texts:
            path = tmp_path / f"{len(archive.documents())}.txt"
            path.write_text(text)
            entries.append(archive.add(Document(path)))
        return entries

    return add


def stdin(monkeypatch, text: str) -> Document:
    """A document that comes through a pipe."""
    buffer = io.BytesIO(text.encode())
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))
    return Document("-", piece=1000)


MIXED = (
    PROSE[:16_000]
    + "\n"
    + f"{CHINESE}👩‍👩‍👧‍👦 à e\u0301.\n她跑了！𝔘！\n" * 40
    + PROSE[:5000]
)


@pytest.mark.parametrize(
    "make",
    [gpt2, smollm2, llama3, roberta, qwen2, phrases, anything],
    ids=lambda make: make.__name__,
)
def test_tokens_of_a_passage(make, tmp_path):
    """They are those that touch it, of the tokens of the whole document."""
    tokenizer, path = build(make), tmp_path / "book.txt"
    path.write_text(MIXED)
    with closing(Archive.open(tmp_path / "book.archive", tokenizer, True)) as archive:
        entry = archive.add(Document(path))
        ids = sum(archive.tokens(entry), [])
        assert ids == sum(Document(path).pieces(tokenizer), [])
        assert entry.tokens == len(ids) and entry.complete
        whole = tokenizer.backend_tokenizer.encode(MIXED, add_special_tokens=False)
        assert ids == whole.ids
        cuts = list(passages(Document(path).parts()))
        found = list(archive.passages(entry))
        assert [(x.text, x.mark) for x in found] == [(x.text, x.mark) for x in cuts]
        assert [x.number for x in found] == list(range(len(found)))
        for passage, place in zip(found, cuts, strict=True):
            touching = [
                i
                for i, (start, end) in enumerate(whole.offsets)
                if start < place.end and end > place.start
            ]
            assert (passage.first, passage.last) == (touching[0], touching[-1])
            assert 0 <= passage.place < 1 and passage.document == entry.id
            if make not in DECODED:
                continue
            own = ids[passage.first : passage.last + 1]
            text = tokenizer.decode(own, clean_up_tokenization_spaces=False)
            assert unicodedata.normalize("NFC", passage.text) in (
                unicodedata.normalize("NFC", text)
            )


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_tokens_of_passages_go_on(make, tmp_path):
    """Every tokenizer tells some, in order."""
    path = tmp_path / "book.txt"
    path.write_text(random_text(random.Random(0), 20_000))
    with closing(Archive.temporary(build(make))) as archive:
        entry = archive.add(Document(path), allow_special_tokens=make is t5)
        found = list(archive.passages(entry))
        assert found[0].first <= 2 and found[-1].last <= entry.tokens - 1
        assert all(x.first <= x.last for x in found)
        for one, other in pairwise(found):
            assert one.first <= other.first and one.last <= other.last


def test_how_the_text_comes_does_not_matter(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(MIXED)
    known = []
    for piece in (7, 65_536):
        with closing(Archive.temporary(build(smollm2))) as archive:
            entry = archive.add(Document(path, piece))
            known.append(
                (entry, list(archive.passages(entry)), sum(archive.tokens(entry), []))
            )
    assert known[0] == known[1]


def test_tokens_from_any_start(archive, add):
    (entry,) = add(PROSE[:40_000])
    ids = build(gpt2).encode(PROSE[:40_000], add_special_tokens=False)
    assert len(ids) > 3 * ROW
    starts = (0, 1, ROW - 1, ROW, ROW + 1, 3 * ROW, len(ids) - 1)
    for start in starts:
        pieces = list(archive.tokens(entry, start))
        assert sum(pieces, []) == ids[start:]
        assert all(0 < len(piece) <= ROW for piece in pieces)
    for start in (len(ids), len(ids) + ROW):
        assert list(archive.tokens(entry, start)) == []


def test_documents_of_whole_rows(tmp_path):
    """Of tokens that are characters."""
    backend = types.SimpleNamespace(
        encode=lambda text, add_special_tokens=False, verbose=False: [*map(ord, text)],
        get_vocab=dict,
    )
    for length in (1, ROW - 1, ROW, ROW + 1, 5 * ROW):
        path = tmp_path / "book.txt"
        path.write_text("x" * length)
        with closing(Archive.temporary(backend)) as archive:
            entry = archive.add(Document(path), allow_special_tokens=True)
            assert entry.tokens == length
            assert sum(archive.tokens(entry), []) == [120] * length


def test_special_tokens(archive, tmp_path):
    """They are plain text, unless the document is trusted."""
    path, name = tmp_path / "book.txt", "<|im_start|>"
    path.write_text(f"some words {name} and more")
    special = build(gpt2).convert_tokens_to_ids(name)
    plain = archive.add(Document(path))
    trusted = archive.add(Document(path), allow_special_tokens=True)
    assert plain.id != trusted.id
    assert special not in sum(archive.tokens(plain), [])
    assert special in sum(archive.tokens(trusted), [])


def test_a_tokenizer_that_leaves_out_text(tmp_path):
    """A passage of it has no tokens, and the others have theirs."""
    backend = types.SimpleNamespace(
        encode=lambda text, add_special_tokens=False, verbose=False: [
            ord(x) for x in text if x.isascii()
        ],
        get_vocab=dict,
    )
    path = tmp_path / "book.txt"
    for text in (
        "第一章",
        "some words\n\n" + "第一章" * 300,
        "第一章" * 300 + " words",
    ):
        path.write_text(text)
        with closing(Archive.temporary(backend)) as archive:
            entry = archive.add(Document(path), allow_special_tokens=True)
            for passage in archive.passages(entry):
                assert -1 <= passage.last < max(1, entry.tokens)


def test_where_a_passage_is(archive, tmp_path):
    (tmp_path / "a.md").write_text(
        "words " * 500 + "\n\n# The treaty\n\nIt was signed."
    )
    archive.add(Document(tmp_path / "a.md"))
    assert archive.search("signed")[0].where == "a.md, The treaty"
    (tmp_path / "a.txt").write_text(
        "words " * 500 + "\n\nA treaty between kings. " * 30
    )
    archive.add(Document(tmp_path / "a.txt"))
    assert re.fullmatch(r"a\.txt, at \d\d %", archive.search("kings")[0].where)


# Adding.


def content(archive: Archive):
    """All that it has."""
    return [
        (entry, list(archive.passages(entry)), sum(archive.tokens(entry), []))
        for entry in archive.documents()
    ]


def test_the_same_document_is_not_added_twice(archive, add, tmp_path):
    (entry,) = add(PROSE[:9000])
    before, counts = content(archive), []
    again = archive.add(Document(tmp_path / "0.txt"), progress=counts.append)
    assert again == entry and content(archive) == before and not counts
    assert archive.entry(entry.key) == entry and archive.entry("another") is None
    # Where it lies does not matter.
    (tmp_path / "other").mkdir()
    (tmp_path / "0.txt").rename(tmp_path / "other" / "0.txt")
    assert archive.add(Document(tmp_path / "other" / "0.txt")) == entry


def test_another_document_of_the_same_name(archive, tmp_path):
    path = tmp_path / "book.txt"
    for text in ("The first edition.", "The second edition."):
        path.write_text(text)
        archive.add(Document(path))
    one, other = archive.documents()
    assert one.name == other.name and one.key != other.key
    assert [x.text for x in archive.passages(one)] == ["The first edition."]
    assert [x.text for x in archive.passages(other)] == ["The second edition."]


def test_progress(archive, tmp_path):
    path, counts = tmp_path / "book.txt", []
    path.write_text(PROSE[:30_000])
    entry = archive.add(Document(path), progress=counts.append)
    assert counts == sorted(counts) and len(counts) > 1 and counts[-1] == entry.tokens


def test_a_document_that_fails_midway(archive, add, tmp_path, monkeypatch):
    """Nothing of it is in the archive, which goes on to work."""
    add("some words")
    before = content(archive)

    class Failing(Document):
        def parts(self):
            for number, part in enumerate(super().parts()):
                if number == 30:
                    raise AllMemError("it is damaged")
                yield part

    (tmp_path / "book.txt").write_text(PROSE[:40_000])
    with pytest.raises(AllMemError, match="it is damaged"):
        archive.add(Failing(tmp_path / "book.txt", piece=1000))
    assert content(archive) == before
    assert archive.add(Document(tmp_path / "book.txt")).complete
    with closing(Archive.open(tmp_path / "book.archive")) as again:
        assert content(again) == content(archive)


def read(archive, document, key, commit_after=()) -> list[int]:
    ids = []
    for number, piece in enumerate(archive.stream(document, key)):
        ids += piece
        if number in commit_after:
            archive.commit()
    return ids


def test_what_is_streamed_is_committed_at_the_end(archive, tmp_path, monkeypatch):
    text = MIXED + PROSE[:20_000]
    key = document_key(stdin(monkeypatch, text))
    assert key != document_key(stdin(monkeypatch, text))  # which cannot be read twice
    ids = read(archive, stdin(monkeypatch, text), key, commit_after=(0, 2))
    assert ids == build(gpt2).encode(text, add_special_tokens=False)
    with closing(Archive.open(tmp_path / "book.archive")) as again:
        (known,) = content(again)
        assert known[0].complete and known[2] == ids
        assert "".join("".join(x.text for x in known[1]).split()) == (
            "".join(text.split())
        )


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stream_goes_on(archive, tmp_path, monkeypatch, after):
    """What was committed of it stays, and comes again; it ends as one that was never
    interrupted."""
    text = MIXED + PROSE[:20_000]
    ids = []
    stream = archive.stream(stdin(monkeypatch, text), "a pipe")
    for _ in range(after + 1):
        ids += next(stream)
    archive.commit()
    next(stream)
    stream.close()
    archive.close()

    with closing(Archive.open(tmp_path / "book.archive", build(gpt2), True)) as archive:
        entry = archive.entry("a pipe")
        assert sum(archive.tokens(entry), []) == ids and entry.tokens == len(ids)
        assert not entry.complete
        began = list(archive.passages(entry))
        assert began[-1].last < entry.tokens
        read(archive, stdin(monkeypatch, text), "a pipe", commit_after=(after,))
        interrupted = content(archive)
        assert interrupted[0][1][: len(began)] == [
            type(x)(**{**vars(x), "place": y.place})
            for x, y in zip(began, interrupted[0][1], strict=False)
        ]
    with closing(Archive.temporary(build(gpt2))) as archive:
        read(archive, stdin(monkeypatch, text), "a pipe")
        assert content(archive) == interrupted


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("The", "A", 1),
        lambda text: text[:20_000] + "x" + text[20_000:],
        lambda text: text[:20_000],
        lambda text: text[:3],
        lambda text: text + " and more words",
        lambda text: f"{text}\n\nThe words, and more." + " More." * 90,
        lambda text: text.rpartition("\n\n")[0],
        lambda text: text.replace("\n\n", "\n\n\n", 1),
    ],
)
def test_a_stream_that_has_changed(archive, tmp_path, monkeypatch, change):
    """Is refused, whether a part of it was read or all."""
    text = "\n\n".join(f"The words, number {n}." + " More." * 80 for n in range(150))
    for key, pieces in (("a part", 4), ("all", None)):
        stream = archive.stream(stdin(monkeypatch, text), key)
        for number, _ in enumerate(stream):
            if number == pieces:
                archive.commit()
                break
    stream.close()
    before = content(archive)
    for key in ("a part", "all"):
        if key == "a part" and change(text)[:60_000] == text[:60_000]:
            continue  # what is known of it is not changed
        with pytest.raises(AllMemError, match="has changed"):
            read(archive, stdin(monkeypatch, change(text)), key)
        archive.rollback()
        assert content(archive) == before


def test_a_stream_of_which_a_part_was_taken_back(archive, monkeypatch):
    """Does not go on with a gap."""
    stream = archive.stream(stdin(monkeypatch, PROSE[:40_000]), "a pipe")
    next(stream)
    archive.commit()
    next(stream)
    archive.rollback()
    with pytest.raises(AllMemError, match="read it again"):
        list(stream)
    archive.rollback()
    read(archive, stdin(monkeypatch, PROSE[:40_000]), "a pipe")


def test_search_while_a_document_is_read(archive, monkeypatch):
    """What was yielded is found."""
    text = "The glassblower had a locker. " * 3 + PROSE[:40_000]
    stream = archive.stream(stdin(monkeypatch, text), "a pipe")
    next(stream)
    assert archive.search("glassblower")
    archive.commit()
    assert archive.search("glassblower")
    list(stream)
    assert archive.search("glassblower")


def test_an_archive_of_another_tokenizer(archive, add, tmp_path):
    add("some words")
    before = content(archive)
    for create in (False, True):
        with pytest.raises(AllMemError, match="tokenizer of another model") as error:
            Archive.open(tmp_path / "book.archive", build(smollm2), create)
        assert "\n" not in str(error.value)
    wrapped = TokenizerWrapper(build(gpt2))
    with closing(Archive.open(tmp_path / "book.archive", wrapped)) as again:
        assert content(again) == before


def test_a_tokenizer_is_the_same_once_it_was_used():
    """Its first use switches padding and truncation off."""
    backend = gpt2()
    backend.enable_padding(length=64)
    backend.enable_truncation(32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    before = fingerprint(tokenizer)
    tokenizer.encode("some words")
    assert fingerprint(tokenizer) == before != fingerprint(build(gpt2))


def test_a_copy(archive, add, tmp_path, monkeypatch):
    """Also of what is being read, and over what was there."""
    add(PROSE[:9000], "some words")
    other = Archive.open(tmp_path / "copy.archive", build(gpt2), True)
    (tmp_path / "x.txt").write_text("what was there")
    other.add(Document(tmp_path / "x.txt"))
    stream = archive.stream(stdin(monkeypatch, PROSE[:30_000]), "a pipe")
    next(stream)
    archive.copy(other)
    other.close()
    with closing(Archive.open(tmp_path / "copy.archive", build(gpt2), True)) as other:
        assert content(other) == content(archive) and len(content(other)) == 3
        assert other.search("word") == archive.search("word")
        list(stream)
        with closing(Archive.temporary(build(gpt2))) as temporary:
            archive.copy(temporary)
            temporary.copy(other)
    with closing(Archive.open(tmp_path / "copy.archive")) as other:
        assert content(other) == content(archive)
    with closing(Archive.open(tmp_path / "book.archive", None, True)) as other:
        archive.copy(other)
    assert content(archive)


# Search.

FILLER = [PROSE[i : i + 500] for i in range(0, 40_000, 500)]
FACT = "The glassblower Marisa Holt kept her tools in locker 4471."


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Facts in many scripts, among other text."""
    folder = tmp_path_factory.mktemp("library")
    facts = [*(fact for fact, *_ in SCRIPTS.values()), FACT]
    (folder / "facts.txt").write_text("\n\n".join(x + " …" * 250 for x in facts))
    (folder / "other.txt").write_text("\n\n".join(FILLER))
    with closing(Archive.temporary(build(gpt2))) as archive:
        for name in ("facts.txt", "other.txt"):
            archive.add(Document(folder / name))
        yield archive


# What stands in a text, and what is asked.
SCRIPTS = {
    "Chinese": ("玻璃匠把工具放在四号柜子里。", "玻璃匠的柜子在哪里？", "工具", "匠"),
    "Chinese among Latin": ("他用Python写了iPhone的程序。", "写了", "python", "程序"),
    "Japanese": (
        "ガラス職人はロッカーに道具をしまった。",
        "ロッカー",
        "職人の道具は？",
        "ｶﾞﾗｽ",
    ),
    "Japanese without kanji": ("さくらのはながさいた。", "はなはいつさくか", "さくら"),
    "Thai": ("ช่างเป่าแก้วเก็บเครื่องมือไว้ในตู้", "เครื่องมือ", "ช่างเป่าแก้วอยู่ที่ไหน"),
    "Arabic": ("احتفظ صانع الزجاج بأدواته في الخزانة", "الخِزَانَةِ", "صانع الزجاج؟"),
    "Arabic with vowel points": ("وَقَعَتِ المُعَاهَدَةُ أَمْسِ", "المعاهدة", "وقعت"),
    "Persian": ("او کتاب را می‌خواهد", "می‌خواهد", "کتاب"),
    "Hebrew": ("הַסֵּפֶר נִמְצָא בַּאָרוֹן", "הספר", "בארון"),
    "Hindi": ("काँच बनाने वाले ने औज़ार अलमारी में रखे", "औज़ार कहाँ हैं?", "अलमारी"),
    "Korean": (
        "유리공은 도구를 사물함에 두었다",
        "도구를",
        unicodedata.normalize("NFD", "유리공은"),
    ),
    "Russian": ("Стеклодув хранил всё в шкафу", "СТЕКЛОДУВ?", "все", "шкафу"),
    "Greek": ("Ο υαλουργός φύλαγε τα εργαλεία", "υαλουργος", "ΕΡΓΑΛΕΊΑ"),
    "accents": (
        "Un café brûlé à Zürich, près de l'Élysée",
        "cafe",
        "CAFE\u0301",
        "zurich brule",
    ),
    "accents of two characters": (
        "Un re\u0301sume\u0301 naïf",
        "résumé",
        "resume naif",
    ),
    "German": ("Die Straße nach Überlingen", "STRASSE", "strasse", "uberlingen"),
    "Turkish": ("İzmir'de bir DİKİŞ makinesi", "izmir", "dikis"),
    "Vietnamese": ("Người thợ thủy tinh", "nguoi tho thuy", "thủy"),
    "full width": ("ＡＢＣ１２３４ 番の鍵", "abc1234", "ａｂｃ１２３４", "鍵"),
    "emoji": ("The sign has a 🦉 and a ❤️", "where is the 🦉?", "❤"),
    "ligatures": ("The ﬁrst oﬃce with a ℡", "first", "office", "tel"),
    "soft hyphens": (
        "An extra\u00adordinary photo\u00adgraph",
        "extraordinary",
        "photograph",
    ),
    "identifiers": (
        "The function parse_http_header of v2.31",
        "http header",
        "parse_http_header()",
    ),
    "other forms": (
        "She studies the histories of glaciers",
        "studying glacier history",
    ),
}


@pytest.mark.parametrize(
    "fact, question",
    [
        pytest.param(fact, question, id=f"{name} {number}")
        for name, (fact, *questions) in SCRIPTS.items()
        for number, question in enumerate(questions)
    ],
)
def test_scripts(library, fact, question):
    found = library.search(question, k=1)
    assert found and found[0].text.startswith(fact)


AWKWARD = {
    "a question": "Where did the glassblower keep her tools?",
    "quotes": '"glassblower" \'locker\' “Marisa"',
    "an open quote": 'glassblower " locker',
    "stars": "glassblower* *locker ** 4471*",
    "minus": "glassblower -locker - -- -4471",
    "caret and plus": "^glassblower + locker ^^",
    "columns": "body: glassblower - body : {body x} : locker nothing:here",
    "operators": "NOT glassblower AND OR NOT locker AND",
    "near": "NEAR(glassblower locker, 3) NEAR( NEAR/2 )",
    "brackets": "((glassblower) [locker] {4471} <x> ))) (",
    "SQL": "glassblower'; DROP TABLE passages; -- locker",
    "semicolons": "glassblower; locker, 4471. %_\\ | ~ ` @ # $ & = /",
    "NUL": "glassblower\0locker \0 4471",
    "control characters": "glassblower \x01\x02\x7f\x85\u2028locker",
    "surrogates": "glassblower \ud800\udc00 \udfff locker",
    "emoji": "glassblower 👩‍🏭 🏴󠁧󠁢󠁥󠁮󠁧󠁿 locker",
    "right to left": "\u202eglassblower\u202c locker",
    "10,000 words": "glassblower locker " + " ".join(f"w{i}" for i in range(10_000)),
    "10,000 words of the text": " ".join([*PROSE.split()[:10_000], FACT]),
    "a long word": "glassblower locker " + "x" * 100_000,
    "marks upon marks": "glassblower locker e" + "\u0301" * 5000,
}


@pytest.mark.parametrize("name", AWKWARD)
def test_no_question_is_an_error(library, name):
    found = library.search(AWKWARD[name], k=200)
    assert any(x.text.startswith(FACT) for x in found)
    assert found == library.search(AWKWARD[name], k=200)
    if "10,000" not in name:
        assert found[0].text.startswith(FACT)


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "?!", '"', "*", "-", "()", "\0", "…", "\u0301", "\ud800"]
)
def test_a_question_without_words(library, text):
    assert library.search(text) == []


@pytest.mark.parametrize("word", ["AND", "or", "NOT", "NEAR", "body", "rank", "terms"])
def test_words_that_mean_something_to_sqlite(archive, add, word):
    add("another text", f"some {word} here")
    assert [x.text for x in archive.search(word)] == [f"some {word} here"]


def test_terms_are_the_same_however_a_text_is_written():
    rng = random.Random(0)
    for seed in range(50):
        text = random_text(random.Random(seed), 500)
        found = terms(text)
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert terms(unicodedata.normalize(form, text)) == found, (seed, form)
        for term in found:
            assert terms(term)[-1] == term  # of two characters, after each of them
            assert not set(term) & set(' "*^:(){}+-') and term.split() == [term]
        assert query(" ".join(rng.sample(found, len(found)))).count('"') % 2 == 0


def test_the_best_come_first(archive, add):
    add(*FILLER[:9], FACT, "A locker.", "Tools and tools.")
    found = archive.search("Where are the glassblower's tools, which locker?", k=3)
    assert found[0].text == FACT
    assert [len(archive.search("the locker", k)) for k in (0, 1, 2)] == [0, 1, 2]


def test_neighbours_count_where_there_are_no_spaces(archive, add):
    """Else every text with both characters would be as good."""
    add("海上有一条船。", "上海有一条船。")
    for question in ("上海", "海上"):
        assert archive.search(question)[0].text.startswith(question)


def test_equal_passages_come_in_order(archive, add):
    add(*("equal words" for _ in range(9)), "other words that are not equal")
    found = archive.search("equal", k=5)
    assert [x.document for x in found] == [1, 2, 3, 4, 5]
    assert found == archive.search("equal", k=5)


def test_the_same_wherever_it_was_built(tmp_path):
    """Two archives of the same documents find the same."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(PROSE[:20_000] + name)
    results = []
    for piece in (77, 65_536):
        with closing(Archive.temporary(build(gpt2))) as archive:
            for name in ("a", "b"):
                archive.add(Document(tmp_path / f"{name}.txt", piece))
            results.append([archive.search(x, 9) for x in ("import", "the statement")])
    assert results[0] == results[1] and all(results[0])


def test_search_in_some_documents(archive, add):
    entries = add(*(f"equal words, number {n}" for n in range(9)))
    for chosen in ([], [3], [2, 8], range(1, 10), [99], [3, 99]):
        known = [entry.id for entry in entries if entry.id in chosen]
        found = archive.search("equal words", 20, chosen)
        assert sorted(x.document for x in found) == known
        assert archive.count(chosen) == len(known)
    assert len(archive.search("equal words", 20)) == archive.count() == 9


def test_the_index_is_asked_once(archive):
    """Not once for each document that is chosen."""
    asked = []
    archive.database.connection.set_trace_callback(asked.append)
    archive.search("words", 5, [1])
    (select,) = (x for x in asked if "MATCH" in x)
    plan = archive.database.connection.execute(
        f"EXPLAIN QUERY PLAN {select}"
    ).fetchall()
    assert "VIRTUAL TABLE" in plan[0][3]


def test_passages_of_a_document(archive, add):
    _, entry = add("another", "\n\n".join(FILLER * 4))
    found = list(archive.passages(entry))
    assert len(found) > 250
    for first in (0, 1, 99, 100, 101, len(found) - 1, len(found)):
        assert list(archive.passages(entry, first)) == found[first:]


def test_an_archive_that_is_not_open(archive):
    """A mistake of the program is no damage to the file."""
    archive.close()
    with pytest.raises(sqlite3.ProgrammingError):
        archive.search("words")
