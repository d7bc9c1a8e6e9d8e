"""File names in a line of text: quoted, escaped and abbreviated as in a shell."""

import glob
import os
import re
from dataclasses import dataclass, field

from ..errors import AllMemError, SettingError

# Not all white space: macOS puts a narrow no-break space into names.
BLANKS = " \t\r\n"

# Any text is a sequence of these parts; the last quote may be open.
PART = re.compile(
    rf"(?P<blank>[{BLANKS}]+)"
    r"|'(?P<single>[^']*)(?:'|\Z)"
    r'|"(?P<double>(?:[^"\\]|\\.?)*)(?:"|\Z)'
    r"|\\(?P<escaped>.?)"
    rf"|(?P<plain>[^{BLANKS}'\"\\]+)",
    re.DOTALL,
)


@dataclass
class Word:
    """A word of a line.

    Args:
        parts (list): texts, each with whether it was quoted; none between blanks.
        open (str): the quote that is not closed, or the backslash before nothing.
    """

    parts: list[tuple[str, bool]] = field(default_factory=list)
    open: str = ""

    @property
    def text(self) -> str:
        return "".join(part for part, _ in self.parts)

    def names(self) -> list[str]:
        """The names that match the word, if it has a ``*``, ``?`` or ``[`` that is not
        quoted, and no file has this name; else the word itself."""
        plain = [part for part, quoted in self.parts if not quoted]
        if os.path.lexists(self.text) or not re.search(r"[*?[]", "".join(plain)):
            return [self.text]
        pattern = (glob.escape(part) if quoted else part for part, quoted in self.parts)
        if found := sorted(glob.glob("".join(pattern))):
            return found
        raise AllMemError(f"no file matches {self.text}")


def split(text: str) -> list[Word]:
    """The words of a text, with the home folder in place of ``~``. The last one has no
    parts if a blank is before it."""
    words = [Word()]
    for match in PART.finditer(text):
        kind = match.lastgroup or ""
        part, last = match[kind], words[-1]
        if kind == "blank":
            words.append(Word())
            continue
        if kind == "double":
            part = re.sub(r'\\(["\\$`])', r"\1", part)
        last.parts.append((part, kind != "plain"))
        quote, closed = match[0][0], match.end() > match.end(kind)
        if kind in ("single", "double") and not closed or match[0] == "\\":
            last.open = quote
    for word in words:
        _expand_home(word)
    return words


def _expand_home(word: Word) -> None:
    if word.parts and not word.parts[0][1]:
        user, slash, path = word.parts[0][0].partition("/")
        if user.startswith("~") and (slash or len(word.parts) == 1):
            word.parts[:1] = [(os.path.expanduser(user), True), (slash + path, False)]


def names(text: str) -> list[str]:
    """The files that a text names: the whole text, with its spaces and apostrophes, if
    there is such a file; else its words.

    Raises:
        SettingError: if a quote is not closed.
        AllMemError: if a pattern such as ``*.txt`` matches nothing.
    """
    whole = text.strip(BLANKS)
    if os.path.exists(os.path.expanduser(whole)):
        return [os.path.expanduser(whole)]
    words = split(text)
    if mark := words[-1].open:
        what = "a \\ at its end" if mark == "\\" else f"a {mark} that is not closed"
        raise SettingError(f"{whole} is not a file, and has {what}")
    return [name for word in words if word.parts for name in word.names()]


def leading_name(text: str) -> str | None:
    """The file name that a text is, or begins with, if there is such a file."""
    texts = [text.strip(BLANKS), split(text)[0].text]
    return next(filter(os.path.exists, texts), None)


def endings(text: str) -> list[str]:
    """The rest of the names of all files that begin with the last word of a text, as
    they are typed. Folders end with a slash."""
    word = split(text)[-1]
    folder, start = os.path.split(word.text)
    if word.open == "\\":  # the character that it escapes is not typed yet
        return []
    try:
        found = [x for x in os.listdir(folder or ".") if x.startswith(start)]
    except OSError:
        return []
    return [
        _escape(name[len(start) :], word.open)
        + ("/" if os.path.isdir(os.path.join(folder, name)) else f"{word.open} ")
        for name in found
        if start or not name.startswith(".")
    ]


def _escape(text: str, quote: str) -> str:
    """A text as it is typed inside a quote, or without one."""
    if quote == "'":
        return text.replace("'", r"'\''")
    special = r'["\\$`]' if quote else rf"[{BLANKS}'\"\\*?[~]"
    return re.sub(special, r"\\\g<0>", text)
