"""The base model and its tokenizer, from a folder as Hugging Face writes it."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from allmem_mlx.errors import AllMemError


def load_base(folder: str | Path, dtype: str) -> tuple[Any, Any]:
    """
    Args:
        folder (str | Path): with ``config.json``, weights and tokenizer.
        dtype (str): type of the weights.

    Returns:
        tuple: a causal LM and its tokenizer.

    Raises:
        AllMemError: if there is no such model, or it cannot be read.
    """
    if not (Path(folder) / "config.json").is_file():
        raise AllMemError(f"{folder} is not a model folder: it has no config.json")
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise AllMemError(f"{folder} cannot be loaded: {reason}") from error
    tokenizer.model_max_length = 10**9  # documents are cut to length by us
    return model, tokenizer


def best_device() -> torch.device:
    """A GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
