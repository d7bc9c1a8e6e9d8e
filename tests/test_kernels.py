"""The Metal kernels, executed on the CPU, against the reference and float64."""

import dataclasses
import re

import mlx.core as mx
import numpy as np
import oracle
import pytest
import torch
from helpers import assert_close, assert_same_arrays, state_arrays, tiny_model
from kernel_cases import (
    CASES,
    EXTREMES,
    LAYOUTS,
    MODELS,
    NAMES,
    TAPS,
    Case,
    Inputs,
    arrays,
    computed,
    copied,
    device_bytes,
    differences,
    emulated_kernels,
    floor_bytes,
    launches,
    of_longer_text,
    reference,
)
from metal_host import lint, matrices_in_memory
from mlx.utils import tree_flatten, tree_unflatten

from allmem_mlx import model as model_module
from allmem_mlx.config import UPDATES, AllMemConfig
from allmem_mlx.memory import kernel_check, kernels
from allmem_mlx.memory.fast_weights import FastWeights

BYTES_PER_FLOOR = 1.1
LAUNCHES = 6
THREADGROUPS = 16
THREADS = 384  # of a threadgroup: what a GPU allows a kernel that needs many registers


def run(name: str, arguments: dict, **options):
    """The arrays that a kernel computes, and its launch."""
    with emulated_kernels(**options) as ran:
        result = arrays(getattr(kernels, name)(**arguments))
    (launch,) = ran
    return result, launch


def assert_right(name: str, arguments: dict, **options):
    """Runs a kernel that has to compute what the reference does; returns the launch."""
    with emulated_kernels(**options) as ran:
        result = computed(name, arguments)
    assert differences(name, result, reference(name, arguments)) == []
    (launch,) = ran
    return launch


def pretend_gpu(patch: pytest.MonkeyPatch) -> None:
    """Where the operations are picked, nowhere else."""
    patch.setattr(mx, "default_device", lambda: mx.gpu)
    patch.setattr(kernels, "metal_has_simdgroups", lambda: True)
    patch.setattr(kernels, "_work", lambda *form: True)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_right_and_clean(name, case):
    """Numbers as the reference's; no race, no access out of bounds or to memory that
    nothing was written to, no divergent barrier; no mixed address spaces; matrices in
    registers; few enough threads."""
    launch = assert_right(name, Inputs(case).of(name), mode="check")
    assert launch.diagnostics == []
    assert lint(launch.source) == ""
    assert matrices_in_memory(launch.source, unroll=False) == []
    assert np.prod(launch.threadgroup) <= THREADS


@pytest.mark.parametrize("name, change", LAYOUTS)
def test_inputs_that_are_not_contiguous(name, change):
    """A kernel that took them to be so would read between their elements, which
    ``check`` refuses."""
    arguments = change(Inputs(Case(3, 2, 32, 64, 11)).of(name))
    mx.eval(arrays(arguments))
    assert not all(memoryview(x).contiguous for x in arrays(arguments))
    assert_right(name, arguments, mode="check")


@pytest.mark.parametrize("name", ["memory_read", "memory_fold"])
def test_a_chunk_of_a_block_is_not_copied(name):
    """The kernel goes by the strides of what it gets; MLX leaves it as it is."""
    assert not copied(name, of_longer_text(Inputs(Case(1, 2, 32, 64, 11)).of(name)))


@pytest.mark.parametrize(
    "name, extreme", [(name, extreme) for name in NAMES for extreme in EXTREMES[name]]
)
def test_extreme_inputs(name, extreme):
    arguments = EXTREMES[name][extreme](Inputs(Case(2, 2, 32, 64, 11)).of(name))
    assert_right(name, arguments)


@pytest.mark.parametrize("name", ["memory_inputs", "memory_read", "memory_fold"])
def test_more_tokens_than_16_bits_count(name):
    tokens = 2**16 + 70
    arguments = Inputs(Case(1, 1, 32, 32, tokens)).of(name)
    assert_right(name, arguments)


DOUBLE = Case(2, 2, 64, 128, 37)


@pytest.fixture(scope="module", params=UPDATES)
def inputs(request) -> Inputs:
    return Inputs(dataclasses.replace(DOUBLE, updates=request.param))


@pytest.fixture(scope="module")
def truth(inputs) -> oracle.Memory:
    """A memory that gets what the kernels get: its projection changes nothing."""
    n, p, h = DOUBLE.heads, DOUBLE.head_dim, DOUBLE.hidden_dim
    columns, updates = 3 * n * p + 5 * n, inputs.case.updates
    config = AllMemConfig(n, p, h, conv_kernel=TAPS, updates=updates)
    memory = oracle.Memory(columns, config)
    memory.double().requires_grad_(False)
    memory.in_proj.weight.copy_(torch.eye(columns))
    for name, w in zip(FastWeights._fields, inputs.initial, strict=True):
        getattr(memory, f"w0_{name}").copy_(torch.tensor(np.array(w)))
    return memory


class TestAgainstFloat64:
    """The oracle of ``test_oracle.py``: PyTorch, autograd, float64."""

    def double(self, x):
        if isinstance(x, tuple):
            return tuple(map(self.double, x))
        return torch.tensor(np.array(x, np.float64))

    def assert_agree(self, name, actual, expected):
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(f"{name}, array {i}", a, e, 1e-6)

    def test_inputs(self, inputs, truth):
        arguments = inputs.memory_inputs()
        for name in ("conv_weight", "rate_bias"):
            getattr(truth, name).copy_(self.double(arguments[name]))
        truth.q_norm.weight.copy_(self.double(arguments["q_norm"]))
        truth.k_norm.weight.copy_(self.double(arguments["k_norm"]))
        projected, tail = (
            self.double(arguments[x]) for x in ("projected", "conv_state")
        )
        before = torch.zeros(len(tail), TAPS - 1, projected.shape[-1]).double()
        before[..., : tail.shape[-1]] = tail
        tokens, new_tail = truth.inputs(torch.cat([before, projected], dim=1))
        tokens = tokens.cut(TAPS - 1, TAPS - 1 + DOUBLE.tokens)
        rows = [tokens.keys, tokens.values, tokens.rates, tokens.decay[..., None]]
        rows = torch.cat(rows, dim=-1)
        expected = tokens.queries, rows, tokens.gate[..., 0], new_tail
        actual, _ = run("memory_inputs", arguments)
        self.assert_agree("inputs", actual, expected)

    def test_read(self, inputs, truth):
        arguments = inputs.memory_read()
        weights, queries, gates, norm = (
            self.double(arguments[x]) for x in ("weights", "queries", "gates", "norm")
        )
        truth.o_norm.weight.copy_(norm)
        truth.o_norm.eps = arguments["eps"]
        expected = gates[..., None] * truth.o_norm(truth.read(weights, queries))
        actual, _ = run("memory_read", arguments)
        self.assert_agree("read", actual, [expected.transpose(1, 2).flatten(2)])

    def test_fold(self, inputs, truth):
        arguments = inputs.memory_fold()
        rows, p = self.double(arguments["rows"]), DOUBLE.head_dim
        keys, values, rates, decay = rows.split([p, p, 3, 1], dim=-1)
        tokens = oracle.Tokens(keys, keys, values, rates, decay[..., 0], decay)
        unified = truth.normalize(self.double(arguments["weights"]))
        with torch.no_grad():
            added = truth.written(truth.gradient(unified, tokens))
        grads = self.double(arguments["grads"])
        expected = [g + new for g, new in zip(grads, added, strict=True)]
        squares = torch.stack([g.square().sum((-2, -1)) for g in expected], dim=-1)
        expected.append(self.double(arguments["decay_sum"]) + tokens.decay.sum(-1))
        expected.append(squares)
        with emulated_kernels():
            actual = computed("memory_fold", arguments)
        self.assert_agree("fold", actual, expected)

    @pytest.mark.parametrize("max_norm", [3.0, 1e9], ids=["clipped", "not clipped"])
    def test_write(self, inputs, truth, max_norm):
        arguments = {**inputs.memory_write(), "max_norm": max_norm}
        before = inputs.initial.replaced(inputs.weights)
        unified = truth.written(truth.normalize(self.double(before)))
        mu = self.double(arguments["decay_sum"])[..., None, None] / arguments["tokens"]
        momentum, weights = [], []
        for u, m, g in zip(
            unified,
            self.double(arguments["momentum"]),
            self.double(arguments["grads"]),
            strict=True,
        ):
            norm = g.norm(dim=(-2, -1), keepdim=True)
            momentum.append(mu * m - g * max_norm / norm.clamp(min=max_norm))
            weights.append(u + momentum[-1])
        scales = [
            self.double(n) / (w.norm(dim=-1, keepdim=True) + 1e-5)
            for n, w in zip(arguments["norms"], weights, strict=True)
        ]
        actual, _ = run("memory_write", arguments)
        self.assert_agree("write", actual, [*weights, *scales, *momentum])


CHUNK = 64
# Four chunks, two at once, and a tail: a fold, and tokens that wait.
CUTS = (128, 40, 24, 1, 62, 1, 7, 1, 1, 30)


def forward(model) -> dict[str, mx.array]:
    """Output of the first layer, and its memory's state."""
    layer, cache = model.layers[0].self_attn, model.make_cache()[0]
    rng = np.random.default_rng(0)
    out = []
    for size in CUTS:
        u = mx.array(rng.normal(size=(2, size, 64)), mx.float32)
        out.append(layer(u, cache=cache))
        mx.eval(out[-1], cache.state)
    return {"out": mx.concatenate(out, axis=1), **state_arrays(cache[1:])}


@pytest.mark.parametrize("updates", UPDATES)
def test_a_layer_equals_the_reference_whatever_the_schedule(updates, monkeypatch):
    sizes = {"heads": 2, "head_dim": 64, "hidden_dim": 128, "chunk": CHUNK, "fold": 32}
    model = tiny_model(**sizes, window=2 * CHUNK, updates=updates)
    assert sum(CUTS) // CHUNK == 4 and sum(CUTS) % 32
    expected = forward(model)
    pretend_gpu(monkeypatch)
    results = []
    for schedule in ("forward", "reverse", "random"):
        with emulated_kernels(schedule=schedule) as ran:
            results.append(forward(model))
        assert {launch.name.split("__")[0] for launch in ran} == {
            f"custom_kernel_allmem_{name}" for name in NAMES
        }
    for other in results[1:]:
        assert_same_arrays(other, results[0])
    assert results[0].keys() == expected.keys()
    assert len(expected) == 1 + 3 + 4 * len(model.allmem.written)
    for name, array in expected.items():
        assert_close(name, results[0][name], array, 1e-5)


@pytest.mark.parametrize("tokens", [21, 90, 170])
def test_a_token_is_read_the_same_alone_and_among_others(tokens):
    """However many a threadgroup reads."""
    arguments = Inputs(Case(2, 2, 64, 128, tokens)).memory_read()
    together, launch = run("memory_read", arguments)
    assert launch.threadgroups == 4 * {21: 3, 90: 6, 170: 6}[tokens]
    for t in (0, 7, tokens - 1):
        alone = {
            **arguments,
            "queries": arguments["queries"][:, :, t : t + 1],
            "gates": arguments["gates"][:, :, t : t + 1],
        }
        assert mx.array_equal(
            run("memory_read", alone)[0][0], together[0][:, t : t + 1]
        )


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("fold", [16, 64, 96])
def test_blocks_folded_one_by_one_and_at_once_are_the_same(fold, is_open, updates):
    case = Case(1, 2, 64, 128, 192, is_open=is_open, updates=updates)
    arguments = Inputs(case).memory_fold()
    at_once, _ = run("memory_fold", arguments)
    rows, state = arguments["rows"], dict(arguments)
    for start in range(0, 192, fold):
        state["rows"] = rows[:, :, start : start + fold]
        block, _ = run("memory_fold", state)
        *grads, decay_sum, _ = block
        state |= {"grads": tuple(grads), "decay_sum": decay_sum}
    for one, other in zip(block, at_once, strict=True):
        assert mx.array_equal(one, other)


@pytest.mark.parametrize("model", MODELS)
def test_threadgroups_are_many_whatever_is_read(model):
    heads, p, h = MODELS[model]
    for tokens in range(64, 2049):
        tiles = -(-tokens // kernels.tokens_of_read(tokens, p, h))
        assert heads * tiles >= THREADGROUPS


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "name, tokens, is_open",
    [
        ("memory_inputs", 512, True),
        ("memory_read", 1, True),
        ("memory_read", 64, True),
        ("memory_read", 512, True),
        ("memory_fold", 64, False),
        ("memory_fold", 64, True),
        ("memory_write", 1, True),
    ],
)
def test_bytes_are_near_the_floor_and_threadgroups_many(
    name, tokens, is_open, model, updates
):
    """What other threadgroups of a head load again is in a cache, and counted once."""
    case = Case(1, *MODELS[model], tokens, is_open=is_open, updates=updates)
    arguments = Inputs(case).of(name)
    result, launch = run(name, arguments, mode="check")
    floor = floor_bytes(name, arguments, result)
    once, _ = device_bytes(name, case, launch)
    assert floor <= once <= BYTES_PER_FLOOR * floor
    one_token = name == "memory_read" and tokens == 1
    assert launch.threadgroups >= (case.heads if one_token else THREADGROUPS)


@pytest.mark.parametrize("updates", UPDATES)
def test_launches_for_a_token(updates, monkeypatch, tmp_path):
    """Of the memory branch of a layer, in decoding."""
    pretend_gpu(monkeypatch)
    sizes = {"heads": 2, "head_dim": 64, "hidden_dim": 128, "chunk": 64, "fold": 32}
    model = tiny_model(**sizes, updates=updates)
    cast = model.cast_predicate
    weights = tree_flatten(model.parameters())
    weights = [(k, x.astype(mx.bfloat16) if cast(k) else x) for k, x in weights]
    model.update(tree_unflatten(weights))
    layer = model.layers[0].self_attn
    # The projection in, the inputs, the row into the block, the read, the projection
    # out.
    counted = launches(layer.memory, mx.bfloat16, token=5)
    assert counted == {"Matmul": 2, "CustomKernel": 2, "SliceUpdate": 1}
    first = launches(layer.memory, mx.bfloat16, token=32)
    assert first == {"Matmul": 2, "CustomKernel": 2, "Pad": 1}
    # Of two chunks at once: their inputs, then a read, a fold and a write of each.
    at_once = launches(layer.memory, mx.bfloat16, token=0, tokens=128)
    assert at_once == {"Matmul": 2, "CustomKernel": 7, "Concatenate": 1}

    # An exported graph has no compiled functions, so the sum of the two branches is
    # counted in the graph that is evaluated.
    x = mx.zeros((1, 1, 64), mx.bfloat16)
    mx.eval(x)
    mixed = model_module._mix(x, layer.alpha, x)
    mx.export_to_dot(str(tmp_path / "mix.dot"), mixed)
    joined = (tmp_path / "mix.dot").read_text().count("shape=rectangle")
    assert counted.total() + joined <= LAUNCHES


class TestSelfCheck:
    """Whether the kernels are right on this GPU: where not, the reference is used."""

    form = 32, 64, TAPS, mx.bfloat16, 3
    config = AllMemConfig(heads=1, head_dim=32, hidden_dim=64)

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        work = kernels._work
        pretend_gpu(monkeypatch)
        monkeypatch.setattr(kernels, "_work", work)
        work.cache_clear()
        yield
        work.cache_clear()

    def fault(self, written: int = 3, **wrong) -> str:
        tried = kernels.REFERENCE._replace(**wrong)
        form = *self.form[:-1], written
        return kernel_check.fault(tried, kernels.REFERENCE, *form)

    @pytest.mark.parametrize("updates", UPDATES)
    def test_the_kernels_pass(self, updates, monkeypatch, capsys):
        before = mx.random.state[0]
        config = dataclasses.replace(self.config, updates=updates)
        with emulated_kernels() as ran:
            assert kernels.operations(config, False, mx.bfloat16) is kernels.METAL
        assert capsys.readouterr().err == ""
        assert {launch.name.split("__")[0] for launch in ran} == {
            f"custom_kernel_allmem_{name}" for name in NAMES
        }
        assert mx.random.state[0] is before

    def test_it_is_short(self):
        with emulated_kernels() as ran:
            assert (
                kernel_check.fault(kernels.METAL, kernels.REFERENCE, *self.form) == ""
            )
        chunks = kernel_check.CHUNKS
        assert len(ran) == 1 + 2 * sum(map(len, chunks)) + len(chunks)

    def test_what_a_model_uses_is_tried(self):
        """A token alone, chunks of every tile, and parts of a block."""
        with emulated_kernels() as ran:
            assert (
                kernel_check.fault(kernels.METAL, kernels.REFERENCE, *self.form) == ""
            )
        names = [launch.name for launch in ran if "memory_read" in launch.name]
        tiles = {int(re.search(r"_32_64_(\d+)_", name)[1]) for name in names}
        assert tiles == {kernels.tokens_of_read(t, 32, 64) for t in range(1, 600)}
        assert kernel_check.CHUNKS[-1] == (1,)
        folds = {launch.name for launch in ran if "memory_fold" in launch.name}
        assert len(folds) == 2  # where no G is open, and where one is

    @pytest.mark.parametrize("name", NAMES)
    def test_a_kernel_that_fails(self, name):
        def fail(**arguments):
            raise RuntimeError("[metal::Device] Unable to build\n metal library")

        assert self.fault(**{name: fail}) == (
            f"{name} fails: [metal::Device] Unable to build metal library"
        )

    @pytest.mark.parametrize("wrong", [0.0, 1.1, -1.0, float("nan")], ids=str)
    @pytest.mark.parametrize(
        "name, number, written",
        [
            (name, number, written)
            for written, counts in ((3, (4, 1, 5, 9)), (1, (4, 1, 3, 3)))
            for name, results in zip(NAMES, counts, strict=True)
            for number in range(results)
        ],
    )
    def test_a_kernel_with_other_numbers(self, name, number, written, wrong):
        """In any of its results."""

        def garbage(**arguments):
            result = getattr(kernels.REFERENCE, name)(**arguments)
            parts = iter(range(99))

            def spoil(x):
                if isinstance(x, mx.array):
                    return (x * wrong).astype(x.dtype) if next(parts) == number else x
                return tuple(map(spoil, x)) if isinstance(x, tuple) else x

            return spoil(result)

        expected = f"{name} gives other numbers than it should"
        assert self.fault(written, **{name: garbage}) == expected

    def test_a_kernel_that_takes_a_part_for_the_whole(self):
        """As one that were to ignore strides."""

        def start_over(rows, **arguments):
            first = rows.shape[2] == kernel_check.CHUNKS[0][0]
            self.rows = rows if first else self.rows
            rows = self.rows[:, :, : rows.shape[2]]
            return kernels.REFERENCE.memory_fold(rows=rows, **arguments)

        assert "memory_fold" in self.fault(memory_fold=start_over)

    def test_it_is_said_once_and_the_reference_is_used(self, monkeypatch, capsys):
        calls = []

        def fail(**arguments):
            calls.append(arguments["weights"])
            raise RuntimeError("no such function: simd_sum")

        broken = kernels.REFERENCE._replace(memory_read=fail)
        monkeypatch.setattr(kernels, "METAL", broken)
        for _ in range(3):
            assert kernels.operations(self.config, False) is kernels.REFERENCE
        assert len(calls) == 1
        assert capsys.readouterr().err == (
            "[WARNING] the memory runs without its Metal kernels, and more slowly: "
            "memory_read fails: no such function: simd_sum\n"
        )
        for number, other in enumerate(({"hidden_dim": 32}, {"updates": "down"})):
            config = dataclasses.replace(self.config, **other)
            assert kernels.operations(config, False) is kernels.REFERENCE
            assert len(calls) == 2 + number

    def test_it_is_not_made_where_the_kernels_are_not_used(self, monkeypatch):
        monkeypatch.setattr(kernel_check, "fault", None)
        assert kernels.operations(self.config, True) is kernels.REFERENCE
        monkeypatch.setenv("ALLMEM_KERNELS", "0")
        assert kernels.operations(self.config, False) is kernels.REFERENCE


class TestDispatch:
    """Which operations a memory uses."""

    config = AllMemConfig(heads=1, head_dim=64, hidden_dim=128)

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        pretend_gpu(monkeypatch)

    def test_the_kernels_on_metal(self):
        assert kernels.operations(self.config, training=False) is kernels.METAL

    def test_the_reference_in_training(self):
        assert kernels.operations(self.config, training=True) is kernels.REFERENCE

    def test_the_reference_when_turned_off(self, monkeypatch):
        monkeypatch.setenv("ALLMEM_KERNELS", "0")
        assert kernels.operations(self.config, training=False) is kernels.REFERENCE
        monkeypatch.setenv("ALLMEM_KERNELS", "1")
        assert kernels.operations(self.config, training=False) is kernels.METAL

    @pytest.mark.parametrize(
        "sizes",
        [
            {"head_dim": 48, "hidden_dim": 96},
            {"hidden_dim": 96},
            {"hidden_dim": 320},
            {"conv_kernel": 1},
            {"conv_kernel": 9},
        ],
        ids=str,
    )
    def test_the_reference_at_other_sizes(self, sizes):
        config = dataclasses.replace(self.config, **sizes)
        assert kernels.operations(config, training=False) is kernels.REFERENCE

    def test_the_reference_on_a_cpu(self, monkeypatch):
        monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
        assert kernels.operations(self.config, training=False) is kernels.REFERENCE

    def test_the_reference_on_the_gpu_of_a_virtual_machine(self, monkeypatch):
        monkeypatch.undo()
        kernels.metal_has_simdgroups.cache_clear()
        monkeypatch.setattr(kernels, "_work", lambda *form: True)
        monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        for name, expected in (
            ("Apple M4", kernels.METAL),
            ("Apple Paravirtual device", kernels.REFERENCE),
        ):
            monkeypatch.setattr(mx, "device_info", lambda _, x=name: {"device_name": x})
            assert kernels.operations(self.config, training=False) is expected
            kernels.metal_has_simdgroups.cache_clear()

    def test_every_size_that_is_dispatched_was_tried(self):
        tried = {(case.head_dim, case.hidden_dim) for case in CASES}
        assert tried == {
            (p, p * expansion)
            for p in kernels.HEAD_DIMS
            for expansion in range(1, kernels.MAX_EXPANSION + 1)
        }
