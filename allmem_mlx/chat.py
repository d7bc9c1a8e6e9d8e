"""Talk with a model that remembers: read documents, save, undo, and branch off."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .archive.citations import printable, printable_line
from .cli import shell
from .cli.archive_flags import (
    NOTHING_FOUND,
    add_archive,
    archive_beside,
    check_archive,
    found_line,
    looking_up,
    open_archive,
    print_sources,
    working_archive,
)
from .cli.flags import (
    add_model,
    add_reading,
    add_sampling,
    add_sizes,
    chat_template_config,
    check_counts,
    check_state_files,
    check_texts,
    incoming,
    load_model,
    make_sampler,
    warn,
)
from .cli.line_input import QUOTES, line_is_waiting, messages, note
from .cli.progress import PIECE, Progress
from .cli.run import ArgumentParser, Terminated, one_line, run
from .documents import Document
from .errors import AllMemError, SettingError


def setup_arg_parser() -> argparse.ArgumentParser:
    """The flags are mlx-lm's, where it has them."""
    parser = ArgumentParser(prog="allmem_mlx.chat", description=__doc__)
    add = parser.add_argument
    add_model(parser)
    add_sizes(parser)
    add("--max-tokens", "-m", type=int, default=256, help="Tokens of an answer")
    add_sampling(parser)
    add_reading(parser)
    add_archive(parser)
    add("--max-kv-size", help=argparse.SUPPRESS)
    return parser


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Ctrl-C fills a list instead of raising, so that a step is finished; a second one
    raises."""
    pressed: list[bool] = []

    def press(*_: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Quit(Exception):
    """The user has had enough."""


class Chat:
    """Sessions of one model, one of which the user is in, and commands on them.

    Args:
        session (Session): the first, with snapshots.
        template (Template): what stands around the turns.
        options (dict): of ``Session.generate``, for every answer.
        step (int): of ``Session.read``, for documents and messages.
        allow_special_tokens (bool): read the names of control tokens in documents and
            messages as control tokens.
        looking (dict): of ``Session.look_up``, for every message.
    """

    def __init__(
        self,
        session: Any,
        template: Any,
        options: dict[str, Any],
        step: int | None = None,
        allow_special_tokens: bool = False,
        looking: dict[str, Any] | None = None,
    ):
        self.template, self.options, self.step = template, options, step
        self.allow_special_tokens = allow_special_tokens
        self.looking = looking or {}
        self.in_a_document = False  # while one is read
        self.lookup: Any = None  # of the last answer, with the message and its text
        self.sessions = {"main": session}
        self.asked: dict[str, list[str | None]] = {"main": []}
        self.name = "main"
        self.reading: Any = None  # the numbers of the last document
        self.answer: Any = None  # and of the last answer

    @property
    def session(self) -> Any:
        return self.sessions[self.name]

    @property
    def prompt(self) -> str:
        """What stands before a line that the user types."""
        return ">> " if self.name == "main" else f"{self.name} >> "

    def take(self, text: str, quoted: bool = False) -> None:
        """Does what a line, or several in quotes, asks for."""
        if quoted or not text.startswith("/"):
            if text.strip():
                self.say(incoming(text, "the message"))
            return
        word, _, argument = text[1:].partition(" ")
        command = COMMANDS.get(word)
        if command is None:
            raise SettingError(_unknown(word, text))
        if "\0" in argument:
            raise SettingError("a name cannot have a NUL character")
        usage = _usage(command)[0]
        if self.in_a_document and command not in WHILE_READING:
            raise SettingError(f"/{word} has to wait until the document is read")
        if "FILE" in usage:
            names = shell.names(argument)
        else:
            names = [*filter(None, [argument.strip()])]
        if bool(names) != (" " in usage) or not all(names):
            raise SettingError(f"usage: /{usage}")
        if len(names) > 1 and not usage.endswith("..."):
            raise SettingError(f"usage: /{usage}; put a name that has spaces in quotes")
        command(self, *names)

    @property
    def _talk(self) -> Any:
        from .conversation import Conversation

        return Conversation(self.session, self.template, self.allow_special_tokens)

    def say(self, text: str) -> None:
        talk = self._talk
        most = self.options["max_tokens"]
        lookup = self.session.look_up(text, max_tokens=most, **self.looking)
        message = lookup.message(text) if lookup else text
        answer = ""
        with self._undoable(text), interruptible() as stop:
            for _ in talk.say(message, step=self.step):
                if stop:
                    break
            if not stop:
                responses = self.session.generate(**self.options)
                answer = self._speak(responses, stop)
        self._tell(lookup, text, answer, bool(stop))

    def _say_aside(self, text: str) -> None:
        """Answers while a document is read, in a fork."""
        options = {**self.options, **self.looking, "template": self.template}
        responses = self.session.ask(
            text, allow_special_tokens=self.allow_special_tokens, **options
        )
        with interruptible() as stop:
            answer = self._speak(responses, stop)
        self._tell(self.answer.lookup, text, answer, bool(stop))

    def _speak(self, responses: Any, stop: list[bool]) -> str:
        """Prints an answer as it comes."""
        answer = ""
        with closing(responses):
            for response in responses:
                self.answer = response
                answer += response.text
                print(response.text, end="", flush=True)
                if stop:
                    break
        return answer

    def _tell(self, lookup: Any, text: str, answer: str, stopped: bool) -> None:
        """Ends an answer, and says what it rests on."""
        print()
        self.lookup = lookup and (lookup, text, answer)
        if stopped:
            note("stopped" if self.in_a_document else "stopped; /retry answers again")
            return
        if self.answer.finish_reason == "length":
            tokens = self.answer.generation_tokens
            note(f"stopped after {tokens} tokens (--max-tokens)")
        print_sources(lookup, text, answer, self.session.archive)

    @contextmanager
    def _undoable(self, text: str | None) -> Iterator[None]:
        """What /undo takes back; an error takes it back at once. A second Ctrl-C keeps
        what the session has, which is always a whole state."""
        session, asked = self.session, self.asked[self.name]
        session.turn()
        asked.append(text)
        try:
            yield
        except Exception:
            session.undo()
            asked.pop()
            raise

    def read(self, *names: str) -> None:
        """read FILE ...: documents, as a part of your next message; Ctrl-C stops it"""
        if "-" in names and not os.path.exists("-"):
            raise SettingError(
                "a chat cannot read standard input; name a file, or pipe the text into "
                "allmem_mlx.generate --prompt-file - --save-state FILE and /load FILE"
            )
        # Paths, for which "-" is not standard input.
        paths = [*map(Path, names)]
        document = Document(paths if len(paths) > 1 else paths[0], PIECE)
        for line in document.notes:
            warn(line)
        before = self.session.state.tokens
        failure = None
        with self._undoable(None), interruptible() as stop:
            try:
                self._read(document, stop)
            except AllMemError as error:
                if self.session.state.read <= before:
                    raise  # nothing to keep
                failure = error
            finally:
                self.in_a_document = False
        for line in document.warnings:
            warn(line)
        self.reading = self.session.reading()
        read = self.session.state.read
        if (stop or failure) and read > before:
            self.session.go_back(read)  # what was taken from the document to be read
            self.session.state.notes["turn"] = "user"
        tokens = self.session.state.tokens - before
        if failure:
            raise AllMemError(
                f"{failure}; the {tokens} tokens before it are kept, /undo forgets them"
            ) from failure
        did = "stopped after" if stop else "read"
        print(f"{did} {tokens} tokens of {document.name}")

    def _read(self, document: Document, stop: list[bool]) -> None:
        """Reads a document to its end, or until ``stop`` is no longer empty. It can be
        asked about meanwhile, once it is in the archive."""
        session, trusted, key = self.session, self.allow_special_tokens, None
        pieces: Any = document.pieces(session.tokenizer, trusted)

        def indexed(done: int) -> None:
            progress.indexed(done)
            if stop:
                raise KeyboardInterrupt

        with closing(Progress(document)) as progress:
            if session.archive is not None:
                from .archive.reading import Reading

                reading = Reading(session.archive, document, None, trusted)
                try:
                    reading.index(indexed)
                except KeyboardInterrupt:
                    return  # nothing of it is kept
                key, pieces = reading.key, reading.pieces()
                self.in_a_document = True
                if sys.stdin.isatty():
                    progress.say("it is indexed: ask while it is read; Ctrl-C stops")
            for done in self._talk.read(pieces, key, step=self.step):
                progress(done)
                if self.in_a_document and line_is_waiting():
                    progress.clear()
                    self._take_aside(stop)
                if stop:
                    break

    def _take_aside(self, stop: list[bool]) -> None:
        """Does what a line asks for that is typed while a document is read."""
        try:
            line = sys.stdin.readline()  # the terminal has shown it
            if not line:
                stop.append(True)
            elif line.startswith("/"):
                self.take(line.rstrip("\n"))
            elif line.strip():
                self._say_aside(incoming(line.rstrip("\n"), "the message"))
        except AllMemError as error:
            print(f"error: {error}", file=sys.stderr)

    def save(self, name: str) -> None:
        """save FILE: what was read and said"""
        from . import state as states

        if os.path.exists(name):
            states.describe(name)  # refuses to replace anything else than a state
        self._save_archive(name)
        states.save(self.session.state, name, self.session.model)
        print(f"saved {self.session.state.tokens} tokens")

    def load(self, name: str) -> None:
        """load FILE: go on from a state that was saved"""
        from . import state as states

        state, archive = states.load(name, self.session.model), self.session.archive
        if archive is not None:
            archive = working_archive(name, self.session.tokenizer, state)
        self._enter(state, archive)
        print(f"loaded {self.session.state.tokens} tokens")

    def _save_archive(self, name: str) -> None:
        """Saves, beside a state, the documents that it can be asked about."""
        from .archive.archive import Archive

        archive = self.session.archive
        if archive is not None and archive.documents():
            if archive_beside(name).exists() and not os.path.exists(name):
                raise AllMemError(
                    f"{str(archive_beside(name))!r} exists already, and belongs to "
                    "another state; name another file"
                )
            kept = Archive.open(archive_beside(name), archive.tokenizer, create=True)
            archive.copy(kept)
            kept.close()

    def _enter(self, state: Any, archive: Any) -> None:
        from .session import Session

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
        """fork NAME: go on in a branch of its own; /switch leads back"""
        if name in self.sessions:
            raise SettingError(f"there is a branch {name} already")
        self.sessions[name] = self.session.fork()
        self.asked[name] = list(self.asked[self.name])
        self.switch(name)

    def switch(self, name: str) -> None:
        """switch NAME: go to another branch; the first is main"""
        if name not in self.sessions:
            names = ", ".join(self.sessions)
            raise SettingError(f"there is no branch {name}, but: {names}")
        self.name, self.lookup = name, None
        print(f"in {name}, with {self.session.state.tokens} tokens")

    def reset(self) -> None:
        """reset: forget everything in this branch"""
        from . import state as states

        self._enter(states.new(self.session.model), self.session.archive)

    def sources(self) -> None:
        """sources: what your last answer rests on"""
        lookup, text, answer = self._last_lookup()
        print_sources(lookup, text, answer, self.session.archive)

    def quote(self, number: str) -> None:
        """quote N: a passage of the last answer, word for word"""
        lookup, _, _ = self._last_lookup()
        found = [x for x in lookup.sources if str(x.number) == number]
        if not found:
            numbers = ", ".join(str(source.number) for source in lookup.sources)
            raise SettingError(
                f"there is no passage {number}, but: {numbers or 'none'}"
            )
        passage = found[0].passage
        print(f"{printable_line(passage.where)}\n{printable(passage.text)}")

    def _last_lookup(self) -> Any:
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
        self.looking["passages"] = int(number)

    def summarise(self) -> None:
        """summarise: what you have read, part by part; Ctrl-C stops it"""
        from .cli.summaries import print_summaries
        from .summaries import Summariser

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
        print_summaries(summariser, entries, "/summarise goes on from there")

    def stats(self) -> None:
        """stats: tokens, sizes and speeds"""
        session = self.session
        now = session.reading()
        kept = session.snapshots
        number = len(kept.turns) + len(kept.chunks)
        beyond = now.tokens_read - now.tokens_in_window
        rest = "in memory only" if now.memory else "forgotten; memory: none"
        print(
            f"Tokens: {now.tokens_read}, {now.tokens_in_window} in the window, "
            f"{beyond} {rest}"
        )
        print(f"State: {now.state_bytes / 1e6:.1f} MB")
        print(f"Snapshots: {number}, {kept.nbytes / 1e6:.1f} MB")
        if self.reading is not None:
            print(f"Reading: {self.reading.prompt_tps:.3f} tokens-per-sec")
        if self.answer is not None:
            print(f"Generation: {self.answer.generation_tps:.3f} tokens-per-sec")
        print(f"Peak memory: {now.peak_memory:.3f} GB")

    def help(self) -> None:
        """help: this list"""
        for command in dict.fromkeys(COMMANDS.values()):
            usage, purpose = _usage(command)
            _, *others = (f"/{name}" for name, x in COMMANDS.items() if x is command)
            also = f" (also {', '.join(others)})" if others else ""
            print(f"/{usage:<13} {purpose}{also}")
        print(f"{QUOTES:<14} begins and ends a message of several lines")

    def quit(self) -> None:
        """quit: end, as Ctrl-D does"""
        raise Quit


# The docstring of a command says how it is used, and what for.
COMMANDS: dict[str, Callable[..., None]] = {
    name: getattr(Chat, name)
    for name in (
        *("read", "save", "load", "undo", "retry", "fork", "switch", "reset"),
        *("sources", "quote", "search", "passages", "summarise"),
        *("stats", "help", "quit"),
    )
}
WHILE_READING = tuple(
    getattr(Chat, name)
    for name in ("sources", "quote", "search", "passages", "stats", "help", "quit")
)
# Other names of them.
COMMANDS |= {"clear": Chat.reset, "?": Chat.help, "exit": Chat.quit, "bye": Chat.quit}


def _usage(command: Callable[..., None]) -> tuple[str, str]:
    usage, _, purpose = (command.__doc__ or "").partition(": ")
    return usage, purpose


def _unknown(word: str, text: str) -> str:
    """What is said of a line that begins with no command."""
    if word and (name := shell.leading_name(text)):
        return f"to read {name}, type /read in front of it"
    near = difflib.get_close_matches(word.lower(), COMMANDS, 1)
    meant = f"did you mean /{near[0]}? " if near else ""
    return f"there is no /{word}; {meant}/help lists the commands"


def chat(args: argparse.Namespace) -> None:
    if args.max_kv_size is not None:
        raise SettingError(
            "--max-kv-size is not supported: the state has a fixed size; use --window"
        )
    check_counts(args)
    if args.load_state is not None and args.system_prompt is not None:
        raise SettingError("--system-prompt comes before everything that was read")
    check_state_files(args)
    check_archive(args)
    check_texts(args, "system_prompt")
    template_config = chat_template_config(args.chat_template_config)

    import mlx.core as mx

    from . import state as states
    from .chat_template import Template
    from .session import Session

    model, tokenizer = load_model(args)
    if not tokenizer.has_chat_template:
        raise AllMemError("the tokenizer has no chat template; use allmem_mlx.generate")
    template = Template.of_chat(tokenizer, args.system_prompt, options=template_config)
    for line in template.notes:
        warn(line)
    state = None if args.load_state is None else states.load(args.load_state, model)
    state = states.new(model) if state is None else state
    archive = None
    if args.archive is not None:
        archive = open_archive(args, tokenizer, state)
    elif not args.no_archive:
        archive = working_archive(args.load_state, tokenizer, state)
    if args.seed is not None:
        mx.random.seed(args.seed)
    talk = Chat(
        Session(model, tokenizer, state, snapshots=True, archive=archive),
        template,
        {
            "max_tokens": args.max_tokens,
            "sampler": make_sampler(args, tokenizer),
            "stop": args.stop,
        },
        args.prefill_step_size,
        args.allow_special_tokens,
        looking_up(args),
    )
    stdin: Any = sys.stdin
    stdin.reconfigure(errors="surrogateescape")  # a message is decoded as documents are
    if sys.stdin.isatty():
        note("/help lists the commands")
    usages = {name: _usage(command)[0] for name, command in COMMANDS.items()}
    for message, quoted in messages(talk, usages):
        try:
            talk.take(message, quoted)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            note("interrupted")
        except Quit:
            break
        except Exception as error:  # whatever fails, the conversation goes on
            if args.debug and not isinstance(error, AllMemError):
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)


def main() -> None:
    run(setup_arg_parser(), chat)


if __name__ == "__main__":
    main()
