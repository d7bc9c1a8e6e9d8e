"""The tokenizer in a GGUF file's metadata as ``tokenizer.json``.

There are three kinds: byte-level BPE, which llama.cpp calls ``gpt2``; sentencepiece's
BPE, which it calls ``llama``; and the same with merges instead of scores, ``gemma4``.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

from allmem_mlx.errors import AllMemError, reason

from .pre_tokenizers import PRE_TOKENIZERS
from .source import Source

# The values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"  # how sentencepiece writes a space

# Tokens that end a turn; not every file says so.
ENDS_OF_TURN = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>"),
    *("<turn|>", "<|tool_response>"),
)
# Those of gpt-oss, in which <|end|> only ends a message, and the answer goes on.
HARMONY = ("<|return|>", "<|call|>", "<|endoftext|>")
# Keys that do not change the tokens of a text.
HARMLESS = {
    "add_sep_token",  # only between two texts
    "cls_token_id",
    "mask_token_id",
    "seperator_token_id",
    "token_type_count",
    # Only the other kind of tokenizer uses these:
    "add_space_prefix",
    "merges",
    "pre",
    "scores",
}
FOR_CODE = ("fim_", "prefix_", "suffix_", "middle_")  # ids that only a caller uses


class Vocabulary:
    """Tokens, their types and the ids of special ones.

    Args:
        source (Source): the file.

    Raises:
        AllMemError: if the metadata is incomplete or makes no sense.
    """

    def __init__(self, source: Source):
        self.source = source
        self.tokens: list[str] = [
            token or f"[EMPTY_{i}]"
            for i, token in enumerate(self.values("tokens", str))
        ]
        self.types = self.values("token_type", int)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise source.error("tokenizer.ggml.tokens has a token twice")
        if len(self.types) != len(self.tokens):
            raise source.error(
                f"tokenizer.ggml.token_type has {len(self.types)} entries for "
                f"{len(self.tokens)} tokens"
            )

    def get(self, key: str, kind: type, *default: Any) -> Any:
        return self.source.metadata.get(f"tokenizer.ggml.{key}", kind, *default)

    def values(self, key: str, kind: type) -> list[Any]:
        entries: list[Any] = self.get(key, list)
        if any(type(x) is not kind for x in entries):
            raise self.source.error(f"tokenizer.ggml.{key} is a list of another type")
        return entries

    def id(self, name: str) -> int | None:
        """The id of a special token, such as ``eos``."""
        token: int | None = self.get(f"{name}_token_id", int, None)
        if token is not None and not 0 <= token < len(self.tokens):
            raise self.source.error(
                f"tokenizer.ggml.{name}_token_id is {token}; there are "
                f"{len(self.tokens)} tokens"
            )
        return token

    def of_type(self, *types: int) -> list[str]:
        pairs = zip(self.tokens, self.types, strict=True)
        return [token for token, kind in pairs if kind in types]


def end_of_text(vocabulary: Vocabulary) -> list[int]:
    """The ids of the tokens that end an answer."""
    ids = [vocabulary.id(name) for name in ("eos", "eot", "eom")]
    control = set(vocabulary.of_type(CONTROL, USER_DEFINED))
    harmony = {"<|return|>", "<|call|>"} <= control
    ends = HARMONY if harmony else ENDS_OF_TURN
    ids += [vocabulary.ids[token] for token in ends if token in control]
    if harmony:
        ids = [i for i in ids if i != vocabulary.ids.get("<|end|>")]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    name = vocabulary.get("pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise vocabulary.source.error(
            f"pre-tokenizer {name!r} is not supported; "
            f"supported: {', '.join(PRE_TOKENIZERS)}"
        )
    cut = PRE_TOKENIZERS[name]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_merges(vocabulary),
            ignore_merges=cut.ignore_merges,
        )
    )
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.bos


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs of tokens that are joined, the first first."""
    merges = []
    for merge in vocabulary.values("merges", str):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise vocabulary.source.error(
                "tokenizer.ggml.merges are not pairs of tokens"
            )
        merges.append((left, right))
    return merges


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """All pairs of tokens that form a third, by falling score of that token.

    sentencepiece joins the neighbours whose token has the highest score.
    """
    scores = vocabulary.values("scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise vocabulary.source.error("tokenizer.ggml.scores does not fit the tokens")
    ids = {token: vocabulary.ids[token] for token in vocabulary.of_type(NORMAL)}
    merges = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-scores[i], ids[left], ids[right], left, right))
    return [merge[-2:] for merge in sorted(merges)]


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    tokenizer = _of_characters(vocabulary, _merges_by_score(vocabulary))
    _replace_spaces(tokenizer, vocabulary.get("add_space_prefix", bool, True))
    return tokenizer, True


def _gemma4(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    merges = _merges(vocabulary)
    tokenizer = _of_characters(vocabulary, merges)
    _replace_spaces(tokenizer, vocabulary.get("add_space_prefix", bool, False))
    # No merge makes these: they are found in the text before anything is merged. The
    # file does not tell them from others.
    made = {left + right for left, right in merges}
    whole = [
        token
        for token in vocabulary.of_type(NORMAL)
        if len(token) > 1 and token not in made
    ]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    return tokenizer, True


def _of_characters(vocabulary: Vocabulary, merges: list[tuple[str, str]]) -> Tokenizer:
    """BPE that begins with characters, or with bytes of those that are no tokens."""
    unknown = vocabulary.id("unknown")
    return Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=merges,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )


def _replace_spaces(tokenizer: Tokenizer, prefix: bool) -> None:
    """As sentencepiece writes them.

    Args:
        tokenizer (Tokenizer): the tokenizer.
        prefix (bool): whether a text starts with one more.
    """
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces.insert(0, normalizers.Prepend(SPACE))
        decode.append(decoders.Strip(" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(decode)


KINDS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _gemma4}


def _frame(tokenizer: Tokenizer, vocabulary: Vocabulary, bos: bool) -> None:
    """Adds the tokens that every text starts or ends with."""
    bos = vocabulary.get("add_bos_token", bool, bos)
    eos = vocabulary.get("add_eos_token", bool, False)
    single, ids = ["$A"], {}
    for name, wanted in (("bos", bos), ("eos", eos)):
        if not wanted:
            continue
        if (i := vocabulary.id(name)) is None:
            raise vocabulary.source.error(
                f"a text needs a {name} token, and there is none"
            )
        token = vocabulary.tokens[i]
        ids[token] = i
        single = [token, *single] if name == "bos" else [*single, token]
    if ids:
        tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[*ids.items()]
        )


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a vocabulary.

    Raises:
        AllMemError: if it is of a kind that is not supported, or damaged.
    """
    source = vocabulary.source
    kind = vocabulary.get("model", str)
    if kind not in KINDS:
        raise source.error(
            f"tokenizer {kind!r} is not supported; supported: {', '.join(KINDS)}"
        )
    try:
        tokenizer, bos = KINDS[kind](vocabulary)
        special = vocabulary.of_type(CONTROL, UNKNOWN)
        user_defined = vocabulary.of_type(USER_DEFINED)
        tokenizer.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in special]
        )
        tokenizer.add_tokens(
            [AddedToken(token, normalized=False) for token in user_defined]
        )
        _frame(tokenizer, vocabulary, bos)
    except AllMemError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise source.error(f"the tokenizer is damaged: {reason(error)}") from None
    return tokenizer


def _chat_template(source: Source) -> str | list[dict[str, str]] | None:
    """One template, or several by name."""
    key = "tokenizer.chat_template"
    main: str | None = source.metadata.get(key, str, None)
    names = source.metadata.get("tokenizer.chat_templates", list, [])
    templates = {name: source.metadata.get(f"{key}.{name}", str) for name in names}
    if not templates:
        return main
    if main is not None:
        templates = {"default": main, **templates}
    return [{"name": name, "template": text} for name, text in templates.items()]


def _check_unused(source: Source) -> None:
    if source.metadata.get("tokenizer.ggml.remove_extra_whitespaces", bool, False):
        raise source.error("a tokenizer that removes spaces is not supported")
    for key in source.metadata.unused("tokenizer.ggml."):
        name = key.removeprefix("tokenizer.ggml.")
        if name in HARMLESS or (name.startswith(FOR_CODE) and name.endswith("_id")):
            continue
        raise source.error(f"{key} is not supported")


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        vocabulary (Vocabulary): the file's.
        folder (Path): an existing folder.

    Raises:
        AllMemError: if it is of a kind that is not supported, or damaged.
    """
    source = vocabulary.source
    tokenizer = build_tokenizer(vocabulary)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.get("context_length", int),
    }
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for name, key in names.items():
        if (i := vocabulary.id(key)) is not None:
            config[f"{name}_token"] = vocabulary.tokens[i]
    if (template := _chat_template(source)) is not None:
        config["chat_template"] = template
    _check_unused(source)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
