"""The number of examples per property: small in the suite, ten times as large in `make torture`."""

from hypothesis import HealthCheck, settings


def examples(count: int, torture: int | None = None) -> settings:
    """Settings for `count` examples, or in `make torture` for `torture` examples (default: ten times `count`)."""
    if not settings.default.derandomize:
        count = torture or 10 * count
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])
