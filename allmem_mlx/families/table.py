"""The families, and the models with towers that have one inside."""

from typing import Any

from . import calls, layouts, patches, settings, towers
from .family import SCALED, Family, Names

FAMILIES = {
    "afmoe": Family(
        rope_types=SCALED,
        settings=settings.afmoe,
        own_settings=("global_attn_every_n_layers",),
        rotates=lambda attention: attention.is_local_attention,
    ),
    "apertus": Family(
        rope_types=SCALED,
        fixed={"attention_bias": (False,), "mlp_bias": (False,)},
        settings=lambda c: {"post_norm": False, "qk_norm": True, "mlp_bias": False},
    ),
    "cohere": Family(),
    "cohere2": Family(
        settings=lambda c: {"sliding_window_pattern": settings.sliding_pattern(c)},
        rotates=lambda attention: attention.use_sliding_window,
    ),
    "dots1": Family(
        rope_types=SCALED,
        fixed={"attention_bias": (False,)},
        settings=lambda c: {"mlp_bias": False, "scoring_func": "sigmoid"},
        patch=patches.sigmoid_router,
    ),
    "ernie4_5": Family(),
    "ernie4_5_moe": Family(
        fixed={"use_bias": (False,)},
        settings=lambda c: {"moe_gate_act": "softmax"},
        layout=layouts.ernie4_5_moe,
        patch=patches.ernie4_5_moe,
    ),
    "exaone4": Family(
        rope_types=SCALED,
        settings=settings.exaone4,
        rotates=lambda attention: attention.use_rope,
        normed=False,
    ),
    "exaone_moe": Family(
        rope_types=SCALED,
        settings=settings.exaone_moe,
        own_settings=(
            "mlp_layer_types",
            "first_k_dense_replace",
            "sliding_window_pattern",
        ),
        patch=patches.sigmoid_router,
        rotates=lambda attention: attention.use_rope,
    ),
    "falcon_h1": Family(
        recurrent="Mamba-2",
        fixed={
            # mlx-lm folds multipliers into weights, and leaves biases as they are.
            "attention_bias": (False,),
            "attention_in_multiplier": (1.0,),
            "mamba_proj_bias": (False,),
            "mlp_bias": (False,),
            "projectors_bias": (False,),
        },
        patch=patches.falcon_h1,
        names=Names(norm="final_layernorm"),
    ),
    "gemma": Family(patch=patches.gemma),
    "gemma2": Family(settings=settings.gemma2, array_mask=True),
    "gemma3_text": Family(
        rope_types=SCALED, settings=settings.gemma3, patch=patches.gemma3
    ),
    "gemma3n_text": Family(
        settings=settings.gemma3n,
        classes=towers.gemma3n,
        distils=False,
        patch=patches.gemma3n,
        layout=layouts.gemma3n,
        adapters=(calls.Gemma3nOuter, calls.Gemma3nInner),
        borrows=lambda attention: attention.is_kv_shared_layer,
    ),
    "gemma4_text": Family(
        rope_types=("default", "proportional"),
        settings=settings.gemma4,
        own_settings=("per_layer_config",),
        adapters=(calls.Gemma4Outer, calls.Gemma4Inner),
        borrows=lambda attention: not attention.has_kv,
    ),
    "glm": Family(
        rope_types=SCALED, own_settings=("partial_rotary_factor",), patch=patches.glm
    ),
    "glm4": Family(),
    "glm4_moe": Family(
        rope_types=SCALED,
        fixed={"tie_word_embeddings": (False,)},
        settings=lambda c: {**settings.own_head_dim(c), **settings.SIGMOID},
        patch=patches.glm4_moe,
    ),
    "gpt_oss": Family(
        rope_types=SCALED, fixed={"attention_bias": (True,)}, layout=layouts.gpt_oss
    ),
    "granite": Family(rope_types=SCALED),
    "granitemoe": Family(rope_types=SCALED, settings=settings.shared_head_dim),
    "granitemoehybrid": Family(
        recurrent="Mamba-2",
        settings=settings.granitemoehybrid,
        patch=patches.granitemoehybrid,
        rotates=lambda attention: attention.rope is not None,
    ),
    "helium": Family(patch=patches.helium),
    "internlm3": Family(
        "llama",
        rope_types=(*SCALED, "dynamic"),
        own_settings=("rope_parameters",),
        reach=settings.unstretched_length,
    ),
    "iquestcoder": Family("llama", rope_types=SCALED),
    "jamba": Family(
        recurrent="Mamba",
        settings=settings.jamba,
        patch=patches.jamba,
        rotates=lambda attention: False,
        names=Names(norm="final_layernorm"),
    ),
    "laguna": Family(
        rope_types=SCALED,
        fixed={"gating": (True, "per-head")},
        settings=settings.laguna,
    ),
    "lfm2": Family(
        recurrent="convolution",
        settings=settings.lfm2,
        names=Names(norm="embedding_norm"),
    ),
    "lfm2_moe": Family(
        recurrent="convolution",
        settings=settings.lfm2,
        names=Names(norm="embedding_norm"),
    ),
    "llama": Family(rope_types=SCALED),
    "llama4_text": Family(
        settings=settings.llama4,
        layout=layouts.llama4,
        patch=patches.llama4,
        layer_types={"chunked_attention": "full_attention"},
        rotates=lambda attention: attention.use_rope,
        reach=settings.chunk_length,
        own_settings=(
            "attention_chunk_size",
            "attn_scale",
            "attn_temperature_tuning",
            "floor_scale",
            "moe_layers",
        ),
    ),
    "mellum": Family(
        rope_types=("default", "llama3", "yarn"),
        settings=settings.mellum,
        own_settings=("mlp_layer_types", "num_local_experts"),
    ),
    "mimo_v2_flash": Family(
        fixed={"tie_word_embeddings": (False,)},
        settings=settings.mimo_v2_flash,
        own_settings=("mlp_layer_types", "rms_norm_eps", "partial_rotary_factor"),
        patch=patches.sigmoid_router,
    ),
    "minimax_m2": Family(
        "minimax",
        rope_types=SCALED,
        settings=settings.minimax_m2,
        classes=towers.minimax_m2,
        own_settings=("partial_rotary_factor",),
        patch=patches.scaled_rope,
    ),
    "ministral3": Family(
        rope_types=("yarn",),
        rope_settings=("llama_4_scaling_beta", "max_position_embeddings"),
        settings=settings.ministral3,
        adapters=(calls.Ministral3Outer, calls.Ministral3Inner),
        reach=settings.unscaled_length,
    ),
    "mistral": Family("llama", rope_types=SCALED),
    "mixtral": Family(
        rope_types=SCALED,
        settings=settings.shared_head_dim,
        own_settings=("head_dim",),
        patch=patches.scaled_rope,
    ),
    "nemotron": Family(
        rope_types=("default", "linear"), fixed={"hidden_act": ("relu2",)}
    ),
    "nemotron_h": Family(
        recurrent="Mamba-2",
        settings=settings.nemotron_h,
        patch=patches.sigmoid_router,
        rotates=lambda attention: False,
        distils=False,
        names=Names("backbone", "embeddings", "mixer", "norm_f"),
    ),
    "olmo2": Family(rope_types=SCALED, normed=False),
    "olmo3": Family(rope_types=SCALED, settings=settings.olmo3, normed=False),
    "olmo_hybrid": Family(
        recurrent="gated DeltaNet",
        settings=lambda c: {"rope_parameters": c["rope_parameters"]},
        layout=layouts.olmo_hybrid,
        rotates=lambda attention: attention.rope is not None,
        normed=False,
    ),
    "olmoe": Family(rope_types=SCALED, settings=lambda c: {"mlp_bias": False}),
    "phi": Family(names=Names(norm="final_layernorm")),
    "phi3": Family(rope_types=("default", "longrope"), reach=settings.original_length),
    "phimoe": Family(
        rope_types=("default", "longrope"),
        rope_settings=("short_mscale", "long_mscale"),
        fixed={
            "attention_bias": (True,),
            "lm_head_bias": (True,),
            "num_experts_per_tok": (2,),
        },
        settings=settings.phimoe,
        reach=settings.original_length,
    ),
    "qwen2": Family(rope_types=SCALED),
    "qwen2_moe": Family(
        rope_types=("default", "linear"),
        fixed={"tie_word_embeddings": (False,)},
        settings=settings.shared_head_dim,
        patch=patches.scaled_rope,
    ),
    "qwen3": Family(rope_types=SCALED),
    "qwen3_5_moe_text": Family(
        recurrent="gated DeltaNet",
        rope_types=SCALED,
        settings=settings.delta_net,
        classes=towers.qwen3_5,
        layout=layouts.qwen3_5_moe,
    ),
    "qwen3_5_text": Family(
        recurrent="gated DeltaNet",
        rope_types=SCALED,
        settings=settings.delta_net,
        classes=towers.qwen3_5,
    ),
    "qwen3_moe": Family(
        rope_types=SCALED,
        settings=settings.qwen3_moe,
        own_settings=("num_local_experts",),
        layout=layouts.qwen3_moe,
        patch=patches.scaled_rope,
    ),
    "qwen3_next": Family(
        recurrent="gated DeltaNet",
        rope_types=SCALED,
        settings=lambda c: {"full_attention_interval": settings.sliding_pattern(c)},
    ),
    "seed_oss": Family(rope_types=SCALED),
    "smollm3": Family(rope_types=SCALED),
    "solar_open": Family(
        rope_types=SCALED,
        fixed={
            "partial_rotary_factor": (1.0,),
            "tie_word_embeddings": (False,),
        },
        settings=settings.solar_open,
        patch=patches.glm4_moe,
    ),
    "stablelm": Family(),
    "starcoder2": Family(patch=patches.starcoder2),
}
# Why other models of mlx-lm cannot be converted.
LATENT = "its attention is latent: it keeps no keys that could be turned"
NO_ATTENTION = "it has no attention: its state has a fixed size as it is"
NORMED_LATE = "it norms keys after rotating them, so that they cannot be turned"
REFUSED = {
    **dict.fromkeys(
        [
            "bailing_hybrid",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "kimi_k2",
            "kimi_k25",
            "kimi_linear",
            "longcat_flash",
            "minicpm3",
            "mistral4",
            "youtu_llm",
        ],
        LATENT,
    ),
    **dict.fromkeys(["mamba", "mamba2", "rwkv7"], NO_ATTENTION),
    **dict.fromkeys(["hunyuan", "hunyuan_v1_dense"], NORMED_LATE),
}
# Models with towers beside the language model, which alone is converted.
WRAPPERS = {
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4_unified",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
}
# Language models of wrappers that are a family under another name, and settings that
# they stand for.
TEXT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4_unified_text": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen2_vl_text": ("qwen2", {}),
    "qwen3_vl_moe_text": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_vl_text": ("qwen3", {}),
}
