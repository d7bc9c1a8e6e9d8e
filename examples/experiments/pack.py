"""Packs a distilled memory into a small file, like that of the embedded default model.

    python examples/experiments/pack.py RUN FILE

RUN is the ``--out`` of ``python -m allmem_mlx.distillation.torch``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

from allmem_mlx.packed_memory import pack

if __name__ == "__main__":
    run, file = map(Path, sys.argv[1:])
    memory: Any = mx.load(str(run / "memory.safetensors"))
    pack(memory, json.loads((run / "config.json").read_text())["allmem"], file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
