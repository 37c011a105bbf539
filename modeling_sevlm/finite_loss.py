# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Which batch first gave a loss or a gradient that is no number, found without waiting for the device at every step.

Never copied to the Hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


LIMIT = 1000  # values that are remembered between two looks
NAMED = 40  # paintings in a message


class NonFiniteError(ArithmeticError):
    """A loss or a gradient that is NaN or infinite."""


@dataclass
class Origin:
    """Where a value comes from.

    Attributes:
        what: "loss" or "gradient".
        step: number of the update, from 1.
        epoch: how many epochs had gone before.
        batch: number of the batch within the update, from 1; `None`: all of them.
        paintings: of the batch, on this process.
    """

    what: str
    step: int
    epoch: float
    batch: int | None
    paintings: Sequence[str]

    def describe(self, value: float) -> str:
        batch = "" if self.batch is None else f", batch {self.batch} of it"
        names = ", ".join(map(repr, self.paintings[:NAMED])) or "unknown"
        more = f" and {len(self.paintings) - NAMED} more" if len(self.paintings) > NAMED else ""
        return (
            f"The {self.what} of step {self.step} ({self.epoch:.2f} epochs{batch}) is {value}. "
            f"The batch's paintings: {names}{more}."
        )


class FiniteWatch:
    """Keeps the number of the first bad value on the device, where it is known without waiting, and on the host what
    the values belong to.

    Args:
        at_once: look at every value, for a CPU, where that costs nothing.
    """

    def __init__(self, at_once: bool):
        self.at_once = at_once
        self._forget()

    def _forget(self) -> None:
        self._origins: list[Origin] = []
        self._first = self._value = None

    def see(self, value: torch.Tensor, origin: Origin) -> None:
        """
        Args:
            value: a scalar on any device.

        Raises:
            NonFiniteError: as [`look`], if it is to look at once, or the notes have become many.
        """
        value = value.detach().float()
        if self._first is None:
            self._first = torch.full((), -1, device=value.device)
            self._value = torch.zeros((), device=value.device)
        is_first = ~value.isfinite() & (self._first < 0)
        self._first = torch.where(is_first, len(self._origins), self._first)
        self._value = torch.where(is_first, value, self._value)
        self._origins.append(origin)
        if self.at_once or len(self._origins) >= LIMIT:
            self.look()

    def look(self) -> None:
        """Wait for the device and raise `NonFiniteError` for the first bad value since the last look."""
        first = -1 if self._first is None else int(self._first)
        problem = self._origins[first].describe(self._value.item()) if first >= 0 else None
        self._forget()
        if problem:
            raise NonFiniteError(problem)
