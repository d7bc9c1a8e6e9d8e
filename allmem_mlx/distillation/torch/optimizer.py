"""Adam in PyTorch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..optimizer import BETAS, EPS, LOSSES, ScaledAdam
from ..recipe import Recipe


class Optimizer(ScaledAdam):
    """See :class:`ScaledAdam`."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        recipe: Recipe,
        scales: dict[str, np.ndarray],
    ):
        self.parameters = parameters
        device = next(iter(parameters.values())).device
        arrays = {name: x.detach().cpu().numpy() for name, x in parameters.items()}
        super().__init__(
            arrays, recipe, scales, lambda x: torch.as_tensor(x, device=device)
        )
        self.adams = {}
        for loss in LOSSES:
            groups = [
                {"params": [x], "peak": self.factor(loss) * recipe.peak(name)}
                for name, x in parameters.items()
            ]
            self.adams[loss] = torch.optim.Adam(groups, betas=BETAS, eps=EPS)

    @torch.no_grad()
    def step(self, loss: str, grads: dict[str, Tensor], rate: float) -> None:
        """Moves all parameters along the gradients of a loss.

        Args:
            loss (str): one of :data:`LOSSES`.
            grads (dict): gradients by name.
            rate (float): learning rate, relative to the peak.
        """
        adam = self.adams[loss]
        before = {name: x.clone() for name, x in self.parameters.items()}
        for name, x in self.parameters.items():
            x.grad = self.scaled_gradient(name, grads[name])
        for group in adam.param_groups:
            group["lr"] = rate * group["peak"]
        adam.step()
        adam.zero_grad()
        for name, x in self.parameters.items():
            x.copy_(before[name] + self.scaled_move(name, x - before[name]))

    def state(self) -> dict[str, Any]:
        """The state of a checkpoint."""
        return {
            "adam": {loss: adam.state_dict() for loss, adam in self.adams.items()},
            "sizes": self.sizes,
            "scales": self.scales,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores a state."""
        for loss, adam in self.adams.items():
            adam.load_state_dict(state["adam"][loss])
        self.sizes, self.scales = state["sizes"], state["scales"]
