"""How many examples a property is tried on: a few in the suite, many times as many in `make torture`."""

from hypothesis import HealthCheck, settings


TORTURE = 10


def examples(count: int, torture: int | None = None) -> settings:
    """`torture`: how many then, where ten times as many take too long."""
    if not settings.default.derandomize:
        count = torture or TORTURE * count
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])
