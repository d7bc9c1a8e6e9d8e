"""A GGUF file as a description of a model."""

from typing import Any

from allmem_mlx.errors import AllMemError

from .file import Metadata, Tensor

# Keys of an architecture that do not change its output for a text.
HARMLESS = {
    "attention.layer_norm_epsilon",  # a family asks for its own
    "attention.layer_norm_rms_epsilon",
    "context_length",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
}
# Keys that have no effect at one value, and that value.
WITHOUT_EFFECT: dict[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}


class Source:
    """A GGUF file for the functions of its family.

    Args:
        metadata (Metadata): its key-value pairs.
        tensors (dict): its tensors.
    """

    def __init__(self, metadata: Metadata, tensors: dict[str, Tensor]):
        self.metadata = metadata
        self.tensors = tensors
        self.path = metadata.path
        self.architecture = metadata.get("general.architecture", str)
        names = (name.split(".") for name in tensors if name.startswith("blk."))
        self._stored = {parts[1] for parts in names}  # numbers of layers

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """A value of the architecture, ``llama.block_count`` for one."""
        return self.metadata.get(f"{self.architecture}.{key}", kind, *default)

    def common(self, key: str, *default: int) -> int:
        """A number that is one for all layers, or a list of one for each; it is 0 for
        those that have no such thing, as a layer without attention has no heads."""
        numbers = self.per_layer(key, *default)
        if len(found := set(numbers) - {0}) > 1:
            raise self.error(
                f"{self.architecture}.{key} = {str(numbers)[:40]}: layers of different "
                "sizes are not supported"
            )
        return max(found, default=0)

    def per_layer(self, key: str, *default: int) -> list[int]:
        """A number for each layer, of which the file may have one for all."""
        name = f"{self.architecture}.{key}"
        if not isinstance(self.metadata.values.get(name), list):
            return [self.get(key, int, *default)] * self.layers
        numbers = self.get(key, list)
        if len(numbers) < self.layers or any(type(x) is not int for x in numbers):
            raise self.error(f"{name} must be a list of {self.layers} whole numbers")
        return [*numbers[: self.layers]]

    def has_tensor(self, name: str) -> bool:
        """Whether any layer has it, ``attn_q.bias`` for one."""
        return bool(self.layers_with(name))

    def layers_with(self, name: str) -> set[int]:
        """The layers that have a tensor, ``attn_q.bias`` for one."""
        return {i for i in range(self.layers) if f"blk.{i}.{name}" in self.tensors}

    @property
    def layers(self) -> int:
        """How many layers the model has, without those that predict further tokens."""
        count: int = self.get("block_count", int)
        predicting: int = self.get("nextn_predict_layers", int, 0)
        stored = len(self._stored)
        if self._stored != {str(i) for i in range(min(count, stored + 1))}:
            raise self.error(
                f"{self.architecture}.block_count is {count}, and there are tensors of "
                f"{stored} layers"
            )
        if not 0 <= predicting < count:
            raise self.error(
                f"{self.architecture}.nextn_predict_layers is {predicting}, of {count} "
                "layers"
            )
        return count - predicting

    @property
    def head_dim(self) -> int:
        heads = self.get("attention.head_count", int)
        width = self.get("embedding_length", int)
        if not 0 < heads <= width:
            raise self.error(f"attention.head_count {heads} of {width} is impossible")
        size: int = self.get("attention.key_length", int, width // heads)
        if self.get("attention.value_length", int, size) != size:
            raise self.error("values of another size than keys are not supported")
        return size

    def error(self, text: str) -> AllMemError:
        return AllMemError(f"{self.path}: {text}")

    def check_unused(self) -> None:
        """Refuses settings that were not used and could change the model's output.

        Raises:
            AllMemError: naming the first.
        """
        prefix = f"{self.architecture}."
        for key in self.metadata.unused(prefix):
            name = key.removeprefix(prefix)
            value = self.metadata.values[key]
            if name in HARMLESS or (
                name in WITHOUT_EFFECT and value == WITHOUT_EFFECT[name]
            ):
                continue
            raise self.error(f"{key} = {str(value)[:40]} is not supported")
