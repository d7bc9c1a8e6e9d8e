"""The model card: ``README.md`` of a converted folder."""

import json
import shlex
from pathlib import Path
from typing import Any

from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import reason, warn
from allmem_mlx.hub import CARD, origin
from allmem_mlx.model_folder import read_config
from allmem_mlx.version import __version__

CARRIED_OVER = ("license", "license_name", "license_link", "language", "base_model")
TEXT = """\
# {name}

{source} with AllMem hybrid attention
([arXiv 2602.13680](https://arxiv.org/abs/2602.13680)). Each attention layer sees a
window of {config.window} tokens and the first {config.sinks} of the document, and adds
the output of a memory that is trained on the rest while the model reads it. The state
has a fixed size, however long the document is.

## How it was made

Converted by allmem_mlx {version}:

| | |
|---|---|
| source | {source}{details} |
| family | {family} |
| weights | {weights} |
| window, sinks | {config.window}, {config.sinks} tokens |
| memory updated every | {config.chunk} tokens |
| memory | {memory} |

## Use

```bash
pip install allmem-mlx
allmem_mlx generate --model {quoted} --prompt-file book.txt
allmem_mlx chat --model {quoted}
mlx_lm.generate --model {quoted} --trust-remote-code --prompt "hello"
```

```python
from allmem_mlx import generate, load

model, tokenizer = load({literal})
print(generate(model, tokenizer, "hello"))
```

`--trust-remote-code` lets mlx-lm import `allmem.py` of this folder, which takes the
model class from the installed package. allmem_mlx itself runs no code of the folder.

## Limits

{limits}
- The state has a fixed size and cannot be unlearned: no `--max-kv-size`, `--kv-bits`,
  draft model or batched generation.
- The limits of the base model remain.
"""
FRESH = """\
- Memory: none (alpha = 0). **Nothing beyond the window and the sinks is remembered**
  until the memory is distilled, and it costs nothing until then. Up to that length the
  output is the base model's."""
IMPORTED = """\
- Text beyond the window is remembered by the memory only, and not word for word."""


def write(
    folder: Path, name: str, source: Path, source_name: str, memory: str | None = None
) -> None:
    """Writes the card of a finished folder.

    Args:
        folder (Path): the folder, with its ``config.json``.
        name (str): its future name.
        source (Path): the folder or file that was converted; the licence, languages and
            tags of its card are carried over.
        source_name (str): the name of the source.
        memory (str): the origin of the memory's weights. Default: they are fresh.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = read_config(folder)
    repo, commit = origin(source) or (None, None)
    data: dict[str, Any] = _carried_over(source)
    if repo is not None:
        data["base_model"] = repo
    tags = dict.fromkeys([*data.pop("tags", []), "mlx", "allmem"])
    header = ModelCardData(
        library_name="mlx", pipeline_tag="text-generation", tags=list(tags), **data
    )
    allmem = AllMemConfig.from_dict(config["allmem"])
    heads = f"{allmem.heads} heads, {allmem.head_dim} wide, "
    heads += f"{allmem.hidden_dim} hidden units"
    details = f", commit `{commit}`" if commit else ""
    if repo is not None and source.is_file():
        details = f", `{source.name}`{details}"
    text = TEXT.format(
        name=name,
        quoted=shlex.quote(name),
        literal=json.dumps(name, ensure_ascii=False),
        source=f"[{repo}](https://huggingface.co/{repo})" if repo else source_name,
        details=details,
        version=__version__,
        family=config["base_model_type"],
        weights=_weights(config),
        config=allmem,
        memory=f"{heads}; {memory}" if memory else f"none: alpha is 0, for {heads}",
        limits=IMPORTED if memory else FRESH,
    )
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}").save(folder / CARD)


def _weights(config: dict[str, Any]) -> str:
    """Type and quantisation, in words."""
    dtype: str = config["torch_dtype"]
    if not (quantized := config.get("quantization")):
        return dtype
    mode, bits = quantized.get("mode", "affine"), quantized["bits"]
    return (
        f"{bits} bits ({mode}, groups of {quantized['group_size']}), the rest {dtype}; "
        "the memory is not quantised"
    )


def _carried_over(source: Path) -> dict[str, Any]:
    """The fields of the source's card that hold for the conversion too."""
    from huggingface_hub import ModelCard

    card = source / CARD
    if not card.is_file():
        return {}
    try:
        data = ModelCard(card.read_text(), ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # of many kinds, for text that is not a card
        text = reason(error)
        warn(f"{card} cannot be read, its licence is not carried over: {text}")
        return {}
    fields = {name: data[name] for name in CARRIED_OVER if data.get(name)}
    if isinstance(tags := data.get("tags"), list):
        fields["tags"] = [str(tag) for tag in tags]
    return fields
