"""Renders all models of a folder to orbits (Sec. 4.1), goes on where it broke off, and reports."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float
from tqdm import tqdm

from o3d_jax.data.meshes.blender import Blender, check_blender
from o3d_jax.data.meshes.jobs import (
    Models,
    Outcome,
    RenderJob,
    find_models,
    is_finished,
    run_by_beam,
    run_in_processes,
    settings,
)
from o3d_jax.data.meshes.orbits import OrbitPlan
from o3d_jax.data.orbits.folder import IDS, META, read_index, read_rgba
from o3d_jax.data.orbits.names import ids_of, read_ids
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.files.images import save_png
from o3d_jax.media.sheets import grid

SETTINGS, FAILURES, SHEET = "render_settings.json", "failures.txt", "contact_sheet.png"

SHEET_VIEWS, SHEET_TILE = 4, 160
"""Views of each orbit on the contact sheet, and their largest size in pixels."""


@dataclass(frozen=True)
class RenderOrbits:
    """What to render, and how."""

    models: tyro.conf.Positional[Path]
    """Folder with models below it."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    plan: Annotated[OrbitPlan, tyro.conf.arg(name="")] = field(default_factory=OrbitPlan)
    ids: Path | None = None
    """File with the names of the objects to render, or bare ids, one a line; all if not given."""
    workers: int = os.cpu_count() or 1
    """Processes that render side by side."""
    max_megabytes: int = 1024
    """Largest model file, and largest file that a model refers to, in MiB."""
    time_limit: float = 600.0
    """Seconds for a model; the clock is looked at between frames, not in the middle of one."""
    sheet: int = 24
    """Objects on the contact sheet; 0 for none."""
    renderer: Literal["software", "blender"] = "software"
    """Blender's Cycles takes a hundred times as long, for shadows and glossy surfaces."""
    blender: Path | None = None
    """A Python that can import bpy, for --renderer blender."""
    blender_samples: int = 64
    """Rays for each pixel."""
    runner: Literal["processes", "beam"] = "processes"
    """Apache Beam spreads the models over a cluster."""
    beam_options: str = ""
    """Options of Beam's pipeline: --beam-options="--runner=FlinkRunner --flink_master=..."."""


def render_orbits(order: RenderOrbits) -> int:
    """Renders what is not there yet, reports on standard output; returns the exit status.

    Raises:
        InputError: no models, unknown ids, OUT made with other settings, or no Blender or Beam.
    """
    _check(order)
    models = find_models(order.models)
    blender = None
    if order.renderer == "blender":
        blender = Blender(order.blender or Path(sys.executable), order.blender_samples)
        check_blender(blender)

    jobs = [
        RenderJob(
            name, path, order.out, order.plan, order.max_megabytes << 20, order.time_limit, blender
        )
        for name, path in _wanted(order, models).items()
    ]
    order.out.mkdir(parents=True, exist_ok=True)
    _check_settings(order, blender)

    # What an earlier run has finished is left alone, so that a run goes on where it broke off.
    todo = [job for job in jobs if not is_finished(job)]
    outcomes, start = list(models.refused), time.monotonic()
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="object") as bar:
        for outcome in _run(order, todo):
            outcomes.append(outcome)
            bar.update()
            if outcome.fault:
                bar.write(f"{outcome.name}: {' '.join(outcome.fault.split())}", sys.stderr)

    seconds = time.monotonic() - start
    failed = [outcome for outcome in outcomes if outcome.fault]
    _write_lists(order, jobs, failed)
    sys.stdout.write(_table(order.plan, len(jobs) - len(todo), outcomes, seconds))
    return 1 if failed else 0


def _check(order: RenderOrbits) -> None:
    if order.workers < 1:
        raise InputError(f"--workers {order.workers} is not 1 or more")
    if not order.time_limit > 0:
        raise InputError(f"--time-limit {order.time_limit} is not above 0 seconds")
    if order.renderer == "blender" and order.plan.maps:
        raise InputError("--maps needs the software renderer; leave out --renderer blender")


def _wanted(order: RenderOrbits, models: Models) -> dict[str, Path]:
    if order.ids is None:
        return models.paths
    wanted = read_ids(order.ids)
    chosen = [name for name in models.paths if wanted & ids_of(name)]
    if unknown := sorted(wanted.difference(*map(ids_of, chosen))):
        raise InputError(
            f"--ids {order.ids}: {order.models} has no {unknown[0]!r} ({len(unknown)} such names); "
            'names are paths without suffix, with "__" for "/", or parts of them'
        )
    return {name: models.paths[name] for name in chosen}


def _check_settings(order: RenderOrbits, blender: Blender | None) -> None:
    """Raises an InputError if OUT has images of other settings: they must not mix in one folder."""
    path, wanted = order.out / SETTINGS, settings(order.plan, blender)
    if not path.exists():
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1))
        return
    try:
        there = json.loads(path.read_text())
        differ = [key for key in wanted if there[key] != wanted[key]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged; choose another folder than {order.out}") from error
    if differ:
        key = differ[0]
        raise InputError(
            f"{order.out} was rendered with {key} {there[key]}, not {wanted[key]}; choose another "
            "folder, or the settings in " + str(path)
        )


def _run(order: RenderOrbits, jobs: list[RenderJob]) -> Iterable[Outcome]:
    if not jobs:
        return []
    if order.runner == "beam":
        return run_by_beam(jobs, shlex.split(order.beam_options))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # Inherited: the processes share the cores.
    return run_in_processes(jobs, min(order.workers, len(jobs)))


def _write_lists(order: RenderOrbits, jobs: list[RenderJob], failed: list[Outcome]) -> None:
    finished = [job for job in jobs if is_finished(job)]

    # Orbits that other runs have rendered here stay in the list.
    orbits = {f"{job.name}/{i}" for job in finished for i in range(order.plan.orbits)}
    names, mine = order.out / IDS, {job.name for job in jobs}
    before = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    kept = (n for n in before if n.split("/")[0] not in mine and (order.out / n / META).is_file())
    with written_whole(names) as temporary:
        lines = "".join(f"{name}\n" for name in sorted(orbits.union(kept)))
        temporary.write_text(lines, encoding="utf-8")
    faults = [f"{outcome.name}: {' '.join(outcome.fault.split())}\n" for outcome in failed]
    with written_whole(order.out / FAILURES) as temporary:
        temporary.write_text("".join(faults), encoding="utf-8")

    if finished and order.sheet > 0:
        count = min(order.sheet, len(finished))
        chosen = [finished[round(i)] for i in np.linspace(0, len(finished) - 1, count)]
        rows = [_sheet_row(job) for job in chosen]
        with written_whole(order.out / SHEET) as temporary:
            save_png(temporary, grid(rows, [job.name for job in chosen], most_tile=SHEET_TILE))


def _sheet_row(job: RenderJob) -> list[Float[np.ndarray, "h w 3"]]:
    row = []
    for number in range(job.plan.orbits):
        files = read_index(job.out / job.name / str(number)).files
        for i in range(0, len(files), max(len(files) // SHEET_VIEWS, 1)):
            rgba = read_rgba(files[i]).astype(np.float32) / 255
            row.append(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
    return row


def _table(plan: OrbitPlan, there: int, outcomes: list[Outcome], seconds: float) -> str:
    done = [outcome for outcome in outcomes if not outcome.fault]
    failed = [outcome for outcome in outcomes if outcome.fault]
    frames = max(len(done) * plan.orbits * plan.frames, 1)
    rows = [
        ("rendered", f"{len(done)}"),
        ("there before", f"{there}"),
        ("failed", f"{len(failed)}"),
        ("objects a minute", f"{60 * len(done) / max(seconds, 1e-9):.1f}"),
        ("drawing", f"{sum(o.drawing for o in done) / frames:.4f} processor seconds a frame"),
        ("writing", f"{sum(o.writing for o in done) / frames:.4f} processor seconds a frame"),
    ]
    said = [(o.name, o.fault or o.remark) for o in (*failed, *done) if o.fault or o.remark]
    lines = [f"{label:<18}{value}\n" for label, value in rows]
    return "".join(lines + [f"  {name}: {' '.join(words.split())}\n" for name, words in said])
