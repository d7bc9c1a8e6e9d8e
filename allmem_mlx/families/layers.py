"""The layers of a base model, by its configuration."""

from typing import Any

from ..errors import AllMemError

# Sizes that every base states in its config.json, and more than any model has.
SIZES = {
    "hidden_size": 10**6,
    "num_hidden_layers": 10**3,
    "num_attention_heads": 10**4,
    "vocab_size": 10**8,
}
# What configurations call the number of experts, and of those that a token is given to.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "moe_k", "top_k_experts")


def check_sizes(config: dict[str, Any]) -> None:
    """
    Args:
        config (dict): the base's configuration, complete.

    Raises:
        AllMemError: if it does not state its sizes.
    """
    for name, too_many in SIZES.items():
        if type(config.get(name)) is not int or not 0 < config[name] < too_many:
            raise AllMemError(
                f"{name} is {config.get(name)!r}; it must be a whole number above 0 "
                f"and below {too_many}"
            )


def attention_windows(config: dict[str, Any]) -> dict[int, int | None]:
    """The layers that have attention, and what each sees in the base model: a sliding
    window, beside others that do not slide, or ``None`` for all tokens.

    A layer that slides beside others stays as it is. Where all layers slide, all become
    hybrids.
    """
    types = config.get("layer_types")
    if types is None:
        return dict.fromkeys(range(config["num_hidden_layers"]))
    windows = {
        "full_attention": None,
        "attention": None,
        "sliding_attention": config.get("sliding_window"),
    }
    return {i: windows[kind] for i, kind in enumerate(types) if kind in windows}


def global_layers(config: dict[str, Any]) -> list[int]:
    """The layers whose attention sees all tokens in the base model, and has keys of its
    own. They become hybrids."""
    own = config["num_hidden_layers"] - (config.get("num_kv_shared_layers") or 0)
    windows = attention_windows(config).items()
    return [i for i, window in windows if window is None and i < own]


def largest_window(config: dict[str, Any]) -> int | None:
    """The window of the base's own attention, if all its layers slide."""
    if config.get("layer_types"):
        return None
    return config.get("sliding_window")
