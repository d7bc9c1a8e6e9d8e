"""Every size and switch of the hybrid layer."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from .errors import SettingError

POSITIONS = ("bounded", "absolute")
VALUES = ("hidden", "token")
UPDATES = ("all", "down")
BLOCK = 512  # tokens that go through a layer at once, at most, if a chunk is smaller


@dataclass(frozen=True)
class AllMemConfig:
    """The ``allmem`` settings in a model folder's ``config.json``.

    Args:
        heads (int): memory heads, n.
        head_dim (int): width of a memory head, p.
        hidden_dim (int): hidden units of a head's memory network, h.
        window (int): tokens that attention sees: the query itself and ``window - 1``
            older ones.
        sinks (int): first tokens of the document that attention always sees, on top
            of the window.
        chunk (int): tokens between two updates of the memory, c, counted from the
            first token read.
        fold (int): tokens whose gradient is added at once; divides ``chunk``. It
            bounds the work of one token and does not change the result.
        positions (str): ``"bounded"`` rotates a token relative to the window, so that
            no position exceeds ``sinks + window + chunk``; ``"absolute"`` rotates it
            by its place in the document.
        conv_kernel (int): taps of the causal convolution on q, k and v.
        learning_rate (float): what the memory's learning rates are before training
            moves them, softplus(lr_proj(u) + b0) at lr_proj(u) = 0.
        max_update_norm (float): Theta, the largest Frobenius norm of one chunk's
            gradient, for each matrix of each head.
        output_eps (float): what is added to the mean square under the root of the
            output's norm. A read whose mean square is smaller stays small; 1e-6, the
            paper's RMSNorm, gives every read the same size.
        values (str): what a value is made of: ``"hidden"``, the layer's input, as in
            the paper, or ``"token"``, the token's embedding, which a deep layer's
            input no longer holds.
        updates (str): the fast weights that are trained while reading: ``"all"``, as in
            the paper, or ``"down"``. Gate and up then stay what they were initially,
            and are no part of the state.
        layers (list): which layers have a memory: indices, below 0 from the end, of
            those that do not slide in the base model; ``None`` for all, as in the
            paper.

    Raises:
        SettingError: if a value is impossible.
    """

    heads: int
    head_dim: int
    hidden_dim: int
    window: int = 2048
    sinks: int = 128
    chunk: int = 512
    fold: int = 64
    positions: str = "bounded"
    conv_kernel: int = 4
    learning_rate: float = 0.2
    max_update_norm: float = 3.0
    output_eps: float = 1e-6
    values: str = "hidden"
    updates: str = "all"
    layers: list[int] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                smallest = 0 if field.name == "sinks" else 1
                if type(value) is not int or value < smallest:
                    raise SettingError(
                        f"{field.name} is {value!r}; it must be a whole number of at "
                        f"least {smallest}"
                    )
            elif field.type is float and not (
                type(value) in (int, float) and 0 < value < float("inf")
            ):
                raise SettingError(f"{field.name} is {value!r}; it must be above 0")
        if self.layers is not None and not (
            isinstance(self.layers, list)
            and self.layers
            and all(type(layer) is int for layer in self.layers)
        ):
            raise SettingError(
                f"layers is {self.layers!r}; it must be a list of whole numbers"
            )
        if self.chunk % self.fold:
            raise SettingError(
                f"chunk is {self.chunk}; it must be a multiple of fold, {self.fold}"
            )
        choices = ("positions", POSITIONS), ("values", VALUES), ("updates", UPDATES)
        for name, known in choices:
            if (value := getattr(self, name)) not in known:
                raise SettingError(
                    f"{name} is {value!r}; it must be one of " + ", ".join(known)
                )

    @classmethod
    def from_dict(cls, block: Any) -> "AllMemConfig":
        """Reads the block of a ``config.json``.

        Raises:
            SettingError: if a name is unknown or missing, or a value impossible.
        """
        if not isinstance(block, dict):
            raise SettingError(f"the allmem setting is {block!r}; it must be an object")
        names = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(block) - set(names)):
            raise SettingError(f"unknown allmem setting {', '.join(unknown)}")
        if missing := sorted({"heads", "head_dim", "hidden_dim"} - set(block)):
            raise SettingError(f"allmem setting {', '.join(missing)} is missing")
        return cls(**block)

    @classmethod
    def for_base(cls, base: dict[str, Any], **settings: Any) -> "AllMemConfig":
        """The memory's sizes for a base model.

        Head width 64 and hidden width 128 as in the paper, one memory head for each
        key-value head, or for each query head where those would be narrower than a
        quarter of the model.

        Args:
            base (dict): the base model's ``config.json``.
            settings: values that differ from the defaults.
        """
        heads = base.get("num_key_value_heads") or base["num_attention_heads"]
        if heads * 64 < base["hidden_size"] / 4:
            heads = base["num_attention_heads"]
        return cls(**{"heads": heads, "head_dim": 64, "hidden_dim": 128, **settings})

    def memory_layers(self, candidates: list[int]) -> list[int]:
        """The layers that have a memory.

        Args:
            candidates (list): those that do not slide in the base model, in order.

        Raises:
            SettingError: if one of ``layers`` is not there, or there twice.
        """
        if self.layers is None:
            return candidates
        try:
            chosen = sorted(candidates[layer] for layer in self.layers)
        except IndexError:
            chosen = []
        if len(set(chosen)) < len(self.layers):
            raise SettingError(
                f"layers is {self.layers}; each must be another one of the "
                f"{len(candidates)} that can have a memory in the base model"
            )
        return chosen

    @property
    def written(self) -> tuple[str, ...]:
        """The matrices of a memory network that are trained while reading."""
        return ("down",) if self.updates == "down" else ("gate", "up", "down")

    @property
    def block(self) -> int:
        """Tokens that go through a layer at once while a text is read, in whole chunks,
        as many as fit into 512 and into the window."""
        return self.chunk * max(1, min(self.window, BLOCK) // self.chunk)

    def cuts(self, token: int, tokens: int) -> Iterator[int]:
        """Cuts what is read next into what goes through the layers at once: blocks of
        the absolute grid, and chunks where no whole block is left.

        Args:
            token (int): tokens read before.
            tokens (int): tokens to cut.

        Yields:
            int: sizes, ``tokens`` in all.
        """
        end = token + tokens
        while token < end:
            whole = token % self.block == 0 and token + self.block <= end
            size = self.block if whole else self.chunk - token % self.chunk
            size = min(size, end - token)
            yield size
            token += size

    def shift(self, token: int) -> int:
        """Positions by which the chunk that holds ``token`` is moved down."""
        if self.positions == "absolute":
            return 0
        start = token // self.chunk * self.chunk
        return max(0, start - self.window - self.sinks)
