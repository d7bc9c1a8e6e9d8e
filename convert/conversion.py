"""Pretrained models as AllMem model folders.

The result is a plain mlx-lm folder: weights, ``config.json``, tokenizer, and a small
``allmem.py`` through which mlx-lm's own commands find the model class. Its memory is
either fresh (alpha is 0, so it computes the same as the base model over window and
sinks) or was distilled in PyTorch.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from allmem_mlx import hub
from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError, SettingError, reason, warn
from allmem_mlx.families import WRAPPERS
from allmem_mlx.files import creating
from allmem_mlx.model import MODEL_TYPE, Model, ModelArgs, is_memory
from allmem_mlx.model_folder import (
    check_weights,
    load_tokenizer,
    load_weights,
    read_config,
)
from allmem_mlx.weight_files import (
    INDEX,
    readable,
    safetensors_header,
    shortlist,
    weight_map,
)

from . import card, gguf
from .base_config import (
    carry_over,
    hybrid_config,
    language_model,
    states_tied_embeddings,
)
from .pickled import pickled_weights, unpack
from .published import (
    has_own_head,
    language_model_quantization,
    language_model_weights,
    without_head,
)
from .torch_files import Tensor, read_files
from .torch_weights import TorchWeights, read_torch_weights, replace_memory

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

MODELOPT = "hf_quant_config.json"  # where NVIDIA's ModelOpt says what it did
SEED = 0  # of the fresh memory, so that a conversion can be repeated exactly


class _FreshModel(Model):
    """A hybrid that keeps the memory's parameters it was created with.

    Args:
        args (ModelArgs): the configuration.
        base (Callable): selects the base's weights from those in its files.
    """

    def __init__(
        self,
        args: ModelArgs,
        base: Callable[[dict[str, mx.array]], dict[str, mx.array]],
    ):
        super().__init__(args)
        self._base = base

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = super().sanitize(self._base(weights))
        parameters: Any = tree_flatten(self.parameters())
        return weights | {name: x for name, x in parameters if is_memory(name)}


def _cast(model: Any, dtype: mx.Dtype, which: Callable[[str], bool]) -> None:
    """Casts the weights that may be cast; packed ones are integers."""

    def casts(path: str) -> bool:
        return model.cast_predicate(path) and which(path)

    def cast(path: str, x: mx.array) -> mx.array:
        if casts(path) and mx.issubdtype(x.dtype, mx.floating):
            return x.astype(dtype)
        return x

    model.update(tree_map_with_path(cast, model.parameters()))


def _quantize(
    model: Any, config: dict[str, Any], *options: Any
) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's ``quantize_model``, which knows what the model does not want; group
    size, bits and mode are its options."""
    from mlx_lm.utils import quantize_model

    try:
        model, config = quantize_model(model, config, *options)
    except ValueError as error:
        raise SettingError(f"-q: {reason(error)}") from error
    parameters: Any = tree_flatten(model.parameters())
    if not any(name.endswith(".scales") for name, _ in parameters):
        group = config["quantization"]["group_size"]
        raise SettingError(
            f"-q: no weight's width is a multiple of the group size, {group}"
        )
    return model, config


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
    revision: str | None = None,
    upload_repo: str | None = None,
    **settings: Any,
) -> None:
    """Converts a model to an AllMem model folder.

    Args:
        source (str | Path): a Hugging Face or mlx-lm model folder, a GGUF file, or a
            repository of the hub, ``ORG/NAME``.
        mlx_path (str | Path): the folder to create; it must not exist.
        dtype (str): type of the weights. Default: the source's; for a quantised GGUF
            file float16, or bfloat16 for a family that overflows in float16.
        quantize (bool): quantise the base model's weights, with mlx-lm's defaults for
            ``q_bits``, ``q_group_size`` and ``q_mode``. The memory is not quantised.
        torch_path (str | Path): memory weights distilled in PyTorch, a file or a
            folder; see ``torch_names.py``. Default: fresh memory.
        name (str): what the model card calls the source. Default: its name.
        revision (str): branch, tag or commit of a hub repository.
        upload_repo (str): a hub repository to upload the finished folder to.
        settings: sizes of the hybrid layer, see :class:`AllMemConfig`. Default: what
            a ``config.json`` beside the memory weights says.

    Raises:
        AllMemError: if the source or the memory weights are missing, damaged or not
            supported, if they do not fit each other, if ``mlx_path`` exists, or if the
            upload fails, which leaves ``mlx_path``.
        SettingError: if a setting is impossible.
    """
    mlx_path = Path(mlx_path)
    if upload_repo is not None:
        hub.check_upload(upload_repo)
    quantization = (q_group_size, q_bits, q_mode) if quantize else None
    distilled = None
    if torch_path is not None:
        distilled = read_torch_weights(Path(torch_path))
        settings = distilled.settings(settings)
    options = (dtype, quantization, distilled, settings)
    with creating(mlx_path, Path.mkdir) as folder:
        check = partial(_configure, settings=settings)
        path = hub.resolve(source, revision, check, hub.SOURCES)
        with _unpacked(path, folder.parent, dtype, check) as (unpacked, left_out):
            _convert_folder(unpacked, folder, *options, left_out)
        memory = None
        if distilled:
            memory = f"distilled in PyTorch, `{hub.name_of(distilled.path)}`"
        new_name = upload_repo or mlx_path.name
        card.write(folder, new_name, path, name or hub.name_of(path), memory)
    if upload_repo is not None:
        url = hub.upload(mlx_path, upload_repo)
        print(f"Upload successful, go to {url} for details.")


@contextmanager
def _unpacked(
    source: Path,
    place: Path,
    dtype: str | None,
    configure: Callable[[Path], tuple[dict[str, Any], AllMemConfig]],
) -> Iterator[tuple[Path, list[str]]]:
    """A source as a folder with safetensors: itself, or a temporary one in ``place``;
    and the names of tensors that are not in it. Errors name the source."""
    pickles = pickled_weights(source)
    if source.is_dir() and not pickles:
        yield source, []
        return
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder, left_out = Path(temporary), []
        if pickles:
            base, _ = configure(source)
            left_out = unpack(pickles, folder, base)
        else:
            left_out = gguf.unpack(source, folder, dtype)
        try:
            yield folder, left_out
        except AllMemError as error:
            text = str(error).replace(temporary, str(source))
            raise type(error)(text) from error


def _configure(
    source: Path, settings: dict[str, Any]
) -> tuple[dict[str, Any], AllMemConfig]:
    """The configurations of a base model and of its hybrid.

    Raises:
        AllMemError: if the model cannot be converted.
    """
    whole = read_config(source)
    if whole.get("model_type") == MODEL_TYPE:
        raise AllMemError(f"{source} is an AllMem model already")
    try:
        base = _language_model(source, whole)
        base = {**base, **carry_over(base)}
    except AllMemError as error:
        raise AllMemError(f"{source}: {error}") from None
    return base, hybrid_config(base, settings)


def _language_model(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The language model's configuration, as far as its files complete it."""
    base = language_model(config)
    found: dict[str, Any] = {}
    unstated = base is not config and not states_tied_embeddings(config)
    if unstated and has_own_head(source):
        found["tie_word_embeddings"] = False
    if (source / MODELOPT).exists() and not base.get("quantization_config"):
        found["quantization_config"] = {"quant_method": "modelopt"}
    if base.get("quantization"):
        found["quantization"] = language_model_quantization(base["quantization"])
    return {**base, **found}


def _convert_folder(
    source: Path,
    folder: Path,
    dtype: str | None,
    quantization: tuple[int | None, int | None, str] | None,
    distilled: TorchWeights | None,
    settings: dict[str, Any],
    left_out: list[str],
) -> None:
    from mlx_lm.utils import save_config, save_model

    base, allmem = _configure(source, settings)
    base_weights, memory, unused = _distilled_weights(distilled, source, base, allmem)
    left_out = [*left_out, *unused, *_in_other_files(source, base)]

    def select(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights, extras = language_model_weights(weights, base)
        left_out.extend(extras)
        if base["tie_word_embeddings"]:
            weights = without_head(weights)
        return {**weights, **base_weights}

    whole = read_config(source)
    overrides = {
        **base,
        "text_config": {},  # mlx-lm would look for a quantisation there
        "model_type": MODEL_TYPE,
        "base_model_type": base["model_type"],
        "model_file": None,
        "allmem": asdict(allmem),
    }
    mx.random.seed(SEED)
    new_model: Any = partial(_FreshModel, base=select)
    model, config = load_weights(source, overrides, new_model, lazy=True)
    if whole["model_type"] in WRAPPERS:  # without the settings of its towers
        config = {x: config[x] for x in config if x in overrides or x not in whole}
    del config["text_config"]
    if quantised := bool(config.get("quantization")):
        config["quantization_config"] = config["quantization"]
    if distilled:
        replace_memory(model, memory, distilled.path)

    # Scales that are cast would be another quantisation.
    which = is_memory if quantised and dtype is None else lambda path: True
    dtype = dtype or str(model.dtype).removeprefix("mlx.core.")
    _cast(model, getattr(mx, dtype), which)
    config["torch_dtype"] = dtype
    if quantization:
        if quantised:
            raise AllMemError(f"{source} is quantised already; leave out -q")
        model, config = _quantize(model, config, *quantization)
    tokenizer = load_tokenizer(source, config)

    config["model_file"] = MODEL_FILE
    save_model(folder, model, donate_model=True)
    save_config(config, config_path=folder / "config.json")
    tokenizer.save_pretrained(folder)
    (folder / MODEL_FILE).write_text(MODEL_FILE_TEXT)
    if (generation := source / "generation_config.json").exists():
        shutil.copy(generation, folder)
    if left_out:
        warn(f"left out of the weights: {shortlist(left_out)}")


def _in_other_files(source: Path, base: dict[str, Any]) -> list[str]:
    """The names of tensors beside the weights that the language model does not use.

    Raises:
        AllMemError: if it would use one that the index has in a file of another name.
    """
    left_out: list[str] = []
    if (index := source / INDEX).is_file():
        files = weight_map(index)
        names = {x: x for x in files if not fnmatch(str(files[x]), hub.WEIGHTS[0])}
        used, left_out = language_model_weights(names, base)
        for name in used.values():
            raise AllMemError(
                f"{index} has {readable(name)} in {readable(files[name])}; only "
                f"{hub.WEIGHTS[0]} are read: rename the file, also in the index"
            )
    for file in sorted(source.glob("*.safetensors")):
        if not file.match(hub.WEIGHTS[0]):
            with suppress(AllMemError):  # what is not used may be damaged
                used, extras = language_model_weights(safetensors_header(file), base)
                left_out += [] if used else [x for x in extras if x not in left_out]
    return left_out


def _distilled_weights(
    distilled: TorchWeights | None,
    source: Path,
    base: dict[str, Any],
    config: AllMemConfig,
) -> tuple[dict[str, mx.array], dict[str, mx.array], list[str]]:
    """The base model's weights and the memory's in a PyTorch checkpoint, and the names
    of its other tensors."""
    if distilled is None:
        return {}, {}, []
    memory = distilled.memory(base["hidden_size"], config)
    tensors: dict[str, Tensor] = {}
    if distilled.base:
        tensors, _ = read_files(check_weights(source))
    tensors, _ = language_model_weights(tensors, base)
    weights, left_out = distilled.base_weights(tensors, base)
    return weights, memory, left_out
