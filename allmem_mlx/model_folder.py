"""The files of a model folder: configuration, weights, tokenizer, chat template."""

import shlex
from pathlib import Path
from typing import Any

import mlx.nn as nn

from .errors import AllMemError, SettingError, reason, warn
from .files import read_json
from .gguf_names import model_among
from .hub import WEIGHTS, remedy
from .model import Model, ModelArgs
from .weight_files import INDEX, indexed_files, safetensors_header

TEMPLATE = "chat_template.json"  # of a processor; tokenizers have chat_template.jinja


def read_config(folder: Path) -> dict[str, Any]:
    """Reads ``config.json``.

    Raises:
        AllMemError: if the folder has none, or it cannot be read.
    """
    from mlx_lm.utils import load_config

    if not (folder / "config.json").is_file():
        text = f"{folder} is not a model folder: it has no config.json"
        if files := [str(file) for file in folder.glob("*.gguf")]:
            model = shlex.quote(model_among(files))
            text += f"; convert its GGUF file: allmem_mlx convert --gguf {model}"
        raise AllMemError(text)
    try:
        config = load_config(folder)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        file = folder / "config.json"
        raise AllMemError(
            f"{file} cannot be read: {reason(error)}; {remedy(file)}"
        ) from None
    if not isinstance(config, dict):
        raise AllMemError(f"{folder / 'config.json'} does not hold a configuration")
    return config


def check_weights(folder: Path) -> list[Path]:
    """The weight files of a folder.

    Raises:
        AllMemError: if there are none, or if one is truncated, not safetensors, or
            named by the index and missing.
    """
    files = sorted(folder.glob(WEIGHTS[0]))
    if not files:
        raise AllMemError(f"{folder} has no weights ({WEIGHTS[0]})")
    if (index := folder / INDEX).is_file():
        indexed_files(index, WEIGHTS[0])
    for file in files:
        safetensors_header(file)
    return files


def load_weights(
    folder: Path,
    overrides: dict[str, Any],
    model_class: type[Model] = Model,
    lazy: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """mlx-lm's ``load_model`` for our classes, without running code of the folder.

    Args:
        folder (Path): the model folder.
        overrides (dict): values that replace those of ``config.json``.
        model_class (type): the class to create.
        lazy (bool): leave the weights on disk until they are used.

    Returns:
        tuple: the model and its configuration.

    Raises:
        AllMemError: if weights are missing, damaged or do not fit the configuration.
    """
    from mlx_lm.utils import load_model

    check_weights(folder)
    try:
        return load_model(
            folder,
            lazy=lazy,
            model_config=overrides,
            get_model_classes=lambda config: (model_class, ModelArgs),
        )
    except SettingError:
        raise
    except AllMemError as error:
        raise AllMemError(f"{folder}: {error}") from error
    except KeyError as error:
        raise AllMemError(f"{folder}: config.json has no {error}") from error
    except Exception as error:  # of many kinds, for sizes that make no sense
        raise AllMemError(
            f"{folder}: the weights do not fit: {reason(error)}"
        ) from error


def load_tokenizer(
    folder: Path, config: dict[str, Any], options: dict[str, Any] | None = None
) -> Any:
    """mlx-lm's ``load_tokenizer``, which also finds the chat template of a processor.

    Args:
        folder (Path): the model folder.
        config (dict): its ``config.json``.
        options (dict): passed to the tokenizer.

    Raises:
        AllMemError: if the folder has none, or it cannot be read.
    """
    from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

    # Without one of these, transformers creates an empty tokenizer for some families.
    files = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.tiktoken")
    if not (found := [file for pattern in files for file in folder.glob(pattern)]):
        raise AllMemError(f"{folder} has no tokenizer (tokenizer.json)")

    def get(**more: Any) -> Any:
        extra = {**(options or {}), **more}
        return mlx_lm_load_tokenizer(folder, extra, config.get("eos_token_id"))

    try:
        tokenizer = get()
        if not tokenizer.has_chat_template and (folder / TEMPLATE).is_file():
            template = _template(folder / TEMPLATE, tokenizer)
            tokenizer = get(chat_template=template) if template else tokenizer
        return tokenizer
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise AllMemError(
            f"{folder}: the tokenizer cannot be read: {reason(error)}; "
            f"{remedy(found[0])}"
        ) from error


def _template(file: Path, tokenizer: Any) -> str | None:
    """The chat template in a processor's file, or a warning that it cannot be used."""
    text = "a message"
    messages = [{"role": "user", "content": text}]
    try:
        template = read_json(file).get("chat_template")
        if not isinstance(template, str):
            raise AllMemError(f"{file} has no chat_template")
        shown = tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=template
        )
        if text not in shown:
            raise AllMemError(f"the template in {file} does not show plain text")
    except Exception as error:  # of any kind: a template is a program
        why = reason(error)
        if not isinstance(error, AllMemError):
            why = f"the template in {file} fails: {why}"
        warn(f"{why}; the model has no chat template")
        return None
    return template


def tokens_without_row(tokenizer: Any, rows: int) -> dict[str, int]:
    """Tokens without a row in the embedding, and their ids.

    Args:
        tokenizer: the tokenizer.
        rows (int): rows of the embedding.
    """
    tokens = tokenizer.get_vocab().items()
    return dict(sorted((x for x in tokens if x[1] >= rows), key=lambda x: x[1]))
