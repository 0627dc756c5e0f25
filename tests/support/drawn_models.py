"""Draws small model files as the command does, for tests that look at the pixels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Drawn(NamedTuple):
    """What the command would say of a model, and write."""

    fault: str
    remark: str
    rgba: np.ndarray
    """Frames, at even steps of azimuth from the front on; none if there is a fault."""

    def hues(self):
        """How many pixels that are wholly covered are red, green, blue, white and of other hues.

        Even light makes colors darker or brighter, not others; gloss adds a little white.
        """
        seen = self.rgba[self.rgba[..., 3] == 255][:, :3].astype(float)
        share = seen / seen.max(axis=-1, keepdims=True)
        pure = {
            name: (np.abs(share - color).max(axis=-1) < 0.25).sum()
            for name, color in zip(("red", "green", "blue"), np.eye(3), strict=True)
        }
        pure["white"] = (np.ptp(share, axis=-1) < 0.02).sum()
        return {**pure, "other": len(seen) - sum(pure.values())}


def draw(path: Path, size=64, frames=4, elevation=(20.0, 20.0), **options) -> Drawn:
    """One orbit of a model."""
    from o3d_jax.data.meshes.jobs import RenderJob, work
    from o3d_jax.data.meshes.orbits import OrbitPlan
    from o3d_jax.data.orbits.folder import read_orbit

    plan = OrbitPlan(size=size, orbits=1, frames=frames, elevation=elevation, **options)
    out = path.parent / f"drawn {path.name}"
    outcome = work(RenderJob("model", path, out, plan, 2**24, 600.0, None))
    remark = getattr(outcome, "remark", "")
    if outcome.fault:
        return Drawn(outcome.fault, remark, np.zeros((0, size, size, 4), np.uint8))
    return Drawn("", remark, read_orbit(out / "model" / "0").rgba)


def overlap(a: Drawn, b: Drawn):
    """Least over the frames of intersection over union of what they cover, pixels by alpha."""
    first, second = a.rgba[..., 3] / 255, b.rgba[..., 3] / 255
    both, either = np.minimum(first, second), np.maximum(first, second)
    return (both.sum(axis=(1, 2)) / either.sum(axis=(1, 2))).min()
