"""One AllMem hybrid layer in plain PyTorch, written from the equations.

The truth that the MLX layer is compared with: attention is dense over the whole
sequence, the memory's inner gradient is autograd's, nothing is streamed. Parameters
have the names and layouts of the MLX layer; they are loaded, not initialised.
Equation numbers are the steps of AllMem's recurrence (arXiv 2602.13680, section 3):
1 read, 2 normalise, 3 gradient, 4 clip, 5 momentum, 6 write.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allmem_mlx.config import AllMemConfig

Matrices = tuple[Tensor, Tensor, Tensor]  # gate and up [B, n, h, p], down [B, n, p, h]


class Tokens(NamedTuple):
    """The inputs of the memory for each token."""

    queries: Tensor  # [B, n, L, p]
    keys: Tensor  # [B, n, L, p]
    values: Tensor  # [B, n, L, p]
    rates: Tensor  # eta for gate, up and down, [B, n, L, 3]
    decay: Tensor  # m, [B, n, L]
    gate: Tensor  # g, [B, n, L, 1]

    def cut(self, start: int, end: int) -> "Tokens":
        return Tokens(*(x[:, :, start:end] for x in self))


class MemoryState(NamedTuple):
    """The memory after the last token, as a streaming layer keeps it: of matrices those
    that are written, and ``None`` where nothing of an open chunk is there."""

    conv_state: Tensor
    weights: Matrices
    scales: Matrices
    momentum: Matrices
    grads: Matrices | None
    decay_sum: Tensor | None
    pending: Tensor | None


class LayerState(NamedTuple):
    """The attention ring ``[B, n_kv, s + W, d]`` and the memory."""

    keys: Tensor
    values: Tensor
    memory: MemoryState


def unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-5)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE of ``x [..., L, d]``; channel i turns with channel i + d/2."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = positions[:, None] * frequencies
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Memory(nn.Module):
    """The branch ``y = W_o concat(g RMSNorm(read(W, q)))``."""

    def __init__(self, dims: int, config: AllMemConfig):
        super().__init__()
        n, p, h = config.heads, config.head_dim, config.hidden_dim
        self.config = config
        of_tokens = config.values == "token"
        rows = (2 if of_tokens else 3) * n * p + 5 * n
        self.in_proj = nn.Linear(dims, rows, bias=False)
        self.value_proj = nn.Linear(dims, n * p, bias=False) if of_tokens else None
        self.rate_bias = nn.Parameter(torch.zeros(5 * n))
        self.conv_weight = nn.Parameter(torch.zeros(3 * n * p, config.conv_kernel))
        self.q_norm = nn.RMSNorm(p, eps=1e-6)
        self.k_norm = nn.RMSNorm(p, eps=1e-6)
        self.w0_gate = nn.Parameter(torch.zeros(n, h, p))
        self.w0_up = nn.Parameter(torch.zeros(n, h, p))
        self.w0_down = nn.Parameter(torch.zeros(n, p, h))
        self.o_norm = nn.RMSNorm(p, eps=config.output_eps)
        self.o_proj = nn.Linear(n * p, dims, bias=False)

    @property
    def initial_weights(self) -> Matrices:
        return self.w0_gate, self.w0_up, self.w0_down

    def inputs(
        self, u: Tensor, embedded: Tensor | None = None
    ) -> tuple[Tokens, Tensor]:
        """Projections, convolution, rates and gates; and the convolution's state."""
        n, p, taps = self.config.heads, self.config.head_dim, self.config.conv_kernel
        projected = self.in_proj(u)
        qkv, rates = projected[..., : -5 * n], projected[..., -5 * n :]
        if self.value_proj is not None:
            qkv = torch.cat([qkv, self.value_proj(embedded)], dim=-1)
        padded = F.pad(qkv, (0, 0, taps - 1, 0)).mT
        mixed = F.conv1d(padded, self.conv_weight[:, None], groups=3 * n * p).mT
        q, k, v = F.silu(mixed).unflatten(-1, (3, n, p)).permute(2, 0, 3, 1, 4)

        rates, decay, gate = (rates + self.rate_bias).split([3 * n, n, n], dim=-1)
        offset = math.log(math.expm1(self.config.learning_rate))
        tokens = Tokens(
            queries=unit(self.q_norm(q)),
            keys=unit(self.k_norm(k)),
            values=v,
            rates=F.softplus(rates + offset).unflatten(-1, (n, 3)).transpose(1, 2),
            decay=decay.sigmoid().mT,
            gate=gate.sigmoid().mT[..., None],
        )
        return tokens, padded[..., u.shape[1] :].mT

    def read(self, weights: Matrices, x: Tensor) -> Tensor:
        """1: ``f(x) = (SiLU(x Wg^T) * (x Wu^T)) Wd^T + x``."""
        gate, up, down = weights
        return (F.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT + x

    def written(self, matrices: Matrices) -> Matrices:
        """Those that are trained while reading."""
        return matrices[2:] if self.config.updates == "down" else matrices

    def scales(self, weights: Matrices) -> Matrices:
        """2: what gives the weights the row norms of W0."""
        return tuple(
            w0.norm(dim=-1, keepdim=True) / (w.norm(dim=-1, keepdim=True) + 1e-5)
            for w, w0 in zip(weights, self.initial_weights, strict=True)
        )

    def normalize(self, weights: Matrices) -> Matrices:
        """2: U, in which what is not written is as it was."""
        gate, up, down = (
            w * s for w, s in zip(weights, self.scales(weights), strict=True)
        )
        if self.config.updates == "down":
            gate, up, _ = weights
        return gate, up, down

    def gradient(self, weights: Matrices, tokens: Tokens) -> Matrices:
        """3: of ``-sum_t eta_t <f(k_t), v_t>``, for each matrix with its own eta."""
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # autograd needs a leaf where nothing outside is being trained.
            weights = tuple(
                w if w.requires_grad else w.detach().requires_grad_() for w in weights
            )
            match = (self.read(weights, tokens.keys) * tokens.values).sum(dim=-1)
            return tuple(
                torch.autograd.grad(
                    -(tokens.rates[..., i] * match).sum(),
                    w,
                    retain_graph=True,
                    create_graph=create_graph,
                )[0]
                for i, w in enumerate(weights)
            )

    def clip(self, grad: Tensor) -> Tensor:
        """4: ``G min(1, Theta / ||G||_F)``, for each head and batch element."""
        largest = self.config.max_update_norm
        norm = grad.norm(dim=(-2, -1), keepdim=True)
        return grad * largest / norm.clamp(min=largest)

    def step(self, weights: Matrices, momentum: Matrices, chunk: Tokens):
        """1 to 6 for one chunk; an incomplete one is only read."""
        read = self.read(weights, chunk.queries)
        if chunk.queries.shape[2] < self.config.chunk:
            return read, weights, momentum
        unified = self.normalize(weights)
        grads = tuple(self.clip(g) for g in self.gradient(unified, chunk))
        mu = chunk.decay.mean(dim=-1)[..., None, None]
        momentum = tuple(mu * m - g for m, g in zip(momentum, grads, strict=True))
        weights = tuple(w + m for w, m in zip(unified, momentum, strict=True))
        if self.config.updates == "down":
            weights = *unified[:2], weights[2]
        return read, weights, momentum

    def forward(
        self, u: Tensor, embedded: Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        B, L, _ = u.shape
        chunk, fold = self.config.chunk, self.config.fold
        tokens, conv_state = self.inputs(u, embedded)
        weights = tuple(torch.stack([w] * B) for w in self.initial_weights)
        momentum = tuple(torch.zeros_like(w) for w in weights)
        reads = []
        for start in range(0, L, chunk):
            part = tokens.cut(start, start + chunk)
            read, weights, momentum = self.step(weights, momentum, part)
            reads.append(read)
        y = tokens.gate * self.o_norm(torch.cat(reads, dim=2))
        y = self.o_proj(y.transpose(1, 2).flatten(2))

        start = L // chunk * chunk
        folded = L // fold * fold
        grads = decay_sum = pending = None
        if folded > start:
            added = tokens.cut(start, folded)
            grads = self.written(self.gradient(self.normalize(weights), added))
            decay_sum = added.decay.sum(dim=-1)
        if L > folded:
            left = tokens.cut(folded, L)
            rows = [left.keys, left.values, left.rates, left.decay[..., None]]
            pending = F.pad(torch.cat(rows, dim=-1), (0, 0, 0, fold - (L - folded)))
        return y, MemoryState(
            conv_state=conv_state,
            weights=self.written(weights),
            scales=self.written(self.scales(weights)),
            momentum=self.written(momentum),
            grads=grads,
            decay_sum=decay_sum,
            pending=pending,
        )


class HybridAttention(nn.Module):
    """``TokenMixer(u) = SWA(u) + alpha * AllMem(u)`` over a whole document at once.

    Args:
        base (dict): the base model's ``config.json``.
        config (AllMemConfig): its ``allmem`` settings.
        dtype (torch.dtype): of parameters and arithmetic.
    """

    def __init__(self, base: dict, config: AllMemConfig, dtype=torch.float64):
        super().__init__()
        dims, d = base["hidden_size"], base["head_dim"]
        heads, kv_heads = base["num_attention_heads"], base["num_key_value_heads"]
        self.config, self.head_dim, self.rope_theta = config, d, base["rope_theta"]
        self.q_proj = nn.Linear(dims, heads * d, bias=False)
        self.k_proj = nn.Linear(dims, kv_heads * d, bias=False)
        self.v_proj = nn.Linear(dims, kv_heads * d, bias=False)
        self.o_proj = nn.Linear(heads * d, dims, bias=False)
        if base["model_type"] == "qwen3":
            self.q_norm = nn.RMSNorm(d, eps=base["rms_norm_eps"])
            self.k_norm = nn.RMSNorm(d, eps=base["rms_norm_eps"])
        self.memory = Memory(dims, config)
        self.alpha = nn.Parameter(torch.zeros(dims))
        self.to(dtype)

    def load_arrays(self, arrays: dict) -> "HybridAttention":
        """Takes every parameter from numpy arrays named as in the MLX layer."""
        self.load_state_dict({name: torch.tensor(x) for name, x in arrays.items()})
        return self

    def positions(self, tokens: Tensor, chunk: int) -> Tensor:
        """Where RoPE puts ``tokens`` as chunk number ``chunk`` sees them."""
        c = self.config
        if c.positions == "absolute":
            return tokens
        shift = max(0, chunk * c.chunk - (c.window + c.sinks))
        return torch.where(tokens < c.sinks, tokens, tokens - shift)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """causal and ((i - j) < W or j < s)."""
        recent = query - key < self.config.window
        return (key <= query) & (recent | (key < self.config.sinks))

    def ring(self, x: Tensor) -> Tensor:
        """Sinks in their own slots, then the last W tokens, t in s + (t - s) % W."""
        sinks, window = self.config.sinks, self.config.window
        B, n, L, d = x.shape
        token = torch.arange(L)
        token = token[(token < sinks) | (token >= L - window)]
        slots = x.new_zeros(B, n, sinks + window, d)
        slot = torch.where(token < sinks, token, sinks + (token - sinks) % window)
        slots[:, :, slot] = x[:, :, token]
        return slots

    def attention(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """SWA(u), and the ring of keys and values."""
        queries, keys, values = (
            projection(u).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        group = queries.shape[1] // keys.shape[1]

        out, theta = [], self.rope_theta
        chunks = torch.arange(u.shape[1]).split(self.config.chunk)
        for chunk, query in enumerate(chunks):
            key = torch.arange(int(query[-1]) + 1)
            q = rotate(queries[:, :, query], self.positions(query, chunk), theta)
            k = rotate(keys[:, :, key], self.positions(key, chunk), theta)
            scores = q @ k.repeat_interleave(group, dim=1).mT * self.head_dim**-0.5
            hidden = ~self.visible(query[:, None], key)
            probabilities = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
            seen = values[:, :, key].repeat_interleave(group, dim=1)
            out.append(probabilities @ seen)
        out = self.o_proj(torch.cat(out, dim=2).transpose(1, 2).flatten(2))
        # k now holds every key as the last chunk sees it.
        return out, self.ring(k), self.ring(values)

    def forward(
        self, u: Tensor, embedded: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """
        Args:
            u (Tensor): normed input, ``[B, L, D]``.
            embedded (Tensor): normed embeddings of the tokens, if values are made of
                them.
        """
        attended, keys, values = self.attention(u)
        recalled, memory = self.memory(u, embedded)
        return attended + self.alpha * recalled, LayerState(keys, values, memory)
