"""Draws orbits with Blender's Cycles: the part inside our process; see blender_script.py.

Blender runs as a program of its own, the Python that has its module `bpy`, because that needs other
versions of Python and numpy than this project.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from o3d_jax.data.meshes.orbits import OrbitPlan, RenderedModel
from o3d_jax.data.meshes.readers.files import ModelFiles
from o3d_jax.data.meshes.readers.references import check_references
from o3d_jax.data.meshes.reading import SAFE_FILL, read_mesh, visible_radius
from o3d_jax.data.orbits.folder import RenderedOrbit, read_frames
from o3d_jax.errors import InputError

SCRIPT = Path(__file__).with_name("blender_script.py")

LAST_WORDS = 300
"""How many of the last characters that Blender says a message repeats."""


class Blender(NamedTuple):
    """Where Blender is, and how well it draws."""

    python: Path
    """A Python that can import bpy."""
    samples: int
    """Rays for each pixel."""


def check_blender(blender: Blender) -> None:
    """Raises an InputError unless that Python can import bpy."""
    command = [str(blender.python), "-c", "import bpy; print(bpy.app.version_string)"]
    advice = "make an environment with it (python3.11 -m venv B; B/bin/pip install bpy 'numpy<2')"
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"--blender {blender.python} does not run ({error}); give the python of an environment "
            f"that has bpy; {advice}"
        ) from error
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise InputError(f"--blender {blender.python} cannot import bpy ({last[0]}); {advice}")


def blender_command(blender: Blender, task: Path) -> list[str]:
    """Returns the command that draws what a task file describes."""
    return [str(blender.python), str(SCRIPT), str(task)]


def task_of(path: Path, name: str, plan: OrbitPlan, samples: int, out: Path) -> dict[str, object]:
    """Returns what the script is told; frames go to `out`, as 00000.png and so on."""
    ball = SAFE_FILL * visible_radius(plan.radius, plan.fov)
    poses = plan.poses(name).reshape(-1, 4, 4) @ np.diag([1.0, -1.0, -1.0, 1.0])
    return {
        "model": str(path.absolute()),
        "up": plan.up,
        "side": 1.0 if plan.fit == "view" else 2.0,
        "ball": ball if plan.fit == "view" else 1e9,
        "size": plan.size,
        "fov": plan.fov,
        "samples": samples,
        "poses": poses.tolist(),
        "out": str(out),
    }


def render_with_blender(
    blender: Blender, path: Path, name: str, plan: OrbitPlan, max_bytes: int
) -> RenderedModel:
    """Returns all orbits of a model, as `render_model` does, but without maps.

    Raises:
        InputError: the model is one that `read_mesh` or `check_references` refuses, or Blender
            fails.
    """
    check_references(ModelFiles(path, max_bytes))  # Blender would follow them to anywhere.
    remarks = read_mesh(path, max_bytes, plan.up).remarks

    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch) / "task.json"
        task.write_text(json.dumps(task_of(path, name, plan, blender.samples, Path(scratch))))
        result = subprocess.run(blender_command(blender, task), capture_output=True, text=True)
        if result.returncode:
            last = (result.stderr.strip() or result.stdout.strip())[-LAST_WORDS:]
            raise InputError(f"Blender failed on it: {last}")
        poses = plan.poses(name)
        count = plan.orbits * plan.frames
        rgba = read_frames([Path(scratch) / f"{i:05d}.png" for i in range(count)])
    rgba = rgba.reshape(plan.orbits, plan.frames, *rgba.shape[1:])
    orbits = [RenderedOrbit(f"{name}/{i}", rgba[i], poses[i], plan.fov) for i in range(plan.orbits)]
    return RenderedModel(orbits, remarks)
