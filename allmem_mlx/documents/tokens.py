"""Text of any length as a stream of tokens, in bounded memory."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from ..errors import AllMemError

BATCH = 8_192  # characters tokenised at a time
LONGEST = 16_384  # characters held for a place where text may be cut

# Places where text may be cut, and the vocabulary tokens that would stretch over such a
# place. No place is inside a run of white space, which added tokens may take as a
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

# The first character of each token, and the one after its last.
Spans = list[tuple[int, int]]

# Tokens, and the character of the whole text at which each ends.
Encoded = tuple[list[int], list[int]]


def tokenize(
    texts: Iterable[str],
    tokenizer: Any,
    *,
    batch: int = BATCH,
    longest: int = LONGEST,
    on_change: Callable[[], None] = lambda: None,
) -> Iterator[Encoded]:
    """The tokens of ``"".join(texts)``, in memory that does not grow with the text.

    They are those of ``tokenizer.encode(text, add_special_tokens=False)``. The text is
    cut where no token of the vocabulary can stretch over the cut, and only if encoding
    again from a few words before the cut gives the same tokens.

    Text without such a place for ``longest`` characters, such as minified code or
    Chinese without line breaks, is cut between two of its tokens, where encoding again
    from a little before gives the same tokens. Failing that, or if the tokenizer does
    not report which characters a token stands for, it is cut at a line or a word, and
    the parts are encoded separately. Cuts depend on the text alone, not on the pieces
    in which it arrives.

    Args:
        texts: pieces of text.
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.
        batch (int): characters tokenised at a time.
        longest (int): characters held, beside a batch, before a cut is forced.
        on_change: called at each forced cut that is known to change tokens.

    Yields:
        tuple: token ids, and for each the character of the whole text at which it ends.
        These never decrease. Where the tokenizer does not report them, all tokens of a
        part that was encoded separately end where the part ends.

    Raises:
        AllMemError: if text far behind a cut that was not forced changed the tokens
            before it.
    """
    texts = _batches(texts, batch)
    boundary = _boundary(tokenizer)
    if boundary is None:
        yield from _tokenize_apart(texts, tokenizer, longest, on_change)
        return
    buffer = _Buffer(tokenizer, on_change)
    wanted = 0  # characters of the buffer for which the next attempt waits
    for text in texts:
        buffer.text += text
        if len(buffer.text) < wanted:
            continue
        buffer.encode()
        found = buffer.cut(match.start() for match in boundary.finditer(buffer.text))
        if found is None and len(buffer.text) - buffer.done > longest:
            starts = sorted({start for start, _ in buffer.spans})
            found = buffer.cut(starts, forced=True) or buffer.cut_apart()
        if found is None:
            wanted = min(2 * len(buffer.text), buffer.done + longest + 1)
        else:
            wanted = 0
            yield found
    buffer.encode()
    yield buffer.tokens()


class _Buffer:
    """The part of a text that is not tokenised yet, and a little of what is.

    The tokens of ``text[:done]`` are out. Those of ``text[seam:done]`` must come again
    when the buffer is encoded with the text that follows.
    """

    def __init__(self, tokenizer: Any, on_change: Callable[[], None]):
        self._tokenizer, self._on_change = tokenizer, on_change
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        # A normalizer may compose up to four characters into one of an added token.
        longest = max((len(token.content) for token in added), default=0)
        self._margin = LOOKAHEAD + 4 * longest
        self.text, self._before = "", 0  # characters of the whole text before it
        self.done, self._seam = 0, 0
        self._seam_ids: list[int] = []
        self._forced = False  # whether the last cut was
        self._ids: list[int] = []
        self.spans: Spans = []
        self._start: int | None = 0  # the first token that is not out

    def encode(self) -> None:
        """Encodes the buffer, and again without what is out if a forced cut changed it.

        Raises:
            AllMemError: if a cut that was not forced changed the tokens before it.
        """
        self._ids, self.spans = _encode(self._tokenizer, self.text)
        self._start = _first_token(self.spans, self.done)
        seam = _first_token(self.spans, self._seam)
        if self._start is None or self._ids[seam : self._start] != self._seam_ids:
            if not self._forced:
                raise AllMemError(
                    "this model's tokenizer changes tokens by what comes much later in "
                    "the text, so that a document cannot be read piece by piece"
                )
            self._on_change()
            self._drop(self.done)
            self._ids, self.spans = _encode(self._tokenizer, self.text)
            self._start = 0
        self._forced = False

    def tokens(self, stop: int | None = None) -> Encoded:
        """The tokens that are not out, up to one of them."""
        spans = self.spans[self._start : stop]
        return self._ids[self._start : stop], [self._before + end for _, end in spans]

    def cut(self, places: Iterable[int], forced: bool = False) -> Encoded | None:
        """Takes out the tokens up to the last of some places, if encoding again from a
        margin before it gives the same tokens."""
        end = len(self.text) - self._margin
        places = [
            at
            for at in places
            if at <= end and _first_token(self.spans, at) is not None
        ]
        if not places or (cut := places[-1]) <= self.done:
            return None
        context = max((at for at in places if at <= cut - self._margin), default=0)
        # The first word of a text may be encoded differently from the others.
        certain = min(context + LOOKAHEAD // 2, cut)
        seam = next(at for at in places if at >= certain)
        first, last = (bisect_left(self.spans, (at,)) for at in (seam, cut))
        ids, spans = _encode(self._tokenizer, self.text[context:])
        if ids[_first_token(spans, seam - context) :] != self._ids[first:]:
            return None
        found = self.tokens(last)
        self._drop(context)
        self._seam, self.done = seam - context, cut - context
        self._seam_ids, self._forced = self._ids[first:last], forced
        return found

    def cut_apart(self) -> Encoded:
        """Takes out the text up to the end of a line or a word, encoded separately."""
        self._on_change()
        cut = _line_or_word(self.text, self.done, len(self.text) - self._margin)
        text, end = self.text[self.done : cut], self._before + cut
        self._drop(cut)
        return _encode_apart(self._tokenizer, text, end)

    def _drop(self, count: int) -> None:
        """Forgets characters at the start, and the seam."""
        self.text, self._before = self.text[count:], self._before + count
        self.done, self._seam, self._seam_ids = 0, 0, []


def _tokenize_apart(
    texts: Iterable[str], tokenizer: Any, longest: int, on_change: Callable[[], None]
) -> Iterator[Encoded]:
    """The tokens of a text that is cut at lines or words and encoded part by part."""
    buffer, before = "", 0
    for text in texts:
        buffer += text
        while len(buffer) > longest:
            cut = _line_or_word(buffer, 0, longest)
            on_change()
            before += cut
            yield _encode_apart(tokenizer, buffer[:cut], before)
            buffer = buffer[cut:]
    yield _encode_apart(tokenizer, buffer, before + len(buffer))


def _encode_apart(tokenizer: Any, text: str, end: int) -> Encoded:
    """The tokens of a part by itself, all of which end at its end."""
    ids = token_ids(tokenizer, text)
    return ids, [end] * len(ids)


def _line_or_word(text: str, start: int, end: int) -> int:
    """The end of the last whole line, or else of the last word, or else ``end``."""
    line = text.rfind("\n", start, end) + 1
    return line or max(text.rfind(" ", start + 1, end), 0) or end


def _batches(texts: Iterable[str], size: int) -> Iterator[str]:
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
    """The tokens of a text and their spans, whose starts and ends never decrease."""
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
    """The ids of a text's tokens alone. Unlike the tokenizer's own ``encode``, it does
    not warn of a text that is longer than the model's context."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def _first_token(spans: Spans, at: int) -> int | None:
    """The first token at or after a character; ``None`` if one stretches over it."""
    index = bisect_left(spans, (at,))
    return None if index and spans[index - 1][1] > at else index


def _boundary(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern of the places where this tokenizer's text may be cut, if there are
    any."""
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
