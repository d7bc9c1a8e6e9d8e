"""What was read is a file: the same after it was saved and opened, or refused."""

import os
import random
import resource
import struct

import mlx.core as mx
import numpy as np
import pytest
from helpers import (
    active_folder,
    assert_close,
    assert_same_arrays,
    random_tokens,
    slow_beyond,
    tiny_model,
)
from processes import run
from safetensors import safe_open

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.errors import AllMemError
from allmem_mlx.session import Session
from allmem_mlx.snapshots import CHUNKS, TURNS

LENGTH, GENERATED = 700, 100
SETTINGS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "several folds": {"dtype": "float32", "fold": 16},
    "down": {"dtype": "float32", "fold": 16, "updates": "down"},
    "quantised": {"dtype": "float32", "quantize": True, "q_group_size": 32},
}
TOKENS = random_tokens(1, LENGTH, vocab=120)[0].tolist()


@pytest.fixture(scope="module", params=slow_beyond(1, SETTINGS))
def folder(request, tmp_path_factory):
    path, settings = tmp_path_factory.mktemp(request.param), SETTINGS[request.param]
    return active_folder(path, chunk=64, **settings)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """With several folds in a chunk."""
    return load(active_folder(tmp_path_factory.mktemp("tiny"), chunk=64, fold=16))


def endless(model, tokenizer, state=None, **options) -> Session:
    """A session in which no token ends a response."""
    tokenizer._eos_token_ids = set()
    return Session(model, tokenizer, state, **options)


def read(session: Session, tokens: list[int]) -> None:
    for _ in session.read([tokens]):
        pass


def say(session: Session, count: int, prompt=()) -> list[tuple[int, mx.array]]:
    responses = session.generate(prompt, max_tokens=count)
    return [(response.token, response.logprobs) for response in responses]


def assert_same_words(actual, expected) -> None:
    assert [token for token, _ in actual] == [token for token, _ in expected]
    for (_, one), (_, other) in zip(actual, expected, strict=True):
        assert mx.array_equal(one, other)


def assert_same(actual: states.State, expected: states.State) -> None:
    """Bit for bit."""
    assert_same_arrays(actual.arrays, expected.arrays)
    for part in ("read", "waiting", "digest", "recent", "notes"):
        assert getattr(actual, part) == getattr(expected, part), part


# Run in a process of its own, for each state: goes on to the end, and saves what comes.
GO_ON = """
import json, sys
import allmem_mlx, mlx.core as mx
from allmem_mlx import load, state as states
sys.path.insert(0, "tests")
from test_state import TOKENS, endless, read, say
folder, length, generated, *files = sys.argv[1:]
model, tokenizer = load(folder)
for file in files:
    session = endless(model, tokenizer, states.load(file, model))
    said = session.state.tokens - int(length)
    if said <= 0:
        read(session, TOKENS[session.state.tokens:int(length)])
    words = say(session, int(generated) - max(said, 0))
    tokens = mx.array([token for token, _ in words])
    logprobs = mx.stack([x for _, x in words])
    arrays = session.state.arrays | {"said": tokens, "each": logprobs}
    mx.save_safetensors(file + ".out.safetensors", arrays, {"d": session.state.digest})
"""


def test_going_on_in_another_process_is_going_on(folder, tmp_path):
    """At 20 places: anywhere in the document (in chunks, in blocks, at their ends) and
    in what is generated after it. All bits of all that follows are the same."""
    drawn = random.Random(0).sample(range(1, LENGTH + GENERATED), 16)
    assert_goes_on(folder, tmp_path, [64, 128, 65, 127, *drawn], LENGTH, GENERATED)


def assert_goes_on(folder, tmp_path, places, length, generated):
    """From states saved at ``places``, in a process of its own."""
    model, tokenizer = load(folder)
    never_stopped = endless(model, tokenizer)
    read(never_stopped, TOKENS[:length])
    expected = say(never_stopped, generated)
    assert len({token for token, _ in expected}) > 1

    files = []
    for place in places:
        session = endless(model, tokenizer)
        read(session, TOKENS[: min(place, length)])
        if place > length:
            say(session, place - length)
        files.append(str(tmp_path / f"{place}.allmem"))
        states.save(session.state, files[-1], model)
        assert session.state.tokens == place

    result = run("-c", GO_ON, folder, str(length), str(generated), *files)
    assert result.returncode == 0, result.stderr.decode()
    for place, file in zip(places, files, strict=True):
        out = f"{file}.out.safetensors"
        actual, digest = mx.load(out, return_metadata=True)
        said = expected[max(0, place - length) :]
        assert actual.pop("said").tolist() == [token for token, _ in said], place
        assert mx.array_equal(actual.pop("each"), mx.stack([x for _, x in said]))
        final = never_stopped.state
        assert actual.keys() == final.arrays.keys() and digest["d"] == final.digest
        for name, x in final.arrays.items():
            assert mx.array_equal(actual[name], x), f"{name} from {place}"


def test_a_fork_is_another(tiny):
    assert_a_fork_is_another(tiny, 300)


def assert_a_fork_is_another(loaded, length):
    session = endless(*loaded)
    read(session, TOKENS[:length])
    before = session.state.fork()
    expected = say(endless(*loaded, before.fork()), 20)
    say(session, 50, TOKENS[length : length + 100])
    assert_same_words(say(endless(*loaded, before), 20), expected)


class TestGoingBack:
    def test_undo(self, tiny):
        """Five turns, the last two undone, another: as if those two had not been."""
        turns = [TOKENS[i : i + 40] for i in range(0, 240, 40)]
        session, fresh = endless(*tiny, snapshots=True), endless(*tiny)
        for turn in turns[:5]:
            session.begin_turn()
            say(session, 30, turn)
        session.undo()
        session.undo()
        for turn in turns[:3]:
            say(fresh, 30, turn)
        assert_same(session.state, fresh.state)
        assert_same_words(say(session, 30, turns[5]), say(fresh, 30, turns[5]))
        assert_same(session.state, fresh.state)

    @pytest.mark.parametrize("back", [0, 1, 17, 64, 100])
    def test_editing_a_token(self, tiny, back):
        """It costs less than a chunk of reading again."""
        session = endless(*tiny, snapshots=True)
        read(session, TOKENS[:500])
        edited = [*TOKENS[: 500 - back], 7, *TOKENS[500 - back : 600]]
        session.go_back(500 - back)
        assert len(session.state.waiting) <= tiny[0].allmem.chunk
        read(session, edited[500 - back :])
        fresh = endless(*tiny)
        read(fresh, edited)
        assert_same_words(say(session, 20), say(fresh, 20))
        assert_same(session.state, fresh.state)

    def test_going_back_into_what_was_generated(self, tiny):
        session = endless(*tiny, snapshots=True)
        read(session, TOKENS[:190])
        said = say(session, 80)
        session.go_back(250)
        again = say(session, 20)
        for (one, x), (other, y) in zip(again, said[60:], strict=True):
            assert one == other
            # What was said one by one was read again at once.
            assert_close("logprobs", x, y, 1e-5)

    def test_what_breaks_an_answer_off_undoes_it(self, tiny, monkeypatch):
        """Ctrl-C in the middle of a token: the state is that before the answer."""
        session = endless(*tiny, snapshots=True)
        read(session, TOKENS[:190])
        before = session.state
        model = type(tiny[0])
        call, calls = model.__call__, []

        def break_off(self, *args, **kwargs):
            calls.append(0)
            if len(calls) == 20:
                raise KeyboardInterrupt
            return call(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(model, "__call__", break_off)
            with pytest.raises(KeyboardInterrupt):
                say(session, 50)
        assert_same(session.state, before)
        read(session, TOKENS[190:300])
        session.go_back(200)
        read(session, TOKENS[200:300])
        fresh = endless(*tiny)
        read(fresh, TOKENS[:300])
        assert_same(session.state, fresh.state)

    def test_at_the_end_of_a_chunk_the_model_can_answer(self, tiny):
        session = endless(*tiny, snapshots=True)
        chunk = tiny[0].allmem.chunk
        end = 500 // chunk * chunk
        read(session, TOKENS[:500])
        session.go_back(end)
        assert session.state.tokens == end
        fresh = endless(*tiny)
        read(fresh, TOKENS[:end])
        assert_same_words(say(session, 20), say(fresh, 20))

    def test_snapshots_are_bounded(self, tiny):
        session = endless(*tiny, snapshots=True)
        for start in range(0, 600, 20):
            session.begin_turn()
            read(session, TOKENS[start : start + 20])
        kept = session.snapshots
        assert (len(kept.turns), len(kept.chunks)) == (TURNS, CHUNKS)
        assert len(kept.tokens) <= (CHUNKS + 1) * tiny[0].allmem.chunk
        assert 0 < kept.nbytes <= (TURNS + CHUNKS) * session.state.nbytes

    def test_too_far(self, tiny):
        session = endless(*tiny, snapshots=True)
        with pytest.raises(AllMemError, match="nothing to undo"):
            session.undo()
        read(session, TOKENS)
        for tokens in (100, LENGTH + 1):
            with pytest.raises(AllMemError, match=f"token {tokens};"):
                session.go_back(tokens)
        with pytest.raises(AllMemError, match="no snapshots"):
            endless(*tiny).undo()


@pytest.fixture
def saved(tiny, tmp_path):
    session = endless(*tiny)
    read(session, TOKENS[:300])
    say(session, 5)
    states.save(session.state, tmp_path / "saved.allmem", tiny[0])
    return session.state, tmp_path / "saved.allmem"


class TestFile:
    def test_safetensors_alone_reads_it(self, saved):
        state, path = saved
        with safe_open(path, "numpy") as file:
            assert set(file.keys()) == set(state.arrays)
            metadata = file.metadata()
            w = file.get_tensor("layers.1.memory.weights.down")
        assert metadata["format"] == "allmem-state" and metadata["read"] == "305"
        assert np.array_equal(w, np.array(state.arrays["layers.1.memory.weights.down"]))

    def test_it_says_what_it_is(self, tiny, saved):
        state, path = saved
        told = states.describe(path)
        assert told["read"] == 305 and told["allmem"]["chunk"] == 64
        assert told["fingerprint"] == states.fingerprint(tiny[0])
        said = [*TOKENS[:300], *told["recent"][-5:]]
        assert told["digest"] == states.digest(said)
        assert told["recent"] == said[-64:]
        assert told["bytes"] == path.stat().st_size

    def test_its_size_does_not_depend_on_the_length(self, tiny, tmp_path):
        """But for the metadata."""
        sizes = []
        for length in (200, 3_000):
            session = endless(*tiny)
            read(session, random_tokens(1, length)[0].tolist())
            path = tmp_path / str(length)
            states.save(session.state, path, tiny[0])
            header = struct.unpack("<Q", path.read_bytes()[:8])[0]
            sizes.append(path.stat().st_size - header)
        assert sizes[0] == sizes[1]

    def test_before_anything_was_read(self, tiny, tmp_path):
        session = endless(*tiny)
        read(session, TOKENS[:10])
        assert session.state.read == 0
        states.save(session.state, tmp_path / "new", tiny[0])
        again = states.load(tmp_path / "new", tiny[0])
        assert_same(again, session.state)
        assert_same_words(say(endless(*tiny, again), 5), say(session, 5))

    def test_half_a_window(self, tiny, saved, tmp_path):
        """Smaller; the memory as it was."""
        state, path = saved
        states.save(state, tmp_path / "half", tiny[0], half_window=True)
        assert states.describe(tmp_path / "half")["half_window"] is True
        of_window = {n for n in state.arrays if n.endswith((".keys", ".values"))}
        window = sum(state.arrays[name].nbytes for name in of_window)
        saving = path.stat().st_size - (tmp_path / "half").stat().st_size
        assert abs(saving - window / 2) < 1_000
        again = states.load(tmp_path / "half", tiny[0])
        for name, x in state.arrays.items():
            if name in of_window:
                assert_close(name, again.arrays[name], x, 1e-3)
            else:
                assert mx.array_equal(again.arrays[name], x), name

    def test_a_state_is_replaced_whole_or_not_at_all(
        self, tiny, saved, tmp_path, monkeypatch
    ):
        """Whatever fails, and a full disk for one, the file before is still there."""
        state, path = saved
        before = path.read_bytes()

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        for module, name in ((os, "fsync"), (os, "replace"), (mx, "save_safetensors")):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, full)
                with pytest.raises(AllMemError, match="No space left on device"):
                    states.save(state, path, tiny[0])
            assert path.read_bytes() == before
            assert os.listdir(tmp_path) == ["saved.allmem"]

    def test_a_disk_that_is_full_half_way(self, tiny, saved, tmp_path):
        """The system refuses to write more than a part of the file."""
        state, path = saved
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        try:
            with pytest.raises(AllMemError, match="cannot be saved") as error:
                states.save(state, path, tiny[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["saved.allmem"]

    def test_a_folder_that_is_not_there(self, tiny, saved, tmp_path):
        with pytest.raises(AllMemError, match="cannot be saved"):
            states.save(saved[0], tmp_path / "nowhere" / "state", tiny[0])


class TestRefused:
    def test_500_corruptions(self, tiny, saved, tmp_path):
        """Never a crash, never a state that is not the one saved."""
        state, path = saved
        good = path.read_bytes()
        header = 8 + struct.unpack("<Q", good[:8])[0]
        other = tmp_path / "other"
        session = endless(*tiny)
        read(session, TOKENS[:200])
        states.save(session.state, other, tiny[0])
        foreign = other.read_bytes()
        swapped = 8 + struct.unpack("<Q", foreign[:8])[0]
        rng, refused = random.Random(0), 0
        for i in range(500):
            bad = bytearray(good)
            kind = i % 5
            if kind == 0:  # one bit
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            elif kind == 1:  # one bit of the header
                bad[rng.randrange(header)] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del bad[rng.randrange(len(bad)) :]
            elif kind == 3:  # a piece of noise
                start = rng.randrange(len(bad) - 64)
                bad[start : start + 64] = rng.randbytes(64)
            elif rng.random() < 0.5:  # another state's header
                bad[:header] = foreign[:swapped]
            else:  # another file
                bad = bytearray(rng.randbytes(rng.randrange(2_000)))
            (tmp_path / "bad").write_bytes(bad)
            try:
                opened = states.load(tmp_path / "bad", tiny[0])
            except AllMemError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                assert_same(opened, state)
        assert refused > 490

    def test_the_reason_is_named(self, tiny, saved, tmp_path):
        state, path = saved
        model = tiny[0]

        def reason(other=model, file=path) -> str:
            with pytest.raises(AllMemError) as error:
                states.load(file, other)
            assert str(file) in str(error.value)
            return str(error.value)

        def changed(**settings):
            path = tmp_path / "-".join(settings)
            return load(active_folder(path, **{"fold": 16, **settings}))[0]

        assert "window 48; the model has 32" in reason(changed(chunk=64, window=32))
        assert "chunk 64; the model has 128" in reason(changed(chunk=128))
        assert "updates all; the model has down" in reason(
            changed(chunk=64, updates="down")
        )
        bfloat16 = changed(chunk=64, dtype="bfloat16")
        assert "float32; this one is in mlx.core.bfloat16" in reason(bfloat16)
        trained = changed(chunk=64, sinks=4)
        layer = trained.layers[1].self_attn
        layer.alpha = layer.alpha + mx.array([1e-3] + [0] * 63)
        assert "another model" in reason(trained)

        (tmp_path / "text").write_text("no state" * 100)
        assert "is not a state file" in reason(file=tmp_path / "text")
        mx.save_safetensors(str(tmp_path / "x.safetensors"), {"x": mx.zeros(3)})
        assert "is not a state file" in reason(file=tmp_path / "x.safetensors")
        assert "No such file" in reason(file=tmp_path / "nowhere")
        assert "directory" in reason(file=tmp_path)
        (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
        assert "damaged or incomplete" in reason(file=tmp_path / "cut")
        for version in ("1", "2", "3", "5"):
            own, other = (f'"version":"{x}"'.encode() for x in ("4", version))
            (tmp_path / "other").write_bytes(path.read_bytes().replace(own, other))
            said = reason(file=tmp_path / "other")
            assert f"format version {version}; this version of" in said
            assert "reads 4: read the text again" in said and "\n" not in said

    def test_new_weights_are_another_model(self, tiny):
        """The fingerprint is kept, but not for weights that were replaced since."""
        model = load_again = tiny[0]
        before = states.fingerprint(model)
        alpha = model.layers[0].self_attn.alpha
        model.layers[0].self_attn.alpha = alpha + 1
        assert states.fingerprint(load_again) != before
        model.layers[0].self_attn.alpha = alpha
        assert states.fingerprint(model) == before


def test_a_state_without_a_memory_says_so(tmp_path):
    for trained in (True, False):
        model = tiny_model(trained=trained)
        state = states.new(model)
        model(random_tokens(1, 70), cache=state.cache)
        states.save(state, tmp_path / "state", model)
        assert states.describe(tmp_path / "state")["memory"] is trained
        opened = states.load(tmp_path / "state", model)
        assert_same(opened, state)
        kept = sum(layer.nbytes for layer in opened.cache)
        assert (kept == sum(layer.ring.nbytes for layer in opened.cache)) != trained
