"""Speed beside window + sinks and full attention; long readings, watched."""

import json
from dataclasses import asdict
from itertools import islice

import mlx.core as mx
import pytest
from helpers import (
    TINY_ALLMEM,
    active_folder,
    assert_close,
    assert_refused,
    assert_same_state,
    feed,
    random_tokens,
    tiny_model,
)
from matplotlib.image import imread
from processes import run

from allmem_mlx.benchmarking import fluency, results, soak, speed
from allmem_mlx.cache import fork, tokens_read
from allmem_mlx.cli.report import as_json
from allmem_mlx.config import UPDATES
from allmem_mlx.evaluation.systems import ALLMEM, FULL, WINDOW
from allmem_mlx.memory.layer import MemoryState
from allmem_mlx.variants import base_model, window_model

CHUNK = TINY_ALLMEM["chunk"]
SHORT = """
from allmem_mlx.benchmarking import fluency
from allmem_mlx.benchmark import main
fluency.CONTINUED = 16  # tokens
main()
"""


def some_tokens(count: int) -> list[int]:
    return random_tokens(1, count)[0].tolist()


class TestSpeed:
    def test_reading_goes_on_as_if_nothing_was_decoded(self):
        model, tokens = tiny_model(), some_tokens(200)
        compared = speed.runners(model)
        found = list(speed.measure(compared, tokens, [70, 200], 40))
        assert [(x.name, x.length) for x in found] == [
            (name, length) for length in (70, 200) for name in (ALLMEM, WINDOW, FULL)
        ]
        _, cache = feed(model, mx.array([tokens]), [CHUNK] * 6 + [8])
        assert_same_state(compared[0].cache, cache, 1e-6)
        own, window, full = compared
        assert window.cache[0].ring.offset == full.cache[0].offset == 200
        for x in found:
            assert x.prefill > 0 and len(x.latencies) == 40 and min(x.latencies) > 0

    @pytest.mark.slow
    def test_a_peak_is_that_of_one_model(self):
        """Full attention needs more with every token, the others do not."""
        model = tiny_model(window=64, chunk=32)
        compared = speed.runners(model)
        found = list(speed.measure(compared, some_tokens(8192), [1024, 8192], 4))
        peaks = {(x.name, x.length): x.peak for x in found}
        states = {(x.name, x.length): x.state for x in found}
        grown = states[FULL, 8192] - states[FULL, 1024]
        assert peaks[FULL, 8192] - peaks[FULL, 1024] > 0.9 * grown
        for name in (ALLMEM, WINDOW):
            assert states[name, 8192] == states[name, 1024]
            assert peaks[name, 8192] - peaks[name, 1024] < 0.05 * grown

    def test_what_a_token_has_to_do(self):
        model = tiny_model()  # chunk 32, fold 8
        kinds = speed.kinds(model, 30, 12)
        assert kinds == ["plain"] * 2 + ["chunk"] + ["plain"] * 7 + ["fold"] + ["plain"]

    def test_percentiles(self):
        seconds = [0.001] * 98 + [0.003, 0.005]
        due = ["plain"] * 98 + ["fold", "chunk"]
        found = speed.latency(seconds, due)
        assert found["p50"] == found["p95"] == pytest.approx(1)
        assert 3 <= found["p99"] < found["max"] == pytest.approx(5)
        assert (found["fold"], found["chunk"]) == (pytest.approx(3), pytest.approx(5))
        assert speed.latency([1.0], ["plain"])["chunk"] is None

    def test_the_best_of_trials_and_its_ratios(self):
        def one(name, length, prefill, latency, state):
            return speed.Measured(name, length, prefill, [latency] * 4, 100, state)

        trials = [
            [
                one(ALLMEM, 10, 2.0, 0.1, 5),
                one(FULL, 10, 1.0, 0.05, 10),
                one(ALLMEM, 20, 4.2, 0.2, 5),
                one(FULL, 20, 9.0, 0.3, 20),
            ],
            [
                one(ALLMEM, 10, 3.0, 0.2, 5),
                one(FULL, 10, 1.0, 0.05, 10),
                one(ALLMEM, 20, 4.0, 0.1, 5),
                one(FULL, 20, 8.0, 0.2, 20),
            ],
        ]
        rows = results.summarize(tiny_model(), trials)
        assert [row["prefill"] for row in rows] == [2.0, 1.0, 4.0, 8.0]
        short, long = results.ratios(rows)
        assert short["others"][FULL]["prefill"] == 0.5
        assert long["others"][FULL]["prefill"] == 2.0
        assert long["others"][FULL]["decode"] == pytest.approx(2.0)
        assert long["others"][FULL]["state"] == 4.0
        assert long["decode speed beside the shortest"] == pytest.approx(1.0)
        assert long["prefill beside half the length"] == 2.0


def soaked(model, tokens: list[int]) -> list[soak.Mark]:
    return list(soak.soak(model, model.make_cache(), iter(tokens), len(tokens)))


class TestSoak:
    def test_no_mark_is_of_a_few_tokens(self):
        model, total = tiny_model(), 40 * CHUNK + 1
        marks = soaked(model, some_tokens(total))
        expected = [*range(4 * CHUNK, 37 * CHUNK, 4 * CHUNK), total]
        assert [mark.position for mark in marks] == expected

    @pytest.mark.parametrize("updates", UPDATES)
    def test_what_is_seen(self, updates):
        model, tokens = tiny_model(updates=updates), some_tokens(40 * CHUNK)
        marks = soaked(model, tokens)
        assert [mark.position for mark in marks] == list(
            range(4 * CHUNK, len(tokens) + 1, 4 * CHUNK)
        )
        logits, cache = feed(model, mx.array([tokens]), [CHUNK] * 40)
        logs = logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True)
        last = range(39 * CHUNK, 40 * CHUNK - 1)
        nll = -sum(logs[i, tokens[i + 1]].item() for i in last) / len(last)
        assert_close("NLL", marks[-1].nll, nll, 1e-4)
        states = [MemoryState.from_arrays(layer.memory) for layer in cache]
        momentum = max(
            mx.linalg.norm(m[0, head]).item()
            for state in states
            for m in state.momentum
            for head in range(model.allmem.heads)
        )
        assert_close("momentum", marks[-1].momentum, momentum, 1e-4)
        c = model.allmem
        for mark in marks:
            assert mark.finite and mark.tps > 0
            assert mark.activation > 0 and mark.row >= 1 - 1e-3
            assert 0 < mark.turned < c.sinks + c.window + c.chunk
        assert "rope" in model.layers[0].self_attn  # the model is as it was

    def test_every_write_of_a_block_is_seen(self):
        model = tiny_model(chunk=16, window=64)
        assert model.allmem.block == 64
        tokens = some_tokens(8 * 64)
        (*_, last) = soaked(model, tokens)
        cache, momenta, updates = model.make_cache(), [0.0], [0.0]
        for start in range(0, len(tokens), 16):
            before = fork(cache)
            model(mx.array([tokens[start : start + 16]]), cache=cache)
            if start < 7 * 64:  # the last block is looked at
                continue
            for old, new in zip(before, cache, strict=True):
                a, b = (MemoryState.from_arrays(x.memory) for x in (old, new))
                for head in range(model.allmem.heads):
                    for m, w, u in zip(b.momentum, b.weights, a.weights, strict=True):
                        momenta.append(mx.linalg.norm(m[0, head]).item())
                        updates.append(mx.linalg.norm((w - u)[0, head]).item())
        assert_close("momentum", last.momentum, max(momenta), 1e-4)
        assert_close("update", last.update, max(updates), 1e-4)
        c = model.allmem
        assert last.turned == c.sinks + c.window + c.chunk - 1

    @pytest.mark.parametrize("total", [705, 706, 719, 721])
    def test_a_last_part_of_any_length(self, total):
        model = tiny_model(chunk=16, window=64)
        (mark,) = soaked(model, some_tokens(total))[-1:]
        assert mark.position == total and mark.finite

    def test_without_a_memory(self):
        model = tiny_model(trained=False, chunk=16, window=64)
        (*_, mark) = soaked(model, some_tokens(600))
        assert mark.finite and mark.nll > 0
        assert (mark.row, mark.momentum, mark.update) == (0, 0, 0)

    def test_what_is_not_a_number_is_told(self):
        model = tiny_model()
        alpha = model.layers[1].self_attn.alpha
        model.layers[1].self_attn.alpha = alpha * float("nan")
        marks = soaked(model, some_tokens(8 * CHUNK))
        assert not any(mark.finite for mark in marks)
        assert not soak.summarize(model, marks)["finite"]
        written = json.loads(as_json({"marks": [asdict(mark) for mark in marks]}))
        assert written["marks"][0]["nll"] is None

    def test_a_text_comes_again_with_edits(self):
        paragraphs = [[1, 2, 3], [4, 5], [6] * 95]
        found = list(islice(soak.edited(paragraphs, seed=0), 400))
        assert found[:100] == [1, 2, 3, 4, 5] + [6] * 95
        assert found[100:200] != found[:100] and set(found) <= set(range(1, 7))
        replaced = sum(abs(found.count(x) - 4) for x in range(1, 6))
        assert replaced <= 20

    @pytest.mark.slow
    def test_a_hundred_thousand_tokens(self):
        """Norms stay within bounds, and memory is flat."""
        model = tiny_model(window=128, chunk=128, fold=64)
        marks = soaked(model, some_tokens(100_000))
        c = model.allmem
        assert marks[-1].position == 100_000 and all(mark.finite for mark in marks)
        for mark in marks:
            # ||M|| <= Theta / (1 - mu), and ||W - U|| = ||M||
            assert mark.update <= mark.momentum * 2 + 2 * c.max_update_norm
            assert mark.momentum <= c.max_update_norm * 20
            assert mark.turned < c.sinks + c.window + c.chunk
        # The scheduler may move so small a peak by a buffer; one number kept of every
        # token would be 380 kB more.
        assert marks[-1].peak <= 1.05 * marks[0].peak


class TestFluency:
    def test_repetition(self):
        assert fluency.repeated([list(range(20))]) == 0
        assert fluency.repeated([[1, 2] * 10]) == pytest.approx(15 / 17)
        # Each text is its own; 17 and 1 of them.
        assert fluency.repeated([[1, 2] * 10, [1, 2, 1, 2]]) == pytest.approx(15 / 18)
        assert fluency.repeated([[], [1, 2, 3]]) == 0

    def test_a_page_goes_on_as_each_has_read_it(self, monkeypatch):
        monkeypatch.setattr(fluency, "PAGE", 40)
        monkeypatch.setattr(fluency, "CONTINUED", 6)
        model, tokens = tiny_model(), some_tokens(50 + 40 * fluency.PAGES)
        _, cache = feed(model, mx.array([tokens[:50]]), [CHUNK, 50 - CHUNK])
        rest = iter(tokens[50:])
        found = list(fluency.continuations(model, cache, rest, set()))
        assert len(found) == fluency.PAGES * 3 * 5
        assert tokens_read(cache) == 50 + fluency.PAGES * 40
        window = window_model(model, model.allmem.window)
        models = {ALLMEM: model, WINDOW: window, FULL: base_model(model)}
        for each in found[: 2 * 15 : 5]:
            end = 90 + 40 * each.page
            read = tokens[0 if each.writer == ALLMEM else end - 40 : end]
            of, said = models[each.writer], each.tokens
            logits = of(mx.array([read + said[:-1]]))[0, len(read) - 1 :]
            assert each.temperature == 0 and said == logits.argmax(-1).tolist()
        # Sampled ones are each their own.
        sampled = [tuple(each.tokens) for each in found[1:5]]
        assert len({*sampled, tuple(found[0].tokens)}) == 5
        stops = {found[0].tokens[3]}
        _, cache = feed(model, mx.array([tokens[:50]]), [CHUNK, 50 - CHUNK])
        again = next(fluency.continuations(model, cache, iter(tokens[50:]), stops))
        assert again.tokens == found[0].tokens[: found[0].tokens.index(*stops)]

    def test_summary(self):
        circle, straight = [1, 2] * 10, list(range(20))
        found = [
            fluency.Continuation(page, writer, 0.7, text)
            for page, writer, text in (
                *((0, ALLMEM, circle), (0, ALLMEM, straight), (1, ALLMEM, straight)),
                *((0, WINDOW, straight), (1, WINDOW, straight)),
                *((0, FULL, straight), (1, FULL, circle)),
            )
        ]
        own, window, full = fluency.summarize(found)[3:]
        assert [row["writer"] for row in (own, window, full)] == [ALLMEM, WINDOW, FULL]
        assert own["repeated"] == pytest.approx(15 / 51)
        assert own["above"]["value"] == pytest.approx((15 / 34 - 15 / 17) / 2)
        assert own["above"]["low"] == pytest.approx(-15 / 17)
        assert own["above"]["high"] == pytest.approx(15 / 34)
        assert [row["circles"] for row in (own, window, full)] == [1, 0, 1]
        assert "1 of 3" in fluency.describe([own])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return active_folder(tmp_path_factory.mktemp("benchmark"), chunk=32, fold=8)


class TestCommand:
    @pytest.mark.slow
    def test_speed(self, folder, tmp_path):
        out, png = tmp_path / "out.json", tmp_path / "out.png"
        result = run(
            "allmem_mlx.benchmark",
            *("--model", folder, "-p", 64, 128, "-g", 40, "-n", 2),
            *("--json", out, "--plot", png),
        )
        assert result.returncode == 0, result.stderr
        said = result.stdout.decode()
        for line in (
            "Trial 2:  128 tokens, full attention: prompt_tps=",
            "Averages: 64 tokens, AllMem: prompt_tps=",
            "128 tokens, window + sinks / AllMem: prefill ",
            "The memory's share of: reading, time ",
            "State file: ",
        ):
            assert line in said, line
        found = json.loads(out.read_text())
        assert len(found["trials"]) == 2 and len(found["best"]) == 6
        assert {"fold", "chunk", "p99", "max"} <= found["best"][0]["latency"].keys()
        image = imread(png)
        assert image.shape[1] > 1000 and image.std() > 0.05
        results.plot(found, str(tmp_path / "again.png"))  # the JSON is enough
        for name in ("{}.png", "{}-dark.png"):
            again, first = (tmp_path / name.format(x) for x in ("again", "out"))
            assert again.read_bytes() == first.read_bytes()

    def test_alone(self, folder, tmp_path):
        png = tmp_path / "out.png"
        result = run(
            "allmem_mlx.benchmark",
            *("--model", folder, "--beside", "-p", 64, "-g", 4, "-n", 1),
            *("--plot", png),
        )
        assert result.returncode == 0, result.stderr
        assert b"Averages: 64 tokens, AllMem: " in result.stdout
        for absent in (b"window + sinks", b"full attention", b"share of"):
            assert absent not in result.stdout
        assert imread(png).std() > 0.05

    @pytest.mark.slow
    def test_soak(self, folder, tmp_path):
        text = tmp_path / "text.txt"
        text.write_text("a b c\n\nd e f g\n\n" * 20)
        out, png = tmp_path / "out.json", tmp_path / "out.png"
        result = run(
            *("-c", SHORT, "--model", folder, "--soak", 1024, "--text", text),
            *("--json", out, "--plot", png),
        )
        assert result.returncode == 0, result.stderr
        assert b"1,024 tokens, NLL " in result.stdout
        assert b"finite: True" in result.stdout
        found = json.loads(out.read_text())
        assert found["marks"][-1]["position"] == 1024
        assert b"in circles" in result.stdout
        fluent = found["fluency"]
        assert len(fluent["continuations"]) == 12 * 3 * 5
        assert all(0 <= row["repeated"] <= 1 for row in fluent["repeated"])
        assert imread(png).std() > 0.05

    @pytest.mark.parametrize(
        "flags, code, words",
        [
            (["-n", "0"], 2, "at least 1"),
            (["--soak", "10"], 2, "--soak must be at least 256"),
            (["--text", "x.txt"], 2, "--text goes with --soak"),
            (["--json", "no/where.json"], 2, "folder of 'no/where.json'"),
            (["--soak", "1024", "--text", "missing.txt"], 1, "missing.txt"),
        ],
    )
    def test_refusals(self, folder, flags, code, words):
        assert_refused(
            run("allmem_mlx.benchmark", "--model", folder, *flags), code, words
        )
