"""llama.cpp itself, by way of ``xllamacpp``."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np


class LlamaCpp:
    """A model in a GGUF file, in float32 wherever llama.cpp lets one choose.

    Args:
        path (Path): the file.
        length (int): tokens that it has room for.
    """

    def __init__(self, path: Path, length: int = 512):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_ctx = str(path), length
        parameters.warmup, parameters.n_parallel = False, 1
        parameters.cpuparams.n_threads = 1
        parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        never = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.flash_attn_type = never
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            parameters.port = free.getsockname()[1]
        self.server = xllamacpp.Server(parameters)

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        question = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question) as answer:
            return json.load(answer)

    def tokens(self, text: str, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text (str): the text.
            special (bool): whether to add those that every text starts or ends with.
        """
        body = {"content": text, "add_special": special, "parse_special": True}
        return self.ask("/tokenize", **body)["tokens"]

    def log_probabilities(self, tokens: list[int], vocab: int) -> np.ndarray:
        """Those of the token that follows."""
        body = {"n_predict": 1, "n_probs": vocab, "temperature": 0}
        answer = self.ask("/completion", prompt=tokens, **body)
        (found,) = answer["completion_probabilities"]
        result = np.full(vocab, np.nan)
        for entry in found["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        return result
