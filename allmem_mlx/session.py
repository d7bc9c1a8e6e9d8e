"""Reading, generating and going back: a model and the state of what it has read.

A state is replaced as a whole after each step, never changed, so that whatever stops a
session, Ctrl-C for one, its state is that after some number of tokens.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx

from . import state as states
from .archive.archive import Archive
from .archive.finder import Finder
from .archive.lookup import Lookup, Search, belongs, look_up
from .archive.reading import Reading
from .chat_template import Template
from .conversation import Conversation
from .documents import Pieces
from .documents.tokens import token_ids
from .errors import AllMemError, SettingError
from .model import Model, has_memory
from .state import State
from .streaming import (
    GenerationResponse,
    check_tokens,
    reading,
    stop_at,
    stream_generate,
)

TURNS = 4  # snapshots where turns begin
CHUNKS = 2  # snapshots at the last ends of chunks

PASSAGES = 4  # looked up for a question
FRAME = 16  # tokens of a chat template around a question


class Snapshots:
    """States to go back to, a bounded number: where the last turns began, and the last
    ends of chunks with the tokens that came after.

    Args:
        state (State): what was read before, the first state to go back to.
    """

    def __init__(self, state: State):
        self.turns: list[State] = []
        self.chunks = [_without_waiting(state)]
        self.tokens = list(state.waiting)  # since the first of the chunks

    @property
    def nbytes(self) -> int:
        """Size in bytes; arrays that several snapshots share are counted once."""
        arrays = {
            id(x): x.nbytes
            for state in (*self.turns, *self.chunks)
            for x in state.arrays.values()
        }
        return sum(arrays.values())

    def turn(self, state: State) -> None:
        """Keeps the beginning of a turn."""
        self.turns = [*self.turns, state][-TURNS:]

    def chunk(self, state: State) -> None:
        """Keeps the end of a chunk."""
        first = self.chunks[0].read
        self.chunks = [*self.chunks, _without_waiting(state)][-CHUNKS:]
        self.tokens = self.tokens[self.chunks[0].read - first :]

    def until(self, state: State) -> "Snapshots":
        """Those that come before a state, which is one of them or made of them."""
        kept = Snapshots(state)
        kept.turns = [turn for turn in self.turns if turn.tokens <= state.tokens]
        first = self.chunks[0].read
        if earlier := [chunk for chunk in self.chunks if chunk.read <= state.read]:
            kept.chunks = earlier
            kept.tokens = self.tokens[: state.tokens - first]
        return kept

    def at(self, tokens: int) -> State:
        """The state after ``tokens`` tokens, of which at least one waits, for the model
        to answer, and at most a block.

        Raises:
            AllMemError: if that is further back than the snapshots go.
        """
        start = self.chunks[0].read
        first, last = start and start + 1, start + len(self.tokens)
        if not first <= tokens <= last:
            raise AllMemError(
                f"cannot go back to token {tokens}; {first} to {last} are possible"
            )
        earlier = [x for x in self.chunks if x.read < tokens or tokens == 0]
        state = earlier[-1].fork()
        state.waiting = self.tokens[state.read - start : tokens - start]
        return state


def _without_waiting(state: State) -> State:
    state = state.fork()
    state.waiting, state.logprobs = [], None
    return state


def room_beside(tokens: int, model: Model, max_tokens: int) -> int:
    """Tokens that a window has left beside a text, a chat template and an answer, which
    is taken for a quarter of the window at most.

    Args:
        tokens (int): of the text.
        model (Model): whose window it is.
        max_tokens (int): tokens of the answer; -1 for no limit.
    """
    window = model.allmem.window
    answer = window // 4 if max_tokens < 0 else min(max_tokens, window // 4)
    return window - tokens - FRAME - answer


class Session:
    """A model, its tokenizer, and the state of what it has read.

    Args:
        model (Model): a model of :func:`allmem_mlx.load`.
        tokenizer: its tokenizer.
        state (State): to go on from; a new one if ``None``.
        snapshots (bool): keep states to go back to; see :class:`Snapshots`.
        archive (Archive): where the documents are that :meth:`ask` looks up.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        state: State | None = None,
        snapshots: bool = False,
        archive: Archive | None = None,
    ):
        self.archive = archive
        self._finder: Finder | None = None
        self.model, self.tokenizer = model, tokenizer
        self.state = states.new(model) if state is None else state
        self.snapshots = Snapshots(self.state) if snapshots else None
        self._tokens, self._seconds = 0, 0.0  # read, and not yet told in a response

    def read(
        self, pieces: Iterable[Sequence[int]], step: int | None = None
    ) -> Iterator[int]:
        """Reads token ids; whoever iterates may stop after any block.

        Whole blocks are read while more may come, and whole chunks at the end; the last
        token of all waits. So the result does not depend on where reading stopped and
        went on, and no more than a chunk waits to be read again for every question.

        With an archive, the pieces of a document are added to it; a file as a whole,
        before the first block is read.

        Args:
            pieces: lists of token ids, of any size; ``Document.pieces`` for one.
            step (int): blocks end at multiples of it. Default: the model's block.

        Yields:
            int: the tokens read since ``read`` was called, after each block.
        """
        began = time.perf_counter()
        done = 0
        if self.archive is not None and isinstance(pieces, Pieces):
            pieces = self._archived(pieces)
        with reading(self.model) as read:
            for size in self._due(pieces, step or self.model.allmem.block):
                state = self.state.fork()
                block, state.waiting = state.waiting[:size], state.waiting[size:]
                read(block, state.cache)
                state.count(block)
                self.state = state
                self._snapshot(state)
                done += size
                self._tokens += size
                self._seconds += time.perf_counter() - began
                yield done
                began = time.perf_counter()

    def _due(self, pieces: Iterable[Sequence[int]], step: int) -> Iterator[int]:
        """Takes pieces, and says how many of the tokens that wait are to be read."""

        def due(step: int) -> Iterator[int]:
            while len(self.state.waiting) > (size := step - self.state.read % step):
                yield size

        yield from due(step)  # more than a block waits, where reading was stopped
        for piece in filter(None, pieces):
            self._take(piece)
            yield from due(step)
        for size in (self.model.allmem.block, self.model.allmem.chunk):
            yield from due(min(step, size))

    def _archived(self, pieces: Pieces) -> Iterator[list[int]]:
        """The tokens of a document, which the archive has then."""
        archive, trusted = cast(Archive, self.archive), pieces.allow_special_tokens
        reading = Reading(archive, pieces.document, None, trusted)
        reading.index()
        state = self.state.fork()
        state.close_documents()
        state.open_document(reading.key, state.tokens)
        self.state = state
        return reading.pieces()

    def _take(self, tokens: Sequence[int]) -> None:
        check_tokens(tokens, self.model)
        state = self.state.fork()
        state.waiting += tokens
        state.logprobs = None
        self.state = state
        if self.snapshots is not None:
            self.snapshots.tokens += tokens

    def _snapshot(self, state: State) -> None:
        if self.snapshots is not None:
            if state.read % self.model.allmem.chunk == 0:
                self.snapshots.chunk(state)

    def generate(
        self,
        prompt: Sequence[int] = (),
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> Generator[GenerationResponse, None, None]:
        """Generates after what was read and a prompt.

        Args:
            prompt (list): token ids; none to go on where the model is.
            max_tokens (int): tokens to generate; -1 for no limit.
            stop (list): strings that end the response, and are no part of its text.
            options: passed to :func:`allmem_mlx.stream_generate`.

        Yields:
            GenerationResponse: one for each token; its prompt is all that was read
            since the last response. Whoever iterates may stop after any of them: the
            state then has the tokens that were yielded, and knows the next one.

        Raises:
            SettingError: if there is nothing to go on from, or a string is empty.
        """
        if "" in stop:
            raise SettingError("a string that ends a response must not be empty")
        return stop_at(self._generate(prompt, max_tokens, **options), stop)

    def _generate(
        self, prompt: Sequence[int], max_tokens: int, **options: Any
    ) -> Generator[GenerationResponse, None, None]:
        for _ in self.read([prompt] if prompt else []):
            pass
        choose = options.pop("sampler", None) or (lambda x: mx.argmax(x, axis=-1))
        said = 0
        if not self.state.waiting:
            said = 1
            response = self._resume(choose, max_tokens)
            yield response
            if response.finish_reason is not None:
                return

        state = self.state.fork()
        block, state.waiting = state.waiting, []

        def sampler(logprobs: mx.array) -> mx.array:
            state.logprobs = logprobs
            return choose(logprobs)

        responses = stream_generate(
            self.model,
            self.tokenizer,
            block,
            max_tokens if max_tokens < 0 else max_tokens - said,
            prompt_cache=state.cache,
            sampler=sampler,
            **options,
        )
        read, seconds = self._tokens, self._seconds
        try:
            for response in responses:
                # The model has read the token that it says: its answer is on the way.
                state.count([*block, response.token])
                block = []
                if self.snapshots is not None:
                    self.snapshots.tokens.append(response.token)
                self._snapshot(state)
                here = response.prompt_tokens
                response.generation_tokens += said
                response.prompt_tokens = here + read - said
                response.prompt_tps = response.prompt_tokens / (
                    seconds + here / response.prompt_tps
                )
                yield response
        except GeneratorExit:
            self._said(state)
            raise
        except BaseException:
            self.restore(self.state)  # in the middle of a token: as before the answer
            raise
        self._said(state)

    def ask(
        self,
        question: str,
        passages: int = PASSAGES,
        passage_tokens: int | None = None,
        max_tokens: int = 256,
        template: Template | None = None,
        allow_special_tokens: bool = False,
        **options: Any,
    ) -> Generator[GenerationResponse, None, None]:
        """Answers a question in a fork, with what the archive has on it put before it.
        The session does not change; what waits to be read of a document is left out.

        Args:
            question (str): what is asked.
            passages (int): passages at most.
            passage_tokens (int): tokens for them; see :meth:`look_up`.
            max_tokens (int): tokens to generate.
            template (Template): what stands around the question; the tokenizer's chat
                template if ``None``.
            allow_special_tokens (bool): read the names of control tokens in question
                and passages as control tokens.
            options: of :meth:`generate`.

        Yields:
            GenerationResponse: as :meth:`generate`, with ``sources``.

        Raises:
            AllMemError: if the archive does not belong to what was read.
            SettingError: if there is no room for as many tokens of passages.
        """
        lookup = self.look_up(question, passages, passage_tokens, max_tokens)
        fork = self.fork()
        if self._in_a_document():
            fork.restore(_without_waiting(fork.state))
        if template is None:
            template = Template.of(self.tokenizer)
        talk = Conversation(fork, template, allow_special_tokens)
        message = lookup.message(question) if lookup else question
        for response in talk.ask(message, max_tokens=max_tokens, **options):
            yield replace(response, lookup=lookup)

    def look_up(
        self,
        question: str,
        passages: int = PASSAGES,
        passage_tokens: int | None = None,
        max_tokens: int = 256,
        search: Search | None = None,
    ) -> Lookup | None:
        """Looks up in the archive what may answer a question.

        Args:
            question (str): what is asked.
            passages (int): passages at most; 0 to look up nothing.
            passage_tokens (int): tokens for them. Default: what the window has beside
                the question and the answer, which is taken for no more than a quarter
                of it.
            max_tokens (int): tokens of the answer; -1 for no limit.
            search: finds passages. Default: the archive's; see :class:`Finder`.

        Returns:
            Lookup: ``None`` if nothing is looked up, for want of documents for one.

        Raises:
            AllMemError: if the archive does not belong to what was read.
            SettingError: if the window has no room for ``passage_tokens``.
        """
        if self.archive is None or not self.state.documents or passages == 0:
            return None

        def length(text: str) -> int:
            return len(token_ids(self.tokenizer, text))

        tokens, window = length(question), self.model.allmem.window
        room = room_beside(tokens, self.model, max_tokens)
        if passage_tokens is not None:
            most = room_beside(tokens, self.model, 0)
            if passage_tokens > most:
                raise SettingError(
                    f"{passage_tokens} tokens of passages have no room: beside the "
                    f"question the window of {window} has {max(most, 0)}"
                )
            room = passage_tokens
        if search is None:
            if self._finder is None or self._finder.archive is not self.archive:
                self._finder = Finder(self.archive, self.model)
            search = self._finder.search
        return look_up(
            self.archive, self.state, question, passages, room, length, search
        )

    def _in_a_document(self) -> bool:
        """Whether a document that the archive has is not read to its end."""
        if self.archive is None:
            return False
        entries = belongs(self.archive, self.state)
        return any(
            stop is None and self.state.tokens - start < entries[key].tokens
            for key, start, stop in self.state.notes.get("documents", [])
        )

    def _said(self, state: State) -> None:
        self.state = state
        self._tokens, self._seconds = 0, 0.0

    def _resume(self, choose: Any, max_tokens: int) -> GenerationResponse:
        """Says the token that the model was about to say when it was stopped."""
        if self.state.logprobs is None:
            raise SettingError("the prompt has no tokens, and nothing was read before")
        logprobs = self.state.logprobs
        token: Any = choose(logprobs).item()
        before = self.state.recent
        if stop := token in self.tokenizer.eos_token_ids:
            text = ""
        else:
            text = self.tokenizer.decode([*before, token])
            text = text.removeprefix(self.tokenizer.decode(before))
        self._take([token])
        return self._response(
            text=text,
            token=token,
            logprobs=logprobs.squeeze(0),
            generation_tokens=1,
            finish_reason="stop" if stop else "length" if max_tokens == 1 else None,
        )

    def reading(self) -> GenerationResponse:
        """The numbers of what was read, before anything was generated."""
        tokens = self._tokens + len(self.state.waiting)
        speed = self._tokens / self._seconds if self._tokens else 0.0
        return self._response(prompt_tokens=tokens, prompt_tps=speed)

    def _response(self, **numbers: Any) -> GenerationResponse:
        config, read = self.model.allmem, self.state.tokens
        defaults: dict[str, Any] = {
            "text": "",
            "token": None,
            "logprobs": None,
            "from_draft": False,
            "prompt_tokens": 0,
            "prompt_tps": 0.0,
            "generation_tokens": 0,
            "generation_tps": 0.0,
            "peak_memory": mx.get_peak_memory() / 1e9,
            "finish_reason": None,
            "state_bytes": self.state.nbytes,
            "tokens_read": read,
            "tokens_in_window": min(read, config.sinks + config.window),
            "memory": has_memory(self.state.cache),
        }
        return GenerationResponse(**{**defaults, **numbers})

    def fork(self) -> "Session":
        """A session of its own that goes on from here. What was read is told there."""
        other = Session(self.model, self.tokenizer, self.state, archive=self.archive)
        if self.snapshots is not None:
            other.snapshots = self.snapshots.until(self.state)
        other._finder = self._finder
        other._tokens, other._seconds = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return other

    def go_back(self, tokens: int) -> None:
        """Forgets all but the first tokens of what was read.

        Args:
            tokens (int): how many to keep; at most a block of them is read again.

        Raises:
            AllMemError: if that is further back than the snapshots go.
        """
        self.restore(self._kept().at(tokens))

    def turn(self) -> None:
        """Marks the beginning of a turn, to which :meth:`undo` goes back."""
        self._kept().turn(self.state)

    def undo(self) -> None:
        """Goes back to the beginning of the last turn, as if it had not been.

        Raises:
            AllMemError: if none is kept.
        """
        kept = self._kept()
        if not kept.turns:
            raise AllMemError("there is nothing to undo")
        self.restore(kept.turns.pop())

    def restore(self, state: State) -> None:
        """Goes on from an earlier state of the session."""
        self.state = state
        if self.snapshots is not None:
            self.snapshots = self.snapshots.until(state)

    def _kept(self) -> Snapshots:
        if self.snapshots is None:
            raise AllMemError("this session keeps no snapshots")
        return self.snapshots
