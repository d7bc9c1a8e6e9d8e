"""What a base's config.json says is carried over or refused by name, never ignored."""

import pytest
from family_cases import (
    CASES,
    FULL,
    LINEAR,
    SLIDING,
    YARN,
    config_of,
    settings,
    theta,
)
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


# Settings of mlx-lm's alone, which the models of the hub do not have or need.
OPTIONAL = {
    "attention_bias",
    "head_dim",
    "layer_norm_bias",
    "mlp_bias",
    "no_rope_layer_interval",
    "rope_traditional",
    "use_qk_norm",
}
OPTIONAL_IN = {
    "ernie4_5_moe": {"moe_capacity", "moe_use_aux_free"},
    "falcon_h1": {"mamba_use_mlp", "mlp_expansion_factor"},
    "gemma4_text": {"global_partial_rotary_factor", "sliding_window_pattern"},
    "granitemoehybrid": {"layer_norm_epsilon"},
    "jamba": {"layers_block_type"},
    "lfm2": {"block_ff_dim", "full_attn_idxs"},
    "lfm2_moe": {"full_attn_idxs"},
    "nemotron_h": {"hybrid_override_pattern"},
    "olmo_hybrid": {"layer_norm_epsilon"},
    "phimoe": {"original_max_position_embeddings"},
    "qwen3_5_text": {
        "decoder_sparse_step",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "shared_expert_intermediate_size",
    },
    "qwen3_5_moe_text": {"decoder_sparse_step", "norm_topk_prob"},
}
# Read from another setting of transformers.
RENAMED = HARMLESS | {"rope_theta", "intermediate_size"}


@pytest.mark.parametrize("name", CASES)
def test_the_model_file_gets_what_it_reads(name):
    """Everything but what has one value for all models of the hub."""
    family = CASES[name][0]
    carried = carry_over(config_of(name))
    arguments = model_classes(family)[1]
    missing = set(arguments.__dataclass_fields__) - set(carried) - {"model_type"}
    assert missing <= OPTIONAL | OPTIONAL_IN.get(family, set())
    for key, value in carried.items():
        given = settings(name)[1].get(key)
        if given is not None and key not in RENAMED:
            assert value == given


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
    ("qwen3", "rope_parameters", {**YARN, "factor": None}, ["factor"]),
    ("llama", "rope_parameters", theta("many"), ["rope_theta", "'many'"]),
    ("glm", "rope_parameters", {**HALF, "partial_rotary_factor": 2}, ["partial_", "2"]),
    ("gemma", "rope_parameters", LINEAR, ["'linear'", "gemma"]),
    ("qwen3", "rope_parameters", LONGROPE, ["'longrope'"]),
    ("gemma3_text", "layer_types", [FULL, SLIDING] + [FULL] * 4, ["layer_types"]),
    ("gemma3_text", "layer_types", [SLIDING] * 6, ["all of one kind"]),
    (
        "gemma3_text",
        "rope_parameters",
        {FULL: theta(1e6), SLIDING: LINEAR},
        ["'linear'", "sliding"],
    ),
    ("olmo3", "layer_types", [FULL] * 4, ["all of one kind"]),
    ("olmo3", "rope_parameters", {FULL: theta(1e6), SLIDING: theta(1e4)}, ["theta"]),
    ("qwen2", "layer_types", ["linear_attention", FULL], ["linear_attention"]),
    ("llama", "hidden_act", "gelu", ["hidden_act", "'gelu'", "'silu'"]),
    ("gemma2", "attn_logit_softcapping", None, ["attn_logit_softcapping"]),
    ("afmoe", "num_experts_per_tok", 1, ["num_experts_per_tok"]),
    ("afmoe", "layer_types", [FULL] * 4, ["all of one kind"]),
    ("dots1", "attention_bias", True, ["attention_bias"]),
    ("dots1", "num_experts_per_tok", 5, ["num_experts_per_tok", "5", "4", "topk"]),
    ("dots1", "num_experts_per_tok", 0, ["num_experts_per_tok"]),
    ("dots1", "n_group", 3, ["n_group", "3", "8"]),
    ("dots1", "topk_group", 5, ["topk_group", "5", "4"]),
    ("dots1", "topk_group", 1, ["topk_group", "num_experts_per_tok"]),
    ("ernie4_5_moe", "use_bias", True, ["use_bias"]),
    ("ernie4_5_moe", "moe_k", 7, ["moe_k", "7", "6"]),
    ("glm4_moe", "tie_word_embeddings", True, ["tie_word_embeddings"]),
    ("laguna", "gating", False, ["gating"]),
    ("laguna", "layer_types", [SLIDING] * 4, ["all of one kind"]),
    ("laguna", "rope_parameters", theta(1e4), ["rope_parameters", FULL, SLIDING]),
    ("mellum", "mlp_layer_types", ["dense"] * 3, ["mlp_layer_types"]),
    (
        "mellum",
        "rope_parameters",
        {FULL: LINEAR, SLIDING: theta(1e4)},
        ["'linear'", "mellum"],
    ),
    ("minimax_m2", "hidden_act", "gelu", ["hidden_act"]),
    ("mixtral", "head_dim", 32, ["head_dim", "32", "16"]),
    ("phimoe", "num_experts_per_tok", 3, ["num_experts_per_tok", "3"]),
    ("qwen2_moe", "decoder_sparse_step", 2, ["decoder_sparse_step"]),
    ("qwen2_moe", "mlp_only_layers", [0], ["mlp_only_layers"]),
    ("qwen2_moe", "norm_topk_prob", True, ["norm_topk_prob"]),
    ("qwen3_moe", "attention_bias", True, ["attention_bias"]),
    ("solar_open", "rope_parameters", HALF, ["partial_rotary_factor", "0.5"]),
    ("llama", "hidden_size", "wide", ["hidden_size"]),
    ("llama", "num_hidden_layers", 0, ["num_hidden_layers"]),
    ("llama", "quantization_config", {"quant_method": "gptq"}, ["quantised"]),
    ("llama", "model_type", "gpt_neox", ["'gpt_neox'", *FAMILIES]),
    ("llama", "model_type", None, ["None"]),
    ("llama", "model_type", ["llama"], ["['llama']"]),
]


@pytest.mark.parametrize(
    "kind, words",
    [
        ("deepseek_v3", "attention is latent"),
        ("glm4_moe_lite", "attention is latent"),
        ("mamba2", "no attention"),
        ("hunyuan_v1_dense", "norms keys after rotating"),
    ],
)
def test_what_cannot_work_says_why(kind, words):
    with pytest.raises(AllMemError, match=f"{kind}.*{words}"):
        carry_over({"model_type": kind})


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
