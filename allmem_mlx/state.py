"""What a model has read, as a value: create, fork, save, load, describe.

A state file is one safetensors file: the arrays of every layer, and the rest in its
metadata. It is written to a temporary file, synced and renamed, so that a file of its
name is always whole; a checksum covers every byte of it.
"""

import copy
import errno
import hashlib
import json
import mmap
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .errors import AllMemError
from .files import replacing
from .memory.layer import MemoryState
from .model import HybridCache, Model, has_memory

FORMAT = "allmem-state"
VERSION = 2
RECENT = 64  # last tokens that a file tells
UNSIGNED = "0" * 64  # stands for the checksum while it is computed
START = hashlib.sha256(FORMAT.encode()).hexdigest()


@dataclass
class State:
    """What one model has read of one document or conversation.

    Args:
        cache (list): the state of every layer, from ``model.make_cache()``.
        waiting (list): last tokens, not yet read: reading goes in whole blocks, and the
            last token waits for what comes after it.
        logprobs (mx.array): of the token to come, ``[1, vocabulary]``, where a
            generation was stopped; else ``None``.
        digest (str): running SHA-256 over the ids of the tokens read.
        recent (list): the last 64 tokens read.
        notes (dict): what a command wants to find again; JSON.
    """

    cache: list[HybridCache]
    waiting: list[int] = field(default_factory=list)
    logprobs: mx.array | None = None
    digest: str = START
    recent: list[int] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Tokens that the model has read."""
        return self.cache[0][0].offset

    @property
    def tokens(self) -> int:
        """All tokens, those that wait included."""
        return self.read + len(self.waiting)

    def count(self, tokens: Sequence[int]) -> None:
        """Notes which tokens the cache has read."""
        self.digest = digest(tokens, self.digest)
        self.recent = [*self.recent, *tokens][-RECENT:]

    def open_document(self, key: str, start: int) -> None:
        """Notes that a document, which an archive has by this key, is read from a
        token on. What was noted of one that begins there is replaced."""
        known = self.notes.get("documents", [])
        others = [document for document in known if document[1] != start]
        self.notes["documents"] = [*others, [key, start, None]]

    def add_document(self, key: str) -> None:
        """Notes a document that can be looked up, and of which nothing is read."""
        known = self.notes.get("documents", [])
        self.notes["documents"] = [*known, [key, self.tokens, self.tokens]]

    def close_documents(self) -> None:
        """Notes that what is read from now on is no document."""
        for document in self.notes.get("documents", []):
            if document[2] is None:
                document[2] = max(self.tokens, document[1])

    @property
    def documents(self) -> dict[str, int]:
        """How many tokens of each document the state has, by its key in an archive,
        those that wait included. While one is read, tokens after it may be counted."""
        counts: dict[str, int] = {}
        for key, start, stop in self.notes.get("documents", []):
            end = self.tokens if stop is None else min(stop, self.tokens)
            counts[key] = max(counts.get(key, 0), end - start)
        return counts

    def fork(self) -> "State":
        """A state of its own, equal to this one. Arrays are shared: none is ever
        changed."""
        return replace(
            self,
            cache=[layer.fork() for layer in self.cache],
            waiting=list(self.waiting),
            recent=list(self.recent),
            notes=copy.deepcopy(self.notes),
        )

    @property
    def arrays(self) -> dict[str, mx.array]:
        """Every array by its name in a file; none before the first block was read."""
        if self.read == 0:
            return {}
        last = {} if self.logprobs is None else {"logprobs": self.logprobs}
        return last | {
            name: x
            for i, layer in enumerate(self.cache)
            for name, x in zip(
                _names(i, len(layer.memory)),
                [layer.ring.keys, layer.ring.values, *layer.memory],
                strict=True,
            )
        }

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(x.nbytes for x in self.arrays.values())


def new(model: Model) -> State:
    """A state that has read nothing."""
    return State(model.make_cache())


def digest(tokens: Iterable[int], start: str = START) -> str:
    """Running SHA-256 over token ids; it does not depend on how they were cut."""
    running = bytes.fromhex(start)
    for token in tokens:
        running = hashlib.sha256(running + token.to_bytes(4, "little")).digest()
    return running.hex()


def unread(pieces: Iterable[list[int]], state: State) -> Iterator[list[int]]:
    """What is left of a document of which a state has read the beginning.

    Raises:
        AllMemError: if the state was not read from this document, or it has changed.
    """
    left, running = state.tokens, START
    for piece in pieces:
        known, piece = piece[:left], piece[left:]
        running = digest(known, running)
        left -= len(known)
        if known and not left and running != digest(state.waiting, state.digest):
            break
        if piece:
            yield piece
    else:
        if not left:
            return
    raise AllMemError(
        "the state was not read from this document, or what was read of it has changed "
        "since, or the system prompt has; name another file for the state, or ask "
        "about what is in it without a document"
    )


@dataclass
class _Fingerprint:
    """Kept with the arrays it was made of: a model whose weights are replaced gets
    another."""

    arrays: list[mx.array]
    value: str


def fingerprint(model: Model) -> str:
    """SHA-256 over a model's base configuration and every byte of its weights."""
    weights: Any = sorted(tree_flatten(model.parameters()))
    known = getattr(model, "_fingerprint", None)
    if known is None or any(
        x is not y for (_, x), y in zip(weights, known.arrays, strict=True)
    ):
        running = hashlib.sha256(json.dumps(model.base_config, sort_keys=True).encode())
        for name, x in weights:
            running.update(f"{name} {x.dtype} {x.shape}".encode())
            running.update(memoryview(x.reshape(-1).view(mx.uint8)))
        known = _Fingerprint([x for _, x in weights], running.hexdigest())
        model._fingerprint = known
    return known.value


def save(
    state: State, path: str | Path, model: Model, half_window: bool = False
) -> None:
    """Writes a state to a file, whole or not at all.

    Args:
        state (State): what to save.
        path (str | Path): the file; one that exists is replaced.
        model (Model): the model that has read it.
        half_window (bool): float32 keys and values of the window in float16, for size;
            what is read on then differs in the last bits. The memory stays as it is.

    Raises:
        AllMemError: if it cannot be written; a file that was there is still as it was.
    """
    path = _place(path)
    arrays = state.arrays
    if half_window:
        arrays = {
            name: x.astype(mx.float16) if _is_wide_window(name, x) else x
            for name, x in arrays.items()
        }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "checksum": UNSIGNED,
        "fingerprint": fingerprint(model),
        "allmem": json.dumps(asdict(model.allmem)),
        "dtype": str(model.dtype),
        "half_window": json.dumps(half_window),
        "memory": json.dumps(has_memory(state.cache)),
        "read": str(state.read),
        "digest": state.digest,
        "waiting": json.dumps(state.waiting),
        "recent": json.dumps(state.recent),
        "notes": json.dumps(state.notes),
    }
    try:
        with replacing(path) as temporary:
            mx.save_safetensors(str(temporary), arrays, metadata)
            with open(temporary, "r+b") as file:
                at, checksum = _checksum(file)
                file.seek(at)
                file.write(checksum.encode())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AllMemError(
            f"the state cannot be saved to {str(path)!r} ({reason}); a file that was "
            "there is as it was"
        ) from error


def load(path: str | Path, model: Model) -> State:
    """Opens a state file, to go on where it was saved.

    Args:
        path (str | Path): the file.
        model (Model): the model that has read what is in it.

    Raises:
        AllMemError: naming what is wrong, if it is not a state file, is damaged, comes
            from a newer version or belongs to another model or other settings.
    """
    metadata, dtype = describe(path), model.dtype
    for known in fields(model.allmem):
        name, setting = known.name, getattr(model.allmem, known.name)
        # A setting that was not known yet had what is its default.
        saved = metadata["allmem"].get(name, known.default)
        if saved != setting:
            raise AllMemError(
                f"{str(path)!r} was saved with {name} {saved}; the model has {setting}"
            )
    if metadata["dtype"] != str(dtype):
        raise AllMemError(
            f"{str(path)!r} was saved by a model in {metadata['dtype']}; this one is "
            f"in {dtype}"
        )
    if metadata["fingerprint"] != fingerprint(model):
        raise AllMemError(
            f"{str(path)!r} was saved by another model: its weights or configuration "
            "are not those of this one"
        )
    parts = ("waiting", "digest", "recent", "notes")
    state = State(model.make_cache(), **{part: metadata[part] for part in parts})
    if metadata["read"] == 0:
        return state
    if has_memory(state.cache) and not metadata["memory"]:
        raise AllMemError(
            f"{str(path)!r} was saved while the model had no memory; it has one now"
        )
    arrays: Any = mx.load(str(path), format="safetensors")
    for i, layer in enumerate(state.cache):
        names = _names(i, len(layer.memory))
        keys, values, *layer.memory = (arrays[name] for name in names)
        layer.ring.keys, layer.ring.values = keys.astype(dtype), values.astype(dtype)
        layer.ring.offset = metadata["read"]
    state.logprobs = arrays.get("logprobs")
    mx.eval(state.arrays)
    return state


def describe(path: str | Path) -> dict[str, Any]:
    """What a state file says of itself, once its checksum was found right.

    Returns:
        dict: ``version``, ``fingerprint``, ``allmem`` (settings), ``dtype``,
        ``half_window``, ``memory`` (whether there is one), ``read``, ``digest``,
        ``waiting``, ``recent``, ``notes`` and ``bytes``, the size of the file.

    Raises:
        AllMemError: if it is not a state file, is damaged or from a newer version.
    """
    with _opening(path) as file:
        metadata = _metadata(file)
        if int(metadata["version"]) > VERSION:
            raise AllMemError(
                f"{str(path)!r} has format version {metadata['version']}; this "
                f"version of allmem_mlx reads up to {VERSION}"
            )
        if _checksum(file)[1] != metadata["checksum"]:
            raise ValueError("the checksum is wrong")
        size = os.fstat(file.fileno()).st_size
    texts = ("fingerprint", "dtype", "digest")
    return {
        "memory": True,  # version 1 does not say
        **{name: metadata[name] for name in texts},
        **{
            name: json.loads(value)
            for name, value in metadata.items()
            if name not in (*texts, "format", "checksum")
        },
        "bytes": size,
    }


def check(path: str | Path) -> None:
    """Refuses what is no state file, at once; :func:`describe` reads it whole.

    Raises:
        AllMemError: if it cannot be read, or is something else.
    """
    with _opening(path) as file:
        _metadata(file)


def check_place(path: str | Path) -> None:
    """Refuses a place where no state can be saved, before anything is read.

    Raises:
        AllMemError: if the name is impossible, the folder cannot be written to, or the
            file is something else than a state.
    """
    place = _place(path)
    try:
        if place.exists():
            check(place)
        longest = os.pathconf(place.parent, "PC_NAME_MAX")
        if len(os.fsencode(place.name)) > longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise AllMemError(
            f"the state cannot be saved to {str(path)!r} ({error.strerror}); choose "
            "another place"
        ) from None


def _place(path: str | Path) -> Path:
    """Where a file of this name is, or will be: a link is followed."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise AllMemError(
            f"the name of a state must be UTF-8: {str(path)!r} is not"
        ) from None
    return Path(os.path.realpath(path))


@contextmanager
def _opening(path: str | Path) -> Iterator[Any]:
    """A state file, and what is wrong with it in a line."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise _NotAState  # it would be waited for
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise AllMemError(
            f"{str(path)!r} cannot be read ({error.strerror or error})"
        ) from error
    except _NotAState:
        raise AllMemError(f"{str(path)!r} is not a state file of allmem_mlx") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AllMemError(
            f"{str(path)!r} is damaged or incomplete ({error}); use another copy"
        ) from None


class _NotAState(ValueError):
    """Something else than a state file, or one whose beginning is lost."""


def _metadata(file: Any) -> dict[str, str]:
    """The metadata of a safetensors file, if it is one of ours."""
    size = int.from_bytes(file.read(8), "little")
    if size > os.fstat(file.fileno()).st_size - 8:
        raise _NotAState
    try:
        metadata = json.loads(file.read(size))["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _NotAState from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _NotAState
    return metadata


def _checksum(file: Any) -> tuple[int, str]:
    """Where the checksum stands, and what it should be: SHA-256 of the file with
    zeros in its place."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(b'"checksum":"', 0, 8 + int.from_bytes(content[:8], "little"))
        if at < 0:
            raise ValueError("it has no checksum")
        at += len(b'"checksum":"')
        running = hashlib.sha256(content[:at])
        running.update(UNSIGNED.encode())
        with memoryview(content) as view, view[at + len(UNSIGNED) :] as rest:
            running.update(rest)
    return at, running.hexdigest()


def _names(layer: int, memory: int) -> list[str]:
    """Names of a layer's arrays, in their order in the cache, of which the memory has
    so many."""
    parts = []
    for name, kind in MemoryState.__annotations__.items():
        if kind is mx.array:
            parts.append(f"memory.{name}")
        else:
            parts += [f"memory.{name}.{matrix}" for matrix in kind._fields]
    parts = ["keys", "values", *parts[:memory]]
    return [f"layers.{layer}.{part}" for part in parts]


def _is_wide_window(name: str, x: mx.array) -> bool:
    return name.endswith((".keys", ".values")) and x.dtype == mx.float32
