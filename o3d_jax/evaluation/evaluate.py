"""Measures models on rendered objects: samples every orbit of a protocol, and scores it."""

import dataclasses
import hashlib
import json
import platform
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.evaluation.data import (
    OrbitName,
    Sample,
    check_data,
    choose_orbits,
    compared_size,
    read_sample,
    read_seen,
    resized_views,
)
from o3d_jax.evaluation.progress import Finished, Unfinished, key_of
from o3d_jax.evaluation.protocol import Protocol, read_protocol
from o3d_jax.evaluation.report import (
    LpipsFacts,
    ModelResult,
    Results,
    plain,
    to_json,
    to_markdown,
)
from o3d_jax.evaluation.scores import OrbitScore, ShapeScore, measure, summarize
from o3d_jax.evaluation.shapes import TrueShapes, shape_of_gaussians
from o3d_jax.evaluation.sheet import Shown, comparison_sheet
from o3d_jax.files.atomic import whole_folder
from o3d_jax.files.images import save_png
from o3d_jax.geometry.released import as_drawn
from o3d_jax.meshing.extra import check_mesh_packages
from o3d_jax.nn.lpips import SMALLEST
from o3d_jax.nn.networks import Ouroboros, build_networks
from o3d_jax.steps.sample import generate
from o3d_jax.types import Gaussians
from o3d_jax.weights.checkpoint import BUNDLED, load_model
from o3d_jax.weights.completeness import complete_config
from o3d_jax.weights.pytorch.lpips import read_lpips

RESULT_FILES = ("results.json", "results.md", "sheet.png")
"""The names of all files that a result may hold."""

SHEET_OBJECTS = 10
"""Objects in sheet.png, evenly spread over all; the first orbit of each."""

SHEET_VIEWS = 3
"""Views of each object there, evenly spread over the novel ones."""


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Measures models on rendered objects."""

    rendered: tyro.conf.Positional[Path]
    """Folder of rendered orbits."""
    out: Path
    """Folder for results.json, results.md and sheet.png; an earlier result there is replaced."""
    weights: tuple[Path, ...] = (BUNDLED / "nano",)
    """Folders with a model each: RUN/model of a training run."""
    labels: tuple[str, ...] = ()
    """Names of the models' rows; by default those of their configs."""
    protocol: str = "orbits"
    """A bundled protocol, or a TOML file."""
    lpips: tuple[Path, Path] | None = None
    """Weights of LPIPS: the file of its trunk, and that of its channel weights."""
    true_meshes: Path | None = None
    """Folder of the models that were rendered, to compare meshes of the Gaussians with."""


class Task(NamedTuple):
    """What each model has to do."""

    root: Path
    orbits: list[OrbitName]
    protocol: Protocol
    lpips: Any
    """Parameters; None leaves LPIPS out."""
    shapes: TrueShapes | None
    """The true meshes; None leaves shapes out."""
    shown: frozenset[int]
    """Orbits that come on the sheet."""
    facts: Any
    """Plain values: what the numbers of all models depend on."""
    unfinished: Unfinished
    """Keeps the orbits that are done."""


class EvaluatedModel(NamedTuple):
    """A model of the table."""

    folder: Path
    label: str
    model: Ouroboros


class Made(NamedTuple):
    """What a model made of an orbit, as large as it is compared."""

    views: Float[np.ndarray, "v H W 3"]
    renders: Float[np.ndarray, "v H W 3"]
    gaussians: Gaussians
    """In the world of the method, with quaternions as they are drawn when normalized."""


def evaluate(arguments: EvaluateArguments) -> Path:
    """Writes OUT, whole or not at all, and returns its path.

    Raises:
        InputError: arguments, files or a protocol that cannot be used, or that don't go together.
    """
    if not arguments.weights:
        raise InputError("--weights names no model; give at least one folder, or leave it out")

    # Everything that can be wrong is found out before anything is sampled.
    protocol = read_protocol(arguments.protocol)
    configs = [_sampled_as(protocol, complete_config(folder)) for folder in arguments.weights]
    labels = _labels(arguments, configs)
    for config in configs:
        _check_sizes(protocol, config, arguments.lpips is not None)
    orbits = choose_orbits(arguments.rendered, protocol.objects)
    lpips, lpips_facts = _read_lpips(arguments.lpips, protocol)
    shapes, shape_facts = _find_shapes(arguments, orbits)

    with whole_folder(arguments.out.absolute(), RESULT_FILES) as scratch:
        data = check_data(arguments.rendered, orbits, protocol, configs)
        versions, device = _versions(), f"{jax.devices()[0].device_kind} ({platform.machine()})"
        facts = plain([protocol, data, lpips_facts, versions, device, *shape_facts])
        unfinished = Unfinished(arguments.out.absolute())
        task = Task(
            arguments.rendered, orbits, protocol, lpips, shapes, _shown(orbits), facts, unfinished
        )

        models, rows = [], []
        with tqdm(total=len(orbits) * len(configs), unit="orbit") as bar:
            for folder, config, label in zip(arguments.weights, configs, labels, strict=True):
                bar.set_description(label)
                result, shown = run_model(task, folder, config, label, bar)
                models.append(result)
                rows.append(shown)

        results = Results(
            protocol=protocol,
            protocol_sha256=protocol.sha256,
            folder=arguments.rendered.absolute().name,
            data=data,
            objects=len({orbit.object_name for orbit in orbits}),
            lpips=lpips_facts,
            models=tuple(models),
            versions=versions,
            device=device,
        )
        _write(scratch, results, list(zip(*rows, strict=True)))
    unfinished.remove()
    return arguments.out


def _write(folder: Path, results: Results, shown: list[tuple[Shown, ...]]) -> None:
    values = json.dumps(to_json(results), indent=1, allow_nan=False)
    (folder / "results.json").write_text(values + "\n", encoding="utf-8")
    (folder / "results.md").write_text(to_markdown(results), encoding="utf-8")
    save_png(folder / "sheet.png", comparison_sheet(shown))


def _sampled_as(protocol: Protocol, config: Config) -> Config:
    levels = protocol.sampling.levels
    if levels == "model":
        return config
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, levels=levels))


def _labels(arguments: EvaluateArguments, configs: list[Config]) -> list[str]:
    """Returns the names of the rows; where configs share one, their folders' stand beside it."""
    if arguments.labels:
        if len(arguments.labels) != len(configs):
            raise InputError(
                f"--labels has {len(arguments.labels)} names for {len(configs)} models; give one "
                "for each of --weights"
            )
        return list(arguments.labels)
    names = [config.name for config in configs]
    if len(set(names)) == len(names):
        return names
    return [f"{n} ({folder})" for n, folder in zip(names, arguments.weights, strict=True)]


def _check_sizes(protocol: Protocol, config: Config, with_lpips: bool) -> None:
    size, metrics = compared_size(protocol, config), protocol.metrics
    if size < metrics.ssim_window:
        raise InputError(
            f"{config.name}: images of {size} px are smaller than the protocol's SSIM window of "
            f"{metrics.ssim_window}; raise images.resolution"
        )
    seen = size if metrics.lpips_size == "compared" else metrics.lpips_size
    if with_lpips and seen < SMALLEST[metrics.lpips_network]:
        raise InputError(
            f"{config.name}: LPIPS with {metrics.lpips_network} needs "
            f"{SMALLEST[metrics.lpips_network]} px, not {seen}; raise metrics.lpips_size"
        )


def _read_lpips(
    files: tuple[Path, Path] | None, protocol: Protocol
) -> tuple[Any, LpipsFacts | None]:
    if files is None:
        return None, None
    weights = jax.device_put(read_lpips(files, protocol.metrics.lpips_network))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return weights, LpipsFacts((files[0].name, files[1].name), digest.hexdigest())


def _find_shapes(
    arguments: EvaluateArguments, orbits: list[OrbitName]
) -> tuple[TrueShapes | None, list[str]]:
    """Returns the true meshes, if they are given, and what numbers depend on because of them."""
    if arguments.true_meshes is None:
        return None, []
    check_mesh_packages()
    shapes = TrueShapes(arguments.true_meshes, arguments.rendered)
    return shapes, [shapes.digest_of(list(dict.fromkeys(o.object_name for o in orbits)))]


def _shown(orbits: list[OrbitName]) -> frozenset[int]:
    """Returns the orbits that come on the sheet: not chosen by how well they did."""
    names = [orbit.object_name for orbit in orbits]
    first = sorted({names.index(name) for name in names})
    spread = np.linspace(0, len(first) - 1, min(len(first), SHEET_OBJECTS)).round().astype(int)
    return frozenset(first[k] for k in spread)


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "diffrax", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def run_model(
    task: Task, folder: Path, config: Config, label: str, bar: tqdm
) -> tuple[ModelResult, list[Shown]]:
    """Samples and measures all orbits, one at a time, with one compiled program.

    Returns the model's row of the table, and its part of the sheet.
    """
    weights = jax.device_put(load_model(folder).weights)
    networks = build_networks(config.model)
    model = Ouroboros(
        networks=networks, config=config, params=weights.params, frozen=weights.frozen
    )
    row = EvaluatedModel(folder, label, model)
    checksum = (folder / "checksum").read_text().strip()
    key = key_of([task.facts, checksum, plain(config)])

    # What an earlier run has finished is taken from its files, if it has what the sheet needs.
    finished, compiled = [], False
    for i, orbit in enumerate(task.orbits):
        found = task.unfinished.read(key, orbit, label)
        if found is None or (found.shown is None) != (i not in task.shown):
            found = _run_orbit(task, row, i)._replace(compiled=not compiled)
            task.unfinished.write(key, orbit, found)
            compiled = True
        finished.append(found)
        bar.update()

    seconds = [x.seconds for x in finished]
    scores = [x.score for x in finished]
    result = ModelResult(
        label=label,
        weights=str(folder),
        checksum=checksum,
        config=config,
        resolution=compared_size(task.protocol, config),
        frames=finished[0].frames,
        summary=summarize(task.protocol, scores),
        orbits=tuple(scores),
        seconds_an_orbit=float(np.mean([x.seconds for x in finished if not x.compiled] or seconds)),
    )

    return result, [x.shown for x in finished if x.shown is not None]


def _run_orbit(task: Task, row: EvaluatedModel, number: int) -> Finished:
    """Samples and measures one orbit."""
    orbit = task.orbits[number]
    sample = read_sample(task.root, orbit, task.protocol, row.model.config)
    started = time.perf_counter()
    made = _sample(row.model, sample, orbit, task.protocol)
    seconds = time.perf_counter() - started
    if not (np.isfinite(made.views).all() and np.isfinite(made.renders).all()):
        raise InputError(f"{row.folder} makes views of {orbit.orbit_name} that are not finite")
    return Finished(
        score=_score(task, orbit, sample, made)._replace(shape=_shape(task, row, orbit, made)),
        frames=sample.frames,
        seconds=seconds,
        compiled=False,
        shown=_shown_views(row.label, orbit, sample, made) if number in task.shown else None,
    )


def _sample(model: Ouroboros, sample: Sample, orbit: OrbitName, protocol: Protocol) -> Made:
    """Returns views and renders; the noise depends on the orbit's name alone.

    So a figure does not change with the orbits that are evaluated beside it.
    """
    seed = jax.random.key(protocol.sampling.seed)
    key = jax.random.fold_in(seed, zlib.crc32(orbit.orbit_name.encode()))
    found = generate(model, jnp.asarray(sample.image)[None], sample.cameras, key)
    images = (found.views[0], found.reconstruction.rendering.rgb[0])
    size = sample.truth.shape[1]
    views, renders = (resized_views(np.asarray(x), size, protocol.images) for x in images)
    gaussians = jax.tree.map(lambda a: a[0], found.reconstruction.gaussians)
    return Made(views, renders, as_drawn(gaussians, model.config.model.lgm.rotation_norm))


def _score(task: Task, orbit: OrbitName, sample: Sample, made: Made) -> OrbitScore:
    """Returns the numbers of one orbit."""
    copied = np.broadcast_to(sample.truth[:1], sample.truth.shape)
    views, renders, copies = (
        measure(task.protocol.metrics, task.lpips, images, sample.truth)
        for images in (made.views, made.renders, copied)
    )
    return OrbitScore(orbit.object_name, orbit.orbit_name, views, renders, copies)


def _shape(
    task: Task, row: EvaluatedModel, orbit: OrbitName, made: Made
) -> ShapeScore[float] | None:
    if task.shapes is None:
        return None
    seen = read_seen(task.root, orbit, task.protocol, row.model.config)
    return shape_of_gaussians(made.gaussians, task.shapes.of(orbit.object_name), seen)


def _shown_views(label: str, orbit: OrbitName, sample: Sample, made: Made) -> Shown:
    v = len(sample.truth)
    chosen = sorted({max(1, k * v // (SHEET_VIEWS + 1)) for k in range(1, SHEET_VIEWS + 1)})
    return Shown(
        label=orbit.orbit_name,
        model=label,
        image=sample.image,
        truth=sample.truth[chosen],
        views=made.views[chosen],
        renders=made.renders[chosen],
    )
