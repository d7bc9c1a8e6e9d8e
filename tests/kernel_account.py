"""What the memory's kernels cost: launches, threadgroups, counted bytes, and the times
that these imply.

Bytes are counted while the kernels run on the CPU (``metal_host``), every access of
every thread, and compared with the floor: each argument and each result once. What
other threadgroups of the same head load again stands beside them.

The times are arithmetic, not measured: 5 us for a launch, then all the bytes, as if
nothing were cached, by the bandwidth that Apple publishes, of which a core of the GPU
has its share and no more. Products are left out.

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

from allmem_mlx.config import AllMemConfig
from allmem_mlx.memory.layer import Memory, kernels

LAUNCH = 5.0  # microseconds
BLOCK = 512  # tokens that go through a layer at once


class Chip(NamedTuple):
    """Cores of the GPU, and GB/s."""

    cores: int
    bandwidth: int


CHIPS = {"M1": Chip(8, 68), "M4 Pro": Chip(20, 273), "M4 Max": Chip(40, 546)}


class Form(NamedTuple):
    """A memory, the number of layers that have it, and the width of the model."""

    config: AllMemConfig
    layers: int
    width: int


FORMS = {
    "the embedded default": Form(
        AllMemConfig(3, 128, 512, chunk=64, values="token", updates="down"), 11, 576
    ),
    "SmolLM2-135M, converted": Form(AllMemConfig(3, 64, 128), 30, 576),
    "Qwen3-0.6B, converted": Form(AllMemConfig(8, 64, 128), 28, 1024),
}


class Cost(NamedTuple):
    """Of a launch: threadgroups, bytes loaded and stored, those that other threadgroups
    load again, and the floor."""

    threadgroups: int
    once: int
    again: int
    floor: int

    def microseconds(self, chip: Chip) -> float:
        share = min(1.0, self.threadgroups / chip.cores)
        return LAUNCH + (self.once + self.again) / (1e3 * chip.bandwidth * share)


def cost(name: str, case: Case) -> Cost:
    arguments = Inputs(case).of(name)
    with emulated_kernels(mode="check") as ran:
        result = arrays(getattr(kernels, name)(**arguments))
    counted = device_bytes(name, case, ran[0])
    return Cost(ran[0].threadgroups, *counted, floor_bytes(name, arguments, result))


def launch_counts(config: AllMemConfig, width: int) -> dict[str, int]:
    """Of the memory branch of a layer."""
    kernels.operations = lambda config, training, dtype=None: kernels.METAL
    memory = Memory(width, config)
    memory.eval()
    # One more joins the two branches of the layer, compiled into one.
    return {
        when: launches(memory, mx.float32, token, tokens).total() + 1
        for when, token, tokens in (
            ("a token", 1, 1),
            ("the last token of a block of fold", config.fold - 1, 1),
            ("the last token of a chunk", config.chunk - 1, 1),
            (f"{BLOCK} tokens at once", 0, BLOCK),
        )
    }


def times(microseconds: list[float]) -> str:
    return "".join(f"{x:9.1f}" for x in microseconds)


def main() -> None:
    for name, (config, layers, width) in FORMS.items():
        sizes = config.heads, config.head_dim, config.hidden_dim
        fold, chunk = config.fold, config.chunk
        print(
            f"{name}: {layers} layers, {sizes[0]} heads of {sizes[1]} x {sizes[2]}, "
            f"bfloat16, fold {fold}, chunk {chunk}"
        )
        for when, number in launch_counts(config, width).items():
            print(f"launches for a layer's memory, {when}: {number}")
        print(f"{'':82}implied microseconds")
        print(
            f"{'kernel':20}{'tokens':>7}{'launched':>15}{'groups':>7}{'bytes':>10}"
            f"{'floor':>9}{'ratio':>6}{'again':>10}"
            + "".join(f"{chip:>9}" for chip in CHIPS)
        )
        # How often a decoded token has a launch, and a block that is read; and whether
        # a fold has a G to add to.
        chunks, several = BLOCK // chunk, fold < chunk
        rows = {
            ("memory_inputs", 1, False): (1.0, 0),
            ("memory_read", 1, False): (1.0, 0),
            ("memory_fold", fold, False): (1 / chunk, 0 if several else chunks),
            ("memory_write", chunk, False): (1 / chunk, chunks),
            ("memory_inputs", BLOCK, False): (0.0, 1),
            ("memory_read", chunk, False): (0.0, chunks),
        }
        if several:
            rows["memory_fold", fold, True] = (1 / fold - 1 / chunk, 0)
            rows["memory_fold", chunk, False] = (0.0, chunks)
        decoding, reading = 0.0, [0.0] * len(CHIPS)
        for (kernel, tokens, is_open), (of_token, of_block) in rows.items():
            case = Case(1, *sizes, tokens, mx.bfloat16, is_open, config.updates)
            it = cost(kernel, case)
            kernel += ", G open" * is_open
            implied = [it.microseconds(chip) for chip in CHIPS.values()]
            decoding += of_token * it.once
            reading = [r + of_block * x for r, x in zip(reading, implied, strict=True)]
            every = f"1/{round(1 / of_token)} tokens" if of_token else "reading"
            print(
                f"{kernel:20}{tokens:7}{every:>15}{it.threadgroups:7}{it.once:10}"
                f"{it.floor:9}{it.once / it.floor:6.2f}{it.again:10}{times(implied)}"
            )
        print(f"decoding, a token: {decoding:.0f} bytes a layer", end="")
        print(f", {layers * decoding / 1e6:.1f} MB in all layers")
        print(f"{f'reading {BLOCK} tokens, a layer':84}{times(reading)}")
        print()


if __name__ == "__main__":
    main()
