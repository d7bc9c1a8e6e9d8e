"""Recall with passages: what each column has read, and what is put before it."""

import json
from copy import copy
from dataclasses import replace

import mlx.core as mx
import pytest
from family_cases import settings
from helpers import (
    TINY_ALLMEM,
    active_folder,
    assert_close,
    assert_refused,
    made_up_text,
    random_tokens,
    tiny_model,
)
from processes import run

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.errors import AllMemError
from allmem_mlx.evaluation import lookup_recall, lookup_summary, tables
from allmem_mlx.evaluation.columns import COLUMNS, Answerer, SavedAnswers
from allmem_mlx.evaluation.lookups import (
    ANSWER,
    DRAWN,
    ELSEWHERE,
    FOUND,
    RIGHT,
    Retriever,
    TemporaryArchives,
)
from allmem_mlx.evaluation.recall import ChatPrompts
from allmem_mlx.evaluation.systems import (
    ALLMEM,
    ALLMEM_PASSAGES,
    CLOSED,
    FULL,
    FULL_PASSAGES,
    ORACLE,
    PASSAGES_ONLY,
    WINDOW,
    WINDOW_PASSAGES,
    Reader,
    System,
)
from allmem_mlx.model import Model, ModelArgs
from allmem_mlx.session import Session
from allmem_mlx.variants import window_model

SETS, PASSAGES = ("facts", "two", "unanswerable"), 2
DISTANCES = (300, 3000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return active_folder(path, chunk=64, window=1600)


@pytest.fixture(scope="module")
def tiny(folder):
    model, tokenizer = load(folder)
    model.base_config["max_position_embeddings"] = 3000
    return model, tokenizer


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A book of 8,000 letters, each of which is a token, and another."""
    path = tmp_path_factory.mktemp("texts")
    for i, name in enumerate(("book.txt", "other.txt")):
        (path / name).write_text(made_up_text(i, 8000))
    return [path / "book.txt", path / "other.txt"]


@pytest.fixture(scope="module")
def stack(tiny, texts):
    with TemporaryArchives(tiny[1]) as shelves:
        yield lookup_recall.haystack(texts, tiny[1], shelves, SETS, DISTANCES, 1, 0)


@pytest.fixture(scope="module")
def retriever(tiny, stack):
    return Retriever(tiny[0], stack.book, stack.other, PASSAGES, 0)


@pytest.fixture(scope="module")
def asked(retriever, stack):
    """All questions that can be answered, and one that cannot."""
    known = [x for x in stack.planted.questions if x.statements]
    unknown = [x for x in stack.planted.questions if not x.statements][:1]
    return [retriever.retrieve(question) for question in known + unknown]


@pytest.fixture(scope="module")
def answers(tiny, stack, asked):
    """What every column says to every question, in groups."""
    groups = lookup_recall.groups(asked, SETS)
    return groups, lookup_recall.ask(*tiny, stack.planted, groups, SavedAnswers(None))


def texts_of(lookup):
    return [source.passage.text for source in lookup.sources]


class TestPassages:
    def test_the_oracle_has_what_answers(self, asked):
        for x in asked:
            assert x.hit(RIGHT) == bool(x.question.statements)
            assert (RIGHT in x.lookups) == bool(x.question.statements)
            for statement in x.question.deciding:
                assert statement in x.lookups[RIGHT].message(x.question.text)

    def test_the_other_controls_do_not(self, asked, stack):
        for x in asked:
            for source in (DRAWN, ELSEWHERE):
                assert not x.hit(source)
                for answer in x.question.answers:
                    assert answer not in " ".join(texts_of(x.lookups[source]))
            assert x.lookups[ELSEWHERE].sources[0].passage.mark.source == "other.txt"
            assert x.lookups[DRAWN].sources[0].passage.mark.source == "book.txt"
            assert len(x.lookups[DRAWN].sources) <= len(x.lookups[FOUND].sources)

    def test_the_seed_decides_what_is_random(self, tiny, stack, retriever, asked):
        other = Retriever(tiny[0], stack.book, stack.other, PASSAGES, 1)
        ours, theirs = (
            [texts_of(f.retrieve(x.question).lookups[DRAWN]) for x in asked]
            for f in (retriever, other)
        )
        assert ours == [texts_of(x.lookups[DRAWN]) for x in asked]
        assert ours != theirs
        assert len(set(map(tuple, ours))) > 1  # and the question

    def test_any_passage_without_the_statements_may_be_random(self, retriever, asked):
        for x in asked:
            drawn = {p.number for p in retriever._drawn(x.question, 1000)}
            right = {p.number for p in retriever._right(x.question)}
            assert drawn | right == {p.number for p in retriever.passages}
            assert not drawn & right

    def test_they_are_those_of_the_command(self, tiny, stack, asked):
        """A session that has read the document looks up the same."""
        state = states.new(tiny[0])
        state.open_document(stack.book.entry.key, 9)
        session = Session(*tiny, state, archive=stack.book.archive)
        for x in asked:
            text = x.question.text
            lookup = session.look_up(text, PASSAGES, max_tokens=ANSWER)
            assert lookup.message(text) == x.lookups[FOUND].message(text)

    def test_all_have_the_same_room(self, tiny, asked):
        for x in asked:
            for lookup in x.lookups.values():
                message = lookup.message(x.question.text)
                assert len(tiny[1].encode(message)) + ANSWER <= tiny[0].allmem.window

    def test_a_hit_is_all_that_decides(self, asked):
        (x, *_) = (x for x in asked if x.question.kind == "two" and x.hit(RIGHT))
        lookup = x.lookups[RIGHT]
        for source in lookup.sources:
            less = replace(lookup, sources=[source])
            both = all(s in source.passage.text for s in x.question.statements)
            assert replace(x, lookups={RIGHT: less}).hit(RIGHT) == both
        latest = replace(x.question, kind="latest")
        last = [s for s in lookup.sources if latest.statements[-1] in s.passage.text]
        only = replace(
            x, question=latest, lookups={RIGHT: replace(lookup, sources=last)}
        )
        assert only.hit(RIGHT)


class TestColumns:
    def test_what_is_put_before_a_question(self, asked):
        for x in asked:
            for column in COLUMNS:
                if column.passages in (None, *x.lookups):
                    text = lookup_recall.message(column, x)
                    asked_with = column.passages is not None
                    assert text.startswith("[") == asked_with
                    end = f"Question: {x.question.text}\nAnswer:"
                    assert text.endswith(end) if asked_with else text == x.question.text
        (closed,) = (column for column in COLUMNS if column.name == CLOSED)
        assert not closed.reads and closed.passages is None

    def test_columns_differ_as_they_say(self):
        named = {x.name: (x.system, x.reads, x.passages) for x in COLUMNS}
        assert len(set(named.values())) == len(COLUMNS) == 10
        for name, system in (
            (ALLMEM_PASSAGES, ALLMEM),
            (WINDOW_PASSAGES, WINDOW),
            (FULL_PASSAGES, FULL),
        ):
            assert named[name] == (system, True, FOUND)
        assert named[PASSAGES_ONLY] == (ALLMEM, False, FOUND)
        assert named[ORACLE] == (ALLMEM, False, RIGHT)
        assert named[FULL] == (FULL, True, None)

    @pytest.mark.slow
    def test_the_answer_is_that_of_the_command(self, tiny, stack, answers):
        """``Session.ask`` after the same document."""
        model, tokenizer = tiny
        document = ChatPrompts(tokenizer).document(stack.planted.tokens)
        session = Session(model, tokenizer, archive=stack.book.archive)
        start = len(document) - len(stack.planted.tokens)
        session.state.open_document(stack.book.entry.key, start)
        session.state.notes["turn"] = "user"
        for _ in session.read([document]):
            pass
        groups, found = answers
        questions = [x.question for group in groups for x in group]
        for question, said in list(zip(questions, found, strict=True))[::3]:
            response = session.ask(question.text, PASSAGES, max_tokens=ANSWER)
            assert "".join(x.text for x in response) == said[ALLMEM_PASSAGES]
            fresh = stack.book.session(model)
            fresh.tokenizer = tokenizer
            response = fresh.ask(question.text, PASSAGES, max_tokens=ANSWER)
            if question.kind == "facts":
                assert "".join(x.text for x in response) == said[PASSAGES_ONLY]

    def test_every_column_says_its_own(self, answers):
        groups, found = answers
        names = [column.name for column in COLUMNS]
        assert all(list(said) == names for said in found)
        by_column = {name: tuple(said[name] for said in found) for name in names}
        assert len(set(by_column.values())) == len(names)

    def test_full_attention_reads_what_fits(self, tiny, stack, answers):
        """From 512 tokens before the first statement of that distance, where that and
        the question are no longer than the base's context; else nothing."""
        groups, found = answers
        start = 0
        for group in groups:
            first = group[0].question
            for said in found[start : start + len(group)]:
                near = first.kind == "facts" and first.distance == DISTANCES[0]
                assert (said[FULL] is not None) == near
                assert (said[FULL_PASSAGES] is not None) == near
                assert (said[ORACLE] is None) == (first.kind == "unanswerable")
            start += len(group)
        tokens = lookup_recall._tail(stack.planted, tiny[1], groups[0])
        answerer = Answerer(*tiny, stack.planted.tokens, SavedAnswers(None))
        tail = tiny[1].decode(answerer.tail(tokens, ["Who?"]))
        for x in groups[0]:
            assert x.question.statements[0] in tail
        (first,) = max(
            (x.question.statements for x in groups[0]),
            key=lambda x: stack.planted.places[x[0]],
        )
        opening = len(tiny[1].decode(answerer.prompts.document([])))
        assert 512 <= tail.index(first) - opening <= 514
        reader = Reader(
            System(FULL, answerer._reader(FULL, "", [5]).system.model), tiny[0]
        )
        reader.read(answerer.tail(tokens, ["Who?"]))
        text = groups[0][0].question.text
        prompt = answerer.prompts.question(text)
        ids = reader.answer(prompt, ANSWER, answerer.prompts.stops)
        assert answerer.prompts.text(ids) == found[0][FULL]

    def test_the_window_is_that_of_the_whole_document(self, tiny, stack, answers):
        model, tokenizer = tiny
        prompts = ChatPrompts(tokenizer)
        system = System(WINDOW, window_model(model, model.allmem.window))
        reader = Reader(system, model)
        reader.read(prompts.document(stack.planted.tokens))
        groups, found = answers
        x = groups[0][0]
        prompt = prompts.question(x.lookups[FOUND].message(x.question.text))
        ids = reader.answer(prompt, ANSWER, prompts.stops)
        assert prompts.text(ids) == found[0][WINDOW_PASSAGES]


class TestReadingTheEnd:
    @pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
    @pytest.mark.parametrize("positions", ["bounded", "absolute"])
    @pytest.mark.parametrize("length", [30, 400, 431])
    def test_it_is_the_whole_reading(self, family, positions, length):
        allmem = {**TINY_ALLMEM, "positions": positions}
        family, base = settings(family)
        args = {**base, "model_type": "allmem", "base_model_type": family}
        mx.random.seed(0)
        model = Model(ModelArgs.from_dict({**args, "allmem": allmem}))
        system = System(WINDOW, window_model(model, model.allmem.window))
        tokens = random_tokens(1, length + 20)[0].tolist()
        whole, end = Reader(system, model), Reader(system, model)
        whole.read(tokens[:length])
        end.read_end(tokens[:length])
        logits = [r.step(tokens[length : length + 1]) for r in (end, whole)]
        assert_close("logits", *logits, 1e-5)
        rest = mx.array([tokens[length + 1 :]])
        logits = [system.model(rest, cache=r.cache) for r in (end, whole)]
        assert_close("logits", *logits, 1e-5)

    def test_it_reads_as_little_as_it_can(self, monkeypatch):
        """Whole chunks are left out, and not one more could be."""
        model = tiny_model()
        system = System(WINDOW, window_model(model, 48))
        tokens = random_tokens(1, 400)[0].tolist()
        read = []
        monkeypatch.setattr(Reader, "read", lambda self, part: read.append(part))
        Reader(system, model).read_end(tokens)
        first, last = read
        assert first == tokens[:32] and last == tokens[len(tokens) - len(last) :]
        assert (len(tokens) - len(last)) % 32 == 0
        assert 2 * 48 <= len(last) < 2 * 48 + 32


class TestSavedAnswers:
    def test_a_run_goes_on_where_one_was_stopped(
        self, tiny, stack, answers, tmp_path, monkeypatch
    ):
        model, tokenizer = tiny
        groups, expected = answers
        saved = []
        save = states.save

        def stop(state, path, model):
            save(state, path, model)
            saved.append(state.read)
            raise KeyboardInterrupt

        monkeypatch.setattr("allmem_mlx.evaluation.columns.SAVE_EVERY", 1000)
        monkeypatch.setattr(states, "save", stop)
        saved_answers = SavedAnswers(tmp_path / "states")
        arguments = (model, tokenizer, stack.planted, groups[:1])
        with pytest.raises(KeyboardInterrupt):
            lookup_recall.ask(*arguments, saved_answers)
        monkeypatch.setattr(states, "save", save)
        digest = states.digest(ChatPrompts(tokenizer).document(stack.planted.tokens))
        path = tmp_path / "states" / f"{digest}.allmem"
        assert states.load(path, model).read == saved[0] >= 1000

        starts = []
        unread = states.unread

        def unread_from(pieces, state):
            starts.append(state.read)
            return unread(pieces, state)

        monkeypatch.setattr(states, "unread", unread_from)
        found = lookup_recall.ask(*arguments, SavedAnswers(tmp_path / "states"))
        assert found == expected[: len(groups[0])]
        assert starts == saved
        assert states.load(path, model).tokens > len(stack.planted.tokens)

        # All is known now: nothing is read, whatever the last line looks like.
        with (tmp_path / "states" / "answers.jsonl").open("a") as file:
            file.write('{"key": "cut o')
        found = lookup_recall.ask(*arguments, SavedAnswers(tmp_path / "states"))
        assert found == expected[: len(groups[0])] and starts == saved
        lines = (tmp_path / "states" / "answers.jsonl").read_text().splitlines()
        assert lines[-1] == '{"key": "cut o'
        for line in lines[:-1]:
            assert set(json.loads(line)) == {"key", "said", "column", "message"}

    def test_other_questions_are_asked(self, tiny, stack, asked, tmp_path):
        answerer = Answerer(*tiny, stack.planted.tokens, SavedAnswers(tmp_path))
        (closed,) = (column for column in COLUMNS if column.name == CLOSED)
        answerer.answer(closed, "Who?")
        assert len(SavedAnswers(tmp_path).answers) == 1
        answerer.answer(closed, "Who is it?")
        answerer.answer(closed, "Who?")
        assert len(SavedAnswers(tmp_path).answers) == 2
        model = load_with_other_window(tiny[0])
        other = Answerer(model, tiny[1], stack.planted.tokens, SavedAnswers(tmp_path))
        other.answer(closed, "Who?")
        assert len(SavedAnswers(tmp_path).answers) == 3

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(AllMemError, match="answers cannot be saved in"):
            SavedAnswers(tmp_path / "file")


def load_with_other_window(model):
    other = copy(model)
    other.allmem = replace(model.allmem, window=1200)
    return other


class TestSummary:
    def test_counts(self, stack, answers):
        groups, found = answers
        summary = lookup_summary.summary(groups, found, stack.planted)
        questions = [x for group in groups for x in group]
        assert [x["question"] for x in summary["questions"]] == [
            x.question.text for x in questions
        ]
        assert [(row["set"], row["distance"]) for row in summary["rows"]] == [
            ("facts", 300),
            ("facts", 3000),
            ("two", 3000),
            ("unanswerable", None),
        ]
        for row in summary["rows"]:
            known = row["set"] != "unanswerable"
            assert row["questions"] == 1
            assert (row["hits"] is not None) == known
            assert ("invented" in row) == (not known)
            assert row["asked"][ALLMEM] == (row["set"] == "facts")
            assert row["asked"][ALLMEM_PASSAGES] == 1
            assert row["asked"][CLOSED] == (row["distance"] == 300)
            assert row["asked"][ORACLE] == known
        assert summary["claims"]["answers"] > 0
        assert summary["claims"]["violations"] == 0
        json.dumps(summary)
        printed = tables.lookups(summary)
        assert "Right answers" in printed and "Invented answers" in printed

    def test_right_answers_and_use(self, stack, answers):
        """An oracle that is always right, and AllMem on every other question."""
        groups, _ = answers
        facts = [group for group in groups if group[0].question.kind == "facts"]
        questions = [x.question for group in facts for x in group]
        said = [
            {
                column.name: question.answers[0]
                if column.name == ORACLE or (column.name == ALLMEM_PASSAGES and i % 2)
                else "42"
                for column in COLUMNS
            }
            for i, question in enumerate(questions)
        ]
        summary = lookup_summary.summary(facts, said, stack.planted)
        found = summary["sets"]["facts"]
        assert found["of the oracle"]["value"] == 0.5
        hits = [x.hit(FOUND) for group in facts for x in group]
        assert any(hits)
        used = sum(hit for i, hit in enumerate(hits) if i % 2) / sum(hits)
        assert found["use"]["value"] == pytest.approx(used)
        shares = found["share of right answers"]
        assert shares[ORACLE]["value"] == 1 and shares[CLOSED]["value"] == 0
        assert "is right 0.500" in tables.lookups(summary)

    def test_what_is_invented(self):
        assert lookup_summary.is_invented("It is Oslo.")
        assert not lookup_summary.is_invented("The text does not say.")
        assert not lookup_summary.is_invented(" \n")

    def test_a_claim_that_is_marked_wrongly(self, stack, answers, monkeypatch):
        from allmem_mlx.archive.citations import Claim

        groups, found = answers
        monkeypatch.setattr(
            lookup_summary, "check", lambda said, texts: [Claim("Zzyzx", (1,))]
        )
        claims = lookup_summary.summary(groups, found, stack.planted)["claims"]
        assert claims["violations"] == claims["answers"] == claims["claims"] > 0


def command(folder, *flags):
    return run("allmem_mlx.evaluate", "--model", folder, *flags)


@pytest.mark.slow
def test_command(folder, texts, tmp_path):
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    flags = ("--recall", "facts", "--passages", 2, "--text", *texts, "--samples", 1)
    more = ("--distances", 300, "--states", tmp_path / "states")
    result = command(folder, *flags, *more, "--json", out, "--plot", png)
    assert result.returncode == 0, result.stderr.decode()
    assert not result.stderr
    found = json.loads(out.read_text())
    assert found["measured"] == "recall" and found["passages"] == 2
    assert found["haystack"]["files"][0]["file"] == str(texts[0])
    assert found["haystack"]["other document"]["file"] == str(texts[1])
    (question,) = found["questions"]
    assert set(question["answers"]) == {column.name for column in COLUMNS}
    assert png.stat().st_size > 10_000
    assert len(list((tmp_path / "states").glob("*.allmem"))) == 1
    again = tmp_path / "again.json"
    assert command(folder, *flags, *more, "--json", again).returncode == 0
    assert json.loads(again.read_text())["questions"] == found["questions"]


@pytest.mark.slow
def test_search_only_at_a_large_size(folder, tmp_path):
    """Three texts, of which two are searched; nothing is read."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(made_up_text(i, 160_000))
    files = [tmp_path / f"{i}.txt" for i in range(3)]
    out = tmp_path / "out.json"
    flags = ("--recall", "facts", "latest", "unanswerable", "--passages", 4)
    more = ("--search-only", "--distances", 300_000, "--samples", 3, "--json", out)
    result = command(folder, *flags, "--text", *files, *more)
    assert result.returncode == 0, result.stderr.decode()
    found = json.loads(out.read_text())
    assert [(x["set"], x["distance"]) for x in found["rows"]] == [
        ("facts", 300_000),
        ("latest", 36_864),
    ]
    assert found["rows"][0]["hits"][FOUND] >= 2
    for row in found["rows"]:
        assert row["hits"][RIGHT] == row["questions"]
        assert row["hits"][DRAWN] == row["hits"][ELSEWHERE] == 0
        assert "right" not in row
    haystack = found["haystack"]
    assert haystack["tokens"] > 300_000 and haystack["passages"] > 500
    assert haystack["archive bytes"] > 300_000
    assert haystack["seconds of tokenising"] > 0 <= haystack["seconds of indexing"]
    assert 0 < found["ms per query"]["median"] <= found["ms per query"]["most"]
    assert "MB of archive" in result.stdout.decode()


def test_refusals(folder, texts, tmp_path):
    flags = ("--recall", "facts", "--passages", 2, "--samples", 1, "--distances", 300)
    one = command(folder, *flags, "--text", texts[0])
    assert_refused(one, 1, "give at least two texts")
    flags = ("--recall", "paraphrase", *flags[2:])
    near = command(folder, *flags, "--text", *texts)
    assert_refused(near, 1, "paraphrase: the statements are 12288 to 36864 tokens back")
