"""What a training run prints and keeps: one line per log step, JSONL, TensorBoard, pictures."""

import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from tensorboardX import SummaryWriter
from tqdm import tqdm

from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError
from o3d_jax.io.atomic import written_whole
from o3d_jax.io.images import save_png


class RunLog:
    """Logs to `folder`: `log.jsonl`, `events.*` (TensorBoard), `eval/STEP.png`.

    Values are read from the device only at log steps, so that the steps between run unhindered.
    """

    def __init__(self, folder: Path, config: Config, params: Any, frozen: Any):
        (folder / "eval").mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.every = config.train.log_every
        self.last = config.train.steps
        self.batch = config.train.batch_size
        self.writer = SummaryWriter(str(folder))
        self.lines = (folder / "log.jsonl").open("a")
        self.since, self.steps_since = time.perf_counter(), 0
        self.pending: list[dict[str, Any]] = []
        (folder / "config.json").write_text(json.dumps(to_dict(config), indent=1))
        self._banner(config, params, frozen)

    def _banner(self, config: Config, params: Any, frozen: Any) -> None:
        def count(tree):
            return sum(a.size for a in jax.tree.leaves(tree))

        sizes = ", ".join(
            f"{f.name} {count(getattr(params, f.name)):,}" for f in dataclasses.fields(params)
        )
        self.say(
            f"{config.name}: jax {jax.__version__}, python {platform.python_version()}, "
            f"{jax.device_count()} {jax.devices()[0].platform} devices, batch {self.batch}, "
            f"{config.train.steps:,} steps, logs in {self.folder}"
        )
        self.say(f"parameters: {sizes} train; {count(frozen):,} frozen")

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        tqdm.write(text)

    def record(self, step: int, terms: Any, gradient_norm: Float[Array, ""]) -> None:
        """Keeps a step's loss terms; at a log step prints and writes their means.

        Raises:
            InputError: a mean is not finite.
        """
        row = {f.name: getattr(terms, f.name) for f in dataclasses.fields(terms)}
        if self.pending:  # Steps are queued, but not without bound: each holds memory.
            jax.block_until_ready(self.pending[-1])
        self.pending.append(row | {"gradient_norm": gradient_norm})
        self.steps_since += 1
        if step % self.every and step != self.last:
            return
        means = {
            name: float(np.mean([np.asarray(r[name]) for r in self.pending]))
            for name in self.pending[0]
        }
        seconds = time.perf_counter() - self.since
        means["objects_per_second"] = self.steps_since * self.batch / seconds
        self.pending, self.since, self.steps_since = [], time.perf_counter(), 0
        for name, value in means.items():
            self.writer.add_scalar(name, value, step)
        self.lines.write(json.dumps({"step": step, **means}) + "\n")
        self.lines.flush()
        self.say(f"step {step} " + " ".join(f"{n} {v:.4g}" for n, v in means.items()))
        if not np.isfinite(means["total"]):
            raise InputError(
                f"the loss is {means['total']} at step {step}; start again under another --name "
                "with a lower --optim.learning-rate"
            )

    def rewind(self, step: int) -> None:
        """Forgets the lines of steps after `step`: those that a resumed run does again."""
        self.lines.close()
        path = self.folder / "log.jsonl"
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        with written_whole(path) as scratch:
            scratch.write_text("".join(line + "\n" for line in kept))
        self.lines = path.open("a")

    def image(self, step: int, sheet: Float[np.ndarray, "h w 3"]) -> None:
        """Writes an evaluation picture."""
        save_png(self.folder / "eval" / f"{step:06d}.png", sheet)
        self.writer.add_image("evaluation", np.clip(sheet, 0, 1), step, dataformats="HWC")
        self.since, self.steps_since = time.perf_counter(), 0

    def close(self) -> None:
        """Closes the files."""
        self.writer.close()
        self.lines.close()
