"""The work of `o3d data render`: one job a model, in processes or by Apache Beam."""

import contextlib
import dataclasses
import errno
import importlib
import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from o3d_jax.data.meshes.blender import Blender, render_with_blender
from o3d_jax.data.meshes.orbits import LOOK, OrbitPlan, RenderedModel, render_model
from o3d_jax.data.meshes.reading import READERS
from o3d_jax.data.orbits.folder import (
    MAPS,
    META,
    is_complete,
    read_index,
    write_orbit,
)
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole

NAME_BYTES = 200
"""The longest name of an object: file systems allow 255 bytes, and temporary names need some."""

AGAIN = 5.0
"""Seconds after which the alarm of a time limit rings again, should something have swallowed it."""


class RenderJob(NamedTuple):
    """A model to render; pickled, it travels to another process."""

    name: str
    """The object's: its path below the models' folder, without suffix, with "__" for "/"."""
    path: Path
    out: Path
    plan: OrbitPlan
    max_bytes: int
    time_limit: float
    """Seconds that the model may take."""
    blender: Blender | None
    """What draws instead of the software rasterizer."""


class Outcome(NamedTuple):
    """What became of a job."""

    name: str
    fault: str
    """Why it failed; empty if it went well."""
    drawing: float
    """Processor seconds, reading included; not those of another program."""
    writing: float
    """Processor seconds for writing."""
    remark: str = ""
    """What the model's owner should know though it went well; mostly empty."""


class Models(NamedTuple):
    """What lies below a folder."""

    paths: dict[str, Path]
    """The model's file by each object's name."""
    refused: list[Outcome]
    """Files that cannot be rendered because of their names or places."""


_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that the next model would meet as well, so that they end the run."""


class _OutOfTime(BaseException):
    """The time limit of a job has passed; no Exception, since readers of others swallow these."""


def find_models(root: Path) -> Models:
    """Returns the models below a folder, by name; hidden files and folders are left out.

    Raises:
        InputError: no such folder, or there is no model in it.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}; give one with {', '.join(READERS)} files below it")
    # Names become folders of OUT, so two models must not have the same, and links must not lead
    # outside.
    found = Models({}, [])
    home = root.resolve()
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.suffix.lower() not in READERS or any(p.startswith(".") for p in inside.parts[:-1]):
            continue

        name = "__".join(inside.with_suffix("").parts)
        fault = _fault_of(name, path, home)
        if not fault and name in found.paths:
            fault = f"{found.paths[name].relative_to(root)} has the same name; rename one of them"
        if fault:
            found.refused.append(Outcome(repr(inside.as_posix())[1:-1], fault, 0.0, 0.0))
        else:
            found.paths[name] = path

    if not found.paths and not found.refused:
        raise InputError(f"{root} has no {', '.join(READERS)} files below it")
    return found


def _fault_of(name: str, path: Path, home: Path) -> str:
    """Returns why a file cannot be rendered, before it is opened; empty if it can."""
    if name.startswith(".") or "\\" in name or ":" in name or not name.isprintable():
        return "its name is not fit for a folder; rename it"
    if len(name.encode(errors="surrogateescape")) > NAME_BYTES:
        return f"its name has more than {NAME_BYTES} bytes with its folders'; shorten it"
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "it is a link that leads nowhere; copy the file itself"
    if not target.is_relative_to(home):
        return f"it is a link to {target}, outside the models' folder; copy the file itself"
    return "" if target.is_file() else "it is not a file; rename it"


def is_finished(job: RenderJob) -> bool:
    """Returns whether all orbits of an object are there, with all their files."""
    return all(
        _is_whole(job.out / job.name / str(number), job.plan) for number in range(job.plan.orbits)
    )


def _is_whole(folder: Path, plan: OrbitPlan) -> bool:
    if not (folder / META).is_file():
        return False
    try:
        files = read_index(folder).files
    except InputError:
        return False
    files = (*files, folder / MAPS) if plan.maps else files
    enough = len(files) == plan.frames + plan.maps
    return enough and all(file.is_file() and is_complete(file) for file in files)


def work(job: RenderJob) -> Outcome:
    """Renders an object and writes its orbits, one after the other, each whole or not at all.

    Raises:
        OSError: the disk is full, or OUT cannot be written to: other jobs would fail as well.
    """
    start = time.process_time()

    # A fault is the model's, and the next one may be better; a full disk is everyone's.
    try:
        with _limited(job.time_limit):
            model = _drawn(job)
            drawn = time.process_time()
            for orbit in model.orbits:
                write_orbit(job.out / orbit.name, orbit)
    except InputError as error:
        return Outcome(job.name, str(error), 0.0, 0.0)
    except _OutOfTime:
        fault = f"it took more than {job.time_limit:g} s; simplify it, or raise --time-limit"
        return Outcome(job.name, fault, 0.0, 0.0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # It names no file, or one that is gone.
            error.filename = str(job.out)
        raise

    seconds = (drawn - start, time.process_time() - drawn)
    return Outcome(job.name, "", *seconds, remark="; ".join(model.remarks))


def _drawn(job: RenderJob) -> RenderedModel:
    """Returns the orbits of a model; whatever goes wrong with it is an InputError.

    One broken model of 80,000 must not end the run, and no list of what readers and renderers
    raise is complete: some of it comes from packages that others have installed.

    Raises:
        InputError: the model cannot be read or drawn.
        OSError: the disk is full, or may not be written to.
    """
    try:
        return _draw(job)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
            raise
        raise InputError(f"{type(error).__name__}: {error}") from error


def _draw(job: RenderJob) -> RenderedModel:
    if job.blender is not None:
        return render_with_blender(job.blender, job.path, job.name, job.plan, job.max_bytes)
    return render_model(job.path, job.name, job.plan, job.max_bytes)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _OutOfTime in the block after some time; only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_in_processes(
    jobs: Sequence[RenderJob], workers: int, work: Callable[[RenderJob], Outcome] = work
) -> Iterator[Outcome]:
    """Yields the outcomes as they come; a job whose process dies is tried once more, alone.

    Args:
        work: does a job; a function of a module, so that other processes find it.
    """
    waiting = list(reversed(jobs))
    while waiting:
        suspects: list[RenderJob] = []
        with _pool(workers) as pool:
            submit = partial(pool.submit, work)
            yield from _until_one_dies(submit, waiting, suspects, 2 * workers)

        # The pool does not say whose process died: each of those that ran is tried by itself.
        for job in suspects:
            with _pool(1) as pool:
                try:
                    yield pool.submit(work, job).result()
                except BrokenProcessPool:
                    fault = "its process was killed, most likely for want of memory; simplify it"
                    yield Outcome(job.name, fault, 0.0, 0.0)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: JAX, which a module may have started, has threads.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _until_one_dies(
    submit: Callable[[RenderJob], Future[Outcome]],
    waiting: list[RenderJob],
    suspects: list[RenderJob],
    at_once: int,
) -> Iterator[Outcome]:
    """Takes jobs off the end of `waiting` and yields their outcomes, until a process dies.

    Jobs that died with the pool are left in `suspects`.
    """
    running: dict[Future[Outcome], RenderJob] = {}
    while waiting or running:
        # Few at once: all that are submitted are suspects when a process dies.
        while waiting and len(running) < at_once:
            job = waiting.pop()
            try:
                future = submit(job)
            except BrokenProcessPool:  # While its outcomes were looked at.
                waiting.append(job)
                suspects += running.values()
                return
            running[future] = job

        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                outcome = future.result()
            except BrokenProcessPool:
                suspects += running.values()
                return
            del running[future]
            yield outcome


def run_by_beam(jobs: Sequence[RenderJob], options: Sequence[str]) -> list[Outcome]:
    """Returns the outcomes; OUT must be a place that all of Beam's workers can write to.

    Args:
        options: the pipeline's, as `--runner=FlinkRunner`.

    Raises:
        InputError: Beam is not installed.
    """
    try:
        beam = importlib.import_module("apache_beam")
        pipeline_options = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise InputError(
            "--runner beam needs Apache Beam: pip install apache-beam; or leave the option out"
        ) from error

    # A pipeline returns nothing: its outcomes are written where this process can read them.
    report = jobs[0].out.absolute() / ".beam_outcomes.json"
    with beam.Pipeline(options=pipeline_options.PipelineOptions(list(options))) as pipeline:
        outcomes = (
            pipeline
            | "models" >> beam.Create(list(jobs))
            | "one a worker" >> beam.Reshuffle()
            | "render" >> beam.Map(work)
            | "all" >> beam.combiners.ToList()
        )
        _ = outcomes | "report" >> beam.Map(_save, report)

    saved = [Outcome(*fields) for fields in json.loads(report.read_text())]
    report.unlink()
    return saved


def _save(outcomes: Sequence[Outcome], path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps([list(outcome) for outcome in outcomes]))


def settings(plan: OrbitPlan, blender: Blender | None) -> dict[str, Any]:
    """Returns all that the images depend on besides the models, as plain values."""
    renderer = f"software {LOOK}" if blender is None else f"Blender, {blender.samples} samples"
    return json.loads(json.dumps({**dataclasses.asdict(plan), "renderer": renderer}))
