"""Fingerprints: exact, the same on any devices, and different when anything changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from o3d_jax.run.fingerprints import fingerprints

TYPES = ["bool", "int8", "uint8", "float16", "bfloat16", "int32", "uint32", "float32"]


def scattered(x: int) -> int:
    x = x * 0x85EBCA77 % 2**32
    x = (x ^ (x >> 15)) * 0x9E3779B1 % 2**32
    return x ^ (x >> 13)


def by_hand(array: np.ndarray) -> int:
    """The same in Python's integers, from the bytes."""
    size = min(array.dtype.itemsize, 4)
    data = array.tobytes()
    words = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    return sum(scattered(word ^ scattered(i)) for i, word in enumerate(words)) % 2**32


def drawn(kind, shape):
    draw = np.random.default_rng(3)
    if kind == "bool":
        return draw.random(shape) > 0.5
    return np.asarray(draw.normal(size=shape) * 50).astype(jnp.dtype(kind))


@pytest.mark.parametrize("kind", [*TYPES, "int64", "float64"])
def test_a_fingerprint_is_the_sum_of_scattered_words_at_every_size_of_element(kind):
    tree = {str(i): drawn(kind, shape) for i, shape in enumerate([(), (7,), (3, 5), (2, 3, 4)])}
    with jax.enable_x64(kind in ("int64", "float64")):
        found = fingerprints(jax.tree.map(jnp.asarray, tree))
        assert found == fingerprints(tree)  # Arrays on the host as well.
    assert found == {f"['{name}']": by_hand(array) for name, array in tree.items()}
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("spec", [(), ("a",), (None, "a"), ("b", "a"), (("a", "b"),)])
def test_a_fingerprint_does_not_depend_on_how_devices_share_an_array(spec):
    array = drawn("float32", (16, 24))
    for devices in (8, 4):
        mesh = jax.make_mesh((devices // 2, 2), ("a", "b"), devices=jax.devices()[:devices])
        shared = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        assert fingerprints([shared]) == {"[0]": by_hand(array)}


def test_many_shared_arrays_do_not_block_each_other():
    """Where all are queued at once, XLA waits for a minute and ends the process."""
    mesh = jax.make_mesh((8,), ("a",))
    arrays = [drawn("float32", (8 * (1 + i % 3),)) for i in range(200)]
    shared = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("a")))
    assert list(fingerprints(shared).values()) == [by_hand(array) for array in arrays]


def test_no_change_of_one_bit_is_missed():
    array = drawn("float32", (5, 3))
    expected = fingerprints([array])
    for byte in range(array.nbytes):
        for bit in range(8):
            data = bytearray(array.tobytes())
            data[byte] ^= 1 << bit
            changed = np.frombuffer(bytes(data), np.float32).reshape(array.shape)
            assert fingerprints([changed]) != expected


def test_changes_that_elements_share_are_not_missed():
    """Of sums with odd weights, many would be: 2^31 times an even number of them is 0."""
    array = drawn("float32", (256, 256))
    signs = np.where(np.arange(256) < 2, -1, 1).astype(np.float32)
    others = [-array, array * signs, array * 0, array * 2]
    assert len({fingerprints([a])["[0]"] for a in [array, *others]}) == 5


def test_a_change_of_order_is_not_missed():
    array = np.arange(1, 41, dtype=np.float32).reshape(8, 5)
    others = [array[::-1], array[:, ::-1], np.roll(array, 1), array.reshape(5, 8).T]
    assert len({fingerprints([np.ascontiguousarray(a)])["[0]"] for a in [array, *others]}) == 5


def test_what_is_offloaded_to_the_host_has_the_fingerprint_that_it_has_on_the_device():
    mesh = jax.make_mesh((2,), ("parts",), devices=jax.devices()[:2])
    array = jnp.asarray(drawn("float32", (6, 5)))
    for spec in (PartitionSpec(), PartitionSpec("parts")):
        on_device = jax.device_put(array, NamedSharding(mesh, spec))
        offloaded = jax.device_put(array, NamedSharding(mesh, spec, memory_kind="pinned_host"))
        assert fingerprints({"x": offloaded}) == fingerprints({"x": on_device})
