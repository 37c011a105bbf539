"""What a trial of tests/torture gives back."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass
class Row:
    """A line of the table in docs/reliability.md.

    Attributes:
        what: what was done to the project, in a few words.
        tried: how often.
        outcome: what happened, as counts where outcomes differ ("28 resumed, 2 began anew").
        failures: one line for each time that it was not as it should be, with what one needs to do it again.
    """

    what: str
    tried: int
    outcome: str
    failures: list[str] = field(default_factory=list)


class Trial(Protocol):
    """A module of this folder whose name does not begin with an underscore: its docstring says what it tries."""

    def run(self, chance: random.Random, folder: Path) -> Iterator[Row]:
        """
        Args:
            chance: whatever is drawn is drawn from this, so that a seed repeats it.
            folder: empty, for anything that is written.
        """
