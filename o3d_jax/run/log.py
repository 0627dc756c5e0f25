"""What a training run prints and keeps: a banner, a line per log step, pictures, why it ended."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.files.images import save_png
from o3d_jax.run.clock import StepClock
from o3d_jax.run.compilations import CompilationWatch
from o3d_jax.run.curves import draw_curves
from o3d_jax.run.nonfinite import NonFiniteError, ReadStep, SkippedSteps
from o3d_jax.run.profile import Profile
from o3d_jax.run.trackers import Tracker, import_tracker, open_trackers
from o3d_jax.steps.train import StepReport, learning_rate

Row = dict[str, float | int | None]
"""A line of log.jsonl, by name; None where no value exists, for
example if all steps since the last line were skipped."""

QUANTILES = (10, 50, 90)
"""Percentages of log sigma that a line has; TensorBoard gets the whole histogram."""


class Ending(NamedTuple):
    """Why a run ended."""

    reason: str
    """"done", "stopped", "non-finite", "input" or "error"."""
    detail: str
    """The signal, or the error's type and message."""


class RunLog:
    """Writes what a run says to files of `folder`.

    They are banner.txt, config.json, log.jsonl, events.* and exit.json; eval.jsonl, curves.png and
    eval/STEP.png of evaluations; and profile/ if one is asked for.

    A context; how its block ends is why the run ended. Only process 0 writes and prints, but all
    must call the same methods: some of them end the run, on all alike.
    """

    def __init__(self, folder: Path, config: Config, step: int = 0) -> None:
        """Opens a log that goes on after `step`.

        Raises:
            InputError: a tracker is not installed, or refuses.
        """
        self.folder = folder
        self.step = step
        self._config = config
        self._step_flops: int | None = None
        self._leads = jax.process_index() == 0
        self._stack = contextlib.ExitStack()
        self._ending: Ending | None = None

        # The newest report stays on the devices until the next step is queued behind it.
        self._latest: ReadStep | None = None
        self._read: list[ReadStep] = []
        self._rate = learning_rate(config.optim, config.train.steps)
        self._skipped = SkippedSteps(folder, config.train.most_skipped)
        self._watch = CompilationWatch()
        self._profile = Profile(folder / "profile", config.profile)
        self._clock = StepClock()
        self._began = time.time()

        self._trackers: list[Tracker] = []
        for name in config.train.trackers:
            import_tracker(name)  # On every process, so that all are refused or none.
        if self._leads:
            self._open()

    def _open(self) -> None:
        (self.folder / "eval").mkdir(parents=True, exist_ok=True)
        (self.folder / "exit.json").unlink(missing_ok=True)  # This run has not ended.
        self._skipped.total = _rewind(self.folder / "log.jsonl", self.step)
        _rewind(self.folder / "eval.jsonl", self.step)
        with written_whole(self.folder / "config.json") as scratch:
            scratch.write_text(json.dumps(to_dict(self._config), indent=1))
        self._trackers = open_trackers(self.folder, self._config, self.step)
        for tracker in self._trackers:
            self._stack.callback(tracker.finish)

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self._leads:
            tqdm.write(text)

    def banner(self, text: str) -> None:
        """Prints what `banner.banner` made, and keeps it."""
        self.say(text)
        if self._leads:
            with written_whole(self.folder / "banner.txt") as scratch:
                scratch.write_text(text + "\n")

    def start(self, step_flops: int | None = None) -> None:
        """Says that the loop begins: time counts from now on, and all programs are compiled.

        `step_flops` are those of a step, on all devices together.
        """
        self._step_flops = step_flops
        self._watch.start()
        self._stack.callback(self._watch.close)
        self._clock.lap()

    def begin_step(self, step: int) -> None:
        """Starts the recording that is due before step number `step`, counted from 0."""
        if self._profile.is_due(step):
            self._settle()
            self._clock.pause()
            self._profile.start()
        self._profile.begin_step(step)

    def record(
        self, step: int, report: StepReport, objects: tuple[str, ...], waited: float
    ) -> None:
        """Takes the report of a step, the number of which is now `step`; at a log step writes.

        `objects` are the ids of this process's part of the batch, `waited` the seconds for which
        one waited for it. The report is read one step later, or at a log step at once: so a step
        is never waited for while none is queued.

        Raises:
            NonFiniteError: the last `train.most_skipped` steps were all skipped.
        """
        self._profile.end_step()
        self._settle()  # Steps are queued, but not without bound: each holds memory.
        self.step = step
        self._latest = ReadStep(step, report, objects)
        self._clock.step(waited)
        self._warn_of_compilations()
        if self._profile.is_over(step):
            self._settle()
            self._stop_profile()
        if step % self._config.train.log_every == 0 or step == self._config.train.steps:
            self._settle()
            self._write()

    def _settle(self) -> None:
        """Waits for the step last recorded, and reads its report."""
        if self._latest is None:
            return
        latest, self._latest = self._latest, None
        latest = latest._replace(report=jax.device_get(latest.report))
        self._skipped.add(latest)
        self._read.append(latest)

    def _warn_of_compilations(self) -> None:
        for name, seconds in self._watch.take():
            self.say(
                f"warning: {name} was compiled at step {self.step}, in {seconds:.1f} s: shapes or "
                "placements changed in the loop, and time is lost whenever they do"
            )

    def _write(self) -> None:
        """Prints and keeps the means of the steps since the last line."""
        drawn = [np.ravel(s.report.sigma) for s in self._read if s.report.sigma is not None]
        log_sigma = np.log(np.concatenate(drawn)) if drawn else None
        row = self._row(log_sigma)
        self._read = []
        if not self._leads:
            return
        with (self.folder / "log.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": self.step, **row}) + "\n")
        numbers = {name: value for name, value in row.items() if value is not None}
        for tracker in self._trackers:
            tracker.scalars(self.step, numbers)
            if log_sigma is not None:
                tracker.histogram(self.step, "log_sigma", log_sigma)
        self.say(log_line(self.step, row))

    def _row(self, log_sigma: Float[np.ndarray, " n"] | None) -> Row:
        finite = [s.values() for s in self._read if s.report.is_finite]
        names = self._read[0].values()
        row: Row = {n: _mean([values[n] for values in finite]) for n in names}
        if log_sigma is not None:
            for percent in QUANTILES:
                row[f"log_sigma_{percent}"] = float(np.percentile(log_sigma, percent))
        taken = self.step - self._skipped.total  # So many steps changed the parameters.
        row["learning_rate"] = float(np.asarray(self._rate(max(taken - 1, 0))))
        row |= self._rates()
        row["averaged_steps"] = len(finite)
        row["skipped_steps"] = self._skipped.total
        row["compilations"] = self._watch.count
        return row

    def _rates(self) -> Row:
        lap = self._clock.lap()
        if not lap.steps:  # All were recorded for the profile, which slows them.
            return {}

        devices = jax.device_count()
        objects = lap.steps * self._config.train.batch_size / lap.seconds
        rates: Row = {
            "images_per_second_per_device": objects * self._config.model.num_views / devices,
            "objects_per_second": objects,
            "data_wait_share": lap.waited / lap.seconds,
        }
        if self._step_flops is not None:
            flops = lap.steps * self._step_flops / lap.seconds
            rates["tflops_per_second_per_device"] = flops / devices / 1e12
        return rates

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for an evaluation or a save, which may compile each program once."""
        self._settle()
        self._watch.in_steps = False
        try:
            with self._clock.paused():
                yield
        finally:
            self._warn_of_compilations()
            self._watch.in_steps = True

    def evaluation(self, step: int, row: Mapping[str, float]) -> None:
        """Prints and keeps the figures of an evaluation, and draws all there are so far."""
        self.say(f"held out, step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
        if not self._leads:
            return
        with (self.folder / "eval.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": step, **row}) + "\n")
        for tracker in self._trackers:
            tracker.scalars(step, {f"heldout/{name}": value for name, value in row.items()})
        draw_curves(self.folder)

    def image(self, step: int, sheet: Float[np.ndarray, "h w 3"]) -> None:
        """Writes an evaluation picture."""
        if not self._leads:
            return
        save_png(self.folder / "eval" / f"{step:06d}.png", sheet)
        for tracker in self._trackers:
            tracker.image(step, "evaluation", np.clip(sheet, 0, 1))

    def _stop_profile(self) -> None:
        self._profile.stop()
        self._clock.resume()
        self.say(
            f"profile: in {self._profile.folder}; pip install xprof, then "
            f"`xprof --logdir {self._profile.folder}`, or open its *.trace.json.gz in "
            "https://ui.perfetto.dev"
        )

    def stopped(self, signal: str) -> None:
        """Says that the run ends early because of a signal, by name; writes what is left."""
        self._settle()
        if self._read:
            self._write()
        self._ending = Ending("stopped", signal)

    def cut_short(self, signal: str) -> None:
        """Says why the process is about to be ended, from a thread beside the loop's."""
        with self._stack:
            self._write_ending(Ending("stopped", signal))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if self._profile.is_running:
                self._stop_profile()
            if self._profile.was_missed:
                self.say(f"warning: the steps of profile {self._config.profile} were not run")
            self._write_ending(self._ending or _ending(error))

    def _write_ending(self, ending: Ending) -> None:
        about = f" ({ending.detail})" if ending.detail else ""
        self.say(f"ended at step {self.step}: {ending.reason}{about}")
        if not self._leads:
            return
        seconds = round(time.time() - self._began, 1)
        what = {"step": self.step, **ending._asdict(), "seconds": seconds}
        what["skipped_steps"] = self._skipped.total
        with written_whole(self.folder / "exit.json") as scratch:
            scratch.write_text(json.dumps(what, indent=1))


def _ending(error: BaseException | None) -> Ending:
    if isinstance(error, SystemExit):
        error = error.__context__ or error  # What `exit_on_input_error` has told already.
    if error is None:
        return Ending("done", "")
    if isinstance(error, KeyboardInterrupt):
        return Ending("stopped", "SIGINT")
    reasons = ((NonFiniteError, "non-finite"), (InputError, "input"))
    reason = next((name for kind, name in reasons if isinstance(error, kind)), "error")
    return Ending(reason, f"{type(error).__name__}: {error}")


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def log_line(step: int, row: Row) -> str:
    """Returns a row of log.jsonl as a line for people to read."""

    def shown(name: str, digits: int = 4) -> str:
        value = row.get(name)
        return "?" if value is None else f"{value:.{digits}g}"

    # What comes before the gradient's norm are the terms of the loss.
    *terms, norm = list(row)[: list(row).index("gradient_norm") + 1]
    losses = " ".join(f"{name} {shown(name)}" for name in (*terms, norm))
    parts = [f"step {step} {losses}", f"learning rate {shown('learning_rate', 3)}"]

    if f"log_sigma_{QUANTILES[0]}" in row:
        levels = " ".join(shown(f"log_sigma_{percent}", 2) for percent in QUANTILES)
        parts.append(f"log sigma {levels}")

    if "objects_per_second" in row:
        rates = f"{shown('images_per_second_per_device', 3)} images/s/device"
        rates += f", {shown('objects_per_second', 3)} objects/s"
        if "tflops_per_second_per_device" in row:
            rates += f", {shown('tflops_per_second_per_device', 3)} TFLOP/s/device"
        parts += [rates, f"{100 * (row['data_wait_share'] or 0):.0f} % waiting for data"]

    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} steps skipped")
    return " | ".join(parts)


def _rewind(path: Path, step: int) -> int:
    """Forgets the lines of steps after `step`, which are done again, and what a kill cut off.

    Returns how many steps were skipped until then.
    """
    if not path.is_file():
        return 0
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    kept = [row for row in rows if row["step"] <= step]
    with written_whole(path) as scratch:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return kept[-1].get("skipped_steps", 0) if kept else 0
