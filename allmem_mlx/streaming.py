"""Reading a prompt of any length and generating from it, as ``mlx_lm`` does."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from .cache import tokens_read
from .errors import AllMemError, SettingError
from .responses import GenerationResponse, make_response, print_stats

CLEAR_EVERY = 2048  # tokens; mlx-lm's own step

Prompt = str | mx.array | Sequence[int] | Iterable[Sequence[int]]


def check_tokens(tokens: Sequence[int], model: nn.Module) -> None:
    """Raises :class:`AllMemError` if a token has no row in the model's embedding."""
    embedding = model.token_embedding
    # LoRA wraps it.
    rows = getattr(embedding, "embedding", embedding).weight.shape[0]
    wrong = next((token for token in tokens if not 0 <= token < rows), None)
    if wrong is not None:
        raise AllMemError(
            f"token {wrong} has no row in the model's embedding, which has {rows}; use "
            "the model's own tokenizer, without tokens that were added later"
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
    pieces: Iterable[Sequence[int]], model: nn.Module, step: int, start: int
) -> Iterator[list[int]]:
    """Pieces of any size as blocks that end at multiples of ``step``; the last token
    comes alone, for the model to answer."""
    waiting: list[int] = []
    for piece in pieces:
        check_tokens(piece, model)
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
        evaluates it.
    """
    from mlx_lm.generate import generation_stream, wired_limit

    uncleared = 0

    def read(block: list[int], cache: list[Any]) -> None:
        nonlocal uncleared
        with mx.stream(generation_stream):
            model(mx.array(block)[None], cache=cache)
            if mx.default_device() == mx.gpu:
                mx.eval([c.state for c in cache])
            else:
                # On a CPU, MLX allocates memory far ahead of what it computes. Between
                # two layers Ctrl-C is noticed, too.
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
        AllMemError: if a token has no row in the model's embedding.
        SettingError: if the prompt has no tokens; for ``max_kv_size``, ``kv_bits`` and
            ``draft_model``, which a state of fixed size cannot obey.
        ValueError: if ``max_tokens`` is 0.
    """
    refuse_cache_settings(kwargs)
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    step = prefill_step_size or model.allmem.block
    pieces = _pieces(tokenizer, prompt)

    start, count = time.perf_counter(), 0
    blocks = _blocks(pieces, model, step, tokens_read(cache))
    block = next(blocks)
    with reading(model) as read:
        for following in blocks:
            read(block, cache)
            count += len(block)
            if prompt_progress_callback is not None:
                prompt_progress_callback(count)
            block = following
    yield from respond(
        model, tokenizer, block, max_tokens, cache, count + 1, start, **kwargs
    )


def refuse_cache_settings(options: dict[str, Any]) -> None:
    """Raises :class:`SettingError` for settings of mlx-lm's cache."""
    for name in ("max_kv_size", "kv_bits", "draft_model"):
        if options.get(name) is not None:
            raise SettingError(f"{name} is not supported: the state has a fixed size")


def respond(
    model: nn.Module,
    tokenizer: Any,
    last: list[int],
    max_tokens: int,
    cache: list[Any],
    prompt_tokens: int,
    start: float,
    generated: int = 0,
    **kwargs: Any,
) -> Iterator[GenerationResponse]:
    """Generates after a prompt of which all but the last token was read.

    Args:
        last (list): the last token.
        max_tokens (int): tokens of the whole response; -1 for no limit.
        prompt_tokens (int): tokens of the whole prompt.
        start (float): when reading began, by ``time.perf_counter``.
        generated (int): tokens of the response so far.
    """
    from mlx_lm.generate import stream_generate as mlx_lm_stream_generate

    if max_tokens > 0:
        max_tokens -= generated
    prompt_tps = None
    for response in mlx_lm_stream_generate(
        model, tokenizer, last, max_tokens, prompt_cache=cache, **kwargs
    ):
        if prompt_tps is None:
            prompt_tps = prompt_tokens / (time.perf_counter() - start)
        fields = {
            **vars(response),
            "prompt_tokens": prompt_tokens,
            "prompt_tps": prompt_tps,
            "generation_tokens": response.generation_tokens + generated,
        }
        yield make_response(model, cache, **fields)


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
        prompt: as in :func:`.stream_generate`.
        verbose (bool): print the text as it comes, and statistics.
        kwargs: passed to :func:`.stream_generate`.

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
        print_stats(response)
    return text
