"""What the memory's kernels cost: launches, counted bytes, and what they imply.

Bytes are counted while the kernels run on the CPU (``metal_host``), every access of
every thread, and compared with the floor: each argument and each result once. The
times are arithmetic, not measured: counted bytes by the bandwidth that Apple publishes.
A launch costs a few microseconds more, and reading many tokens at once is bound by
arithmetic instead.

    python tests/kernel_account.py
"""

from typing import NamedTuple

import mlx.core as mx
from kernel_cases import (
    Case,
    Inputs,
    arrays,
    device_bytes,
    emulated_kernels,
    floor_bytes,
    launches,
)

from allmem_mlx import kernels
from allmem_mlx.config import AllMemConfig
from allmem_mlx.memory import Memory

GIGABYTES_PER_SECOND = {
    "M1": 68,
    "M2, M3": 100,
    "M4": 120,
    "M4 Pro": 273,
    "M4 Max": 546,
}


class Form(NamedTuple):
    """A memory, the number of layers that have it, and the width of the model."""

    config: AllMemConfig
    layers: int
    width: int


FORMS = {
    "the embedded default": Form(
        AllMemConfig(3, 128, 512, chunk=64, values="token"), 11, 576
    ),
    "SmolLM2-135M, converted": Form(AllMemConfig(3, 64, 128), 30, 576),
    "Qwen3-0.6B, converted": Form(AllMemConfig(8, 64, 128), 28, 1024),
}


def count(name: str, case: Case) -> tuple[int, int]:
    """Bytes counted, and the floor."""
    arguments = Inputs(case).of(name)
    with emulated_kernels(mode="check") as ran:
        result = arrays(getattr(kernels, name)(**arguments))
    return device_bytes(ran[0]), floor_bytes(arguments, result)


def times(counted: float) -> str:
    return "".join(f"{counted / b / 1e3:12.2f}" for b in GIGABYTES_PER_SECOND.values())


def launch_counts(config: AllMemConfig, width: int) -> dict[str, int]:
    """Of the memory branch of a layer."""
    kernels.operations = lambda config, training: kernels.METAL
    memory = Memory(width, config)
    state = memory.initial_state(1, mx.float32).arrays()
    # One more joins the two branches of the layer, compiled into one.
    return {
        when: launches(memory, state, token, tokens).total() + 1
        for when, token, tokens in (
            ("a token", 1, 1),
            ("the last token of a block", config.fold - 1, 1),
            ("the last token of a chunk", config.chunk - 1, 1),
            ("a chunk at once", 0, config.chunk),
        )
    }


def main() -> None:
    for name, (config, layers, width) in FORMS.items():
        sizes = config.heads, config.head_dim, config.hidden_dim
        print(
            f"{name}: {layers} layers, {sizes[0]} heads of {sizes[1]} x {sizes[2]}, "
            f"bfloat16, fold {config.fold}, chunk {config.chunk}"
        )
        for when, number in launch_counts(config, width).items():
            print(f"launches for a layer's memory, {when}: {number}")
        chips = [f"{x} {b}" for x, b in GIGABYTES_PER_SECOND.items()]
        print(f"{'':55} implied microseconds at GB/s")
        print(
            f"{'kernel':14}{'tokens':>7}{'launched':>15}{'bytes':>9}{'floor':>9}"
            f"{'ratio':>7}" + "".join(f"{chip:>12}" for chip in chips)
        )
        per_token = 0.0
        for kernel, tokens, every in (
            ("memory_inputs", 1, 1),
            ("memory_read", 1, 1),
            ("memory_fold", config.fold, config.fold),
            ("memory_write", config.chunk, config.chunk),
            ("memory_inputs", config.chunk, None),
            ("memory_read", config.chunk, None),
        ):
            counted, floor = count(kernel, Case(1, *sizes, tokens, mx.bfloat16))
            if every:
                per_token += counted / every
            launched = f"1/{every} tokens" if every else "reading"
            print(
                f"{kernel:14}{tokens:7}{launched:>15}{counted:9}{floor:9}"
                f"{counted / floor:7.3f}{times(counted)}"
            )
        for where, times_of in (("a layer", 1), ("all layers", layers)):
            decoding = f"decoding, a token, {where}"
            total = times_of * per_token
            print(f"{decoding:36}{total:9.0f}{'':16}{times(total)}")
        print()


if __name__ == "__main__":
    main()
