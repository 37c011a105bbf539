"""AdamW as in transformers 4, which the authors trained with."""

import math

import torch


class EpsilonFirstAdamW(torch.optim.AdamW):
    """AdamW that adds epsilon to the second moment's root before the bias correction.

    PyTorch corrects the bias first. In the first steps this epsilon counts for more: 32 times as much in step 1.
    """

    _taken: int | None = None  # steps; counted here, because the state's own counter may be on the GPU

    def step(self, closure=None):
        if self._taken is None:
            self._taken = max((int(state["step"]) for state in self.state.values()), default=0)
        self._taken += 1
        for group in self.param_groups:
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** self._taken)
        return super().step(closure)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._taken = None
