"""Language models that mlx-lm has only inside the class of a model with towers."""

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@cache
def qwen3_5() -> tuple[type, type]:
    """Model and settings of Qwen 3.5."""
    from mlx_lm.models.qwen3_5 import TextModel, TextModelArgs

    return TextModel, TextModelArgs


@cache
def minimax_m2() -> tuple[type, type]:
    """Model and settings of MiniMax M2, which is called with a mask before the
    cache."""
    from mlx_lm.models import minimax

    class Model(minimax.Model):
        def __call__(  # type: ignore[override]
            self, inputs: mx.array, cache: Any = None
        ) -> mx.array:
            logits: mx.array = super().__call__(inputs, cache=cache)
            return logits

    return Model, minimax.ModelArgs


@cache
def gemma3n() -> tuple[type, type]:
    """Model and settings of Gemma 3n. The head is part of the body."""
    from mlx_lm.models.gemma3n import LanguageModel, TextConfig

    class Model(nn.Module):
        def __init__(self, args: Any):
            super().__init__()
            self.args = args
            self.model = LanguageModel(args)

        def __call__(  # type: ignore[override]
            self,
            inputs: mx.array,
            cache: Any = None,
            input_embeddings: mx.array | None = None,
        ) -> mx.array:
            options: Any = {"input_embeddings": input_embeddings}
            logits: mx.array = self.model(inputs, cache, **options)
            return logits

        @property
        def layers(self) -> Any:
            return self.model.layers

        def make_cache(self) -> Any:
            return self.model.make_cache()

    return Model, TextConfig
