"""An mlx-lm model whose attention layers are AllMem hybrids.

A hybrid is a kind of mlx-lm's own model for its base: embedding, norms, MLPs and head
are those, only ``self_attn`` of each layer is another. A model folder's ``config.json``
is the base's with ``"model_type": "allmem"``, ``base_model_type`` and an ``allmem``
block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache
from transformers import AutoConfig, PretrainedConfig

from .attention import WindowAttention
from .cache import (
    HybridCache,
    LayerCache,
    adopt,
    attention_caches,
    has_memory,
    tokens_read,
)
from .config import AllMemConfig
from .errors import SettingError
from .families import (
    Family,
    attention_windows,
    check_sizes,
    family_of,
    global_layers,
    largest_window,
    model_classes,
    reach,
)
from .families.patches import rotary, subclass
from .memory.layer import Memory, MemoryState
from .memory.ops import RMS_EPS

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
        check_fit(allmem, base)
        return cls(base=base, allmem=allmem)


def check_fit(allmem: AllMemConfig, base: dict[str, Any]) -> None:
    """
    Args:
        allmem (AllMemConfig): the hybrid layer's configuration.
        base (dict): the base model's.

    Raises:
        SettingError: if the base lacks a layer, or was not made for so large a window.
    """
    allmem.memory_layers(global_layers(base))
    largest = largest_window(base)
    if largest is not None and allmem.window > largest:
        raise SettingError(
            f"window is {allmem.window}; the base model's own attention sees "
            f"{largest} tokens, and the window must not be larger"
        )
    if (limit := reach(base)) is None:
        return
    if allmem.positions == "absolute":
        raise SettingError(
            f"positions must be bounded: the base model computes otherwise beyond "
            f"{limit} tokens"
        )
    if (largest := allmem.sinks + allmem.window + allmem.chunk) > limit:
        raise SettingError(
            f"sinks + window + chunk is {largest}; the base model computes otherwise "
            f"beyond {limit} tokens, and it must not be larger"
        )


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

    def make_cache(self, with_memory: bool = True) -> HybridCache:
        """See :class:`WindowAttention`; with a memory, or without one."""
        cache = super().make_cache()
        if with_memory:
            size = MemoryState.size(len(self.config.written))
            cache.caches += (ArraysCache(size),)
        return cache

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Mixes T tokens, a part of one chunk or whole chunks. A state without a memory
        leaves window + sinks.

        Args:
            x (mx.array): the input of the base's attention, ``[B, T, D]``: normed, or
                the memory norms it.
            mask: not used; the layer makes its own.
            cache (HybridCache): the layer's state, updated in place.
        """
        token, attended = cache.offset, super().__call__(x, mask, cache)
        if len(cache.caches) == 1:
            return attended
        u = x if self.family.normed else mx.fast.rms_norm(x, None, RMS_EPS)
        recalled = self.memory(u, cache[1], token, cache.embedded)
        return _mix(attended, self.alpha, recalled)


def patch(model: Any, config: dict[str, Any]) -> None:
    """Patches a base's model where it computes otherwise than transformers."""
    family = family_of(config["model_type"])
    family.patch(model, config)
    for i in attention_windows(config):
        attention = model.layers[i][family.names.attention]
        if getattr(attention, "rope", None) is not None:
            rotary(attention.rope, config)


def new_base(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's model for the base's configuration, with random weights."""
    kind = config["model_type"]
    model_class, args_class = model_classes(kind)
    base: nn.Module = model_class(args_class.from_dict(config))
    patch(base, config)
    return base


class Model(nn.Module):
    """A causal language model that reads any length with a state of fixed size.

    Args:
        args (ModelArgs): the configuration. ``model.args`` is the base model's, as its
            code expects; ``model.allmem`` is the hybrid layer's.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "Model":
        if args:  # none for a copy, whose class has its base already
            cls = subclass(cls, model_classes(args[0].base["model_type"])[0])
        return super().__new__(cls)

    def __init__(self, args: ModelArgs):
        kind, dims = args.base["model_type"], args.base["hidden_size"]
        own_args = model_classes(kind)[1].from_dict(args.base)
        super().__init__(own_args)  # type: ignore[call-arg]
        self.family = family = family_of(kind)
        self.model_type = args.model_type
        self.base_config = args.base
        self.allmem = args.allmem
        patch(self, args.base)
        hybrids = args.allmem.memory_layers(self.global_layers)
        for i, window in attention_windows(args.base).items():
            attention = self.layers[i][family.names.attention]
            config = args.allmem
            if window is not None:
                config = replace(config, window=window, sinks=0)
            if i in hybrids:
                attention = HybridAttention(attention, config, family, dims)
            else:
                attention = WindowAttention(attention, config, family)
            self.set_attention(i, attention)

    @property
    def body(self) -> Any:
        """All but the head: mlx-lm's ``model.model``, or what the base calls it."""
        return self[self.family.names.body]

    @property
    def token_embedding(self) -> Any:
        """The token embedding."""
        return self.body[self.family.names.embedding]

    @property
    def attentions(self) -> dict[int, Any]:
        """The attention of every layer that has one."""
        name = self.family.names.attention
        return {i: self.layers[i][name] for i in attention_windows(self.base_config)}

    def set_attention(self, layer: int, attention: nn.Module) -> None:
        """Gives a layer another attention."""
        setattr(self.layers[layer], self.family.names.attention, attention)

    @property
    def dtype(self) -> mx.Dtype:
        """The type of the activations, that of whatever is neither packed nor the
        memory's own."""
        parameters: Any = tree_flatten(self.parameters())
        dtype: mx.Dtype = next(
            x.dtype
            for name, x in parameters
            if self.cast_predicate(name)
            and not is_memory(name)
            and mx.issubdtype(x.dtype, mx.floating)
        )
        return dtype

    @property
    def global_layers(self) -> list[int]:
        """The layers whose attention sees window and sinks, and may have a memory."""
        return global_layers(self.base_config)

    def normed_embeddings(
        self, inputs: mx.array, embeddings: mx.array | None = None
    ) -> mx.array:
        """The normed embeddings of tokens, ``[B, T, D]``, of which values are made
        where ``values`` of :class:`AllMemConfig` is ``"token"``."""
        x = self.token_embedding(inputs) if embeddings is None else embeddings
        return mx.fast.rms_norm(x, None, RMS_EPS)

    @contextmanager
    def reading(
        self, inputs: mx.array, cache: list[Any], embeddings: mx.array | None = None
    ) -> Iterator[None]:
        """For as long as the layers read tokens: hands the memories that need them the
        normed embeddings of these, and in the end takes back what layers lent to each
        other.

        Args:
            inputs (mx.array): token ids, ``[B, T]``.
            cache (list): the state of every layer.
            embeddings (mx.array): in place of those of ``inputs``, ``[B, T, D]``.
        """
        layers = attention_caches(cache)
        if self.allmem.values == "token" and has_memory(cache):
            x = self.normed_embeddings(inputs, embeddings)
            for layer in layers:
                layer.embedded = x
        try:
            yield
        finally:
            for layer in layers:
                layer.embedded, layer.lent = None, ()

    @property
    def memory_is_off(self) -> bool:
        """Whether alpha is 0 in every layer, as after a conversion. The memories then
        add nothing: they have no state, and cost nothing."""
        alphas = [x.alpha for x in self.attentions.values() if "memory" in x]
        return not any(mx.any(x).item() for x in alphas)

    def used_parameters(self) -> list[mx.array]:
        """The parameters that a text goes through: all, or all but those of memories
        that are off."""
        off = self.memory_is_off
        parameters: Any = tree_flatten(self.parameters())
        return [x for name, x in parameters if not (off and is_memory(name))]

    def _memory_can_be_left_out(self) -> bool:
        try:
            return self.memory_is_off
        except ValueError:  # nothing can be evaluated while a function is traced
            return False

    def make_cache(self) -> list[Any]:
        """A state that has read nothing. Where the base keeps keys and values, it has
        a :class:`HybridCache`; all else is as the base makes it."""
        own = getattr(super(), "make_cache", None)
        stock = own() if own else [KVCache() for _ in self.layers]
        with_memory = self.training or not self._memory_can_be_left_out()
        attentions = (x for x in self.attentions.values() if not x.borrows)

        def bounded(part: Any) -> Any:
            if isinstance(part, ArraysCache):
                return part
            if isinstance(part, CacheList):
                return LayerCache(*map(bounded, part.caches))
            return next(attentions).make_cache(with_memory)

        return [bounded(part) for part in stock]

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
        adopt(cache)
        logits, start = [], 0
        for size in self.allmem.cuts(tokens_read(cache), inputs.shape[1]):
            block = slice(start, start + size)
            embeddings: Any = []  # not every base takes them
            if input_embeddings is not None:
                embeddings = [input_embeddings[:, block]]
            with self.reading(inputs[:, block], cache, *embeddings):
                logits.append(super().__call__(inputs[:, block], cache, *embeddings))
            start = block.stop
        return logits[0] if len(logits) == 1 else mx.concatenate(logits, axis=1)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        inherited = getattr(super(), "sanitize", dict)
        return inherited(self.family.layout(weights, self.base_config))

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
    return ".memory." in name or name.endswith(".alpha")
