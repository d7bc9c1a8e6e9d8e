"""Reading, generating and going back: a model and the state of what it has read.

A state is replaced as a whole after each step, never changed, so that whatever stops a
session, Ctrl-C for one, its state is that after some number of tokens.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import mlx.core as mx

from . import state as states
from .archive.archive import Archive
from .archive.finder import Finder
from .archive.indexing import IndexedDocument
from .archive.lookup import Lookup, Search, is_unfinished, look_up
from .chat_template import Template
from .conversation import Conversation, room_beside
from .documents import Pieces
from .documents.tokens import token_ids
from .errors import AllMemError, SettingError
from .model import Model
from .responses import GenerationResponse, Responses, make_response, stop_at
from .snapshots import Snapshots, without_waiting
from .state import State
from .streaming import check_tokens, reading, refuse_cache_settings, respond

PASSAGES = 4  # looked up for a question

Sampler = Callable[[mx.array], mx.array]


class Session:
    """A model, its tokenizer, and the state of what it has read.

    Args:
        model (Model): a model of :func:`allmem_mlx.load`.
        tokenizer: its tokenizer.
        state (State): to go on from; a new one if ``None``.
        snapshots (bool): keep states to go back to; see
            :class:`~allmem_mlx.snapshots.Snapshots`.
        archive (Archive): of the documents in which :meth:`ask` looks up.
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
        self._tokens, self._seconds = 0, 0.0  # read since the last response

    def read(
        self,
        pieces: Iterable[Sequence[int]],
        step: int | None = None,
        *,
        opening: Sequence[int] = (),
        resume: bool = False,
    ) -> Iterator[int]:
        """Reads token ids; whoever iterates may stop after any block.

        Whole blocks are read while more may come, and whole chunks at the end; the last
        token of all waits. So the result does not depend on where reading stopped and
        went on, and no more than a chunk waits to be read again for every question.

        With an archive, the pieces of a document are added to it; a file as a whole,
        before the first block is read.

        Args:
            pieces: lists of token ids, of any size, such as ``Document.pieces``; with
                an archive also an ``IndexedDocument``.
            step (int): blocks end at multiples of it. Default: the model's block.
            opening (list): token ids to read first, which are no part of the document.
            resume (bool): the tokens read so far are the beginning of these, and are
                not read again.

        Yields:
            int: the tokens read since ``read`` was called, after each block.

        Raises:
            AllMemError: if a token has no row in the model's embedding; with
                ``resume``, if something else was read.
        """
        began, done = time.perf_counter(), 0
        start = len(opening) + (0 if resume else self.state.tokens)
        pieces = chain([opening], self._open(pieces, start))
        if resume:
            pieces = states.unread(map(list, pieces), self.state)
        with reading(self.model) as read:
            for size in self._due(pieces, step or self.model.allmem.block):
                state = self.state.fork()
                block, state.waiting = state.waiting[:size], state.waiting[size:]
                read(block, state.cache)
                state.record_tokens(block)
                self.state = state
                self._snapshot(state)
                done += size
                self._tokens += size
                self._seconds += time.perf_counter() - began
                yield done
                began = time.perf_counter()

    def _open(
        self, pieces: Iterable[Sequence[int]], start: int
    ) -> Iterable[Sequence[int]]:
        """Adds a document to the archive, and notes that it is read from a token on."""
        if self.archive is not None and isinstance(pieces, Pieces):
            trusted = pieces.allow_special_tokens
            document = IndexedDocument(self.archive, pieces.document, None, trusted)
            document.index()
            pieces = document
        if isinstance(pieces, IndexedDocument):
            state = self.state.fork()
            state.close_documents()
            state.open_document(pieces.key, start)
            self.state = state
        return pieces

    def _due(self, pieces: Iterable[Sequence[int]], step: int) -> Iterator[int]:
        """Takes pieces, and yields how many of the tokens that wait are to be read."""

        def due(step: int) -> Iterator[int]:
            while len(self.state.waiting) > (size := step - self.state.read % step):
                yield size

        yield from due(step)  # more than a block waits, where reading was stopped
        for piece in filter(None, pieces):
            self._take(piece)
            yield from due(step)
        for size in (self.model.allmem.block, self.model.allmem.chunk):
            yield from due(min(step, size))

    def _take(self, tokens: Sequence[int]) -> None:
        check_tokens(tokens, self.model)
        state = self.state.fork()
        state.waiting += tokens
        state.logprobs = None
        self.state = state
        if self.snapshots is not None:
            self.snapshots.tokens += tokens

    def _snapshot(self, state: State) -> None:
        """Keeps the state at the end of a chunk."""
        if self.snapshots is not None and state.read % self.model.allmem.chunk == 0:
            self.snapshots.add_chunk(state)

    def generate(
        self,
        prompt: Sequence[int] = (),
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> Responses:
        """Generates after what was read and a prompt.

        Args:
            prompt (list): token ids; none to go on where the model is.
            max_tokens (int): tokens to generate; -1 for no limit.
            stop (list): strings that end the response, and are no part of its text.
            options: ``sampler`` and ``logits_processors``, as in mlx-lm.

        Yields:
            GenerationResponse: one for each token; its prompt is all that was read
            since the last response. Whoever iterates may stop after any of them: the
            state then has the tokens that were yielded, and knows the next one.

        Raises:
            SettingError: if there is nothing to go on from, or a string is empty.
        """
        if "" in stop:
            raise SettingError("a stop string must not be empty")
        refuse_cache_settings(options)
        return stop_at(self._generate(prompt, max_tokens, **options), stop)

    def _generate(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampler: Sampler | None = None,
        **options: Any,
    ) -> Responses:
        choose = sampler or (lambda logprobs: mx.argmax(logprobs, axis=-1))
        for _ in self.read([prompt]):
            pass
        generated = 0
        if not self.state.waiting:
            response = self._next_token(choose, max_tokens)
            yield response
            if response.finish_reason is not None:
                return
            generated = 1
        yield from self._respond(choose, max_tokens, generated, **options)

    def _next_token(self, choose: Sampler, max_tokens: int) -> GenerationResponse:
        """The token that the model was about to generate when it was stopped."""
        logprobs = self.state.logprobs
        if logprobs is None:
            raise SettingError("the prompt has no tokens, and nothing was read before")
        token: Any = choose(logprobs).item()
        before = self.state.recent
        if stop := token in self.tokenizer.eos_token_ids:
            text = ""
        else:
            text = self.tokenizer.decode([*before, token])
            text = text.removeprefix(self.tokenizer.decode(before))
        self._take([token])
        return self._make_response(
            text=text,
            token=token,
            logprobs=logprobs.squeeze(0),
            generation_tokens=1,
            finish_reason="stop" if stop else "length" if max_tokens == 1 else None,
        )

    def _respond(
        self, choose: Sampler, max_tokens: int, generated: int, **options: Any
    ) -> Responses:
        """Reads the tokens that wait, and generates in a fork of the state, which is
        the session's at the end."""
        state = self.state.fork()
        tokens, state.waiting = state.waiting, []

        def sampler(logprobs: mx.array) -> mx.array:
            state.logprobs = logprobs
            return choose(logprobs)

        start = time.perf_counter() - self._seconds
        try:
            with reading(self.model) as read:
                if tokens[:-1]:
                    read(tokens[:-1], state.cache)
            for response in respond(
                self.model,
                self.tokenizer,
                tokens[-1:],
                max_tokens,
                state.cache,
                self._tokens + len(tokens) - generated,
                start,
                generated,
                sampler=sampler,
                **options,
            ):
                # The token is read already: the one after it is on the way.
                state.record_tokens([*tokens, response.token])
                tokens = []
                if self.snapshots is not None:
                    self.snapshots.tokens.append(response.token)
                self._snapshot(state)
                yield response
        except GeneratorExit:
            self._commit(state)
            raise
        except BaseException:
            self.restore(self.state)  # in the middle of a token: as before all of them
            raise
        self._commit(state)

    def _commit(self, state: State) -> None:
        """Goes on from the end of a response."""
        self.state = state
        self._tokens, self._seconds = 0, 0.0

    def ask(
        self,
        question: str,
        passages: int = PASSAGES,
        passage_tokens: int | None = None,
        max_tokens: int = 256,
        template: Template | None = None,
        allow_special_tokens: bool = False,
        **options: Any,
    ) -> Responses:
        """Answers a question in a fork, after passages of the archive that may help.
        The session does not change; what waits to be read of a document is left out.

        Args:
            question, passages, passage_tokens, max_tokens: see :meth:`look_up`.
            template (Template): the text around the question. Default: the tokenizer's
                chat template.
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
        if self.archive is not None and is_unfinished(self.archive, self.state):
            fork.restore(without_waiting(fork.state))
        template = template or Template.of(self.tokenizer)
        conversation = Conversation(fork, template, allow_special_tokens)
        message = lookup.message(question) if lookup else question
        for response in conversation.ask(message, max_tokens=max_tokens, **options):
            yield replace(response, lookup=lookup)

    def look_up(
        self,
        question: str,
        passages: int = PASSAGES,
        passage_tokens: int | None = None,
        max_tokens: int = 256,
        search: Search | None = None,
    ) -> Lookup | None:
        """Looks up passages in the archive that may answer a question.

        Args:
            question (str): in the user's words.
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

        room = room_beside(length(question), self.model, max_tokens)
        if passage_tokens is not None:
            limit = max(room_beside(length(question), self.model, 0), 0)
            if passage_tokens > limit:
                raise SettingError(
                    f"there is no room for {passage_tokens} tokens of passages: beside "
                    f"the question the window of {self.model.allmem.window} has {limit}"
                )
            room = passage_tokens
        if search is None:
            if self._finder is None or self._finder.archive is not self.archive:
                self._finder = Finder(self.archive, self.model)
            search = self._finder.search
        return look_up(
            self.archive, self.state, question, passages, room, length, search
        )

    def read_stats(self) -> GenerationResponse:
        """The statistics of what was read, before anything is generated."""
        tokens = self._tokens + len(self.state.waiting)
        speed = self._tokens / self._seconds if self._tokens else 0.0
        return self._make_response(prompt_tokens=tokens, prompt_tps=speed)

    def _make_response(self, **fields: Any) -> GenerationResponse:
        state = self.state
        return make_response(self.model, state.cache, len(state.waiting), **fields)

    def fork(self) -> "Session":
        """Another session that goes on from here. Its next response, not that of this
        one, counts what was read since the last."""
        other = Session(self.model, self.tokenizer, self.state, archive=self.archive)
        if self.snapshots is not None:
            other.snapshots = self.snapshots.until(self.state)
        other._finder = self._finder
        other._tokens, other._seconds = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return other

    def begin_turn(self) -> None:
        """Marks the beginning of a turn, to which :meth:`undo` goes back."""
        self._earlier().add_turn(self.state)

    def undo(self) -> None:
        """Goes back to the beginning of the last turn, as if it had not been."""
        earlier = self._earlier()
        if not earlier.turns:
            raise AllMemError("there is nothing to undo")
        self.restore(earlier.turns.pop())

    def go_back(self, tokens: int) -> None:
        """Goes back to the first tokens of what was read; a block of them at most is
        read again.

        Raises:
            AllMemError: if that is further back than the snapshots go.
        """
        self.restore(self._earlier().at(tokens))

    def forget_waiting(self) -> None:
        """Forgets the tokens that wait, where a document is not read to its end."""
        notes = self.state.notes
        self.go_back(self.state.read)
        self.state.notes = notes

    def restore(self, state: State) -> None:
        """Goes on from an earlier state of the session."""
        self.state = state
        if self.snapshots is not None:
            self.snapshots = self.snapshots.until(state)

    def _earlier(self) -> Snapshots:
        if self.snapshots is None:
            raise AllMemError("this session keeps no snapshots")
        return self.snapshots
