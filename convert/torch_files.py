"""The tensors of a PyTorch checkpoint: safetensors or pickles, one file or several.

No code in a pickle is run: only tensors, and the dictionaries around them, are read.
"""

import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from allmem_mlx.errors import AllMemError, import_library, reason
from allmem_mlx.hub import PICKLES
from allmem_mlx.weight_files import INDEX, indexed_files, readable, safetensors_header

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
PICKLE_INDEX = "pytorch_model.bin.index.json"
# Keys under which trainers store the model's tensors, beside those of other things.
WRAPPERS = ("module", "state_dict", "model", "model_state_dict")
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
# Types of a safetensors file that mx.load reads.
READABLE_DTYPES = "BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 C64".split()


@dataclass(frozen=True)
class Tensor:
    """A tensor that is still in its file.

    Args:
        file (Path): the file.
        name (str): its name there, for messages.
        shape (tuple): its shape.
        dtype (str): ``"float32"``, ``"int64"``, ...
        read (callable): reads the tensor.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], mx.array]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(getattr(mx, self.dtype).size)

    def check_dtype(self) -> None:
        """Refuses a type that weights do not have.

        Raises:
            AllMemError: naming the tensor and the type.
        """
        if self.dtype not in WEIGHT_DTYPES:
            raise wrong_dtype(self.file, self.name, self.dtype)


def find_files(path: Path) -> list[Path]:
    """The weight files of a checkpoint.

    Args:
        path (Path): a file; or a folder with an index and its shards, with safetensors
            (both, if there are both), with ``pytorch_model*.bin``, or with one pickle.

    Raises:
        AllMemError: if there are none, or more than one choice.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise AllMemError(f"{path}: weights end in {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise AllMemError(f"{path}: no such file or folder")
    files = sorted(file for file in path.iterdir() if file.is_file())
    safetensors = [file for file in files if file.suffix == ".safetensors"]
    for index in (INDEX, PICKLE_INDEX):
        if path / index in files:
            shards = indexed_files(path / index)
            return shards + [file for file in safetensors if file not in shards]
    if safetensors:
        return safetensors
    if shards := [file for file in files if file.match(PICKLES)]:
        return shards
    files = [file for file in files if file.suffix in PICKLE_SUFFIXES]
    if not files:
        raise AllMemError(f"{path} has no weights ({', '.join(SUFFIXES)})")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise AllMemError(f"{path} has several files; give one of them: {names}")
    return files


def read_files(files: list[Path]) -> tuple[dict[str, Tensor], list[str]]:
    """Opens weight files; their tensors are read when they are used.

    Args:
        files (list): see :func:`find_files`.

    Returns:
        tuple: tensors by name, and names of entries that are not the model's, such as
        an optimizer's state.

    Raises:
        AllMemError: if a file is damaged, needs more than tensors, or needs PyTorch
            and it is not installed; if two tensors have one name.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for file in files:
        read = _safetensors if file.suffix == ".safetensors" else _pickled
        for name, tensor in read(file, others):
            first = tensors.setdefault(name, tensor)
            if first is not tensor:
                raise duplicate(first, tensor)
    return tensors, others


def _safetensors(file: Path, others: list[str]) -> Iterator[tuple[str, Tensor]]:
    header = safetensors_header(file)
    for name, (_, dtype) in header.items():
        if dtype not in READABLE_DTYPES:
            raise wrong_dtype(file, readable(name), dtype)
    try:
        arrays: Any = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise AllMemError(f"{file} cannot be read: {reason(error)}") from None
    for name, (shape, _) in header.items():
        dtype = str(arrays[name].dtype).removeprefix("mlx.core.")
        read = partial(arrays.__getitem__, name)
        yield name, Tensor(file, readable(name), shape, dtype, read)


def duplicate(one: Tensor, other: Tensor) -> AllMemError:
    """The error of two tensors that are the same parameter."""
    return AllMemError(
        f"{one.file}: {one.name} and {other.name} of {other.file.name} are the same "
        "parameter; keep one"
    )


def wrong_dtype(file: Path, name: str, dtype: str) -> AllMemError:
    """The error of a tensor whose type is not that of a weight."""
    return AllMemError(
        f"{file}: {name} is {dtype}; weights must be float32, float16 or bfloat16"
    )


def _pickled(file: Path, others: list[str]) -> Iterator[tuple[str, Tensor]]:
    torch = import_library("torch", f"{file} needs PyTorch", "torch")
    _check_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(
                file,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(file),
            )
    except Exception as error:  # of any kind: a pickle is a program
        raise _unreadable(file, error) from None
    for name, x in _flatten(file, loaded, others):
        shown = readable(name)
        # The file must hold every value that the shape announces.
        whole = x.device.type == "cpu" and x.layout == torch.strided
        if not whole or x.is_nested or x.is_quantized or type(x) is not torch.Tensor:
            raise AllMemError(f"{file}: {shown} is not an ordinary tensor with values")
        if x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise AllMemError(f"{file}: {shown} repeats values; save it contiguous")
        dtype = str(x.dtype).removeprefix("torch.")
        yield name, Tensor(file, shown, tuple(x.shape), dtype, partial(from_torch, x))


def _unreadable(file: Path, error: BaseException) -> AllMemError:
    text = str(error)
    if wanted := re.search(r"GLOBAL ([\w.]+)", text):
        return AllMemError(
            f"{file} needs more than tensors to be read ({wanted[1]}); save "
            "the model's state_dict() alone"
        )
    # PyTorch's advice is to run the code in the file.
    why = "" if "weights_only" in text else f" ({reason(error)})"
    return AllMemError(f"{file} is damaged, or was not written by torch.save{why}")


def _check_archive(file: Path) -> None:
    """Refuses a compressed archive: torch.save never compresses, and a small file could
    hold any amount of data."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unreadable(file, error) from None
    size = file.stat().st_size
    if any(
        x.compress_type != zipfile.ZIP_STORED or x.file_size > size for x in entries
    ):
        raise AllMemError(
            f"{file} is a compressed archive, which torch.save never writes; save the "
            "model's state_dict()"
        )


def _flatten(file: Path, loaded: Any, others: list[str]) -> Iterator[tuple[str, Any]]:
    """The model's tensors by name; names of all else are added to ``others``."""
    import torch

    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise AllMemError(f"{file} holds a {kind}, not a dictionary of tensors")
    waiting, seen = [loaded], {id(loaded)}
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, torch.nn.Parameter):
                value = value.data
            if isinstance(value, torch.Tensor) and isinstance(name, str):
                yield name, value
            elif name in WRAPPERS and isinstance(value, dict):
                if id(value) not in seen:
                    waiting.append(value)
                    seen.add(id(value))
            elif isinstance(value, torch.Tensor | dict | list) and len(value):
                others.append(readable(name))


def from_torch(x: Any) -> mx.array:
    """A tensor of PyTorch as an array, to the bit."""
    import torch

    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return mx.array(x.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(x.numpy())


def to_torch(x: mx.array) -> Any:
    """An array as a tensor of PyTorch, to the bit."""
    import torch

    if x.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(x.view(mx.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))
