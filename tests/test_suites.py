"""Public suites: files, prompts and metrics as published."""

import hashlib
import json
import random
import sys
from dataclasses import replace

import pytest
from helpers import active_folder, made_up_text

from allmem_mlx import load
from allmem_mlx.cli.report import as_json
from allmem_mlx.errors import AllMemError
from allmem_mlx.evaluation import tables
from allmem_mlx.evaluation.lookups import TemporaryArchives
from allmem_mlx.evaluation.suites import (
    infinitebench,
    longbench,
    lveval,
    metrics,
    ruler,
    run,
)
from allmem_mlx.evaluation.suites.passages import Passages
from allmem_mlx.evaluation.suites.run import Prompts, neighbours
from allmem_mlx.evaluation.systems import (
    ALLMEM,
    ALLMEM_PASSAGES,
    FULL,
    NAMES,
    OTHER,
    PASSAGES_ONLY,
    WINDOW,
    WINDOW_PASSAGES,
    Reader,
)

# SHA-256 of the prompts in the publishers' files: LongBench/config/dataset2prompt.json,
# src/prompt.py (yarn_mistral_templates), config.py (DATASET_PROMPT).
PROMPTS = {
    ("longbench", "dureader"): "ae53329f51b17908",
    ("longbench", "hotpotqa"): "9ec4ae308865bd0c",
    ("longbench", "musique"): "9ec4ae308865bd0c",
    ("longbench", "narrativeqa"): "aada7ed24b06abac",
    ("longbench", "qmsum"): "dca23b678fe0183b",
    ("longbench", "triviaqa"): "00a802e6377e72fc",
    ("infinitebench", "longbook_qa_eng"): "6f24f4abaf415845",
    ("infinitebench", "longbook_qa_chn"): "121d4332c1cc5ee0",
    ("lveval", "hotpotwikiqa_mixup"): "c8b75e076f014e87",
    ("lveval", "loogle_SD_mixup"): "dea26bcf80f439ac",
    ("lveval", "loogle_CR_mixup"): "dea26bcf80f439ac",
    ("lveval", "loogle_MIR_mixup"): "dea26bcf80f439ac",
    ("lveval", "multifieldqa_en_mixup"): "dea26bcf80f439ac",
    ("lveval", "multifieldqa_zh_mixup"): "7427f4ffbc307206",
    ("lveval", "factrecall_en"): "95b795444370c103",
    ("lveval", "factrecall_zh"): "d71ee6028140eeb4",
    ("lveval", "cmrc_mixup"): "5017b8321e45769f",
    ("lveval", "lic_mixup"): "a546c25719e3ac10",
    ("lveval", "dureader_mixup"): "5017b8321e45769f",
}
QA = {"input": "Who?", "context": "A {context} of Ann.", "answers": ["Ann", "Ann Lee"]}


def test_prompts():
    ours = {("longbench", k): x.prompt for k, x in longbench.SUBSETS.items()}
    ours |= {("infinitebench", k): x.prompt for k, x in infinitebench.SUBSETS.items()}
    ours |= {("lveval", k): x.prompt for k, x in lveval.SUBSETS.items()}
    actual = {k: hashlib.sha256(x.encode()).hexdigest()[:16] for k, x in ours.items()}
    assert actual == PROMPTS


def test_lengths():
    """config/dataset2maxlen.json; DATA_NAME_TO_MAX_NEW_TOKENS; DATASET_MAXGEN;
    tokens_to_generate."""
    assert {name: x.max_tokens for name, x in longbench.SUBSETS.items()} == {
        "dureader": 128,
        "hotpotqa": 32,
        "musique": 32,
        "narrativeqa": 128,
        "qmsum": 512,
        "triviaqa": 32,
    }
    assert {x.max_tokens for x in infinitebench.SUBSETS.values()} == {40}
    assert {x.max_tokens for name, x in lveval.SUBSETS.items() if "fact" in name} == {
        16
    }
    assert {x.max_tokens for name, x in lveval.SUBSETS.items() if "mixup" in name} == {
        64
    }
    assert ruler.MAX_TOKENS == {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


class TestMetrics:
    """Each value is worked out by hand from the publisher's code."""

    @pytest.mark.parametrize(
        "said, truth, expected",
        [
            # [eiffel tower in paris] and [eiffel tower]: P = 2/4, R = 2/2.
            ("The Eiffel Tower, in Paris.", "eiffel tower", 2 / 3),
            # Bags: one of two counts. P = 1/2, R = 1/1.
            ("Paris Paris", "Paris", 2 / 3),
            # Articles are words: "an" goes, "Ann" stays; "U.S." becomes "us".
            ("an Ann of the U.S.", "Ann of us", 1.0),
            ("London", "Paris", 0.0),
            ("", "Paris", 0.0),
        ],
    )
    def test_qa_f1(self, said, truth, expected):
        assert metrics.qa_f1(said, truth) == pytest.approx(expected)

    def test_qa_f1_zh(self):
        """jieba: [香港 在 一九九七年 回归 中国 。], the full stop is dropped, and
        [一九九七年]: P = 1/5, R = 1."""
        score = metrics.qa_f1_zh("香港在一九九七年回归中国。", "一九九七年")
        assert score == pytest.approx(1 / 3)

    def test_character_f1_zh(self):
        """九 七 年 of 一 九 九 七 年: P = 1, R = 3/5."""
        score = metrics.character_f1_zh("九七年！", "一九九七年")
        assert score == pytest.approx(0.75)

    @pytest.mark.parametrize(
        "said, truth, expected",
        [
            # The longest common subsequence is a c: R = P = 2/4.
            ("a b c d", "a x c y", 0.5),
            # b a, of 2 and 3 words: P = 1, R = 2/3.
            ("b a", "b c a", 0.8),
            # Words are counted as a set: a of {a} and of {a b}: P = 1, R = 1/2.
            ("a a a", "a b", 2 / 3),
            # The package refuses what has no words; the publisher counts 0.
            ("", "a", 0.0),
            ("...", "a", 0.0),
        ],
    )
    def test_rouge_l(self, said, truth, expected):
        assert metrics.rouge_l(said, truth) == pytest.approx(expected, abs=1e-7)

    def test_rouge_l_zh(self):
        """[首都 是 北京] and [北京 是 中国 的 首都] have one word in order:
        P = 1/3, R = 1/5."""
        score = metrics.rouge_l_zh("首都是北京", "北京是中国的首都")
        assert score == pytest.approx(0.25, abs=1e-7)

    @pytest.mark.parametrize(
        "said, keywords, expected",
        [
            # One of two keywords; then F1 with [red fox of forest]: P = 1, R = 1/4.
            ("red", "red fox", 0.4),
            # No keyword. Without any, F1 counts: P = 1, R = 2/4.
            ("of the forest", "red fox", 0.0),
            ("of the forest", None, 2 / 3),
            ("of the forest", "", 2 / 3),
            # Words of the blacklist are no keywords: 0 of 2.
            ("of", "of red", 0.0),
            # A fifth is enough, a sixth is not.
            ("red", "red b c d e", 0.4),
            ("red", "red b c d e f", 0.0),
        ],
    )
    def test_keyword_f1(self, said, keywords, expected):
        score = lveval.keyword_f1(said, "a red fox of the forest", keywords)
        assert score == pytest.approx(expected)

    @pytest.mark.parametrize(
        "said, keywords, expected",
        [
            # The answer's own words [北京 是 中国 的 首都] are the keywords, of which
            # 是 and 的 are on the blacklist: 1 of 5 is too little.
            ("北京", None, 0.0),
            # 2 of 5 is enough; then 首都 是 北京 count: P = 1, R = 3/5.
            ("首都是北京", None, 0.75),
            # 1 of 1; then P = 1, R = 1/5.
            ("北京", "北京", 1 / 3),
        ],
    )
    def test_keyword_f1_zh(self, said, keywords, expected):
        score = lveval.keyword_f1_zh(said, "北京是中国的首都", keywords)
        assert score == pytest.approx(expected)

    def test_rouge_l_zh_blacklist(self):
        """[首都 北京] and [北京 中国 首都] have one word in order: P = 1/2, R = 1/3."""
        score = lveval.rouge_l_zh_blacklist("首都是北京", "北京是中国的首都", None)
        assert score == pytest.approx(0.4, abs=1e-7)

    def test_ruler(self):
        said, outputs = " They are 123\x07and ABC-9. ", ["123", "abc-9", "789"]
        assert metrics.string_match_all(said, outputs) == pytest.approx(2 / 3)
        assert metrics.string_match_part(said, outputs) == 1
        assert metrics.string_match_part("none", outputs) == 0
        assert metrics.string_match_all("a\x00b", ["a\nb"]) == 1

    def test_a_missing_package_is_named(self, monkeypatch):
        metrics.package.cache_clear()
        monkeypatch.setitem(sys.modules, "rouge", None)
        with pytest.raises(
            AllMemError, match=r"rouge: pip install 'allmem-mlx\[eval\]'"
        ):
            metrics.rouge_l("a", "a")


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def two(**record):
    return [record, {**record, "context": "another"}]


class TestFiles:
    def test_longbench(self, tmp_path):
        more = {"length": 5, "dataset": "x", "language": "en", "all_classes": None}
        for name in ("hotpotqa", "triviaqa", "hotpotqa_e", "trec"):
            records = two(**{**QA, "context": QA["context"] + name}, **more)
            write(tmp_path / "data" / f"{name}.jsonl", *records)
        found = run.load("longbench", [tmp_path])
        assert [x.subset for x in found] == ["hotpotqa"] * 2 + ["triviaqa"] * 2
        hotpotqa, triviaqa = found[0], found[2]
        assert "A {context} of Ann." in hotpotqa.prompt
        assert hotpotqa.prompt.endswith("Question: Who?\nAnswer:")
        assert hotpotqa.chat and not triviaqa.chat
        # The best of the answers: "Ann" gives 2/3, "Ann Lee" 1. Of triviaqa's only
        # the first line counts.
        assert hotpotqa.score("Lee, Ann") == 1
        assert hotpotqa.score("Ann\nQuestion: and so on") == pytest.approx(1 / 3)
        assert triviaqa.score("\nAnn\nQuestion: and so on") == 1
        limited = run.load("longbench", [tmp_path], limit=1)
        assert [x.subset for x in limited] == ["hotpotqa", "triviaqa"]

    def test_infinitebench(self, tmp_path):
        record = {"id": 0, "context": "Ann", "input": "Who?", "options": []}
        eng = two(**record, answer=["Bea", "Ann Lee"])
        write(tmp_path / "longbook_qa_eng.jsonl", *eng)
        chn = two(**record, answer=["一九九七年"])
        write(tmp_path / "longbook_qa_chn.jsonl", *chn)
        write(tmp_path / "passkey.jsonl", {})
        chinese, _, english, _ = run.load("infinitebench", [tmp_path])
        assert english.prompt.endswith("Ann\n\nQuestion: Who?\nAnswer:")
        assert english.score("Lee") == pytest.approx(2 / 3)
        assert chinese.score("九七年") == pytest.approx(0.75)
        assert not (english.chat or chinese.chat)

    def test_lveval(self, tmp_path):
        more = {"confusing_facts": ["x"], "length": 5}
        keys = two(**QA, **more, answer_keywords="Ann")
        write(tmp_path / "loogle_SD_mixup" / "loogle_SD_mixup_16k.jsonl", *keys)
        write(tmp_path / "factrecall_en_256k.jsonl", *two(**QA, answer_keywords="x"))
        write(tmp_path / "loogle_SD_mixup.jsonl", {})  # no length, no file of theirs
        fact, _, loogle, _ = run.load("lveval", [tmp_path])
        assert (fact.subset, loogle.subset) == (
            "factrecall_en_256k",
            "loogle_SD_mixup_16k",
        )
        # Only the first answer counts; keywords do not for factrecall.
        assert loogle.score("Ann Lee") == pytest.approx(2 / 3)
        assert loogle.score("Lee") == 0
        assert fact.score("Ann") == 1

    def test_ruler(self, tmp_path):
        record = {"index": 0, "input": "What? ", "outputs": ["1", "2"], "length": 9}
        other = {**record, "input": "And?", "answer_prefix": " They are"}
        write(tmp_path / "niah_multivalue" / "validation.jsonl", record, other)
        write(tmp_path / "qa_1.jsonl", record, other)
        part, _, *many = run.load("ruler", [tmp_path])
        part, many = (many[0], [part, _]) if part.subset != "qa_1" else (part, many)
        assert [x.prompt for x in many] == ["What? ", "And? They are"]
        assert [x.max_tokens for x in (*many, part)] == [128, 128, 32]
        assert (many[0].score("1"), part.score("1")) == (0.5, 1)

    @pytest.mark.parametrize(
        "content, message",
        [
            ("", "has no records"),
            ("\n \n", "has no records"),
            ("{", "line 1 is not JSON"),
            ("[1]", "line 1 is not a JSON object"),
            ('{"input": "x"}', "line 1 has no field 'context' of type str"),
            (json.dumps({**QA, "answers": "Ann"}), "'answers' of type list"),
            (json.dumps({**QA, "answers": []}), "'answers' is not a list of texts"),
            (json.dumps({**QA, "answers": [1]}), "'answers' is not a list of texts"),
            (json.dumps({**QA, "input": None}), "no field 'input' of type str"),
            (json.dumps(QA) + "\n" + json.dumps(QA)[:-1], "line 2 is not JSON"),
            (json.dumps(QA), "two records with different contexts"),
            (b"\xff\xfe", "is not UTF-8"),
            ("[" * 100_000, "line 1 is not JSON"),
        ],
    )
    def test_malformed(self, tmp_path, content, message):
        file = tmp_path / "musique.jsonl"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(AllMemError, match=message) as error:
            run.load("longbench", [file])
        assert "\n" not in str(error.value)

    def test_keywords_that_are_no_text(self, tmp_path):
        write(tmp_path / "cmrc_mixup_16k.jsonl", *two(**QA, answer_keywords=[1]))
        with pytest.raises(AllMemError, match="answer_keywords"):
            run.load("lveval", [tmp_path])

    def test_wrong_places(self, tmp_path):
        with pytest.raises(AllMemError, match="has no files of ruler"):
            run.load("ruler", [tmp_path])
        with pytest.raises(AllMemError, match="not named like a file of ruler"):
            run.load("ruler", [write(tmp_path / "x.jsonl", QA)])
        with pytest.raises(AllMemError, match="cannot be read"):
            run.load("longbench", [tmp_path / "musique.jsonl"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(active_folder(tmp_path_factory.mktemp("model"), chunk=64))


class TestRun:
    def test_the_neighbour_has_another_context(self, tmp_path):
        same = [QA, {**QA, "input": "Where?"}]
        write(tmp_path / "musique.jsonl", *same, *two(**QA)[1:])
        examples = run.load("longbench", [tmp_path])
        contexts = [x.context for x in neighbours(examples)]
        assert contexts == ["another", "another", QA["context"]]

    def test_a_long_prompt_loses_its_middle(self, tiny, tmp_path):
        """As in LongBench: the first half of the room, and the last."""
        tokenizer = tiny[1]
        text = "".join(chr(97 + i % 26) for i in range(500))
        write(tmp_path / "triviaqa.jsonl", *two(**{**QA, "context": text}))
        write(tmp_path / "musique.jsonl", *two(**{**QA, "context": text}))
        chat, _, raw, _ = run.load("longbench", [tmp_path])
        whole = tokenizer.encode(raw.prompt)
        assert Prompts(tokenizer).tokens(raw, None) == (whole, False)
        assert Prompts(tokenizer, len(whole)).tokens(raw, None) == (whole, False)
        cut = Prompts(tokenizer, 101).tokens(raw, None)
        assert cut == (whole[:50] + whole[-50:], True)
        room = 100 + raw.max_tokens
        assert Prompts(tokenizer).tokens(raw, room) == cut
        tokens, was_cut = Prompts(tokenizer, 101).tokens(chat, None)
        prompt = tokenizer.encode(chat.prompt)
        expected = tokenizer.decode(prompt[:50]) + tokenizer.decode(prompt[-50:])
        message = [{"role": "user", "content": expected}]
        rendered = tokenizer.apply_chat_template(message, add_generation_prompt=True)
        assert (list(tokens), was_cut) == (list(rendered), True)
        limit = 400
        tokens, was_cut = Prompts(tokenizer).tokens(chat, limit)
        assert was_cut and len(tokens) + chat.max_tokens <= limit

    def test_every_system_answers(self, tiny, tmp_path):
        model, tokenizer = tiny
        rng = random.Random(0)
        contexts = ["".join(rng.choices("abcdefgh ", k=500)) for _ in range(3)]
        records = [{**QA, "context": context} for context in contexts]
        write(tmp_path / "hotpotqa.jsonl", *records)
        examples = run.load("longbench", [tmp_path])
        model.base_config["max_position_embeddings"] = 500
        answers = run.run(model, tokenizer, examples)
        model.base_config["max_position_embeddings"] = 4096
        assert [x["system"] for x in answers] == list(NAMES) * 3
        for answer in answers:
            assert answer["cut"] == (answer["system"] == FULL)
            assert answer["expected"] == QA["answers"]
        said = [x["said"] for x in answers[:6]]
        assert len(set(said[1:5])) == 4  # each memory says something else

        (system,) = [s for s in run.systems(model) if s.name == OTHER]
        prompts = Prompts(tokenizer)
        lent, _ = prompts.tokens(examples[1], None)
        tokens, _ = prompts.tokens(examples[0], None)
        reader = Reader(system, model, lent)
        reader.read(tokens[:-1])
        expected = reader.answer(tokens[-1:], 32, prompts.stops)
        text = tokenizer.decode(expected, skip_special_tokens=True)
        assert answers[list(NAMES).index(OTHER)]["said"] == text

        summary = run.summary(answers)
        (row,) = summary["rows"]
        assert (row["subset"], row["examples"]) == ("hotpotqa", 3)
        assert row["cut"] == {name: 3 * (name == FULL) for name in NAMES}
        json.loads(as_json(summary))

    @pytest.mark.slow
    def test_passages(self, tmp_path):
        """After the context, or in its place; all else is the publisher's prompt."""
        model, tokenizer = load(active_folder(tmp_path, chunk=64, window=1200))
        contexts = [made_up_text(i, 1200) + "Ann was the one." for i in range(2)]
        records = [{**QA, "input": "Ann?", "context": x} for x in contexts]
        write(tmp_path / "hotpotqa.jsonl", *records)
        examples = run.load("longbench", [tmp_path / "hotpotqa.jsonl"])
        (example, *_) = examples
        with TemporaryArchives(tokenizer) as archives:
            finder = Passages(model, tokenizer, 1, archives)
            text = finder.text(example)
            found = finder.examples(example)
            empty = Passages(model, tokenizer, 1, archives)
            nothing = empty.examples(replace(example, question="?"))
            blank = empty.examples(replace(example, context="", prompt="Who?"))
        assert "Ann was the one." in text and text.startswith("[1]")
        assert text.count("[1]") == 1 and "[2]" not in text and contexts[1] not in text
        before, after = example.prompt.split(example.context)
        both = f"{before}{example.context}\n\n{text}{after}"
        only = f"{before}{text}{after}"
        assert {name: (who, x.prompt) for name, (who, x) in found.items()} == {
            ALLMEM_PASSAGES: (ALLMEM, both),
            WINDOW_PASSAGES: (WINDOW, both),
            PASSAGES_ONLY: (ALLMEM, only),
        }
        assert nothing[ALLMEM_PASSAGES][1].prompt == example.prompt
        assert nothing[PASSAGES_ONLY][1].prompt == before + after
        assert {x.prompt for _, x in blank.values()} == {"Who?"}
        length = len(tokenizer.encode(text + after))
        assert length + example.max_tokens <= model.allmem.window

        answers = run.run(model, tokenizer, examples, passages=1)
        named = {x["system"]: x for x in answers[: len(answers) // 2]}
        assert list(named) == [*NAMES, *found]
        prompts = Prompts(tokenizer)
        (system,) = [s for s in run.systems(model) if s.name == ALLMEM]
        tokens, _ = prompts.tokens(found[ALLMEM_PASSAGES][1], None)
        reader = Reader(system, model)
        reader.read(tokens[:-1])
        said = reader.answer(tokens[-1:], example.max_tokens, prompts.stops)
        expected = tokenizer.decode(said, skip_special_tokens=True)
        assert named[ALLMEM_PASSAGES]["said"] == expected
        assert named[PASSAGES_ONLY]["tokens"] < named[ALLMEM]["tokens"]

    def test_what_passages_are_looked_up_with(self, tmp_path):
        write(tmp_path / "musique.jsonl", *two(**QA))
        write(tmp_path / "cmrc_mixup_16k.jsonl", *two(**QA))
        book = {"context": "Ann", "input": "Who?", "answer": ["Ann"]}
        write(tmp_path / "longbook_qa_eng.jsonl", *two(**book))
        write(tmp_path / "qa_1.jsonl", *[{"input": x, "outputs": ["1"]} for x in "ab"])
        for suite, question in (
            ("longbench", "Who?"),
            ("lveval", "Who?"),
            ("infinitebench", "Who?"),
            ("ruler", ""),
        ):
            assert {x.question for x in run.load(suite, [tmp_path])} == {question}

    def test_scores_are_means_in_percent(self):
        answers = [
            {"subset": "x", "system": name, "cut": name == FULL, "score": score}
            for name in NAMES
            for score in (0.0, 0.5, 1.0)
        ]
        summary = run.summary(answers)
        (row,) = summary["rows"]
        assert row["score"][FULL] == {"value": 50.0, "low": 0.0, "high": 100.0}
        text = tables.suite(summary)
        assert "50.00*" in text and "50.00\n" in text and "cut in the middle" in text
