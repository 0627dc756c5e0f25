"""What a full-size sample cannot beat: `python benchmarks/sampler_bill.py [--config released]`.

Counts the products of every program of a sampling run, by its jaxpr, for some chips: each takes as
long as its arithmetic at the bfloat16 peak, or as what it reads and writes takes at the memory's
peak, whichever is longer (o3d_jax/planning/operations.py). Attention is counted in chunks of
queries, and by the platform's own kernel; objects are made at every level, or at every 2nd or 4th.
Nothing is compiled or run. Prints the tables of results/sampler_bill.md.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from o3d_jax.cli import read_config
from o3d_jax.config import Config
from o3d_jax.nn import fused_attention
from o3d_jax.nn.networks import build_networks
from o3d_jax.planning.operations import Operation, most, operations
from o3d_jax.planning.sampling import Program, sample_programs
from o3d_jax.planning.topologies import GIB, GPUS, TPUS, Chip
from o3d_jax.steps.sample import reconstructing

CHIPS = {
    "H200": (GPUS["H200"], "cuda"),
    "A100-80G": (GPUS["A100-80G"], "cuda"),
    "v5e": (TPUS["v5e"], "tpu"),
    "v6e": (TPUS["v6e"], "tpu"),
}
EVERY = (1, 2, 4)


class Counted(NamedTuple):
    """A program, and what was counted in it."""

    program: Program
    operations: list[Operation]

    def seconds(self, chip: Chip) -> float:
        return sum(each.seconds(chip.flops, chip.memory_rate) for each in self.operations)


def assume_cudnn() -> None:
    """Lets cuDNN's attention be traced where there is no cuDNN."""
    fused_attention._has_cudnn = lambda: True  # pyright: ignore
    cudnn.check_cudnn_version = lambda: 91000


def counted(config: Config, platform: str, chunks: bool) -> list[Counted]:
    """Returns what the networks in turn cost."""
    os.environ["O3D_ATTENTION"] = "chunks" if chunks else ""
    jax.clear_caches()  # What is traced already has the other attention.
    backend = "pallas" if platform == "cuda" else "xla"
    networks = dataclasses.replace(
        build_networks(config.model), splat_backend=backend, offload=True
    )
    programs = sample_programs(config, networks, jax.devices()[0])
    return [Counted(p, operations(p.trace().jaxpr.jaxpr, platform)) for p in programs]


def run_seconds(parts: list[Counted], config: Config, chip: Chip, every: int) -> float:
    """Returns the least time of a whole run that makes an object at every so manieth level."""
    sample = dataclasses.replace(config.sample, reconstruct_every=every)
    objects = int(reconstructing(sample).sum())
    total = 0.0
    for each in parts:
        times = objects if each.program.rebuilds else sample.levels if each.program.levels else 1
        total += times * each.seconds(chip)
    return total


def programs_table(parts: list[Counted]) -> str:
    """Returns a row for each program: what it computes, reads and writes."""
    lines = ["| program | TFLOP | GiB | GiB of weights |", "|---|---|---|---|"]
    for program, found in parts:
        weights = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(program.model))
        flops, nbytes = (sum(getattr(each, by) for each in found) for by in ("flops", "bytes"))
        row = f"| {program.name} | {flops / 1e12:.2f} | {nbytes / GIB:.1f} | {weights / GIB:.2f} |"
        lines.append(row)
    return "\n".join(lines)


def heaviest_table(parts: list[Counted]) -> str:
    """Returns each program's three largest operations by arithmetic and by traffic."""
    lines = ["| program | most | TFLOP | GiB | times | operation |", "|---|---|---|---|---|---|"]
    for program, found in parts:
        for by in ("flops", "bytes"):
            for each in most(found, by):
                cells = (program.name, by, f"{each.flops / 1e12:.3f}", f"{each.bytes / GIB:.2f}")
                lines.append(f"| {' | '.join(cells)} | {each.count} | {each.kind} {each.shapes} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("released"))
    arguments = parser.parse_args()
    config = read_config(arguments.config, [])
    assume_cudnn()
    parts = {
        (platform, chunks): counted(config, platform, chunks)
        for platform in ("cuda", "tpu")
        for chunks in (True, False)
    }

    levels = config.sample.levels
    lines = [f"| seconds of {levels} levels, at least | {' | '.join(CHIPS)} |"]
    lines += ["|---" * (len(CHIPS) + 1) + "|"]
    for chunks, attention in ((True, "in chunks"), (False, "by a kernel")):
        for every in EVERY:
            cells = [
                f"{run_seconds(parts[platform, chunks], config, chip, every):.2f}"
                for chip, platform in CHIPS.values()
            ]
            name = f"attention {attention}, an object at every {every}. level"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    tables = ["\n".join(lines)]
    for platform in ("cuda", "tpu"):
        for chunks in (True, False):
            name = f"{platform}, attention {'in chunks' if chunks else 'by a kernel'}"
            tables.append(f"{name}:\n\n{programs_table(parts[platform, chunks])}")
        tables.append(f"{platform}:\n\n{heaviest_table(parts[platform, False])}")
    sys.stdout.write("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
