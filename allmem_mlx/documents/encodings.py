"""Decoding of input: one rule for documents, questions and typed text.

Text is UTF-8, or has the byte order mark of UTF-8, UTF-16 or UTF-32. Other encodings
are detected by the chardet library and reported; see :func:`find_encoding`. ``\\r\\n``
and ``\\r`` become ``\\n``, NUL characters are dropped, and invalid bytes become U+FFFD.
"""

import codecs
import io
import re
import unicodedata
from collections.abc import Iterable

from ..errors import AllMemError, MissingLibrary
from .library import import_library

SAMPLE = 65_536  # bytes from which an encoding is detected
CONFIDENCE = 0.03  # chardet's for a line of text that it detects correctly
STRANGE = 0.01  # fraction of control and unassigned characters that no text exceeds
MIXED = 0.1  # fraction of the other characters that may be in words of two alphabets
MOSTLY = 0.9  # fraction of ASCII that would hide the encoding of the rest
BROKEN = 0.01  # fraction of characters that may be lost
NULS = 0.05  # fraction of NULs that text does not exceed
LARGER = ("Windows-1252", "Windows-1254", "CP932", "GB18030", "CP949")
SHIFT = b"\x1b$"  # of ISO-2022, whose bytes are all ASCII
SPACES = " \n。，、"
# Latin beside Greek, Cyrillic, Hebrew, Arabic or Thai.
TWO_ALPHABETS = re.compile(
    r"[A-Za-z](?=[\u0370-\u06ff\u0e00-\u0e7f])|[\u0370-\u06ff\u0e00-\u0e7f](?=[A-Za-z])"
)
CONTROLS = "\t\n\r\f\v\b\x1b"  # of terminals and printers

# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class UnknownEncoding(AllMemError):
    """Bytes that are not text, or whose encoding cannot be detected."""


class Decoder:
    """A decoder of text that arrives in pieces.

    Args:
        encoding (str): see :func:`find_encoding`.

    Attributes:
        replaced (int): U+FFFD characters so far, including those of the text itself.
        nuls (int): NUL characters that were dropped.
    """

    def __init__(self, encoding: str):
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self.replaced = self.nuls = 0

    def decode(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final=final)
        self.replaced += text.count("\ufffd")
        self.nuls += text.count("\0")
        return text.replace("\0", "")

    @property
    def warnings(self) -> list[str]:
        """One line for each kind of loss."""
        lines = []
        if self.replaced:
            lost = _count(self.replaced, "character")
            lines.append(f"{lost} could not be decoded, and became U+FFFD")
        if self.nuls:
            lines.append(f"{_count(self.nuls, 'NUL character')} left out")
        return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def decode(data: bytes, name: str) -> tuple[str, list[str]]:
    """Decodes a whole text.

    Args:
        data (bytes): the text.
        name (str): its name in messages.

    Returns:
        tuple: the text, and a list of remarks on it, a line each.

    Raises:
        UnknownEncoding: if it is not text, or its encoding cannot be detected.
    """
    encoding, notes = find_encoding(data, name, whole=True)
    decoder = Decoder(encoding)
    text = decoder.decode(data, final=True)
    return text, notes + [f"{name}: {line}" for line in decoder.warnings]


def marked_encoding(data: bytes) -> str | None:
    """The codec that a byte order mark names; ``None`` if there is no mark."""
    return next((MARKS[mark] for mark in MARKS if data.startswith(mark)), None)


def find_encoding(
    sample: bytes, name: str, whole: bool = False
) -> tuple[str, list[str]]:
    """The encoding of a text, the first of these that applies:

    1. that of its byte order mark;
    2. UTF-8, if it is valid, or if more of its non-ASCII characters are valid than not,
       except for ISO-2022, which is ASCII. Up to one NUL in 20 characters counts as a
       fault of the text;
    3. the first of chardet's guesses with a confidence of at least 0.03 that gives a
       text with at most one control or unassigned character in 100, also among those
       that are not ASCII, and hardly a word of two alphabets; or a larger encoding that
       gives the same text;
    4. UTF-16 without a mark, if one character in 50 is then a space, a line break, or
       a Chinese or Japanese full stop or comma;
    5. UTF-8, if at most one character in 100 is invalid.

    Args:
        sample (bytes): the first 64 KiB, or all.
        name (str): the text's name in messages.
        whole (bool): whether the text ends there, so that no character is cut off.

    Returns:
        tuple: the name of the codec, and a list of at most one remark.

    Raises:
        UnknownEncoding: if it is none of these.
        MissingLibrary: if chardet is needed and not installed.
    """
    if marked := marked_encoding(sample):
        return marked, []
    few_nuls = sample.count(0) <= NULS * len(sample)
    plain = sample.replace(b"\0", b"") if few_nuls else sample
    text = _decoded(plain, "utf-8", whole)
    # Those of the text itself are no loss.
    lost = text.count("\ufffd") - sample.count("\ufffd".encode())
    valid = lost <= sum(x > "\x7f" for x in text) - lost
    if few_nuls and valid and not (SHIFT in sample and sample.isascii()):
        return "utf-8", []
    guesses = [sample, plain] if few_nuls else [sample]
    if MOSTLY * len(sample) < sum(x < 0x80 for x in sample) < len(sample):
        # A few words among much ASCII are easier to detect without it.
        lines = (line for line in plain.split(b"\n") if not line.isascii())
        guesses.insert(0, b"\n".join(lines))
    nearly = few_nuls and lost <= BROKEN * len(text)
    try:
        guess = next(filter(None, (_guess(x, name, whole) for x in guesses)), None)
    except MissingLibrary:
        if not nearly:
            raise
        guess = None
    if guess is not None:
        return guess, [f"{name} is read as {_title(guess)}"]
    for encoding in ("utf-16-le", "utf-16-be"):
        wide = _decoded(sample, encoding)
        if sum(map(wide.count, SPACES)) > 0.02 * len(wide) and not _is_strange(wide):
            return encoding, [f"{name} is read as {_title(encoding)}"]
    if nearly:
        return "utf-8", []
    if not few_nuls or _is_strange(_decoded(sample, "ascii")):
        raise UnknownEncoding(
            f"{name} is binary, or text in an encoding that cannot be detected; if it "
            "is text, save or convert it as UTF-8"
        )
    raise UnknownEncoding(
        f"{name} is not UTF-8, and its encoding cannot be detected; convert it to "
        "UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _guess(sample: bytes, name: str, whole: bool) -> str | None:
    chardet = import_library("chardet", name, "text that is not UTF-8")
    eras = chardet.EncodingEra.MODERN_WEB | chardet.EncodingEra.LEGACY_ISO
    for found in chardet.detect_all(sample, encoding_era=eras, prefer_superset=False):
        encoding = found["encoding"]
        if encoding is not None and found["confidence"] >= CONFIDENCE:
            text = _decoded(sample, encoding, whole)
            if "\ufffd" not in text and not _is_strange(text):
                same = (x for x in LARGER if _decoded(sample, x, whole) == text)
                return next(same, encoding)
    return None


def _decoded(sample: bytes, encoding: str, whole: bool = False) -> str:
    """The text; unless it is whole, without a character that is cut off at its end."""
    return codecs.getincrementaldecoder(encoding)("replace").decode(sample, whole)


def _is_strange(text: str) -> bool:
    """Whether a text has too many control or unassigned characters, overall or among
    those that are not ASCII, or too many words of two alphabets."""
    others = [x for x in text if x > "\x7f"]
    ascii_controls = _controls(text) - sum(map(text.count, CONTROLS))
    return (
        ascii_controls > STRANGE * len(text)
        or _controls(others) > STRANGE * len(others)
        or len(TWO_ALPHABETS.findall(text)) > MIXED * len(others)
    )


def _controls(characters: Iterable[str]) -> int:
    return sum(unicodedata.category(x) in ("Cc", "Cn") for x in characters)


def _title(encoding: str) -> str:
    """The common name of an encoding."""
    return {"CP932": "Shift-JIS"}.get(
        encoding, encoding.upper().replace("WINDOWS", "Windows")
    )
