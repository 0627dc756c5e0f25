"""A picture of how a training goes: its losses, and its figures on held-out objects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PANELS = ("loss", "held-out diffusion loss", "held-out PSNR, dB")
SHOWN = ("total", "diffusion", "rgb_noisy", "rgb_clean", "decoded")
"""Terms of the loss that have a curve."""

BASELINES = ("copied_psnr",)
"""Figures that do not depend on training, drawn dotted."""


class Curve(NamedTuple):
    """A figure over the steps."""

    panel: str
    name: str
    steps: list[int]
    values: list[float]


def draw_curves(folder: Path) -> None:
    """Draws log.jsonl and eval.jsonl of a run's folder as curves.png there."""
    curves = [
        *_curves(_rows(folder / "log.jsonl"), _panel_of_loss),
        *_curves(_rows(folder / "eval.jsonl"), _panel_of_figure),
    ]
    used = [panel for panel in PANELS if any(c.panel == panel for c in curves)]
    if not used:
        return

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot, which keeps every figure, and looks for a screen.
    figure = Figure(figsize=(6 * len(used), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axes in zip(used, figure.subplots(1, len(used), squeeze=False)[0], strict=True):
        for curve in (c for c in curves if c.panel == panel):
            style = ":" if curve.name in BASELINES else "-"
            axes.plot(curve.steps, curve.values, style, label=curve.name, linewidth=1.2)

        # Losses fall by orders of magnitude; decibels are logarithms already.
        axes.set_title(panel)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        if panel != PANELS[2]:
            axes.set_yscale("log")
    figure.savefig(folder / "curves.png", dpi=100)


def _panel_of_loss(name: str) -> str | None:
    return PANELS[0] if name in SHOWN else None


def _panel_of_figure(name: str) -> str | None:
    if name.startswith("diffusion_"):
        return PANELS[1]
    return PANELS[2] if name.endswith("_psnr") else None


def _curves(rows: list[dict[str, Any]], panel_of: Callable[[str], str | None]) -> list[Curve]:
    """Returns the columns that have a panel, without rows that say nothing of them."""
    names = dict.fromkeys(name for row in rows for name in row)
    curves = []
    for name in names:
        panel = panel_of(name)
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if panel is not None and points:
            steps, values = zip(*points, strict=True)
            curves.append(Curve(panel, name, list(steps), list(values)))
    return curves


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
