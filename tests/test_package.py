"""What is installed: a wheel holds everything, under the names it should have."""

import subprocess
import sys

import pytest
from helpers import ROOT


def check(*command, **options):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, **options
    ).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel of a clean clone, installed into a folder of its own."""
    path = tmp_path_factory.mktemp("package")
    check("git", "clone", "--quiet", str(ROOT), str(path / "clone"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    check(*pip, "wheel", "--no-deps", "-w", str(path), str(path / "clone"))
    (wheel,) = path.glob("*.whl")
    check(*pip, "install", "--no-deps", "--target", str(path / "site"), str(wheel))
    return path / "site"


def test_names(installed):
    code = (
        "import importlib.util as u, sys; sys.path.insert(0, sys.argv[1])\n"
        "import allmem_mlx, allmem_mlx.metal, allmem_mlx.convert\n"
        "for m in allmem_mlx, allmem_mlx.metal, allmem_mlx.convert:\n"
        "    assert m.__file__.startswith(sys.argv[1]), m.__file__\n"
        "assert u.find_spec('metal') is None and u.find_spec('convert') is None"
    )
    check(sys.executable, "-I", "-c", code, str(installed), cwd=installed)
    names = {path.name.split("-")[0] for path in installed.iterdir()}
    assert names == {"allmem_mlx", "bin"}


def test_commands(installed):
    env = {"PYTHONPATH": str(installed), "PATH": ""}
    out = check(sys.executable, "-m", "allmem_mlx", cwd=installed, env=env)
    for line in out.splitlines():
        module = line.split()[2]
        help_text = check(sys.executable, "-m", module, "-h", cwd=installed, env=env)
        assert "usage:" in help_text
    version = check(sys.executable, "-m", "allmem_mlx", "--version", env=env)
    assert version.strip() in next(installed.glob("*.dist-info")).name


def test_typed(installed):
    assert (installed / "allmem_mlx" / "py.typed").exists()


def test_kernels(installed):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from allmem_mlx import kernels\n"
        "assert kernels.__file__.startswith(sys.argv[1])\n"
        "for name in ('inputs', 'read', 'fold', 'write'):\n"
        "    assert 'simdgroup' in kernels._text(f'memory_{name}.metal')\n"
        "assert 'namespace allmem' in kernels._text('memory.h')"
    )
    check(sys.executable, "-I", "-c", code, str(installed), cwd=installed)


def test_every_module_is_installed(installed):
    for folder in ("allmem_mlx", "convert", "metal"):
        inside = "allmem_mlx" if folder == "allmem_mlx" else f"allmem_mlx/{folder}"
        for source in (ROOT / folder).rglob("*.py"):
            assert (installed / inside / source.relative_to(ROOT / folder)).is_file()
