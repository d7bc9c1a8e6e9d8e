"""Reading a prompt of any length and generating from it, as ``mlx_lm`` does."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from .archive.lookup import Lookup, Source
from .errors import AllMemError, SettingError
from .model import has_memory

CLEAR_EVERY = 2048  # tokens; mlx-lm's own step

Prompt = str | mx.array | Sequence[int] | Iterable[Sequence[int]]


@dataclass
class GenerationResponse:
    """One step of :func:`stream_generate`: mlx-lm's fields, then ours.

    Args:
        text (str): the next segment of text, maybe empty.
        token (int): the next token.
        logprobs (mx.array): log-probabilities of the vocabulary.
        from_draft (bool): always ``False``.
        prompt_tokens (int): tokens of the prompt, the document included.
        prompt_tps (float): tokens per second while reading the prompt.
        generation_tokens (int): tokens generated.
        generation_tps (float): tokens per second while generating.
        peak_memory (float): peak memory so far, in GB (1e9 bytes).
        finish_reason (str): ``"stop"``, ``"length"`` or ``None``.
        state_bytes (int): size of the model's state, in bytes.
        tokens_read (int): all tokens that went into the state.
        tokens_in_window (int): those that attention still sees, sinks included.
        memory (bool): whether there is one; there is none while alpha is 0.
        lookup (Lookup): what was looked up in an archive; ``None`` without one.
    """

    text: str
    token: int
    logprobs: mx.array
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None
    state_bytes: int
    tokens_read: int
    tokens_in_window: int
    memory: bool
    lookup: Lookup | None = None

    @property
    def sources(self) -> Sequence[Source]:
        """The passages that were put before the question, the best first."""
        return self.lookup.sources if self.lookup else ()


def tokens_read(cache: list[Any]) -> int:
    """Tokens that went into a state."""
    return cache[0][0].offset


def state_bytes(cache: list[Any]) -> int:
    """Size of a state in bytes."""
    return sum(layer.nbytes for layer in cache)


def check_tokens(tokens: Sequence[int], model: nn.Module) -> None:
    """Refuses tokens that a model cannot read.

    Args:
        tokens (list): token ids.
        model (nn.Module): a model of :func:`allmem_mlx.load`.

    Raises:
        AllMemError: if one has no row in the embedding.
    """
    embedding = model.model.embed_tokens
    # LoRA wraps it.
    rows = getattr(embedding, "embedding", embedding).weight.shape[0]
    wrong = next((token for token in tokens if not 0 <= token < rows), None)
    if wrong is not None:
        raise AllMemError(
            f"token {wrong} has no row in the model's embedding, which has {rows}; the "
            "tokenizer is another model's, or has tokens that were added to it alone"
        )


def stop_at(
    responses: Generator[GenerationResponse, None, None], stop: Sequence[str]
) -> Generator[GenerationResponse, None, None]:
    """Ends a response before the first of some strings, wherever tokens end.

    Text that may be the beginning of a string is held back until it is known.

    Args:
        responses: of :func:`stream_generate`.
        stop (list): strings, none of them empty.

    Yields:
        GenerationResponse: the same, the last with ``finish_reason`` ``"stop"`` if a
        string came. The model has then read it.
    """
    held = ""
    with closing(responses):
        for response in responses:
            held += response.text
            found = [at for text in stop if (at := held.find(text)) >= 0]
            if found:
                yield replace(response, text=held[: min(found)], finish_reason="stop")
                return
            keep = 0 if response.finish_reason else _may_begin(held, stop)
            shown = len(held) - keep
            response, held = replace(response, text=held[:shown]), held[shown:]
            yield response


def _may_begin(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a string."""
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    return next(
        (
            n
            for n in range(longest, 0, -1)
            if any(x.startswith(text[-n:]) for x in stop)
        ),
        0,
    )


def _pieces(tokenizer: Any, prompt: Prompt) -> Iterable[Sequence[int]]:
    """The prompt as pieces of token ids."""
    if isinstance(prompt, str):
        # As mlx-lm: the text of a chat template brings its own first token.
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return [tokenizer.encode(prompt, add_special_tokens=special)]
    if isinstance(prompt, mx.array):
        prompt = cast(list[int], prompt.tolist())
    if isinstance(prompt, Sequence) and (not prompt or isinstance(prompt[0], int)):
        return [cast(Sequence[int], prompt)]
    return cast(Iterable[Sequence[int]], prompt)


def _blocks(
    pieces: Iterable[Sequence[int]], step: int, start: int
) -> Iterator[list[int]]:
    """Pieces of any size as blocks that end at multiples of ``step``; the last token
    comes alone, for the model to answer."""
    waiting: list[int] = []
    for piece in pieces:
        waiting.extend(piece)
        while len(waiting) > (size := step - start % step):
            yield waiting[:size]
            waiting = waiting[size:]
            start += size
    if not waiting:
        raise SettingError("the prompt has no tokens")
    if waiting[:-1]:
        yield waiting[:-1]
    yield waiting[-1:]


@contextmanager
def reading(model: nn.Module) -> Iterator[Callable[[list[int], list[Any]], None]]:
    """For as long as a text is read: as mlx-lm, wires the weights once, and clears
    MLX's cache of buffers every 2,048 tokens.

    Args:
        model (nn.Module): a model of :func:`allmem_mlx.load`.

    Yields:
        Callable: reads a list of token ids into a state, updated in place, and
        evaluates it. It raises :class:`AllMemError` if a token has no row in the
        embedding.
    """
    from mlx_lm.generate import generation_stream, wired_limit

    uncleared = 0

    def read(block: list[int], cache: list[Any]) -> None:
        nonlocal uncleared
        check_tokens(block, model)
        with mx.stream(generation_stream):
            model(mx.array(block)[None], cache=cache)
            if mx.default_device() == mx.gpu:
                mx.eval([c.state for c in cache])
            else:
                # Far ahead of what it computes, MLX allocates memory on a CPU. And in
                # between Ctrl-C is heard.
                for layer in cache:
                    mx.eval(layer.state)
        uncleared += len(block)
        if uncleared >= CLEAR_EVERY:
            mx.clear_cache()
            uncleared = 0

    streams: Any = [generation_stream]
    with wired_limit(model, streams):
        yield read
    mx.clear_cache()


def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    max_tokens: int = 256,
    *,
    prompt_cache: list[Any] | None = None,
    prefill_step_size: int | None = None,
    prompt_progress_callback: Callable[[int], None] | None = None,
    **kwargs: Any,
) -> Iterator[GenerationResponse]:
    """Reads a prompt, then generates; memory does not grow with either.

    Args:
        model (nn.Module): a model of :func:`allmem_mlx.load`.
        tokenizer: its tokenizer.
        prompt: a text, token ids, or an iterable of lists of token ids, which is read
            as it comes: a :class:`~allmem_mlx.documents.Document`, for one.
        max_tokens (int): tokens to generate; -1 for no limit.
        prompt_cache (list): a state of ``model.make_cache()`` to go on from, updated
            in place.
        prefill_step_size (int): tokens evaluated at once while reading. The result is
            the same to the bit for multiples of the model's block, which is the
            default, and to rounding for others.
        prompt_progress_callback: called with the number of prompt tokens read so far.
        kwargs: ``sampler`` and ``logits_processors``, as in mlx-lm.

    Yields:
        GenerationResponse: one for each token, the last one with ``finish_reason``.

    Raises:
        SettingError: if the prompt has no tokens; for ``max_kv_size``, ``kv_bits`` and
            ``draft_model``, which a state of fixed size cannot obey.
        ValueError: if ``max_tokens`` is 0.
    """
    from mlx_lm.generate import stream_generate as mlx_lm_stream_generate

    for name in ("max_kv_size", "kv_bits", "draft_model"):
        if kwargs.get(name) is not None:
            raise SettingError(f"{name} is not supported: the state has a fixed size")
    config = model.allmem
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    progress = prompt_progress_callback or (lambda tokens: None)
    step = prefill_step_size or config.block

    start = time.perf_counter()
    prompt_tokens = 0
    blocks = _blocks(_pieces(tokenizer, prompt), step, tokens_read(cache))
    block = next(blocks)
    with reading(model) as read:
        for following in blocks:
            read(block, cache)
            prompt_tokens += len(block)
            progress(prompt_tokens)
            block = following
    prompt_tokens += len(block)
    check_tokens(block, model)

    prompt_tps = None
    for response in mlx_lm_stream_generate(
        model, tokenizer, block, max_tokens, prompt_cache=cache, **kwargs
    ):
        if prompt_tps is None:
            prompt_tps = prompt_tokens / (time.perf_counter() - start)
        total = tokens_read(cache)
        yield GenerationResponse(
            **{
                **vars(response),
                "prompt_tokens": prompt_tokens,
                "prompt_tps": prompt_tps,
                "state_bytes": state_bytes(cache),
                "tokens_read": total,
                "tokens_in_window": min(total, config.sinks + config.window),
                "memory": has_memory(cache),
            }
        )


def print_statistics(response: GenerationResponse) -> None:
    """mlx-lm's three lines about a generation, and one about the state."""
    print(
        f"Prompt: {response.prompt_tokens} tokens, "
        f"{response.prompt_tps:.3f} tokens-per-sec"
    )
    if response.generation_tokens:
        print(
            f"Generation: {response.generation_tokens} tokens, "
            f"{response.generation_tps:.3f} tokens-per-sec"
        )
    print(f"Peak memory: {response.peak_memory:.3f} GB")
    rest = "in memory" if response.memory else "forgotten; memory: none"
    print(
        f"State: {response.state_bytes / 1e6:.1f} MB, {response.tokens_read} tokens "
        f"read ({response.tokens_in_window} in the window, the rest {rest})"
    )


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    verbose: bool = False,
    **kwargs: Any,
) -> str:
    """Generates a complete response.

    Args:
        model (nn.Module): a model of :func:`allmem_mlx.load`.
        tokenizer: its tokenizer.
        prompt: as in :func:`stream_generate`.
        verbose (bool): print the text as it comes, and statistics.
        kwargs: passed to :func:`stream_generate`.

    Returns:
        str: the text generated.
    """
    if verbose:
        print("=" * 10)
    text = ""
    for response in stream_generate(model, tokenizer, prompt, **kwargs):
        if verbose:
            print(response.text, end="", flush=True)
        text += response.text
    if verbose:
        print()
        print("=" * 10)
        print_statistics(response)
    return text
