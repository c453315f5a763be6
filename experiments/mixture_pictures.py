"""Pictures of experiments/mixture_posteriors.py."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from jaxinf.diagnostics import ecdf_band

COLOURS = {"weighted": "C0", "weighted, whole": "C2", "exact": "k"}


def colour(method: str) -> str:
    """Ours that are weighed stand out; azula's are grey."""
    return COLOURS.get(method, "0.55" if method.startswith("azula") else "C1")


def ordered(names: Iterable[str]) -> list[str]:
    """Exact samples, what is weighed, and each heuristic beside azula's."""
    names = set(names)
    first = [n for n in ("exact", "weighted", "weighted, whole") if n in names]
    plain = sorted(names - set(first), key=lambda n: (n.removeprefix("azula "), n))
    return [*first, *plain]


def draw(arrays: dict[str, Any]) -> dict[str, Figure]:
    """All figures."""
    settings = {name: value for name, value in arrays.items() if name != "levels"}
    figures = {
        "samples": samples(next(iter(settings.values()))["cloud"]),
        "distances": distances(settings),
        "evidence": evidence(settings),
    }
    if "levels" in arrays:
        figures["coverage"] = coverage(arrays["levels"])
    return figures


def samples(clouds: dict[str, Any]) -> Figure:
    """The first two numbers of a problem's samples, over exact ones."""
    names = ordered(clouds)
    rows = -(-len(names) // 5)
    figure = Figure(figsize=(12, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, 5, sharex=True, sharey=True).reshape(-1)
    truth = np.asarray(clouds["exact"])
    for axis in axes[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes, names, strict=False):
        axis.plot(*truth.T, ".", color="0.8", ms=3)
        axis.plot(*np.asarray(clouds[name]).T, ".", color=colour(name), ms=1.5, alpha=0.6)
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(-24, 24), ylim=(-24, 24), xticks=[-16, 0, 16], yticks=[-16, 0, 16])
    return figure


def distances(settings: dict[str, Any]) -> Figure:
    """Distances of all problems by method, with their median and that of exact samples."""
    columns = min(3, len(settings))
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).reshape(-1)
    names = ordered(m for row in settings.values() for m in row["distance"])[::-1]
    for axis, (title, row) in zip(axes, settings.items(), strict=False):
        for place, name in enumerate(names):
            values = np.asarray(row["distance"].get(name, []))
            axis.plot(values, np.full(values.size, place), ".", color=colour(name), alpha=0.35)
            if values.size:
                axis.plot(np.median(values), place, "|", color=colour(name), ms=14, mew=2.5)
        axis.axvline(np.median(row["distance"]["exact"]), color="k", lw=0.8, ls=":")
        axis.set(title=title, xscale="log", yticks=range(len(names)))
        axis.set_yticklabels(names, fontsize=8)
        axis.xaxis.set_major_locator(LogLocator())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    figure.supxlabel("sliced Wasserstein distance to exact samples (dotted: of exact samples)")
    return figure


def evidence(settings: dict[str, Any]) -> Figure:
    """Errors of the log evidence, with 0.1 nat in grey."""
    figure = Figure(figsize=(8, 0.55 * len(settings) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-0.1, 0.1, color="0.9")
    for place, (_, row) in enumerate(reversed(settings.items())):
        for shift, (name, errors) in zip((-0.15, 0.15), row["evidence"].items(), strict=False):
            where = np.full(len(errors), place + shift)
            label = name if place == 0 else None
            axis.plot(errors, where, ".", color=colour(name), alpha=0.5, label=label)
            axis.plot(np.median(errors), place + shift, "|", color=colour(name), ms=12, mew=2.5)
    axis.axvline(0, color="k", lw=0.8)
    axis.set(
        xlabel="log evidence less the exact one, nats (grey: 0.1)", yticks=range(len(settings))
    )
    axis.set_yticklabels(list(reversed(settings)))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def coverage(levels: dict[str, Any]) -> Figure:
    """How often the truth is in regions of highest density, with the exact law's band."""
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axis = figure.subplots()
    runs = len(next(iter(levels.values())))
    band = ecdf_band(runs, 50)
    axis.fill_between(band.points, band.lower, band.upper, color="0.85", label="exact, 95 %")
    nominal = np.linspace(0, 1, 201)
    for name, values in levels.items():
        inside = np.mean(np.asarray(values)[:, None] <= nominal, axis=0)
        axis.plot(nominal, inside, color=colour(name), label=name)
    axis.set(xlabel="mass of the region of highest density", ylabel="share of truths inside")
    axis.legend()
    return figure
