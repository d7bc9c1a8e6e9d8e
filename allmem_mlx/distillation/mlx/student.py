"""A hybrid MLX model as student, and its base as teacher.

They share the frozen weights; the memory and alpha are trained.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ...cache import fork, named_arrays, set_arrays, tokens_read
from ...errors import AllMemError
from ...model import Model
from ...state import MEMORY
from ..documents import Segment

POSITIONS = 128  # whose logits exist at once


def hybrid_layers(model: Model) -> list[Any]:
    """The attention layers that have a memory."""
    return [x for x in model.attentions.values() if "memory" in x]


def make_trainable(model: Model) -> None:
    """Freezes all but the memory and alpha, which become float32.

    Raises:
        AllMemError: if the family cannot be distilled.
    """
    if not model.family.distils:
        kind = model.base_config["model_type"]
        raise AllMemError(f"{kind} cannot be distilled by MLX")
    model.freeze()
    for layer in hybrid_layers(model):
        layer.memory.unfreeze()
        layer.unfreeze(keys=["alpha"], recurse=False)
    trained = tree_map(lambda x: x.astype(mx.float32), model.trainable_parameters())
    model.update(trained)
    model.train()


def set_view(model: Model, window: int, sinks: int, chunk: int) -> None:
    """Gives all layers a chunk, and the global layers a window and sinks."""
    fold = math.gcd(chunk, model.allmem.fold)
    grid: dict[str, Any] = {"chunk": chunk, "fold": fold}
    config = replace(model.allmem, window=window, sinks=sinks, **grid)
    model.allmem = config
    of_window = model.global_layers
    for i, attention in model.attentions.items():
        own = replace(attention.config, **grid)
        attention.config = config if i in of_window else own
    for layer in hybrid_layers(model):
        layer.memory.config = config


class _Body:
    """A model's body whose last hidden states are given."""

    def __init__(self, body: nn.Module, hidden: mx.array):
        self._body, self._hidden = body, hidden

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def logits_of(base: nn.Module, hidden: mx.array) -> mx.array:
    """Logits of last hidden states ``[B, T, D]``, by the model's own code, which may
    tie, scale or cap them."""
    head = copy.copy(base)
    head.model = _Body(base.model, hidden)
    return head(mx.zeros(hidden.shape[:2], mx.int32))


def forward_kl(base: nn.Module, student: mx.array, teacher: mx.array) -> mx.array:
    """``sum_positions KL(teacher || student)`` in nats, of last hidden states
    ``[T, D]``; logits of a whole document never exist at once."""

    @mx.checkpoint
    def divergence(student: mx.array, teacher: mx.array) -> mx.array:
        s, t = (
            nn.log_softmax(logits_of(base, x[None]).astype(mx.float32))
            for x in (student, teacher)
        )
        return (mx.exp(t) * (t - s)).sum()

    parts = [slice(i, i + POSITIONS) for i in range(0, len(student), POSITIONS)]
    return sum((divergence(student[i], teacher[i]) for i in parts), mx.array(0.0))


def read_hidden(
    model: Model, tokens: mx.array, cache: list[Any], grad_checkpoint: bool = False
) -> tuple[mx.array, list[Any]]:
    """Reads tokens block by block.

    Args:
        model (Model): the student.
        tokens (mx.array): ``[1, L]``.
        cache (list): the state before them, which stays as it is.
        grad_checkpoint (bool): recompute a block in the backward pass, from the state
            before it.

    Returns:
        tuple: the last hidden states ``[1, L, D]``, and the state after them.
    """
    cache, read, start = fork(cache), tokens_read(cache), 0
    hidden = []
    for size in model.allmem.cuts(read, tokens.shape[1]):
        block = tokens[:, start : start + size]
        if read + start and grad_checkpoint:
            x, cache = _checkpointed(model, block, cache)
        else:
            with model.reading(block, cache):
                x = model.model(block, cache=cache)
        hidden.append(x)
        start += size
    return mx.concatenate(hidden, axis=1), cache


def _checkpointed(
    model: Model, block: mx.array, before: list[Any]
) -> tuple[mx.array, list[Any]]:
    after: list[Any] = []

    def read(parameters: Any, arrays: Any) -> tuple[mx.array, dict[str, mx.array]]:
        model.update(parameters)
        cache = with_arrays(before, arrays)
        with model.reading(block, cache):
            hidden = model.model(block, cache=cache)
        after[:] = cache  # for its counters; the arrays are returned
        return hidden, named_arrays(cache, MEMORY)

    given = model.trainable_parameters(), named_arrays(before, MEMORY)
    hidden, arrays = mx.checkpoint(read)(*given)
    return hidden, with_arrays(after, arrays)


def with_arrays(cache: list[Any], arrays: dict[str, mx.array]) -> list[Any]:
    """The state with other arrays."""
    cache = fork(cache)
    set_arrays(cache, arrays, MEMORY)
    return cache


def teacher_hidden(base: nn.Module, tokens: mx.array) -> mx.array:
    """The last hidden states of the model's own full attention, ``[1, L, D]``."""
    return mx.stop_gradient(base.model(tokens, None))


def segment_losses(
    model: Model,
    base: nn.Module,
    segment: Segment,
    teacher: mx.array,
    cache: list[Any],
    after: list[Any],
    grad_checkpoint: bool = False,
) -> tuple[mx.array, mx.array, mx.array, dict[str, mx.array]]:
    """The student's losses in a segment of a document.

    Args:
        model (Model): the student.
        base (nn.Module): the teacher; :func:`base_model` of it.
        segment (Segment): the segment.
        teacher (mx.array): the teacher's last hidden states of its tokens,
            ``[1, L, D]``.
        cache (list): the student's state before it.
        after (list): becomes the state after it; while a gradient is taken, without
            its arrays, which are returned.
        grad_checkpoint (bool): see :func:`read_hidden`.

    Returns:
        tuple: the mean divergence from the teacher over the targets, in nats; the mean
        ``-log p`` of the answers' tokens; which of these tokens are the likeliest; and
        the arrays of the state after the segment.
    """
    tokens = mx.array([segment.tokens])
    student, after[:] = read_hidden(model, tokens, cache, grad_checkpoint)
    text = answers = mx.array(0.0)
    right = mx.array([], mx.bool_)
    if segment.targets:
        at = mx.array(segment.targets)
        text = forward_kl(base, student[0, at], teacher[0, at]) / at.size
    if segment.answers:
        at = mx.array(segment.answer_places)
        logits = logits_of(base, student[:, at - 1])[0].astype(mx.float32)
        expected = tokens[0, at]
        answers = nn.losses.cross_entropy(logits, expected, reduction="mean")
        right = logits.argmax(-1) == expected
    return text, answers, right, named_arrays(after, MEMORY)
