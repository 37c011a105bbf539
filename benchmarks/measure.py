"""Interleaved timing, peak memory, the lower bound of a decoding step, and tables.

A machine's speed drifts within minutes and between days. Variants of the same work therefore take turns, one call each
per round. Compare ratios of one run, not seconds of two runs.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


@dataclass
class Timing:
    """Seconds of each round, and the peak memory of a call in bytes on top of what was in use before it (`None` where
    the system does not report it)."""

    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> list[float]:
        """Median, lower and upper quartile."""
        return np.percentile(self.seconds, [50, 25, 75]).tolist()


def interleaved(
    variants: Mapping[object, Callable[[], object]],
    repeats: int,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[object, Timing]:
    """Calls every variant once untimed, which measures its peak memory, then once in each round."""
    timings = {name: Timing(peak_memory=peak_memory(variant, device)) for name, variant in variants.items()}
    for _ in range(repeats):
        for name, variant in variants.items():
            gc.collect()  # the garbage of the variant before
            _synchronise(device)
            start = clock()
            variant()
            _synchronise(device)
            timings[name].seconds.append(clock() - start)
    return timings


def speedup(slow: Timing, fast: Timing) -> float:
    """Median over the rounds of `slow / fast`: a drift between rounds affects both."""
    return float(np.median(np.divide(slow.seconds, fast.seconds)))


def growth_exponent(sizes, seconds) -> float:
    """Least-squares slope of log(seconds) over log(size): 1 is linear, less is better."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Callable[[], object], device: torch.device | str) -> int | None:
    """Peak memory of a call in bytes on top of what was in use before it: the allocator's on a GPU, the resident
    memory of this process on a CPU (Linux only)."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    before = None
    with suppress(OSError, AttributeError):
        # Freed memory that the process still holds would be used again without being counted.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
    call()
    return None if before is None else max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**20


def table(title: str, columns: list[str], rows: list[list]) -> dict:
    """A table of a result, with unformatted numbers."""
    return {"title": title, "columns": columns, "rows": rows}


def rate_table(title: str, timings: dict, count: int, unit: str, more: dict[str, Callable]) -> dict:
    """A row per timing of `count` things: how many per second, the seconds, and what the functions of `more` return
    for its name and timing."""
    rows = [
        [name, count / timing.median, timing.spread, *(value(name, timing) for value in more.values())]
        for name, timing in timings.items()
    ]
    return table(title, ["", f"{unit}/s", "seconds (median, quartiles)", *more], rows)


def step_bytes(model) -> int:
    """Size of the weights that a step of cached decoding reads: all that every new token is multiplied with."""
    # The projections of the patches are cached.
    blocks = [value for name, value in model.decoder.h.named_parameters() if "crossattention.c_attn" not in name]
    read = [*blocks, *model.decoder.vad_fusion.parameters(), model.lm_head.weight]
    return sum(parameter.nbytes for parameter in read)
