"""The search command, which needs no model, and what counts are told of."""

import json

import pytest
from helpers import assert_refused, tiny_tokenizer
from processes import run
from transformers import AutoTokenizer

from allmem_mlx.archive.archive import Archive
from allmem_mlx.archive.citations import printable, printable_line
from allmem_mlx.archive.counting import asks_for_count, counting_note
from allmem_mlx.archive.lookup import Lookup, Source
from allmem_mlx.documents import Document

HOSTILE = "A hostile walrus \x1b]0;owned\x07\x1b[31mred\x1b[0m \x9b2J \u202egnirts end."
FILLER = "The tide came and the tide went, and nobody wrote it down. " * 30
TEXT = f"""# One

The keeper of the lighthouse is Maren. The lighthouse is old. {FILLER}

# Two

A whale was seen from the lighthouse at noon. {FILLER}

# Three

Two whales swam past. {FILLER}

# Four

{HOSTILE}
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def book(tmp_path_factory, tokenizer):
    """An archive; the document is beside it."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "notes.md").write_text(TEXT)
    archive = Archive.open(folder / "book.archive", tokenizer, create=True)
    archive.add(Document(folder / "notes.md"))
    archive.close()
    return folder / "book.archive"


@pytest.fixture
def archive(book):
    archive = Archive.open(book)
    yield archive
    archive.close()


def search(*flags) -> str:
    result = run("allmem_mlx.search", *flags)
    assert result.returncode == 0, result.stderr.decode()
    assert not result.stderr
    return result.stdout.decode()


class TestSearch:
    def test_the_best_comes_first_with_its_place(self, book):
        lines = search(book, "who", "keeps the lighthouse?", "keeper").splitlines()
        assert lines[0] == "notes.md, One: The keeper of the lighthouse is Maren."
        assert any(line.startswith("notes.md, Two: A whale was seen") for line in lines)

    def test_any_of_the_words_is_enough(self, book):
        assert len(search(book, "whale keeper").splitlines()) == 3
        assert len(search(book, "whale keeper", "-k", 1).splitlines()) == 1

    def test_whole_passages(self, book):
        found = search(book, "whale", "--full")
        assert found.startswith("notes.md, ") and "\n\nnotes.md, " in found
        assert "The tide came" in found

    def test_json(self, book, archive):
        (one, two) = map(json.loads, search(book, "whale", "--json").splitlines())
        found = archive.search("whale")
        assert [one["text"], two["text"]] == [passage.text for passage in found]
        assert {one["section"], two["section"]} == {"Two", "Three"}
        assert one["sentence"] in one["text"] and one["source"] == "notes.md"
        assert one["first"] == found[0].first and one["last"] == found[0].last

    @pytest.mark.parametrize("flags", [(), ("--full",), ("--json",)])
    def test_what_a_terminal_would_obey_is_not_printed(self, book, flags):
        found = search(book, "walrus", *flags)
        assert "hostile walrus" in found
        assert printable(found) == found

    @pytest.mark.parametrize("words", ["xyzzy", "?!", '"', "NOT", ""])
    def test_nothing_is_found(self, book, words):
        result = run("allmem_mlx.search", book, words)
        assert_refused(result, 1, "no passage has any of these words")

    def test_a_state_has_its_archive_beside_it(self, book):
        state = book.with_suffix(".allmem")
        assert search(state, "Maren") == search(book, "Maren")

    def test_without_a_model(self, book):
        code = (
            "import sys\nfrom allmem_mlx.search import main\n"
            "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
            "heavy = {'mlx', 'mlx_lm', 'transformers', 'tokenizers', 'numpy'}\n"
            "assert not heavy & set(sys.modules)"
        )
        for flags in ([book, "whale"], ["-h"]):
            result = run("-c", code, *flags, fresh=True)
            assert result.returncode == 0, result.stderr.decode()


class TestRefused:
    def refused(self, code, *flags, words):
        assert_refused(run("allmem_mlx.search", *flags), code, *words)

    def test_a_document(self, book):
        words = (
            "is not an archive; make one",
            f"--prompt-file {book.with_name('notes.md')}",
            f"--archive {book.with_name('notes.archive')} --index-only",
        )
        self.refused(1, book.with_name("notes.md"), "whale", words=words)

    def test_a_state_without_an_archive(self, tmp_path):
        (tmp_path / "other.allmem").write_bytes(b"a state")
        words = "no archive beside", "other.archive' does not exist"
        self.refused(1, tmp_path / "other.allmem", "whale", words=words)

    @pytest.mark.parametrize("name", ["none.archive", "none.allmem", "none"])
    def test_what_is_not_there(self, tmp_path, name):
        self.refused(1, tmp_path / name, "whale", words=["none", "does not exist"])

    def test_a_folder(self, tmp_path):
        folder = tmp_path / "a folder"
        folder.mkdir()
        self.refused(1, folder, "whale", words=["make one", f"'{folder}.archive'"])

    @pytest.mark.parametrize("damage", [b"", b"x", b"nothing of the kind " * 99])
    def test_what_is_no_archive(self, tmp_path, damage):
        (tmp_path / "bad.archive").write_bytes(damage)
        self.refused(1, tmp_path / "bad.archive", "x", words=["is not an archive"])

    def test_a_damaged_archive(self, book, tmp_path):
        data = bytearray(book.read_bytes())
        at = data.index(b"The keeper of the")
        data[at] ^= 1
        (tmp_path / "bad.archive").write_bytes(data)
        self.refused(1, tmp_path / "bad.archive", "whale", words=["is damaged"])

    @pytest.mark.parametrize(
        "flags, words",
        [
            ((), ["FILE, WORDS"]),
            (("book.archive",), ["WORDS"]),
            (("book.archive", "x", "-k", "0"), ["--limit must be at least 1"]),
            (("book.archive", "x", "-k", "many"), ["--limit", "many"]),
        ],
    )
    def test_a_wrong_use(self, flags, words):
        self.refused(2, *flags, words=words)


def test_printable():
    assert printable(HOSTILE) == ("A hostile walrus ]0;owned[31mred[0m 2J gnirts end.")
    kept = "Tabs\tand lines\nstay, as do é, 中文, 👩\u200d👩\u200d👧 and می\u200cخواهم"
    assert printable(kept) == kept
    assert printable("one\r\ntwo\x0bthree\u2028four\u3000") == "one\ntwo three four "
    assert printable_line(" one\r\n\ttwo\x1b ") == "one two"


class TestCounting:
    @pytest.mark.parametrize(
        "question",
        [
            "How many whales are there?",
            "And how  often\ndoes she row?",
            "What is the number of times he asks?",
            "Count the ships.",
            "please count every ship",
            "List all the ships",
            "Read it. Then list every name.",
            "Can you name all of them?",
            "Give me all dates.",
            "What is the total count of ships?",
            "how frequently is it mentioned",
        ],
    )
    def test_it_asks_for_a_count(self, question):
        assert asks_for_count(question)

    @pytest.mark.parametrize(
        "question",
        [
            "Who is Count Dracula?",
            "Who is the Count of Monte Cristo?",
            "How much is it?",
            "Who counts the money?",
            "Tell me all about Ahab.",
            "What is the house number of Maren?",
            "What did she list?",
            "",
        ],
    )
    def test_it_does_not(self, question):
        assert not asks_for_count(question)

    def lookup(self, archive, question, k=2):
        found = archive.search(question, k)
        sources = [Source(n, passage, True) for n, passage in enumerate(found, 1)]
        return Lookup(sources, 0, archive.count(), 0, 0)

    def note(self, archive, question, **options):
        return counting_note(
            archive, self.lookup(archive, question), question, **options
        )

    def test_the_note(self, archive):
        total = archive.count()
        assert self.note(archive, "How many whales are there?") == (
            "Counting: only the 2 passages above were looked at; "
            f'2 of {total} passages have "whales"'
        )
        question = "How often is the lighthouse keeper mentioned?"
        assert self.note(archive, question).endswith(
            f'; 1 of {total} passages has "lighthouse" and "keeper"'
        )
        assert self.note(archive, "How many unicorns?") == (
            "Counting: no passage was looked at; "
            f'none of {total} passages has "unicorns"'
        )
        assert self.note(archive, "How many whales?", documents=[]) == (
            "Counting: only the 2 passages above were looked at; "
            'none of 0 passages has "whales"'
        )
        assert ";" not in self.note(archive, "How many are there?")

    def test_no_note(self, archive):
        assert self.note(archive, "Where is the whale?") == ""
        assert counting_note(archive, None, "How many whales?") == ""

    def test_matches(self, archive):
        assert archive.matches("whale") == archive.matches("Whales!") == 2
        assert archive.matches("whale lighthouse") == 1
        assert archive.matches("whale unicorn") == archive.matches("?") == 0
        assert archive.matches("whale", []) == 0
        (entry,) = archive.documents()
        assert archive.matches("whale", [entry.id]) == 2
