"""``--adapter-path``: adapters of ``mlx_lm.lora`` or ``allmem_mlx distill``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from .errors import AllMemError, reason
from .files import read_json
from .model import is_memory
from .weight_files import readable, safetensors_header

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
PEFT = ("adapter_model.safetensors", "adapter_model.bin")
LEAVES = ("lora_a", "lora_b", "m")  # the parameters that LoRA and DoRA add to a layer
WANTED = "give the folder that mlx_lm.lora or allmem_mlx distill wrote"
SETTINGS = {"num_layers": int, "lora_parameters": dict}


def load_adapter(model: Any, folder: Path) -> Any:
    """mlx-lm's ``load_adapters``, with checks of the folder.

    Args:
        model (Model): the model; its layers are replaced.
        folder (Path): ``adapter_config.json`` and ``adapters.safetensors``.

    Returns:
        Model: the model with the adapters.

    Raises:
        AllMemError: if a file is missing or damaged, or the adapters are PEFT's, of
            another model or of other settings.
    """
    from mlx_lm.utils import load_adapters

    try:
        names = _check(folder)
        try:
            model = load_adapters(model, str(folder))
        except ValueError as error:
            raise _misfit(folder, str(error).splitlines()[1:] or [str(error)]) from None
        except Exception as error:  # of many kinds, for settings that make no sense
            raise AllMemError(
                f"{folder / CONFIG} cannot be used: {reason(error)}; {WANTED}"
            ) from None
        parameters: Any = tree_flatten(model.parameters())
        added = {name for name, _ in parameters if name.rpartition(".")[2] in LEAVES}
        if missing := sorted(x for x in added - names.keys() if not is_memory(x)):
            raise _misfit(folder, [f"{name}: not in {WEIGHTS}" for name in missing])
    except AllMemError as error:
        raise AllMemError(f"--adapter-path: {error}") from None
    return model


def _check(folder: Path) -> Mapping[str, Any]:
    """The tensors of a folder with adapters of mlx-lm's form."""
    if not folder.is_dir():
        raise AllMemError(f"{folder}: no such folder; {WANTED}")
    config = _settings(folder / CONFIG)
    if "peft_type" in config or any((folder / name).exists() for name in PEFT):
        raise AllMemError(
            f"{folder} is an adapter of PEFT; merge it into its base model (peft's "
            "merge_and_unload, save_pretrained) and convert that: "
            "allmem_mlx convert --hf-path MERGED --mlx-path NEW_FOLDER"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AllMemError(f"{folder} has no {name}; {WANTED}")
    if config.get("fine_tune_type") != "full":
        for name, kind in SETTINGS.items():
            if not isinstance(config.get(name), kind):
                value = readable(config.get(name))
                raise AllMemError(f"{folder / CONFIG}: {name} is {value}; {WANTED}")
    return safetensors_header(folder / WEIGHTS)


def _settings(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) if file.is_file() else {}
    except AllMemError as error:
        raise AllMemError(f"{error}; {WANTED}") from None


def _misfit(folder: Path, lines: list[str]) -> AllMemError:
    name, _, problem = lines[0].strip().partition(": ")
    more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
    return AllMemError(
        f"{folder} does not fit the model: {readable(name)}: {problem}{more}; give the "
        f"model that it was trained on, and the {CONFIG} of the same training"
    )
