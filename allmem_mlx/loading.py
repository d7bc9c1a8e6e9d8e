"""A model folder as a model and a tokenizer."""

import shlex
from pathlib import Path
from typing import Any

import mlx.core as mx

from .adapters import load_adapter
from .config import AllMemConfig
from .default_model import default_model
from .errors import AllMemError, SettingError, warn
from .hub import origin, resolve
from .model import MODEL_TYPE
from .model_folder import load_tokenizer, load_weights, read_config, tokens_without_row
from .weight_files import readable, shortlist


def _without_tokens(tokenizer: Any, tokens: dict[str, int]) -> None:
    """Warns about tokens without a row in the embedding, and makes them special: text
    that spells them out is then plain text."""
    names = shortlist([f"{readable(token)!r} ({i})" for token, i in tokens.items()])
    warn(
        f"the tokenizer has tokens without a row in the embedding: {names}; they are "
        "read as plain text"
    )
    added = [x for x in tokenizer.added_tokens_decoder.values() if x.content in tokens]
    tokenizer.add_special_tokens({"additional_special_tokens": added})


def _hybrid_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of an AllMem model."""
    config = read_config(folder)
    if config.get("model_type") != MODEL_TYPE:
        source, commit = origin(folder) or (folder, None)
        revision = "" if commit is None else f" --revision {commit}"
        quoted = shlex.quote(str(source))
        raise AllMemError(
            f"{source} is not an AllMem model (model_type "
            f"{config.get('model_type')!r}); convert it first: "
            f"allmem_mlx convert --hf-path {quoted}{revision} --mlx-path NEW_FOLDER"
        )
    return config


def load(
    path: str | Path | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    adapter_path: str | None = None,
    lazy: bool = False,
    return_config: bool = False,
    revision: str | None = None,
) -> tuple[Any, ...]:
    """Loads an AllMem model folder, as ``mlx_lm.load`` does any other.

    Args:
        path (str | Path): the folder, or a repository of the hub, ``ORG/NAME``;
            ``None`` for the embedded default model.
        tokenizer_config (dict): options of the tokenizer.
        model_config (dict): values that replace those of the folder's ``allmem``
            settings: ``window``, ``sinks``, ``chunk``, ...
        adapter_path (str): folder of adapters to apply, see ``adapters.py``.
        lazy (bool): leave the weights on disk until they are used.
        return_config (bool): return the configuration too.
        revision (str): branch, tag or commit of a hub repository.

    Returns:
        tuple: the model, its tokenizer and, if asked for, the configuration.

    Raises:
        AllMemError: if the folder is not an AllMem model or is damaged, if the
            repository cannot be downloaded, or if the adapters do not fit.
        SettingError: if ``model_config`` holds an impossible value.
    """
    if path is None:
        path = default_model()
    folder = resolve(path, revision, check=_hybrid_config)
    config = _hybrid_config(folder)
    settings: Any = config.get("allmem")
    try:
        AllMemConfig.from_dict(settings)
    except SettingError as error:
        raise AllMemError(f"{folder / 'config.json'}: {error}") from None
    settings = {**settings, **(model_config or {})}
    AllMemConfig.from_dict(settings)

    overrides = {"allmem": settings, "model_file": None}
    model, config = load_weights(folder, overrides, lazy=True)
    rows = model.token_embedding.weight.shape[0]
    if adapter_path is not None:
        model = load_adapter(model, Path(adapter_path))
        model.eval()
    if not lazy:
        mx.eval(model.used_parameters())
    tokenizer = load_tokenizer(folder, config, tokenizer_config)
    if tokens := tokens_without_row(tokenizer, rows):
        _without_tokens(tokenizer, tokens)
    if return_config:
        return model, tokenizer, config
    return model, tokenizer
