"""What a base's config.json says is carried over or refused by name, never ignored."""

import json

import pytest
from family_cases import CASES, FULL, LINEAR, SLIDING, YARN, settings, theta
from helpers import TINY_BASE

from allmem_mlx.convert.base_config import (
    HARMLESS,
    carry_over,
    fixed_settings,
    language_model,
)
from allmem_mlx.errors import AllMemError
from allmem_mlx.families import FAMILIES, attention_windows, model_classes

# The first case of each family.
FIRST = {family: name for name, (family, _) in reversed(CASES.items())}


def config_of(name: str) -> dict:
    """The config.json that transformers writes."""
    from transformers import AutoConfig

    family, config = settings(name)
    return json.loads(AutoConfig.for_model(family, **config).to_json_string())


def another(value):
    """A value of the same kind that means something else."""
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "relu"


def test_every_family_has_a_case():
    assert FIRST.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_of_transformers_is_read_or_harmless_or_refused(family):
    """Over all settings of the family in this version of transformers."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    known = set(CONFIG_MAPPING[family]().to_dict()) - set(PretrainedConfig().to_dict())
    config, fixed = config_of(FIRST[family]), fixed_settings(family)
    carried = carry_over(config)
    for name in sorted(known - HARMLESS):
        if name not in fixed:
            assert name in carried
            continue
        changed = {**config, name: another(fixed[name][0])}
        with pytest.raises(AllMemError) as refused:
            carry_over(changed)
        assert name in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", CASES)
def test_the_model_file_gets_what_it_reads(name):
    """Everything but what has one value for all models of the hub."""
    optional = {"rope_traditional", "layer_norm_bias", "no_rope_layer_interval"}
    optional |= {"head_dim", "mlp_bias", "attention_bias", "use_qk_norm"}
    family = CASES[name][0]
    carried = carry_over(config_of(name))
    arguments = model_classes(family)[1]
    missing = set(arguments.__dataclass_fields__) - set(carried) - {"model_type"}
    assert missing <= optional
    for key, value in carried.items():
        if key in settings(name)[1] and key not in HARMLESS | {"rope_theta"}:
            assert value == settings(name)[1][key]


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
HALF = theta(10000.0, partial_rotary_factor=0.5)
# Of a case, the setting that is changed, its value, and what the message must name.
REFUSED = [
    ("llama", "rope_parameters", DYNAMIC, ["'dynamic'", "yarn"]),
    ("llama", "rope_parameters", HALF, ["partial_rotary_factor", "0.5"]),
    ("llama", "rope_scaling", {"type": "dynamic", "factor": 2.0}, ["'dynamic'"]),
    ("qwen3", "rope_parameters", {**YARN, "attention_factor": 1.5}, ["attention_f"]),
    ("qwen3", "rope_parameters", {**YARN, "truncate": False}, ["truncate"]),
    ("qwen3", "rope_parameters", {**YARN, "factor": None}, ["factor"]),
    ("gemma", "rope_parameters", LINEAR, ["'linear'", "gemma"]),
    ("phi3", "rope_parameters", LONGROPE, ["'longrope'"]),
    ("gemma3_text", "layer_types", [FULL, SLIDING] + [FULL] * 4, ["layer_types"]),
    ("gemma3_text", "layer_types", [SLIDING] * 6, ["sliding and global"]),
    (
        "gemma3_text",
        "rope_parameters",
        {FULL: theta(1e6), SLIDING: LINEAR},
        ["'linear'", "sliding"],
    ),
    ("olmo3", "layer_types", [FULL] * 4, ["sliding and global"]),
    ("olmo3", "rope_parameters", {FULL: theta(1e6), SLIDING: theta(1e4)}, ["theta"]),
    ("qwen2", "layer_types", ["linear_attention", FULL], ["linear_attention"]),
    ("llama", "hidden_act", "gelu", ["hidden_act", "'gelu'", "'silu'"]),
    ("gemma2", "attn_logit_softcapping", None, ["attn_logit_softcapping"]),
    ("llama", "hidden_size", "wide", ["hidden_size"]),
    ("llama", "num_hidden_layers", 0, ["num_hidden_layers"]),
    ("llama", "quantization_config", {"quant_method": "gptq"}, ["quantised"]),
    ("llama", "model_type", "mamba", ["'mamba'", *FAMILIES]),
    ("llama", "model_type", None, ["None"]),
    ("llama", "model_type", ["llama"], ["['llama']"]),
]


@pytest.mark.parametrize("name, setting, value, words", REFUSED)
def test_refused_by_name(name, setting, value, words):
    config = config_of(name)
    if setting == "rope_scaling":
        del config["rope_parameters"]
    with pytest.raises(AllMemError) as refused:
        carry_over({**config, setting: value})
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_old_spellings_of_transformers():
    """As most models of the hub still have them."""
    old = {**TINY_BASE, "rope_theta": 500.0, "model_type": "llama"}
    assert carry_over(old)["rope_theta"] == 500.0
    scaled = {**old, "rope_scaling": {"type": "linear", "factor": 4.0}}
    carried = carry_over(scaled)
    assert carried["rope_theta"] == 500.0
    assert carried["rope_scaling"]["type"] == "linear"
    assert carried["rope_scaling"]["factor"] == 4.0
    assert (
        carry_over(
            {
                **old,
                "model_type": "phi3",
                "pad_token_id": 0,
                "partial_rotary_factor": 0.75,
            }
        )["partial_rotary_factor"]
        == 0.75
    )


def test_old_gemma_3():
    """Without layer types, sizes or rotary parameters, and inside a wrapper."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    outer = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    config = language_model(outer)
    carried = carry_over(config)
    assert config["eos_token_id"] == [1, 106]
    assert carried["sliding_window_pattern"] == 6
    assert carried["rope_theta"] == 1e6 and carried["rope_local_base_freq"] == 1e4
    assert carried["rope_scaling"]["factor"] == 8.0
    assert carried["vocab_size"] == 262208
    windows = ([1024] * 5 + [None]) * 5 + [1024] * 4
    assert list(attention_windows(carried).values()) == windows


def test_sliding_that_is_switched_off():
    """As Qwen 2.5 and Qwen 3 are on the hub."""
    off = {"use_sliding_window": False, "sliding_window": 32768, "layer_types": None}
    carried = carry_over({**TINY_BASE, "model_type": "qwen2", **off})
    assert carried["sliding_window"] is None and carried["layer_types"] is None
