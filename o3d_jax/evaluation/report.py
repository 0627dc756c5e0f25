"""The results of an evaluation, to read by people (Markdown) and by programs (JSON)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from o3d_jax.config import Config
from o3d_jax.evaluation.data import DataFacts
from o3d_jax.evaluation.protocol import Protocol
from o3d_jax.evaluation.scores import METRICS, Interval, OrbitScore, PerMetric, Summary

NOT_MEASURED = "not measured: no weights given"
"""What stands in the place of a metric that was not measured."""

DIGITS = PerMetric(psnr=2, ssim=4, lpips=4)
"""Digits behind the point, by metric."""

SHAPE_NAMES = ("mesh IoU", "mesh Chamfer, %", "mesh F-score")
"""The columns of a `ShapeScore`, in its order."""

SHAPE_DIGITS = (3, 2, 3)
"""Digits behind the point, in the same order."""

METRIC_NAMES = PerMetric(psnr="PSNR", ssim="SSIM", lpips="LPIPS")


class LpipsFacts(NamedTuple):
    """Where LPIPS's weights came from."""

    files: tuple[str, str]
    sha256: str
    """A digest of both files, one behind the other."""


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One model's row."""

    label: str
    weights: str
    """The model's folder."""
    checksum: str
    """The checksum of its weights, as the checkpoint has it."""
    config: Config
    resolution: int
    """Pixels along a side at which its images were compared."""
    frames: tuple[int, ...]
    """The frames of the first orbit, the input first."""
    summary: Summary
    orbits: tuple[OrbitScore, ...]
    seconds_an_orbit: float
    """How long sampling took; the first orbit, which compiles, counts only if it is alone."""


@dataclasses.dataclass(frozen=True)
class Results:
    """All that an evaluation found."""

    protocol: Protocol
    protocol_sha256: str
    folder: str
    """The name of the folder of rendered orbits."""
    data: DataFacts
    objects: int
    lpips: LpipsFacts | None
    models: tuple[ModelResult, ...]
    versions: dict[str, str]
    device: str


def to_json(results: Results) -> dict[str, Any]:
    """Returns plain values; LPIPS that was not measured is a sentence that says so."""
    values = plain(results)
    values["lpips"] = values["lpips"] or f"{NOT_MEASURED} (--lpips TRUNK LIN)"
    return values


def plain(value: Any) -> Any:
    """Returns dataclasses, named tuples, paths and arrays as JSON has them."""
    if isinstance(value, PerMetric):
        found = {name: getattr(value, name) for name in METRICS}
        return {name: NOT_MEASURED if x is None else plain(x) for name, x in found.items()}
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {name: plain(x) for name, x in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, tuple | list):
        return [plain(x) for x in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def to_markdown(results: Results) -> str:
    """Returns the results as tables, and how they were made."""
    parts = [f"# Evaluation on {results.folder}\n", _how(results), _model_table(results)]
    parts += [_caption(results)]
    parts += [_object_table(model) for model in results.models]
    return "\n".join(parts)


def _how(results: Results) -> str:
    protocol, data = results.protocol, results.data
    orbits = len(results.models[0].orbits)
    sizes = sorted({f"{model.resolution} px" for model in results.models})
    lpips = NOT_MEASURED
    if results.lpips:
        lpips = f"{protocol.metrics.lpips_network}, `{results.lpips.sha256[:12]}`"
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"Made by `o3d evaluate`: protocol {protocol.name} {protocol.version} "
        f"(`{results.protocol_sha256[:12]}`), data `{data.sha256[:12]}`: "
        f"{_count(results.objects, 'object')}, {_count(orbits, 'orbit')}, "
        f"compared at {' and '.join(sizes)}. LPIPS: {lpips}. {versions}, {results.device}.\n"
        f"{_camera_notes(results)}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _camera_notes(results: Results) -> str:
    """Returns a warning where cameras are others than a model was trained with."""
    lines = []
    for model in results.models:
        trained, data = model.config.camera, results.data
        pairs = ((data.radii, trained.radius), (data.fovs, trained.fov))
        if any(abs(x / own - 1) > 0.01 for found, own in pairs for x in found):
            lines.append(
                f"\nCameras here: radius {_range(data.radii)}, field of view {_range(data.fovs)} "
                f"degrees; {model.label} was trained with {trained.radius:g} and {trained.fov:g}.\n"
            )
    return "".join(lines)


def _range(values: tuple[float, float]) -> str:
    low, high = (f"{x:.4g}" for x in values)
    return low if low == high else f"{low} to {high}"


def _model_table(results: Results) -> str:
    """Returns a row for each model, renders first, as in Table 2."""
    # Columns are those metrics that were measured, the same for all models.
    measured = results.models[0].summary.views.measured()
    heads = [
        *(f"renders {getattr(METRIC_NAMES, name)}" for name in measured),
        *(f"views {getattr(METRIC_NAMES, name)}" for name in measured),
        *(f"Delta {getattr(METRIC_NAMES, name)}" for name in measured),
        *(SHAPE_NAMES if results.models[0].summary.shape else ()),
    ]
    lines = [_row(["", "feedback", *heads]), _row(["---"] * (2 + len(heads)))]

    for model in results.models:
        groups = (model.summary.renders, model.summary.views, model.summary.delta)
        cells = [_interval(group, name) for group in groups for name in measured]
        if model.summary.shape:
            shape = zip(model.summary.shape.values(), SHAPE_DIGITS, strict=True)
            cells += [_with_bounds(value, digits) for value, digits in shape]
        lines.append(_row([model.label, _feedback(model.config), *cells]))

    # The input has no object to render: it is compared as views, and has nothing else.
    first = results.models[0].summary.copied
    cells = ["" for _ in measured] + [_interval(first, name) for name in measured]
    cells += ["" for _ in heads[len(cells) :]]
    lines.append(_row(["input copied to all views", "", *cells]))
    return "\n".join(lines) + "\n"


def _feedback(config: Config) -> str:
    return config.model.unet.feedback if config.sample.feedback else "none"


def _interval(group: PerMetric[Interval], name: str) -> str:
    return _with_bounds(getattr(group, name), getattr(DIGITS, name))


def _with_bounds(value: Interval, digits: int) -> str:
    text = f"{value.value:.{digits}f}"
    if value.low is None:
        return text
    return f"{text} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _caption(results: Results) -> str:
    """Returns what one has to know to read the table of models."""
    protocol = results.protocol
    which = "the novel views" if protocol.views.input_view == "apart" else "all views"
    inputs = "; ".join(
        f"{model.label} {model.summary.input_views.psnr.value:.2f} dB generated, "
        f"{model.summary.input_renders.psnr.value:.2f} dB rendered"
        for model in results.models
    )
    percent = 100 * protocol.intervals.coverage

    # Without true meshes there are no such columns, and nothing to explain.
    mesh = ""
    if results.models[0].summary.shape:
        mesh = (
            " Meshes are of the Gaussians, beside the true ones: intersection over union of their "
            "silhouettes, Chamfer distance in percent of the diagonal, F-score at 1 % of it."
        )

    return (
        f"Means over objects, of {which}; in brackets {percent:g} % intervals by bootstrap over "
        "objects. Renders are of the Gaussians. Delta is the absolute difference between the means "
        f"of views and renders (Table 2). The input's own view: {inputs}. Seconds an orbit: "
        + ", ".join(f"{model.label} {model.seconds_an_orbit:.1f}" for model in results.models)
        + f".{mesh}\n"
    )


def _object_table(model: ModelResult) -> str:
    """Returns means over the novel views of each orbit, worst renders first."""
    measured = model.orbits[0].views.measured()
    heads = [
        f"{kind} {getattr(METRIC_NAMES, n)}" for kind in ("renders", "views") for n in measured
    ]
    lines = [f"## {model.label}, novel views of each orbit\n"]
    heads += ["copied PSNR", *(SHAPE_NAMES if model.summary.shape else ())]
    lines += [_row(["orbit", *heads]), _row(["---"] * (len(heads) + 1))]
    for score in sorted(model.orbits, key=lambda s: s.renders.psnr[1:].mean()):
        cells = [
            f"{getattr(group, name)[1:].mean():.{getattr(DIGITS, name)}f}"
            for group in (score.renders, score.views)
            for name in measured
        ]
        cells.append(f"{score.copied.psnr[1:].mean():.2f}")
        if score.shape:
            shape = zip(score.shape.values(), SHAPE_DIGITS, strict=True)
            cells += [f"{value:.{digits}f}" for value, digits in shape]
        lines.append(_row([score.orbit_name, *cells]))
    return "\n".join(lines) + "\n"
