"""Questions for a count or a full list, which a few passages cannot answer. English
only."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .terms import terms

if TYPE_CHECKING:
    from .archive import Archive
    from .lookup import Lookup

_POLITE = r"(?:please|and|now|then|(?:can|could|would|will) you|i want you to)"
_ASKS = re.compile(
    r"\bhow (?:many|often|frequently)\b|\b(?:total number of|number of times)\b"
    r"|\b(?:a|the) (?:total )?(?-i:count) of\b"  # but not the Count of ...
    rf"|(?:^|[.!?,;:]\s*)(?:{_POLITE},? )*"
    r"(?:count(?: up)? (?:the|all|every|each|how|up)|enumerate"
    r"|(?:list|name|find|give|show|tell)(?: me)? (?:all|every|each)(?! about))\b",
    re.IGNORECASE,
)
# Words of a question that do not name the thing counted.
_OTHER = frozenset(
    "a about all am an and any appear appears are as at be been book by can chapter "
    "contain contains could count counted did do document does each enumerate ever "
    "every everything find for frequently from get give had happen happened happens "
    "has have he her him his how i in is it its list many me mention mentioned "
    "mentions much name named names number occur occurs of often on one or our "
    "passage passages please said say says shall she should show some story tell text "
    "than that the their them then there these they this those time times to total up "
    "us was we were what when where which who whom whose will with word words would "
    "you your".split()
)


def asks_for_count(question: str) -> bool:
    """Whether a question, in English, asks for a count or for everything."""
    return bool(_ASKS.search(" ".join(question.split())))


def counting_note(
    archive: "Archive",
    lookup: "Lookup | None",
    question: str,
    documents: Iterable[int] | None = None,
) -> str:
    """A note after the answer to a question for a count.

    Args:
        archive (Archive): the archive that was searched.
        lookup (Lookup): the passages that were found.
        question (str): the question.
        documents (list): numbers of the documents that were searched; all if ``None``.

    Returns:
        str: one line; empty for other questions, or if nothing was looked up.
    """
    if lookup is None or not asks_for_count(question):
        return ""
    looked = sum(source.passage.count for source in lookup.sources)
    if looked == 1:
        note = "Counting: only the passage above was looked at"
    elif looked:
        note = f"Counting: only the {looked:,} passages above were looked at"
    else:
        note = "Counting: no passage was looked at"
    words = [word for word in dict.fromkeys(terms(question)) if word not in _OTHER]
    if not words:
        return note
    documents = None if documents is None else [*documents]
    found = archive.matches(" ".join(words), documents)
    of = f"{found:,}" if found else "none"
    have = "has" if found in (0, 1) else "have"
    *first, last = (f'"{word}"' for word in words)
    named = f"{', '.join(first)} and {last}" if first else last
    return f"{note}; {of} of {archive.count(documents):,} passages {have} {named}"
