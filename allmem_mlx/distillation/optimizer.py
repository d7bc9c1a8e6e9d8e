"""Adam for a memory: every parameter has a rate of its own."""

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from .recipe import Recipe, is_relative

Arrays = dict[str, mx.array]


def _key(name: str) -> str:
    """Without dots, which would nest it when a state is flattened."""
    return name.replace(".", "/")


def _flat(arrays: Arrays) -> Arrays:
    return {_key(name): x for name, x in arrays.items()}


class Optimizer:
    """Moves parameters by their peak rate, and what :func:`is_relative` by shares of
    its size. Projections of an input are moved in coordinates in which it is alike in
    all directions; see :func:`input_scale`.

    Args:
        parameters (dict): what is trained, by name.
        recipe (Recipe): has the rates.
        scales (dict): S of the inputs, by the projection's name.
    """

    def __init__(self, parameters: Arrays, recipe: Recipe, scales: Arrays):
        self.recipe, self.scales = recipe, scales
        self.sizes = {
            name: self._size(name, x)
            for name, x in parameters.items()
            if is_relative(name)
        }
        # Gradients carry the factor alpha, which is small, and so is epsilon.
        self.adam = optim.Adam(1.0, [0.9, 0.95], eps=1e-10, bias_correction=True)
        self.adam.init(_flat(parameters))

    def _size(self, name: str, x: mx.array) -> mx.array:
        if name in self.scales:
            inverse = mx.linalg.inv(self.scales[name], stream=mx.cpu)
            return mx.sqrt(mx.square(x @ inverse).mean(1, keepdims=True))
        return mx.sqrt(mx.square(x).mean())

    def step(self, parameters: Arrays, grads: Arrays, scale: float) -> Arrays:
        """Parameters, moved along their gradients.

        Args:
            parameters (dict): as they are.
            grads (dict): of the same names.
            scale (float): of all learning rates.
        """
        grads = {
            name: x @ self.scales[name] if name in self.scales else x
            for name, x in grads.items()
        }
        moved = self.adam.apply_gradients(_flat(grads), _flat(parameters))
        return {
            name: x + scale * self._move(name, moved[_key(name)] - x)
            for name, x in parameters.items()
        }

    def _move(self, name: str, moved: mx.array) -> mx.array:
        moved = self.recipe.peak(name) * self.sizes.get(name, 1.0) * moved
        return moved @ self.scales[name] if name in self.scales else moved

    def state(self) -> Arrays:
        """All that a run needs to go on."""
        return {
            **{f"adam:{k}": x for k, x in dict(tree_flatten(self.adam.state)).items()},
            **{f"size:{k}": x for k, x in self.sizes.items()},
            **{f"scale:{k}": x for k, x in self.scales.items()},
        }

    def load(self, state: Arrays) -> None:
        """Takes what :meth:`state` gave."""
        kinds: dict[str, Arrays] = {"adam": {}, "size": {}, "scale": {}}
        for name, x in state.items():
            kind, _, name = name.partition(":")
            kinds[kind][name] = x
        self.adam.state = tree_unflatten(list(kinds["adam"].items()))
        self.sizes, self.scales = kinds["size"], kinds["scale"]
