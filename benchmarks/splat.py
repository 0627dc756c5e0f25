"""Speed and memory of `o3d_jax.splat.render`: `python benchmarks/splat.py [--against gsplat]`.

Two scenes (splat_scenes.py) at three sizes; forward, and forward with the gradient with respect to
Gaussians, camera poses and background. Each size runs in a process of its own. What is compared is
run in turns and timed on a CPU by the processor's seconds, those of the system included, so that
other work on the machine counts little; on a GPU by the clock on the wall until the device is done.

`--against gsplat` needs `pip install torch gsplat`; gsplat_cpu.py tells how it runs on a CPU. On a
GPU, gsplat compiles its CUDA kernels when first used (with nvcc, some minutes). `--write` keeps the
table in results/splat.md, or results/splat_gpu.md.
"""

import argparse
import concurrent.futures
import datetime
import importlib.util
import multiprocessing
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from splat_scenes import KINDS, build_scene
from splat_table import Case, Machine, Result, Row, report
from splat_work import (
    Inputs,
    in_turns,
    measure_program,
    on_gpu,
    programs_by_vmap,
    programs_of,
    random_weights,
    same_twice,
)
from tqdm import tqdm

from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.splat import Backend

RESULTS = Path(__file__).parent / "results"
SIZES = ("4096x128x8", "65536x512x1", "65536x512x8")

TORCH_PIXELS = 2**18
"""All pixels together that gsplat's PyTorch code gets on a CPU. It keeps every pair of a Gaussian
and a pixel: 3 GB and more for one view of 512 px, 12 to 26 GB for eight."""


class Options(NamedTuple):
    """Of all sizes."""

    backend: Backend | None
    gsplat: bool
    seconds: float


def measure(case: Case, options: Options) -> Result:
    """All of one size; in a process of its own, for the sake of peak memory."""
    scenes = [build_scene(kind, case.gaussians, case.views) for kind in KINDS]
    backgrounds = [jnp.full(3, value) for value in (1.0, 0.3)]
    inputs = [Inputs(*scene, color) for scene, color in zip(scenes, backgrounds, strict=True)]
    weights = random_weights(case)
    programs = programs_of(case, options.backend)
    program = measure_program(programs, inputs, weights)
    vmapped = programs_by_vmap(case, options.backend)
    rows = []
    for kind, at in zip(KINDS, inputs, strict=True):
        calls = programs.calls(at, weights)
        repeats = same_twice(calls[1])
        if case.views > 1:
            calls += vmapped.calls(at, weights)
        if options.gsplat and (on_gpu() or case.views * case.pixels**2 <= TORCH_PIXELS):
            from gsplat_baseline import compare  # Installed only where it is asked for.

            gsplat, costs = compare(programs, at, weights, calls, options.seconds)
        else:
            gsplat, costs = None, in_turns(calls, options.seconds)
        by_vmap = costs[1] if case.views > 1 else None
        rows.append(Row(kind=kind, ours=costs[0], repeats=repeats, by_vmap=by_vmap, gsplat=gsplat))
    return Result(case, program, tuple(rows))


def case_of(name: str) -> Case:
    """From Gaussians x pixels x views, "65536x512x8".

    Raises:
        InputError: it is something else, or the scene of a surface cannot have that many.
    """
    try:
        gaussians, pixels, views = (int(part) for part in name.split("x"))
    except ValueError:
        raise InputError(
            f"--sizes {name}: write Gaussians x pixels x views, as {SIZES[0]}"
        ) from None
    if min(gaussians, pixels, views) < 1 or 4 * round((gaussians / 4) ** 0.5) ** 2 != gaussians:
        raise InputError(f"--sizes {name}: Gaussians must be 4 times a square, nothing less than 1")
    return Case(gaussians, pixels, views)


def machine_of(options: Options) -> Machine:
    """This one, with the versions that matter, and the date."""
    names = ["jax", "jaxlib", *(["gsplat", "torch"] if options.gsplat else [])]
    parts = [
        jax.devices()[0].device_kind if on_gpu() else _processor(),
        f"{os.cpu_count()} cores",
        *(f"{name} {version(name)}" for name in names),
        f"backend {options.backend or 'by platform'}",
        datetime.date.today().isoformat(),
    ]
    if "MALLOC_MMAP_MAX_" in os.environ:
        parts.append("with freed memory kept by the processes (`--keep-memory`)")
    return Machine(words=", ".join(parts), on_gpu=on_gpu())


def _processor() -> str:
    """Its name if the system tells."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="Gaussians x pixels x views")
    parser.add_argument("--against", choices=["gsplat"])
    parser.add_argument("--backend", choices=["xla", "pallas"], help="default: by platform")
    parser.add_argument("--seconds", type=float, default=30, help="of timing a scene, about")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="glibc keeps freed memory, so that no time goes to the system for handing it out",
    )
    parser.add_argument("--write", nargs="?", type=Path, const=Path(), help="where, if not here")
    return parser.parse_args()


@exit_on_input_error()
def main() -> None:
    """Measures and writes or prints the table."""
    arguments = parse()
    cases = [case_of(name) for name in arguments.sizes]
    options = Options(arguments.backend, arguments.against == "gsplat", arguments.seconds)
    missing = [name for name in ("torch", "gsplat") if not importlib.util.find_spec(name)]
    if options.gsplat and missing:
        raise InputError(f"--against gsplat: {missing[0]} is missing; pip install torch gsplat")
    # Read when a process starts: room for torch on the same GPU, and the C library's policy.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.keep_memory:
        os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**40))
    results = []
    for case in tqdm(cases, desc="sizes"):
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            results.append(pool.submit(measure, case, options).result())
    machine = machine_of(options)
    text = report(results, machine, " ".join(["python benchmarks/splat.py", *sys.argv[1:]]))
    if arguments.write is not None:
        default = RESULTS / ("splat_gpu.md" if machine.on_gpu else "splat.md")
        (default if arguments.write == Path() else arguments.write).write_text(text)
    tqdm.write(text)


if __name__ == "__main__":
    main()
