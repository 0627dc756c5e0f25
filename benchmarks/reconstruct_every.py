"""What objects at some levels only cost in quality: `python benchmarks/reconstruct_every.py`.

Samples held-out synthetic objects with an object made at every level, at every 2nd and at every 4th
(`SampleConfig.reconstruct_every`), from the same noise, and scores views and renders as
benchmarks/quality.py does. Prints the table of results/reconstruct_every.md.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from quality import interval, sample_all, score

from o3d_jax.cli import use_compilation_cache
from o3d_jax.data.loader import heldout_batch
from o3d_jax.nn.networks import build_networks
from o3d_jax.steps.sample import reconstructing
from o3d_jax.weights.checkpoint import BUNDLED, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED / "nano")
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    use_compilation_cache()
    model = load_model(arguments.checkpoint)
    networks = build_networks(model.config.model)
    batch = heldout_batch(model.config, arguments.objects)
    truth = np.asarray(batch.images)

    head = (
        "| an object at | times | views PSNR | SSIM | renders PSNR | SSIM | against every level |"
    )
    sys.stdout.write(f"{head}\n|---|---|---|---|---|---|---|\n")
    first = None
    for every in arguments.every:
        sample = dataclasses.replace(model.config.sample, reconstruct_every=every)
        start = time.monotonic()
        config = dataclasses.replace(model.config, sample=sample)
        views, renders = (
            score(images, truth) for images in sample_all(model, networks, config, batch)
        )
        first = first or renders
        moved = renders.per_object - first.per_object
        sys.stdout.write(
            f"| every {every}. level | {reconstructing(sample).sum()} of {sample.levels} | "
            f"{views.psnr:.2f} ± {interval(views.per_object):.2f} | {views.ssim:.4f} | "
            f"{renders.psnr:.2f} ± {interval(renders.per_object):.2f} | {renders.ssim:.4f} | "
            f"{moved.mean():+.2f} ± {interval(moved):.2f} dB ({time.monotonic() - start:.0f} s) |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
