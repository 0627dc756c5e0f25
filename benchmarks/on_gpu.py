"""What this project wants to know of a GPU, in nine minutes: `python benchmarks/on_gpu.py OUT`.

Parts run one after another, each in a process of its own with its own time limit, and each number
is written to OUT/PART.json as soon as it is there, so that nothing is lost if time runs out:

    agreement  the Pallas rasterizer against the XLA one: values, gradients, repeated runs
    splat      its speed
    sampler    the released model at 512 px, bfloat16, stand-in weights: seconds a level, memory
    modules    our U-Net on a guided batch, and the VAE's decoder on eight views
    torch      diffusers' U-Net and VAE in PyTorch at the same sizes, where both are installed
    step       a training step of the paper's model: seconds, model FLOP utilization, memory
    gsplat     the rasterizer in turns with gsplat's CUDA kernels, where torch and gsplat are
               installed; it may have to compile these first, and is then out of time
    train      the rest of the time: `train.py` with the options that follow `--`, whose synthetic
               objects are rendered on the processor's cores while the other parts run

    python benchmarks/on_gpu.py out --minutes 9 -- configs/nano.py --train.part unet

OUT/gpu.md has all of it as a table. `--toy` is for trying the script itself on a CPU.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

LIMITS = {
    "agreement": 60,
    "splat": 90,
    "sampler": 180,
    "modules": 60,
    "torch": 60,
    "step": 120,
    "gsplat": 120,
    "train": 540,
}
"""Seconds for each part, at most; less where the whole has less left."""

LEAST = 15
"""Seconds below which a part is not begun."""

GRACE = 20
"""Seconds that a part which is told to stop has to save what it has; within those of the whole."""


class Notes:
    """The numbers of a part, on disk as soon as they are known."""

    def __init__(self, file: Path):
        self.file, self.rows = file, {}

    def add(self, **rows: Any) -> None:
        """Adds rows, and writes all there are."""
        self.rows |= rows
        temporary = self.file.with_suffix(".part")
        temporary.write_text(json.dumps(self.rows, indent=1))
        temporary.replace(self.file)


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Returns the median seconds of a call until the device is done; a first one warms up."""
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[repeats // 2]


def peak_gb() -> float | None:
    """Returns the most memory that JAX has had on the device, where the device tells."""
    import jax

    statistics = jax.local_devices()[0].memory_stats()
    return round(statistics["peak_bytes_in_use"] / 1e9, 2) if statistics else None


def agreement(notes: Notes, toy: bool) -> None:
    """Compares the rasterizer's two backends on the scenes of splat.py."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from splat_scenes import KINDS, build_scene
    from splat_table import Case
    from splat_work import Inputs, programs_of, random_weights, same_twice

    case = Case(256, 32, 2) if toy else Case(65536, 512, 8)
    weights = random_weights(case)
    for kind in KINDS:
        at = Inputs(*build_scene(kind, case.gaussians, case.views), jnp.full(3, 0.3))
        found = {}
        for backend in ("pallas", "xla"):
            programs = programs_of(case, backend)
            found[backend] = jax.tree.leaves((programs.forward(at), programs.gradient(at, weights)))
            notes.add(**{f"{kind}: {backend} repeats": same_twice(programs.calls(at, weights)[1])})

        # Relative to each array's largest value: gradients of different inputs differ by orders.
        worst = max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(*(map(np.asarray, found[key]) for key in found), strict=True)
        )
        notes.add(**{f"{kind}: largest relative difference of Pallas to XLA": worst})


def splat(notes: Notes, toy: bool) -> None:
    """Runs splat.py, whose table lands beside."""
    _run_splat(notes, toy)


def gsplat(notes: Notes, toy: bool) -> None:
    """Runs splat.py against gsplat; a part of its own, for splat.py writes all or nothing."""
    if toy or not all(_has(name) for name in ("torch", "gsplat")):
        notes.add(skipped="torch or gsplat is not installed, or sizes are toys")
    else:
        _run_splat(notes, toy, "--against", "gsplat")


def _run_splat(notes: Notes, toy: bool, *options: str) -> None:
    table = notes.file.with_suffix(".md")
    size = "256x32x2" if toy else "65536x512x8"
    command = [str(ROOT / "benchmarks/splat.py"), "--seconds", "12", "--sizes", size, *options]
    notes.add(table=table.name)
    os.execv(sys.executable, [sys.executable, *command, "--write", str(table)])


def sampler(notes: Notes, toy: bool) -> None:
    """Times Algorithm 2 of the released model, level by level and whole."""
    import jax
    import jax.numpy as jnp
    from stand_in import stand_in_model

    from o3d_jax.cli import read_config
    from o3d_jax.geometry.orbits import orbit
    from o3d_jax.steps.sample import generate, noise_levels, sample_prepare, sample_step

    config = read_config(Path("tiny" if toy else "released"), [])
    model = stand_in_model(config, config.model.dtype, config.model.dtype)
    views, size = config.model.num_views, config.model.image_size
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((model.params, model.frozen)))
    notes.add(**{"weights, GB": round(weights / 1e9, 2)})

    image = jax.random.uniform(jax.random.key(1), (1, size, size, 3))
    cameras = jax.tree.map(lambda a: jnp.asarray(a)[None], _orbit(orbit, views, config))
    began = time.perf_counter()
    condition, state = jax.block_until_ready(sample_prepare(model, image, jax.random.key(2)))
    sigmas = noise_levels(config.sample)
    level = sample_step.lower(model, condition, cameras, state, sigmas[0], sigmas[1]).compile()
    notes.add(**{"compiling encoders and a level, s": round(time.perf_counter() - began, 1)})
    notes.add(temporaries_gb=round(level.memory_analysis().temp_size_in_bytes / 1e9, 2))

    def one_level() -> Any:
        return level(model, condition, cameras, state, sigmas[0], sigmas[1])

    notes.add(**{"a level, s": timed(one_level, 5), "peak, GB": peak_gb()})
    began = time.perf_counter()
    whole = generate.lower(model, image, cameras, jax.random.key(3)).compile()
    notes.add(**{"compiling the loop, s": round(time.perf_counter() - began, 1)})
    seconds = timed(lambda: whole(model, image, cameras, jax.random.key(3)), 1)
    notes.add(**{f"{config.sample.levels} levels, s": seconds, "peak with the loop, GB": peak_gb()})


def modules(notes: Notes, toy: bool) -> None:
    """Times what `torch` does with our networks: with rays and feedback, which diffusers' lack."""
    import jax
    import jax.numpy as jnp
    from stand_in import stand_in_model

    from o3d_jax.cli import read_config
    from o3d_jax.geometry.orbits import orbit
    from o3d_jax.types import Condition, Maps

    config = read_config(Path("tiny" if toy else "released"), [])
    model = stand_in_model(config, config.model.dtype, config.model.dtype)
    views, size, latents = config.model.num_views, config.model.image_size, config.model.latent_size
    cameras = _orbit(orbit, views, config)
    cameras = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 2), cameras)

    def noise(*shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(len(shape)), shape)

    channels = config.model.vae.latent_channels
    condition = Condition(
        clip=noise(2, 1, config.model.clip.projection_dim),
        latents=noise(2, latents, latents, channels),
        added_ids=jnp.asarray([[6.0, 127.0, 0.02]] * 2),
    )
    maps = Maps(rgb=noise(2, views, size, size, 3), ccm=noise(2, views, size, size, 3))
    x = noise(2, views, latents, latents, channels)
    unet = jax.jit(model.networks.unet.apply)
    given = (model.params.unet, x, jnp.full(2, 0.7), condition, cameras, maps)
    notes.add(**{"U-Net, guided, s": timed(lambda: unet(*given), 5)})

    vae = model.networks.vae
    decode = jax.jit(lambda variables, x: vae.apply(variables, x, method="decode"))
    taken = timed(lambda: decode(model.frozen.vae, x[:1]), 5)
    notes.add(**{"VAE decoder, 8 views, s": taken})


def torch(notes: Notes, toy: bool) -> None:
    """Times diffusers' U-Net on a guided batch, and its VAE's decoder on eight views."""
    if not all(_has(name) for name in ("torch", "diffusers")):
        notes.add(skipped="torch or diffusers is not installed")
        return
    import torch as t
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    device, dtype = ("cpu", t.float32) if toy else ("cuda", t.bfloat16)
    views, side = (2, 16) if toy else (8, 64)
    narrow: dict[str, Any] = {"block_out_channels": (32, 32, 32, 32)} if toy else {}
    heads: dict[str, Any] = {"num_attention_heads": (1, 1, 1, 1)} if toy else {}
    unet = UNetSpatioTemporalConditionModel(**narrow, **heads).to(device, dtype).eval()
    cross = unet.config["cross_attention_dim"]
    x = t.randn(2, views, 8, side, side, device=device, dtype=dtype)
    token = t.randn(2, 1, cross, device=device, dtype=dtype)
    ids = t.tensor([[6.0, 127.0, 0.02]] * 2, device=device, dtype=dtype)

    def seconds(call: Callable[[], Any]) -> float:
        with t.inference_mode():
            call()
            taken = []
            for _ in range(5):
                began = time.perf_counter()
                call()
                if device == "cuda":
                    t.cuda.synchronize()
                taken.append(time.perf_counter() - began)
        return sorted(taken)[2]

    notes.add(**{"U-Net, guided, s": seconds(lambda: unet(x, t.tensor(0.7), token, ids))})
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32) if toy else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=2,
    )
    vae = vae.to(device, dtype).eval()
    latents = t.randn(views, 4, side, side, device=device, dtype=dtype)
    notes.add(**{"VAE decoder, 8 views, s": seconds(lambda: vae.decode(latents, views))})


def step(notes: Notes, toy: bool) -> None:
    """Times a training step of the paper's model, with feedback: one object, then more."""
    import jax
    import jax.numpy as jnp
    from stand_in import stand_in_model

    from o3d_jax.cli import read_config
    from o3d_jax.geometry.orbits import orbit
    from o3d_jax.run.flops import train_step_flops
    from o3d_jax.steps.train import StepInputs, Training, init_state, make_optimizer, train_step
    from o3d_jax.types import Batch

    config = read_config(Path("tiny" if toy else "ouroboros3d"), [])
    optim = dataclasses.replace(config.optim, lpips_weight=0.0)
    peak_flops = 989e12  # NVIDIA's data sheet, H200 SXM: bfloat16, dense.
    for objects in (1, 2, 4):
        size = dataclasses.replace(config.train, batch_size=objects)
        config = dataclasses.replace(config, optim=optim, train=size)
        model = stand_in_model(config, jnp.float32, config.model.dtype)
        optimizer = make_optimizer(config.optim, 100)
        training = Training(config, model.networks, optimizer, layout=None)
        views, pixels = config.model.num_views, config.model.image_size
        images, alpha = (
            jax.random.uniform(jax.random.key(c), (objects, views, pixels, pixels, c))
            for c in (3, 1)
        )
        cameras = _orbit(orbit, views, config)
        cameras = jax.tree.map(lambda a, n=objects: jnp.stack([jnp.asarray(a)] * n), cameras)
        given = StepInputs(
            batch=Batch(images=images, cameras=cameras, alpha=alpha), key=jax.random.key(3)
        )
        state = jax.jit(lambda p, o=optimizer: init_state(p, o), donate_argnums=0)(model.params)

        began = time.perf_counter()
        lowered = train_step.lower(training, state, model.frozen, given, use_feedback=True)
        compiled = lowered.compile()
        name = f"{objects} objects"
        notes.add(**{f"{name}: compiling, s": round(time.perf_counter() - began, 1)})
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, model.frozen, given))
            seconds.append(time.perf_counter() - began)
        median = sorted(seconds)[len(seconds) // 2]
        flops = train_step_flops(config, model.networks).total
        notes.add(**{f"{name}: a step, s": median, f"{name}: peak, GB": peak_gb()})
        notes.add(**{f"{name}: model FLOP utilization": flops / median / peak_flops})
        del state, model  # Else the next peak would have both.


def train(notes: Notes, toy: bool) -> None:
    """Trains what is asked for until it is told to stop; the run's folder is OUT/runs."""
    options = json.loads(os.environ["O3D_TRAIN_OPTIONS"])
    if not options:
        notes.add(skipped="no options after --")
        return
    options += ["--run-dir", str(notes.file.parent / "runs")]
    if toy:
        options += ["--train.steps", "2"]
    os.execv(sys.executable, [sys.executable, "train.py", *options])  # To be told when to stop.


def toys(notes: Notes, toy: bool) -> None:
    """Renders the synthetic objects that `train` will read, behind whatever else wants a core."""
    from o3d_jax.cli import read_config
    from o3d_jax.data.loader import training_batches

    os.nice(19)
    file, *options = json.loads(os.environ["O3D_TRAIN_OPTIONS"])
    cores = os.cpu_count() or 1
    config = read_config(Path(file), [*options, "--data.workers", str(max(cores - 2, 1))])
    began = time.perf_counter()
    training_batches(config)
    notes.add(**{"objects": config.data.objects, "rendered, s": time.perf_counter() - began})


PARTS: dict[str, Callable[[Notes, bool], None]] = {
    "agreement": agreement,
    "splat": splat,
    "sampler": sampler,
    "modules": modules,
    "torch": torch,
    "step": step,
    "gsplat": gsplat,
    "train": train,
}
BESIDE = {"toys": toys}
"""What runs beside the others, on the processor alone."""


def _orbit(orbit: Callable[..., Any], views: int, config: Any) -> Any:
    import numpy as np

    return orbit(0.0, np.arange(views) * 360 / views, config.camera.radius, config.camera.fov)


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def run_part(name: str, out: Path, seconds: float, toy: bool) -> str:
    """Runs a part in a process of its own; returns what became of it.

    When this returns, neither the part nor a process that it started is at work on the device.
    """
    command = [sys.executable, __file__, str(out), "--part", name, *(["--toy"] if toy else [])]
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # Training saves its state.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if status == 0 else f"failed with status {status}, see {name}.log"


@contextlib.contextmanager
def rendering_beside(out: Path, wanted: bool) -> Iterator[None]:
    """Renders objects for the training meanwhile; what is missing at the end, it renders itself."""
    if not wanted:
        yield
        return
    command = [sys.executable, __file__, str(out), "--part", "toys"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with (out / "toys.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()


def table(out: Path, ends: dict[str, str]) -> str:
    """Returns all numbers there are as Markdown."""
    lines = ["| part | what | value |", "|---|---|---|"]
    beside = {"toys": "beside the others"} if (out / "toys.json").is_file() else {}
    for name, end in (ends | beside).items():
        lines.append(f"| {name} | | {end} |")
        file = out / f"{name}.json"
        rows = json.loads(file.read_text()) if file.is_file() else {}
        for what, value in rows.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {name} | {what} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all parts, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--part", choices=PARTS | BESIDE, help=argparse.SUPPRESS)
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    chosen = parser.parse_args(arguments[:cut])
    if chosen.part is not None:
        (PARTS | BESIDE)[chosen.part](Notes(chosen.out / f"{chosen.part}.json"), chosen.toy)
        return

    os.environ["O3D_TRAIN_OPTIONS"] = json.dumps(arguments[cut + 1 :])
    # Room for PyTorch on the same GPU, and true peaks of memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen.out.mkdir(parents=True, exist_ok=True)
    trains = "train" in chosen.parts and bool(arguments[cut + 1 :])
    first = [name for name in chosen.parts if name != "train"]
    with rendering_beside(chosen.out.resolve(), trains):
        run_all(first, chosen, ends := {}, began := time.monotonic())
    run_all([name for name in chosen.parts if name == "train"], chosen, ends, began)
    sys.stdout.write(table(chosen.out, ends))


def run_all(
    names: list[str], chosen: argparse.Namespace, ends: dict[str, str], began: float
) -> None:
    """Runs parts as long as there is time, and adds to `ends` what became of them."""
    for name in names:
        left = 60 * chosen.minutes - GRACE - (time.monotonic() - began)
        if left < LEAST:
            ends[name] = "not begun: no time left"
        else:
            limit = LIMITS[name] * (5 if chosen.toy else 1)  # A CPU compiles for minutes.
            ends[name] = run_part(name, chosen.out.resolve(), min(left, limit), chosen.toy)
        (chosen.out / "gpu.md").write_text(table(chosen.out, ends))


if __name__ == "__main__":
    main()
