"""Encoding of untrusted text, which never becomes a control token of the model.

A chat template marks turns with control tokens, and a tokenizer encodes the name of
such a token as the token, wherever it occurs: a document with ``<|im_end|>`` in it
would end its turn, and could continue as the system. So text from outside is encoded as
if the names of control tokens were ordinary text.
"""

import copy
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..errors import AllMemError
from .tokens import token_ids

Part = tuple[str, bool]  # a text, and whether it comes from outside


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that text from outside must not become: special tokens, those that end
    a response, and those of the chat template, such as ``<think>``. White space is
    always text.

    Args:
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.

    Returns:
        dict: their ids by their names.
    """
    marks = _marks(tokenizer)
    ends = getattr(tokenizer, "eos_token_ids", None) or ()
    ends = {ends} if isinstance(ends, int) else set(ends)
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if not token.content.isspace()
        and (token.special or index in ends or token.content in marks)
    }


def _marks(tokenizer: Any) -> str:
    """The source of the chat template, and a conversation rendered by it, since a
    template may build marks from the names of roles."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    texts = [str(template)]
    for roles in (["system", "user", "assistant"], ["user", "assistant"]):
        messages = [{"role": role, "content": "."} for role in roles]
        with suppress(Exception):  # a template is a program, and may refuse a role
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
    return "\n".join(texts)


def as_plain_text(tokenizer: Any) -> Any:
    """A copy of a tokenizer to which the name of a control token is ordinary text.

    Args:
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.

    Returns:
        a Hugging Face tokenizer, made once for each.

    Raises:
        AllMemError: if it still encodes text as a control token.
    """
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    wrapped = isinstance(tokenizer, TokenizerWrapper)
    inner = tokenizer._tokenizer if wrapped else tokenizer
    if "_as_plain_text" not in vars(inner):
        inner._as_plain_text = _without(control_tokens(tokenizer), inner)
    return inner._as_plain_text


def _without(control: dict[str, int], tokenizer: Any) -> Any:
    plain = copy.deepcopy(tokenizer)
    plain.split_special_tokens = True
    backend = getattr(plain, "backend_tokenizer", None)
    if backend is not None:
        added = backend.get_added_tokens_decoder()
        tokens = [added[index] for index in control.values()]
        for token in tokens:
            token.special = True  # only special tokens are split
        backend.add_special_tokens(tokens)
        backend.encode_special_tokens = True
    for name, index in control.items():
        if index in plain.encode(name, add_special_tokens=False):
            raise AllMemError(
                f"this model's tokenizer cannot read {name!r} as plain text; use "
                "--allow-special-tokens if you trust the text"
            )
    return plain


def encode(
    tokenizer: Any, parts: Iterable[Part], allow_special_tokens: bool = False
) -> list[int]:
    """The tokens of consecutive texts, of which some come from outside.

    They are those of the whole text, unless a part from outside has the name of a
    control token: then each part is encoded by itself.

    Args:
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.
        parts: texts, each with whether it comes from outside.
        allow_special_tokens (bool): trust all of them.

    Raises:
        AllMemError: if the tokenizer still encodes text as a control token.
    """
    parts = [(text, outside) for text, outside in parts if text]
    if allow_special_tokens:
        parts = [(text, False) for text, _ in parts]

    def ids(text: str, by: Any = tokenizer) -> list[int]:
        return token_ids(by, text)

    from_outside = [set(ids(text)) for text, outside in parts if outside]
    control = set(control_tokens(tokenizer).values()) if from_outside else set()
    if not any(control & found for found in from_outside):
        return ids("".join(text for text, _ in parts))
    tokens: list[int] = []
    for text, outside in parts:
        by = as_plain_text(tokenizer) if outside else tokenizer
        # The first word of a text may be encoded as if a space were before it.
        line, piece = ids("\n", by), ids("\n" + text, by)
        alone = not tokens or piece[: len(line)] != line
        tokens += ids(text, by) if alone else piece[len(line) :]
    return tokens
