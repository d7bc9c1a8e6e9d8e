"""The commands of a chat, each of which begins with a slash."""

import difflib
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from .. import state as states
from ..archive.archive import Archive
from ..archive.citations import printable, printable_line
from ..archive.indexing import IndexedDocument
from ..archive.lookup import Lookup
from ..documents import Document
from ..errors import AllMemError, SettingError, warn
from ..session import Session
from ..summaries import Summariser
from . import shell
from .archive_flags import (
    NOTHING_FOUND,
    archive_beside,
    found_line,
    print_sources,
    working_archive,
)
from .flags import decode_text
from .line_input import QUOTES, line_is_waiting
from .progress import PIECE, Progress
from .summaries import print_summaries
from .turns import Turns, interruptible


class Quit(Exception):
    """The user ends the chat."""


class Chat(Turns):
    """Turns, and commands about them. The docstring of a command is its usage and its
    purpose."""

    read_stats: Any = None  # of the last document

    def take(self, text: str, quoted: bool = False) -> None:
        """Obeys a command, or answers a message; a quoted text is always a message."""
        if quoted or not text.startswith("/"):
            if text.strip():
                self.say(decode_text(text, "the message"))
            return
        word, _, argument = text[1:].partition(" ")
        command = COMMANDS.get(word)
        if command is None:
            raise SettingError(_unknown(word, text))
        if self.in_a_document and command not in WHILE_READING:
            raise SettingError(f"/{word} has to wait until the document is read")
        usage, _ = describe(command)
        command(self, *_arguments(usage, argument))

    def read(self, *names: str) -> None:
        """read FILE ...: read documents as a part of your next message; Ctrl-C stops"""
        if "-" in names and not os.path.exists("-"):
            raise SettingError(
                "a chat cannot read standard input; name a file, or pipe the text into "
                "allmem_mlx generate --prompt-file - --save-state FILE and /load FILE"
            )
        # Paths, for which "-" is not standard input.
        paths = [*map(Path, names)]
        document = Document(paths if len(paths) > 1 else paths[0], PIECE)
        for line in document.notes:
            warn(line)
        before = self.session.state.tokens
        failure = None
        with self.undoable(None), interruptible() as pressed:
            try:
                self._read(document, pressed)
            except AllMemError as error:
                if self.session.state.read <= before:
                    raise  # there is nothing to keep
                failure = error
            finally:
                self.in_a_document = False
        for line in document.warnings:
            warn(line)
        self.read_stats = self.session.read_stats()
        if (pressed or failure) and self.session.state.read > before:
            self.session.forget_waiting()
        tokens = self.session.state.tokens - before
        if failure:
            raise AllMemError(
                f"{failure}; the {tokens} tokens before it are kept, /undo forgets them"
            ) from failure
        did = "stopped after" if pressed else "read"
        print(f"{did} {tokens} tokens of {document.name}")

    def _read(self, document: Document, pressed: list[bool]) -> None:
        """Reads a document to its end, or until Ctrl-C is pressed. Once it is in the
        archive, it can be asked about meanwhile."""
        session, trusted = self.session, self.allow_special_tokens

        def indexed(done: int) -> None:
            progress.indexed(done)
            if pressed:
                raise KeyboardInterrupt

        with closing(Progress(document)) as progress:
            if session.archive is None:
                pieces: Any = document.pieces(session.tokenizer, trusted)
            else:
                pieces = IndexedDocument(session.archive, document, None, trusted)
                try:
                    pieces.index(indexed)
                except KeyboardInterrupt:
                    return  # nothing of it is kept
                self.in_a_document = True
                if pieces.tokens is not None:
                    progress.expect(pieces.tokens)
                if sys.stdin.isatty():
                    progress.say("indexed: ask while it is read; Ctrl-C stops reading")
            for done in self.conversation.read(pieces, step=self.step):
                progress(done)
                if self.in_a_document and line_is_waiting():
                    progress.clear()
                    self._take_aside(pressed)
                if pressed:
                    break

    def _take_aside(self, pressed: list[bool]) -> None:
        """Obeys or answers a line that is typed while a document is read."""
        try:
            line = sys.stdin.readline()  # the terminal has shown it
            if not line:
                pressed.append(True)
            elif line.startswith("/"):
                self.take(line.rstrip("\n"))
            elif line.strip():
                self.say_aside(decode_text(line.rstrip("\n"), "the message"))
        except AllMemError as error:
            print(f"error: {error}", file=sys.stderr)

    def save(self, name: str) -> None:
        """save FILE: the conversation, documents included"""
        if os.path.exists(name):
            states.describe(name)  # refuses to replace any other file
        self._save_archive(name)
        states.save(self.session.state, name, self.session.model)
        print(f"saved {self.session.state.tokens} tokens")

    def _save_archive(self, name: str) -> None:
        """Saves the archive beside a state."""
        archive = self.session.archive
        if archive is None or not archive.documents():
            return
        beside = archive_beside(name)
        if beside.exists() and not os.path.exists(name):
            raise AllMemError(
                f"{str(beside)!r} already exists, and belongs to another state; name "
                "another file"
            )
        with closing(Archive.open(beside, archive.tokenizer, create=True)) as copy:
            archive.copy(copy)

    def load(self, name: str) -> None:
        """load FILE: go on from a conversation that was saved"""
        state, archive = states.load(name, self.session.model), self.session.archive
        if archive is not None:
            archive = working_archive(name, self.session.tokenizer, state)
        self._enter(state, archive)
        print(f"loaded {self.session.state.tokens} tokens")

    def _enter(self, state: states.State, archive: Archive | None) -> None:
        session = self.session
        self.sessions[self.name] = Session(
            session.model, session.tokenizer, state, snapshots=True, archive=archive
        )
        self.asked[self.name] = []
        self.lookup = None

    def undo(self) -> None:
        """undo: forget your last message and its answer, or the last document"""
        self.session.undo()
        self.lookup = None
        self.asked[self.name].pop()
        print(f"{self.session.state.tokens} tokens remain")

    def retry(self) -> None:
        """retry: answer your last message again"""
        asked = self.asked[self.name]
        last = asked[-1] if asked else None
        if last is None:
            raise SettingError("there is no message to answer again")
        self.session.undo()
        asked.pop()
        self.say(last)

    def fork(self, name: str) -> None:
        """fork NAME: continue in a new branch; /switch goes back"""
        if name in self.sessions:
            raise SettingError(f"branch {name} already exists")
        self.sessions[name] = self.session.fork()
        self.asked[name] = list(self.asked[self.name])
        self.switch(name)

    def switch(self, name: str) -> None:
        """switch NAME: go to another branch; the first is main"""
        if name not in self.sessions:
            names = ", ".join(self.sessions)
            raise SettingError(f"there is no branch {name}; there are: {names}")
        self.name, self.lookup = name, None
        print(f"in {name}, with {self.session.state.tokens} tokens")

    def reset(self) -> None:
        """reset: forget everything in this branch"""
        self._enter(states.new(self.session.model), self.session.archive)

    def sources(self) -> None:
        """sources: the passages behind the last answer"""
        lookup, text, answer = self._last_lookup()
        print_sources(lookup, text, answer, self.session.archive)

    def quote(self, number: str) -> None:
        """quote N: a passage of the last answer, word for word"""
        lookup, _, _ = self._last_lookup()
        found = [x for x in lookup.sources if str(x.number) == number]
        if not found:
            numbers = ", ".join(str(source.number) for source in lookup.sources)
            raise SettingError(
                f"there is no passage {number}; there are: {numbers or 'none'}"
            )
        passage = found[0].passage
        print(f"{printable_line(passage.where)}\n{printable(passage.text)}")

    def _last_lookup(self) -> tuple[Lookup, str, str]:
        if self.lookup is None:
            raise SettingError("nothing was looked up for the last answer")
        return self.lookup

    def search(self, words: str) -> None:
        """search WORDS: passages that have them, the best first"""
        if self.session.archive is None:
            raise SettingError("there is no archive: --no-archive")
        found = self.session.archive.search(words)
        for passage in found:
            print(found_line(passage, words))
        if not found:
            print(NOTHING_FOUND)

    def passages(self, number: str) -> None:
        """passages N: how many to look up for a message; 0 for none"""
        if not number.isdecimal():
            raise SettingError("usage: /passages N")
        self.lookup_options["passages"] = int(number)

    def summarise(self) -> None:
        """summarise: what you have read, part by part; Ctrl-C stops it"""
        session, read = self.session, self.session.state.documents
        if session.archive is None:
            raise SettingError("there is no archive: --no-archive")
        entries = [x for x in session.archive.documents() if x.key in read]
        if not entries:
            raise SettingError(
                "there is no document to summarise; /read FILE reads one"
            )
        summariser = Summariser(
            session.model,
            session.tokenizer,
            session.archive,
            self.template,
            step=self.step,
            allow_special_tokens=self.allow_special_tokens,
            settings="chat",
            **self.options,
        )
        print_summaries(summariser, entries, "/summarise continues from there")

    def stats(self) -> None:
        """stats: tokens, sizes and speeds"""
        now, snapshots = self.session.read_stats(), self.session.snapshots
        assert snapshots is not None
        number = len(snapshots.turns) + len(snapshots.chunks)
        beyond = now.tokens_read - now.tokens_in_window
        rest = "in memory only" if now.memory else "forgotten; memory: none"
        print(
            f"Tokens: {now.tokens_read}, {now.tokens_in_window} in the window, "
            f"{beyond} {rest}"
        )
        print(f"State: {now.state_bytes / 1e6:.1f} MB")
        print(f"Snapshots: {number}, {snapshots.nbytes / 1e6:.1f} MB")
        if self.read_stats is not None:
            print(f"Reading: {self.read_stats.prompt_tps:.3f} tokens-per-sec")
        if self.answer is not None:
            print(f"Generation: {self.answer.generation_tps:.3f} tokens-per-sec")
        print(f"Peak memory: {now.peak_memory:.3f} GB")

    def help(self) -> None:
        """help: this list"""
        for command in dict.fromkeys(COMMANDS.values()):
            usage, purpose = describe(command)
            _, *others = (f"/{name}" for name, x in COMMANDS.items() if x is command)
            also = f" (also {', '.join(others)})" if others else ""
            print(f"/{usage:<13} {purpose}{also}")
        print(f"{QUOTES:<14} begins and ends a message of several lines")

    def quit(self) -> None:
        """quit: end, as Ctrl-D does"""
        raise Quit


COMMANDS: dict[str, Callable[..., None]] = {
    name: getattr(Chat, name)
    for name in (
        *("read", "save", "load", "undo", "retry", "fork", "switch", "reset"),
        *("sources", "quote", "search", "passages", "summarise"),
        *("stats", "help", "quit"),
    )
}
WHILE_READING = tuple(
    COMMANDS[name]
    for name in ("sources", "quote", "search", "passages", "stats", "help", "quit")
)
# Other names of them.
COMMANDS |= {"clear": Chat.reset, "?": Chat.help, "exit": Chat.quit, "bye": Chat.quit}


def describe(command: Callable[..., None]) -> tuple[str, str]:
    """The usage of a command and its purpose."""
    usage, _, purpose = (command.__doc__ or "").partition(": ")
    return usage, purpose


def _arguments(usage: str, text: str) -> list[str]:
    """The arguments of a command in the rest of its line, checked by its usage."""
    if "\0" in text:
        raise SettingError("a name cannot contain a NUL character")
    if "FILE" in usage:
        names = shell.names(text)
    else:
        names = [*filter(None, [text.strip()])]
    if bool(names) != (" " in usage) or not all(names):
        raise SettingError(f"usage: /{usage}")
    if len(names) > 1 and not usage.endswith("..."):
        raise SettingError(f"usage: /{usage}; put a name that has spaces in quotes")
    return names


def _unknown(word: str, text: str) -> str:
    """The error message for a line that begins with no command."""
    if word and (name := shell.leading_name(text)):
        return f"to read {name}, type /read in front of it"
    near = difflib.get_close_matches(word.lower(), COMMANDS, 1)
    meant = f"did you mean /{near[0]}? " if near else ""
    return f"there is no /{word}; {meant}/help lists the commands"
