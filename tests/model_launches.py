"""What a whole model launches for each token while it reads, in the middle of a text.

Counted in the graph of a block: what MLX has a kernel for on Metal (norms, RoPE,
attention), and the memory's own kernels, as one launch each, and every other operation
that makes an array. MLX compiles some of these into fewer. Widths make no difference:
the models have the layers of those that they stand for, and random weights.

    python tests/model_launches.py
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
from helpers import TINY_BASE, activate_memory
from kernel_cases import VIEWS
from launches import count_step

from allmem_mlx.memory import kernels
from allmem_mlx.model import Model, ModelArgs

NOTHING = VIEWS | {"AsStrided", "Contiguous", "Reshape", "Squeeze"}


def _one_launch(like: mx.array, *others: mx.array) -> mx.array:
    """What a graph has for a kernel of MLX's own."""
    kernel = mx.fast.metal_kernel(
        name="stand_in",
        input_names=[f"x{i}" for i in range(1 + len(others))],
        output_names=["y"],
        source="y[0] = x0[0];",
    )
    return kernel(
        inputs=[like, *others],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
        output_shapes=[like.shape],
        output_dtypes=[like.dtype],
    )[0]


def _attention(
    queries: mx.array, keys: mx.array, values: mx.array, mask: Any = None, **_: Any
) -> mx.array:
    masks = [mask] if isinstance(mask, mx.array) else []
    return _one_launch(queries, keys, values, *masks)


@contextmanager
def _as_on_metal(memory: kernels.Operations) -> Iterator[None]:
    with (
        mock.patch.object(mx.fast, "rms_norm", lambda x, *_, **__: _one_launch(x)),
        mock.patch.object(mx.fast, "rope", lambda x, *_, **__: _one_launch(x)),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", _attention),
        mock.patch.object(mx, "contiguous", lambda x: x),  # launches nothing here
        mock.patch.object(kernels, "operations", lambda *_: memory),
    ):
        yield


def launches(model: Model, tokens: int, memory: kernels.Operations) -> float:
    """For each of the tokens of the block that comes after a full window.

    Args:
        model (Model): a hybrid.
        tokens (int): of the block.
        memory (Operations): what the memory uses.
    """
    c = model.allmem
    cache = model.make_cache()
    before = -(-(c.sinks + c.window + c.chunk) // tokens) * tokens
    for _ in range(0, before, c.block):
        model(mx.zeros((1, c.block), mx.int32), cache=cache)
        mx.eval([layer.state for layer in cache])
    with _as_on_metal(memory):
        counted = count_step(model, cache, mx.zeros((1, tokens), mx.int32)).primitives
    return sum(n for name, n in counted.items() if name not in NOTHING) / tokens


def of_layers(number: int, family: str, **allmem: Any) -> Model:
    """A model with so many layers, of which all see window and sinks."""
    base = {**TINY_BASE, "num_hidden_layers": number, "base_model_type": family}
    allmem = {"heads": 1, "head_dim": 32, "hidden_dim": 64, **allmem}
    model = Model(ModelArgs.from_dict({**base, "allmem": allmem}))
    activate_memory(model)
    model.eval()
    mx.eval(model.parameters())
    return model


def main() -> None:
    default = {"window": 512, "sinks": 16, "chunk": 64}
    default |= {"values": "token", "updates": "down", "layers": list(range(11))}
    models = {
        "the embedded default": of_layers(30, "llama", **default),
        "Qwen3-0.6B, chunk 64": of_layers(28, "qwen3", chunk=64, window=2048),
        "Qwen3-0.6B, chunk 2048": of_layers(28, "qwen3", chunk=2048, window=2048),
    }
    print(f"{'launches for a token':24}{'block':>7}{'with kernels':>15}{'without':>10}")
    for name, model in models.items():
        block = model.allmem.block
        for tokens in sorted({model.allmem.chunk, block}):
            counts = [
                launches(model, tokens, memory)
                for memory in (kernels.METAL, kernels.REFERENCE)
            ]
            print(f"{name:24}{tokens:7}{counts[0]:15.2f}{counts[1]:10.2f}", flush=True)


if __name__ == "__main__":
    main()
