"""Figure 3 of the AllMem paper (arXiv 2602.13680), counted: FLOPs and cache after
131,072 tokens.

    python examples/paper_figure_3.py
"""

from allmem_mlx.benchmarking.costs import costs, describe, fraction, lazy_model
from allmem_mlx.benchmarking.flops import Sizes

# Window and chunk are those of the figure; the sinks are those of the paper's tables.
SETTINGS = {"window": 4096, "sinks": 128, "chunk": 2048}
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
MODELS = {
    "Qwen3-0.6B": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-1.7B": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
}


def main() -> None:
    for name, config in MODELS.items():
        sizes = Sizes.of(lazy_model(config, SETTINGS))
        rows = [costs(sizes, length) for length in LENGTHS]
        last = rows[-1]
        chunk = 2 * sizes.config.heads * sizes.config.head_dim * SETTINGS["chunk"]
        ring, full = (
            last["state"][x] / sizes.itemsize
            for x in ("window + sinks", "full attention")
        )
        memory = ring + 3 * sizes.fast_weights
        buffer = ring + 2 * sizes.fast_weights + sizes.memory_layers * chunk
        print(f"{name}, window 4,096, 128 sinks, chunk 2,048")
        print(describe(rows))
        mixers, everything, elements, buffered = map(
            fraction,
            (
                last["token mixer, AllMem / full"],
                last["all, AllMem / full"],
                memory / full,
                buffer / full,
            ),
        )
        print(
            f"\nAt {LENGTHS[-1]:,} tokens the paper has about 1/9 of full attention, "
            "for FLOPs and for the cache.\n"
            f"Token mixers, FLOPs: {mixers}; with channel mixers: {everything}\n"
            f"Cache, elements: {elements} (W, M and G beside the window), {buffered} "
            "with keys and values of the open chunk in place of G. The paper's 1/9 "
            "follows from neither.\n"
        )


if __name__ == "__main__":
    main()
