"""The chat, typed in a terminal and piped in."""

import contextlib
import ctypes.util
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import active_folder, assert_refused, assert_same_arrays
from processes import Terminal, run

from allmem_mlx import state as states
from allmem_mlx.chat_template import Template
from allmem_mlx.cli import chat_commands
from allmem_mlx.cli.chat_commands import Chat, Quit
from allmem_mlx.cli.progress import Progress
from allmem_mlx.conversation import Conversation
from allmem_mlx.documents import Document
from allmem_mlx.errors import AllMemError, SettingError
from allmem_mlx.session import Session

TURNS = ["HOW?", "WHO TURNS?", "THE RING.", "A QUICK FOX", "WHY NOT?", "AND THEN?"]
TEXT = "".join(f"HOW THE RING {i} TURNS! " for i in range(120))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return active_folder(tmp_path_factory.mktemp("model"), chunk=64, window=64)


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def chat(tiny):
    """A chat without a terminal, in this process."""
    model, tokenizer = tiny
    session = Session(model, tokenizer, snapshots=True)
    return Chat(session, Template.of_chat(tokenizer), {"max_tokens": 3})


def piped(folder, *lines, flags=(), code=0, **options) -> tuple[str, str]:
    """What the chat answers to lines on stdin, and what it says on stderr."""
    result = run(
        *("allmem_mlx.chat", "--model", folder, "-m", "8", *flags),
        stdin="".join(f"{line}\n" for line in lines),
        **options,
    )
    assert result.returncode == code, result.stderr.decode()
    return result.stdout.decode(), result.stderr.decode()


def fresh(tiny, *said, system=None, count=8) -> tuple[list[str], states.State]:
    """The answers, and the state, of a session in which this was said."""
    model, tokenizer = tiny
    session = Session(model, tokenizer)
    talk = Conversation(session, Template.of_chat(tokenizer, system))
    answers = []
    for text in said:
        responses = talk.ask(text, max_tokens=count)
        answers.append("".join(response.text for response in responses))
    return answers, session.state


def assert_same(actual: states.State, expected: states.State) -> None:
    assert actual.digest == expected.digest
    assert_same_arrays(actual.arrays, expected.arrays)


class ChatTerminal(Terminal):
    """The chat at a terminal."""

    def __init__(self, folder, *flags, **options):
        env = {"TERM": "xterm", **os.environ, **options.pop("env", {})}
        command = ["allmem_mlx.chat", "--model", folder, *flags]
        super().__init__(*command, columns=200, env=env, **options)
        self.until(">> ")

    def type(self, text: str, until: str = ">> ") -> str:
        """What is printed after a line was typed, up to the next prompt."""
        os.write(self.main, f"{text}\n".encode())
        self.until("\n")  # the line itself, as the terminal shows it
        return self.until(until)

    def signal(self, number: int, until: Callable[[float], object]) -> None:
        """Sends a signal, and again if nothing comes of it in 5 seconds: the line
        editor does not see one that comes just before it waits for a key."""
        for _ in range(5):
            self.process.send_signal(number)
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                until(5)
                return
        raise AssertionError(self.seen)

    def interrupt(self, words: str) -> str:
        """What Ctrl-C leads to, up to some words."""
        begin = self.at
        self.signal(signal.SIGINT, lambda seconds: self.until(words, seconds))
        return self.seen[begin : self.at]


class TestTerminal:
    def test_every_command(self, folder, document, tmp_path):
        chat = ChatTerminal(folder, "-m", "8")
        file = tmp_path / "state"
        answer = chat.type("HOW?")
        tokens = re.search(r"Tokens: (\d+), ", stats := chat.type("/stats"))[1]
        for line in ("State: ", "Snapshots: ", "Generation: ", "Peak memory: "):
            assert line in stats
        assert f"saved {tokens} tokens" in chat.type(f"/save {file}")
        assert "read 2" in chat.type(f"/read {document}")
        assert "Reading: " in chat.type("/stats")
        assert f"{tokens} tokens remain" in chat.type("/undo")
        assert chat.type("/retry") == answer
        assert f"in b, with {tokens} tokens" in chat.type("/fork b")
        chat.type("WHO?")
        assert f"in main, with {tokens} tokens" in chat.type("/switch main")
        chat.type("/reset")
        assert "Tokens: 0, " in chat.type("/stats")
        assert f"loaded {tokens} tokens" in chat.type(f"/load {file}")
        listed = chat.type("/help")
        for name in "read save load undo retry fork switch reset stats quit".split():
            assert f"/{name} " in listed
        wrong = {
            "/nothing": "there is no /nothing",
            "/read": "usage: /read FILE ...",
            "/undo now": "usage: /undo",
            "/undo": "nothing to undo",
            "/retry": "no message to answer again",
            "/fork b": "branch b already exists",
            "/switch c": "there is no branch c; there are: main, b",
            f"/load {document}": "not a state file",
            f"/save {document}": "not a state file",
            f"/load {tmp_path}/none": "No such file",
        }
        for line, message in wrong.items():
            said = chat.type(line)
            assert "error: " in said and message in said
        assert document.read_text() == TEXT
        os.write(chat.main, b"/quit\n")
        chat.end()

    def test_several_lines_and_history(self, folder, tiny):
        chat = ChatTerminal(folder, "-m", "8")
        chat.type('"""HOW', until="... ")
        chat.type("NOT", until="... ")
        several = chat.type('WHY?"""')
        expected, _ = fresh(tiny, "HOW\nNOT\nWHY?")
        assert expected[0].split("\n")[0] in several
        assert "Peak memory" in chat.type("/stats")
        os.write(chat.main, b"\x1b[A\n")  # the key up brings the last line back
        assert "/stats" in chat.until("Peak memory")
        chat.until(">> ")
        os.write(chat.main, b"\x04")
        chat.end()

    def test_ctrl_c_stops_an_answer(self, folder, tiny):
        """Not the program; the turn is closed, and the next one is answered."""
        chat = ChatTerminal(folder, "-m", "-1")
        os.write(chat.main, b"HOW?\n")
        chat.until("\n")
        while len(chat.seen) == chat.at:  # until it answers
            chat.read()
        chat.interrupt("[stopped; /retry answers again]")
        chat.until(">> ")
        assert "Tokens: " in chat.type("/stats")
        os.write(chat.main, b"\x04")
        chat.end()

    def test_ctrl_c_stops_reading(self, folder, tmp_path):
        long = tmp_path / "long.txt"
        long.write_text(TEXT * 100)
        chat = ChatTerminal(folder, "-m", "8")
        os.write(chat.main, f"/read {long}\n".encode())
        chat.until("tokens-per-sec")
        stopped = chat.interrupt(">> ")
        tokens = re.search(r"stopped after (\d+) tokens", stopped)[1]
        assert 0 < int(tokens) < len(TEXT) * 100
        assert f"Tokens: {tokens}, " in chat.type("/stats")
        chat.type("HOW?")
        os.write(chat.main, b"\x04")
        chat.end()

    def test_ctrl_c_twice_while_reading(self, folder, tmp_path):
        """Impatience does not end the chat, and what was read stays."""
        long = tmp_path / "long.txt"
        long.write_text(TEXT * 100)
        chat = ChatTerminal(folder, "-m", "8")
        os.write(chat.main, f"/read {long}\n".encode())
        chat.until("tokens-per-sec")
        for _ in range(2):
            chat.process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        chat.until(">> ")
        chat.type("")  # the second signal may come at the prompt, and take a line
        stats = chat.type("/stats", until="Peak memory: ")
        assert int(re.search(r"Tokens: (\d+), ", stats)[1]) > 0
        chat.until(">> ")
        chat.type("HOW?")
        os.write(chat.main, b"\x04")
        chat.end()

    def test_ctrl_c_while_a_message_is_read(self, folder, tiny, monkeypatch, capsys):
        """It does not wait for the end of the message; the next one closes the turn."""
        model, tokenizer = tiny
        session = Session(model, tokenizer, snapshots=True)
        chat = Chat(session, Template.of_chat(tokenizer), {"max_tokens": 3})

        def snapshot(state):
            os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(session, "_snapshot", snapshot)
            chat.take(TEXT)
        assert session.state.read == 64 and not capsys.readouterr().out.strip()
        rendered = Template.of_chat(tokenizer)
        said = rendered.opening + TEXT + rendered.closing + rendered.following + "WHY?"
        chat.take("WHY?")
        expected = Session(model, tokenizer)
        prompt = ids(tokenizer, said + rendered.closing)
        assert list(expected.generate(prompt, max_tokens=3))
        assert session.state.digest == expected.state.digest

    def test_ctrl_c_at_the_prompt(self, folder):
        """Once leads to a new prompt, twice in a row ends."""
        chat = ChatTerminal(folder)
        for _ in range(2):
            os.write(chat.main, b"HALF A LI")
            chat.interrupt("Ctrl-C again")
            chat.until(">> ")
            chat.type("/undo")
        chat.interrupt("Ctrl-C again")
        chat.until(">> ")
        chat.signal(signal.SIGINT, chat.process.wait)
        chat.end()

    @pytest.mark.parametrize("editor", ["readline", "edit"])
    def test_tab(self, folder, tiny, tmp_path, editor):
        """In the line editor of Linux, and in that of macOS."""
        library = ctypes.util.find_library(editor)
        if library is None:
            pytest.skip(f"no lib{editor}")
        for name in (
            "my book.txt",
            "my bible.txt",
            "O'Neill.txt",
            "été.txt",
            "[1].txt",
        ):
            (tmp_path / name).write_text("HOW?")
        (tmp_path / "a folder").mkdir()
        (tmp_path / "a folder" / "x y.txt").write_text("HOW?")
        chat = ChatTerminal(
            folder,
            "-m",
            "8",
            env={"LD_PRELOAD": library, "HOME": str(tmp_path)},
            fresh=True,
        )
        # In a message it is itself.
        assert "there is no /HOW\tNOW; " in chat.type("HOW\tNOW\x01/")
        chat.type('"""HOW', until="... ")
        chat.type('/rea\t?"""')
        chat.type(f"/save {tmp_path}/'the state'")
        _, expected = fresh(tiny, "HOW\n/rea\t?")
        assert_same(states.load(tmp_path / "the state", tiny[0]), expected)
        read = {
            f"{tmp_path}/my\\ bo\t": "my book.txt",
            f"'{tmp_path}/my bi\t": "my bible.txt",
            f'"{tmp_path}/my bo\t': "my book.txt",
            f"{tmp_path}/O\t": "O'Neill.txt",
            f"'{tmp_path}/O\t": "O'Neill.txt",
            "~/é\t": "été.txt",
            f"{tmp_path}/[\t": "[1].txt",
            f"{tmp_path}/a\tx\t": "a folder/x y.txt",
            f'"{tmp_path}/a\tx\t': "a folder/x y.txt",
        }
        for line, name in read.items():
            said = chat.type(f"/rea\t{line}")
            assert f"tokens of {str(tmp_path / name)!r}" in said, said
        assert "not a state file" in chat.type(f"/lo\t{tmp_path}/my\\ bi\t")
        os.write(chat.main, f"/read {tmp_path}/my\t\t\t".encode())
        chat.until("bible.txt  ")  # those that begin so
        chat.until("book.txt  ")
        os.write(chat.main, b"o\t\n")
        chat.until(f"tokens of {str(tmp_path / 'my book.txt')!r}")
        chat.until(">> ")
        assert "Tokens: " in chat.type("/sta\t")
        assert "Tokens: " in chat.type(
            "REST\x01/sta\t\x0b"
        )  # before the rest of a line
        assert "there is no /nothing" in chat.type("/nothing\t")
        os.write(chat.main, b"/ex\t\n")
        chat.end()

    def test_terminated(self, folder):
        chat = ChatTerminal(folder)
        chat.signal(signal.SIGTERM, chat.process.wait)
        chat.end(143)

    def test_no_color(self, folder):
        chat = ChatTerminal(folder, "-m", "8", env={"NO_COLOR": "1"})
        chat.type("HOW?")
        chat.type("/stats")
        os.write(chat.main, b"\x04")
        chat.end()
        assert "\x1b" not in re.sub(r"\x1b\[<u|HOW\?", "", chat.seen)


class TestPiped:
    def test_only_answers(self, folder, tiny):
        out, err = piped(folder, *TURNS[:3], "")
        answers, _ = fresh(tiny, *TURNS[:3])
        assert out == "".join(f"{answer}\n" for answer in answers)
        assert "\x1b" not in out + err and ">>" not in out + err

    def test_an_error_does_not_end_it(self, folder, tiny):
        out, err = piped(folder, "/read nowhere", "/read a\0b", "/nothing", "HOW?")
        assert out == fresh(tiny, "HOW?")[0][0] + "\n"
        assert err.count("error: ") == 3 and "Traceback" not in err

    def test_any_bytes(self, folder, tiny):
        lines = "A\ufffd éé\n".encode().replace("\ufffd".encode(), b"\xe9") + b"A\xe9\n"
        result = run("allmem_mlx.chat", "--model", folder, "-m", "8", stdin=lines)
        assert result.returncode == 0, result.stderr
        assert result.stdout.decode() == fresh(tiny, "A\ufffd éé")[0][0] + "\n"
        assert b"1 character could not be decoded" in result.stderr
        assert b"error: the message is not UTF-8" in result.stderr

    def test_names_and_slashes(self, folder, tiny, document):
        """~ is the home folder, - no standard input, and a message may begin with /."""
        lines = [f"/read ~/{document.name}", "/undo", "/read -", '"""/HOW?"""']
        out, err = piped(folder, *lines, env={"HOME": str(document.parent)})
        assert out.startswith("read 2") and "cannot read standard input" in err
        assert out.endswith(fresh(tiny, "/HOW?")[0][0] + "\n")

    def test_the_system_prompt_comes_once(self, folder, tiny, tmp_path):
        """And every turn is closed, also one that was cut off by its length."""
        model, tokenizer = tiny
        file = tmp_path / "state"
        flags = ["--system-prompt", "BE KIND", "-m", "3"]
        out, err = piped(folder, "HOW?", "WHO?", f"/save {file}", flags=flags)
        answers, state = fresh(tiny, "HOW?", "WHO?", system="BE KIND", count=3)
        assert_same(states.load(file, model), state)
        rendered = "<|im_start|>system\nBE KIND<|im_end|>\n<|im_start|>user\nHOW?"
        rendered += "<|im_end|>\n<|im_start|>assistant\n"
        said, cut = [], False
        session = Session(model, tokenizer)
        for response in session.generate(ids(tokenizer, rendered), max_tokens=3):
            said.append(response.token)
        cut = response.finish_reason == "length"
        assert cut and "[stopped after 3 tokens (--max-tokens)]" in err
        following = "<|im_end|>\n<|im_start|>user\nWHO?<|im_end|>\n"
        following += "<|im_start|>assistant\n"
        read = [*ids(tokenizer, rendered), *said, *ids(tokenizer, following)]
        last = state.recent[len(state.recent) - (state.read - len(read)) :]
        assert states.digest([*read, *last]) == state.digest

    def test_undo(self, folder, tiny, tmp_path):
        """Five turns, two undone, another: the session of the four that remain."""
        file = tmp_path / "state"
        lines = [*TURNS[:5], "/undo", "/undo", TURNS[5], f"/save {file}"]
        out, _ = piped(folder, *lines)
        answers, state = fresh(tiny, *TURNS[:3], TURNS[5])
        assert_same(states.load(file, tiny[0]), state)
        assert f"{answers[-1]}\nsaved" in out

    def test_retry_and_branches(self, folder, tiny):
        """A branch does not know what was said in another."""
        lines = ["HOW?", "/retry", "/fork b", "WHO?", "/switch main", "WHY?"]
        out, _ = piped(folder, *lines, "/switch b", "AND?")
        main, _ = fresh(tiny, "HOW?", "WHY?")
        branch, _ = fresh(tiny, "HOW?", "WHO?", "AND?")
        said = re.sub(r"in (main|b), with \d+ tokens\n", "", out)
        expected = [main[0], main[0], branch[1], main[1], branch[2]]
        assert said == "".join(f"{answer}\n" for answer in expected)

    def test_saved_and_opened_in_another_process(self, folder, tiny, tmp_path):
        file = tmp_path / "state"
        piped(folder, *TURNS[:2], f"/save {file}")
        expected = fresh(tiny, *TURNS[:3])[0][2] + "\n"
        assert piped(folder, TURNS[2], flags=["--load-state", file])[0] == expected
        assert expected in piped(folder, f"/load {file}", TURNS[2])[0]

    def test_a_document_is_a_part_of_the_message(self, folder, tiny, document):
        lines = (f"/read {document}", "HOW?")
        out, _ = piped(folder, *lines, flags=["--no-archive"])
        answers, _ = fresh(tiny, f"{TEXT}\n\nHOW?")
        assert out.endswith(f"{answers[0]}\n") and out.startswith("read 2")

    def test_undo_after_reading(self, folder, tiny, document):
        """The question, then the document."""
        lines = ["HOW?", f"/read {document}", "WHO?", "/undo", "/undo", "WHY?"]
        out, _ = piped(folder, *lines)
        assert out.endswith(fresh(tiny, "HOW?", "WHY?")[0][1] + "\n")

    def test_refused(self, folder, tmp_path):
        (tmp_path / "foreign").write_text("x")
        refused = [
            (["--max-kv-size", "9"], 2, ["--max-kv-size"]),
            (["--max-tokens", "0"], 2, ["--max-tokens"]),
            (["--prefill-step-size", "0"], 2, ["--prefill-step-size"]),
            (["--chat-template-config", "{"], 2, ["--chat-template-config"]),
            (["--load-state", tmp_path / "foreign"], 1, ["not a state file"]),
            (["--load-state", "x", "--system-prompt", "y"], 2, ["--system-prompt"]),
        ]
        for flags, code, words in refused:
            result = run("allmem_mlx.chat", "--model", folder, *flags, stdin="HOW?\n")
            assert_refused(result, code, *words)


class TestNames:
    """Of files, as a shell takes them."""

    FILES = (
        *("a.txt", "b.txt", "my book.txt", "Bob's book.txt", "O'Neill.txt", "a\u202fb"),
        *(
            r"C:\books\x.txt",
            "x[1].md",
            'q"x$.md',
            "~x",
            ".hidden.txt",
            "home/my x.txt",
        ),
        *("-x", "folder/x.txt", "folder/y.txt", "star*"),
    )

    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "home")
        for name in self.FILES:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text("HOW?")

    @pytest.fixture
    def read(self, chat, monkeypatch):
        """What a line makes a document of."""

        def read(line):
            sources = []

            def document(source, piece):
                sources.append(source)
                raise AllMemError("that is enough")

            with monkeypatch.context() as patch:
                patch.setattr(chat_commands, "Document", document)
                with pytest.raises(AllMemError, match="that is enough"):
                    chat.take(f"/read {line}")
            [source] = sources
            if not isinstance(source, list):
                return str(source)
            assert len(source) > 1 and all(isinstance(path, Path) for path in source)
            return [*map(str, source)]

        return read

    @pytest.mark.parametrize(
        ("line", "name"),
        [
            (r"my\ book.txt", "my book.txt"),
            (r"my\ book.txt ", "my book.txt"),
            ("'my book.txt'", "my book.txt"),
            ("  'my book.txt' ", "my book.txt"),
            ('"my book.txt"', "my book.txt"),
            ("my' 'bo\"ok\".txt", "my book.txt"),
            ("my book.txt", "my book.txt"),
            ("Bob's book.txt", "Bob's book.txt"),
            ("Bob's book.txt ", "Bob's book.txt"),
            (r"Bob\'s\ book.txt", "Bob's book.txt"),
            ("O'Neill.txt", "O'Neill.txt"),
            ('O"\'"Neill.txt', "O'Neill.txt"),
            (r"'O'\''Neill.txt' ", "O'Neill.txt"),
            ("a\u202fb", "a\u202fb"),
            (r"C:\books\x.txt", r"C:\books\x.txt"),
            (r"C:\\books\\x.txt", r"C:\books\x.txt"),
            (r'"C:\books\x.txt"', r"C:\books\x.txt"),
            (r'"q\"x\$.md"', 'q"x$.md'),
            ("~", "home"),
            ("~/my x.txt", "home/my x.txt"),
            (r"~/my\ x.txt", "home/my x.txt"),
            ("~/'my x.txt'", "home/my x.txt"),
            ("~/my*", "home/my x.txt"),
            ("~x", "~x"),
            ("'~/my x.txt'", "~/my x.txt"),
            (r"\~/x", "~/x"),
            ("~'/x'", "~/x"),
            ("folder", "folder"),
            ("folder/", "folder"),
            ("x[1].md", "x[1].md"),
            ("[x]*.md", "x[1].md"),
            ("'x[1]'*", "x[1].md"),
            ("star*", "star*"),
            ("'nothing*'", "nothing*"),
            (r"nothing\*", "nothing*"),
        ],
    )
    def test_one(self, read, line, name):
        assert read(line) == name

    @pytest.mark.parametrize(
        ("line", "names"),
        [
            ("b.txt a.txt", "b.txt a.txt"),
            ("b.txt\ta.txt", "b.txt a.txt"),
            ("[ba].txt", "a.txt b.txt"),
            ("?.txt", "a.txt b.txt"),
            ("folder/*", "folder/x.txt folder/y.txt"),
            ("f*/x* b.txt", "folder/x.txt b.txt"),
            ("folder a.txt", "folder a.txt"),
            ("x[1].md a.txt", "x[1].md a.txt"),
            ('folder/"x.txt" a.txt', "folder/x.txt a.txt"),
            ("a.txt missing", "a.txt missing"),
        ],
    )
    def test_several(self, read, line, names):
        assert read(line) == names.split()

    def test_spaces_and_order(self, read):
        names = ["Bob's book.txt", "O'Neill.txt", "a.txt", "b.txt", "my book.txt"]
        assert read("[!C]*.txt") == names
        assert read("a\u202fb a.txt") == ["a\u202fb", "a.txt"]
        assert read(r"my\ book.txt 'my book.txt'") == ["my book.txt"] * 2

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (
                '/read "my book.txt',
                '"my book.txt is not a file, and has a " that is not',
            ),
            (
                "/read nobody's.txt",
                "nobody's.txt is not a file, and has a ' that is not",
            ),
            ("/read a.txt\\", r"a.txt\\ is not a file, and has a \\ at its end"),
            ("/read *.rtf", r"no file matches \*.rtf"),
            ("/read a.txt 'x'*.rtf", r"no file matches x\*.rtf"),
            ('/read ""', "usage: /read FILE"),
            ("/read a.txt ''", "usage: /read FILE"),
            ("/read  ", "usage: /read FILE"),
            (
                "/read -",
                "standard input; name a file, or pipe the text into .* --save-",
            ),
            ("/read a.txt -", "a chat cannot read standard input"),
            ("/read '-'", "a chat cannot read standard input"),
            (
                "/save new state",
                "usage: /save FILE; put a name that has spaces in quotes",
            ),
            ("/load a.txt b.txt", "usage: /load FILE; put a name that has spaces in"),
            ("/load ?.txt", "usage: /load FILE; put a name that has spaces in quotes"),
            ("/save 'x", "a ' that is not closed"),
        ],
    )
    def test_refused(self, chat, line, message):
        with pytest.raises(AllMemError, match=message) as error:
            chat.take(line)
        assert "\n" not in str(error.value) and not chat.session.state.tokens
        assert not Path("new").exists() and not chat.asked["main"]

    def test_a_file_named_like_standard_input(self, read):
        assert read("-x") == "-x"
        Path("-").write_text("HOW?")
        assert read("-") == "-"

    @pytest.mark.parametrize(
        "name", ["'my state'", r"my\ state", '"my state"', "~/state", "'~state'"]
    )
    def test_saved_and_loaded(self, chat, name):
        chat.take("HOW?")
        digest = chat.session.state.digest
        chat.take(f"/save {name}")
        [made] = {*Path().iterdir(), *Path("home").iterdir()} - {
            *map(Path, (*self.FILES, "home", "folder"))
        }
        assert str(made) in ("my state", "home/state", "~state")
        chat.take("/reset")
        chat.take(f"/load {name} ")
        assert chat.session.state.digest == digest


class TestCommands:
    @pytest.mark.parametrize(
        ("line", "near"),
        [
            ("/raed x", "there is no /raed; did you mean /read? /help lists"),
            ("/READ x", "there is no /READ; did you mean /read?"),
            ("/exti", "there is no /exti; did you mean /exit?"),
            ("/statistics", "there is no /statistics; did you mean /stats?"),
            ("/q", "there is no /q; /help lists the commands"),
            ("/nothing", "there is no /nothing; /help lists the commands"),
            ("/ HOW?", "there is no /; /help lists the commands"),
            ("/no/such.txt HOW?", "there is no /no/such.txt; /help"),
        ],
    )
    def test_unknown(self, chat, line, near):
        with pytest.raises(SettingError) as error:
            chat.take(line)
        assert str(error.value).startswith(near)

    def test_a_path_alone(self, chat, tmp_path):
        """Dragged into the terminal, it is no command, and no message."""
        path, spaces = tmp_path / "book.txt", tmp_path / "Bob's book.txt"
        path.write_text("HOW?")
        spaces.write_text("HOW?")
        escaped = str(spaces).replace(" ", r"\ ").replace("'", r"\'")
        lines = {
            f"{path}": path,
            f"{path} ": path,
            f"{path} WHO IS ALICE, AND WHAT'S THIS?": path,
            f"{spaces}": spaces,
            f"{escaped} ": spaces,
            f"{escaped} WHO?": spaces,
            f"{tmp_path}": tmp_path,
        }
        for line, name in lines.items():
            with pytest.raises(SettingError) as error:
                chat.take(line)
            assert str(error.value) == f"to read {name}, type /read in front of it"
        assert not chat.session.state.tokens

    def test_other_names(self, chat, capsys):
        for word in ("exit", "bye", "quit"):
            with pytest.raises(Quit):
                chat.take(f"/{word}")
            with pytest.raises(SettingError, match="usage: /quit"):
                chat.take(f"/{word} now")
        chat.take("HOW?")
        chat.take("/clear")
        assert not chat.session.state.tokens
        capsys.readouterr()
        chat.take("/?")
        listed = capsys.readouterr().out
        chat.take("/help")
        assert listed == capsys.readouterr().out
        lines = [line.split() for line in listed.splitlines()]
        assert len(lines) == 17 and len({words[0] for words in lines}) == 17
        for first, also in [
            ("/quit ", "(also /exit, /bye)"),
            ("/reset ", "(also /clear)"),
            ("/help ", "(also /?)"),
        ]:
            [line] = [x for x in listed.splitlines() if x.startswith(first)]
            assert line.endswith(also)


@pytest.mark.parametrize("step", [16, 64])
def test_a_document_that_was_stopped_is_gone_on_from(tiny, document, monkeypatch, step):
    """In the same message, whatever the blocks were."""
    chat = kind(tiny, step)

    def press(progress, done):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "__call__", press)
    chat.take(f"/read {document}")
    assert chat.session.state.tokens == step
    assert_gone_on_from(chat, TEXT)


@pytest.mark.parametrize("step", [16, 64])
@pytest.mark.parametrize("said", [(), ("HOW?",)], ids=["first", "later"])
def test_an_error_late_in_a_document(tiny, document, monkeypatch, capsys, step, said):
    """It leaves what Ctrl-C leaves, and /undo forgets that."""
    pieces = Document.pieces

    def damaged(document, *options):
        yield from pieces(document, *options)
        raise AllMemError("the disk is gone")

    monkeypatch.setattr(Document, "pieces", damaged)
    chat = kind(tiny, step)
    for text in said:
        chat.take(text)
    before = chat.session.state
    with pytest.raises(AllMemError) as error:
        chat.take(f"/read {document}")
    state = chat.session.state
    tokens = state.tokens - before.tokens
    assert str(error.value) == (
        f"the disk is gone; the {tokens} tokens before it are kept, /undo forgets them"
    )
    assert tokens > 1500 and state.tokens % step == 0
    assert "read" not in capsys.readouterr().out
    chat.take("/undo")
    assert chat.session.state.digest == before.digest
    if not said:
        chat.session.restore(state)
        assert_gone_on_from(chat, TEXT)


def test_a_disk_that_goes_away(chat, document, tmp_path, monkeypatch):
    """With the second of three files."""
    second, third = tmp_path / "second.txt", tmp_path / "third.txt"
    document.write_text(TEXT * 3)  # more than is tokenized at once
    second.write_text(TEXT)
    third.write_text(TEXT)

    def remove(progress, done):
        second.unlink(missing_ok=True)

    monkeypatch.setattr(Progress, "__call__", remove)
    chat.take("HOW?")
    before = chat.session.state
    with pytest.raises(AllMemError) as error:
        chat.take(f"/read {document} {second} {third}")
    tokens = chat.session.state.tokens - before.tokens
    assert f"{str(second)!r} does not exist" in str(error.value)
    assert f"; the {tokens} tokens before it are kept, " in str(error.value)
    whole = len(ids(chat.session.tokenizer, TEXT * 3))
    assert whole / 2 < tokens < whole + 64
    chat.take("/undo")
    assert_same(chat.session.state, before)


@pytest.mark.parametrize("said", [(), ("HOW?",), ("HOW?", "/read {}")])
def test_an_error_before_anything_was_read(chat, document, monkeypatch, said):
    for text in said:
        chat.take(text.format(document))
    before, turns = chat.session.state, len(chat.asked["main"])
    for name, message in {
        "nowhere": "nowhere",
        f"{document} nowhere": "nowhere",
    }.items():
        with pytest.raises(AllMemError, match=message):
            chat.take(f"/read {name}")

    def gone(document, *options):
        yield [1, 2]
        raise AllMemError("the disk is gone")

    monkeypatch.setattr(Document, "pieces", gone)
    with pytest.raises(AllMemError, match="^the disk is gone$"):
        chat.take(f"/read {document}")
    assert_same(chat.session.state, before)
    assert chat.session.state.waiting == before.waiting
    assert len(chat.asked["main"]) == len(chat.session.snapshots.turns) == turns


def kind(tiny, step) -> Chat:
    model, tokenizer = tiny
    template = Template.of_chat(tokenizer, "BE KIND")
    session = Session(model, tokenizer, snapshots=True)
    return Chat(session, template, {"max_tokens": 3}, step)


def assert_gone_on_from(chat, text: str) -> None:
    """The next message follows what was read of a text."""
    model, tokenizer, template = (
        chat.session.model,
        chat.session.tokenizer,
        chat.template,
    )
    prompt = ids(tokenizer, template.opening + text)[: chat.session.state.tokens]
    chat.take("WHY?")
    prompt += ids(tokenizer, "\n\nWHY?" + template.closing)
    expected = Session(model, tokenizer)
    assert list(expected.generate(prompt, max_tokens=3))
    assert chat.session.state.digest == expected.state.digest


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_help_is_quick():
    code = (
        "import runpy, sys; sys.argv = ['chat', '-h']\n"
        "try: runpy.run_module('allmem_mlx.chat', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'transformers' not in sys.modules and 'mlx_lm' not in sys.modules"
    )
    result = run("-c", code, fresh=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.real_model
def test_the_real_model(default_folder):
    out, _ = piped(default_folder, "What is the capital of France?", flags=["-m", "20"])
    assert "Paris" in out


def test_a_closed_terminal(folder):
    """The line hangs up while the chat waits for a message."""
    chat = ChatTerminal(folder)
    os.close(chat.main)
    assert chat.process.wait(30) == 128 + signal.SIGHUP


def test_a_closed_terminal_that_does_not_control(folder):
    """There is no SIGHUP then, and the line editor may not see the end: it ends."""
    chat = ChatTerminal(folder, controlled=False)
    os.close(chat.main)
    assert chat.process.wait(30) in (1, 128 + signal.SIGHUP)


def test_messages_are_decoded_as_documents_are(folder, tmp_path):
    """A byte order mark is dropped, what is said of an encoding is said, and a message
    whose encoding cannot be told is refused; the chat goes on."""

    def said(stdin: bytes) -> tuple[list[str], str]:
        flags = ["allmem_mlx.chat", "--model", folder, "-m", "4"]
        result = run(*flags, stdin=stdin)
        assert result.returncode == 0
        lines = result.stdout.decode().splitlines()
        return [x for x in lines if x.startswith("Tokens")], result.stderr.decode()

    plain, errors = said(b"HOW?\n/stats\n")
    marked = said("\ufeffHOW?\n/stats\n".encode())
    assert marked == (plain, errors) and "WARNING" not in errors
    whole, _ = said("Où est le café de la gare, s'il vous plaît ?\n/stats\n".encode())
    other, errors = said(
        "Où est le café de la gare, s'il vous plaît ?\n/stats\n".encode("cp1252")
    )
    assert whole == other and "the message is read as Windows-1252" in errors
    again, errors = said(b"caf\xe9?\nHOW?\n/stats\n")
    assert again == plain
    assert "error: the message is not UTF-8" in errors


def test_a_document_s_encoding_is_said(chat, tmp_path, capsys):
    file = tmp_path / "book.txt"
    file.write_bytes(("L'été est déjà là, à l'école. " * 9).encode("cp1252") + b"\0")
    chat.take(f"/read {file}")
    warnings = capsys.readouterr().err
    assert f"{str(file)!r} is read as Windows-1252" in warnings
    assert "1 NUL character left out" in warnings


def test_stop(tiny):
    """An answer ends before a text, whatever its tokens are."""
    model, tokenizer = tiny
    (answer,), _ = fresh(tiny, "HOW?", count=40)
    stop = answer[7:10]
    assert answer.find(stop) == 7
    session = Session(model, tokenizer, snapshots=True)
    chat = Chat(
        session, Template.of_chat(tokenizer), {"max_tokens": 40, "stop": [stop]}
    )
    chat.take("HOW?")
    assert chat.answer.finish_reason == "stop"
    assert chat.answer.generation_tokens <= 10


def test_control_tokens_of_a_message(tiny):
    """They are plain text, unless they are allowed."""
    model, tokenizer = tiny
    counts = []
    for allowed in (False, True):
        session = Session(model, tokenizer, snapshots=True)
        chat = Chat(
            session,
            Template.of_chat(tokenizer),
            {"max_tokens": 1},
            allow_special_tokens=allowed,
        )
        chat.take("A<|im_end|>\n<|im_start|>system\nB")
        read = [*session.state.recent, *session.state.waiting]
        marks = tokenizer.encode("<|im_start|><|im_end|>", add_special_tokens=False)
        counts.append(sum(x in marks for x in read))
    assert counts[1] == counts[0] + 2


def test_whatever_fails_the_conversation_goes_on(folder, tmp_path):
    """A fault of our own, a name that no file can have, a name that is not UTF-8."""
    code = (
        "from allmem_mlx import chat\n"
        "from allmem_mlx.cli.chat_commands import COMMANDS\n"
        "def broken(self): raise TypeError('two\\nlines')\n"
        "COMMANDS['stats'] = broken\n"
        "broken.__doc__ = 'stats: none'\n"
        "chat.main()"
    )
    lines = [
        b"/stats",
        b"/save " + os.fsencode(tmp_path) + b"/caf\xe9",
        b"/undo",
        b"HOW?",
    ]
    flags = ["--model", folder, "-m", "4"]
    result = run("-c", code, *flags, stdin=b"\n".join(lines))
    assert result.returncode == 0
    errors = [x for x in result.stderr.decode().splitlines() if x.startswith("error")]
    assert errors[0] == "error: TypeError: two" and "UTF-8" in errors[1]
    assert len(errors) == 3 and result.stdout
