"""The state of a model that has read: create, fork, save, load, describe.

A state file is one safetensors file: the arrays of every layer, and the rest in its
metadata (``state_file.py``).
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from . import state_file
from .cache import (
    OPEN,
    attention_caches,
    fork,
    has_memory,
    named_arrays,
    set_arrays,
    tokens_read,
)
from .errors import AllMemError
from .memory.fast_weights import FastWeights
from .memory.layer import MemoryState
from .model import Model

VERSION = 4
RECENT = 64  # last tokens, kept in a file


def _names(written: int) -> list[str]:
    """The arrays of a MemoryState by their names in a file, in order."""
    matrices = [
        f"{part}.{matrix}"
        for part in ("weights", "scales", "momentum", f"{OPEN}grads")
        for matrix in FastWeights._fields[-written:]
    ]
    names = ["tail", *matrices, f"{OPEN}decay", f"{OPEN}block"]
    return [f"memory.{name}" for name in names]


# By their number: where down is written, or all.
MEMORY = {MemoryState.size(written): _names(written) for written in (1, 3)}
START = hashlib.sha256(state_file.FORMAT.encode()).hexdigest()


@dataclass
class State:
    """The state of a model that has read a document or a conversation.

    Args:
        cache (list): the state of every layer, from ``model.make_cache()``.
        waiting (list): last tokens, not yet read: reading goes in whole blocks, and the
            last token waits for what comes after it.
        logprobs (mx.array): of the token to come, ``[1, vocabulary]``, where a
            generation was stopped; else ``None``.
        digest (str): running SHA-256 over the ids of the tokens read.
        recent (list): the last 64 tokens read.
        notes (dict): JSON that a command finds again.
    """

    cache: list[Any]
    waiting: list[int] = field(default_factory=list)
    logprobs: mx.array | None = None
    digest: str = START
    recent: list[int] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Tokens that the model has read."""
        return tokens_read(self.cache)

    @property
    def tokens(self) -> int:
        """All tokens, those that wait included."""
        return self.read + len(self.waiting)

    def record_tokens(self, tokens: Sequence[int]) -> None:
        """Records tokens that the cache has read."""
        self.digest = digest(tokens, self.digest)
        self.recent = [*self.recent, *tokens][-RECENT:]

    def open_document(self, key: str, start: int) -> None:
        """Records that a document of an archive is read from token ``start`` on, in
        place of one that begins there."""
        known = self.notes.get("documents", [])
        others = [document for document in known if document[1] != start]
        self.notes["documents"] = [*others, [key, start, None]]

    def add_document(self, key: str) -> None:
        """Records a document that can be looked up, and of which nothing is read."""
        known = self.notes.get("documents", [])
        self.notes["documents"] = [*known, [key, self.tokens, self.tokens]]

    def close_documents(self) -> None:
        """Records that the documents end here."""
        for document in self.notes.get("documents", []):
            if document[2] is None:
                document[2] = max(self.tokens, document[1])

    @property
    def documents(self) -> dict[str, int]:
        """The number of tokens read of each document, by its key in an archive, those
        that wait included. While one is read, tokens after it may be counted."""
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
            cache=fork(self.cache),
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
        return last | named_arrays(self.cache, MEMORY)

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
    """The rest of a document of which a state has read the beginning.

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
    """A fingerprint and its arrays: a model whose weights are replaced gets another."""

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
        half_window (bool): saves float32 keys and values of the window in float16, for
            size; results then differ in the last bits. The memory stays as it is.

    Raises:
        AllMemError: if it cannot be written; a file that was there is still as it was.
    """
    arrays = state.arrays
    if half_window:
        arrays = {
            name: x.astype(mx.float16)
            if _is_window(name) and x.dtype == mx.float32
            else x
            for name, x in arrays.items()
        }
    metadata = {
        "version": str(VERSION),
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
    state_file.write(path, arrays, metadata)


def load(path: str | Path, model: Model) -> State:
    """Opens a state file, to go on where it was saved.

    Args:
        path (str | Path): the file.
        model (Model): the model that has read what is in it.

    Raises:
        AllMemError: if it is not a state file, is damaged, comes from another version
            or belongs to another model or other settings.
    """
    metadata, dtype = describe(path), model.dtype
    for known in fields(model.allmem):
        name, setting = known.name, getattr(model.allmem, known.name)
        # A setting that an old file lacks had its default value.
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
    if metadata["half_window"]:
        arrays = {
            name: x.astype(dtype) if _is_window(name) else x
            for name, x in arrays.items()
        }
    set_arrays(state.cache, arrays, MEMORY)
    for layer in attention_caches(state.cache):
        layer.ring.offset = metadata["read"]
    state.logprobs = arrays.get("logprobs")
    mx.eval(state.arrays)
    return state


def describe(path: str | Path) -> dict[str, Any]:
    """The description in a state file whose checksum is right.

    Returns:
        dict: ``version``, ``fingerprint``, ``allmem`` (settings), ``dtype``,
        ``half_window``, ``memory`` (whether there is one), ``read``, ``digest``,
        ``waiting``, ``recent``, ``notes`` and ``bytes``, the size of the file.

    Raises:
        AllMemError: if it is not a state file, is damaged or from another version.
    """
    metadata, size = state_file.read_metadata(path, VERSION)
    texts = ("fingerprint", "dtype", "digest")
    told = {
        name: value if name in texts else json.loads(value)
        for name, value in metadata.items()
    }
    return {**told, "bytes": size}


def _is_window(name: str) -> bool:
    return name.endswith((".keys", ".values"))
