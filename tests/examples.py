"""How many examples a property is tried on: a few in the suite, many times as many in `make torture`."""

from hypothesis import HealthCheck, settings


TORTURE = 20


def examples(count: int) -> settings:
    factor = 1 if settings.default.derandomize else TORTURE
    return settings(max_examples=factor * count, deadline=None, suppress_health_check=[HealthCheck.too_slow])
