"""A model in several GGUF files, ``NAME-00001-of-00003.gguf`` and so on.

The first part has the metadata; the others have tensors and say which part they are.
llama.cpp reads a model from its first part; here any part will do.
"""

from pathlib import Path

from allmem_mlx.errors import AllMemError
from allmem_mlx.gguf_names import part_of
from allmem_mlx.weight_files import shortlist

from .file import Metadata, Tensor, read_header

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def read_parts(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Reads the metadata of a model and the places of its tensors, from one file or
    from all parts beside it.

    Args:
        path (Path): the file, or any part.

    Raises:
        AllMemError: if a file is damaged, or a part is missing, another model's or
            there twice.
    """
    metadata, tensors = read_header(path)
    count = metadata.get(COUNT, int, 1)
    if count <= 1:
        return metadata, tensors
    parts = _check_name(path, metadata, count)
    headers = [
        (metadata, tensors) if part.name == path.name else read_header(part)
        for part in parts
    ]
    first, _ = headers[0]
    expected = first.get(TENSORS, int)
    found: dict[str, Tensor] = {}
    for i, (part, (metadata, tensors)) in enumerate(zip(parts, headers, strict=True)):
        _check_part(part, metadata, i, first)
        for name, tensor in tensors.items():
            if name in found:
                raise AllMemError(
                    f"{part} does not belong to {parts[0].name}: both {part.name} and "
                    f"{found[name].path.name} have a tensor {name}"
                )
            found[name] = tensor
    if len(found) != expected:
        raise AllMemError(
            f"{parts[0]}: its model has {expected} tensors, and the parts have "
            f"{len(found)}; one of them is another model's"
        )
    return first, found


def _check_name(path: Path, metadata: Metadata, count: int) -> list[Path]:
    """The files of all parts, which are there."""
    number = metadata.get(NUMBER, int) + 1
    if (named := part_of(path.name)) is None:
        raise AllMemError(
            f"{path} is part {number} of {count}; the parts of a model must be beside "
            "each other and be called NAME-00001-of-00003.gguf and so on"
        )
    name, *said = named
    if said != [number, count]:
        raise AllMemError(
            f"{path} is part {number} of {count}, not what its name says; give it back "
            "its own name"
        )
    parts = [path.with_name(name(i)) for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise AllMemError(
            f"{path} is part {number} of {count}; missing in its folder: "
            f"{shortlist(missing)}"
        )
    return parts


def _check_part(path: Path, metadata: Metadata, i: int, first: Metadata) -> None:
    """Refuses a part that says to be another one, or of another model."""
    for key, expected in (
        (NUMBER, i),
        (COUNT, first.get(COUNT, int)),
        (TENSORS, first.get(TENSORS, int)),
        ("general.architecture", first.values.get("general.architecture")),
    ):
        if (value := metadata.values.get(key, expected)) != expected:
            raise AllMemError(
                f"{path} does not belong to {first.path.name}: its {key} is "
                f"{str(value)[:40]}, and should be {str(expected)[:40]}"
            )
        if key in (NUMBER, COUNT):
            metadata.get(key, int)
