"""One of two processes with four devices each: saves a run and a model, and restores them.

Called by `test_checkpoints_of_two_processes.py` as `one_of_two.py INDEX PORT CONFIG FOLDER`.
"""

import runpy
import sys
import warnings
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from o3d_jax.run.checkpoints import RunCheckpoints
from o3d_jax.types import Frozen, Params, TrainState
from o3d_jax.weights.checkpoint import Weights, load_model, save_model

NOTHING = Frozen(vae=None)


def place(tree):
    """Arrays of 8 k rows are shared among all devices of both processes, others copied to each."""
    mesh = jax.make_mesh((8,), ("all",))

    def on_mesh(array):
        is_shared = array.ndim > 0 and array.shape[0] % 8 == 0
        sharding = NamedSharding(mesh, PartitionSpec("all") if is_shared else PartitionSpec())
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(on_mesh, tree)


def make_state(step):
    draw = np.random.default_rng(step).normal

    def params():
        shared, copied = draw(size=(16, 6)), draw(size=5)
        return Params(unet={"w": np.float32(shared)}, lgm={"b": np.float32(copied)})

    return TrainState(step=np.asarray(step, np.int32), params=params(), ema=params(), opt_state=())


def assert_same(found, expected):
    def compare(a, b):
        for mine, theirs in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(mine.data, theirs.data)

    jax.tree.map(compare, found, place(expected))


def process_1_cannot_read_step_4(monkeypatched):
    real = monkeypatched.restore

    def restore(self, folder, args):
        if jax.process_index() == 1 and folder.parent.name == "4":
            raise ValueError("DATA_LOSS: said by the test")
        return real(self, folder, args=args)

    monkeypatched.restore = restore


def main(index, port, config, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    config = runpy.run_path(config)["config"]
    checkpoints = RunCheckpoints(folder / "checkpoints", config, NOTHING)
    for step in (2, 4):
        checkpoints.save(place(make_state(step)), {"next_index": step})
    checkpoints.close()
    params = make_state(4).ema
    save_model(folder / "model", config, Weights(params=place(params), frozen=NOTHING))
    chex.assert_trees_all_equal(load_model(folder / "model").weights.params, params)
    again = RunCheckpoints(folder / "checkpoints", config, NOTHING)
    state, position = again.restore(place(make_state(0)))
    assert_same(state, make_state(4))
    assert position == {"next_index": 4}
    process_1_cannot_read_step_4(ocp.StandardCheckpointHandler)
    with warnings.catch_warnings(record=True) as warned:
        state, position = again.restore(place(make_state(0)))
    said = ("another process cannot read it", "DATA_LOSS: said by the test")[int(index)]
    assert said in str(warned[0].message)
    assert_same(state, make_state(2))
    again.save(place(make_state(4)), {"next_index": 4})
    again.close()


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
