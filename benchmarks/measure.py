# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Timing variants of the same work against one another: interleaved, warmed up, medians.

    timings = interleaved({"ours": ours, "yardstick": yardstick}, repeats=5, device=device)
    speedup(timings["yardstick"], timings["ours"])

A machine's speed drifts, within minutes and between days. Variants therefore take turns, one call each a round, so
that a drift meets all of them; compare ratios of one run, never seconds of two.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


MIB = 2**20


@dataclass
class Timing:
    """Seconds of every round, and the most memory that a call took on top of what was there before it (bytes; `None`
    where the system does not tell)."""

    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)

    def to_dict(self) -> dict:
        return {
            "median": self.median,
            "quartiles": self.quartiles,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory,
        }


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    device: torch.device | str = "cpu",
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call every variant `warmup` times untimed (its peak memory is taken there), then `repeats` rounds of one timed
    call each, in the order given."""
    timings = {name: Timing() for name in variants}
    for name, variant in variants.items():
        memory = PeakMemory(device)
        for _ in range(max(1, warmup)):
            variant()
        synchronise(device)
        timings[name].peak_memory = memory.taken()
    for _ in range(repeats):
        for name, variant in variants.items():
            # What a variant left behind is not the next one's to clear away.
            gc.collect()
            synchronise(device)
            start = clock()
            variant()
            synchronise(device)
            timings[name].seconds.append(clock() - start)
    return timings


def speedup(slow: Timing, fast: Timing) -> float:
    """How many times the one takes as long as the other: the median over rounds, since a drift between rounds meets
    both."""
    return float(np.median(np.asarray(slow.seconds) / np.asarray(fast.seconds)))


def synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The most memory in use since it was made, on top of what was in use then: of the allocator on a GPU, resident
    memory of this process elsewhere."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        gc.collect()
        if self.device.type == "cuda":
            synchronise(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.before = _reset_peak_resident()

    def taken(self) -> int | None:
        """Bytes; `None` where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        peak = _resident("VmHWM")
        return None if peak is None or self.before is None else max(0, peak - self.before)


def _reset_peak_resident() -> int | None:
    """Resident bytes now; the peak is counted from here on. `None` where there is no Linux to do so."""
    try:
        # What was freed and not given back would be taken again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


def growth_exponent(sizes, seconds) -> float:
    """Slope of log(seconds) over log(size) by least squares: 1 is linear, more is worse."""
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float)), 1)[0])
