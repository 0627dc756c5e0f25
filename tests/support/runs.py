"""Runs of train.py in processes of their own, to be interrupted and compared."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from o3d_jax.cli import read_config
from o3d_jax.nn.networks import init_networks
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import Weights, save_model

ROOT = Path(__file__).parents[2]


STEPS = 6


class Ended(NamedTuple):
    """A process that has ended."""

    status: int
    said: str


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs in one folder share compiled programs and the frozen VAE."""

    folder: Path
    networks: str = "toy"

    def start(self, name, *options, devices=1, phase="none", after=0.0, cache=True, steps=STEPS):
        arguments = [
            *("configs/tiny.py", "--name", name, "--run-dir", str(self.folder)),
            *("--weights", str(self.folder / "vae"), "--train.steps", str(steps), *options),
        ]
        script = str(ROOT / "tests" / "support" / "interrupted_training.py")
        return subprocess.Popen(
            [sys.executable, script, self.networks, phase, str(after), *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "xla"),
                "JAX_ENABLE_COMPILATION_CACHE": str(cache),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": str(self.networks == "toy"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        said, _ = process.communicate(timeout=1800)
        return Ended(process.returncode, said)

    def rows(self, name):
        """Of the log, without what depends on the clock."""
        path = self.folder / name / "log.jsonl"
        if not path.is_file():
            return []
        whole = path.read_text().rpartition("\n")[0]  # A killed process may leave half a line.
        rows = [json.loads(line) for line in whole.splitlines()]
        return [
            {k: v for k, v in row.items() if "second" not in k and "share" not in k} for row in rows
        ]

    def steps(self, name):
        """Of which there are checkpoints."""
        folder = self.folder / name / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def final(runs, name):
    """The last checkpoint, in numpy, as it is on disk."""
    folder = runs.folder / name / "checkpoints" / str(max(runs.steps(name)))
    # One written by several processes lay on devices that are not here.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arguments = ocp.args.StandardRestore(fallback_sharding=here)
    state = ocp.StandardCheckpointHandler().restore(folder / "state", args=arguments)
    record = json.loads((folder / "record" / "metadata").read_text())
    return jax.tree.map(np.asarray, state), record["data"]


def save_vae(folder, networks, config):
    _, frozen = init_networks(networks, config.model, jax.random.key(1), True)
    vae = Weights(params=Params(unet=None, lgm=None), frozen=Frozen(vae=frozen.vae))
    save_model(folder / "vae", config, vae)


def toy_runs(folder):
    from support.toy_networks import toy_system

    config = read_config(ROOT / "configs" / "tiny.py", [])
    save_vae(folder, toy_system(config).networks, config)
    return Runs(folder)
