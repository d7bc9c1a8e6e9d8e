"""Adam on MLX."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..optimizer import BETAS, EPS, LOSSES, ScaledAdam
from ..recipe import Recipe

Arrays = dict[str, mx.array]


def _key(name: str) -> str:
    """The name without dots, which would nest it when a state is flattened."""
    return name.replace(".", "/")


def _flat(arrays: Arrays) -> Arrays:
    return {_key(name): x for name, x in arrays.items()}


class Optimizer(ScaledAdam):
    """See :class:`ScaledAdam`."""

    def __init__(
        self, parameters: Arrays, recipe: Recipe, scales: dict[str, np.ndarray]
    ):
        arrays = {name: np.array(x) for name, x in parameters.items()}
        super().__init__(arrays, recipe, scales, mx.array)
        self.adams = {}
        for loss in LOSSES:
            adam = optim.Adam(1.0, list(BETAS), eps=EPS, bias_correction=True)
            adam.init(_flat(parameters))
            self.adams[loss] = adam

    def step(self, loss: str, parameters: Arrays, grads: Arrays, rate: float) -> Arrays:
        """The parameters after a step.

        Args:
            loss (str): one of :data:`LOSSES`.
            parameters (dict): before the step.
            grads (dict): their gradients.
            rate (float): learning rate, relative to the peak.
        """
        grads = {name: self.scaled_gradient(name, x) for name, x in grads.items()}
        moved = self.adams[loss].apply_gradients(_flat(grads), _flat(parameters))

        def move(name: str, x: mx.array) -> mx.array:
            peak = self.factor(loss) * self.recipe.peak(name)
            return self.scaled_move(name, peak * (moved[_key(name)] - x))

        return {name: x + rate * move(name, x) for name, x in parameters.items()}

    def state(self) -> Arrays:
        """The state of a checkpoint."""
        moments = {loss: adam.state for loss, adam in self.adams.items()}
        return {
            **{f"adam:{k}": x for k, x in dict(tree_flatten(moments)).items()},
            **{f"size:{k}": x for k, x in self.sizes.items()},
            **{f"scale:{k}": x for k, x in self.scales.items()},
        }

    def load(self, state: Arrays) -> None:
        """Restores a state."""
        kinds: dict[str, Arrays] = {"adam": {}, "size": {}, "scale": {}}
        for name, x in state.items():
            kind, _, name = name.partition(":")
            kinds[kind][name] = x
        moments = tree_unflatten(list(kinds["adam"].items()))
        for loss, adam in self.adams.items():
            adam.state = moments[loss]
        self.sizes, self.scales = kinds["size"], kinds["scale"]
