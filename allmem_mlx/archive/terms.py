"""The terms of a text in any script, which the index and a search compare.

They are made here and not by SQLite, so that a search does not depend on its version
and finds text without spaces between words.
"""

import unicodedata
from functools import lru_cache
from typing import Any

# Scripts without spaces between words.
UNSPACED = "Han Hiragana Katakana Thai Lao Khmer Myanmar".split()


@lru_cache(maxsize=1)
def _patterns() -> tuple[Any, Any, Any]:
    import regex

    unspaced = "".join(rf"\p{{{script}}}" for script in UNSPACED) + "ー"
    # Vowel points and accents, which are optional in these scripts; and invisible
    # characters, such as soft hyphens.
    spelled = r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}]"
    letter, more = (f"[{kinds}--[{unspaced}]]" for kinds in (r"\p{L}\p{N}", r"\p{M}"))
    return (
        regex.compile(rf"{spelled}\K\p{{Mn}}+|\p{{Default_Ignorable_Code_Point}}"),
        regex.compile(
            rf"[{unspaced}]+|{letter}(?:{letter}|{more})*|[\p{{So}}\p{{Sc}}]", regex.V1
        ),
        regex.compile(rf"[{unspaced}]"),
    )


def terms(text: str) -> list[str]:
    """The terms of a text, in order: words, and in scripts without spaces each
    character and each pair; emoji and other symbols are terms too.

    Case, width (NFKC), accents and vowel points make no difference. No term has a
    space, or a character with a meaning in a query.
    """
    marks, words, unspaced = _patterns()
    text = unicodedata.normalize("NFKC", text).casefold()
    if not text.isascii():
        text = marks.sub("", unicodedata.normalize("NFKD", text))
        text = unicodedata.normalize("NFC", text)
    found: list[str] = []
    for word in words.findall(text):
        if unspaced.match(word):
            found += word
            found += (a + b for a, b in zip(word, word[1:], strict=False))
        else:
            found.append(word)
    return found


def query(text: str) -> str:
    """An FTS5 query for any of the terms of a text; empty if it has none."""
    return " OR ".join(f'"{term}"' for term in dict.fromkeys(terms(text)))
