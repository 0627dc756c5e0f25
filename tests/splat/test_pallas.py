"""The kernels for GPUs: interpreted against XLA, and compiled for a GPU that is not there."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from o3d_jax.splat import RenderOptions, Tiling, render
from o3d_jax.splat.tiles import rank_by_depth
from support.splats import (
    BACKGROUND,
    assert_same,
    cases,
    front_camera,
    project_views,
    pull_back,
    scene,
)

# Several rounds; more tiles than fit a row; chunks that end in the middle of a tile's list.
ROUNDS = Tiling(height=21, width=34, tile=8, capacity=64, group=1, chunk=5, block=32)
H200 = """
gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 62914560
  clock_rate_ghz: 1.98 device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H200" runtime_version { major: 12 minor: 9 }
"""
IN_ROUNDS = RenderOptions(tiling=ROUNDS)


def test_kernels_draw_what_xla_draws_and_so_do_gradients():
    gaussians, cameras, weights = cases((), 3)
    splats, boxes = project_views(gaussians, cameras)
    count = jax.vmap(lambda depth, boxes: rank_by_depth(depth, boxes, ROUNDS).count)
    assert (count(splats.depth, boxes).sum(axis=1) > 3 * ROUNDS.capacity).all()
    draw = functools.partial(render, options=IN_ROUNDS)
    expected = pull_back(draw, gaussians, cameras, BACKGROUND, weights)
    kernels = functools.partial(render, options=IN_ROUNDS, backend="pallas")
    ours = pull_back(kernels, gaussians, cameras, BACKGROUND, weights)
    assert_same(ours, expected)
    # Images to the last bits: the same operations in the same order. Only how a compiler
    # contracts products and sums may differ.
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-7)


def _two_devices() -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices()[:2])


def _for_an_h200(mesh: jax.sharding.AbstractMesh) -> contextlib.AbstractContextManager[None]:
    """From JAX 0.12 on, kernels are lowered for the device that a mesh in force names."""
    device = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(mesh.update(abstract_device=device))


def _over_devices(mesh, **options):
    """`render` by kernels, views sharded over two devices."""
    spec = jax.sharding.PartitionSpec
    place = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec(), spec("data"), spec()),
        out_specs=spec("data"),
        **options,
    )

    def sharded(gaussians, cameras, size, background):
        draw = functools.partial(render, size=size, options=IN_ROUNDS, backend="pallas")
        return place(lambda g, c, b: draw(g, c, background=b))(gaussians, cameras, background)

    return sharded


def test_kernels_shard_over_views():
    gaussians, cameras, weights = cases((), 2)
    expected = pull_back(render, gaussians, cameras, BACKGROUND, weights)
    # JAX's interpreter of kernels does not follow what varies between devices.
    draw = _over_devices(_two_devices(), check_vma=False)
    assert_same(pull_back(draw, gaussians, cameras, BACKGROUND, weights), expected)
    # What is compiled for a GPU does.
    with _for_an_h200(_two_devices().abstract_mesh):
        mesh = jax.sharding.get_abstract_mesh()
        arguments = (_over_devices(mesh), gaussians, cameras, BACKGROUND, weights)
        text = pull_back.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == 2


def test_kernels_draw_in_float64_too(float64):  # noqa: F811
    gaussians, cameras = scene(5, dtype=float64), front_camera((21, 34), float64)
    draws = [
        jax.jit(functools.partial(render, size=(21, 34), options=IN_ROUNDS, backend=backend))
        for backend in ("xla", "pallas")
    ]
    expected, ours = (draw(gaussians, cameras, background=BACKGROUND) for draw in draws)
    assert ours.rgb.dtype == jnp.float64
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def _full_size() -> tuple[jax.stages.Wrapped, tuple]:
    """Gradients of 2 views of 512 px, and the shapes to compile for."""
    gaussians, cameras, _ = cases((), 2)
    draw = functools.partial(render, size=(512, 512), background=BACKGROUND, backend="pallas")

    def pull(gaussians, cameras, weights):
        rendering, pull = jax.vjp(draw, gaussians, cameras)
        return rendering, pull(weights)

    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((65536, *x.shape[1:]), x.dtype), gaussians)
    return jax.jit(pull), (many, cameras, jax.eval_shape(draw, many, cameras))


def test_kernels_lower_to_cuda_without_a_gpu():
    pull, shapes = _full_size()
    with _for_an_h200(jax.sharding.AbstractMesh((1,), ("data",))):
        text = pull.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == 2
    assert 'name = "splat_forward"' in text and 'name = "splat_backward"' in text


@pytest.mark.slow  # Needs jax-cuda12-plugin and jax-cuda12-pjrt (no GPU, no CUDA toolkit).
def test_kernels_compile_for_an_h200_within_1_gb():
    pytest.importorskip("jax_plugins.xla_cuda12")
    jax.devices()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H200, topology="1x1x1"
    )
    mesh = jax.sharding.Mesh(topology.devices, ("x",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    pull, shapes = _full_size()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    compiled = pull.lower(*shapes).compile()
    # 8 views hold four times as much as these 2.
    assert 4 * compiled.memory_analysis().temp_size_in_bytes < 1e9
