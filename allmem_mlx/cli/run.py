"""How a command runs: its parser, the signals that end it, and its exit code."""

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ..errors import AllMemError

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOGETHER = 1.0  # seconds in which several signals are one
_ended = float("-inf")  # when the last of them came


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with ``--debug`` for tracebacks."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument(
            "--debug", action="store_true", help="Print a traceback with an error"
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP from a closed terminal. It ends a command as Ctrl-C does."""


def _ignore(number: int, frame: Any) -> None:
    """A handler that ignores a signal, unlike ``SIG_IGN`` even one that is pending."""


def _end(number: int, frame: Any) -> None:
    """A handler that ends the command. A second signal just after the first would end
    that ending, so it is ignored."""
    global _ended
    before, _ended = _ended, time.monotonic()
    if _ended - before > TOGETHER:
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def hear_signals(*numbers: int) -> None:
    """Lets signals end the command. One that is ignored stays so: nohup has told the
    command to go on when the terminal is closed."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


@contextmanager
def deaf() -> Iterator[None]:
    """A context that no signal ends."""
    before = {number: signal.signal(number, _ignore) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_line(error: Exception) -> str:
    """The error message of a command."""
    if isinstance(error, AllMemError):
        return str(error)
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _open_streams() -> None:
    """Opens closed standard streams, so that no other file takes their place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def run(parser: argparse.ArgumentParser, command: Callable[..., None]) -> NoReturn:
    """Parses the command line, runs ``command(args)`` and exits.

    The exit code is 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C, 143
    after SIGTERM, 129 after SIGHUP. An error is one line on stderr. Characters that a
    terminal cannot show are replaced.
    """
    _open_streams()
    args = parser.parse_args()
    hear_signals(signal.SIGTERM, signal.SIGHUP)
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        command(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        code = 0
    except BrokenPipeError:
        # The reader of the output has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, _ignore)
        with suppress(OSError):  # the terminal is closed
            print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        number = error.args[0] if isinstance(error, Terminated) else signal.SIGINT
        code = 128 + number
        for other in ENDS:  # at its end Python gives up its handlers
            signal.signal(other, signal.SIG_IGN)
    except Exception as error:
        if args.debug:
            raise
        code = error.exit_code if isinstance(error, AllMemError) else 1
        with suppress(OSError):
            print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
    sys.exit(code)
