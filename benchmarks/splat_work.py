"""What benchmarks/splat.py runs of ours, and its clocks."""

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from splat_table import Case, Costs, Program, Timing

from o3d_jax.splat import Backend, render
from o3d_jax.types import Cameras, Gaussians, Rendering

COMPILED = "/jax/core/compile/backend_compile_duration"
"""The event that JAX reports for each program it compiles."""

REPEATS = (3, 200)
"""Fewest and most."""

Call = Callable[[], Any]
"""Does all its work before it returns."""


class Inputs(NamedTuple):
    """What is differentiated, or the gradient."""

    gaussians: Gaussians
    cameras: Cameras
    background: Float[Array, "3"]


class Programs(NamedTuple):
    """Jitted."""

    forward: Any
    """Inputs -> Rendering."""

    gradient: Any
    """Inputs, weights -> the gradient of the sum of all outputs times their weights."""

    @staticmethod
    def of(draw: Callable[[Inputs], Rendering]) -> "Programs":
        def total(at: Inputs, weights: Rendering) -> Float[Array, ""]:
            sums = jax.tree.map(lambda w, x: jnp.sum(w * x), weights, draw(at))
            return sums.rgb + sums.alpha + sums.depth

        return Programs(forward=jax.jit(draw), gradient=jax.jit(jax.grad(total)))

    def calls(self, at: Inputs, weights: Rendering) -> list[Call]:
        """Forward, and the gradient."""
        return [
            lambda: jax.block_until_ready(self.forward(at)),
            lambda: jax.block_until_ready(self.gradient(at, weights)),
        ]


def programs_of(case: Case, backend: Backend | None) -> Programs:
    """`render` as a user calls it."""
    return Programs.of(functools.partial(_draw, case, backend))


def programs_by_vmap(case: Case, backend: Backend | None) -> Programs:
    """The same by `vmap` of a render of one view."""

    def draw(at: Inputs) -> Rendering:
        def one_view(camera: Cameras) -> Rendering:
            alone = at._replace(cameras=jax.tree.map(lambda x: x[None], camera))
            return jax.tree.map(lambda x: x[0], _draw(case, backend, alone))

        return jax.vmap(one_view)(at.cameras)

    return Programs.of(draw)


def _draw(case: Case, backend: Backend | None, at: Inputs) -> Rendering:
    return render(at.gaussians, at.cameras, case.size, at.background, backend=backend)


def random_weights(case: Case) -> Rendering:
    """Of the sum that is differentiated; standard normal."""
    random = np.random.default_rng(0)
    shape = (case.views, *case.size)
    rgb, alpha, depth = (
        jnp.asarray(random.normal(size=(*shape, channels)), jnp.float32) for channels in (3, 1, 1)
    )
    return Rendering(rgb=rgb, alpha=alpha, depth=depth)


def measure_program(programs: Programs, inputs: Sequence[Inputs], weights: Rendering) -> Program:
    """Compiles, runs with the first inputs, then counts compilations with the others."""
    compilations: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event == COMPILED:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    clocks = [(time.perf_counter(), time.process_time())]
    forward = programs.forward.lower(inputs[0]).compile()
    clocks.append((time.perf_counter(), time.process_time()))
    gradient = programs.gradient.lower(inputs[0], weights).compile()
    clocks.append((time.perf_counter(), time.process_time()))
    walls, processor = np.diff(np.array(clocks), axis=0).T
    assert compilations  # Else the event has another name, and none would be counted.
    draw, differentiate = programs.calls(inputs[0], weights)
    peak = peak_mb(differentiate)
    draw()
    compilations.clear()
    for at in inputs[1:]:
        for call in programs.calls(at, weights):
            call()
    return Program(
        compile_walls=walls,
        compile_processor=processor,
        temporaries_mb=(_temporaries_mb(forward), _temporaries_mb(gradient)),
        peak_mb=peak,
        recompilations=len(compilations),
    )


def _temporaries_mb(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def in_turns(calls: Sequence[Call], seconds: float) -> list[Costs]:
    """Times pairs of calls (forward, gradient) for about `seconds`, each once in every round."""
    for call in calls:
        call()
    started, rounds = time.perf_counter(), []
    fewest, most = REPEATS
    while len(rounds) < fewest or (len(rounds) < most and time.perf_counter() - started < seconds):
        rounds.append([_clocks(call) for call in calls])
    # Axes: call, clock, round.
    timings = [Timing(*clocks) for clocks in np.array(rounds).transpose(1, 2, 0)]
    return [Costs(*pair) for pair in zip(timings[::2], timings[1::2], strict=True)]


def _clocks(call: Call) -> tuple[float, float, float]:
    """The fields of `Timing`."""
    system, processor, wall = os.times().system, time.process_time(), time.perf_counter()
    call()
    wall = time.perf_counter() - wall
    processor = time.process_time() - processor
    return wall if on_gpu() else processor, os.times().system - system, wall


def same_twice(call: Call) -> bool:
    """Whether two runs give the same bits (NaN differs from itself)."""
    first, second = jax.tree.leaves(call()), jax.tree.leaves(call())
    return all(bool((a == b).all()) for a, b in zip(first, second, strict=True))


def peak_mb(call: Call) -> float:
    """What `call` needs at most: growth of this process, on a GPU all that JAX took so far."""
    if not on_gpu():
        return growth_mb(call, resident_mb())
    call()
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] / 1e6 if statistics else float("nan")


def growth_mb(call: Call, before: float) -> float:
    """By how much this process exceeds `before` at most while `call` runs; NaN if not on Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts from what is resident now.
    call()
    return resident_mb("VmHWM") - before


def resident_mb(field: str = "VmRSS") -> float:
    """Memory of this process now, or its peak ("VmHWM"); NaN if not on Linux."""
    if sys.platform != "linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6
