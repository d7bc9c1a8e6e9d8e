"""An mlx-lm model whose attention layers are AllMem hybrids.

A hybrid is a kind of mlx-lm's own model for its base: embedding, norms, MLPs and head
are those, only ``self_attn`` of each layer is another. A model folder's ``config.json``
is the base's with ``"model_type": "allmem"``, ``base_model_type`` and an ``allmem``
block.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache, CacheList, RotatingKVCache
from transformers import AutoConfig, PretrainedConfig

from .attention import WindowAttention
from .config import AllMemConfig
from .errors import SettingError
from .families import (
    Family,
    check_sizes,
    family_of,
    global_layers,
    largest_window,
    model_file,
    sliding_windows,
)
from .memory.layer import Memory, MemoryState
from .memory.ops import RMS_EPS
from .patches import subclass

MODEL_TYPE = "allmem"


class _TransformersConfig(PretrainedConfig):
    """To load a tokenizer, transformers reads config.json, and warns of a model type
    that it does not know. It needs nothing else of it."""

    model_type = MODEL_TYPE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()


AutoConfig.register(MODEL_TYPE, _TransformersConfig, exist_ok=True)


@dataclass
class ModelArgs(BaseModelArgs):
    """The settings of a model, from ``config.json``.

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
            SettingError: if a value of the ``allmem`` settings is impossible.
        """
        base = {**params, "model_type": params.get("base_model_type")}
        family_of(base["model_type"])
        check_sizes(base)
        allmem = AllMemConfig.from_dict(params.get("allmem"))
        allmem.memory_layers(global_layers(base))
        largest = largest_window(base)
        if largest is not None and allmem.window > largest:
            raise SettingError(
                f"window is {allmem.window}; the base model's own attention sees "
                f"{largest} tokens, and the window must not be larger"
            )
        return cls(base=base, allmem=allmem)


class HybridCache(CacheList):
    """State of one layer: the attention ring and the arrays of :class:`MemoryState`,
    or the ring alone where the layer has no memory or the memory is off.

    A ``CacheList`` of stock parts, and called so in files, because mlx-lm looks the
    classes of a saved prompt cache up by name among its own, before it loads the
    model. It differs by not offering to be batched: rows would leave the chunk grid
    at different tokens.

    ``embedded`` are the normed embeddings of the tokens that are being read,
    ``[B, T, D]``, while they are; see :meth:`Model.embedding`.
    """

    embedded: Any = None

    @property
    def ring(self) -> Any:
        return self.caches[0]

    @property
    def memory(self) -> list[mx.array]:
        """The arrays of the memory, if the layer has one."""
        return self.caches[1].cache if len(self.caches) > 1 else []

    @memory.setter
    def memory(self, arrays: list[mx.array]) -> None:
        if len(self.caches) > 1:
            self.caches[1].cache = arrays

    def fork(self) -> "HybridCache":
        """A cache of its own. Arrays are shared: none is ever changed."""
        forked = HybridCache(*(copy.copy(part) for part in self.caches))
        forked.memory = list(self.memory)
        return forked

    def is_trimmable(self) -> bool:
        """A token that left the window, or changed the memory, cannot be taken back."""
        return False

    @property
    def merge(self) -> NoReturn:
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
        config (AllMemConfig): the hybrid layer's configuration.
        family (Family): the base's family.
        dims (int): width of the model.
    """

    def __init__(
        self, base: nn.Module, config: AllMemConfig, family: Family, dims: int
    ):
        super().__init__(base, config, family)
        self.memory = Memory(dims, config)
        self.alpha = mx.zeros((dims,))

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Mixes T tokens, a part of one chunk or whole chunks. A state without a memory
        leaves window + sinks.

        Args:
            x (mx.array): the input of the base's attention, ``[B, T, D]``: normed, or
                the memory norms it.
            mask: not used; the layer makes its own.
            cache (HybridCache): the layer's state, updated in place.
        """
        token, attended = cache[0].offset, super().__call__(x, mask, cache)
        if len(cache.caches) == 1:
            return attended
        u = x if self.family.normed else mx.fast.rms_norm(x, None, RMS_EPS)
        embedded = getattr(cache, "embedded", None)  # a cache of mlx-lm's file has none
        recalled = self.memory(u, cache[1], token, embedded)
        return _mix(attended, self.alpha, recalled)


def new_base(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's model for the base's configuration, with random weights."""
    arch = model_file(config["model_type"])
    base: nn.Module = arch.Model(arch.ModelArgs.from_dict(config))
    family_of(config["model_type"]).patch(base, config)
    return base


class Model(nn.Module):
    """A causal language model that reads any length with a state of fixed size.

    Args:
        args (ModelArgs): the configuration. ``model.args`` is the base model's, as its
            code expects; ``model.allmem`` is the hybrid layer's.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "Model":
        if args:  # none for a copy, whose class has its base already
            cls = subclass(cls, model_file(args[0].base["model_type"]).Model)
        return super().__new__(cls)

    def __init__(self, args: ModelArgs):
        kind, dims = args.base["model_type"], args.base["hidden_size"]
        arch, family = model_file(kind), family_of(kind)
        super().__init__(arch.ModelArgs.from_dict(args.base))  # type: ignore[call-arg]
        self.model_type = args.model_type
        self.base_config = args.base
        self.allmem = args.allmem
        family.patch(self, args.base)
        windows = sliding_windows(args.base)
        hybrids = args.allmem.memory_layers(self.global_layers)
        for i, (layer, window) in enumerate(zip(self.layers, windows, strict=True)):
            if i in hybrids:
                layer.self_attn = HybridAttention(
                    layer.self_attn, args.allmem, family, dims
                )
            else:
                config = args.allmem
                if window is not None:
                    config = replace(config, window=window, sinks=0)
                layer.self_attn = WindowAttention(layer.self_attn, config, family)

    @property
    def dtype(self) -> mx.Dtype:
        """The type of the activations, that of whatever is neither packed nor the
        memory's own."""
        parameters: Any = tree_flatten(self.parameters())
        dtype: mx.Dtype = next(
            x.dtype
            for name, x in parameters
            if self.cast_predicate(name) and mx.issubdtype(x.dtype, mx.floating)
        )
        return dtype

    @property
    def global_layers(self) -> list[int]:
        """The layers that see window and sinks, and may have a memory."""
        return global_layers(self.base_config)

    def normed_embeddings(
        self, inputs: mx.array, embeddings: mx.array | None = None
    ) -> mx.array:
        """The normed embeddings of tokens, ``[B, T, D]``, of which values are made
        where ``values`` of :class:`AllMemConfig` is ``"token"``."""
        x = self.model.embed_tokens(inputs) if embeddings is None else embeddings
        return mx.fast.rms_norm(x, None, RMS_EPS)

    @contextmanager
    def embedding(
        self, inputs: mx.array, cache: list[Any], embeddings: mx.array | None = None
    ) -> Iterator[None]:
        """Hands the memories that need them the normed embeddings of the tokens that
        the layers read meanwhile.

        Args:
            inputs (mx.array): token ids, ``[B, T]``.
            cache (list): the state of every layer; ``embedded`` of it is set.
            embeddings (mx.array): in place of those of ``inputs``, ``[B, T, D]``.
        """
        memories: list[Any] = []
        if self.allmem.values == "token":
            memories = [layer for layer in cache if has_memory([layer])]
        x = self.normed_embeddings(inputs, embeddings) if memories else None
        for layer in memories:
            layer.embedded = x
        try:
            yield
        finally:
            for layer in memories:
                layer.embedded = None

    @property
    def memory_is_off(self) -> bool:
        """Whether alpha is 0 in every layer, as after a conversion. The memories then
        add nothing: they have no state, and cost nothing."""
        alphas = [
            layer.self_attn.alpha
            for layer in self.layers
            if "memory" in layer.self_attn
        ]
        return not any(mx.any(x).item() for x in alphas)

    def _memory_can_be_left_out(self) -> bool:
        try:
            return self.memory_is_off
        except ValueError:  # nothing can be evaluated while a function is traced
            return False

    def make_cache(self) -> list[HybridCache]:
        """A state that has read nothing."""
        off = not self.training and self._memory_can_be_left_out()
        caches = []
        for layer in self.layers:
            config = layer.self_attn.config
            size = config.sinks + config.window
            parts: list[Any] = [RotatingKVCache(max_size=size, keep=config.sinks)]
            if "memory" in layer.self_attn and not off:
                parts.append(ArraysCache(MemoryState.size()))
            caches.append(HybridCache(*parts))
        return caches

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Reads tokens, any number at once.

        Args:
            inputs (mx.array): token ids, ``[B, T]``.
            cache (list): the state of every layer, updated in place; ``None`` starts
                a new document.
            input_embeddings (mx.array): ``[B, T, D]``, in place of ``inputs``, where
                the base model takes them.

        Returns:
            mx.array: logits, ``[B, T, vocabulary]``.
        """
        cache = cache or self.make_cache()
        logits, start = [], 0
        for size in self.allmem.cuts(cache[0][0].offset, inputs.shape[1]):
            block = slice(start, start + size)
            embeddings: Any = []  # not every base takes them
            if input_embeddings is not None:
                embeddings = [input_embeddings[:, block]]
            with self.embedding(inputs[:, block], cache, *embeddings):
                logits.append(super().__call__(inputs[:, block], cache, *embeddings))
            start = block.stop
        return logits[0] if len(logits) == 1 else mx.concatenate(logits, axis=1)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        inherited = getattr(super(), "sanitize", dict)
        return inherited(weights)

    @property
    def quant_predicate(self) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
        """The memory is not quantised, as it is small and its rates must be exact."""
        inherited = getattr(super(), "quant_predicate", None)

        def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
            if ".memory" in path:
                return False
            return inherited(path, module) if inherited else True

        return predicate

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        """alpha, norms, rates and fast weights stay float32; projections follow the
        model."""
        inherited = getattr(super(), "cast_predicate", None)
        kept = (".alpha", "_norm.weight", "rate_bias", "w0_gate", "w0_up", "w0_down")

        def cast(path: str) -> bool:
            if is_memory(path):
                return not path.endswith(kept)
            return inherited(path) if inherited else True

        return cast


def is_memory(name: str) -> bool:
    """Whether a parameter of a hybrid model is the memory's."""
    return ".self_attn.memory." in name or name.endswith(".self_attn.alpha")


def has_memory(cache: list[Any]) -> bool:
    """Whether a state has memories, which :attr:`Model.memory_is_off` says."""
    return any(len(layer.caches) > 1 for layer in cache)
