"""Tiny models with towers beside their language model, made by transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from family_cases import complete, settings, theta
from helpers import tiny_tokenizer

SIGLIP = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
QWEN2_VL = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 64,
    "num_heads": 2,
    "mlp_ratio": 1,
}
QWEN2_5_VL = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [0],
}
QWEN3_VL = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
}
PIXTRAL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "model_type": "pixtral",
}
MROPE = theta(500.0, mrope_section=[2, 3, 3])
INTERLEAVED = theta(500.0, mrope_section=[4, 2, 2], mrope_interleaved=True)
QWEN3_5 = {name: x for name, x in QWEN3_VL.items() if "deepstack" not in name}
LLAMA4 = {
    **SIGLIP,
    "vision_output_dim": 64,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
    "pixel_shuffle_ratio": 0.5,
}
LLAVA = {**SIGLIP, "model_type": "siglip_vision_model"}
INTERNVL = {**SIGLIP, "image_size": [28, 28], "patch_size": [14, 14]}
GEMMA4 = {**SIGLIP, "num_key_value_heads": 2, "head_dim": 16}
GEMMA4_UNIFIED = {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 64}
GEMMA4_AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [4, 4],
    "output_proj_dims": 32,
}
TOKENS = dict.fromkeys(("image_token_id", "video_token_id"), 100)
IMAGE, IMAGE_ID = {"image_token_index": 100}, {"image_token_id": 100}
IDEFICS3 = {**IMAGE_ID, "scale_factor": 2}
GEMMA = {**IMAGE, "mm_tokens_per_image": 4}
TIED, UNTIED = ({"tie_word_embeddings": tied} for tied in (True, False))


@dataclass(frozen=True)
class Wrapper:
    """A model with towers.

    Args:
        kind (str): its ``model_type``.
        text (dict): settings of the language model.
        vision (dict): settings of the vision tower.
        whole (dict): settings of the whole.
    """

    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    whole: dict[str, Any]


def of_case(name: str, **changed: Any) -> dict[str, Any]:
    """The settings of a case of a family, and the type of its language model."""
    family, text = settings(name)
    return {**text, "model_type": family, **changed}


# Name -> a model with towers. What is tried beside its kind stands after a comma.
WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("gemma3", of_case("gemma3_text"), SIGLIP, GEMMA),
    "gemma4": Wrapper(
        "gemma4",
        of_case("gemma4_text"),
        GEMMA4,
        {**TOKENS, "audio_config": GEMMA4_AUDIO},
    ),
    "gemma4, experts": Wrapper(
        "gemma4",
        of_case(
            "gemma4_text, experts, keys as values",
            use_bidirectional_attention="vision",
        ),
        GEMMA4,
        TOKENS,
    ),
    "gemma4_unified": Wrapper(
        "gemma4_unified",
        of_case(
            "gemma4_text",
            model_type="gemma4_unified_text",
            hidden_size_per_layer_input=0,
        ),
        GEMMA4_UNIFIED,
        TOKENS,
    ),
    "idefics3": Wrapper("idefics3", of_case("llama"), SIGLIP, IDEFICS3),
    "internvl": Wrapper("internvl", of_case("qwen3"), INTERNVL, IMAGE_ID),
    "lfm2_vl": Wrapper(
        "lfm2_vl",
        of_case("lfm2"),
        {**SIGLIP, "model_type": "siglip2_vision_model", "num_patches": 4},
        {**IMAGE_ID, "projector_hidden_size": 32},
    ),
    "llama4": Wrapper("llama4", of_case("llama4_text"), LLAMA4, {**TIED, **IMAGE}),
    "llava": Wrapper("llava", of_case("llama"), PIXTRAL, IMAGE),
    "llava_next": Wrapper("llava_next", of_case("mistral"), LLAVA, IMAGE),
    "llava_onevision": Wrapper("llava_onevision", of_case("qwen2"), LLAVA, IMAGE),
    "mistral3": Wrapper(
        "mistral3",
        of_case("mistral", rope_parameters=theta(500.0)),
        PIXTRAL,
        {**UNTIED, **IMAGE},
    ),
    "mistral3, ministral3": Wrapper(
        "mistral3", of_case("ministral3"), PIXTRAL, {**TIED, **IMAGE}
    ),
    "qwen2_5_vl": Wrapper(
        "qwen2_5_vl",
        complete({"rope_parameters": MROPE}),
        QWEN2_5_VL,
        {**UNTIED, **TOKENS},
    ),
    "qwen2_vl": Wrapper(
        "qwen2_vl", complete({"rope_parameters": MROPE}), QWEN2_VL, TOKENS
    ),
    "qwen3_5": Wrapper("qwen3_5", of_case("qwen3_5"), QWEN3_5, {**UNTIED, **TOKENS}),
    "qwen3_5_moe": Wrapper(
        "qwen3_5_moe", of_case("qwen3_5_moe"), QWEN3_5, {**UNTIED, **TOKENS}
    ),
    "qwen3_vl": Wrapper(
        "qwen3_vl",
        complete({"rope_parameters": INTERLEAVED}),
        QWEN3_VL,
        {**TIED, **TOKENS},
    ),
    "qwen3_vl_moe": Wrapper(
        "qwen3_vl_moe",
        complete(
            {
                "rope_parameters": INTERLEAVED,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "norm_topk_prob": False,  # transformers does not look
            }
        ),
        QWEN3_VL,
        {**UNTIED, **TOKENS},
    ),
    "smolvlm": Wrapper("smolvlm", of_case("llama"), SIGLIP, IDEFICS3),
}


def save_wrapper(folder: Path, wrapper: Wrapper) -> Any:
    """A folder as transformers writes it; no parameter is 0 or 1.

    Returns:
        The class of the whole.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        wrapper.kind,
        text_config=wrapper.text,
        vision_config=wrapper.vision,
        **wrapper.whole,
    )
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(torch.randn_like(x) * 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return type(model)


def save_gemma3n(folder: Path, text: Path) -> None:
    """Gemma 3n as the hub has it, whose towers need a library of their own.

    Args:
        folder (Path): to be made.
        text (Path): the checkpoint of a language model.
    """
    from safetensors.torch import load_file, save_file
    from transformers import Gemma3nConfig

    config = Gemma3nConfig(text_config=settings("gemma3n_text")[1])
    config.save_pretrained(folder)
    names = {"model.": "model.language_model.", "lm_head.": "lm_head."}
    weights = {}
    for name, x in load_file(text / "model.safetensors").items():
        prefix = name.partition(".")[0] + "."
        weights[names[prefix] + name.removeprefix(prefix)] = x
    for tower in ("vision_tower.timm_model", "audio_tower", "embed_vision"):
        weights[f"model.{tower}.norm.weight"] = x.new_ones(4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tiny_tokenizer(folder)
