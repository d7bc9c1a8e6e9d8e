"""The programs of examples/, run as a user would, with a tiny model."""

import os

import pytest
from helpers import active_folder, prose
from processes import ROOT, run
from test_server import serving, talking_folder

from allmem_mlx import generate, load
from allmem_mlx.archive import Archive
from allmem_mlx.chat_template import Template
from allmem_mlx.documents import Document
from allmem_mlx.session import Session

# Letters the tiny tokenizer knows.
BOOK = "HOW THE RING TURNS! " * 20
FISH = "MY CAT ATE ALL FISH. " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talking_folder(tmp_path_factory.mktemp("model"))


def example(name, *flags, stdin=""):
    return run(f"examples/{name}.py", *flags, stdin=stdin)


def output(name, *flags, stdin=""):
    result = example(name, *flags, "--max-tokens", "12", stdin=stdin)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def answer(tiny, *messages):
    """The model's answer to a conversation that is read at once: messages of the user,
    and answers between them."""
    model, tokenizer = tiny
    template = Template.of_chat(tokenizer)
    around = [template.closing, template.following]
    text = template.opening + messages[0]
    for i, message in enumerate(messages[1:]):
        text += around[i % 2] + message
    ids = tokenizer.encode(text + template.closing, add_special_tokens=False)
    return generate(model, tokenizer, ids, max_tokens=12)


@pytest.mark.slow
def test_ask_a_book(tmp_path):
    folder = active_folder(tmp_path, window=512)
    book, state = tmp_path / "book.txt", tmp_path / "book.txt.allmem"
    book.write_text(prose())
    questions = "WHERE IS THE CUP OF KING3?", "WHERE IS THE CUP OF KING5?"
    flags = [book, *questions, "--model", folder]
    first, *answers = output("ask_a_book", *flags).split("\n> ")
    assert "tokens read" in first

    model, tokenizer = load(folder)
    session = Session(model, tokenizer, archive=Archive.temporary(tokenizer))
    for _ in session.read(Document(book).pieces(tokenizer)):
        pass
    for question, printed in zip(questions, answers, strict=True):
        responses = list(session.ask(question, max_tokens=12))
        sources = [source.passage.where for source in responses[-1].sources]
        lines = [f"[{i}] {place}" for i, place in enumerate(sources, 1)]
        assert lines and all("book.txt, at " in line for line in lines)
        answer = "".join(response.text for response in responses)
        assert printed.rstrip("\n") == "\n".join([question, answer, *lines])

    written = state.read_bytes()
    again, *same = output("ask_a_book", *flags).split("\n> ")
    assert "tokens were read before" in again and same == answers
    assert state.read_bytes() == written

    book.write_text(FISH)
    os.utime(book, (state.stat().st_mtime + 1,) * 2)
    new, *others = output("ask_a_book", *flags).split("\n> ")
    assert "tokens read" in new and others != answers


def test_chat_over_folder(folder, tiny, tmp_path):
    (tmp_path / "b.txt").write_text(FISH)
    (tmp_path / "a.txt").write_text(BOOK)
    questions = "WHO IS IT?", "WHERE IS IT?"
    flags = [tmp_path, "--model", folder]
    out = output("chat_over_folder", *flags, stdin="{}\n\n{}\n".format(*questions))
    read = f"# a.txt\n\n{BOOK}\n\n# b.txt\n\n{FISH}\n\n"
    one = answer(tiny, read + questions[0])
    two = answer(tiny, read + questions[0], one, questions[1])
    assert out.endswith(f"tokens read\n> {one}\n> {two}\n> ")


def test_server_client(folder, tiny):
    messages = "HOW THE RING TURNS!", "WHO IS IT?"
    with serving(folder) as (url,):
        out = output("server_client", *messages, "--url", url)
    one = answer(tiny, messages[0])
    two = answer(tiny, messages[0], one, messages[1])
    assert out.startswith(f"> {messages[0]}\n{one}\n(")
    assert f"> {messages[1]}\n{two}\n(" in out


def test_errors_are_one_line(folder, tmp_path):
    missing = tmp_path / "missing.txt"
    for name, flags, words in (
        ("ask_a_book", [missing, "WHO?"], "missing.txt' does not exist"),
        ("chat_over_folder", [tmp_path], "has no documents to read"),
        ("server_client", ["--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ):
        result = example(name, *flags)
        message = result.stderr.decode()
        assert result.returncode == 1 and message.count("\n") == 1
        assert "error: " in message and words in message


def test_every_example_says_how_to_run_it():
    for path in (ROOT / "examples").rglob("*.py"):
        assert f"    python {path.relative_to(ROOT)}" in path.read_text()
