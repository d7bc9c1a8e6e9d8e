"""The lines that the user of a chat types, or pipes into it."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from . import shell
from .run import Terminated

QUOTES = '"""'  # around a message of several lines


def note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr)


def line_is_waiting() -> bool:
    """Whether the user of a terminal has typed a line that was not read yet."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Completion:
    """Completion by Tab in the line editor: of commands, which come with their usages,
    and of file names."""

    def __init__(self, usages: dict[str, str]):
        import readline

        self.readline, self.usages = readline, usages
        self.in_quotes = False
        self.found: list[str] = []
        readline.set_completer(self)
        readline.set_completer_delims(" \t\n/")
        editline = "libedit" in (readline.__doc__ or "")  # macOS has that
        readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")
        if "NO_COLOR" in os.environ:
            readline.parse_and_bind("set enable-bracketed-paste off")

    def __call__(self, text: str, index: int) -> str | None:
        """The completion of a text, by its number: the line editor asks for one after
        the other. The text is the end of the line before the cursor."""
        if index == 0:
            line = self.readline.get_line_buffer()[: self.readline.get_endidx()]
            self.found = self.endings(line)
        return text + self.found[index] if index < len(self.found) else None

    def endings(self, line: str) -> list[str]:
        """The texts that may follow in a line."""
        if self.in_quotes or not line.startswith("/"):
            return ["\t"]  # in a message, Tab is Tab
        word, space, argument = line[1:].partition(" ")
        if not space:
            return [
                name[len(word) :] + " " * (" " in usage)
                for name, usage in self.usages.items()
                if name.startswith(word)
            ]
        return shell.endings(argument) if "FILE" in self.usages.get(word, "") else []


def _end_with_terminal() -> None:
    """Ends the process when the terminal is closed.

    A process that the terminal controls gets SIGHUP. Another would wait for ever in the
    line editor, which then ignores signals, too.
    """
    terminal = select.poll()
    terminal.register(sys.stdin, 0)  # only hang-ups are reported
    if any(event & select.POLLHUP for _, event in terminal.poll()):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
        os._exit(128 + signal.SIGHUP)


def messages(chat: Any, usages: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Yields the lines that are typed at the prompt of a chat, or piped in, and the
    messages between triple quotes, each with whether it was quoted."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    completion = Completion(usages) if terminal else None
    if terminal:
        threading.Thread(target=_end_with_terminal, daemon=True).start()
    interrupted = False
    lines: list[str] = []
    mark = "\ufeff"  # may stand before the first line of a file
    while True:
        prompt = "... " if lines else chat.prompt
        if completion is not None:
            completion.in_quotes = bool(lines)
        try:
            line = input(prompt if terminal else "")
        except EOFError:
            if terminal:
                print()
            break
        except Terminated:
            raise
        except KeyboardInterrupt:
            print()
            if interrupted or not terminal:
                break
            note("Ctrl-C again, or Ctrl-D, ends the chat")
            interrupted, lines = True, []
            continue
        interrupted = False
        line, mark = line.removeprefix(mark), ""
        if not lines and not line.startswith(QUOTES):
            yield line, False
            continue
        lines.append(line if lines else line.removeprefix(QUOTES))
        if lines[-1].rstrip().endswith(QUOTES):
            lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
            yield "\n".join(lines).strip("\n"), True
            lines = []
    if lines:
        yield "\n".join(lines).strip("\n"), True
