"""Names of GGUF files: parts of one model, and which file of many is the model."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import AllMemError

PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
# Towers for images, statistics for quantisation, and heads that predict further tokens.
NO_MODEL = re.compile(r"mmproj|imatrix|^mtp-", re.IGNORECASE)


def part_of(name: str) -> tuple[Callable[[int], str], int, int] | None:
    """What the name of a file says of a model in several.

    Args:
        name (str): the name.

    Returns:
        tuple: the names of all parts, as a function of their number, which starts at 1;
        this part's number; how many there are. ``None`` if it is not a part.
    """
    if (match := PART.fullmatch(name)) is None:
        return None
    stem, count = match["stem"], match["count"]
    return (
        lambda number: f"{stem}-{number:05}-of-{count}.gguf",
        int(match["number"]),
        int(count),
    )


def model_among(files: Sequence[str]) -> str:
    """The GGUF file to convert, of several.

    Args:
        files (list): paths of GGUF files.
    """
    models = [file for file in files if not NO_MODEL.search(Path(file).name)]
    return min(models or files)


def all_parts(file: str) -> str | None:
    """A pattern of a model's parts; ``None`` for a model in one file.

    Args:
        file (str): path of a GGUF file.
    """
    if (match := PART.fullmatch(file)) is None:
        return None
    return f"{match['stem']}-*-of-{match['count']}.gguf"


def check_file(path: Path) -> None:
    """Refuses what cannot be a GGUF file, and names one in a folder.

    Args:
        path (Path): the file.

    Raises:
        AllMemError: if there is none, or if it is a folder.
    """
    if not path.exists():
        raise AllMemError(f"{path}: no such GGUF file")
    if not path.is_dir():
        return
    if files := [str(file) for file in path.glob("*.gguf")]:
        file = shlex.quote(model_among(files))
        raise AllMemError(f"{path} is a folder; give a file in it: --gguf {file}")
    raise AllMemError(f"{path} is a folder, and has no GGUF file; --gguf takes a file")
