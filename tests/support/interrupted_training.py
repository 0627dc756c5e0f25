"""train.py with toy networks, or interrupted on purpose, for `test_train_interrupted.py`.

`interrupted_training.py NETWORKS PHASE SECONDS ARGUMENTS...`: NETWORKS is toy or real; so many
SECONDS after PHASE has begun, SIGTERM arrives. ARGUMENTS are train.py's.
"""

import dataclasses
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import train
from o3d_jax.cli import read_config
from o3d_jax.errors import InputError
from o3d_jax.run import programs
from support.toy_networks import toy_system

BEGINNINGS = {
    "step": (train, "draw_coin", 3),
    "evaluation": (programs.Evaluator, "evaluate", 1),
    "model": (train, "save_model", 1),
    "stuck": (programs.Evaluator, "evaluate", 1),
    "refusal": (train, "draw_coin", 3),  # In process 1 only.
}
"""Functions, and the call of them at which a phase begins."""
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
"""JAX's event between tracing, which is Python, and XLA's compilation, which is C++."""


def interrupt(seconds):
    def send():
        time.sleep(seconds)
        sys.stdout.write(f"signalled at {time.time()}\n")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()


def sum_for_minutes():
    """A program in which all devices of all processes wait for each other again and again."""
    mesh = jax.make_mesh((jax.device_count(),), ("a",))

    def device(x):
        return jax.lax.fori_loop(0, 10_000_000, lambda _, x: jnp.sin(jax.lax.pmean(x, "a")), x)

    spec = PartitionSpec("a")
    x = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, spec), lambda _: np.ones(1, np.float32)
    )
    f = jax.shard_map(device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    jax.block_until_ready(jax.jit(f)(x))


def interrupt_at(phase, seconds):
    owner, name, wanted = BEGINNINGS[phase]
    real, calls = getattr(owner, name), []

    def called(*arguments, **options):
        calls.append(name)
        if len(calls) == wanted and phase != "refusal":
            interrupt(seconds)
        if len(calls) == wanted and phase == "refusal" and jax.process_index() == 1:
            raise InputError("of the test")
        if phase == "stuck":
            sum_for_minutes()
        return real(*arguments, **options)

    setattr(owner, name, called)


def interrupt_at_compilation(seconds):
    def lowered(event, duration, fun_name="", **_):
        if event == LOWERED and "train_step" in fun_name:
            interrupt(seconds)

    jax.monitoring.register_event_duration_secs_listener(lowered)


def interrupt_while_written(seconds):
    """Orbax writes in the background when `save` has returned."""
    real = train.RunCheckpoints.save

    def save(self, state, position):
        real(self, state, position)
        interrupt(seconds)

    train.RunCheckpoints.save = save


def use_toys():
    def build(model, lpips):
        config = read_config(train.Path("configs/tiny.py"), [])
        return dataclasses.replace(toy_system(config).networks, lpips=None)

    train.build_networks = build
    real = train.use_compilation_cache

    def use_cache():
        real()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    train.use_compilation_cache = use_cache


if __name__ == "__main__":
    networks, phase, seconds, *arguments = sys.argv[1:]
    if networks == "toy":
        use_toys()
    if phase == "writing":
        interrupt_while_written(float(seconds))
    elif phase == "compilation":
        interrupt_at_compilation(float(seconds))
    elif phase != "none":
        interrupt_at(phase, float(seconds))
    train.main(arguments)
