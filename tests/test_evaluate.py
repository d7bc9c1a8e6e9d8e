"""The evaluate command, run as a user would."""

import json
import random
import sys

import pytest
from helpers import active_folder, assert_refused
from processes import run

from allmem_mlx.errors import AllMemError, SettingError
from allmem_mlx.evaluate import (
    DEFAULTS_WITH_PASSAGES,
    PLANTED,
    SUITES,
    TASKS,
    check_args,
    setup_arg_parser,
)
from allmem_mlx.evaluation import planting, recall
from allmem_mlx.evaluation.suites.passages import COLUMNS
from allmem_mlx.evaluation.suites.run import SUITES as LOADED
from allmem_mlx.evaluation.systems import NAMES
from allmem_mlx.evaluation.texts import text_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return active_folder(tmp_path_factory.mktemp("model"), chunk=32, fold=8)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    for i in range(2):
        rng = random.Random(i)
        (path / f"{i}.txt").write_text("".join(rng.choices("abcdefgh .", k=1500)))
    return path


PASSAGES = ("--text", "x", "--passages", "4", "--recall")


def command(folder, *flags):
    return run("allmem_mlx.evaluate", "--model", folder, *flags)


def check(*flags):
    return check_args(setup_arg_parser().parse_args([*map(str, flags)]))


def test_names_are_those_of_the_modules():
    assert TASKS == recall.TASKS
    assert SUITES == tuple(LOADED)
    assert PLANTED == planting.SETS


def test_likelihood(folder, texts, tmp_path):
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    result = command(
        folder, "--text", texts, "--tokens", 300, "--json", out, "--plot", png
    )
    assert result.returncode == 0, result.stderr.decode()
    printed = result.stdout.decode()
    assert printed.startswith("window 48, sinks 4, chunk 32, matched window ")
    assert "alpha is 0" not in printed
    for line in ("48-95", "192-299", ">= 48", "Gap recovered (positions 48-299): "):
        assert line in printed
    assert all(name in printed.splitlines()[2] for name in NAMES)
    assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert set(found) == {
        "allmem_mlx",
        "measured",
        "model",
        "fingerprint",
        "allmem",
        "matched window",
        "alpha is 0",
        "seed",
        "window",
        "within window",
        "buckets",
        "beyond window",
        "gap positions",
        "gap recovered",
        "gain",
        "share of the gain that vanishes",
        "documents",
        "crossover",
    }
    assert found["measured"] == "likelihood" and found["alpha is 0"] is False
    assert [document["file"] for document in found["documents"]] == [
        str(texts / "0.txt"),
        str(texts / "1.txt"),
    ]
    for document in found["documents"]:
        assert set(document) == {"nll", "file", "sha256", "tokens"}
        assert document["tokens"] == 300
    for row in (*found["buckets"], found["beyond window"]):
        assert list(row["nll"]) == list(NAMES)
        assert len(set(row["nll"].values())) >= 5  # no control is another one


def test_recall(folder, texts, tmp_path):
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    flags = ("--recall", "mqar", "facts", "--text", texts / "0.txt")
    more = ("--distances", 64, "--samples", 1, "--json", out, "--plot", png)
    result = command(folder, *flags, *more)
    assert result.returncode == 0, result.stderr.decode()
    found = json.loads(out.read_text())
    kinds = [(row["task"], row["kind"], row["distance"]) for row in found["rows"]]
    assert kinds == [
        ("mqar", "mqar", 64),
        ("facts", "name", 64),
        ("facts", "number", 64),
        ("facts", "place", 64),
    ]
    assert len(found["answers"]) == (4 + 3) * 6
    assert len(result.stdout.decode().splitlines()) == 3 + len(kinds)
    assert png.stat().st_size > 10_000


def test_suite(folder, tmp_path):
    out = tmp_path / "out.json"
    records = [
        {"input": "Who?", "context": text * 40, "answers": ["Ann"]}
        for text in ("Ann went out. ", "Bea came in. ")
    ]
    file = tmp_path / "musique.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    flags = ("--suite", "longbench", "--data", tmp_path, "--max-length", 400)
    result = command(folder, *flags, "--json", out)
    assert result.returncode == 0, result.stderr.decode()
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["subset"], row["examples"]) == ("musique", 2)
    assert row["cut"] == dict.fromkeys(NAMES, 2)

    flags = (*flags, "--passages", 2)
    result = command(folder, *flags, "--limit", 2, "--json", out)
    assert result.returncode == 0, result.stderr.decode()
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["score"]) == [*NAMES, *COLUMNS]
    assert "passages only" in result.stdout.decode()

    file.write_text(json.dumps(records[0]) + "\n{")
    refused = command(folder, *flags, "--json", tmp_path / "new.json")
    assert_refused(refused, 1, "musique.jsonl', line 2 is not JSON")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "nothing to measure"),
        (("--recall", "facts"), "--recall facts needs --text"),
        (("--recall", "mqar", "--text", "x"), "--recall facts needs --text"),
        (("--suite", "ruler"), "--suite needs --data"),
        (("--suite", "ruler", "--text", "x"), "--text cannot be used with --suite"),
        (("--suite", "ruler", "--data", "x", "--plot", "x.png"), "--plot cannot"),
        (("--text", "x", "--data", "y"), "--data cannot be used with --text"),
        (("--text", "x", "--samples", "2"), "--samples cannot be used with --text"),
        (("--recall", "mqar", "--tokens", "9"), "--tokens cannot be used with --rec"),
        (("--recall", "mqar", "--samples", "0"), "it must be at least 1"),
        (("--recall", "mqar", "--distances", "0"), "--distances must be at least 1"),
        (("--text", "x", "--seed", "-1"), "--seed is -1"),
        (("--text", "x", "--passages", "4"), "--passages cannot be used with --text"),
        (("--recall", "two", "--text", "x"), "--recall two needs --passages"),
        (("--recall", "mqar", "--states", "x"), "--states needs --passages"),
        (("--recall", "mqar", "--search-only"), "--search-only needs --passages"),
        (("--recall", "mqar", "--passages", "4"), "mqar cannot be used with --passag"),
        (("--recall", "two", "--passages", "4"), "--recall two needs --text"),
        (("--recall", "two", "--text", "x", "--passages", "0"), "--passages is 0"),
        (
            (*PASSAGES, "two", "--search-only", "--states", "x"),
            "--states cannot be used with --search-only",
        ),
        ((*PASSAGES, "unanswerable", "--search-only"), "has nothing to be found"),
        (("--text", "x", "--states", "y"), "--states cannot be used with --text"),
        (
            ("--suite", "ruler", "--data", "x", "--passages", "4"),
            "--passages cannot be used with --suite ruler",
        ),
        (
            ("--suite", "lveval", "--data", "x", "--search-only"),
            "--search-only cannot be used with --suite",
        ),
        (("--text", "x", "--json", "no/where.json"), "folder of 'no/where.json'"),
        (("--text", "x", "--json", "tests"), "a folder; name a file"),
        (("--text", "x", "--plot", "x.pdf"), "must end in .png"),
    ],
)
def test_flags_that_cannot_be_obeyed(flags, message):
    with pytest.raises(SettingError, match=message):
        check(*flags)


def test_defaults_with_passages():
    def defaults(*flags):
        args = setup_arg_parser().parse_args(flags)
        assert check_args(args) == "recall"
        return tuple(args.distances), args.samples

    assert defaults("--recall", "mqar")[1] == 8
    expected = tuple(DEFAULTS_WITH_PASSAGES.values())
    assert defaults(*PASSAGES, "facts") == expected
    assert defaults(*PASSAGES, "facts", "--samples", "3")[1] == 3


def test_plotting_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AllMemError, match=r"pip install 'allmem-mlx\[plot\]'"):
        check("--text", "x", "--plot", "x.png")


def test_text_files(tmp_path):
    with pytest.raises(AllMemError, match="has no text files"):
        text_files([str(tmp_path)])
    with pytest.raises(AllMemError, match="does not exist"):
        text_files([str(tmp_path / "x.txt")])
    (tmp_path / "b.txt").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.txt").touch()
    (tmp_path / "README.md").touch()
    found = text_files([str(tmp_path), str(tmp_path / "README.md")])
    assert [path.name for path in found] == ["c.txt", "b.txt", "README.md"]


def test_refusals(folder, texts, tmp_path):
    first = texts / "0.txt"
    out = tmp_path / "out.json"
    flags = ("--json", out, "--text")
    assert_refused(command(folder, *flags, first), 1, "at least two texts")
    assert_refused(command(folder, *flags, first, first), 1, "all of them different")
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    assert_refused(
        command(folder, *flags, first, short), 1, "short.txt' gives 11 tokens"
    )
    assert_refused(command(folder, "--text", texts, "--plot", "x"), 2, ".png")
    assert not out.exists()
