"""`python -m allmem_mlx`, which runs the commands."""

import importlib
import tomllib

import pytest
from helpers import assert_refused
from processes import ROOT, run

from allmem_mlx.__main__ import COMMANDS
from allmem_mlx.version import __version__


def output(*flags) -> list[str]:
    result = run("allmem_mlx", *flags)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().splitlines()


@pytest.mark.parametrize("flags", [(), ("-h",), ("--help",)])
def test_the_list(flags):
    lines = output(*flags)
    assert lines[0] == "usage: allmem_mlx <command> ..."
    for name, (_, purpose) in COMMANDS.items():
        assert f"  {name:<10} {purpose}" in lines
    assert len(lines) == len(COMMANDS) + 6 and max(map(len, lines)) <= 80


def test_the_version():
    assert output("--version") == [__version__]


@pytest.mark.parametrize("name", ["search", "allmem_mlx.search", "search.py"])
def test_a_command_runs(name):
    assert output(name, "-h")[0].startswith("usage: allmem_mlx search ")


def test_its_exit_code_and_its_errors():
    result = run("allmem_mlx", "generate", "--max-kv-size", "4")
    assert_refused(result, 2, "allmem_mlx generate: error: ", "--max-kv-size")


@pytest.mark.parametrize(
    "name, words",
    [
        ("serch", ["unknown command 'serch'", "did you mean search?"]),
        ("summarize", ["did you mean summarise?"]),
        ("zzz", ["use one of generate, chat, "]),
        ("--vers", ["unknown command '--vers'"]),
        ("", ["unknown command ''"]),
    ],
)
def test_an_unknown_command(name, words):
    assert_refused(run("allmem_mlx", name), 2, *words)


def test_every_command_has_a_module_and_a_script():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    expected = {"allmem_mlx": "allmem_mlx.__main__:main"}
    for name, (module, _) in COMMANDS.items():
        expected[f"allmem_mlx.{name}"] = f"allmem_mlx.{module}:main"
        assert callable(importlib.import_module(f"allmem_mlx.{module}").main)
    assert scripts == expected
