"""Citations, made by code and not by the model: the sentence of a passage that supports
an answer, and the passages that have the answer's claims word for word."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .cutting import sentences
from .terms import UNSPACED, terms

LONGEST = 200  # characters shown of a sentence
SHORT = 60  # characters shown of a claim
SHOWN = 6  # claims shown

# Typographic characters and their plain equals, one for one, so that places are equal.
PLAIN = str.maketrans(
    "“”„‟‘’‚‛‐‑‒–—―−\u00a0\u2009\u202f",
    '"' * 4 + "'" * 4 + "-" * 7 + " " * 3,
)
ENDS = frozenset(".!?…:。！？؟\n\r\u2028\u2029")  # of a sentence or a line
OPENERS = tuple('"“„‘«「『')
JOINERS = "\u200c\u200d"  # not printable, but part of the spelling


@dataclass(frozen=True)
class Claim:
    """A number, a name or a quotation in an answer.

    Args:
        text (str): as the answer writes it, with a space for any white space.
        found (tuple): numbers, from 1, of the passages that have it verbatim.
    """

    text: str
    found: tuple[int, ...]


Pattern = re.Pattern[str]  # of the regex library, with the same methods


class _Patterns(NamedTuple):
    space: Pattern  # white space that becomes one space
    inside: Pattern  # a place inside a word or a number
    reference: Pattern  # to a passage: [1]
    quotation: Pattern
    token: Pattern  # reference, number, name, other word
    unit: Pattern  # text that is not cut


@lru_cache(maxsize=1)
def _patterns() -> _Patterns:
    import regex

    unspaced = "".join(rf"\p{{{script}}}" for script in UNSPACED) + "ー"
    cased, digit = r"\p{Lu}\p{Ll}\p{Lt}\u0300-\u036f", r"[\p{Nd}\p{No}]"
    mixed = rf"[{cased}\p{{Nd}}\p{{No}}]"
    other = rf"[[\p{{L}}\p{{M}}]--[{cased}{unspaced}]]"  # Arabic, Hangul, ...
    hyphen, sign, fixed = r"[\-‐‑–]", r"(?<![^\s(])[\-−.]", r"\u00a0\u2009\u202f"
    # Between the digits of one number; a space that does not break before thousands.
    joint = (
        rf"(?:[.,:/'’·٫٬．：]|，(?=[０-９]{{3}}(?![０-９]))"
        rf"|[{fixed}](?={digit}{{3}}(?!{digit})))"
    )
    inside = (
        rf"(?<={mixed})(?={mixed})|(?<={other})(?={other})"
        rf"|(?=[\p{{M}}{JOINERS}])|(?<=[{JOINERS}])"
        rf"|(?<={digit})(?={joint}{digit})|(?<={digit}{joint}|{sign})(?={digit})"
        rf"|(?<=\p{{Lu}})(?={hyphen}{digit})|(?<=\p{{Lu}}{hyphen})(?={digit})"  # B-17
        rf"|(?<=\b\p{{Lu}})(?=['’]\p{{Lu}})|(?<=\b\p{{Lu}}['’])(?=\p{{Lu}})"  # O'Brien
    )

    reference = r"[\[［【]\d{1,2}(?: ?[,;–\-] ?\d{1,2})*+[\]］】]"
    marker = r"^[ \t>*_]*+\d{1,2}[.)][*_]*+[ \t]++(?=\S)"  # of a list
    number = (
        rf"(?:{sign})?(?:\p{{Lu}}++{hyphen}(?={digit}){mixed}++"  # B-17
        rf"|{digit}{{1,3}}(?:[ {fixed}]{digit}{{3}})++(?!{mixed})"  # 12 000
        rf"|{digit}++(?:{hyphen}{digit}++){{2,}}+"  # 1842-05-12, but not 1842-1850
        rf"|[{cased}]*+{digit}{mixed}*+"  # 1,842, 12:30, 4th, H2O
        rf"(?:(?<={digit}){joint}(?={digit}){mixed}++)*+)(?:[ {fixed}]?[%‰٪％])?"
    )
    initials = r"(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Gen|\p{Lu})\.(?:-?\p{Lu}\.)*+"
    proper = rf"[\p{{Lu}}\p{{Lt}}][{cased}]*+(?:['’‐\-](?!s(?![{cased}]))[{cased}]++)*+"
    word, gap = rf"(?:{initials}|{proper})", r"[ \u00a0]++"
    particle = rf"(?:of|the|de|von|van|der|den|la|le|del|di|da|du){gap}"
    pronoun = rf"I(?![{cased}]|\.\p{{Lu}})"
    name = rf"(?!{pronoun}){word}(?:{gap}(?:{particle}){{0,3}}{word})*+"

    def within(marks: str) -> str:  # up to one of them, in one paragraph
        return rf"((?:[^{marks}\n]|\n(?![^\S\n]*+\n))*+)"

    quotation = "|".join(
        [
            rf"(?<![^\W{unspaced}])\"(?=\S){within(chr(34))}(?<=\S)\"(?![^\W{unspaced}])",
            *(f"{a}{within(a + b)}[{b}]" for a, b in ("“”", "«»", "「」", "『』")),
            f"„{within('„“”')}[“”]",
        ]
    )
    sources = (
        rf"[\s\x1c-\x1f]{{2,}}|[[\s\x1c-\x1f]--[{fixed}]]",
        inside,
        reference,
        quotation,
        rf"(?P<skip>{reference}|{marker})|(?P<number>{number})|(?P<name>{name})"
        rf"|(?P<word>[{cased}]++|[[\p{{L}}\p{{M}}]--[{cased}]]++)",
        rf"[{unspaced}]|[^\s{unspaced}]{{1,{LONGEST // 2}}}",
    )
    return _Patterns(*(regex.compile(s, regex.V1 | regex.MULTILINE) for s in sources))


def quoted_sentence(passage_text: str, question: str, answer: str) -> str:
    """The first sentence of a passage that shares the most terms with an answer, which
    count twice, and with the question.

    Args:
        passage_text (str): the passage.
        question (str): the question.
        answer (str): the answer; references such as ``[1]`` do not count.

    Returns:
        str: one printable line. Of a sentence of more than 200 characters, the part
        that shares the most, with ``...`` where it was cut.
    """
    asked, answered = set(terms(question)), set(terms(_without_references(answer)))

    def shared(text: str) -> int:
        found = set(terms(text))
        return 2 * len(found & answered) + len(found & asked)

    texts = [passage_text[start:end] for start, end in sentences(passage_text)]
    text = printable_line(max(texts, key=shared, default=""))
    if len(text) <= LONGEST:
        return text
    starts = [match.start() for match in _patterns().unit.finditer(text)]
    scores = [shared(text[start : start + LONGEST]) for start in starts]
    top = max(scores)
    best = [start for start, score in zip(starts, scores, strict=True) if score == top]
    start = best[len(best) // 2]  # with the shared terms in its middle
    end = max(at for at in [*starts, len(text)] if at <= start + LONGEST)
    cut = text[start:end].rstrip()
    return "... " * (start > 0) + cut + " ..." * (end < len(text))


def claims(answer: str, passages: Sequence[str] = ()) -> list[str]:
    """The numbers, names and quotations in an answer, in order, each once.

    A number is taken as written: 1,842, 12:30, -5, 42%, B-17. A name is a run of
    capitalised words. The first word of a sentence or a line is a part of it only if it
    has another capital, or is capitalised within a sentence of a passage, and if it is
    nowhere in lower case. A quotation has two words, or four characters in scripts
    without spaces.

    Args:
        answer (str): the answer.
        passages: the passages that it was made from.
    """
    tokens = list(_tokens(answer))
    known, ordinary = set(), {text for _, kind, text, _ in tokens if kind == "word"}
    for passage in passages:
        for _, kind, text, begins in _tokens(passage):
            if kind == "word":
                ordinary.add(text)
            elif kind == "name":
                known.update(text.split()[begins:])
    found = [(at, text) for at, kind, text, _ in tokens if kind == "number"]
    for at, kind, text, begins in tokens:
        if kind == "name":
            names = _names(text.split(), begins, known, ordinary)
            found += [(at, name) for name in names]
    for match in _patterns().quotation.finditer(answer):
        quotation = " ".join(_without_references(match[match.lastindex or 0]).split())
        quotation = quotation.strip(" .,;:…，。、")
        # Four characters without spaces are seven terms.
        if len(terms(quotation)) >= (2 if " " in quotation else 7):
            found.append((match.start(), quotation))
    in_order = sorted(found, key=lambda claim: claim[0])
    return list(dict.fromkeys(" ".join(text.split()) for _, text in in_order))


def _tokens(text: str) -> Iterator[tuple[int, str, str, bool]]:
    """Yields place, kind and text of each token, and whether it begins a sentence or a
    line."""
    end, begins = 0, True
    for match in _patterns().token.finditer(text):
        gap = text[end : match.start()]
        begins = begins or not ENDS.isdisjoint(gap)
        begins = begins or gap.rstrip("*_").endswith(OPENERS)
        yield match.start(), match.lastgroup or "", match[0], begins
        end, begins = match.end(), begins and match.lastgroup == "skip"


def _names(
    words: list[str], begins: bool, known: set[str], ordinary: set[str]
) -> list[str]:
    """The names in a run of capitalised words and particles."""
    runs: list[list[str]] = [[]]
    for word, before in zip(words, ["", *words], strict=False):
        usual = word.lower() in ordinary
        capital = word in known or any(c.isupper() for c in word[1:])
        if before.endswith(".") and usual:  # "the U.S. The ..."
            runs.append([])
        elif before or not begins or (capital and not usual):
            runs[-1].append(word)
    for run in runs:
        while run and (run[0] == "I" or run[0].islower()):
            del run[0]
    names = [" ".join(run) for run in runs]
    return [name for name in names if sum(c.isalpha() for c in name) > 1]


def is_verbatim(claim_text: str, passage_text: str) -> bool:
    """Whether a text is in a passage character by character, and neither begins nor
    ends inside a word or a number.

    All white space is equal, and typographic quotation marks, apostrophes and dashes
    are equal to plain ones; nothing else is.
    """
    claim = " ".join(claim_text.split()).translate(PLAIN)
    passage = _one_line(passage_text)
    plain, inside, at = passage.translate(PLAIN), _patterns().inside, -1
    while claim and (at := plain.find(claim, at + 1)) >= 0:
        end = at + len(claim)
        signed = claim[0] in "-." and plain[:at][-1:] not in ("", " ", "(")
        if not (signed or inside.match(passage, at) or inside.match(passage, end)):
            return True
    return False


def check(answer: str, passages: Sequence[str]) -> list[Claim]:
    """The claims of an answer, with the passages that have each verbatim.

    Args:
        answer (str): the answer.
        passages: their texts, in the order of their numbers, which begin with 1.
    """
    found = []
    for text in claims(answer, passages):
        numbers = [n for n, p in enumerate(passages, 1) if is_verbatim(text, p)]
        found.append(Claim(text, tuple(numbers)))
    return found


def describe(claims: Sequence[Claim]) -> str:
    """One printable line on the claims of :func:`check` that are verbatim in a passage,
    and on those that are in none. Empty if there are no claims."""
    found, missing = [], []
    for claim in claims:
        text = printable_line(claim.text)
        if len(text) > SHORT:
            text = (text[:SHORT].rpartition(" ")[0] or text[:SHORT]) + " ..."
        if claim.found:
            numbers = " ".join(f"[{number}]" for number in claim.found)
            found.append(f'"{text}" in {numbers}')
        else:
            missing.append(f'"{text}"')
    parts = []
    for title, texts in (("verbatim", found), ("not in what was looked up", missing)):
        if texts:
            more = len(texts) - SHOWN
            end = f" and {more:,} more" if more > 0 else ""
            parts.append(f"{title}: {', '.join(texts[:SHOWN])}{end}")
    line = "; ".join(parts)
    return line[:1].upper() + line[1:]


def _without_references(text: str) -> str:
    return _patterns().reference.sub(" ", text)


@lru_cache(maxsize=64)
def _one_line(text: str) -> str:
    """A text with single spaces; a single no-break space stays."""
    return _patterns().space.sub(" ", text)


def printable(text: str) -> str:
    """A text without control characters, which a terminal may obey; line breaks and
    tabs stay."""
    return "".join(
        c if c.isprintable() or c in JOINERS or c in "\n\t" else " "
        for c in text.replace("\r\n", "\n")
        if c.isprintable() or c.isspace() or c in JOINERS
    )


def printable_line(text: str) -> str:
    """A text as one line without control characters."""
    return " ".join(printable(text).split())
