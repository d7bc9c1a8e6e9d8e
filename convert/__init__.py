"""Pretrained models as AllMem model folders.

The result is a plain mlx-lm folder: weights, ``config.json``, tokenizer, and a small
``allmem.py`` through which mlx-lm's own commands find the model class. Its memory is
fresh: alpha is 0, so it computes what the base model computes over window and sinks.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError
from allmem_mlx.families import largest_window
from allmem_mlx.loading import load_tokenizer, load_weights, read_config
from allmem_mlx.model import MODEL_TYPE, Model

from . import gguf
from .base_config import carry_over, language_model, language_weights

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
{config.chunk} tokens. Converted by allmem_mlx with fresh memory (alpha = 0): it
remembers nothing beyond the window until its memory is distilled.

```bash
python -m allmem_mlx.generate --model {name} --prompt-file book.txt
mlx_lm.generate --model {name} --trust-remote-code --prompt "hello"
```
"""

SEED = 0  # of the fresh memory, so that a conversion can be repeated exactly


class _FreshModel(Model):
    """A hybrid whose memory's parameters are those it was created with."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = super().sanitize(language_weights(weights))
        parameters: Any = tree_flatten(self.parameters())
        for name, x in parameters:
            if ".self_attn.memory." in name or name.endswith(".self_attn.alpha"):
                weights[name] = x
        return weights


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


@contextmanager
def _naming(source: Path, unpacked: str) -> Iterator[None]:
    """Errors name the file that the user gave, not the folder that it became."""
    try:
        yield
    except AllMemError as error:
        raise type(error)(str(error).replace(unpacked, str(source))) from error


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
    name: str | None = None,
    **settings: Any,
) -> None:
    """Converts a model to an AllMem model folder.

    Args:
        source (str | Path): a Hugging Face or mlx-lm model folder, or a GGUF file.
        mlx_path (str | Path): the folder to create; it must not exist.
        dtype (str): type of the weights. Default: the source's; for a quantised GGUF
            file float16, or bfloat16 for a family that overflows in float16.
        quantize (bool): quantise the base model's weights, with mlx-lm's defaults for
            ``q_bits``, ``q_group_size`` and ``q_mode``. The memory is not quantised.
        name (str): what the model card calls the source. Default: its path.
        settings: sizes of the hybrid layer, see :class:`AllMemConfig`.

    Raises:
        AllMemError: if the source is missing, damaged or not supported, or if
            ``mlx_path`` exists.
        SettingError: if a setting is impossible.
    """
    source, mlx_path = Path(source), Path(mlx_path)
    if not source.exists():
        raise AllMemError(f"{source}: no such model folder or GGUF file")
    quantization = (q_group_size, q_bits, q_mode) if quantize else None
    with _new_folder(mlx_path) as folder:
        if source.is_dir():
            _convert_folder(source, folder, dtype, quantization, settings)
        else:
            with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
                gguf.unpack(source, Path(unpacked), dtype)
                with _naming(source, unpacked):
                    _convert_folder(
                        Path(unpacked), folder, dtype, quantization, settings
                    )
        _write_card(folder, mlx_path.name, name or str(source))


def _convert_folder(
    source: Path,
    folder: Path,
    dtype: str | None,
    quantization: tuple[int | None, int | None, str] | None,
    settings: dict[str, Any],
) -> None:
    from mlx_lm.utils import quantize_model, save_config, save_model

    base = read_config(source)
    if base.get("model_type") == MODEL_TYPE:
        raise AllMemError(f"{source} is an AllMem model already")
    try:
        base = language_model(base)
        base = {**base, **carry_over(base)}
    except AllMemError as error:
        raise AllMemError(f"{source}: {error}") from None
    if (largest := largest_window(base)) is not None:
        settings.setdefault("window", min(AllMemConfig.window, largest))
    overrides = {
        **base,
        "model_type": MODEL_TYPE,
        "base_model_type": base["model_type"],
        "model_file": None,
        "allmem": asdict(AllMemConfig.for_base(base, **settings)),
    }
    mx.random.seed(SEED)
    model, config = load_weights(source, overrides, _FreshModel)

    dtype = dtype or str(model.dtype).removeprefix("mlx.core.")
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


def _write_card(folder: Path, name: str, source: str) -> None:
    config = AllMemConfig.from_dict(read_config(folder)["allmem"])
    card = MODEL_CARD.format(name=name, source=source, config=config)
    (folder / "README.md").write_text(card)
