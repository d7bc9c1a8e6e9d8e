"""The PyTorch side of distillation: its layer against the oracle, its hybrid against
transformers."""

import numpy as np
import oracle
import pytest
import torch
from helpers import TINY_ALLMEM, TINY_BASE, assert_close
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from allmem_mlx.config import UPDATES, VALUES, AllMemConfig
from allmem_mlx.distillation.torch.hybrid import TEACHER, Hybrid, State, View
from allmem_mlx.distillation.torch.loss import forward_kl, next_token_loss

CHUNK = TINY_ALLMEM["chunk"]
LENGTH = 5 * CHUNK + 3
CONFIG = AllMemConfig(**TINY_ALLMEM)
STUDENT = View(CONFIG.window, CONFIG.sinks, CONFIG.chunk, memory=True)

torch.set_num_threads(1)


def tiny_hybrid(family="qwen3", dtype=torch.float64, config=CONFIG, **base) -> Hybrid:
    """A random model with an active memory."""
    torch.manual_seed(0)
    base = AutoConfig.for_model(
        family, **{**TINY_BASE, "initializer_range": 0.1, **base}
    )
    model = AutoModelForCausalLM.from_config(base, dtype=dtype).eval()
    hybrid = Hybrid(model, config)
    with torch.no_grad():
        for name, x in hybrid.parameters().items():
            if name.endswith(("in_proj.weight", "value_proj.weight")):
                x.normal_(std=x.shape[-1] ** -0.5)
            elif name.endswith("alpha"):
                x.normal_(std=0.5)
            else:
                x.add_(0.1 * torch.randn_like(x))
    model.to(dtype)
    return hybrid


def random_tokens(batch=2, length=LENGTH) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.integers(0, TINY_BASE["vocab_size"], (batch, length)))


def oracle_of(hybrid: Hybrid, family: str) -> oracle.HybridAttention:
    """The oracle with the weights of the first layer."""
    layer = hybrid.layers()[0]
    base = {**TINY_BASE, "model_type": family}
    expected = oracle.HybridAttention(base, hybrid.config, torch.float64)
    state = {k.removeprefix("base."): x for k, x in layer.state_dict().items()}
    expected.load_state_dict(state)
    return expected


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "allmem",
    [
        {},
        {"window": 24},
        {"sinks": 0},
        {"max_update_norm": 0.05},
        {"values": "token"},
        {"output_eps": 0.5},
        {"updates": "down"},
    ],
    ids=str,
)
def test_layer_agrees_with_the_oracle(family, allmem):
    config = AllMemConfig(**{**TINY_ALLMEM, **allmem})
    hybrid = tiny_hybrid(family, config=config)
    shape = (2, LENGTH, TINY_BASE["hidden_size"])
    u, embedded = torch.randn(2, *shape, dtype=torch.float64)
    positions = torch.arange(LENGTH)[None]
    rotations = hybrid.model.model.rotary_emb(u, positions)
    view = View(config.window, config.sinks, config.chunk, memory=True)
    with torch.no_grad():
        actual, _ = hybrid.layers()[0](
            u,
            view,
            State(),
            None,
            embedded,
            position_embeddings=rotations,
            attention_mask=None,
        )
        expected, _ = oracle_of(hybrid, family)(u, embedded)
    assert_close("output", actual, expected, 1e-5)


@pytest.mark.parametrize("values", VALUES)
def test_gradients_agree_with_the_oracle(values):
    hybrid = tiny_hybrid(config=AllMemConfig(**TINY_ALLMEM, values=values))
    layer, expected = hybrid.layers()[0], oracle_of(hybrid, "qwen3")
    shape = (2, LENGTH, TINY_BASE["hidden_size"])
    u, embedded = torch.randn(2, *shape, dtype=torch.float64)
    layer.memory(u, embedded, chunk=CHUNK)[0].square().sum().backward()
    expected.memory(u, embedded)[0].square().sum().backward()
    for name, x in layer.memory.named_parameters():
        grad = expected.memory.get_parameter(name).grad
        assert grad.abs().max() > 0, name
        assert_close(name, x.grad, grad, 1e-5)


FAMILIES = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 16,
        "query_pre_attn_scalar": 16,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_is_the_base_model(family):
    hybrid = tiny_hybrid(family, torch.float32, **FAMILIES[family])
    tokens = random_tokens()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{**TINY_BASE, "initializer_range": 0.1, **FAMILIES[family]}
    )
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = base(tokens).logits
        actual = hybrid.model.lm_head(hybrid.hidden(tokens, TEACHER))
        within = hybrid.hidden(tokens[:, :40], View(window=48, sinks=4, chunk=16))
    assert_close("logits", actual, expected, 1e-5)
    # Attention that misses nothing is the base model's, whatever the chunk.
    assert_close("in window", hybrid.model.lm_head(within), expected[:, :40], 1e-5)


def test_only_global_layers_become_hybrids():
    hybrid = tiny_hybrid("gemma3_text", **FAMILIES["gemma3_text"])
    assert {name.split(".")[2] for name in hybrid.parameters()} == {"1"}


def test_the_last_layers_become_hybrids():
    hybrid = tiny_hybrid(config=AllMemConfig(**TINY_ALLMEM, layers=[1]))
    assert {name.split(".")[2] for name in hybrid.parameters()} == {"1"}


def test_only_the_memory_is_trained():
    names = tiny_hybrid().parameters()
    assert all(".self_attn.memory." in n or n.endswith(".alpha") for n in names)
    assert len(names) == 2 * 11


@pytest.mark.parametrize("view", ["write", "swap"])
def test_a_control_changes_what_later_chunks_read(view):
    hybrid, tokens = tiny_hybrid(), random_tokens()
    control = View(**{**vars(STUDENT), view: view == "swap"})
    with torch.no_grad():
        read, changed = hybrid.hidden(tokens, STUDENT), hybrid.hidden(tokens, control)
    assert torch.equal(read[:, :CHUNK], changed[:, :CHUNK])
    assert (read - changed)[:, CHUNK:].abs().amax(-1).min() > 1e-4


def test_swapped_documents_read_the_memory_of_the_other():
    hybrid = tiny_hybrid()
    memory, dims = hybrid.layers()[0].memory, TINY_BASE["hidden_size"]
    u = torch.randn(2, 2 * CHUNK, dims, dtype=torch.float64)
    other = u.roll(1, 0)
    # The same second chunk everywhere: only what was written before it differs.
    u[:, CHUNK - 3 :] = other[:, CHUNK - 3 :] = 1.0
    with torch.no_grad():
        swapped, _ = memory(u, chunk=CHUNK, swap=True)
        expected, _ = memory(other, chunk=CHUNK)
    assert_close("read", swapped[:, CHUNK:], expected[:, CHUNK:], 1e-9)


def test_checkpointing_changes_no_gradient():
    grads, tokens = [], random_tokens()
    for checkpointing in (False, True):
        hybrid = tiny_hybrid()
        if checkpointing:
            hybrid.checkpoint_activations()
        _, state = hybrid.read(tokens[:, : 2 * CHUNK], STUDENT, State())
        hidden, _ = hybrid.read(tokens[:, 2 * CHUNK :], STUDENT, state)
        hidden.square().sum().backward()
        grads.append({k: p.grad for k, p in hybrid.parameters().items()})
    for name, grad in grads[0].items():
        assert_close(name, grads[1][name], grad, 1e-9)


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_in_parts_is_the_whole(family, updates):
    config = AllMemConfig(**TINY_ALLMEM, updates=updates)
    hybrid = tiny_hybrid(family, config=config, **FAMILIES[family])
    tokens, state, parts = random_tokens(), State(), []
    with torch.no_grad():
        whole = hybrid.hidden(tokens, STUDENT)
        for part in tokens.split([CHUNK, 3 * CHUNK, LENGTH - 4 * CHUNK], dim=1):
            hidden, state = hybrid.read(part, STUDENT, state)
            parts.append(hidden)
            again, _ = hybrid.read(tokens, STUDENT, state)
            once_more, _ = hybrid.read(tokens, STUDENT, state)
            assert torch.equal(again, once_more)  # a state stays as it is
    assert state.tokens == LENGTH
    assert_close("hidden", torch.cat(parts, dim=1), whole, 1e-9)


def test_forward_kl_and_its_gradient():
    torch.manual_seed(0)
    student = torch.randn(300, 16, requires_grad=True)
    teacher, head = torch.randn(300, 16), torch.randn(50, 16)
    p, q = ((x @ head.T).log_softmax(-1) for x in (teacher, student))
    expected = nn.KLDivLoss(reduction="sum", log_target=True)(q, p)
    (expected_grad,) = torch.autograd.grad(expected, student)
    actual = forward_kl(student, teacher, head)
    (grad,) = torch.autograd.grad(actual, student)
    assert_close("KL", actual.item(), expected.item(), 1e-5)
    assert_close("gradient", grad, expected_grad, 1e-5)


def test_next_token_loss():
    torch.manual_seed(0)
    hidden, head = torch.randn(300, 16), torch.randn(50, 16)
    targets = torch.randint(0, 50, (300,))
    expected = nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none")
    assert_close("loss", next_token_loss(hidden, targets, head), expected, 1e-6)
