"""Adam in PyTorch."""

from typing import Any

import numpy as np
import torch
from torch import nn

from ..optimizer import BETAS, EPS, ScaledAdam
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
        groups = [
            {"params": [x], "peak": recipe.peak(name)} for name, x in parameters.items()
        ]
        self.adam = torch.optim.Adam(groups, betas=BETAS, eps=EPS)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Moves all parameters along their gradients.

        Args:
            rate (float): learning rate, relative to the peak.
        """
        before = {name: x.clone() for name, x in self.parameters.items()}
        for name, x in self.parameters.items():
            x.grad = self.scaled_gradient(name, x.grad)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["peak"]
        self.adam.step()
        self.adam.zero_grad()
        for name, x in self.parameters.items():
            x.copy_(before[name] + self.scaled_move(name, x - before[name]))

    def state(self) -> dict[str, Any]:
        """The state of a checkpoint."""
        return {
            "adam": self.adam.state_dict(),
            "sizes": self.sizes,
            "scales": self.scales,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores a state."""
        self.adam.load_state_dict(state["adam"])
        self.sizes, self.scales = state["sizes"], state["scales"]
