"""No code stands twice."""

import pytest
import twins

ORIGINAL = """
def mean_length(words, limit=9):
    \"""Of some words.\"""
    total = 0
    for word in words:
        if len(word) > limit:
            total += len(word)
    return total / max(1, len(words))
"""
RENAMED = """
class Numbers:
    @staticmethod
    def mean(numbers: list, most: int = 3) -> float:
        found: int = 1  # a comment

        for x in numbers:
            if abs(x) > most:
                found += abs(x)

        return found / min(2, abs(numbers))
"""
PART = """
def other(path):
    print(path)
    count, sum, items = 0, 3, open(path)
    with items as lines:
        a = 0
        for b in lines:
            if str(b) > path:
                a += str(b)
        c = a / f(1, str(lines))
"""
ANOTHER = ORIGINAL.replace("total += len(word)", "total += len(words)")
PARSER = """
def flags(parser):
    add = parser.add_argument
    add("--one", type=int, default=3, help="one")
    add("--two", type=int, default=3, help="two")
    parser.add_argument(
        "--three",
        help="three",
    )
    TEXT = "three"
"""


def test_no_code_stands_twice():
    assert twins.twins(twins.sources()) == []


@pytest.mark.parametrize(
    "one, other, places",
    [
        (ORIGINAL, ORIGINAL, ["one:2-8", "other:2-8"]),
        (ORIGINAL, RENAMED, ["one:2-8", "other:4-11"]),
        (PART, PART, ["one:2-10", "other:2-10"]),
    ],
    ids=["copied", "renamed", "a long one"],
)
def test_twins_are_found(one, other, places):
    assert twins.twins({"one": one, "other": other}) == [places]


def test_a_part_of_a_function_is_found():
    lines = PART.splitlines()[4:]
    other = "\n".join(["def x(path, items):", *lines, "    print(c)", ""])
    assert twins.twins({"one": PART, "other": other}) == [["one:5-10", "other:2-7"]]


@pytest.mark.parametrize(
    "one, other",
    [(ORIGINAL, ANOTHER), (PARSER, PARSER), (ORIGINAL, PART)],
    ids=["another name", "a parser", "another code"],
)
def test_others_are_not(one, other):
    assert twins.twins({"one": one, "other": other}) == []
