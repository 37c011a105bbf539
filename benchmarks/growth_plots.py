# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Plots of `growth`: total time over size on logarithmic axes, beside the line that linear growth would follow."""

from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402


PLOTS = {
    "performance_generation": (
        "generation by batch",
        "generation by new tokens",
        "generation by candidates",
    ),
    "performance_lexicon": (
        "lexicon compilation by words",
        "VAD look-up by words",
        "loading the processor by words",
    ),
    "performance_dataset": ("annotations by paintings",),
}


def draw(series: dict[str, dict], folder: Path) -> list[Path]:
    """`performance_*.png` and `.svg` in `folder`. Black and grey, dashes and markers: nothing hangs on a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for file, names in PLOTS.items():
        memory = file == "performance_dataset"
        panels = len(names) + memory
        figure, axes = plt.subplots(1, panels, figsize=(4 * panels, 3.4), layout="constrained", squeeze=False)
        for axis, name in zip(axes[0], names, strict=False):
            _panel(axis, series[name], name, series[name]["seconds"], "seconds")
            exponent = series[name]["exponent"]
            axis.set_title(f"{name}\nexponent {exponent:.2f}", fontsize="medium")
        if memory:
            entry = series[names[0]]
            mib = [value / 2**20 for value in entry["peak_memory_bytes"]]
            if min(mib) > 0:
                _panel(axes[0][-1], entry, names[0], mib, "MiB on top of the imports")
            axes[0][-1].set_title("peak memory of it", fontsize="medium")
        for suffix in (".png", ".svg"):
            files.append(folder / (file + suffix))
            # No date in it: the same figures give the same file.
            figure.savefig(files[-1], dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
        plt.close(figure)
    return files


def _panel(axis, entry: dict, name: str, values: list[float], what: str) -> None:
    sizes = entry["sizes"]
    axis.loglog(sizes, values, "o-", color="black", label="measured")
    linear = [values[-1] * size / sizes[-1] for size in sizes]
    axis.loglog(sizes, linear, "--", color="0.55", label="linear through the last")
    axis.set_xlabel(name.rpartition(" by ")[2])
    axis.set_ylabel(what)
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes], fontsize="small", rotation=30)
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axis.grid(color="0.9")
    axis.legend(fontsize="small", frameon=False)
