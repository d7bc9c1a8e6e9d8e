"""Pretrained models as AllMem model folders.

The result is a plain mlx-lm folder: weights, ``config.json``, tokenizer, and a small
``allmem.py`` through which mlx-lm's own commands find the model class. Its memory is
fresh: alpha is 0, so it computes what the base model computes over window and sinks.
Or it was distilled in PyTorch.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from allmem_mlx.command import warn
from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError
from allmem_mlx.families import check_base, rope_settings
from allmem_mlx.loading import check_weights, load_tokenizer, load_weights, read_config
from allmem_mlx.model import MODEL_TYPE, Model, ModelArgs

from . import gguf
from .torch_files import Tensor, read_files
from .torch_weights import (
    TorchWeights,
    is_memory,
    read_torch_weights,
    replace_memory,
)

MODEL_FILE = "allmem.py"
MODEL_FILE_TEXT = '''\
"""The model class for mlx-lm's own commands (--trust-remote-code)."""

try:
    from allmem_mlx.model import Model, ModelArgs  # noqa: F401
except ImportError as error:
    raise ImportError(
        "This is an AllMem model; it needs the package: pip install allmem-mlx"
    ) from error
'''
MODEL_CARD = """\
---
library_name: mlx
pipeline_tag: text-generation
tags: [mlx, allmem]
base_model: {source}
---

# {name}

{source} with AllMem hybrid attention: a window of {config.window} tokens and
{config.sinks} sinks, beside a memory that is trained while it reads, updated every
{config.chunk} tokens. Converted by allmem_mlx with {memory}.

```bash
python -m allmem_mlx.generate --model {name} --prompt-file book.txt
mlx_lm.generate --model {name} --trust-remote-code --prompt "hello"
```
"""

FRESH = """\
fresh memory (alpha = 0): it
remembers nothing beyond the window until its memory is distilled"""
DISTILLED = "memory weights distilled in PyTorch"
SEED = 0  # of the fresh memory, so that a conversion can be repeated exactly


class _FreshModel(Model):
    """A hybrid whose memory's parameters are those it was created with.

    Args:
        args (ModelArgs): the configuration.
        base (Mapping): weights that take the place of the base's own.
    """

    def __init__(self, args: ModelArgs, base: Mapping[str, mx.array]):
        super().__init__(args)
        self._base = MappingProxyType(base)  # not a dict, so not parameters

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = super().sanitize({**weights, **self._base})
        parameters: Any = tree_flatten(self.parameters())
        return weights | {name: x for name, x in parameters if is_memory(name)}


def _cast(model: Any, dtype: mx.Dtype) -> None:
    """Casts what may be cast; packed weights of a quantised base are not floats."""
    casts = model.cast_predicate

    def cast(path: str, x: mx.array) -> mx.array:
        if casts(path) and mx.issubdtype(x.dtype, mx.floating):
            return x.astype(dtype)
        return x

    model.update(tree_map_with_path(cast, model.parameters()))


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete, or not at all."""
    if path.exists():
        raise AllMemError(f"{path} already exists; delete it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def convert(
    source: str | Path,
    mlx_path: str | Path,
    *,
    dtype: str | None = None,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    torch_path: str | Path | None = None,
    name: str | None = None,
    **settings: Any,
) -> None:
    """Converts a model to an AllMem model folder.

    Args:
        source (str | Path): a Hugging Face or mlx-lm model folder, or a GGUF file.
        mlx_path (str | Path): the folder to create; it must not exist.
        dtype (str): type of the weights. Default: the source's; float16 for a GGUF
            file.
        quantize (bool): quantise the base model's weights, with mlx-lm's defaults for
            ``q_bits``, ``q_group_size`` and ``q_mode``. The memory is not quantised.
        torch_path (str | Path): memory weights distilled in PyTorch, a file or a
            folder; see ``torch_names.py``. Default: fresh memory.
        name (str): what the model card calls the source. Default: its path.
        settings: sizes of the hybrid layer, see :class:`AllMemConfig`. Default: what
            a ``config.json`` beside the memory weights says.

    Raises:
        AllMemError: if the source or the memory weights are missing, damaged or not
            supported, if they do not fit each other, or if ``mlx_path`` exists.
        SettingError: if a setting is impossible.
    """
    source, mlx_path = Path(source), Path(mlx_path)
    if not source.exists():
        raise AllMemError(f"{source}: no such model folder or GGUF file")
    quantization = (q_group_size, q_bits, q_mode) if quantize else None
    distilled = None
    if torch_path is not None:
        distilled = read_torch_weights(Path(torch_path))
        settings = distilled.settings(settings)
    options = (dtype, quantization, distilled, settings)
    with _new_folder(mlx_path) as folder:
        if source.is_dir():
            _convert_folder(source, folder, *options)
        else:
            with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
                gguf.unpack(source, Path(unpacked), getattr(mx, dtype or "float16"))
                _convert_folder(Path(unpacked), folder, *options)
        memory = DISTILLED if distilled else FRESH
        _write_card(folder, mlx_path.name, name or str(source), memory)


def _convert_folder(
    source: Path,
    folder: Path,
    dtype: str | None,
    quantization: tuple[int | None, int | None, str] | None,
    distilled: TorchWeights | None,
    settings: dict[str, Any],
) -> None:
    from mlx_lm.utils import quantize_model, save_config, save_model

    base = read_config(source)
    if base.get("model_type") == MODEL_TYPE:
        raise AllMemError(f"{source} is an AllMem model already")
    try:
        check_base(base)
    except AllMemError as error:
        raise AllMemError(f"{source}: {error}") from None
    allmem = AllMemConfig.for_base(base, **settings)
    base_weights, memory, left_out = _distilled_weights(distilled, source, base, allmem)
    overrides = {
        **rope_settings(base),
        "model_type": MODEL_TYPE,
        "base_model_type": base["model_type"],
        "model_file": None,
        "allmem": asdict(allmem),
    }
    mx.random.seed(SEED)
    new_model: Any = partial(_FreshModel, base=base_weights)
    model, config = load_weights(source, overrides, new_model)
    if distilled:
        replace_memory(model, memory, distilled.path)

    # The base's own type is that of its norms, which no quantisation touches.
    dtype = dtype or str(model.model.norm.weight.dtype).removeprefix("mlx.core.")
    _cast(model, getattr(mx, dtype))
    config["torch_dtype"] = dtype
    if quantization:
        if "quantization" in config:
            raise AllMemError(f"{source} is quantised already; leave out -q")
        group_size, bits, mode = quantization
        model, config = quantize_model(model, config, group_size, bits, mode=mode)
    tokenizer = load_tokenizer(source, config)

    config["model_file"] = MODEL_FILE
    try:
        save_model(folder, model, donate_model=True)
    except RuntimeError as error:  # MLX says so of a full disk
        raise AllMemError(f"{folder.parent} cannot be written to: {error}") from None
    save_config(config, config_path=folder / "config.json")
    tokenizer.save_pretrained(folder)
    (folder / MODEL_FILE).write_text(MODEL_FILE_TEXT)
    if (generation := source / "generation_config.json").exists():
        shutil.copy(generation, folder)
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warn(f"left out of the weights: {', '.join(left_out[:3])}{more}")


def _distilled_weights(
    distilled: TorchWeights | None,
    source: Path,
    base: dict[str, Any],
    config: AllMemConfig,
) -> tuple[dict[str, mx.array], dict[str, mx.array], list[str]]:
    """What a checkpoint of PyTorch has for the base model, what for the memory, and
    what for neither."""
    if distilled is None:
        return {}, {}, []
    memory = distilled.memory(base["hidden_size"], config)
    tensors: dict[str, Tensor] = {}
    if distilled.base:
        check_weights(source)
        tensors, _ = read_files(sorted(source.glob("model*.safetensors")))
    base_weights, left_out = distilled.base_weights(tensors, base)
    return base_weights, memory, left_out


def _write_card(folder: Path, name: str, source: str, memory: str) -> None:
    config = AllMemConfig.from_dict(read_config(folder)["allmem"])
    card = MODEL_CARD.format(name=name, source=source, config=config, memory=memory)
    (folder / "README.md").write_text(card)
