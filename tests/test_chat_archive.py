"""A chat about documents: sources, and questions while a document is read."""

import os

import pytest
from helpers import active_folder, prose
from test_chat import ChatTerminal, piped

from allmem_mlx.archive import Archive
from allmem_mlx.chat_template import Template
from allmem_mlx.cli.chat_commands import Chat
from allmem_mlx.errors import AllMemError, SettingError
from allmem_mlx.session import Session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return active_folder(tmp_path_factory.mktemp("model"), window=2048, chunk=64)


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(prose())
    return path


@pytest.fixture
def chat(tiny):
    model, tokenizer = tiny
    archive = Archive.temporary(tokenizer)
    session = Session(model, tokenizer, snapshots=True, archive=archive)
    return Chat(session, Template.of_chat(tokenizer), {"max_tokens": 4})


def test_commands(folder, document):
    out, err = piped(
        folder,
        f"/read {document}",
        "WHERE IS THE CUP OF KING4?",
        "/sources",
        "/quote 1",
        "/quote 9",
        "/search CUP KING2",
        "/passages 0",
        "WHERE IS THE CUP OF KING4?",
        "/sources",
        "/passages x",
    )
    assert out.count("KING4 IS IN DELHI.") >= 3  # answer, /sources, /quote
    assert out.count("100 % of the document has been read") == 2
    assert "KING2 IS IN PARIS." in out
    assert "there is no passage 9; there are: 1" in err
    assert "usage: /passages N" in err
    assert "nothing was looked up" in err


def test_saved_and_loaded_with_what_was_read(chat, document, tmp_path, capsys):
    chat.take(f"/read {document}")
    chat.take(f"/save {tmp_path / 'a.allmem'}")
    assert (tmp_path / "a.archive").exists()
    chat.take("/reset")
    chat.take("WHERE IS THE CUP OF KING1?")
    assert chat.lookup is None
    chat.take(f"/load {tmp_path / 'a.allmem'}")
    capsys.readouterr()
    chat.take("WHERE IS THE CUP OF KING1?")
    assert "KING1 IS IN QUITO." in capsys.readouterr().out


def test_undo_takes_back_passages_too(chat, document):
    chat.take(f"/read {document}")
    before = chat.session.state.digest
    chat.take("WHERE IS THE CUP OF KING1?")
    assert chat.session.state.digest != before
    chat.take("/undo")
    assert chat.session.state.digest == before
    chat.take("/undo")
    chat.take("WHERE IS THE CUP OF KING1?")
    assert chat.lookup is None


def test_refused(chat, tmp_path):
    for line in ("/sources", "/quote 1"):
        with pytest.raises(SettingError, match="nothing was looked up"):
            chat.take(line)
    (tmp_path / "b.archive").write_text("mine")
    (tmp_path / "prose.txt").write_text(prose())
    chat.take(f"/read {tmp_path / 'prose.txt'}")
    with pytest.raises(AllMemError, match="already exists"):
        chat.take(f"/save {tmp_path / 'b.allmem'}")
    assert (tmp_path / "b.archive").read_text() == "mine"
    assert not (tmp_path / "b.allmem").exists()


@pytest.mark.slow
def test_asked_while_it_is_read(folder, tmp_path):
    """A question that is typed is answered from all of the document at once, and
    reading goes on."""
    path = tmp_path / "long.txt"
    path.write_text(prose() + f" {prose(['BERN'] * 40)}".replace("KING", "DUKE"))
    chat = ChatTerminal(folder, "-m", "4")
    os.write(chat.main, f"/read {path}\n".encode())
    chat.until("ask while it is read")
    chat.until("tokens-per-sec")
    os.write(chat.main, b"WHERE IS THE CUP OF KING3?\n")
    seen = chat.until("of the document has been read")
    assert "KING3 IS IN CAIRO." in seen
    share = int(seen.split(";")[-1].split("%")[0])
    assert share < 100
    os.write(chat.main, b"/save x\n")
    chat.until("/save has to wait")
    chat.until("tokens-per-sec")
    chat.interrupt("stopped after")
    chat.until(">> ")
    os.write(chat.main, b"/quit\n")
    chat.end()
