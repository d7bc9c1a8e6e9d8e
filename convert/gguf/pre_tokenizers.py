r"""The pre-tokenizers of byte-level BPE, by their name in ``tokenizer.ggml.pre``.

They split text before the merges. The patterns are those in the ``tokenizer.json`` of
the models that the names stand for; a name is missing if its pattern is not certain.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers import pre_tokenizers as pre

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"  # a word

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"{CONTRACTIONS}|{BEFORE}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
)
LLAMA3 += f"|{SPACES}"
QWEN2 = LLAMA3.replace("{1,3}", "")
# Marks belong to the letter before them.
QWEN35 = rf"{CONTRACTIONS}|{BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}"
QWEN35 += rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
TEKKEN = rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}"
TEKKEN += rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
GPT4O = rf"{BEFORE}{UPPER}*{LOWER}+{CONTRACTIONS}?|{BEFORE}{UPPER}+{LOWER}*"
GPT4O += rf"{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
CHINESE = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is split.

    Args:
        patterns (tuple): applied in turn; each match is a piece.
        nfc (bool): whether text is normalised to NFC first.
        ignore_merges (bool): whether a piece that is a token is taken as it is.
        bos (bool): whether a text starts with the bos token, unless the file says.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False

    def build(self) -> pre.PreTokenizer:
        splits = [pre.Split(Regex(p), behavior="isolated") for p in self.patterns]
        return pre.Sequence(
            [*splits, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
        )


_gpt2 = PreTokenizer((GPT2,))
_digits = PreTokenizer((r"\p{N}", GPT2))
_llama3 = PreTokenizer((LLAMA3,), ignore_merges=True, bos=True)
_cl100k = PreTokenizer((LLAMA3,))
_qwen2 = PreTokenizer((QWEN2,))
_gpt4o = PreTokenizer((GPT4O,))

PRE_TOKENIZERS = {
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "exaone4": _gpt2,
    "olmo": PreTokenizer((GPT2,), nfc=True),
    "smollm": _digits,
    "starcoder": _digits,
    "refact": _digits,
    "command-r": PreTokenizer((r"\p{N}", GPT2), nfc=True),
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "falcon3": _llama3,
    "pixtral": _llama3,
    "midm-2.0": _llama3,
    "lfm2": _llama3,
    "dbrx": _cl100k,
    "smaug-bpe": _cl100k,
    "glm4": PreTokenizer((LLAMA3,), ignore_merges=True),
    "qwen2": PreTokenizer((QWEN2,), nfc=True),
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
    "deepseek-r1-qwen": _qwen2,
    "megrez": _qwen2,
    "stablelm2": _qwen2,
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, bos=True),
    "gpt-4o": _gpt4o,
    "kanana2": _gpt4o,
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE, r"\p{N}")
    ),
}
