"""An mlx-lm model whose attention layers are AllMem hybrids.

The body (embedding, norms, MLPs, head) is mlx-lm's own class for the base model; only
``self_attn`` of each layer is replaced. A model folder's ``config.json`` is the base's
with ``"model_type": "allmem"``, ``base_model_type`` and an ``allmem`` block.
"""

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache, CacheList, RotatingKVCache
from transformers import AutoConfig, PretrainedConfig

from .attention import WindowAttention
from .config import AllMemConfig
from .families import check_base
from .memory import Memory, MemoryState

MODEL_TYPE = "allmem"


class _TransformersConfig(PretrainedConfig):
    """To load a tokenizer, transformers reads config.json, and warns of a model type
    that it does not know. It needs nothing else of it."""

    model_type = MODEL_TYPE

    def __init__(self, **kwargs):
        super().__init__()


AutoConfig.register(MODEL_TYPE, _TransformersConfig, exist_ok=True)


@dataclass
class ModelArgs(BaseModelArgs):
    """What is read from ``config.json``.

    Args:
        base (dict): the base model's configuration, with its own ``model_type``.
        allmem (AllMemConfig): the hybrid layer's configuration.
    """

    base: dict[str, Any]
    allmem: AllMemConfig
    model_type: str = MODEL_TYPE

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelArgs":
        """
        Raises:
            AllMemError: if the base is not supported.
            SettingError: if a value of the ``allmem`` block is impossible.
        """
        base = {**params, "model_type": params.get("base_model_type")}
        check_base(base)
        return cls(base=base, allmem=AllMemConfig.from_dict(params.get("allmem")))


class HybridCache(CacheList):
    """State of one layer: the attention ring and the arrays of :class:`MemoryState`.

    A ``CacheList`` of stock parts, and called so in files, because mlx-lm looks the
    classes of a saved prompt cache up by name among its own, before it loads the
    model. It differs by not offering to be batched: rows would leave the chunk grid
    at different tokens.
    """

    @property
    def merge(self):
        raise AttributeError("an AllMem state cannot be batched")


HybridCache.__name__ = "CacheList"


@partial(mx.compile, shapeless=True)
def _mix(attended: mx.array, alpha: mx.array, recalled: mx.array) -> mx.array:
    """One launch for the three operations that join the branches."""
    return attended + (alpha * recalled).astype(attended.dtype)


class HybridAttention(WindowAttention):
    """``TokenMixer(u) = SWA(u) + alpha AllMem(u)`` (AllMem, section 3).

    ``alpha`` is per channel and starts at zero: the layer then is the base model's
    attention over window and sinks.

    Args:
        base (nn.Module): the attention layer of the base model.
        dims (int): width of the model.
        config (AllMemConfig): the hybrid layer's configuration.
    """

    def __init__(self, base: nn.Module, dims: int, config: AllMemConfig):
        super().__init__(base, config)
        self.memory = Memory(dims, config)
        self.alpha = mx.zeros((dims,))

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Mixes T tokens of one chunk.

        Args:
            x (mx.array): normed input, ``[B, T, D]``.
            mask: not used; the layer makes its own.
            cache (HybridCache): the layer's state, updated in place.
        """
        ring, state = cache[0], cache[1]
        recalled = self.memory(x, state, ring.offset)
        return _mix(super().__call__(x, ring), self.alpha, recalled)


def _new_base(args: ModelArgs) -> nn.Module:
    """mlx-lm's model for the base's configuration, with random weights."""
    arch = importlib.import_module(f"mlx_lm.models.{args.base['model_type']}")
    return arch.Model(arch.ModelArgs.from_dict(args.base))


class Model(nn.Module):
    """A causal language model that reads any length with a state of fixed size.

    Args:
        args (ModelArgs): the configuration.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        base = _new_base(args)
        dims = args.base["hidden_size"]
        for layer in base.layers:
            layer.self_attn = HybridAttention(layer.self_attn, dims, args.allmem)
        self.model = base.model
        if "lm_head" in base:
            self.lm_head = base.lm_head
        # Not a parameter and not a submodule, so it is not in the tree twice.
        self._sanitize_base = base.sanitize

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def make_cache(self) -> list[HybridCache]:
        """A state that has read nothing."""
        config = self.args.allmem
        size = config.sinks + config.window
        return [
            HybridCache(
                RotatingKVCache(max_size=size, keep=config.sinks),
                ArraysCache(MemoryState.size()),
            )
            for _ in self.layers
        ]

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Reads tokens, in cuts of any size.

        Args:
            inputs (mx.array): token ids, ``[B, T]``.
            cache (list): the state of every layer, updated in place; ``None`` starts
                a new document.
            input_embeddings (mx.array): ``[B, T, D]``, in place of ``inputs``.

        Returns:
            mx.array: logits, ``[B, T, vocabulary]``.
        """
        cache = cache or self.make_cache()
        hidden, start = [], 0
        while start < inputs.shape[1]:
            # A layer never sees a block that crosses the chunk grid.
            chunk = self.args.allmem.chunk
            block = slice(start, start + chunk - cache[0][0].offset % chunk)
            embeddings = None
            if input_embeddings is not None:
                embeddings = input_embeddings[:, block]
            hidden.append(self.model(inputs[:, block], cache, embeddings))
            start = block.stop
        out = hidden[0] if len(hidden) == 1 else mx.concatenate(hidden, axis=1)
        if "lm_head" in self:
            return self.lm_head(out)
        return self.model.embed_tokens.as_linear(out)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return self._sanitize_base(weights)

    @property
    def quant_predicate(self):
        """The memory is not quantised: it is small, and its rates must stay exact."""
        return lambda path, module: ".memory" not in path

    @property
    def cast_predicate(self):
        """alpha, norms, rates and fast weights stay float32; projections follow the
        model."""
        kept = (".alpha", "_norm.weight", "rate_bias", "w0_gate", "w0_up", "w0_down")

        def cast(path: str) -> bool:
            own = ".memory." in path or path.endswith(".alpha")
            return not (own and path.endswith(kept))

        return cast


def base_model(model: Model) -> nn.Module:
    """The model that was converted: full attention, no memory, the same weights.

    Args:
        model (Model): a hybrid; its weights are shared, not copied.

    Returns:
        nn.Module: mlx-lm's own model.
    """
    base = _new_base(model.args)
    if "lm_head" in model:
        base.lm_head = model.lm_head
    for name, module in model.model.children().items():
        if name != "layers":
            setattr(base.model, name, module)
    for layer, hybrid in zip(base.layers, model.layers, strict=True):
        for name, module in hybrid.children().items():
            if name != "self_attn":
                setattr(layer, name, module)
        for name in layer.self_attn.children():
            setattr(layer.self_attn, name, hybrid.self_attn[name])
    base.eval()
    return base
