"""A long read that is stopped and goes on: the generate command with state files."""

import gzip
import json
import os
import random
import signal
import subprocess
import time
from contextlib import closing, suppress

import mlx.core as mx
import pytest
from helpers import active_folder, assert_refused, assert_same_arrays
from processes import Terminal, run, wait_for

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.archive import Archive
from allmem_mlx.errors import AllMemError

# Letters the tiny tokenizer knows.
TEXT = "".join(f"HOW THE RING {i} TURNS! " for i in range(120))
KILLS, TRIES = 30, 150  # a process may have ended before it is killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return active_folder(tmp_path_factory.mktemp("model"), chunk=64, window=64)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)[0]


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(TEXT)
    return path


def assert_same_file(*files) -> None:
    """State files that hold the same state, bit for bit."""
    assert_same_arrays(*(mx.load(str(x), format="safetensors") for x in files))


@pytest.mark.slow
def test_killed_at_any_moment(command, model, document, tmp_path):
    """After SIGKILL the file is a state, or not there yet; the same command then goes
    on, and what it ends with is what an uninterrupted one ends with."""
    rng = random.Random(0)
    whole, file = tmp_path / "whole.allmem", tmp_path / "killed.allmem"
    flags = ["--prompt-file", document, "--checkpoint-every", "128", "--save-state"]
    command.answer(*flags, whole)
    began = time.monotonic()
    command.answer(*flags, file)
    duration = time.monotonic() - began
    file.unlink()

    kills, places = 0, set()
    for _ in range(TRIES):
        if kills == KILLS:
            break
        process = command.start(*flags, file)
        time.sleep(rng.uniform(0, duration))
        process.kill()
        code = process.wait()
        kills += code == -signal.SIGKILL
        duration *= 1.05 if code else 0.8  # what is left takes less time than the whole
        if file.exists():
            places.add(states.load(file, model).read)
        if code == 0:
            assert_same_file(file, whole)
            file.unlink()
    assert kills == KILLS and len(places) > 2, (kills, places)
    command.answer(*flags, file)
    assert_same_file(file, whole)


def reading(command, document, file):
    """A process that reads a document, and has saved a part of it."""
    flags = ["--prompt-file", document, "--checkpoint-every", "9"]
    process = command.start(*flags, "--save-state", file)
    wait_for(file.exists, process)
    return process


def told(process, number) -> str:
    """What a process says on stderr when it is told to end. While it saves, it does not
    hear: it is told again."""
    for _ in range(12):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[1].decode()
    raise AssertionError(f"signal {number} was not heard")


@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
@pytest.mark.slow
def test_told_to_stop(command, model, document, tmp_path, number, code):
    """It saves what it has read, and says so; the same command goes on from there."""
    long, file = tmp_path / "long.txt", tmp_path / "long.allmem"
    long.write_text(TEXT * 40)
    flags = ["--prompt-file", long, "--save-state", file]
    process = reading(command, long, file)
    message = told(process, number)
    assert process.wait(20) == code
    state = states.load(file, model)
    tokens = state.tokens
    assert f"{state.read} tokens are in" in message and "Traceback" not in message

    long.write_text((TEXT * 40)[: tokens + 5_000])  # enough for a test
    whole = tmp_path / "whole.allmem"
    again = command.answer(*flags)
    command.answer("--prompt-file", long, "--save-state", whole)
    assert_same_file(file, whole)
    first = again.splitlines()[0]
    waiting = 8192  # taken from the document, and not read
    assert int(first.split()[1]) <= 5_000 + waiting, "only the rest was read"


def test_a_finished_state_is_not_read_again(command, document, tmp_path):
    file = tmp_path / "book.allmem"
    flags = [
        "--prompt-file",
        document,
        "--save-state",
        file,
        "--json",
        "--verbose",
        "F",
    ]
    first, second = (json.loads(command.answer(*flags)) for _ in range(2))
    assert first["tokens_read"] == second["tokens_read"] > len(TEXT)
    assert first["prompt_tokens"] > len(TEXT) and second["prompt_tokens"] < 128


def test_a_document_that_grows_is_read_on(command, document, tmp_path):
    """Its end only; the result is that of reading it all."""
    flags = ["--prompt-file", document, "--save-state"]
    command.answer(*flags, tmp_path / "a")
    document.write_text(TEXT + "THE END. " * 50)
    command.answer(*flags, tmp_path / "a")
    command.answer(*flags, tmp_path / "b")
    assert_same_file(tmp_path / "a", tmp_path / "b")


def test_questions_do_not_influence_each_other(command, document, tmp_path):
    """Each is answered as if it were the only one, from the document or a file."""
    file, several = tmp_path / "book.allmem", tmp_path / "questions.txt"
    asked = ["WHO TURNS?", "HOW?", "WHO TURNS?"]
    several.write_text("\n\n".join(asked) + "\n")
    # Sampled, as the tiny model's first choice is always the same.
    quiet = ["-m", "12", "--verbose", "F", "--temp", "1", "--seed", "3"]
    read = ["--prompt-file", document, *quiet]
    alone = [command.answer(*read, "--prompt", q) for q in asked[:2]]
    assert alone[0] != alone[1]
    expected = alone[0] + alone[1] + alone[0]

    prompts = [x for question in asked for x in ("--prompt", question)]
    assert command.answer(*read, *prompts, "--save-state", file) == expected
    opened = ["--load-state", file, *quiet]
    assert command.answer(*opened, "--questions", several) == expected
    loud = command.answer("--load-state", file, "-m", "12", *prompts)
    for question in asked:
        assert f"==========\n{question}\n" in loud


def test_text_is_gone_on_from(command, document, tmp_path):
    """Without a chat template, and in two goes."""
    raw = ["--ignore-chat-template", "--verbose", "F"]
    flags = ["--prompt-file", document, *raw]
    expected = command.answer(*flags, "-m", "30")
    assert command.answer(*flags, "--save-state", tmp_path / "s") == ""
    load = ["--load-state", tmp_path / "s", *raw]
    assert command.answer(*load, "-m", "30") == expected


def test_refused(command, document, tmp_path):
    file, foreign, text = (tmp_path / name for name in ("s", "foreign", "text"))
    read = ["--prompt-file", document]
    command.answer(*read, "--save-state", file)
    before = file.read_bytes()
    foreign.write_text("MY ONLY COPY")
    text.write_text("HOW " * 600)
    changed = tmp_path / "changed.txt"
    changed.write_text(TEXT.replace("RING 40", "KING 40"))
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:1_000])
    blank = tmp_path / "blank"
    blank.write_text("\n \n")
    save, opened = ["--save-state", file], ["--load-state", file]
    refused = [
        (["--prompt-file", changed, *save], 1, ["changed"]),
        (["--prompt-file", short, *save], 1, ["changed"]),
        (["--prompt-file", text, *save], 1, ["not read from this document"]),
        ([*read, *save, "--system-prompt", "x"], 1, ["system prompt"]),
        ([*opened, "--prompt", "x", "--system-prompt", "x"], 2, ["--system-prompt"]),
        ([*read, "--save-state", foreign], 1, [foreign, "not a state file"]),
        (["--load-state", foreign, "-p", "x"], 1, [foreign, "not a state file"]),
        (["--load-state", tmp_path / "none", "-p", "x"], 1, ["none"]),
        ([*opened, "-p", "x", "--sinks", "8"], 1, [file, "sinks"]),
        (["-p", "x", *save], 2, [file, "already exists"]),
        ([*opened, "-p", "x", "--save-state", foreign], 2, [foreign, "exists"]),
        ([*read, "--save-state", tmp_path / "no" / "where"], 2, ["folder"]),
        ([*read, "--checkpoint-every", "5"], 2, ["--save-state"]),
        ([*read, "--half-window"], 2, ["--save-state"]),
        ([*read, *save, "--checkpoint-every", "0"], 2, ["--checkpoint-every"]),
        (["--questions", "-", "--prompt", "-"], 2, ["stdin"]),
        (["--questions", blank], 1, [blank, "only empty lines"]),
    ]
    for flags, code, words in refused:
        assert_refused(command(*flags), code, *words)
    assert file.read_bytes() == before and foreign.read_text() == "MY ONLY COPY"


def test_a_full_disk_while_reading(folder, command, model, document, tmp_path):
    """One line; the last state that could be saved is still there."""
    file = tmp_path / "s"
    flags = ["--prompt-file", document, "--save-state", file]
    command.answer(*flags)
    limit = file.stat().st_size // 2
    before = file.read_bytes()
    document.write_text(TEXT + "THE END. " * 50)
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from allmem_mlx.generate import main; main()"
    )
    arguments = ["--model", folder, *flags]
    assert_refused(run("-c", code, *arguments), 1, "cannot be saved", file)
    assert file.read_bytes() == before
    with pytest.raises(AllMemError):
        states.load(document, model)


@pytest.mark.parametrize("pause", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_twice(command, model, tmp_path, pause, second):
    """What comes while it saves is not heard: all that was read is saved."""
    long, file = tmp_path / "long.txt", tmp_path / "long.allmem"
    long.write_text(TEXT * 40)
    process = reading(command, long, file)
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    said = told(process, second).strip().splitlines()
    # Of signals that come together, the lower number may be the first.
    assert process.wait(20) in (130, 128 + second)
    tokens = states.load(file, model).read
    assert said[0].startswith(f"{tokens} tokens are in {str(file)!r}; ")
    assert said[1:] == ["", "allmem_mlx generate: interrupted"]


def test_a_link_is_followed(command, model, document, tmp_path):
    """To a state, and to where there is none yet."""
    link, file = tmp_path / "link", tmp_path / ("x" * 240)
    link.symlink_to(file)
    for text in (TEXT, TEXT + "THE END. " * 50):
        document.write_text(text)
        command.answer("--prompt-file", document, "--save-state", link)
        assert link.is_symlink()
        assert len(text) < states.load(file, model).tokens < len(text) + 30
    archive = tmp_path / "link.archive"
    assert sorted(tmp_path.iterdir()) == sorted([document, link, file, archive])


def test_a_closed_terminal(folder, model, tmp_path):
    """The line of a terminal hangs up: nothing can be said, and all is saved."""
    long, file = tmp_path / "long.txt", tmp_path / "long.allmem"
    long.write_text(TEXT * 40)
    flags = ["--model", folder, "--prompt-file", long, "--save-state", file]
    terminal = Terminal("allmem_mlx.generate", *flags)
    terminal.until("tokens-per-sec")
    os.close(terminal.main)
    assert terminal.process.wait() == 128 + signal.SIGHUP
    assert states.load(file, model).tokens > 64


def test_stopped_again_and_again(folder, model, tmp_path):
    """After one block each time, which is a fraction of what is tokenised at a time:
    each run reads on from where the last one was stopped."""
    document, file = tmp_path / "book.txt", tmp_path / "book.allmem"
    document.write_text(TEXT * 4)
    code = (
        "from allmem_mlx.cli.progress import Progress\n"
        "def stop(self, done): raise KeyboardInterrupt\n"
        "Progress.__call__ = stop\n"
        "from allmem_mlx.generate import main; main()"
    )
    flags = ["--model", folder, "--prompt-file", document, "--save-state", file]
    for blocks in (1, 2, 3):
        result = run("-c", code, *flags)
        assert result.returncode == 130
        assert f"{64 * blocks} tokens are in".encode() in result.stderr
        assert states.load(file, model).read == 64 * blocks


@pytest.mark.slow
def test_a_damaged_end(command, model, tmp_path):
    """What comes before it is saved, and the same command goes on with a whole copy."""
    document, file = tmp_path / "book.txt.gz", tmp_path / "book.allmem"
    text = "".join(f"HOW THE RING {i * 7919 % 1000} TURNS! " for i in range(1600))
    packed = gzip.compress(text.encode())
    document.write_bytes(packed[: len(packed) // 2])
    flags = ["--prompt-file", document, "--save-state", file]
    result = command(*flags)
    assert result.returncode == 1
    kept, error = result.stderr.decode().strip().splitlines()
    state = states.load(file, model)
    assert 1000 < state.read < len(text)
    assert kept.startswith(f"{state.read} tokens are in") and str(file) in kept
    assert "gzip cannot unpack" in error and str(document) in error
    before = file.read_bytes()

    assert command(*flags).returncode == 1  # no worse
    assert states.load(file, model).digest == state.digest
    document.write_bytes(packed)
    command.answer(*flags)
    assert file.read_bytes() != before
    whole = tmp_path / "whole.allmem"
    command.answer(*flags[:-1], whole)
    assert_same_file(file, whole)


@pytest.mark.parametrize("step", [1, 2, 9])
@pytest.mark.slow
def test_a_disk_that_goes_away(folder, model, tmp_path, step):
    """After any number of reads of the file."""
    document, file = tmp_path / "book.txt", tmp_path / "book.allmem"
    document.write_text(TEXT * 40)
    code = (
        "from allmem_mlx.documents.source import Source\n"
        f"read, left = Source._read, [{step}]\n"
        "def failing(self, file, count):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0 and count == 8192:\n"
        "        class Gone:\n"
        "            def read1(self, count): raise OSError(5, 'Input/output error')\n"
        "        file = Gone()\n"
        "    return read(self, file, count)\n"
        "Source._read = failing\n"
        "from allmem_mlx.generate import main; main()"
    )
    flags = ["--model", folder, "--prompt-file", document]
    result = run("-c", code, *flags, "--save-state", file)
    assert result.returncode == 1
    kept, error = result.stderr.decode().strip().splitlines()
    assert "Input/output error" in error
    assert f"{states.load(file, model).read} tokens are in" in kept


def test_nuls_late_in_a_log(command, tmp_path):
    """They are left out, and that is said; the tokens are those of the log without."""
    text, tokens = TEXT.encode(), []
    for log in (text * 28 + bytes(16) + text * 2, text * 30):
        document, archive = tmp_path / "a.log", tmp_path / "a.archive"
        document.write_bytes(log)
        archive.unlink(missing_ok=True)
        flags = ["--index-only", "--archive", archive]
        result = command("--prompt-file", document, *flags)
        assert result.returncode == 0
        assert (b"16 NUL characters left out" in result.stderr) == (b"\0" in log)
        with closing(Archive.open(archive)) as opened:
            (entry,) = opened.documents()
            tokens.append(sum(opened.tokens(entry), []))
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "name, code, words",
    [
        ("nowhere/x.allmem", 2, ["does not exist"]),
        ("/proc/x.allmem", 1, ["cannot be saved"]),
        (b"caf\xe9.allmem", 1, ["UTF-8"]),
        (".", 1, ["directory"]),
        ("", 2, ["empty"]),
        ("long" * 64, 1, ["too long"]),
        ("fifo", 1, ["not a state file"]),
        ("text.allmem", 1, ["not a state file"]),
    ],
)
def test_where_a_state_cannot_be_saved(folder, document, tmp_path, name, code, words):
    """That is said before the model is loaded."""
    (tmp_path / "text.allmem").write_text("MY ONLY COPY")
    os.mkfifo(tmp_path / "fifo")
    if (
        isinstance(name, str)
        and name.startswith("/proc")
        and not os.path.exists("/proc")
    ):
        pytest.skip("needs /proc")
    flags = ["--model", folder / "no such model", "--prompt-file", document]
    flags += ["--save-state", name]
    assert_refused(run("allmem_mlx.generate", *flags, cwd=tmp_path), code, *words)
