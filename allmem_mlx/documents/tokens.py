"""Text of any length as a stream of tokens, in bounded memory."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from typing import Any

from ..errors import AllMemError

BLOCK = 8_192  # characters tokenised at a time
LONGEST = 16_384  # characters that are held for a place where text may be cut

# Where text may be cut, and what a vocabulary token that stretches over such a place
# looks like. No place is inside a run of white space, which added tokens may take as a
# whole. A token may hold a part of a character, which decodes to U+FFFD.
BOUNDARIES = (
    # the space before a word
    (r"(?<=[!-~\w])(?= [^\W_])", r"[!-~\w\ufffd] ([^\W_]|\ufffd|\Z)"),
    # a line that begins with a word
    (r"(?<=\n)(?=[^\W_])", r"\n([^\W_]|\ufffd)"),
    # a line that begins as a Chinese or Japanese paragraph does
    (r"(?<=\n)(?=\u3000{1,4}\S|[“‘「『（])", r"\n[\u3000“‘「『（\ufffd]"),
)

# Characters that must be known after a cut, so that the tokens before it are decided:
# the regular expressions of pre-tokenizers look one or two ahead.
LOOKAHEAD = 64

# For each token, the characters that it begins and ends at.
Spans = list[tuple[int, int]]

# Tokens, and for each the character of the whole text that it ends at.
Encoded = tuple[list[int], list[int]]


def tokenize(
    texts: Iterable[str],
    tokenizer: Any,
    *,
    block: int = BLOCK,
    longest: int = LONGEST,
    on_change: Callable[[], None] = lambda: None,
) -> Iterator[list[int]]:
    """The tokens of ``"".join(texts)``, in memory that does not grow with the text.

    They are those of ``tokenizer.encode(text, add_special_tokens=False)``. The text is
    cut where no token of the vocabulary can stretch over the cut, and only if encoding
    anew from a few words before the cut gives the same tokens.

    Text without such a place for ``longest`` characters, such as minified code or
    Chinese without line breaks, is cut between two of its tokens, where encoding anew
    from a little before gives the same tokens. Where no place does, or the tokenizer
    does not tell which characters a token stands for, it is cut at a line or a word,
    and the parts are encoded apart. Cuts depend on the text alone, not on the pieces
    that it comes in.

    Args:
        texts: pieces of text.
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.
        block (int): characters tokenised at a time.
        longest (int): characters held, beside a block, before a cut is forced.
        on_change: called at each forced cut that is known to change tokens.

    Raises:
        AllMemError: if text far behind a cut that was not forced changed the tokens
            before it.
    """
    pieces = tokenize_with_ends(
        texts, tokenizer, block=block, longest=longest, on_change=on_change
    )
    return (ids for ids, _ in pieces)


def tokenize_with_ends(
    texts: Iterable[str],
    tokenizer: Any,
    *,
    block: int = BLOCK,
    longest: int = LONGEST,
    on_change: Callable[[], None] = lambda: None,
) -> Iterator[Encoded]:
    """As :func:`tokenize`, with the character that each token ends at.

    Where a tokenizer does not tell, all tokens of a part that was encoded by itself end
    where the part ends.

    Yields:
        tuple: token ids, and as many positions in the whole text, which never decrease.
    """
    boundary = _boundary(tokenizer)
    if boundary is None:
        yield from _apart(_blocks(texts, block), tokenizer, longest, on_change)
        return
    before = 0  # characters of the text before the buffer
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    # A normalizer may compose up to four characters into one of an added token.
    margin = LOOKAHEAD + 4 * max((len(token.content) for token in added), default=0)
    # The tokens of buffer[:done] are out. Those of buffer[seam:done] must come again.
    buffer, seam, done, wanted = "", 0, 0, 0
    seam_ids: list[int] = []
    forced = False
    for text in chain(_blocks(texts, block), [""]):
        buffer += text
        if text and len(buffer) < wanted:
            continue
        ids, spans = _encode(tokenizer, buffer)
        start = _first_token(spans, done)
        if start is None or ids[_first_token(spans, seam) : start] != seam_ids:
            if not forced:
                raise AllMemError(
                    "this model's tokenizer changes tokens by what comes much later in "
                    "the text, so that a document cannot be read piece by piece"
                )
            on_change()
            before += done
            buffer, seam, done, start, seam_ids = buffer[done:], 0, 0, 0, []
            ids, spans = _encode(tokenizer, buffer)
        if not text:
            yield ids[start:], [before + end for _, end in spans[start:]]
            return
        end = len(buffer) - margin
        places = [match.start() for match in boundary.finditer(buffer)]
        found = _cut(tokenizer, buffer, ids, spans, places, done, end, margin)
        forced = found is None and len(buffer) - done > longest
        if forced:
            places = sorted({begin for begin, _ in spans})
            found = _cut(tokenizer, buffer, ids, spans, places, done, end, margin)
        if found is not None:
            context, second, cut = found
            first, last = (bisect_left(spans, (at,)) for at in (second, cut))
            yield ids[start:last], [before + end for _, end in spans[start:last]]
            seam_ids, wanted = ids[first:last], 0
            before += context
            buffer, seam, done = buffer[context:], second - context, cut - context
        elif forced:
            cut = _line_or_word(buffer, done, end)
            on_change()
            yield _whole(tokenizer, buffer[done:cut], before + cut)
            before += cut
            buffer, seam, done, seam_ids, wanted = buffer[cut:], 0, 0, [], 0
        else:
            wanted = min(2 * len(buffer), done + longest + 1)


def _cut(
    tokenizer: Any,
    buffer: str,
    ids: list[int],
    spans: Spans,
    places: list[int],
    done: int,
    end: int,
    margin: int,
) -> tuple[int, int, int] | None:
    """The last place after ``done``, and up to ``end``, if encoding anew from a margin
    before it gives the same tokens.

    Returns:
        tuple: where the encoding began, from where its tokens are sure, and the place.
    """
    places = [at for at in places if at <= end and _first_token(spans, at) is not None]
    if not places or (cut := places[-1]) <= done:
        return None
    context = max((at for at in places if at <= cut - margin), default=0)
    # The first word of a text may be encoded differently from the others.
    sure = min(context + LOOKAHEAD // 2, cut)
    second = next(at for at in places if at >= sure)
    again, spans_again = _encode(tokenizer, buffer[context:])
    same = again[_first_token(spans_again, second - context) :]
    if same != ids[_first_token(spans, second) :]:
        return None
    return context, second, cut


def _apart(
    texts: Iterable[str], tokenizer: Any, longest: int, on_change: Callable[[], None]
) -> Iterator[Encoded]:
    """The tokens of a text that is cut at lines or words, each part encoded alone."""
    buffer, before = "", 0
    for text in texts:
        buffer += text
        while len(buffer) > longest:
            cut = _line_or_word(buffer, 0, longest)
            on_change()
            before += cut
            yield _whole(tokenizer, buffer[:cut], before)
            buffer = buffer[cut:]
    yield _whole(tokenizer, buffer, before + len(buffer))


def _whole(tokenizer: Any, text: str, end: int) -> Encoded:
    """The tokens of a part that is encoded by itself, and ends there."""
    ids = token_ids(tokenizer, text)
    return ids, [end] * len(ids)


def _line_or_word(text: str, start: int, end: int) -> int:
    """The end of the last whole line, or else of the last word, or else ``end``."""
    line = text.rfind("\n", start, end) + 1
    return line or max(text.rfind(" ", start + 1, end), 0) or end


def _blocks(texts: Iterable[str], size: int) -> Iterator[str]:
    """The same text in pieces of one size, the last one shorter."""
    buffer = ""
    for text in texts:
        buffer += text
        for at in range(0, len(buffer) - size + 1, size):
            yield buffer[at : at + size]
        buffer = buffer[len(buffer) - len(buffer) % size :]
    if buffer:
        yield buffer


def _encode(tokenizer: Any, text: str) -> tuple[list[int], Spans]:
    """The tokens of ``text``, and for each the characters that it begins and ends at.

    Tokens before it end no later, and tokens after it begin no earlier.
    """
    ids = token_ids(tokenizer, text)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    if encoding.ids != ids:
        # The tokenizer changes the text before it encodes it: nowhere to cut.
        return ids, [(0, len(text))] * len(ids)
    # Offsets run backwards where a pre-tokenizer adds a space, and where two added
    # tokens take the same one.
    starts, ends = zip(*encoding.offsets, strict=True) if ids else ((), ())
    starts = tuple(accumulate(reversed(starts), min))
    return ids, [*zip(reversed(starts), accumulate(ends, max), strict=True)]


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text's tokens, and no others. Unlike the tokenizer's own ``encode``
    it does not warn that the text is longer than the model can read."""
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _first_token(spans: Spans, at: int) -> int | None:
    """The first token at or after character ``at``; None if one stretches over it."""
    index = bisect_left(spans, (at,))
    return None if index and spans[index - 1][1] > at else index


def _boundary(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the places where this tokenizer's text may be cut, if there are any."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    words = backend.pre_tokenizer
    if words is not None and b'"FixedLength"' in words.__getstate__():
        return None  # counts characters from the start of the text
    decode = backend.decoder.decode
    vocabulary = [decode([token]) for token in backend.get_vocab(False)]
    usable = [
        place
        for place, stretch in BOUNDARIES
        if not any(map(re.compile(stretch).search, vocabulary))
    ]
    return re.compile("|".join(usable)) if usable else None
