"""Recall by generation: what is asked is in the document, where it says it is."""

import random
import re
from collections import Counter

import pytest
from helpers import active_folder

from allmem_mlx import load
from allmem_mlx.chat_template import PARAGRAPH, Template
from allmem_mlx.conversation import Conversation
from allmem_mlx.errors import AllMemError
from allmem_mlx.evaluation import plots, recall, recall_tasks, tables
from allmem_mlx.evaluation.recall import ChatPrompts, make_tasks
from allmem_mlx.evaluation.recall_tasks import NAMES, PLACES, Question
from allmem_mlx.evaluation.systems import ALLMEM, FULL, NEVER, OTHER, Reader, systems
from allmem_mlx.evaluation.texts import read_text
from allmem_mlx.session import Session
from allmem_mlx.state import digest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(active_folder(tmp_path_factory.mktemp("model"), chunk=64))


@pytest.fixture(scope="module")
def book(tiny, tmp_path_factory):
    """3,000 words, none like another's neighbour for long."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(3000)]
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(" ".join(words))
    return read_text(path, tiny[1])


def every_task(tokenizer, book, name, distances=(64, 300), samples=3, seed=0):
    groups = make_tasks(
        name, tokenizer, distances, samples, seed, [book] if book else []
    )
    return [task for group in groups for task in group]


class TestTasks:
    @pytest.mark.parametrize("name", recall.TASKS)
    def test_the_seed_decides(self, tiny, book, name):
        tasks = every_task(tiny[1], book, name)
        assert tasks == every_task(tiny[1], book, name)
        others = every_task(tiny[1], book, name, seed=1)
        for task, other in zip(tasks, others, strict=True):
            assert task.document != other.document

    @pytest.mark.parametrize("name", recall.TASKS)
    def test_it_can_be_solved_and_only_from_what_is_that_far_back(
        self, tiny, book, name
    ):
        """All answers are in the document, and none in its last ``distance`` tokens,
        before which the last of them ends."""
        decode = tiny[1].decode
        for task in every_task(tiny[1], book, name):
            before = decode(task.document[: -task.distance])
            after = decode(task.document[-task.distance :])
            for question in task.questions:
                assert len(re.findall(rf"\b{question.answer}\b", before)) >= 1
                assert question.answer not in after
            ends = {
                "passkey": r"is the pass key\.$",
                "mqar": r"number of \w+ is \d{4}\.\n$",
                "facts": r"was lost is \w+\.$",
            }
            assert re.search(ends[name], before)

    def test_passkey_depth(self, tiny):
        tasks = every_task(tiny[1], None, "passkey", distances=[300], samples=1)
        assert [task.depth for task in tasks] == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]
        for task in tasks:
            text = tiny[1].decode(task.document)
            key = task.questions[0].answer
            noise = text.replace(recall_tasks.INSTRUCTION, "")
            needle = f" The pass key is {key}. Remember it. {key} is the pass key."
            before, after = map(len, noise.split(needle))  # a token is a letter here
            assert before / (before + after) == pytest.approx(task.depth, abs=0.01)

    def test_mqar_has_every_pair_once(self, tiny):
        for task in every_task(tiny[1], None, "mqar"):
            pairs = re.findall(
                r"number of (\w+) is (\d+)\.\n", tiny[1].decode(task.document)
            )
            assert len(dict(pairs)) == len(pairs) == recall_tasks.PAIRS
            assert len({number for _, number in pairs}) == recall_tasks.PAIRS
            assert len(set(task.questions)) == recall_tasks.QUERIES
            text = tiny[1].decode(task.document)
            for question in task.questions:
                (word,) = re.findall(r"number of (\w+)\?", question.text)
                assert dict(pairs)[word] == question.answer
                assert Counter(re.findall(r"\w+", text))[word] == 1

    def test_facts_stand_in_the_book(self, tiny, book):
        for task in every_task(tiny[1], book, "facts"):
            after = task.document[-task.distance :]
            before = task.document[: recall_tasks.BEFORE]
            n = len(book.tokens)
            (start,) = [
                i for i in range(n) if book.tokens[i : i + len(before)] == before
            ]
            middle = start + len(before)
            assert book.tokens[middle : middle + task.distance] == after
            planted = task.document[recall_tasks.BEFORE : -task.distance]
            assert [question.kind for question in task.questions] == [
                "name",
                "number",
                "place",
            ]
            for question in task.questions:
                assert question.answer in tiny[1].decode(planted)

    def test_the_lent_memory_has_other_facts(self, tiny, book):
        for group in make_tasks("facts", tiny[1], [64], 30, 0, [book]):
            for task, other in zip(group, group[1:], strict=False):
                for own, lent in zip(task.questions, other.questions, strict=True):
                    assert own.answer != lent.answer

    def test_what_the_book_has_is_not_planted(self, tiny, book, tmp_path):
        path = tmp_path / "names.txt"
        path.write_text(" ".join([*NAMES[:-1], *PLACES[1:]]) + book.text)
        full = read_text(path, tiny[1])
        for task in every_task(tiny[1], full, "facts"):
            name, _, place = task.questions
            assert (name.answer, place.answer) == (NAMES[-1], PLACES[0])
        path.write_text(" ".join(NAMES) + book.text)
        with pytest.raises(AllMemError, match="every name"):
            every_task(tiny[1], read_text(path, tiny[1]), "facts")

    def test_a_short_book(self, tiny, book):
        with pytest.raises(AllMemError, match="tokens; facts 99999 tokens back need"):
            every_task(tiny[1], book, "facts", distances=[99999])

    def test_right_answers(self):
        number, word = Question("", "", "4821"), Question("", "", "Oslo")
        assert number.answered("It is 4821.") and number.answered("4821 or 5000")
        for wrong in ("", "5000, no, 4821", "48211", "4,821", "4 8 2 1"):
            assert not number.answered(wrong)
        assert word.answered("In oslo.") and not word.answered("Oslofjord")


class TestAsking:
    def test_prompts_are_those_of_the_command_line(self, tiny, book):
        """A document in the user's message, then the question; and the same answer."""
        model, tokenizer = tiny
        tokens, text = book.tokens[:200], "Who is it?"
        asking = ChatPrompts(tokenizer)
        prompt = asking.document(tokens) + asking.question(text)
        session = Session(model, tokenizer)
        conversation = Conversation(session, Template.of_chat(tokenizer))
        for _ in conversation.read([tokens]):
            pass
        said = [x.token for x in conversation.ask(text, max_tokens=12)]

        again = Session(model, tokenizer)
        conversation = Conversation(again, Template.of_chat(tokenizer))
        for _ in conversation.read([tokens]):
            pass
        for _ in conversation.say(text):
            pass
        state = again.state
        assert digest(state.waiting, state.digest) == digest(prompt)

        (system,) = [s for s in systems(model) if s.name == ALLMEM]
        reader = Reader(system, model)
        reader.read(asking.document(tokens))
        answer = reader.answer(asking.question(text), 12, asking.stops)
        assert answer == [token for token in said if token not in asking.stops]

    def test_without_a_chat_template(self, tiny, monkeypatch):
        tokenizer = tiny[1]
        no = property(lambda self: False)
        monkeypatch.setattr(type(tokenizer), "has_chat_template", no, raising=False)
        asking = ChatPrompts(tokenizer)
        assert asking.document([5, 6]) == [*tokenizer.encode(""), 5, 6]
        expected = tokenizer.encode(PARAGRAPH + "Who?", add_special_tokens=False)
        assert asking.question("Who?") == expected

    @pytest.mark.slow
    def test_every_system_is_asked_everything(self, tiny, book):
        model, tokenizer = tiny
        groups = make_tasks("facts", tokenizer, [64], 2, 0, [book])
        read = []
        answers = recall.recall(model, tokenizer, groups, read.append)
        assert len(answers) == 2 * 3 * 6 and len(read) == 2 * 6
        by_system = {
            name: [x["said"] for x in answers if x["system"] == name]
            for name in (ALLMEM, NEVER, OTHER)
        }
        assert len(set(map(tuple, by_system.values()))) == 3
        assert answers == recall.recall(model, tokenizer, groups)

    @pytest.mark.slow
    def test_full_attention_is_not_asked_beyond_its_context(self, tiny, book):
        model, tokenizer = tiny
        model.base_config["max_position_embeddings"] = 900
        groups = make_tasks("facts", tokenizer, [64, 300], 1, 0, [book])
        summary = recall.summary(recall.recall(model, tokenizer, groups))
        model.base_config["max_position_embeddings"] = 4096
        asked = {row["distance"]: row["asked"] for row in summary["rows"]}
        assert asked[64][FULL] == 1 and asked[300][FULL] == 0
        assert asked[300][ALLMEM] == 1
        curves = plots.recall(summary).curves
        assert [x for x, _ in curves[FULL]] == [64]
        assert " - " in tables.recall(summary)


def test_summary():
    def answer(system, distance, said, right):
        question = {"task": "mqar", "kind": "mqar", "distance": distance, "depth": None}
        return question | {"system": system, "said": said, "right": right}

    answers = [
        answer(system, distance, said, said == "1234")
        for system in tables.NAMES
        for distance in (64, 128)
        for said in ("1234", "5678", None if system == FULL else "1234")
    ]
    summary = recall.summary(answers)
    assert [row["distance"] for row in summary["rows"]] == [64, 128]
    for row in summary["rows"]:
        assert (row["right"][FULL], row["asked"][FULL]) == (1, 2)
        assert (row["right"][ALLMEM], row["asked"][ALLMEM]) == (2, 3)
    assert len(summary["answers"]) == len(answers)
    assert "2/3" in tables.recall(summary)
    curves = plots.recall(summary).curves
    assert curves[FULL] == [(64, 50.0), (128, 50.0)]
    assert curves[ALLMEM] == [
        (64, pytest.approx(200 / 3)),
        (128, pytest.approx(200 / 3)),
    ]
