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
    best = found.get("mmps, weighted", found["mmps"])
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
    if "mmps, weighted" in found:
        shown["weighted"] = (best.samples[i][0], {})
        shown["its mean"] = (best.mean[i], {})
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

    figure = Figure(figsize=(4.6 * len(arrays), 7), layout="constrained")
    axes = figure.subplots(2, len(arrays), squeeze=False)
    for column, (title, found) in enumerate(arrays.items()):
        results = {n: f for n, f in found.items() if hasattr(f, "psnr")}
        compared = {n: f for n, f in results.items() if "simulated" not in n}
        upper, lower = axes[:, column]
        for place, one in enumerate(compared.values()):
            value, error = moments(one.psnr_few)
            upper.errorbar(value, place, xerr=error, fmt="o", color="C0")
        upper.set(title=title, xlabel="PSNR of the mean of five draws (dB)")
        upper.set_yticks(range(len(compared)), list(compared))
        upper.set_xlim(max(10, upper.get_xlim()[0]), None)  # some methods fail
        upper.invert_yaxis()
        covered = {n: f for n, f in results.items() if np.isfinite(f.seen).all()}
        lower.axvspan(0.87, 0.93, color="0.9")
        for place, one in enumerate(covered.values()):
            for part, color, shift in (("seen", "C0", -0.12), ("hidden", "C1", 0.12)):
                value, error = moments(getattr(one, part))
                if np.isfinite(value):
                    label = {"seen": "observed", "hidden": "hidden"}[part] if place == 0 else None
                    lower.errorbar(
                        value, place + shift, xerr=error, fmt="o", color=color, label=label
                    )
        lower.set(xlabel="share of pixels in their 90 % interval", xlim=(None, 1))
        lower.set_yticks(range(len(covered)), list(covered))
        lower.invert_yaxis()
        lower.legend()
    return figure


def moments(values: Any) -> tuple[float, float]:
    """Return a mean over images and its standard error."""
    values = np.asarray(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def notes(arrays: dict[str, Any]) -> str:
    """A line a method and problem."""
    lines = [
        "Means over images, standard errors in brackets. PSNR in decibels, of the mean of all "
        "draws and of five; the share of observed and of hidden pixels within their 90 % interval. "
        "Weighted rows are of fewer images.",
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
