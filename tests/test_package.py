"""The distribution: what a wheel holds, what it needs, and what it says of itself."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from processes import ROOT

from allmem_mlx.version import __version__

FOLDERS = {
    "allmem_mlx": "allmem_mlx",
    "convert": "allmem_mlx/convert",
    "metal": "allmem_mlx/metal",
}
IMPORTERS = {"import_library", "import_module", "importorskip", "package"}
SCRIPTS = ("tests", "examples")
COMMANDS = (
    *("generate", "chat", "summarise", "search", "convert"),
    *("evaluate", "benchmark", "cost", "distill"),
)


def check(*command, **options):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, **options
    ).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "clone"
    check("git", "clone", "--quiet", str(ROOT), str(path))
    return path


@pytest.fixture(scope="module")
def wheel(clone):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    check(*pip, "wheel", "--no-deps", "-w", str(clone.parent), str(clone))
    (wheel,) = clone.parent.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel):
    """A folder of its own with the wheel in it."""
    site = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    check(*pip, "install", "--no-deps", "--target", str(site), str(wheel))
    return site


@pytest.mark.slow  # pip gets what builds a wheel
def test_the_wheel_holds_the_tree(clone, wheel):
    """Every file of the package's folders, under the name it is imported by, and no
    other."""
    expected = set()
    for path in check("git", "ls-files", *FOLDERS, cwd=clone).splitlines():
        folder, _, rest = path.partition("/")
        expected.add(f"{FOLDERS[folder]}/{rest}")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow  # pip gets what builds a wheel
def test_it_is_imported_from_where_it_is_installed(installed):
    code = (
        "import importlib.util as u, sys; sys.path.insert(0, sys.argv[1])\n"
        "import allmem_mlx, allmem_mlx.metal, allmem_mlx.convert\n"
        "for m in allmem_mlx, allmem_mlx.metal, allmem_mlx.convert:\n"
        "    assert m.__file__.startswith(sys.argv[1]), m.__file__\n"
        "assert u.find_spec('metal') is None and u.find_spec('convert') is None\n"
        "from allmem_mlx.memory import kernels\n"
        "for name in kernels.Operations._fields:\n"
        "    assert 'simdgroup' in kernels._text(f'{name}.metal')\n"
        "assert 'namespace allmem' in kernels._text('memory.h')"
    )
    check(sys.executable, "-I", "-c", code, str(installed), cwd=installed)


@pytest.mark.slow  # pip gets what builds a wheel
def test_commands(installed):
    env = {"PYTHONPATH": str(installed), "PATH": ""}

    def run(*arguments):
        return check(
            sys.executable, "-m", "allmem_mlx", *arguments, cwd=installed, env=env
        )

    listed = run("--help")
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", listed)
        assert run(name, "--help").startswith("usage: ")
    assert run("--version").split()[-1] == __version__


def declared() -> dict[str, set[str]]:
    """The distributions of pyproject.toml, by extra; those without are under ``""``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}
        for extra, lines in lists.items()
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(node: ast.AST) -> Iterator[str]:
    """Modules imported below a node, also by functions that take a module's name."""
    for x in ast.walk(node):
        match x:
            case ast.Import():
                yield from (alias.name for alias in x.names)
            case ast.ImportFrom(level=0, module=module):
                yield module
            case ast.Call(ast.Name(function), [argument, *_]) | ast.Call(
                ast.Attribute(attr=function), [argument, *_]
            ) if function in IMPORTERS:
                match argument:
                    case ast.Constant(name) | ast.JoinedStr([ast.Constant(name), *_]):
                        yield name


def third_party(*folders: str) -> Iterator[set[str]]:
    """For each module imported, the distributions that may have it."""
    scripts = {x for folder in SCRIPTS for x in (ROOT / folder).rglob("*.py")}
    local = {"allmem_mlx", *(path.stem for path in scripts)}
    local |= {path.parent.name for path in scripts}
    installed = packages_distributions()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for module in imports(ast.parse(path.read_text())):
                name = module.split(".")[0]
                if name and name not in local | sys.stdlib_module_names:
                    yield {canonical(x) for x in installed.get(name, [name])}


def test_dependencies_are_what_is_imported():
    extras = declared()
    runtime = set().union(*(extras[x] for x in extras.keys() - {"dev", "docs"}))
    imported = list(third_party(*FOLDERS))
    assert [x for x in imported if not x & runtime] == []
    # A library of C, see blas.py; and one that transformers imports.
    loaded = {"mkl", "sentencepiece"}
    assert runtime - set().union(*imported) == loaded


def test_tests_and_examples_import_what_is_declared():
    everything = set().union(*declared().values())
    imported = third_party(*SCRIPTS)
    assert [x for x in imported if not x & everything] == []


def test_the_version_is_in_the_changelog():
    """As the newest release, or the one in preparation."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d.*?)\] - (?:[\d-]{10}|Unreleased)$", text, re.M)
    assert versions[0] == __version__
    for version in versions:
        assert f"\n[{version}]: https://" in text
