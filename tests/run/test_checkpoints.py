"""A run's checkpoints: what is damaged is noticed, kept and stepped over, on any devices."""

import dataclasses
import itertools
import json
import re
import shutil
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from o3d_jax.config import LaunchConfig
from o3d_jax.errors import InputError
from o3d_jax.run import checkpoints as run_checkpoints
from o3d_jax.run.checkpoints import RunCheckpoints
from o3d_jax.types import Frozen, Params, TrainState

NOTHING = Frozen(vae=None)
POSITION = {"next_index": 4, "sources": [{"epoch": 0}, {"epoch": 1}]}


def make_state(step):
    """Arrays of all element sizes; each step has other values."""
    draw = np.random.default_rng(step).normal

    def params():
        kernel = jnp.asarray(draw(size=(40, 24)), jnp.float32)
        return Params(unet={"conv": {"kernel": kernel, "bias": jnp.asarray(draw(size=5))}}, lgm=())

    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params(),
        ema=params(),
        opt_state={
            "count": jnp.asarray(step, jnp.int32),
            "half": jnp.asarray(draw(size=(16, 3)), jnp.bfloat16),
            "small": jnp.asarray(draw(size=9), jnp.int8),
            "flag": jnp.asarray(draw() > 0),
        },
    )


def assert_same(found, expected):
    chex.assert_trees_all_equal(found, expected)


def opened(folder, config):
    return RunCheckpoints(folder, config, NOTHING)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Steps 2 and 4; tests damage copies."""
    folder = tmp_path_factory.mktemp("runs") / "checkpoints"
    checkpoints = opened(folder, tiny)
    for step in (2, 4):
        checkpoints.save(make_state(step), POSITION | {"next_index": step})
    checkpoints.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_a_run_goes_on_from_its_newest_state(saved, tiny, recwarn):
    state, position = opened(saved, tiny).restore(make_state(0))
    assert_same(state, make_state(4))
    assert [a.dtype for a in jax.tree.leaves(state)] == [
        a.dtype for a in jax.tree.leaves(make_state(4))
    ]
    assert position == POSITION
    assert names(saved) == ["2", "4"] and not recwarn.list


def test_where_nothing_was_saved_there_is_nothing_to_restore(tmp_path, tiny):
    assert opened(tmp_path / "new", tiny).restore(make_state(0)) is None


def arrays_file(folder):
    """The file with the arrays' values."""
    return max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path, count=1):
    """Changes bytes in the middle, where a file of arrays holds values."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + count] = bytes(b ^ 0xFF for b in data[middle : middle + count])
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def other_position(folder):
    path = folder / "record" / "metadata"
    path.write_text(path.read_text().replace('"next_index": 4', '"next_index": 3'))
    assert '"next_index": 3' in path.read_text()


DAMAGES = {
    "values changed": (lambda f: flip(arrays_file(f), 8), "not what was saved"),
    "values cut": (lambda f: halve(arrays_file(f)), "OUT_OF_RANGE"),
    "values missing": (lambda f: arrays_file(f).unlink(), "params|ema|opt"),
    "values empty": (lambda f: arrays_file(f).write_bytes(b""), "OUT_OF_RANGE"),
    "index changed": (lambda f: flip(f / "state" / "manifest.ocdbt"), "DATA_LOSS"),
    "index missing": (lambda f: (f / "state" / "manifest.ocdbt").unlink(), "NOT_FOUND"),
    "tree no JSON": (lambda f: halve(f / "state" / "_METADATA"), r"char \d+"),
    "tree no text": (lambda f: flip(f / "state" / "_METADATA"), "can't decode byte"),
    "tree of a list": (lambda f: (f / "state" / "_METADATA").write_text("[1]"), "list"),
    "tree of nothing": (lambda f: (f / "state" / "_METADATA").write_text("{}"), "tree_metadata"),
    "record no JSON": (lambda f: halve(f / "record" / "metadata"), "char"),
    "record no text": (lambda f: flip(f / "record" / "metadata"), "can't decode byte"),
    "record missing": (lambda f: (f / "record" / "metadata").unlink(), "not found"),
    "record of a list": (lambda f: (f / "record" / "metadata").write_text("[1]"), "no group"),
    "record of nothing": (lambda f: (f / "record" / "metadata").write_text("{}"), "not what was"),
    "other position": (other_position, "not what was saved"),
    "step of a list": (
        lambda f: [(f / "_CHECKPOINT_METADATA").write_text("[1]"), halve(arrays_file(f))],
        "OUT_OF_RANGE",
    ),
    "no state": (lambda f: shutil.rmtree(f / "state"), "state"),
    "empty state": (lambda f: empty(f / "state"), "not found|structure"),
    "no record": (lambda f: shutil.rmtree(f / "record"), "not found"),
    "empty folder": (empty, "not found"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_stepped_over_with_a_warning_and_its_step_saved_again(
    copied, tiny, kind
):
    harm, said = DAMAGES[kind]
    harm(copied / "4")
    checkpoints = opened(copied, tiny)
    with pytest.warns(UserWarning, match=r"checkpoint .*/4 is damaged: ") as warned:
        state, position = checkpoints.restore(make_state(0))
    (message,) = (str(w.message) for w in warned)
    assert (
        re.search(said, message) and "it is 4.damaged now" in message and "from step 2" in message
    )
    assert_same(state, make_state(2))
    assert position["next_index"] == 2
    assert names(copied) == ["2", "4.damaged"]
    checkpoints.save(make_state(4), POSITION)
    checkpoints.close()
    state, position = opened(copied, tiny).restore(make_state(0))
    assert_same(state, make_state(4))
    assert position == POSITION and names(copied) == ["2", "4", "4.damaged"]


def test_the_array_that_changed_is_named(copied, tiny):
    """The arrays are those of another state, whole, which differs in one of them."""
    state = make_state(4)
    changed = state.ema.unet["conv"] | {"bias": jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0])}
    other = dataclasses.replace(state, ema=Params(unet={"conv": changed}, lgm=()))
    checkpoints = opened(copied.parent / "other", tiny)
    checkpoints.save(other, POSITION)
    checkpoints.close()
    shutil.rmtree(copied / "4" / "state")
    shutil.copytree(copied.parent / "other" / "4" / "state", copied / "4" / "state")
    with pytest.warns(UserWarning, match=r"damaged: state.ema.unet\['conv'\]\['bias'\] is"):
        opened(copied, tiny).restore(make_state(0))


def test_what_was_damaged_twice_is_kept_twice(copied, tiny):
    for _ in range(2):
        halve(arrays_file(copied / "4"))
        checkpoints = opened(copied, tiny)
        with pytest.warns(UserWarning, match="4 is damaged"):
            checkpoints.restore(make_state(0))
        checkpoints.save(make_state(4), POSITION)
        checkpoints.close()
    assert names(copied) == ["2", "4", "4.damaged", "4.damaged-2"]


def test_if_all_are_damaged_the_run_is_refused_and_nothing_is_touched(copied, tiny):
    flip(arrays_file(copied / "4"), 8)
    empty(copied / "2")
    with pytest.raises(InputError, match=r"all 2 checkpoints .* newest, 4: .*not what was saved"):
        opened(copied, tiny).restore(make_state(0))
    assert names(copied) == ["2", "4"] and arrays_file(copied / "4").is_file()


def test_another_config_or_another_program_is_no_damage(copied, tiny):
    other = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, learning_rate=0.5))
    with pytest.raises(InputError, match="optim.learning_rate 0.001 there, 0.5 here"):
        opened(copied, other).restore(make_state(0))
    like = make_state(0)
    wider = dataclasses.replace(like, opt_state=like.opt_state | {"small": jnp.zeros(10)})
    with pytest.raises(InputError, match=r"another version.*'small'.: int8 \(9,\) there, float32"):
        opened(copied, tiny).restore(wider)
    emptier = dataclasses.replace(like, opt_state=like.opt_state | {"nothing": None})
    with pytest.raises(InputError, match="another version .*: what is in the state differs; go on"):
        opened(copied, tiny).restore(emptier)
    assert names(copied) == ["2", "4"]


def test_what_a_record_lacks_was_as_it_is_by_default(tmp_path, tiny, monkeypatch):
    """As if `data.mirror` had come after the run was begun."""
    complete = run_checkpoints.to_dict

    def of_old(config):
        values = complete(config)
        del values["data"]["mirror"]
        return values

    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoints, "to_dict", of_old)
        old = opened(tmp_path / "old", tiny)
    old.save(make_state(1), POSITION)
    old.close()
    mirrored = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, mirror=True))
    with pytest.raises(InputError, match="data.mirror False there, True here"):
        opened(tmp_path / "old", mirrored).restore(make_state(0))
    assert opened(tmp_path / "old", tiny).restore(make_state(0))


def test_how_processes_find_each_other_may_change(copied, tiny):
    launch = LaunchConfig("here:1", 2, cpu_devices=3, process_id=1, timeout=7, grace=3)
    defaults, changed = (dataclasses.asdict(x) for x in (LaunchConfig(), launch))
    assert all(changed[name] != value for name, value in defaults.items())
    assert opened(copied, dataclasses.replace(tiny, launch=launch)).restore(make_state(0))


def test_how_often_a_run_says_looks_and_saves_may_change(copied, tiny):
    often = {"log_every": 2, "eval_every": 5, "sample_every": 10, "save_every": 3}
    changed = dataclasses.replace(tiny.train, eval_objects=3, keep=1, **often)
    assert opened(copied, dataclasses.replace(tiny, train=changed)).restore(make_state(0))


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path, tiny, monkeypatch):
    """Seen from process 1, for which process 0 has written elsewhere."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(run_checkpoints, "_wait_for_all", lambda _: None)
    monkeypatch.setattr(run_checkpoints, "_anywhere", lambda fact: fact)
    monkeypatch.setattr(run_checkpoints.time, "sleep", lambda _: None)
    clock = itertools.count()
    monkeypatch.setattr(run_checkpoints.time, "monotonic", lambda: next(clock))
    token = np.array([5], np.uint32)
    monkeypatch.setattr(run_checkpoints.multihost_utils, "broadcast_one_to_all", lambda _: token)
    with pytest.raises(InputError, match="is another folder on other hosts; give a --run-dir"):
        run_checkpoints._check_shared(tmp_path)
    (tmp_path / "shared-by-all-processes").write_text("5")
    run_checkpoints._check_shared(tmp_path)


def test_files_that_may_not_be_read_are_no_damage(copied, tiny, monkeypatch):
    """Not by taking the right to read away: root has it all the same."""
    import o3d_jax.run.checkpoints as module

    def refused(self, folder, **_):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(module.ocp.StandardCheckpointHandler, "restore", refused)
    with pytest.raises(PermissionError):
        opened(copied, tiny).restore(make_state(0))
    assert names(copied) == ["2", "4"]


def test_a_step_is_saved_once_and_the_newest_are_kept(copied, tiny):
    keeps = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, keep=2))
    checkpoints = opened(copied, keeps)
    checkpoints.save(make_state(4), {})  # Is there: nothing happens.
    checkpoints.save(make_state(6), POSITION)
    checkpoints.save(make_state(6), {})
    checkpoints.close()
    assert names(copied) == ["4", "6"]
    assert opened(copied, keeps).restore(make_state(0))[1] == POSITION


def test_what_a_killed_run_had_begun_to_write_is_removed(copied, tiny):
    (copied / "5.orbax-checkpoint-tmp").mkdir()  # Of a step that is not saved again.
    (copied / "5.orbax-checkpoint-tmp" / "half").write_text("half")
    checkpoints = opened(copied, tiny)
    assert_same(checkpoints.restore(make_state(0))[0], make_state(4))
    checkpoints.save(make_state(6), POSITION)
    checkpoints.close()
    assert names(copied) == ["2", "4", "6"]


def on(devices, tree):
    """Arrays whose first axis can be are shared among so many devices, the others copied."""
    mesh = jax.make_mesh((devices,), ("all",), devices=jax.devices()[:devices])

    def place(array):
        is_shared = array.ndim > 0 and array.shape[0] % devices == 0
        spec = PartitionSpec("all") if is_shared else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def test_a_state_moves_to_other_devices_bit_for_bit(tmp_path, tiny):
    expected, step = make_state(2), 2
    state = on(8, expected)
    for devices in (4, 1, 8):
        checkpoints = opened(tmp_path, tiny)
        checkpoints.save(state, POSITION)
        checkpoints.close()
        like = on(devices, make_state(0))
        state, _ = opened(tmp_path, tiny).restore(like)
        assert_same(state, expected)
        jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(), state, like)
        step += 2
        new = dataclasses.replace(expected, step=jnp.asarray(step, jnp.int32))
        expected, state = new, on(devices, new)
    kernel = state.params.unet["conv"]["kernel"]
    assert len(kernel.addressable_shards) == 8 and kernel.addressable_shards[0].data.shape == (
        5,
        24,
    )


def test_arrays_may_be_given_away_as_soon_as_a_save_returns(tmp_path, tiny):
    """The next step overwrites them while they are written."""
    add = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)
    state = make_state(2)
    state = dataclasses.replace(state, opt_state=jnp.ones((3000, 1000)))
    checkpoints = opened(tmp_path, tiny)
    checkpoints.save(state, POSITION)
    state = jax.block_until_ready(add(state))
    checkpoints.close()
    like = dataclasses.replace(make_state(0), opt_state=jnp.zeros((3000, 1000)))
    found, _ = opened(tmp_path, tiny).restore(like)
    assert_same(found.params, make_state(2).params)
    assert float(found.opt_state.min()) == float(found.opt_state.max()) == 1


def test_two_threads_may_save_and_the_later_waits(tmp_path, tiny):
    checkpoints = opened(tmp_path, tiny)
    threads = [
        threading.Thread(target=lambda: [checkpoints.save(make_state(2), {}), checkpoints.wait()])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["2"]
    checkpoints.close()
    assert_same(opened(tmp_path, tiny).restore(make_state(0))[0], make_state(2))
    record = json.loads((tmp_path / "2" / "record" / "metadata").read_text())
    assert record["config"]["name"] == "tiny"
