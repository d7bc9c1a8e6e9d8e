"""A GGUF file (llama.cpp) as a plain mlx-lm model folder.

Tensors that ``mx.load`` reads are taken: float32, float16, bfloat16, Q4_0, Q4_1 and
Q8_0, the last three exactly, then dequantised.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from allmem_mlx.errors import AllMemError

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores a model family.

    Args:
        hf_class (str): the family's class in transformers.
        permuted (bool): whether the rows of q and k are interleaved for its RoPE.
    """

    hf_class: str
    permuted: bool


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", permuted=True),
    "qwen3": Architecture("Qwen3ForCausalLM", permuted=False),
}


def _split(pattern: str) -> pre.PreTokenizer:
    return pre.Sequence(
        [
            pre.Split(Regex(pattern), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# tokenizer.ggml.pre -> how text is cut before the merges, as in the models' own
# tokenizer.json.
PRE_TOKENIZERS: dict[str, Callable[[], pre.PreTokenizer]] = {
    "gpt-2": lambda: pre.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre.Sequence(
        [
            pre.Digits(individual_digits=True),
            pre.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": lambda: _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": lambda: _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


def _value(x: Any) -> Any:
    """A metadata value as mx.load gives it (an array, a string or a list of strings)
    as a Python value; float32 as the shortest decimal that means it."""
    if not isinstance(x, mx.array):
        return x
    if x.ndim:
        return x.tolist()
    if mx.issubdtype(x.dtype, mx.floating):
        return float(f"{x.item():.7g}")
    return x.item()


class Metadata:
    """The key-value block of a GGUF file."""

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path = path
        self.values = values
        self.architecture = self["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        return _value(self.values.get(key, default))

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise AllMemError(f"{self.path}: the GGUF file has no {key}")
        return self.get(key)

    def of_model(self, key: str, *default: Any) -> Any:
        """A value of the architecture, ``llama.block_count`` for one."""
        key = f"{self.architecture}.{key}"
        return self.get(key, *default) if default else self[key]


def _load(path: Path) -> tuple[dict[str, mx.array], Metadata]:
    try:
        loaded: Any = mx.load(str(path), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise AllMemError(
            f"{path}: not a GGUF file that MLX can read; tensors must be F32, F16, "
            f"BF16, Q4_0, Q4_1 or Q8_0 ({error})"
        ) from error
    weights, metadata = loaded
    return weights, Metadata(path, metadata)


def read_config(metadata: Metadata, tied: bool) -> dict[str, Any]:
    """The ``config.json`` that the model has on the hub, from its GGUF metadata."""
    kind = metadata.architecture
    if kind not in ARCHITECTURES:
        raise AllMemError(
            f"{metadata.path}: GGUF architecture {kind!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    scaling = metadata.of_model("rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise AllMemError(
            f"{metadata.path}: RoPE scaling {scaling!r} in a GGUF file is not supported"
        )
    heads = metadata.of_model("attention.head_count")
    width = metadata.of_model("embedding_length")
    head_dim = metadata.of_model("attention.key_length", width // heads)
    if (rotated := metadata.of_model("rope.dimension_count", head_dim)) != head_dim:
        raise AllMemError(
            f"{metadata.path}: partial RoPE ({rotated} of {head_dim}) is not supported"
        )
    return {
        "architectures": [ARCHITECTURES[kind].hf_class],
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": metadata.of_model("block_count"),
        "intermediate_size": metadata.of_model("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.of_model("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.of_model("attention.layer_norm_rms_epsilon"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "rope_theta": metadata.of_model("rope.freq_base", 10000.0),
        "max_position_embeddings": metadata.of_model("context_length"),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "hidden_act": "silu",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }


def _dequantize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """MLX gives a quantised tensor as packed weight, scales and biases, group 32."""
    out = {}
    for name, x in weights.items():
        stem, _, kind = name.rpartition(".")
        if kind in ("scales", "biases") and f"{stem}.scales" in weights:
            continue
        if kind == "weight" and f"{stem}.scales" in weights:
            scales = weights[f"{stem}.scales"].astype(mx.float32)
            biases = weights[f"{stem}.biases"].astype(mx.float32)
            bits = x.shape[-1] // scales.shape[-1]  # 32 values to a scale and to a word
            x = mx.dequantize(x, scales, biases, group_size=32, bits=bits)
        out[name] = x
    return out


def _unpermute(x: mx.array, heads: int) -> mx.array:
    """llama.cpp's interleaved rows back to the halves that RoPE pairs."""
    rows = x.shape[0]
    x = x.reshape(heads, rows // heads // 2, 2, *x.shape[1:])
    return x.swapaxes(1, 2).reshape(rows, *x.shape[3:])


def read_weights(
    weights: dict[str, mx.array], config: dict[str, Any]
) -> dict[str, mx.array]:
    """The tensors under the names and in the layout of the Hugging Face model.

    Raises:
        AllMemError: if there is a tensor that has no place in the model.
    """
    permuted = ARCHITECTURES[config["model_type"]].permuted
    out = {}
    for name, x in _dequantize(weights).items():
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None or match[2] not in TENSORS:
            raise AllMemError(f"GGUF tensor {name} is not supported")
        layer, tensor, kind = match.groups()
        if permuted and tensor in ("attn_q", "attn_k"):
            count = "attention" if tensor == "attn_q" else "key_value"
            x = _unpermute(x, config[f"num_{count}_heads"])
        prefix = f"model.layers.{layer}." if layer else ""
        out[f"{prefix}{TENSORS[tensor]}.{kind}"] = x
    return out


def write_tokenizer(metadata: Metadata, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` from the metadata.

    Raises:
        AllMemError: if it is not a byte-level BPE with a known way to cut text.
    """
    kind = metadata["tokenizer.ggml.model"]
    cut = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        raise AllMemError(
            f"{metadata.path}: tokenizer {kind!r} with pre-tokenizer {cut!r} is not "
            f"supported; supported: 'gpt2' with {', '.join(PRE_TOKENIZERS)}"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    for special, wanted in ((True, CONTROL), (False, USER_DEFINED)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, kind in zip(tokens, types, strict=True)
            if kind == wanted
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    if metadata.get("tokenizer.ggml.add_bos_token", cut == "llama-bpe"):
        bos = metadata["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.of_model("context_length"),
    }
    for name, key in {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }.items():
        if (token_id := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            config[name] = tokens[token_id]
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def unpack(path: Path, folder: Path, dtype: mx.Dtype) -> None:
    """Writes the model in a GGUF file as an mlx-lm folder.

    Args:
        path (Path): the GGUF file.
        folder (Path): an existing folder to write to.
        dtype (mx.Dtype): type of the weights.

    Raises:
        AllMemError: if the file is not GGUF, is damaged, or holds a model, a tensor
            or a tokenizer that is not supported.
    """
    weights, metadata = _load(path)
    config = read_config(metadata, tied="output.weight" not in weights)
    weights = read_weights(weights, config)
    config["torch_dtype"] = str(dtype).removeprefix("mlx.core.")
    weights = {name: x.astype(dtype) for name, x in weights.items()}
    mx.save_safetensors(
        str(folder / "model.safetensors"), weights, metadata={"format": "mlx"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(metadata, folder)
