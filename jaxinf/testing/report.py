"""The certificate itself: a table, a verdict, a picture."""

import textwrap
from dataclasses import dataclass
from typing import Any

from jaxinf.testing.claims import Curve, Row

WIDTHS = (26, 26, 44, 24)


@dataclass(frozen=True)
class Report:
    """What ``certify`` found."""

    rows: tuple[Row, ...]
    """One for each law."""
    curves: tuple[Curve, ...]
    """Errors against calls."""

    @property
    def passed(self) -> bool:
        """Whether every claim that was made holds."""
        return all(row.verdict is not False for row in self.rows)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of the claims that do not hold."""
        return tuple(row for row in self.rows if row.verdict is False)

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the failed laws, what they mean and what to look for."""
        if not self.passed:
            lines = (f"{row.law}: {row.measured}; {row.meaning}" for row in self.failed)
            raise AssertionError("the sampler does not keep its claims\n" + "\n".join(lines))

    def __str__(self) -> str:
        """A plain table, with the meaning of each failure."""
        lines = _line(("law", "claim", "measured", "tolerance"), "verdict")
        lines += ["-" * (sum(WIDTHS) + 2 * len(WIDTHS) + 7)]
        for row in self.rows:
            verdict = {True: "holds", False: "FAILS", None: "-"}[row.verdict]
            lines += _line((row.law, row.claim, row.measured, row.tolerance), verdict)
            if row.verdict is False:
                lines += textwrap.wrap(
                    row.meaning, 100, initial_indent="  -> ", subsequent_indent="     "
                )
        checked = sum(row.verdict is not None for row in self.rows)
        lines.append(
            f"{checked} claims hold." if self.passed else f"{len(self.failed)} of {checked} fail."
        )
        return "\n".join(lines)

    def figure(self) -> Any:
        """A picture: errors of end points, and of laws, against calls, with the claimed slopes.

        A matplotlib Figure; a notebook shows it after ``%matplotlib inline``.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.8), layout="constrained")
        flows = [curve for curve in self.curves if curve.law.startswith("flow")]
        laws = [curve for curve in self.curves if not curve.law.startswith("flow")]
        panels = figure.subplots(1, 2)
        for axes, title, curves in zip(
            panels, ("end points", "law on Gaussian data"), (flows, laws), strict=True
        ):
            for curve in curves:
                (line,) = axes.loglog(curve.calls, curve.errors, marker=".", label=curve.law)
                if curve.order is not None:
                    guide = curve.errors[-1] * (curve.calls / curve.calls[-1]) ** -curve.order
                    label = f"{line.get_label()}: claimed, order {curve.order:g}"
                    axes.loglog(curve.calls, guide, ":", color=line.get_color(), label=label)
            axes.set(title=title, xlabel="calls of the denoiser")
            if curves:
                ticks = max((curve.calls for curve in curves), key=len)
                axes.set_xticks(ticks, [f"{count:g}" for count in ticks])
                axes.minorticks_off()
                axes.legend(fontsize="small")
        panels[0].set_ylabel("error")
        if not flows:
            panels[0].set_visible(False)
        return figure


def _line(cells: tuple[str, ...], verdict: str) -> list[str]:
    """One row of the table, its cells wrapped."""
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, WIDTHS, strict=True)]
    lines = []
    for i in range(max(len(cell) for cell in wrapped)):
        parts = [
            (cell[i] if i < len(cell) else "").ljust(width)
            for cell, width in zip(wrapped, WIDTHS, strict=True)
        ]
        lines.append("  ".join([*parts, verdict if i == 0 else ""]).rstrip())
    return lines
