"""Every setting of a distillation."""

from dataclasses import dataclass, fields

from allmem_mlx.errors import SettingError


@dataclass(frozen=True)
class Recipe:
    """How a memory is trained. ``python train.py --help`` lists the same as flags.

    Args:
        model (str): folder of the base model, as Hugging Face writes it.
        texts (str): folder of text files to train on.
        out (str): folder for the memory weights, the log and the checkpoint.
        held_out (str): beginnings of file names that are not trained on, separated by
            commas.
        validation (str): those of them that are judged on while training.
        heads, head_dim, hidden_dim (int): sizes of the memory, see ``AllMemConfig``.
        learning_rate, max_update_norm (float): eta and Theta before training.
        w0_std (float): of the random initial weights of gate and up.
        alpha (float): where alpha starts.
        lengths, windows, sinks, chunks (str): what each step draws from, separated by
            commas.
        window_dropout (float): share of steps in which the window is one chunk: all
            that is older has to come from the memory.
        batch (int): documents in a step.
        steps (int): steps in all.
        repeats, facts (float): shares of documents with repeated passages and with
            planted facts; the rest are books.
        rate (float): peak learning rate of the projections.
        w0_rate, alpha_rate, gate_rate (float): peak rates of the initial fast weights,
            of alpha, and of biases, taps and norms.
        warm_up, decay (float): shares of the steps in which the rates rise, and fall.
        weight_decay (float): of the projections.
        clip (float): largest norm of the gradient.
        dtype (str): of the frozen base. The memory is float32.
        checkpointing (bool): compute activations again instead of keeping them.
        every (int): steps between two checkpoints.
        evaluate (int): steps between two evaluations.
        seed (int): of everything drawn.

    Raises:
        SettingError: if settings are impossible, alone or together.
    """

    model: str
    texts: str
    out: str
    held_out: str = "Jane-Austen,Lewis-Carroll,Herman-Melville"
    validation: str = "Anthony-Trollope,Bram-Stoker,Edith-Wharton,Joseph-Conrad"
    heads: int = 3
    head_dim: int = 64
    hidden_dim: int = 128
    learning_rate: float = 0.02
    max_update_norm: float = 3.0
    w0_std: float = 1.0
    alpha: float = 0.1
    lengths: str = "768,1024,1536"
    windows: str = "64,128,256"
    sinks: str = "4,16"
    window_dropout: float = 0.05
    chunks: str = "64,128"
    batch: int = 2
    steps: int = 200
    repeats: float = 0.2
    facts: float = 0.2
    rate: float = 1e-4
    w0_rate: float = 3e-4
    alpha_rate: float = 2e-3
    gate_rate: float = 1e-3
    warm_up: float = 0.05
    decay: float = 0.3
    weight_decay: float = 0.0
    clip: float = 1.0
    dtype: str = "bfloat16"
    checkpointing: bool = False
    every: int = 20
    evaluate: int = 50
    seed: int = 0

    def __post_init__(self):
        for name in ("lengths", "windows", "sinks", "chunks"):
            try:
                numbers = self.numbers(name)
            except ValueError:
                numbers = []
            if not numbers or min(numbers) < (name != "sinks"):
                raise SettingError(
                    f"{name} is {getattr(self, name)!r}; it must be whole numbers with "
                    "commas between them"
                )
        shortest = min(self.numbers("lengths"))
        longest = max(self.numbers("windows") + self.numbers("chunks"))
        if longest >= shortest - 1:
            raise SettingError(
                f"a document of {shortest} tokens has nothing beyond a window or chunk "
                f"of {longest}"
            )
        if self.repeats < 0 or self.facts < 0 or self.repeats + self.facts > 1:
            raise SettingError("repeats and facts must be shares of at most 1 together")

    def numbers(self, name: str) -> list[int]:
        """A setting that lists numbers."""
        return [int(x) for x in getattr(self, name).split(",")]

    def scale(self, step: int) -> float:
        """The learning rate at a step, 1 at its peak: warm-up, stable, decay."""
        rise = (step + 1) / max(1, self.warm_up * self.steps)
        fall = (self.steps - step) / max(1, self.decay * self.steps)
        return min(1.0, rise, fall)

    @classmethod
    def add_flags(cls, parser) -> None:
        for field in fields(cls):
            name = "--" + field.name.replace("_", "-")
            if field.type is bool:
                parser.add_argument(name, action="store_true")
            elif field.default is field.default_factory:  # neither: it is required
                parser.add_argument(name, type=field.type, required=True)
            else:
                parser.add_argument(name, type=field.type, default=field.default)
