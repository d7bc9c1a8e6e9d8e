"""Memory weights that were distilled in PyTorch, checked against a base model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError, SettingError, reason
from allmem_mlx.files import read_json
from allmem_mlx.model import is_memory
from allmem_mlx.weight_files import readable

from .torch_files import Tensor, duplicate, find_files, read_files
from .torch_names import (
    VALUE,
    layout,
    looks_like_memory,
    parameters,
    place,
    plain_name,
    shapes,
)

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True)
class TorchWeights:
    """The tensors of a checkpoint, sorted.

    Args:
        path (Path): the file or folder.
        layers (dict): memory and ``alpha`` of each layer, by name; see
            ``torch_names.py``.
        base (dict): all other tensors by plain name, such as the base model's.
        others (list): names of entries that are not the model's tensors.
    """

    path: Path
    layers: dict[int, dict[str, Tensor]]
    base: dict[str, Tensor]
    others: list[str]

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of the hybrid layer: those of a ``config.json`` beside the
        tensors, the sizes of the tensors, and the given ones.

        Args:
            given (dict): settings by their name in :class:`AllMemConfig`; they have
                priority.

        Raises:
            AllMemError: if the tensors and ``config.json`` disagree.
            SettingError: if the tensors and a given size disagree.
        """
        found = self._sizes()
        folder = self.path if self.path.is_dir() else self.path.parent
        config = folder / "config.json"
        saved: Any = read_json(config).get("allmem") if config.is_file() else None
        saved = {} if saved is None else saved
        if not isinstance(saved, dict):
            raise AllMemError(f"{config}: the allmem settings must be an object")
        for name, size in found.items():
            if saved.get(name, size) != size:
                raise AllMemError(
                    f"{config}: {name} is {readable(saved[name])}; in the weights it "
                    f"is {size}"
                )
            if given.get(name, size) != size:
                raise SettingError(
                    f"{name} is {given[name]!r}; in {self.path} it is {size}"
                )
        try:
            AllMemConfig.from_dict({**saved, **found})
        except SettingError as error:
            where = config if saved else self.path
            raise AllMemError(f"{where}: {reason(error)}") from None
        return {**saved, **found, **given}

    def _sizes(self) -> dict[str, Any]:
        """Heads, widths, taps and, if the names tell, the source of the values, from
        the tensors of the first layer."""
        layer, tensors = min(self.layers.items())
        taps = tensors.get(layout("memory.conv_weight", set(tensors))[0])
        gate = tensors.get("memory.w0_gate")
        if gate is None or taps is None:
            name = "memory.w0_gate" if gate is None else "memory.conv_weight"
            raise self._missing(layer, name)
        if len(gate.shape) != 3 or not taps.shape:
            x, dimensions = (taps, 2) if len(gate.shape) == 3 else (gate, 3)
            raise AllMemError(
                f"{x.file}: {x.name} is {list(x.shape)}; it must have {dimensions} "
                "dimensions"
            )
        n, h, p = gate.shape
        k = taps.shape[-1]
        values = {"values": "token"} if VALUE in tensors else {}
        return {"heads": n, "head_dim": p, "hidden_dim": h, "conv_kernel": k, **values}

    def _missing(self, layer: int, name: str) -> AllMemError:
        return AllMemError(
            f"{self.path}: model.layers.{layer}.self_attn.{name} is missing"
        )

    def memory(self, dims: int, config: AllMemConfig) -> dict[str, mx.array]:
        """The memory's parameters under the names of the MLX model, in float32.

        Args:
            dims (int): D, width of the base model.
            config (AllMemConfig): sizes of the memory.

        Raises:
            AllMemError: if a tensor is missing, has no place, has another shape or
                type, or holds NaN or infinite values.
        """
        expected = shapes(dims, config)
        sizes = f"a memory of {config.heads} heads of width {config.head_dim}, "
        sizes += f"{config.hidden_dim} hidden units and {config.conv_kernel} taps on a "
        sizes += f"model of width {dims}"
        arrays = {}
        for layer, tensors in sorted(self.layers.items()):
            for name, tensor in tensors.items():
                if name not in expected:
                    raise _no_place(tensor)
                _check(tensor, expected[name], sizes)
            remaining = dict(tensors)
            for parameter in parameters(config.values):
                parts = []
                for name in layout(parameter, set(tensors), config.values):
                    if name not in tensors:
                        raise self._missing(layer, name)
                    x = _read(remaining.pop(name)).astype(mx.float32)
                    if name.startswith("memory.conv") and x.ndim == 3:
                        x = x.squeeze(1)
                    parts.append(x)
                name = f"model.layers.{layer}.self_attn.{parameter}"
                arrays[name] = mx.concatenate(parts) if len(parts) > 1 else parts[0]
            for tensor in remaining.values():
                raise AllMemError(
                    f"{tensor.file}: {tensor.name} is there in another layout too; "
                    "keep one"
                )
        return arrays

    def base_weights(
        self, folder: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, mx.array], list[str]]:
        """The base model's weights, if they are in the checkpoint too.

        Args:
            folder (dict): the tensors of the base model's folder, see
                ``published.language_model_weights``.
            config (dict): its ``config.json``.

        Returns:
            tuple: arrays by their names in the folder, none or all; and the names of
            the checkpoint's tensors that are not used.

        Raises:
            AllMemError: if only some are there, or one has another shape or type, or
                holds NaN or infinite values.
        """
        places = {plain_name(name): name for name in folder}
        base = dict(self.base)
        if config.get("tie_word_embeddings"):
            places.pop(HEAD, None)
        if HEAD in base and HEAD not in places and EMBEDDING in places:
            self._untie(base)
        found = places.keys() & base.keys()
        left_out = [x.name for plain, x in base.items() if plain not in places]
        if not found:
            return {}, [*self.others, *left_out]
        if config.get("quantization"):
            raise AllMemError(
                f"{self.path} has the base model's weights too; give a base that is "
                "not quantised"
            )
        if missing := sorted(places.keys() - found):
            raise AllMemError(
                f"{self.path} has {len(found)} of the base model's {len(places)} "
                f"tensors, but not {places[missing[0]]}; it must have all or none"
            )
        for plain, name in places.items():
            _check(base[plain], folder[name].shape, "the base model")
        arrays = {name: _read(base[plain]) for plain, name in places.items()}
        return arrays, [*self.others, *left_out]

    def _untie(self, base: dict[str, Tensor]) -> None:
        """Keeps one copy of an embedding that is the head too: a checkpoint has it
        under either name, or under both."""
        head = base.pop(HEAD)
        embedding = base.setdefault(EMBEDDING, head)
        if embedding is head:
            return
        _check(head, embedding.shape, "the base model")
        if not mx.array_equal(_read(head), _read(embedding)):
            raise AllMemError(
                f"{head.file}: {head.name} is not the embedding, but the base model "
                "has no head of its own"
            )


def _no_place(tensor: Tensor) -> AllMemError:
    return AllMemError(
        f"{tensor.file}: {tensor.name} looks like a memory's tensor, but a memory has "
        "none of that name"
    )


def _check(tensor: Tensor, shape: tuple[int, ...], model: str) -> None:
    tensor.check_dtype()
    if tensor.shape != tuple(shape):
        raise AllMemError(
            f"{tensor.file}: {tensor.name} is {list(tensor.shape)}; {model} needs "
            f"{list(shape)}"
        )


def _read(tensor: Tensor) -> mx.array:
    x = tensor.read()
    if not mx.isfinite(x).all():
        raise AllMemError(f"{tensor.file}: {tensor.name} holds NaN or infinite values")
    return x


def read_torch_weights(path: Path) -> TorchWeights:
    """Opens memory weights; no tensor is read yet.

    Args:
        path (Path): a file or folder, see ``torch_files.find_files``.

    Raises:
        AllMemError: if it is damaged, has no memory, or has a tensor that looks like a
            memory's and has no place.
    """
    all_tensors, others = read_files(find_files(path))
    layers: dict[int, dict[str, Tensor]] = {}
    base: dict[str, Tensor] = {}
    for name, tensor in all_tensors.items():
        plain = plain_name(name)
        if plain.startswith("optim"):
            others.append(tensor.name)
            continue
        if (found := place(plain)) is not None:
            layer, key = found
            tensors = layers.setdefault(layer, {})
        elif looks_like_memory(plain):
            raise _no_place(tensor)
        else:
            tensors, key = base, plain
        if key in tensors:
            raise duplicate(tensors[key], tensor)
        tensors[key] = tensor
    if not layers:
        raise AllMemError(
            f"{path} has no memory: no tensor is named model.layers.0.self_attn.alpha, "
            "model.layers.0.self_attn.memory. ... or the like"
        )
    return TorchWeights(path, layers, base, others)


def replace_memory(model: Any, memory: dict[str, mx.array], path: Path) -> None:
    """Replaces a model's fresh parameters by distilled ones.

    Raises:
        AllMemError: if they are not those of the model's layers.
    """
    parameters: Any = tree_flatten(model.parameters())
    fresh = {name for name, _ in parameters if is_memory(name)}
    if extra := sorted(memory.keys() - fresh):
        raise AllMemError(f"{path}: {extra[0]} has no place: {_layers(fresh)}")
    if missing := sorted(fresh - memory.keys()):
        raise AllMemError(f"{path}: {missing[0]} is missing: {_layers(fresh)}")
    model.load_weights(list(memory.items()), strict=False)


def _layers(names: Iterable[str]) -> str:
    layers = sorted({int(name.split(".")[2]) for name in names})
    text = ", ".join(map(str, layers))
    if layers == list(range(len(layers))):
        text = f"0 to {len(layers) - 1}"
    return f"the base model's layers with a memory are {text}"
