"""The documentation: its links, its file names, its commands and its snippets.

A page is read as its reader would: the commands of its ``bash`` blocks run in order, in
a folder with a tiny model and documents, by the names that the pages use for them.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from gguf_files import save_gguf
from helpers import active_folder, made_up_text
from processes import ROOT, run

CARD = ROOT / "allmem_mlx" / "weights" / "README.md"
MANUAL = [ROOT / "README.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*MANUAL, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r'\]\(\s*([^)\s]+)\s*\)|(?:src|srcset|href)="([^"]+)"')
FILE = re.compile(r"[\w./-]*\w\.(?:py|md|toml|yml|metal|h)|[\w.-]+/[\w./-]*/|[\w-]+/")

GENERATED = {"allmem.py", "chapters/"}  # in a model folder; the reader's
FOREIGN = {"--max-kv-size", "--kv-bits", "--nproc-per-node", "--merge"}
# What needs a download or much time is only parsed.
PARSED = {"ORG/NAME", "TORCH_RUN", "--suite", "--recall", "--soak", "--stage2"}
# Flags that make a command short, by what it has.
SHORT = {
    "allmem_mlx convert": "--heads 2 --head-dim 16 --hidden-dim 32",
    "allmem_mlx generate": "-m 4",
    "allmem_mlx summarise": "-m 4",
    "allmem_mlx benchmark": "-p 64 96 -g 4 -n 1",
    "allmem_mlx distill": "--iters 1 --batch-size 1 --segments 1 --lengths 160 "
    "--windows 64",
    "--layers": "--layers 0 -1",
    "--text BOOKS --json": "--tokens 300",
    "FUSED --text": "--tokens 300",
    "--text BOOKS": "--window 48",
}
# Runs a program until it has parsed its arguments, and prints the flags that it knows.
PARSE = """
import argparse, json, os, runpy, sys
def parse_args(self, *args, parse=argparse.ArgumentParser.parse_args, **options):
    parse(self, *args, **options)
    print(json.dumps([*self._option_string_actions]), flush=True)
    os._exit(0)
argparse.ArgumentParser.parse_args = parse_args
del sys.argv[0]
if sys.argv[0].endswith(".py"):
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
sys.exit("no arguments were parsed")
"""


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)
manual = pytest.mark.parametrize("page", MANUAL, ids=page_id)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """The code in a page's sentences."""
    return [" ".join(span.split()) for span in SPAN.findall(prose(page))]


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, in order. Of a pipe it is the last command."""
    typed = [line for text in blocks(page, "bash") for line in lines(text)]
    found = (shlex.split(line.split(" | ")[-1], comments=True) for line in typed)
    return [words for words in found if words]


def shown(page: Path) -> list[list[str]]:
    """The command lines that a page shows with their output, after a prompt."""
    found = [line for text in blocks(page, "") for line in lines(text)]
    return [shlex.split(line[2:]) for line in found if line.startswith("$ ")]


def program(words: list[str]) -> list[str]:
    """What Python runs of a command line: a module or a file, and its arguments."""
    if words[0] == "python":
        words = words[1:]
    if words[0] == "torchrun":
        words = words[words.index("-m") :]
    return words[words[0] == "-m" :]


def parse(words: list[str]) -> set[str]:
    """Parses a command line without running it; all flags that the command knows."""
    name, *arguments = program(words)
    path = ROOT / name if name.endswith(".py") else name
    result = run("-c", PARSE, path, *arguments)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stderr.decode()}"
    return set(json.loads(result.stdout.decode().splitlines()[-1]))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pages
def test_no_link_is_dead(page):
    for link in map("".join, LINK.findall(prose(page))):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_the_manual_is_in_the_index():
    (contents, *_) = blocks(ROOT / "docs" / "index.md", "{toctree}")
    names = [line for line in contents.splitlines() if line and line[0] != ":"]
    named = {f"{name}.md" for name in names}
    assert named | {"index.md"} == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pages
def test_files_that_are_named_exist(page):
    folders = "allmem_mlx", "convert", "docs", "examples", "metal", "tests"
    names = {path.name for folder in folders for path in (ROOT / folder).rglob("*.*")}
    for span in spans(page):
        name, _, test = span.split()[0].partition("::")
        if not FILE.fullmatch(name) or name in GENERATED or "NAME" in name:
            continue
        assert (ROOT / name).exists() or name in names, name
        assert not test or f"def {test.partition('[')[0]}(" in (ROOT / name).read_text()


@manual
def test_commands_are_known(page):
    """All that can be typed is parsed by the command itself."""
    makefile = (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [span.split() for span in spans(page) if span.startswith(("make ", "pip "))]
    for words in [*commands(page), *shown(page), *asked]:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
        elif words[0] == "pip":
            extras = re.search(r"\[(.*)\]", words[-1])
            assert extras, words
            assert {*extras[1].split(",")} <= {*project["optional-dependencies"]}, words
        else:
            parse(words)


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """The flags of every command."""
    from allmem_mlx.__main__ import COMMANDS

    least = {
        "convert": ["--hf-path", "x"],
        "distill": ["--data", "x", "--adapter-path", "x"],
        "search": ["x", "x"],
    }
    found = parse(
        "allmem_mlx.distillation.torch --model x --data x --out x".split()
    ) | parse("examples/experiments/readback.py --model x x".split())
    for name in ("mqar.py", "neural_cache.py --model x --data x", "shallow_model.py x"):
        found |= parse(f"examples/experiments/{name}".split())
    for name in COMMANDS:
        found |= parse(["allmem_mlx", name, *least.get(name, [])])
    return found


@manual
def test_flags_are_known(page, flags):
    """In sentences and in commands that are shown in part, too."""
    code = [*spans(page), *re.findall(r"^    .*", prose(page), re.M)]
    for text in code:
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
            assert flag in flags | FOREIGN, f"{flag} in {text}"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    active_folder(folder, window=256, chunk=32, fold=8)
    save_gguf(folder / "base", folder / "model.gguf")
    return folder


@pytest.fixture
def desk(models, tmp_path, monkeypatch) -> Path:
    """A reader's folder: documents, texts and models by the names of the pages."""
    monkeypatch.chdir(tmp_path)
    for name, source in (
        ("BASE", "base"),
        ("FOLDER", "model"),
        ("model.gguf", "model.gguf"),
    ):
        Path(name).symlink_to(models / source)
    story = "The white rabbit dropped the fan. " + made_up_text(0, 3000)
    for name in ("chapters", "BOOKS", "TEXTS"):
        Path(name).mkdir()
    # A document is what it contains, not what it is called.
    for name in ("book.txt", "book.epub", "report.pdf", "notes.docx", "chapters/1.txt"):
        Path(name).write_text(story)
    for name in ("BOOKS/a.txt", "BOOKS/b.txt"):
        Path(name).write_text(name + story)
    for name in ("a", "b", "valid"):
        Path(f"TEXTS/{name}.txt").write_text(made_up_text(1, 20_000))
    return tmp_path


def shortened(words: list[str], model: Path) -> list[str]:
    """A command that takes little time, of a tiny model in place of the default one."""
    words = ["BASE" if word.startswith("HuggingFaceTB/") else word for word in words]
    line = " ".join(words)
    more = [flag for part in SHORT if part in line for flag in SHORT[part].split()]
    if words[0] == "allmem_mlx" and "--model" not in words:
        if words[1] not in ("convert", "search"):
            more += ["--model", str(model)]
    return [*words, *more]


@manual
@pytest.mark.slow
def test_commands_run(page, desk, models):
    for words in commands(page):
        if words[0] not in ("allmem_mlx", "mlx_lm.fuse"):
            continue
        if any(name in " ".join(words) for name in PARSED):
            continue
        words = shortened(words, models / "model")
        result = run(*words, cwd=desk, stdin="The fan. ")
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stderr.decode()}"


@manual
def test_snippets_run(page, desk, models):
    for code in blocks(page, "python"):
        code = code.replace("load()", f"load({str(models / 'model')!r})")
        result = run("-c", code, cwd=desk)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout
