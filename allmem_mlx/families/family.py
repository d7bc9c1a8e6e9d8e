"""How a model file of mlx-lm fits the hybrid layer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .layouts import Weights

# A rotary embedding that only turns and scales, so that turning back is exact.
# "dynamic" depends on the length of what was read.
SCALED = ("default", "linear", "llama3", "yarn")


class Names(NamedTuple):
    """What a model file calls its parts.

    Args:
        body (str): all but the head.
        embedding (str): the token embedding, in the body.
        attention (str): the attention, in a layer.
        norm (str): the norm after the last layer, in the body.
    """

    body: str = "model"
    embedding: str = "embed_tokens"
    attention: str = "self_attn"
    norm: str = "norm"


@dataclass(frozen=True)
class Family:
    """How a model file of mlx-lm fits the hybrid layer, and which settings it lacks.

    Args:
        module (str): the model file, if it is not called as the family.
        rope_types (tuple): types of rotary embedding that the model file obeys.
        fixed (dict): settings of transformers that the model file does not read, and
            the values it stands for. A setting that is not listed stands for
            transformers' default.
        settings (callable): the settings that the model file reads under another name
            than transformers, from the settings of transformers.
        layout (callable): translates the weights that the model file does not, given
            the configuration too.
        patch (callable): patches the model where the model file computes otherwise
            than transformers, given its configuration too.
        array_mask (bool): whether its attention wants every mask as an array.
        rotates (callable): whether an attention layer rotates queries and keys.
        normed (bool): whether the layer norms the input of its attention, rather than
            the output.
        recurrent (str): what its layers without attention are, or the branch beside it,
            if their state has a fixed size of its own.
        names (Names): what the model file calls its parts.
        classes (callable): model and settings, where the model file's own ``Model`` is
            a wrapper.
        adapters (tuple): classes around and within the hybrid's attention, where the
            model file calls its attention otherwise than ``(x, mask, cache)``.
        borrows (callable): whether an attention layer has no keys and values of its
            own, if the family has such layers.
        rope_settings (tuple): settings of a rotary embedding that the model file reads,
            beyond what others do.
        layer_types (dict): types of layers in transformers that are other types here,
            within :attr:`reach`.
        own_settings (tuple): settings that this module reads, and the model file does
            not.
        distils (bool): whether ``model.model`` gives the last hidden states, of which
            MLX can distil.
        reach (callable): tokens beyond which the base computes otherwise: another
            rotary embedding, or another scale. Bounded positions stay below.
    """

    module: str | None = None
    rope_types: tuple[str, ...] = ("default",)
    fixed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    layout: Callable[[Weights, dict[str, Any]], Weights] = lambda weights, _: weights
    patch: Callable[[Any, dict[str, Any]], None] = lambda model, config: None
    array_mask: bool = False
    rotates: Callable[[Any], bool] = lambda attention: True
    normed: bool = True
    recurrent: str | None = None
    names: Names = Names()
    classes: Callable[[], tuple[Any, Any]] | None = None
    adapters: tuple[type | None, type | None] = (None, None)
    borrows: Callable[[Any], bool] | None = None
    rope_settings: tuple[str, ...] = ()
    layer_types: dict[str, str] = field(default_factory=dict)
    own_settings: tuple[str, ...] = ()
    distils: bool = True
    reach: Callable[[dict[str, Any]], int | None] = lambda config: None
