"""The memory of a machine, and the largest window that a model can have in it."""

import os
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx

from ..families import largest_window, reach
from ..model import Model
from ..snapshots import CHUNKS, TURNS
from . import flops
from .flops import Sizes

SMALLEST = 512  # tokens; a smaller window is nobody's choice
STATES = 1 + TURNS + CHUNKS  # held by a chat, which can go back
SCORES = 2  # arrays of them at once: before the softmax and after it
GIB = 2**30


class Machine(NamedTuple):
    """The memory of a machine.

    Args:
        memory (int): bytes.
        usable (int): those that a model may take.
        here (bool): whether it is this machine.
    """

    memory: int
    usable: int
    here: bool = False

    def __str__(self) -> str:
        size = f"{self.memory / GIB:,.0f} GB"  # as vendors state it
        return f"this machine's {size}" if self.here else f"a machine with {size}"

    @classmethod
    def of(cls, memory: int, here: bool = False) -> "Machine":
        """A machine with so many bytes. Usable are two thirds of up to 32 GB, and three
        quarters of more: what macOS grants to the GPU, and leaves other programs room.
        """
        usable = memory * 2 // 3 if memory <= 32 * GIB else memory * 3 // 4
        return cls(memory, usable, here)

    @classmethod
    def this(cls) -> "Machine":
        """This machine. With Metal, usable is the working set that it recommends."""
        if mx.metal.is_available():
            info = mx.device_info(mx.gpu)
            working_set = info["max_recommended_working_set_size"]
            return cls(int(info["memory_size"]), int(working_set), True)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls.of(memory, True)


def peak(sizes: Sizes, memory: bool) -> int:
    """Bytes that a chat takes at most: the weights, its states, and the scores of one
    layer while a block is read, which some kernels do not store. All else that a block
    needs is small beside them.

    Args:
        sizes (Sizes): of the model.
        memory (bool): whether its memory is trained.
    """
    c = sizes.config
    state = flops.ring_bytes(sizes) + sizes.recurrent_state
    state += memory * flops.memory_bytes(sizes)
    heads = max(layer.heads for layer in sizes.attentions)
    scores = heads * c.block * (c.sinks + c.window + c.chunk) * sizes.itemsize
    weights = sizes.all_weights + sizes.memory_weights
    return weights + STATES * state + SCORES * scores


def limit(model: Model) -> int | None:
    """The largest window that the base is good for, if it says what it was trained for:
    no position exceeds those of its training, and no token sees further than in it.

    Beyond them it computes something, but nobody has seen what.
    """
    base, c = model.base_config, model.allmem
    known = (base.get("max_position_embeddings"), reach(base))
    if (positions := min(filter(None, known), default=None)) is None:
        return None
    largest = positions - c.sinks - c.chunk
    return min(largest, largest_window(base) or largest)


def fits(sizes: Sizes, window: int, machine: Machine, memory: bool) -> bool:
    """Whether a machine has room for a model with a window; see :func:`peak`."""
    config = replace(sizes.config, window=window)
    return peak(replace(sizes, config=config), memory) <= machine.usable


def largest(
    sizes: Sizes, limit: int | None, machine: Machine, memory: bool
) -> int | None:
    """The window to recommend: the largest power of two, from 512 on, that a machine
    has room for and that does not exceed :func:`limit`; ``None`` if there is none."""
    if limit is None:
        return None
    powers = (SMALLEST << i for i in range(limit.bit_length()))
    fitting = (x for x in powers if x <= limit and fits(sizes, x, machine, memory))
    return max(fitting, default=None)
