"""Makes a model small enough to ship: `o3d weights bundle runs/nano/model OUT`.

Parameters in bfloat16: half the size, less than float16 once compressed, and what networks run in
anyway. The config tells of no folders of the machine that trained it, and so has synthetic objects
for data.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from o3d_jax.cli import parse
from o3d_jax.config import Config
from o3d_jax.weights.checkpoint import load_model, save_model


@dataclasses.dataclass(frozen=True)
class BundleArguments:
    """A model to make small."""

    model: tyro.conf.Positional[Path]
    """Folder of the model, RUN/model of a training run."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""


def main(arguments: list[str], program: str) -> None:
    """Reads one model and writes another."""
    order = parse(BundleArguments, arguments, prog=program, description=__doc__)
    model = load_model(order.model)
    save_model(order.out, _anywhere(model.config), model.weights, dtype="bfloat16")
    size = sum(p.stat().st_size for p in order.out.rglob("*") if p.is_file())
    sys.stdout.write(f"{order.out}: {size / 1e6:.1f} MB\n")


def _anywhere(config: Config) -> Config:
    """Returns the config without what only the machine of its training has."""
    fresh = Config(name=config.name)
    data = dataclasses.replace(
        config.data,
        source=fresh.data.source,
        rendered=fresh.data.rendered,
        shares=fresh.data.shares,
        ids=fresh.data.ids,
        heldout=fresh.data.heldout,
        cache=fresh.data.cache,
    )
    return dataclasses.replace(
        config, data=data, weights=fresh.weights, run_dir=fresh.run_dir, launch=fresh.launch
    )
