"""Corrupted model folders: one clear error each, and nothing left behind."""

import json
import math
import random
import shutil

import pytest
from family_cases import CASES, save_checkpoint
from helpers import slow_beyond

from allmem_mlx.convert import convert
from allmem_mlx.errors import AllMemError
from allmem_mlx.families import FAMILIES

# The first case of each family, and how many configurations of it are tried.
FIRST = {family: name for name, (family, _) in reversed(CASES.items())}
COUNTS = {FIRST[family]: 20 for family in FAMILIES}
COUNTS |= dict.fromkeys(("llama", "gemma3_text", "qwen2", "phi3"), 75)
OFTEN = sorted(COUNTS, key=COUNTS.get, reverse=True)
VALUES = (
    *(None, True, False, 0, 1, -1, 3, 7, 63, 10**4, 10**6, 10**12, 10**30, 0.5, -2.5),
    *(math.inf, math.nan, "", "0", "llama", "full_attention", [], [1], [None], {}),
    *({"rope_type": "yarn"}, {"a": {"b": []}}, ["sliding_attention"] * 2, "é" * 100),
)


def slots(value, path=()):
    """Places in a configuration that can be changed."""
    items = value.items() if isinstance(value, dict) else ()
    for name, inner in items:
        yield (*path, name)
        yield from slots(inner, (*path, name))


def corrupted(config: dict, rng: random.Random) -> dict:
    """One or two values removed or replaced, or a setting added."""
    config = json.loads(json.dumps(config))
    for _ in range(rng.choice((1, 1, 1, 2))):
        *outer, name = rng.choice(list(slots(config)))
        place = config
        for step in outer:
            place = place.get(step, {}) if isinstance(place, dict) else {}
        if not isinstance(place, dict):
            continue
        if rng.random() < 0.15:
            place.pop(name, None)
        elif rng.random() < 0.1:
            place[rng.choice(("rope_scaling", "layer_types", "text_config"))] = (
                rng.choice(VALUES)
            )
        elif type(place.get(name)) is int and rng.random() < 0.7:
            place[name] = rng.choice((0, -1, 1, 3, 2**20, 10**9, 10**12, 2**70))
        else:
            place[name] = rng.choice(VALUES)
    return config


@pytest.mark.parametrize("name", slow_beyond(12, OFTEN))
def test_corrupted_configurations(name, tmp_path):
    save_checkpoint(tmp_path / "base", name)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    rng, refused = random.Random(name), 0
    for case in range(COUNTS[name]):
        text = json.dumps(corrupted(config, rng))
        if rng.random() < 0.1:  # not JSON any more
            text = text[: rng.randrange(len(text))]
        (tmp_path / "base" / "config.json").write_text(text)
        try:
            convert(tmp_path / "base", tmp_path / "new")
        except AllMemError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, text
            assert [path.name for path in tmp_path.iterdir()] == ["base"], text
        except BaseException as error:
            raise AssertionError(f"case {case}: {error!r} of {text}") from error
        else:
            shutil.rmtree(tmp_path / "new")
    assert refused > COUNTS[name] // 4
