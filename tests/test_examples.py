"""The programs of examples/, run as a user would, with a tiny model."""

import os
import subprocess
import sys

import mlx.core as mx
import pytest
from helpers import ROOT
from test_server import serving, talking_folder

from allmem_mlx import generate, load
from allmem_mlx.chat_template import Template

# Letters the tiny tokenizer knows.
BOOK = "HOW THE RING TURNS! " * 20
FISH = "MY CAT ATE ALL FISH. " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talking_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tiny(folder):
    return load(folder)


def example(name, *flags, stdin=""):
    return subprocess.run(
        [sys.executable, f"examples/{name}.py", *map(str, flags)],
        input=stdin.encode(),
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )


def output(name, *flags, stdin=""):
    result = example(name, *flags, "--max-tokens", "12", stdin=stdin)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def answer(tiny, *said):
    """What the model answers to a conversation that is read in one go: messages of the
    user, and answers between them."""
    model, tokenizer = tiny
    template = Template.of_chat(tokenizer)
    around = [template.closing, template.following]
    text = template.opening + said[0]
    for i, message in enumerate(said[1:]):
        text += around[i % 2] + message
    ids = tokenizer.encode(text + template.closing, add_special_tokens=False)
    return generate(model, tokenizer, ids, max_tokens=12)


def test_ask_a_book(folder, tiny, tmp_path):
    book, state = tmp_path / "book.txt", tmp_path / "book.txt.allmem"
    book.write_text(BOOK)
    flags = [book, "--model", folder]
    first, *answers = output("ask_a_book", *flags).split("\n> ")
    assert "tokens were read, and are in" in first
    assert len(answers) == 5
    for asked in answers:
        question, said = asked.split("\n", 1)
        assert said.strip("\n") == answer(tiny, f"{BOOK}\n\n{question}").strip("\n")

    written = state.read_bytes()
    again, *same = output("ask_a_book", *flags).split("\n> ")
    assert "tokens were read before" in again and same == answers
    assert state.read_bytes() == written

    book.write_text(FISH)
    os.utime(book, (state.stat().st_mtime + 1,) * 2)
    new, *others = output("ask_a_book", *flags).split("\n> ")
    assert "tokens were read, and are in" in new and others != answers


def test_chat_over_folder(folder, tiny, tmp_path):
    (tmp_path / "b.txt").write_text(FISH)
    (tmp_path / "a.txt").write_text(BOOK)
    (tmp_path / "c.md").write_text("NOT A TEXT FILE")
    questions = "WHO IS IT?", "WHERE IS IT?"
    flags = [tmp_path, "--model", folder]
    out = output("chat_over_folder", *flags, stdin="{}\n\n{}\n".format(*questions))
    read = f"a.txt:\n{BOOK}\n\nb.txt:\n{FISH}\n\n"
    one = answer(tiny, read + questions[0])
    two = answer(tiny, read + questions[0], one, questions[1])
    assert out.endswith(f"tokens\n{one}\n{two}\n")


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
        ("ask_a_book", [missing, "--model", folder], "missing.txt' does not exist"),
        ("chat_over_folder", [tmp_path], "no text files"),
        ("server_client", ["--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ):
        result = example(name, *flags)
        message = result.stderr.decode()
        assert result.returncode == 1 and message.count("\n") == 1
        assert message.startswith("error: ") and words in message


def test_every_example_says_how_to_run_it():
    for path in (ROOT / "examples").glob("*.py"):
        assert f"    python examples/{path.name}" in path.read_text()


def test_shallow_model(folder, tmp_path):
    result = example(
        "shallow_model", tmp_path / "new", "--model", folder, "--layers", 1
    )
    assert result.returncode == 0, result.stderr.decode()
    model, tokenizer = load(tmp_path / "new")
    whole, _ = load(folder)
    assert len(model.layers) == 1
    ids = tokenizer.encode(BOOK, add_special_tokens=False)
    whole.model.layers = whole.model.layers[-1:]
    actual, expected = (x(mx.array([ids])) for x in (model, whole))
    assert mx.array_equal(actual, expected)
    result = example("shallow_model", tmp_path / "b", "--model", folder, "--layers", 9)
    assert result.returncode == 2 and b"--layers must be 1 to 2" in result.stderr
