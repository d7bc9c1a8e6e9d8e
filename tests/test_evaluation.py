"""Evaluation: controls, likelihood, intervals and curves, on tiny models."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from family_cases import save_checkpoint
from helpers import (
    activate_memory,
    assert_close,
    feed,
    random_tokens,
    relative_error,
    state_arrays,
    tiny_model,
)
from matplotlib.figure import Figure
from matplotlib.image import imread

from allmem_mlx import load
from allmem_mlx.cli.plots import SIZE, _label
from allmem_mlx.cli.report import as_json
from allmem_mlx.config import UPDATES
from allmem_mlx.convert import convert
from allmem_mlx.evaluation import likelihood, plots, tables
from allmem_mlx.evaluation import systems as systems_module
from allmem_mlx.evaluation.intervals import Interval, ratio
from allmem_mlx.evaluation.systems import (
    ALLMEM,
    FULL,
    MATCHED,
    NAMES,
    NEVER,
    OTHER,
    WINDOW,
    Reader,
    blocks,
    systems,
)
from allmem_mlx.memory.layer import MemoryState
from allmem_mlx.variants import frozen_model, matched_window, window_model

LENGTH = 200  # several times window and chunk


def document(seed: int, length: int = LENGTH) -> list[int]:
    return random_tokens(1, length, seed=seed)[0].tolist()


def memory_weights(cache) -> list[mx.array]:
    return [w for c in cache for w in MemoryState.from_arrays(c.memory).weights]


def all_losses(model, tokens, other):
    return {s.name: likelihood.losses(s, model, tokens, other) for s in systems(model)}


class TestSystems:
    def test_the_columns(self):
        assert [system.name for system in systems(tiny_model())] == list(NAMES)

    def test_losses_are_those_of_the_logits_at_once(self):
        """Block by block, and each token's own."""
        model, tokens = tiny_model(), document(0)
        logits, _ = feed(model, mx.array([tokens]), [LENGTH])
        logs = np.array(logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True))
        expected = -logs[np.arange(LENGTH - 1), tokens[1:]]
        (system,) = [s for s in systems(model) if s.name == ALLMEM]
        actual = likelihood.losses(system, model, tokens)
        assert np.isnan(actual[0]) and len(actual) == LENGTH
        assert_close("losses", actual[1:], expected, 1e-5)

    def test_without_alpha_every_memory_is_the_window_exactly(self):
        model = tiny_model(trained=False)
        assert model.memory_is_off
        found = all_losses(model, document(0), document(1))
        for name in (ALLMEM, NEVER, OTHER):
            np.testing.assert_array_equal(found[name], found[WINDOW])
        assert relative_error(found[FULL][100:], found[WINDOW][100:]) > 1e-3

    def test_the_window_is_the_model_at_alpha_0(self):
        model, tokens = tiny_model(), mx.array([document(0)])
        logits, cache = feed(window_model(model, 48), tokens, [LENGTH])
        assert all(not layer.memory for layer in cache)
        assert not model.memory_is_off
        for layer in model.layers:
            layer.self_attn.alpha = mx.zeros_like(layer.self_attn.alpha)
        assert mx.array_equal(logits, feed(model, tokens, [LENGTH])[0])

    def test_a_larger_window_is_that_of_a_model_made_with_it(self):
        model, tokens = tiny_model(), mx.array([document(0)])
        wider = tiny_model(window=80)
        for layer in wider.layers:
            layer.self_attn.alpha = mx.zeros_like(layer.self_attn.alpha)
        expected, _ = feed(wider, tokens, [LENGTH])
        actual, _ = feed(window_model(model, 80), tokens, [LENGTH])
        assert mx.array_equal(actual, expected)

    def test_layers_without_memory_see_the_window_too(self):
        model = tiny_model(layers=[1], values="token")
        never = frozen_model(model)
        assert ["memory" in x.self_attn for x in never.layers] == [False, True]
        assert not model.memory_is_off
        tokens = mx.array([document(0)])
        without, _ = feed(window_model(model, 48), tokens, [LENGTH])
        model.layers[1].self_attn.alpha = mx.zeros((64,))
        logits, cache = feed(model, tokens, [LENGTH])
        assert mx.array_equal(logits, without)
        rings = sum(layer.ring.nbytes for layer in cache)
        memory = sum(x.nbytes for layer in cache for x in layer.memory)
        expected = 48 + math.ceil(memory / (rings / (48 + model.allmem.sinks)))
        assert matched_window(model) == expected

    @pytest.mark.parametrize("updates", UPDATES)
    def test_never_written_is_a_learning_rate_of_0(self, updates):
        model, tokens = tiny_model(updates=updates), mx.array([document(0)])
        frozen, cache = feed(frozen_model(model), tokens, [LENGTH])
        written = len(model.allmem.written)
        memories = [x.self_attn.memory for x in model.layers]
        initial = [w for x in memories for w in x.initial_weights[-written:]]
        for kept, w0 in zip(memory_weights(cache), initial, strict=True):
            assert mx.array_equal(kept[0], w0)

        written, _ = feed(model, tokens, [LENGTH])
        assert relative_error(written[:, 100:], frozen[:, 100:]) > 1e-3
        n = model.allmem.heads
        for layer in model.layers:
            bias = layer.self_attn.memory.rate_bias
            bias[: 3 * n] = -1e4  # softplus of it is 0
        still, _ = feed(model, tokens, [LENGTH])
        assert_close("logits", still, frozen, 1e-4)

    def test_freezing_leaves_the_model_as_it_was(self):
        model, tokens = tiny_model(), mx.array([document(0)])
        before, _ = feed(model, tokens, [LENGTH])
        systems(model)
        after, _ = feed(model, tokens, [LENGTH])
        assert mx.array_equal(before, after)

    @pytest.mark.parametrize("most", [40, 63])
    def test_how_many_logits_exist_at_once_changes_nothing(self, monkeypatch, most):
        """Blocks of 64 are then cut where no chunk ends."""
        model = tiny_model(chunk=16, window=64)
        own, other = document(0), document(1)
        expected = all_losses(model, own, other)
        monkeypatch.setattr(systems_module, "LOGITS", most * 128)
        found = all_losses(model, own, other)
        for name, losses in expected.items():
            assert_close(name, found[name][1:], losses[1:], 1e-5)

    @pytest.mark.parametrize("updates", UPDATES)
    def test_another_document_lends_its_memory_and_nothing_else(self, updates):
        """After each block: its fast weights, and the ring of the own document."""
        model = tiny_model(updates=updates)
        own, other = document(0, 192), document(1, 192)  # whole chunks
        by_name = {system.name: system for system in systems(model)}
        reader = Reader(by_name[OTHER], model, other)
        theirs = Reader(by_name[ALLMEM], model)
        never = Reader(by_name[NEVER], model)
        pairs = zip(blocks(own, model), blocks(other, model), strict=True)
        for i, (block, their_block) in enumerate(pairs):
            lent = None
            if i:
                lent = memory_weights(theirs.cache)
            reader.step(block)
            never.step(block)
            theirs.step(their_block)
            if lent is not None:
                used = memory_weights(reader.cache)
                assert all(map(mx.array_equal, used, lent))
        before = state_arrays(reader.cache)
        reader._borrow()
        after = state_arrays(reader.cache)
        changed = {
            path for path in after if not mx.array_equal(after[path], before[path])
        }
        lent = memory_weights(theirs.cache)
        assert all(map(mx.array_equal, memory_weights(reader.cache), lent))
        assert len(changed) == len(lent)
        first = reader.cache[0].ring, never.cache[0].ring
        # Below the first memory nothing differs.
        assert mx.array_equal(first[0].keys, first[1].keys)
        tails = [
            MemoryState.from_arrays(x.cache[0].memory).conv_state
            for x in (reader, never)
        ]
        assert mx.array_equal(*tails)
        found = all_losses(model, own, other)
        for name in (ALLMEM, NEVER):
            assert relative_error(found[OTHER][100:], found[name][100:]) > 1e-4

    def test_the_own_document_as_the_other_is_allmem(self):
        model, own = tiny_model(), document(0)
        found = all_losses(model, own, own)
        assert_close("losses", found[OTHER][1:], found[ALLMEM][1:], 1e-6)
        assert relative_error(found[NEVER][100:], found[ALLMEM][100:]) > 1e-4

    def test_a_shorter_other_document_lends_what_it_left(self):
        model, own = tiny_model(), document(0)
        (system,) = [s for s in systems(model) if s.borrows]
        losses = likelihood.losses(system, model, own, document(1, 70))
        assert np.isfinite(losses[1:]).all()
        with pytest.raises(ValueError, match="another document"):
            Reader(system, model)

    @pytest.mark.parametrize(
        "sizes",
        [{}, {"heads": 1, "head_dim": 20, "sinks": 9}, {"updates": "down", "fold": 32}],
        ids=str,
    )
    def test_the_matched_window_has_the_bytes_of_window_and_memory(self, sizes):
        model = tiny_model(**sizes)

        def nbytes(model):
            """At most: after each token of a chunk."""
            _, cache = feed(model, mx.array([document(0, 160)]), [160])
            found = []
            for _ in range(model.allmem.chunk):
                model(mx.array([[0]]), cache=cache)
                found.append(sum(layer.nbytes for layer in cache))
            return max(found)

        window = matched_window(model)
        wanted = nbytes(model)
        assert nbytes(window_model(model, window)) >= wanted
        assert nbytes(window_model(model, window - 1)) < wanted

    def test_full_attention_reads_no_further_than_it_was_made_for(self):
        model = tiny_model()
        model.base_config["max_position_embeddings"] = 150
        found = all_losses(model, document(0), document(1))
        assert {name: len(x) for name, x in found.items()} == {
            name: 150 if name == FULL else LENGTH for name in NAMES
        }

    @pytest.mark.parametrize("case", ["gemma3_text", "olmo2", "mistral, sliding"])
    def test_other_families(self, case, tmp_path):
        """Layers that slide in the base, that get their input without a norm, and a
        base that slides everywhere."""
        base = save_checkpoint(tmp_path / "base", case)
        options = {"window": 16, "sinks": 0 if "sliding" in case else 4}
        convert(base, tmp_path / "model", chunk=64, **options)
        model, _ = load(tmp_path / "model")
        found = all_losses(model, document(0), document(1))
        for name in (ALLMEM, NEVER, OTHER):
            np.testing.assert_array_equal(found[name], found[WINDOW])
        activate_memory(model)
        found = all_losses(model, document(0), document(1))
        for name in (WINDOW, NEVER, OTHER):
            assert relative_error(found[ALLMEM][100:], found[name][100:]) > 1e-5, name

    def test_few_logits_exist_at_once(self, monkeypatch):
        model = tiny_model()
        monkeypatch.setattr("allmem_mlx.evaluation.systems.LOGITS", 128 * 10)
        cut = list(blocks(document(0), model))
        assert sum(cut, []) == document(0)
        assert [len(x) for x in cut[:5]] == [8] * 5  # chunks of 32, in equal parts

    def test_answers_are_greedy_and_leave_the_state(self):
        model, tokens = tiny_model(), document(0, 100)
        for system in systems(model):
            reader = Reader(system, model, document(1, 100))
            reader.read(tokens)
            prompt = [5, 6, 7]
            said = reader.answer(prompt, 40, set())
            assert reader.answer(prompt, 40, set()) == said
            assert reader.answer(prompt, 40, {said[3]}) == said[: said.index(said[3])]
            if not system.borrows:
                whole = list(prompt)
                for _ in range(5):
                    logits = system.model(mx.array([[*tokens, *whole]]))
                    whole.append(int(logits[0, -1].argmax().item()))
                assert said[:5] == whole[3:]


class TestIntervals:
    def test_a_constant_ratio_has_no_width(self):
        found = ratio(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), 0)
        assert found == Interval(0.5, 0.5, 0.5)

    def test_two_documents(self):
        """Drawn twice each with probability 1/4: means 0, 1/2, 1/2, 1. So 2.5 % of
        the draws are below 0 nowhere, and the ends are 0 and 1."""
        found = ratio(np.array([0.0, 1.0]), np.ones(2), 0)
        assert found == Interval(0.5, 0.0, 1.0)

    def test_long_documents_weigh_more(self):
        """The last of four is drawn k times, k ~ Bin(4, 1/4): P(k = 4) = 0.4 %,
        P(k >= 3) = 5.1 %, P(k = 0) = 32 %. So the ends are those of k = 3, where it
        is 1 / (1 + 3 * 3), and of k = 0."""
        over, under = np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 3.0])
        assert ratio(over, under, 0) == Interval(0.5, 0.1, 1.0)

    def test_the_mean_of_many_is_as_wide_as_its_standard_error(self):
        x = np.random.default_rng(1).normal(3.0, 2.0, 400)
        found = ratio(x, np.ones(400), 0)
        error = 1.96 * x.std() / 400**0.5
        assert found.value == pytest.approx(x.mean())
        assert found.high - found.value == pytest.approx(error, rel=0.1)
        assert found.value - found.low == pytest.approx(error, rel=0.1)

    def test_the_seed_decides(self):
        x = np.random.default_rng(1).normal(size=10)
        assert ratio(x, np.ones(10), 0) == ratio(x, np.ones(10), 0)
        assert ratio(x, np.ones(10), 0) != ratio(x, np.ones(10), 1)

    def test_what_cannot_be_said(self):
        ones = np.ones(3)
        unknown = Interval(None, None, None)
        assert ratio(ones, -ones, 0) == ratio(ones, 0 * ones, 0) == unknown
        assert ratio(np.array([1.0, np.nan, 1.0]), ones, 0) == unknown
        assert ratio(np.ones(1), np.ones(1), 0) == Interval(1.0, None, None)
        # Half of the draws have nothing below the line.
        assert ratio(np.ones(2), np.array([3.0, -1.0]), 0) == Interval(1.0, None, None)
        assert str(unknown) == "n/a" and str(Interval(1.0, None, None)) == "1.000 [n/a]"


def made_up(full, window, allmem, never, other, matched, documents=4, length=64):
    """Losses of documents of the same mean everywhere."""
    values = dict(
        zip(NAMES, (full, window, allmem, never, other, matched), strict=True)
    )
    return {
        name: [np.array([np.nan, *[value] * (length - 1)])] * documents
        for name, value in values.items()
    }


class TestSummary:
    def test_buckets(self):
        assert likelihood.buckets(128, 1024) == [(128, 256), (256, 512), (512, 1024)]
        assert likelihood.buckets(100, 450) == [(100, 200), (200, 400), (400, 450)]

    def test_known_numbers(self):
        """A gap of 1.0, of which 0.4 is closed; of the 0.4, 0.1 is there without
        writing, 0.2 with another document, and 0.3 with the matched window."""
        found = made_up(3.0, 4.0, 3.6, 3.9, 3.8, 3.7)
        summary = likelihood.summary(found, window=16)
        assert [(x["from"], x["to"], x["tokens"]) for x in summary["buckets"]] == [
            (16, 32, 64),
            (32, 64, 128),
        ]
        assert summary["within window"]["tokens"] == 60
        assert summary["beyond window"]["tokens"] == 192
        assert summary["beyond window"]["nll"] == pytest.approx(
            dict(zip(NAMES, (3.0, 4.0, 3.6, 3.9, 3.8, 3.7), strict=True))
        )
        expected = {"value": 0.4, "low": 0.4, "high": 0.4}
        assert summary["gap recovered"] == pytest.approx(expected)
        assert summary["gain"] == pytest.approx(expected)
        shares = summary["share of the gain that vanishes"]
        assert {name: x["value"] for name, x in shares.items()} == pytest.approx(
            {NEVER: 0.75, OTHER: 0.5, MATCHED: 0.25}
        )
        assert summary["crossover"] == 16

    def test_only_positions_beyond_the_window_count(self):
        found = made_up(3.0, 4.0, 3.6, 3.9, 3.8, 3.7)
        for losses in found[ALLMEM]:
            losses[1:16] = 100.0
        assert likelihood.summary(found, window=16)["gap recovered"][
            "value"
        ] == pytest.approx(0.4)

    def test_no_gap_and_no_gain(self):
        summary = likelihood.summary(made_up(4, 4, 4, 4, 4, 4), window=16)
        nothing = {"value": None, "low": None, "high": None}
        assert summary["gap recovered"] == nothing
        assert set(map(str, summary["share of the gain that vanishes"].values())) == {
            str(nothing)
        }
        assert summary["gain"]["value"] == 0
        assert summary["crossover"] is None

    def test_the_crossover_is_where_the_memory_stays_ahead(self):
        found = made_up(3.0, 4.0, 3.6, 3.9, 3.8, 3.5)
        for i, losses in enumerate(found[MATCHED]):
            found[MATCHED][i] = losses = losses.copy()
            losses[32:] = 3.7
        assert likelihood.summary(found, window=8)["crossover"] == 32
        for i, losses in enumerate(found[MATCHED]):
            losses[32:] = 3.7 if i % 2 else 3.51  # ahead in the mean, by chance
        assert likelihood.summary(found, window=8)["crossover"] is None

    def test_what_was_not_read_has_no_mean(self):
        found = made_up(3.0, 4.0, 3.6, 3.9, 3.8, 3.7)
        found[FULL] = [losses[:40] for losses in found[FULL]]
        found[ALLMEM][1] = found[ALLMEM][1].copy()
        found[ALLMEM][1][50:] = np.nan
        summary = likelihood.summary(found, window=16)
        assert summary["buckets"][0]["nll"][FULL] == 3.0
        assert summary["buckets"][1]["nll"][FULL] is None
        assert summary["buckets"][1]["nll"][ALLMEM] is None
        assert summary["gap positions"] == [16, 40]
        assert summary["gap recovered"]["value"] == pytest.approx(0.4)
        assert summary["gain"]["value"] is None
        assert summary["documents"][0]["nll"][FULL] is None
        json.loads(as_json(summary))
        assert "n/a" in tables.likelihood(summary)


class TestPlot:
    @pytest.fixture
    def result(self):
        """What the command writes of a gap of 1.0, of which 0.4 is closed."""
        found = made_up(3.0, 4.0, 3.6, 3.9, 3.8, 3.7)
        summary = likelihood.summary(found, window=16)
        sizes = {"window": 16, "sinks": 4, "chunk": 8}
        return {
            "measured": "likelihood",
            "allmem": sizes,
            "matched window": 40,
        } | summary

    def test_curves(self, result):
        panel = plots.likelihood(result)
        assert panel.title == "AllMem recovers 40 % of what the window loses"
        assert set(panel.curves) == set(NAMES)
        assert panel.curves[ALLMEM] == [
            (pytest.approx(512**0.5), pytest.approx(0.4)),
            (pytest.approx(2048**0.5), pytest.approx(0.4)),
        ]

    def test_pictures_for_light_and_dark_pages(self, result, tmp_path):
        plots.plot(json.loads(as_json(result)), str(tmp_path / "out.png"))
        light, dark = (imread(tmp_path / x) for x in ("out.png", "out-dark.png"))
        assert light.shape == dark.shape == (960, 1760, 4)
        assert light[0, 0].min() == 1 and dark[0, 0, :3].max() < 0.1
        for image in (light, dark):
            red, _, blue = np.round(255 * image[..., :3]).astype(int).transpose(2, 0, 1)
            assert (abs(red - blue) > 50).sum() > 1_000  # text and frame are grey

    def test_names_beside_lines_do_not_overlap(self):
        ax = Figure().add_subplot()
        ends = [
            (name, (1.0, y), "red")
            for name, y in zip("abcd", (2, 0, 2, 1.99), strict=True)
        ]
        ax.plot([0, 1], [0, 2])
        _label(ax, ends)
        heights = sorted(x.xyann[1] for x in ax.texts)
        assert [x.get_text() for x in ax.texts] == ["b", "d", "c", "a"]
        assert min(np.diff(heights)) * ax.get_window_extent().height > SIZE / 72 * 100
