"""What is said to be in a passage is in it, character by character."""

import random
import time
from collections.abc import Iterator

import pytest

from allmem_mlx.archive.citations import (
    LONGEST,
    SHORT,
    SHOWN,
    Claim,
    check,
    claims,
    describe,
    is_verbatim,
    quoted_sentence,
)

PASSAGES = [
    "Call me Ishmael. In 1842 the Pequod, under Captain Ahab of Nantucket, carried "
    "1,842 barrels and 30 men. The crew saw Queequeg at 12:30, near the Lord of the "
    "Isles; it was -5 degrees, 3.5 fathoms, and 42% of the oil was gone.",
    "Then Ulrich von Hutten and J. R. O'Brien flew a B-17 over Zürich, in the year "
    "1943-1944.\nA clerk of the U.S. Navy, Mr. Jean-Luc Picard, wrote: “Nobody came "
    "back from the ice – nobody.” On 1843-05-12 NASA was not yet; the 4th of May was.",
    "The glass-blower's locker, No. 17, held 12\u00a0000 beads. Alice's brother Will "
    "said that he will come in 1912, with 12,000 more.",
    "裴廓德号于1842年出航，船上有３０人和１，２００桶油。亚哈说：「我要追它到天涯海角」。",
    "أبحرت السفينة في عام ١٨٤٢ وعليها ٣٠ رجلا. «سوف أطارده في كل البحار» قال القبطان.",
]


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("It sailed in 1842 [1].", ["1842"]),
        (
            "1,842 barrels, 3.5 fathoms, 12:30 and 42%.",
            ["1,842", "3.5", "12:30", "42%"],
        ),
        ("1’842 or 1.842,50 or 1/2 or 3·5", ["1’842", "1.842,50", "1/2", "3·5"]),
        ("12 000 men, 1\u202f234\u202f567 beads, 42\u00a0%", "12 000|1 234 567|42 %"),
        ("in 1842 300 men", ["1842", "300"]),
        ("in room 12 3004 men", ["12", "3004"]),
        ("from 1842-1850, on 1842-05-12", ["1842", "1850", "1842-05-12"]),
        ("it was -5 or −5 or .5, not x-5", ["-5", "−5", ".5", "5"]),
        ("a B-17, an F-16A, a 4th, H2O, 1840s", "B-17|F-16A|4th|H2O|1840s"),
        ("a b-17 and mid-1842", ["17", "1842"]),
        (
            "1842年，１，２００桶，３０人，１８４０，１８４１",
            "1842|１，２００|３０|１８４０|１８４１",
        ),
        ("في عام ١٨٤٢ و ١٬٢٣٤ و ٤٢٪", ["١٨٤٢", "١٬٢٣٤", "٤٢٪"]),
        ("1842년에 떠났다", ["1842"]),
        ("1842, 1842 and 1842", ["1842"]),
        ("seen [1][2], [1, 2], [1-3], 【4】 and [1842]", ["1842"]),
        ("1. one\n2) two\n  **3.** three\n42 four\n5.  ", ["42", "5"]),
    ],
)
def test_numbers(answer, expected):
    assert claims(answer) == (
        expected.split("|") if isinstance(expected, str) else expected
    )


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("the captain is Ahab", ["Ahab"]),
        ("the captain is **Ahab**, *Ahab* or _Ahab_ (Ahab)", ["Ahab"]),
        ("Whales sank the ship. Nobody lived! Why? Who knows: Fate.", []),
        ("- Whales\n- Ships\n\nThings", []),
        ("1. Whales\n2) Ships", []),
        ("[1] Whales swim", []),
        ("he said “**Whales** swim", []),
        ("Hold of the Pequod", ["Pequod"]),
        ("Only I Ahab know", ["Ahab"]),
        ("he is Zu\u0308richer", ["Zu\u0308richer"]),
        ("他来了。船长Nemo说", ["Nemo"]),
        ('he said, "Nobody knows"', ["Nobody knows"]),
        ("Captain Ahab", ["Captain Ahab"]),  # within a sentence of the first passage
        ("Ahab was there. Ishmael too.", ["Ahab", "Ishmael"]),
        ("The Pequod sailed", ["Pequod"]),
        ("Will came", []),  # "will" is a word of the third passage too
        ("then Will came", ["Will"]),
        ("When I saw him, I'm sure I thought I was Ahab", ["Ahab"]),
        ("Then I left", []),
        ("it was Ulrich von Hutten", ["Ulrich von Hutten"]),
        ("it was the Lord of the Isles", ["Lord of the Isles"]),
        ("by J. R. O'Brien and J.R.R. Tolkien", ["J. R. O'Brien", "J.R.R. Tolkien"]),
        ("O’Brien flew", ["O’Brien"]),
        ("it is Ahab's and Ahab’s leg", ["Ahab"]),
        ("as Mr. Jean-Luc Picard said", ["Mr. Jean-Luc Picard"]),
        ("the Élodie and the Žižek of Zürich", ["Élodie", "Žižek of Zürich"]),
        ("of d'Artagnan", ["Artagnan"]),
        ("NASA and McDonald", ["NASA", "McDonald"]),
        ("McDonald and NASA", ["McDonald", "NASA"]),
        ("in the U.S. The whale", ["U.S."]),
        ("plan B or vitamin C", []),
        ("made by I.B.M. alone", ["I.B.M."]),
        ("an iPhone by Apple", ["Apple"]),
        ("Elizabeth Tudor was Elizabeth I of England", "Tudor|Elizabeth I of England"),
        ("from Nantucket\nIshmael", ["Nantucket", "Ishmael"]),
        ("met Ahab [1] Ishmael [2]. Whales.", ["Ahab", "Ishmael"]),
        ("the name is Ahab", ["Ahab"]),
        ("船长Ahab说", ["Ahab"]),
        ("亚哈船长是好人", []),
    ],
)  # fmt: skip
def test_names(answer, expected):
    expected = expected.split("|") if isinstance(expected, str) else expected
    assert claims(answer, PASSAGES) == expected


def test_a_word_that_begins_a_sentence_is_a_name_only_if_a_passage_says_so():
    assert claims("Whales sank it.") == []
    assert claims("Whales sank it.", ["Whales swim. Whales eat."]) == []
    assert claims("Whales sank it.", ["The prince of Whales sank."]) == ["Whales"]
    assert claims("Whales sank it.", ["The prince of Whales saw whales."]) == []
    assert claims("Whales sank it, and whales do.", ["The prince of Whales."]) == []


@pytest.mark.parametrize(
    "answer, expected",
    [
        ('it says "call me now" there', ["call me now"]),
        ("it says “call me now” there", ["call me now"]),
        ("il dit «\u00a0call me\u00a0» ici", ["call me"]),
        ("er sagt „call me“ und „so it“", ["call me", "so it"]),
        ("他说「我要追它」和『天涯海角』", ["我要追它", "天涯海角"]),
        ('他说"我要追它"然后"天涯海角"', ["我要追它", "天涯海角"]),
        ("他说「天涯」", []),
        ("他说「天涯海」", []),
        ('the "whale" is "big"', []),
        ('it says "call me," and "so it."', ["call me", "so it"]),
        ('it says "call\n  me\tnow" there', ["call me now"]),
        ('it says "call me [1]" there', ["call me"]),
        ('it says "call me\n\nnow" there', []),
        ('a 5" pipe and a "long pipe" there', ["5", "long pipe"]),
        ('unbalanced "call me', []),
        ('a 5"x 6" pipe', ["5", "6"]),
        ('a " b c" d', []),
        ('a "b c "d e" f', ["d e"]),
        ('a "b c"d', []),
        ('a "b c " d', []),
        ("unbalanced “call me “so it”", ["so it"]),
        ('it says "in 1842 by Ahab" there', ["in 1842 by Ahab", "1842", "Ahab"]),
        ('it says "... - ! -" there', []),
        ("قال «سوف أطارده في كل البحار»", ["سوف أطارده في كل البحار"]),
        ('צה"ל של רמטכ"ל', []),
    ],
)
def test_quotations(answer, expected):
    assert claims(answer) == expected


@pytest.mark.parametrize(
    "claim, passage",
    [
        ("1842", "in 1842."),
        ("1842", "(1842)"),
        ("1842", "from 1842-1850"),
        ("1850", "from 1842–1850"),
        ("1842", "mid-1842"),
        ("1842", "公元1842年"),
        ("1842", "1842년에"),
        ("42", "it is 42%, or $42"),
        ("5", "No.5"),
        ("-5", "it was −5"),
        ("12 000", "12\u00a0000 men"),
        ("12 000", "12\u202f000 men"),
        ("12 000", "12\n000 men"),
        ("B-17", "a B‑17 flew"),
        ("B-17", "a B–17 flew"),
        ("Ahab", "Ahab's leg"),
        ("Ahab", "_Ahab_"),
        ("Ahab", "l’Ahab"),
        ("Ahab", "船长Ahab说"),
        ("Ahab", "Ahab는"),
        ("Ahab", "Ahabs, Ahaba and Ahab"),
        ("O'Brien", "said O’Brien"),
        ("Captain Ahab", "Captain \r\n\t Ahab"),
        ("U.S.", "the U.S. Navy"),
        ("call me", "“call me”"),
        ("a – b", "a - b"),
        ("天涯海角", "我要追它到天涯海角去"),
        ("كل البحار", "في كل البحار»"),
        ("  two \n words ", "two words"),
        ("x\x00y z", "an x\x00y z"),
        ("😀 ok", "so 😀 ok"),
    ],
)
def test_verbatim(claim, passage):
    assert is_verbatim(claim, passage)


@pytest.mark.parametrize(
    "claim, passage",
    [
        ("12", "1912"),
        ("19", "1912"),
        ("12", "12,000"),
        ("000", "12,000"),
        ("12", "12\u00a0000 beads"),
        ("000", "12\u202f000 beads"),
        ("12000", "12,000"),
        ("12,000", "12000"),
        ("12,000", "12.000"),
        ("12,000", "112,000"),
        ("12,000", "12,000,000"),
        ("3", "3.5"),
        ("5", "3.5"),
        ("5", "at .5"),
        ("5", "it was -5"),
        ("-5", "it was 5"),
        ("-5", "3-5"),
        ("12", "12:30"),
        ("30", "12:30"),
        ("12", "12th"),
        ("5", "5km"),
        ("17", "B-17"),
        ("B-1", "B-17"),
        ("B", "B-17"),
        ("１", "１，２００"),
        ("２００", "１，２００"),
        ("30", "３０"),
        ("30", "٣٠"),
        ("٣", "٣٠"),
        ("42%", "42"),
        ("42 %", "42%"),
        ("10", "10²"),
        ("Al", "Alice"),
        ("lice", "Alice"),
        ("ahab", "Ahab"),
        ("AHAB", "Ahab"),
        ("Brien", "O'Brien"),
        ("O", "O’Brien"),
        ("Zurich", "Zürich"),
        ("Zu", "Zu\u0308rich"),
        ("Zu\u0308rich", "Z\u00fcrich"),
        ("CaptainAhab", "Captain Ahab"),
        ("Captain Ahab", "CaptainAhab"),
        ("Captain Ahab", "Captain, Ahab"),
        ("call me", "recall me"),
        ("call me", "call men"),
        ("call me", "call - me"),
        ("call ... me", "call … me"),
        ("ل البحار", "في كل البحار"),
        ("می", "می\u200cخواهم"),
        ("خواهم", "می\u200cخواهم"),
        ("", "anything"),
        (" \n", "any thing"),
        ("anything", ""),
    ],
)
def test_not_verbatim(claim, passage):
    assert not is_verbatim(claim, passage)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Ishmael sailed in 1842 [1].", {"Ishmael": (1,), "1842": (1, 4)}),
        ("in 1842 with 1842 barrels", {"1842": (1, 4)}),
        ("1,842 barrels", {"1,842": (1,)}),
        ("1.842 barrels", {"1.842": ()}),
        ("12 000 or 12,000", {"12 000": (3,), "12,000": (3,)}),
        ("1943 to 1944", {"1943": (2,), "1944": (2,)}),
        ("by Al or Alice", {"Al": (), "Alice": (3,)}),
        ("by O’Brien", {"O’Brien": (2,)}),
        ('"nobody came back"', {"nobody came back": ()}),
        ('"Nobody came\nback from the ice - nobody."',
         {"Nobody came back from the ice - nobody": (2,)}),
        ("３０人说「追它到天涯海角」", {"３０": (4,), "追它到天涯海角": (4,)}),
        ("٣٠ «أطارده في كل»", {"٣٠": (5,), "أطارده في كل": (5,)}),
        ("nothing to see", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_check(answer, expected):
    assert {claim.text: claim.found for claim in check(answer, PASSAGES)} == expected


def test_without_passages_nothing_is_found():
    assert check("the captain is Ahab", []) == [Claim("Ahab", ())]


PLAIN = dict(zip("’‘“”–—−‑", "''\"\"----", strict=True))


def in_the_middle(a: str, b: str, c: str, d: str) -> bool:
    """Whether a word or number goes on between b and c, of four characters."""
    return (
        (b.isalnum() and c.isalnum())
        or (a.isdecimal() and b in ".,:/'~" and c.isdecimal())  # 12,000
        or (b.isdecimal() and c in ".,:/'~" and d.isdecimal())
        or (a.isupper() and b == "-" and c.isdecimal())  # B-17
        or (b.isupper() and c == "-" and d.isdecimal())
        or (a.isupper() and b == "'" and c.isupper())  # O'Brien
        or (b.isupper() and c == "'" and d.isupper())
        or (a in " (" and b in "-." and c.isdecimal())  # a sign, a decimal point
    )


def independent(claim: str, passage: str) -> bool:
    """Whether a text stands in a passage of English by itself, found in another way."""
    # A space that does not break stays another character, which may be in a number.
    passage = "  " + " ".join(passage.replace("\u00a0", "~").split()) + "  "
    claim = " ".join(claim.split())
    claim, passage = ("".join(PLAIN.get(c, c) for c in t) for t in (claim, passage))
    for start in range(2, len(passage) - len(claim) - 1):
        end = start + len(claim)
        if (
            passage[start:end].replace("~", " ") == claim
            and not in_the_middle(*passage[start - 2 : start + 2])
            and not in_the_middle(*passage[end - 2 : end + 2])
            and (claim[0] not in "-." or passage[start - 1] in " (")
        ):
            return True
    return False


def mutant(text: str, random: random.Random) -> str:
    """A text with one or two characters other than they were."""
    for _ in range(random.randint(1, 2)):
        at = random.randrange(len(text))
        old = text[at]
        new = [str(random.randint(0, 9)), "", ",", ".", " ", old * 2, "-", "\n"]
        new += [old.swapcase(), chr(ord("a") + random.randrange(26))]
        text = text[:at] + random.choice(new) + text[at + 1 :]
    return text


@pytest.mark.parametrize("seed", range(300))
def test_what_is_found_is_there(seed):
    draw = random.Random(seed)
    passages = PASSAGES[:3]
    pieces = []
    for _ in range(draw.randint(1, 8)):
        words = draw.choice(passages).split(" ")
        first = draw.randrange(len(words))
        piece = " ".join(words[first : first + draw.randint(1, 6)])
        if draw.random() < 0.5:
            piece = mutant(piece, draw)
        form = draw.choice(
            ["{}", "{}", '"{}"', "“{}”", "- {}\n", "the {} [1].", "{}, a"]
        )
        pieces.append(form.format(piece))
    answer = " ".join(pieces)
    for claim in check(answer, passages):
        for number, passage in enumerate(passages, 1):
            there = independent(claim.text, passage)
            assert (number in claim.found) <= there, (claim, passage)
            assert is_verbatim(claim.text, passage) == (number in claim.found)
    assert describe(check(answer, passages)).isprintable()


@pytest.mark.parametrize("number", range(len(PASSAGES)), ids="passage{}".format)
def test_all_of_a_passage_is_in_it(number):
    passage = PASSAGES[number]
    found = check(passage, PASSAGES)
    assert found and all(number + 1 in claim.found for claim in found)


@pytest.mark.parametrize("number", range(3), ids="passage{}".format)
def test_the_check_in_another_way_agrees(number):
    """On all short parts of a passage, whole or not, so that it can be relied on."""
    passage = PASSAGES[number]
    for start in range(len(passage)):
        for end in range(start + 1, min(start + 12, len(passage) + 1)):
            text = passage[start:end]
            if text.strip():
                assert is_verbatim(text, passage) == independent(text, passage), text


def mutants(text: str) -> Iterator[str]:
    """A number or a name with one mistake in it."""
    for at, c in enumerate(text):
        before, after = text[:at], text[at + 1 :]
        if c.isdecimal():
            for digit in set("0123456789") - {c}:
                yield before + digit + after
        elif c.isalpha():
            yield before + c.swapcase() + after
            yield before + ("x" if c != "x" else "y") + after
        elif c != "%":
            yield before + after
            yield from (before + other + after for other in ".,;: " if other != c)
        if c.isalnum() and len(text) > 1:
            yield before + c * 2 + after
    if text[-1].isalnum() and text[-2].isalnum():
        yield text[:-1]
    yield from (text + "0", "1" + text, text + "s", "x" + text)


MUTATED = (
    "In 1842 the ship, under Captain Ahab of Nantucket, had 3,517 barrels and 60 men, "
    "and a B-17 came over Zürich at 12:39 with J. R. O'Brien; 42% of it was NASA’s, "
    "7.25 was Jean-Luc Picard’s, as was the 4th\u00a0of May."
)


@pytest.mark.parametrize("text", claims(MUTATED))
def test_mutants_are_not_found(text):
    assert is_verbatim(text, MUTATED)
    assert [other for other in mutants(text) if is_verbatim(other, MUTATED)] == []


@pytest.mark.parametrize(
    "found, expected",
    [
        ([], ""),
        ([Claim("1842", (1,))], 'Verbatim: "1842" in [1]'),
        ([Claim("Paris", ())], 'Not in what was looked up: "Paris"'),
        (
            [Claim("1842", (1,)), Claim("Paris", ()), Claim("Ulrich", (1, 2))],
            'Verbatim: "1842" in [1], "Ulrich" in [1] [2]; '
            'not in what was looked up: "Paris"',
        ),
        (
            [Claim("a\x1b[31m\u202e b\ud800", ())],
            'Not in what was looked up: "a[31m b"',
        ),
        ([Claim("می\u200cخواهم", ())], 'Not in what was looked up: "می\u200cخواهم"'),
    ],
    ids=["none", "found", "missing", "both", "control", "joiner"],
)
def test_describe(found, expected):
    assert describe(found) == expected


def test_a_line_stays_short():
    line = describe(
        [Claim(f"{n} " + "word " * 99, (1,) * (n % 2)) for n in range(3000)]
    )
    assert line.count('"') == 4 * SHOWN and line.count(" and 1,494 more") == 2
    assert '"1 word word' in line and ' word ..." in [1]' in line
    assert len(line) < 2 * SHOWN * (SHORT + 20)
    assert len(describe([Claim("x" * 500, ())])) < SHORT + 40


TEXT = (
    "Call me Ishmael. The ship was the\nPequod. Her captain, one Ahab, had a leg of "
    "bone. Dr. Bunger knew Enderby. Her captain was Boomer."
)
AHAB = "Her captain, one Ahab, had a leg of bone."


@pytest.mark.parametrize(
    "text, question, answer, expected",
    [
        (TEXT, "Who is the captain?", "Ahab [1]", AHAB),
        (TEXT, "Which ship?", "PEQUOD", "The ship was the Pequod."),
        (TEXT, "Who is the captain?", "Boomer.", "Her captain was Boomer."),
        (TEXT, "captain", "none", AHAB),
        (TEXT, "had a leg", "Bunger, Enderby", "Dr. Bunger knew Enderby."),
        (TEXT, "", "", "Call me Ishmael."),
        ("Page 1. Ahab came.", "who", "Ahab [1]", "Ahab came."),
        (PASSAGES[3], "谁", "亚哈", "亚哈说：「我要追它到天涯海角」。"),
        (PASSAGES[4], "متى", "١٨٤٢", "أبحرت السفينة في عام ١٨٤٢ وعليها ٣٠ رجلا."),
        ("", "who", "Ahab", ""),
        ("\x1b[31mAhab\x00 came\u202e.", "who", "Ahab", "[31mAhab came."),
    ],
    ids="answer case last first both none reference han arabic empty control".split(),
)
def test_quoted_sentence(text, question, answer, expected):
    assert quoted_sentence(text, question, answer) == expected


@pytest.mark.parametrize("at", [0, 60, 119], ids=["start", "middle", "end"])
@pytest.mark.parametrize(
    "filler", ["and so on ", "很长的话"], ids=["words", "unspaced"]
)
def test_a_long_sentence_is_cut_around_what_it_shares(filler, at):
    text = "".join("Ahab spoke " if n == at else filler for n in range(120)).strip()
    shown = quoted_sentence(text, "who spoke", "Ahab")
    body = shown.removeprefix("... ").removesuffix(" ...")
    assert body in text and "Ahab spoke" in body and len(body) <= LONGEST
    assert len(body) > LONGEST - 20 or at == 119
    assert shown.startswith("... ") == (at > 0) and shown.endswith(" ...") == (at < 119)
    if filler.endswith(" "):
        assert set(body.split()) <= {"Ahab", "spoke", "and", "so", "on"}
    if at == 60:
        assert 60 < body.index("Ahab") < 140


def test_a_long_word_is_cut():
    shown = quoted_sentence("x" * 1000, "who", "Ahab")
    assert set(shown) == set("x .") and len(shown) <= LONGEST + 8


HOSTILE = {
    "dots": ".",
    "sentences": ". ",
    "ends_han": ". 中",
    "quotes": '"',
    "spaced_quotes": '" ',
    "open_quotes": ' "a',
    "open_curly": "“a b ",
    "open_guillemets": "«a b ",
    "closed": '"a b" ',
    "lines": "\n",
    "blank_lines": " \n",
    "quoted_lines": '"a\n',
    "spaces": " ",
    "capitals": "A",
    "small": "a",
    "digits": "1",
    "commas": "1,",
    "hyphens": "1-",
    "letter_hyphens": "A-",
    "initials": "A. ",
    "names": "Ab of the ",
    "apostrophes": "A'",
    "thousands": "1 000 ",
    "fixed": "1\u00a0",
    "brackets": "[1,",
    "percent": "1 %",
    "marks": "e\u0301\u0301",
    "emoji": "👩\u200d🚀 ",
    "control": "\x00\x1b[31m",
    "surrogates": "\ud800",
    "signs": "(-.",
    "markdown": ">*_",
    "han": "白鲸",
    "quoted_han": '"白鲸记的',
    "separators": "\u2028\x85\x1c",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_time_is_linear_in_hostile_answers(unit):
    answer = unit * (50_000 // len(unit))
    for text in (answer, '"Ab 1' + answer + 'x"'):
        start = time.process_time()
        found = check(text, PASSAGES)
        line = describe(found)
        quoted = quoted_sentence(PASSAGES[0], text, text)
        assert time.process_time() - start < 5  # about 0.2
        for shown in (line, quoted):
            assert shown.replace("\u200c", "").replace("\u200d", "").isprintable()
        assert len(line) < 2 * SHOWN * (SHORT + 20)


@pytest.mark.parametrize(
    "form", ["{}", "x Nx{}", '"a b{}" '], ids=["numbers", "names", "quotes"]
)
def test_many_claims(form):
    answer = " ".join(form.format(n) for n in range(4000))
    start = time.process_time()
    assert len(check(answer, PASSAGES)) >= 4000
    assert time.process_time() - start < 5  # about 0.4


def test_random_characters():
    draw = random.Random(0)
    alphabet = "Aab1９٣ \n\t\"“”«»「」『』'’.,:-–[]()%😀白ー한ع"
    alphabet += "\u0301\u200d\u202e\x1b\ud800\u00a0"
    for _ in range(500):
        answer, passage = ("".join(draw.choices(alphabet, k=60)) for _ in range(2))
        for claim in check(answer, [passage, answer]):
            assert claim.text == " ".join(claim.text.split()) != ""
            assert claim.found == tuple(
                n
                for n, p in enumerate([passage, answer], 1)
                if is_verbatim(claim.text, p)
            )
        line = describe(check(answer, [passage]))
        assert line.replace("\u200d", "").isprintable()
