"""Figures and the table of digits_inverse."""

from typing import Any

import numpy as np

SHOWN = 0, 3, 4
"""Images of which pictures are drawn."""


def picture(axis: Any, image: Any, **options: Any) -> None:
    """Show an image of one channel or three, in [-1, 1]."""
    image = np.asarray(image)
    if image.shape[-1] == 3:
        axis.imshow(np.clip((image + 1) / 2, 0, 1))
    else:
        axis.imshow(image[..., 0], **({"cmap": "gray_r", "vmin": -1, "vmax": 1} | options))


def observation(y: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return what was observed as an image; what is hidden lies between black and white."""
    rows, columns, channels = shape
    seen = np.asarray(y).reshape(-1, channels)
    if len(seen) == rows * columns // 4:
        return seen.reshape(rows // 2, columns // 2, channels)
    hidden = np.zeros((rows * columns - len(seen), channels))
    return np.concatenate([seen, hidden]).reshape(shape)


def panels(found: dict[str, Any], i: int) -> dict[str, Any]:
    """Return the pictures of one image by their titles."""
    truth = np.asarray(found["truth"][i])
    grey = {"cmap": "viridis", "vmin": 0, "vmax": 1}

    def level(a: Any) -> Any:
        return np.asarray(a).mean(axis=-1, keepdims=True), grey

    shown: dict[str, Any] = {
        "truth": (truth, {}),
        "observed": (observation(found["observed"][i], truth.shape), {}),
    }
    for j in range(4):
        shown[f"mmps {j + 1}"] = (found["mmps"].samples[i][j], {})
    shown["mean"] = (found["mmps"].mean[i], {})
    shown["deviation"] = level(found["mmps"].deviation[i])
    shown["error"] = level(np.abs(found["mmps"].mean[i] - truth))
    for name in ("azula MMPS, 3", "azula TMPD", "azula DPS"):
        if name in found:
            shown[name.removesuffix(", 3")] = (found[name].samples[i][0], {})
    return shown


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Pictures of each problem, and all methods' PSNR and coverage."""
    from matplotlib.figure import Figure

    figures = {"methods": summary(arrays)}
    for title, found in arrays.items():
        rows = [panels(found, i) for i in SHOWN if i < len(found["truth"])]
        figure = Figure(figsize=(1.05 * len(rows[0]), 1.15 * len(rows) + 0.3), layout="constrained")
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for i, shown in enumerate(rows):
            for axis, (name, (image, options)) in zip(axes[i], shown.items(), strict=True):
                picture(axis, image, **options)
                axis.axis("off")
                if i == 0:
                    axis.set_title(name, fontsize=8)
        figures[title.replace(", ", "-")] = figure
    return figures


def summary(arrays: dict[str, Any]) -> Any:
    """A row a method: its PSNR, and how many pixels its intervals cover, with standard errors."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(title.partition(", ")[0] for title in arrays))
    figure = Figure(figsize=(9.5, 3.6 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), kind in zip(axes, kinds, strict=True):
        problems = [title for title in arrays if title.startswith(kind)]
        methods = [name for name, f in arrays[problems[0]].items() if hasattr(f, "psnr")]
        compared = [name for name in methods if "simulated" not in name]
        covered = [n for n in methods if np.isfinite(arrays[problems[0]][n].seen).all()]
        right.axvspan(0.87, 0.93, color="0.9")
        for i, title in enumerate(problems):
            style = {"color": f"C{i}", "ms": 4, "shift": 0.2 * (i - 1)}
            label = title.removeprefix(f"{kind}, ")
            bars(left, [arrays[title][n].psnr_few for n in compared], label=label, **style)
            bars(right, [arrays[title][n].seen for n in covered], **style)
            bars(right, [arrays[title][n].hidden for n in covered], fmt="s", mfc="white", **style)
        left.set(title=kind, xlabel="PSNR of the mean of five draws (dB)")
        left.set_xlim(max(10, left.get_xlim()[0]), None)  # some methods fail
        left.legend(fontsize=8)
        title = "share in their 90 % interval"
        right.set(title=title, xlabel="pixels observed (discs), hidden (squares)", xlim=(None, 1))
        for axis, rows in ((left, compared), (right, covered)):
            axis.set_yticks(range(len(rows)), rows)
            axis.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def bars(axis: Any, rows: list[Any], shift: float, fmt: str = "o", **style: Any) -> None:
    """A mean over images with its standard error in each row, where it is a number."""
    values, errors = np.array([moments(row) for row in rows]).T
    axis.errorbar(values, np.arange(len(rows)) + shift, xerr=errors, fmt=fmt, **style)


def moments(values: Any) -> tuple[float, float]:
    """Return a mean over images and its standard error."""
    values = np.asarray(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def notes(arrays: dict[str, Any]) -> str:
    """A line a method and problem."""
    lines = [
        "Means over images, standard errors in brackets. PSNR in decibels, of the mean of all "
        "draws and of five; the share of observed and of hidden pixels within their 90 % interval.",
        "",
        "| problem | method | PSNR | of five | observed | hidden |",
        "|-|-|-|-|-|-|",
    ]

    def cell(values: Any, digits: int) -> str:
        value, error = moments(values)
        return f"{value:.{digits}f} ({error:.{digits}f})" if np.isfinite(value) else ""

    for title, found in arrays.items():
        for name, one in found.items():
            if hasattr(one, "psnr"):
                lines.append(
                    f"| {title} | {name} | {cell(one.psnr, 2)} | {cell(one.psnr_few, 2)} "
                    f"| {cell(one.seen, 3)} | {cell(one.hidden, 3)} |"
                )
    return "\n".join(lines)
