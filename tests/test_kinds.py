"""One family of each kind: layers with a state of their own, experts, shared keys. What
was read is a file, memory is flat, and mlx-lm's own commands run."""

import json

import mlx.core as mx
import pytest
from family_cases import save_checkpoint
from helpers import activate_memory, random_tokens
from mlx_lm.utils import save_model
from processes import run
from test_server import ask, message, serving
from test_state import (
    TOKENS,
    assert_a_fork_is_another,
    assert_goes_on,
    assert_same,
    endless,
    read,
    say,
)

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.cache import recurrent_caches
from allmem_mlx.convert import convert
from allmem_mlx.streaming import reading

KINDS = {
    "gated DeltaNet": "qwen3_5",
    "Mamba-2": "granitemoehybrid",
    "Mamba-2 beside attention": "falcon_h1",
    "Mamba-2 between MLPs": "nemotron_h",
    "convolution": "lfm2",
    "experts": "qwen3_moe",
    "learned sinks": "gpt_oss",
    "shared keys": "gemma4_text",
    "shared keys, called otherwise": "gemma3n_text",
}
# Of kinds that differ in how a layer is called, one is enough.
ALIKE = {
    "Mamba-2 beside attention",
    "Mamba-2 between MLPs",
    "shared keys, called otherwise",
}
SIZES = {"window": 32, "sinks": 4, "chunk": 32, "fold": 8}  # a block is a chunk


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A converted folder with an active memory."""
    path = tmp_path_factory.mktemp("kind")
    save_checkpoint(path / "base", KINDS[kind])
    convert(path / "base", path / "model", **SIZES)
    model, _ = load(path / "model")
    mx.random.seed(0)
    activate_memory(model)
    save_model(path / "model", model)
    return path / "model"


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def test_going_on_in_another_process_is_going_on(folder, tmp_path):
    """At 10 places in a document and in what is generated after it; bit for bit."""
    places = [16, 17, 31, 32, 64, 97, 119, 120, 123, 131]
    assert_goes_on(folder, tmp_path, places, 120, 20)


def test_a_fork_is_another(loaded):
    assert_a_fork_is_another(loaded, 100)


def test_undo(loaded):
    session = endless(*loaded, snapshots=True)
    read(session, TOKENS[:100])
    before = session.state.fork()
    session.begin_turn()
    say(session, 10, TOKENS[100:120])
    session.undo()
    assert_same(session.state, before)


def test_a_recurrent_state_is_part_of_the_file(loaded, tmp_path):
    """What a state's recurrent layers hold changes what follows, and is saved."""
    model, tokenizer = loaded
    session = endless(model, tokenizer)
    read(session, TOKENS[:100])
    states.save(session.state, tmp_path / "file", model)
    if not recurrent_caches(session.state.cache):
        assert not any("recurrent" in name for name in session.state.arrays)
        return
    opened = states.load(tmp_path / "file", model)
    expected = say(endless(model, tokenizer, opened.fork()), 5)
    for layer in recurrent_caches(opened.cache):
        layer.cache = [mx.zeros_like(x) for x in layer.cache]
    changed = say(endless(model, tokenizer, opened), 5)
    assert not mx.array_equal(changed[0][1], expected[0][1])


@pytest.mark.slow
def test_memory_is_flat(kind, loaded):
    """The peak while 32,768 tokens are read is that of 2,048."""
    if kind in ALIKE:
        pytest.skip("of a kind that is tried")
    model, _ = loaded
    peaks = []
    for length in (2048, 32768):
        cache = model.make_cache()
        mx.reset_peak_memory()
        with reading(model) as read_block:
            for i in range(length // 64):
                block = random_tokens(1, 64, seed=i)[0].tolist()
                read_block(block, cache)
        peaks.append(mx.get_peak_memory())
    assert peaks[1] < 1.02 * peaks[0] + 2**16


@pytest.mark.slow
def test_stock_commands(folder, tmp_path):
    """generate, benchmark, server, convert -q and lora, without a line of ours."""

    def mlx_lm(command, *flags, path=folder):
        result = run("mlx_lm", command, "--model", path, "--trust-remote-code", *flags)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    prompt = ["--prompt", "abc " * 40, "-m", "4"]
    assert "Generation: 4 tokens" in mlx_lm("generate", *prompt)
    flags = ["-p", "64", "-g", "4", "-n", "1"]
    assert "Averages: prompt_tps=" in mlx_lm("benchmark", *flags)

    new = tmp_path / "new"
    mlx_lm("convert", "--mlx-path", new, "-q", "--q-group-size", "32", "--q-bits", "8")
    assert "Generation: 4 tokens" in mlx_lm("generate", *prompt, path=new)

    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "valid"):
        lines = [json.dumps({"text": f"a b c {i} d e f"}) for i in range(4)]
        (data / f"{part}.jsonl").write_text("\n".join(lines))
    flags = ["--train", "--data", data, "--iters", "2", "--batch-size", "1"]
    adapter = ["--adapter-path", tmp_path / "adapter"]
    mlx_lm("lora", *flags, "--num-layers", "2", "--val-batches", "1", *adapter)
    mlx_lm("generate", *prompt, *adapter)

    with serving(folder) as (address,):
        *_, usage = ask(address, [message("a b c d e f " * 10)])
        assert usage["completion_tokens"] > 0
