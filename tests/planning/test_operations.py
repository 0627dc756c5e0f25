"""What the operations of a program cost, against counts by hand."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from o3d_jax.planning.operations import Operation, most, operations
from o3d_jax.run.flops import count_flops


def counted(function, platform, *shapes, dtype=jnp.bfloat16):
    at = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return operations(jax.make_jaxpr(function)(*at).jaxpr, platform)


def test_a_product_reads_its_operands_and_writes_its_result_once():
    (found,) = counted(lambda a, b: jnp.tanh(a @ b), "tpu", (3, 5), (5, 7))
    shapes = "bf16[3,5] bf16[5,7] -> bf16[3,7]"
    assert found == Operation("dot_general", shapes, 1, 2 * 3 * 5 * 7, 2 * (15 + 35 + 21))
    assert found.seconds(flops_rate=210.0, memory_rate=1e9) == 1.0
    assert found.seconds(flops_rate=1e9, memory_rate=142.0) == 1.0


def test_what_loops_and_repeats_is_joined_and_the_most_come_first():
    def run(x, y):
        x = lax.scan(lambda c, _: (c @ c, None), x, None, length=6)[0]
        return x @ x, jax.jit(lambda y: y @ y)(y)

    six, once = most(counted(run, "tpu", (4, 4), (6, 6), dtype=jnp.float32), "flops")
    assert (six.count, six.flops, six.bytes) == (7, 7 * 2 * 4**3, 7 * 4 * 3 * 16)
    assert (once.count, once.flops) == (1, 2 * 6**3)
    found = counted(run, "tpu", (4, 4), (6, 6), dtype=jnp.float32)
    assert len(most(found, "bytes", 1)) == 1


def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] @ x_ref[...]


def by_platform(x):
    """A kernel for TPUs; elsewhere two products, whose result in between goes through memory."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    on_tpu = functools.partial(pl.pallas_call(kernel, out_shape=shape))
    return lax.platform_dependent(x, tpu=on_tpu, default=lambda x: (x @ x) @ x)


def test_a_kernel_computes_what_others_spell_out_and_keeps_what_is_in_between():
    (chunks,) = counted(by_platform, "cuda", (4, 4))
    (fused,) = counted(by_platform, "tpu", (4, 4))
    assert (chunks.kind, chunks.count, chunks.bytes) == ("dot_general", 2, 2 * 3 * 2 * 16)
    assert (fused.kind, fused.count, fused.bytes) == ("kernel", 1, 2 * 2 * 16)
    assert fused.flops == chunks.flops == 2 * 2 * 4**3


def test_of_other_choices_the_larger_counts():
    def run(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    found = counted(run, "tpu", (4, 4), dtype=jnp.float32)
    assert sum(each.flops for each in found) == 2 * 2 * 4**3
    assert sum(each.flops for each in found) == count_flops(run, jnp.ones((4, 4))).total
