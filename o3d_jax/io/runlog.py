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
from o3d_jax.io.images import save_png


class RunLog:
    """Logs to `folder`: `log.jsonl`, `events.*` (TensorBoard), `eval/STEP.png`.

    Values are read from the device only at log steps, so that the steps between run unhindered.
    """

    def __init__(self, folder: Path, config: Config, params: Any, frozen: Any):
        (folder / "eval").mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.every = config.train.log_every
        self.batch = config.train.batch_size
        self.writer = SummaryWriter(str(folder))
        self.lines = (folder / "log.jsonl").open("a")
        self.since = time.perf_counter()
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
        """Keeps a step's loss terms; at a log step prints and writes their means."""
        row = {f.name: getattr(terms, f.name) for f in dataclasses.fields(terms)}
        if self.pending:  # Steps are queued, but not without bound: each holds memory.
            jax.block_until_ready(self.pending[-1])
        self.pending.append(row | {"gradient_norm": gradient_norm})
        if step % self.every:
            return
        means = {
            name: float(np.mean([np.asarray(r[name]) for r in self.pending]))
            for name in self.pending[0]
        }
        seconds = time.perf_counter() - self.since
        means["objects_per_second"] = len(self.pending) * self.batch / seconds
        self.pending, self.since = [], time.perf_counter()
        for name, value in means.items():
            self.writer.add_scalar(name, value, step)
        self.lines.write(json.dumps({"step": step, **means}) + "\n")
        self.lines.flush()
        self.say(f"step {step} " + " ".join(f"{n} {v:.4g}" for n, v in means.items()))

    def image(self, step: int, sheet: Float[np.ndarray, "h w 3"]) -> None:
        """Writes an evaluation picture."""
        save_png(self.folder / "eval" / f"{step:06d}.png", sheet)
        self.writer.add_image("evaluation", np.clip(sheet, 0, 1), step, dataformats="HWC")
        self.since = time.perf_counter()

    def close(self) -> None:
        """Closes the files."""
        self.writer.close()
        self.lines.close()
