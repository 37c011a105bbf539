# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A study's `table.json` as the paper shows it: bars for variants (Figs. 5 to 7), lines for a range (Fig. 8)."""

import re

from matplotlib.figure import Figure

from evaluation.significance import stars
from studies.summary import COLOURS, FIGURES


HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
# Of the colours that stand out on white, from dark to light.
FILLS = (COLOURS[0], *COLOURS[1:6], COLOURS[6], COLOURS[7])


def ablation_figure(content: dict, *, title: str | None = None) -> Figure:
    """A panel per figure: means with their standard deviations over seeds, the sign of the test against the first
    variant above. Bars begin at zero, whatever the differences look like then; their heights are written on them.

    Args:
        content: what `studies.summary.summarise` gives, read from `table.json`.
    """
    variants = content["variants"]
    reference = next(iter(variants))
    shown = [entry for entry in FIGURES if entry[0] in variants[reference]["means"]]
    values = [re.fullmatch(r"[^=]+= *(-?[\d.]+)", name) for name in variants]
    figure = Figure(figsize=(max(4.5, 2.1 * len(shown)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, heading, percent) in zip(panels, shown, strict=True):
        scale = 100 if percent else 1
        if all(values) and len(variants) > 2:
            _line(panel, variants, name, scale, [float(value.group(1)) for value in values])
        else:
            _bars(panel, variants, name, scale, 1 if percent else 3)
        if name == "label_nll" and content.get("prior_label_nll") is not None:
            panel.axhline(content["prior_label_nll"], color="#7f7f7f", linestyle=":", linewidth=1)
        panel.set_title(heading + (" (%)" if percent else " (nats)"), fontsize=9)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8
        )
    about = f"mean and standard deviation of {content['seeds']} seeds, {content['num_paintings']} paintings"
    figure.suptitle(f"{title}: {about}" if title else about, fontsize=10)
    return figure


def _bars(panel, variants: dict, name: str, scale: float, digits: int) -> None:
    for position, (label, variant) in enumerate(variants.items()):
        mean, deviation = variant["means"].get(name), variant["deviations"].get(name) or 0
        if mean is None:
            continue
        panel.bar(
            position,
            scale * mean,
            yerr=scale * deviation if deviation else None,
            color=FILLS[position % len(FILLS)],
            hatch=HATCHES[position % len(HATCHES)],
            edgecolor="#ffffff" if position % len(FILLS) == 0 else "#00000088",
            error_kw={"capsize": 2.5, "linewidth": 0.8, "ecolor": "#555555"},
            label=label,
        )
        test = variant["tests"].get(name)
        sign = "\n" + stars(test["holm_p"]) if test is not None else ""
        top = (position, scale * (mean + deviation))
        panel.annotate(f"{scale * mean:.{digits}f}{sign}", top, ha="center", va="bottom", fontsize=6)
    panel.margins(y=0.2)
    panel.set_ylim(bottom=0)
    panel.set_xticks([])


def _line(panel, variants: dict, name: str, scale: float, values: list[float]) -> None:
    points = sorted(zip(values, variants.values(), strict=True), key=lambda point: point[0])
    points = [(value, variant) for value, variant in points if variant["means"].get(name) is not None]
    panel.errorbar(
        [value for value, _ in points],
        [scale * variant["means"][name] for _, variant in points],
        yerr=[scale * (variant["deviations"].get(name) or 0) for _, variant in points],
        color=COLOURS[1],
        marker="o",
        capsize=3,
    )
    if all(value > 0 for value in values):
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
    panel.set_xlabel(next(iter(variants)).partition("=")[0].strip(), fontsize=8)
