"""The memory branch of a hybrid layer in PyTorch, with the MLX layer's parameters."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import AllMemConfig
from .fast_weights import FastWeights, State, Tokens, norm, run

L2_EPS = 1e-5

# W and M, and q, k and v of the last tokens.
MemoryState = tuple[State, Tensor]


def unit(x: Tensor) -> Tensor:
    return x / (norm(x, -1) + L2_EPS)


class Memory(nn.Module):
    """``y = W_o concat(g RMSNorm(read(W, q)))``; the layouts are those of
    :class:`allmem_mlx.memory.layer.Memory`.

    Args:
        dims (int): D, width of the model.
        config (AllMemConfig): sizes of the memory.
    """

    def __init__(self, dims: int, config: AllMemConfig):
        super().__init__()
        n, p, h = config.heads, config.head_dim, config.hidden_dim
        self.config = config
        self.of_tokens = config.values == "token"
        from_input = (2 if self.of_tokens else 3) * n * p + 5 * n
        self.in_proj = nn.Linear(dims, from_input, bias=False)
        if self.of_tokens:
            self.value_proj = nn.Linear(dims, n * p, bias=False)
        self.rate_bias = nn.Parameter(torch.zeros(5 * n))
        self.conv_weight = nn.Parameter(torch.zeros(3 * n * p, config.conv_kernel))
        self.q_norm = nn.RMSNorm(p, eps=1e-6)
        self.k_norm = nn.RMSNorm(p, eps=1e-6)
        self.w0_gate = nn.Parameter(torch.randn(n, h, p) * 0.5)
        self.w0_up = nn.Parameter(torch.randn(n, h, p) * 0.5)
        self.w0_down = nn.Parameter(torch.randn(n, p, h) * h**-0.5)
        self.o_norm = nn.RMSNorm(p, eps=config.output_eps)
        self.o_proj = nn.Linear(n * p, dims, bias=False)
        nn.init.normal_(self.in_proj.weight, std=0.02)
        nn.init.normal_(self.o_proj.weight, std=0.02)
        with torch.no_grad():
            q, k, v = self.conv_weight.chunk(3)
            q[:, -1] = v[:, -1] = 1
            k[:, max(-2, -config.conv_kernel)] = 1

    def initial_weights(self, batch: int) -> FastWeights:
        initial = (self.w0_gate, self.w0_up, self.w0_down)
        return FastWeights(*(w.repeat(batch, 1, 1) for w in initial))

    def _projected(self, u: Tensor, embedded: Any) -> tuple[Tensor, Tensor]:
        """q, k and v ``[B, L, 3np]``, and rates, decays and gates ``[B, L, 5n]``."""
        rates = 5 * self.config.heads

        def project(x: Tensor, weight: Tensor) -> Tensor:
            return F.linear(x, weight.to(x.dtype)).to(weight.dtype)

        projected = project(u, self.in_proj.weight)
        qkv, rates = projected.split([projected.shape[-1] - rates, rates], dim=-1)
        if self.of_tokens:
            qkv = torch.cat([qkv, project(embedded, self.value_proj.weight)], dim=-1)
        return qkv, rates

    def tokens(
        self, u: Tensor, embedded: Any = None, before: Tensor | None = None
    ) -> tuple[Tokens, Tensor, Tensor]:
        """The memory's inputs for each token.

        Args:
            u (Tensor): the layer's normed input, ``[B, L, D]``.
            embedded (Tensor): the normed embeddings of the tokens.
            before (Tensor): q, k and v of the ``taps - 1`` tokens before; 0 if
                ``None``.

        Returns:
            tuple: the inputs, the output gate ``[B, L, n, 1]``, and q, k and v of the
            last ``taps - 1`` tokens.
        """
        n, taps = self.config.heads, self.config.conv_kernel
        qkv, rates = self._projected(u, embedded)
        if before is None:
            before = qkv.new_zeros(len(qkv), taps - 1, qkv.shape[-1])
        padded = torch.cat([before, qkv], dim=1)
        L = u.shape[1]
        taps_of = self.conv_weight.unbind(dim=1)
        shifted = [w * padded[:, i : i + L] for i, w in enumerate(taps_of)]
        q, k, v = F.silu(torch.stack(shifted).sum(0)).chunk(3, dim=-1)

        def heads(x: Tensor) -> Tensor:  # [B, L, n p'] -> [B n, L, p']
            return x.unflatten(-1, (n, -1)).transpose(1, 2).flatten(0, 1)

        eta, decay, gate = (rates + self.rate_bias).split([3 * n, n, n], dim=-1)
        offset = math.log(math.expm1(self.config.learning_rate))
        tokens = Tokens(
            queries=unit(self.q_norm(heads(q))),
            keys=unit(self.k_norm(heads(k))),
            values=heads(v),
            rates=F.softplus(heads(eta) + offset),
            decay=heads(decay).sigmoid()[..., 0],
        )
        return tokens, gate.sigmoid()[..., None], padded[:, L:]

    def forward(
        self,
        u: Tensor,
        embedded: Tensor | None = None,
        *,
        chunk: int,
        state: MemoryState | None = None,
        write: bool = True,
        swap: bool = False,
    ) -> tuple[Tensor, MemoryState]:
        """
        Args:
            u (Tensor): the layer's normed input, ``[B, L, D]``.
            embedded (Tensor): the normed embeddings of the tokens, ``[B, L, D]``, if
                values are made of them.
            chunk (int): c.
            state (MemoryState): after the tokens before; the start if ``None``.
            write, swap (bool): the controls of :class:`View`.

        Returns:
            tuple: y, ``[B, L, D]``, and the state after the tokens, without a gradient.
        """
        B, n = u.shape[0], self.config.heads
        written, before = state or (None, None)
        tokens, gate, last = self.tokens(u, embedded, before)
        values, written = run(
            self.initial_weights(B),
            tokens,
            chunk=chunk,
            max_norm=self.config.max_update_norm,
            written=self.config.written,
            state=written,
            write=write,
            shift=n if swap else 0,
        )
        y = gate * self.o_norm(values).unflatten(0, (B, n)).transpose(1, 2)
        y = F.linear(y.flatten(2).to(u.dtype), self.o_proj.weight.to(u.dtype))
        return y, (written, last.detach())
