"""The result of a trial."""

from dataclasses import dataclass, field


@dataclass
class Row:
    """A line of the table in docs/reliability.md.

    Attributes:
        what: what was done to the project, in a few words.
        tried: number of times.
        outcome: what happened, as counts where outcomes differ.
        failures: one line for each wrong outcome, with what you need to repeat it.
    """

    what: str
    tried: int
    outcome: str
    failures: list[str] = field(default_factory=list)
