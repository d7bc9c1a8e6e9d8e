"""Pretrained models as AllMem model folders.

The result is a plain mlx-lm folder: weights, ``config.json``, tokenizer, and a small
``allmem.py`` through which mlx-lm's own commands find the model class. Its memory is
fresh: alpha is 0, so it computes what the base model computes over window and sinks.
"""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from allmem_mlx import hub
from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError
from allmem_mlx.families import check_base, rope_settings
from allmem_mlx.loading import load_tokenizer, load_weights, read_config
from allmem_mlx.model import MODEL_TYPE, Model

from . import card, gguf
from .new_folder import new_folder

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

SEED = 0  # of the fresh memory, so that a conversion can be repeated exactly


class _FreshModel(Model):
    """A hybrid whose memory's parameters are those it was created with."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = super().sanitize(weights)
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
    revision: str | None = None,
    upload_repo: str | None = None,
    **settings: Any,
) -> None:
    """Converts a model to an AllMem model folder.

    Args:
        source (str | Path): a Hugging Face or mlx-lm model folder, a GGUF file, or a
            repository of the hub, ``ORG/NAME``.
        mlx_path (str | Path): the folder to create; it must not exist.
        dtype (str): type of the weights. Default: the source's; float16 for a GGUF
            file.
        quantize (bool): quantise the base model's weights, with mlx-lm's defaults for
            ``q_bits``, ``q_group_size`` and ``q_mode``. The memory is not quantised.
        name (str): what the model card calls the source. Default: its name.
        revision (str): branch, tag or commit of a hub repository.
        upload_repo (str): a hub repository to upload the finished folder to.
        settings: sizes of the hybrid layer, see :class:`AllMemConfig`.

    Raises:
        AllMemError: if the source is missing, damaged or not supported, if ``mlx_path``
            exists, or if the upload fails, which leaves ``mlx_path``.
        SettingError: if a setting is impossible.
    """
    mlx_path = Path(mlx_path)
    if upload_repo is not None:
        hub.check_upload(upload_repo)
    quantization = (q_group_size, q_bits, q_mode) if quantize else None

    def check(folder: Path) -> None:
        AllMemConfig.for_base(_base_config(folder), **settings)

    with new_folder(mlx_path) as folder:
        path = hub.resolve(source, revision, check)
        if path.is_dir():
            _convert_folder(path, folder, dtype, quantization, settings)
        else:
            with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
                gguf.unpack(path, Path(unpacked), getattr(mx, dtype or "float16"))
                _convert_folder(Path(unpacked), folder, dtype, quantization, settings)
        card.write(folder, upload_repo or mlx_path.name, path, name or path.name)
    if upload_repo is not None:
        url = hub.upload(mlx_path, upload_repo)
        print(f"Upload successful, go to {url} for details.")


def _base_config(source: Path) -> dict[str, Any]:
    """The ``config.json`` of a base model that can be converted."""
    base = read_config(source)
    if base.get("model_type") == MODEL_TYPE:
        raise AllMemError(f"{source} is an AllMem model already")
    try:
        check_base(base)
    except AllMemError as error:
        raise AllMemError(f"{source}: {error}") from None
    return base


def _convert_folder(
    source: Path,
    folder: Path,
    dtype: str | None,
    quantization: tuple[int | None, int | None, str] | None,
    settings: dict[str, Any],
) -> None:
    from mlx_lm.utils import quantize_model, save_config, save_model

    base = _base_config(source)
    overrides = {
        **rope_settings(base),
        "model_type": MODEL_TYPE,
        "base_model_type": base["model_type"],
        "model_file": None,
        "allmem": asdict(AllMemConfig.for_base(base, **settings)),
    }
    mx.random.seed(SEED)
    model, config = load_weights(source, overrides, _FreshModel)

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
