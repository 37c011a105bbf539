"""Finds the first loss or gradient of training that is NaN or infinite, without waiting for the GPU at every step."""

import math
from dataclasses import dataclass

import torch


MAX_PAINTINGS = 40  # named in a message


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


@dataclass
class Update:
    """One optimizer step."""

    step: int  # from 1
    epoch: float
    paintings: list[list[str]]  # names in each accumulated batch, on this process
    values: torch.Tensor  # loss of each batch, then the gradient norm unless a scaler checks it


class FiniteWatch:
    """Keeps the values of the latest updates on their device until they are checked, every `interval` updates."""

    def __init__(self, interval: int):
        self.interval = interval
        self.updates: list[Update] = []

    def first_problem(self) -> str | None:
        """Describes the first value since the last call that is not finite. Waits for the device."""
        updates, self.updates = self.updates, []
        for update in updates if updates and not torch.cat([u.values for u in updates]).isfinite().all() else []:
            for number, value in enumerate(update.values.tolist()):
                if not math.isfinite(value):
                    is_loss = number < len(update.paintings)
                    what, batch = ("loss", f", batch {number + 1}") if is_loss else ("gradient", "")
                    names = update.paintings[number] if is_loss else sum(update.paintings, [])
                    shown = ", ".join(map(repr, names[:MAX_PAINTINGS])) + ", ..." * (len(names) > MAX_PAINTINGS)
                    where = f"step {update.step} ({update.epoch:.2f} epochs{batch})"
                    return f"The {what} of {where} is {value}. The batch's paintings: {shown}."
        return None
