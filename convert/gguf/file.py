"""A GGUF file: its metadata, and its tensors as rows of float32.

The header is not read by ``gguf.GGUFReader``, which trusts the counts and lengths in a
damaged file and keeps an object for every token. Types of tensors, their sizes and
their values are the gguf package's.
"""

import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from allmem_mlx.errors import AllMemError

VERSIONS = (2, 3)
ALIGNMENT = 32
STRING, ARRAY = 8, 9  # types of a value; the others are numbers
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
NUMBERS |= {10: "Q", 11: "q", 12: "d"}
FLOAT32 = "f"
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
KINDS |= {list: "a list"}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, of any type that the gguf package reads.

    Args:
        path (Path): the file.
        name (str): its name in the file.
        kind (GGMLQuantizationType): how its values are stored.
        shape (tuple): its sizes, as in numpy.
        offset (int): the position of its first byte.
    """

    path: Path
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        values, size = GGML_QUANT_SIZES[self.kind]
        return self.columns // values * size

    def stored(self, start: int, stop: int) -> np.ndarray:
        """The bytes of rows from ``start`` to ``stop``."""
        size, offset = self.row_bytes, self.offset + start * self.row_bytes
        data = np.fromfile(self.path, np.uint8, (stop - start) * size, offset=offset)
        return data.reshape(stop - start, size)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows from ``start`` to ``stop`` as float32. A vector has one row.

        Raises:
            AllMemError: if the type is not supported, or a value is not a number.
        """
        data = self.stored(start, stop)
        try:
            with np.errstate(all="ignore"):
                x = dequantize(data, self.kind)
        except NotImplementedError:
            raise AllMemError(
                f"{self.path}: tensor {self.name} is of type {self.kind.name}, which "
                "is not supported"
            ) from None
        if not np.isfinite(x).all():
            raise AllMemError(
                f"{self.path} is damaged: tensor {self.name} has values that are not "
                "numbers"
            )
        return x


class Metadata:
    """The key-value pairs of a file, with a record of the keys that were used.

    Args:
        path (Path): the file.
        values (dict): the pairs.
    """

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path = path
        self.values = values
        self.used: set[str] = set()

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """The value of a key.

        Args:
            key (str): its name.
            kind (type): ``str``, ``int``, ``float``, ``bool`` or ``list``.
            default: the value if there is none.

        Raises:
            AllMemError: if it is of another type, or missing without a default.
        """
        self.used.add(key)
        if key not in self.values:
            if default:
                return default[0]
            raise AllMemError(f"{self.path}: the GGUF file has no {key}")
        x = self.values[key]
        if kind is float and type(x) is int:
            x = float(x)
        if type(x) is not kind or (isinstance(x, float) and not math.isfinite(x)):
            raise AllMemError(
                f"{self.path}: {key} is {str(x)[:40]!r}; it must be {KINDS[kind]}"
            )
        return x

    def unused(self, prefix: str) -> list[str]:
        """Keys of a namespace that were not used."""
        return [k for k in self.values if k.startswith(prefix) and k not in self.used]


class _Header:
    """Reads the header of a file, whose counts and lengths are not trusted."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size

    def damaged(self, text: str) -> AllMemError:
        return AllMemError(
            f"{self.path} is damaged or incomplete: {text}; get it again"
        )

    def take(self, size: int) -> bytes:
        if size > self.size - self.file.tell():
            raise self.damaged("its header ends early")
        return self.file.read(size)

    def number(self, code: str) -> Any:
        (x,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        # The shortest decimal of the number: 1e-05, not 9.999999747378752e-06.
        return float(f"{x:.7g}") if code == FLOAT32 else x

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise self.damaged("text in it is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise self.damaged(f"a value of type {kind}, which does not exist")
        kind, length = self.number("I"), self.number("Q")
        if kind == STRING:
            return [self.text() for _ in range(length)]
        if kind not in NUMBERS:
            raise self.damaged(f"a list of type {kind}, which is not supported")
        code = NUMBERS[kind]
        data = self.take(length * struct.calcsize("<" + code))
        return [x for (x,) in struct.iter_unpack("<" + code, data)]

    def tensor(self) -> Tensor:
        """A tensor whose offset counts from the end of the header."""
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= 4:
            raise self.damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in GGML_QUANT_SIZES:
            raise AllMemError(
                f"{self.path}: tensor {name} is of type {kind}, which is not known"
            )
        kind = GGMLQuantizationType(kind)
        if min(shape) < 1 or shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise self.damaged(f"tensor {name!r} has the shape {shape}")
        return Tensor(self.path, name, kind, shape, offset)


def read_header(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Reads the metadata of a GGUF file, and the places of its tensors.

    Args:
        path (Path): the file.

    Raises:
        AllMemError: if it is not GGUF, is damaged, or ends before its last tensor.
    """
    with path.open("rb") as file:
        header = _Header(path, file)
        if file.read(4) != b"GGUF":
            raise AllMemError(f"{path} is not a GGUF file")
        version = header.number("I")
        if version not in VERSIONS:
            raise AllMemError(
                f"{path} is of GGUF version {version}; supported: little-endian "
                f"files of version {' and '.join(map(str, VERSIONS))}"
            )
        tensor_count, value_count = header.number("Q"), header.number("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):
            key = header.text()
            if key in values:
                raise header.damaged(f"{key} is there twice")
            values[key] = header.value(header.number("I"))
        metadata = Metadata(path, values)
        alignment = metadata.get("general.alignment", int, ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1):
            raise header.damaged(f"general.alignment is {alignment}")

        relative = [header.tensor() for _ in range(tensor_count)]
        start = -(-file.tell() // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for t in relative:
        if t.name in tensors:
            raise header.damaged(f"tensor {t.name} is there twice")
        absolute = replace(t, offset=start + t.offset)
        if absolute.offset + t.rows * t.row_bytes > header.size:
            raise header.damaged(
                f"tensor {t.name} ends after the file's last byte, {header.size}"
            )
        tensors[t.name] = absolute
    return metadata, tensors
