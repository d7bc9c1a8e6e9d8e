"""A planted book: what is asked is in it, where it says, in the words it should be."""

import re
from collections import Counter

import pytest
from helpers import active_folder, made_up_text

from allmem_mlx import load
from allmem_mlx.archive.cutting import sentences
from allmem_mlx.errors import AllMemError
from allmem_mlx.evaluation import planted_words, synonyms
from allmem_mlx.evaluation.planting import PlantedQuestion, plant, refuses

DISTANCES, SAMPLES = (3000, 50_000), 6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load(active_folder(tmp_path_factory.mktemp("model")))[1]


@pytest.fixture(scope="module")
def book():
    return made_up_text(0, 62_000)


@pytest.fixture(scope="module")
def planted(tokenizer, book):
    return plant(book, tokenizer, DISTANCES, SAMPLES, 0)


def of(planted, kind):
    return [x for x in planted.questions if x.kind == kind]


def test_the_seed_decides(tokenizer, book, planted):
    assert plant(book, tokenizer, DISTANCES, SAMPLES, 0) == planted
    other = plant(book, tokenizer, DISTANCES, SAMPLES, 1)
    assert other.text != planted.text


def test_it_is_the_book_with_statements_between_its_sentences(planted, book):
    text = planted.text
    for statement in planted.places:
        assert text.count(statement) == 1
        text = text.replace(statement + " ", "")
    assert book.startswith(text)


def test_statements_are_where_they_say(planted, tokenizer):
    """``places`` tokens of the document come after each of them, no fewer than were
    asked for, and no two are in one passage."""
    for question in planted.questions:
        for statement in question.statements:
            after = planted.places[statement]
            before = tokenizer.decode(planted.tokens[: len(planted.tokens) - after])
            assert before.endswith((statement, statement + " "))
        if question.statements and question.kind != "two":
            assert planted.places[question.statements[-1]] >= question.distance
    places = sorted(planted.places.values())
    assert min(b - a for a, b in zip(places, places[1:], strict=False)) >= 100


def test_sets(planted):
    counts = Counter(x.kind for x in planted.questions)
    assert counts == {
        "facts": len(DISTANCES) * SAMPLES,
        "paraphrase": len(synonyms.PAIRS),
        "two": SAMPLES,
        "latest": 24,
        "unanswerable": 24,
    }
    assert len({x.text for x in planted.questions}) == len(planted.questions)
    for question in planted.questions:
        for answer in question.answers:
            assert any(answer in x for x in question.deciding)
            assert answer not in question.text


def test_paraphrases_share_no_word_with_what_is_near(planted):
    for question in of(planted, "paraphrase"):
        (statement,) = question.statements
        words = synonyms.content_words(question.text)
        assert words and not words & synonyms.content_words(statement)
        at = planted.text.index(statement)
        near = planted.text[max(0, at - 600) : at + 600]
        near = re.sub(
            "|".join(re.escape(x) for x in planted.places if x != statement), "", near
        )
        assert not words & synonyms.content_words(near)


def test_what_is_not_told_is_not_in_the_book(planted):
    for question in of(planted, "unanswerable"):
        (subject,) = re.findall(
            r"the (?:town where the )?(\w+)(?: was|\?)", question.text
        )
        assert subject not in planted.text.lower()
        assert not question.statements


def test_the_last_of_three_decides(planted):
    for question in of(planted, "latest"):
        places = [planted.places[x] for x in question.statements]
        assert places == sorted(places, reverse=True) and len(places) == 3
        assert question.deciding == question.statements[-1:]
        first, _, last = (re.findall(r"\d+", x)[0] for x in question.statements)
        assert question.answered(f"It is {last}, no longer {first}.")
        assert not question.answered(f"It was {first}, and is {last}.")


def test_two_facts_stand_apart(planted):
    for question in of(planted, "two"):
        far, near = (planted.places[x] for x in question.statements)
        assert far >= DISTANCES[1] > near + 10_000
        assert question.answered(" and ".join(question.answers))
        assert not question.answered(question.answers[0])


@pytest.mark.parametrize(
    "said, right",
    [
        ("The text does not say.", True),
        ("I don't know.", True),
        ("It is unknown.", True),
        ("Its name is Aldous.", False),
        ("Notably, 1842.", False),
        ("", False),
    ],
)
def test_refusals(said, right):
    assert refuses(said) == right
    assert PlantedQuestion("unanswerable", "Who?", (), ()).answered(said) == right


def test_right_answers():
    number = PlantedQuestion("facts", "", ("4821",), ("It is 4821.",))
    assert number.answered("It is 4,821.") and not number.answered("48211")
    name = PlantedQuestion("facts", "", ("Oslo",), ("It is Oslo.",))
    assert name.answered("in oslo") and not name.answered("Oslofjord")


def test_without_the_distance_for_paraphrases(tokenizer, book):
    planted = plant(book, tokenizer, [3000], 2, 0)
    assert {x.kind for x in planted.questions} == {"facts", "two", "unanswerable"}


def test_books_that_do_not_do(tokenizer, book):
    with pytest.raises(AllMemError, match="tokens; .* are needed: give a longer text"):
        plant(book, tokenizer, [100_000], 2, 0)
    words = [*planted_words.TRADES, *planted_words.NAMES]
    with pytest.raises(AllMemError, match="too many of the words that are planted"):
        plant(" ".join(words) + book, tokenizer, [3000], 2, 0)


def test_the_synthetic_text_has_sentences():
    for seed in range(9):
        spans = sentences(made_up_text(seed, 5000))
        assert max(end - start for start, end in spans) < 200
