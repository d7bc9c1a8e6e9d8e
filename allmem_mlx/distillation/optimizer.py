"""Adam's step, fitted to the parameters of a memory: the same on every back end."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .recipe import Recipe, is_relative

LOSSES = ("text", "answers")  # each has moments of its own
BETAS = (0.9, 0.95)
EPS = 1e-10  # gradients carry the factor alpha, which is small


class ScaledAdam:
    """Each parameter has its peak learning rate, which is relative to its size if
    :func:`is_relative`. The projections of an input move in the coordinates of
    :func:`input_scale`, in which the input is alike in all directions.

    The gradient of the answers to planted questions is up to 50 times as large as that
    of text. With one estimate of the moments, text would not be learned from.

    Args:
        parameters (Mapping): initial parameters, by name.
        recipe (Recipe): has the rates.
        scales (Mapping): S of the inputs, by the projection's name.
        array (Callable): makes the back end's array of a float32 one.
    """

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        recipe: Recipe,
        scales: Mapping[str, np.ndarray],
        array: Callable[[np.ndarray], Any],
    ):
        self.recipe = recipe
        self.scales = {k: array(S.astype(np.float32)) for k, S in scales.items()}
        self.sizes = {
            name: array(_size(x, scales.get(name)))
            for name, x in parameters.items()
            if is_relative(name)
        }

    def factor(self, loss: str) -> float:
        """The factor of all learning rates for one of :data:`LOSSES`."""
        return self.recipe.answer_rate if loss == "answers" else 1.0

    def scaled_gradient(self, name: str, grad: Any) -> Any:
        """The gradient in the coordinates that Adam moves in."""
        return grad @ self.scales[name] if name in self.scales else grad

    def scaled_move(self, name: str, move: Any) -> Any:
        """A move of Adam's, of size 1, as one of the parameter."""
        move = self.sizes.get(name, 1.0) * move
        return move @ self.scales[name] if name in self.scales else move


def _size(x: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """The root mean square of a matrix, or of each row in scaled coordinates."""
    if scale is None:
        return np.sqrt(np.square(x).mean())
    x = np.linalg.solve(scale, x.T).T  # the scale is symmetric
    return np.sqrt(np.square(x).mean(1, keepdims=True)).astype(np.float32)
