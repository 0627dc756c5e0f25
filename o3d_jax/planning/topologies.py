"""Machines that programs can be compiled for without having them.

TPUs by libtpu's compiler (extra [tpu]), NVIDIA GPUs by the CUDA plugin (extra [cuda12]); both run
on any CPU host.
"""

import importlib
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from o3d_jax.errors import InputError

GIB = 2**30


class Chip(NamedTuple):
    """What its maker says of one device."""

    name: str
    memory: int
    """Bytes of memory."""
    flops: float
    """Operations per second in dense bfloat16."""
    memory_rate: float
    """Bytes per second to and from memory."""
    link_rate: float
    """Bytes per second, out of one device over all its links to others of its machine or slice."""


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    """The devices, a jax.Device each."""
    compiler: str
    """The package that compiles for them, with its version."""


TPUS = {
    # cloud.google.com/tpu/docs/v5e, /v5p, /v6e: bf16 peak, HBM, its bandwidth, interchip bandwidth.
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1640e9, 400e9),
}

GPUS = {
    # NVIDIA's data sheets, SXM: bf16 dense, HBM, its bandwidth, NVLink one way.
    "A100-40G": Chip("NVIDIA A100-SXM4-40GB", 40 * 10**9, 312e12, 1555e9, 300e9),
    "A100-80G": Chip("NVIDIA A100-SXM4-80GB", 80 * 10**9, 312e12, 2039e9, 300e9),
    "H100": Chip("NVIDIA H100 80GB HBM3", 80 * 10**9, 989e12, 3350e9, 450e9),
    "H200": Chip("NVIDIA H200", 141 * 10**9, 989e12, 4800e9, 450e9),
    # Its Ada whitepaper: GDDR6X, sums in float32; PCIe 4.0 in place of NVLink.
    "RTX4090-24G": Chip("NVIDIA GeForce RTX 4090", 24 * 10**9, 165.2e12, 1008e9, 32e9),
}


class Silicon(NamedTuple):
    """What XLA's compiler wants to know of a GPU beside its memory."""

    capability: tuple[int, int]
    cores: int
    threads_per_core: int
    fpus_per_core: int
    shared_per_core: int
    shared_per_block: int
    l2: int
    clock_ghz: float


AMPERE = Silicon((8, 0), 108, 2048, 64, 167936, 166912, 40 * 2**20, 1.41)
ADA = Silicon((8, 9), 128, 1536, 128, 102400, 101376, 72 * 2**20, 2.52)
HOPPER = Silicon((9, 0), 132, 2048, 128, 233472, 232448, 50 * 2**20, 1.98)

SILICON = {"A100": AMPERE, "RTX": ADA, "H100": HOPPER, "H200": HOPPER}
"""By a word of the chip's name."""

FREE_SHARE = {"tpu": 15.75 / 16, "gpu": 0.92}
"""The share of a device's memory that a program can have.

For TPUs it is what libtpu says of a v5e. For GPUs it is what the README gives XLA's allocator,
which has 75 % unless told more (XLA_PYTHON_CLIENT_MEM_FRACTION).
"""


def describe(name: str) -> Topology:
    """Returns the topology called `v5e:4x4`, `v5p:2x2x4`, `v6e:4x4`, `gpu:8xA100-80G` or the like.

    Raises:
        InputError: no such topology, or its compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind in TPUS and re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        return _tpu(name, TPUS[kind])
    gpu = re.fullmatch(r"(\d+)x(.+)", shape)
    if kind == "gpu" and gpu and gpu[2] in GPUS and int(gpu[1]) > 0:
        return _gpu(name, GPUS[gpu[2]], int(gpu[1]))
    raise InputError(
        f"topology {name!r} is not known; give one of {', '.join(TPUS)} with its shape, as "
        f"v5e:4x4, or gpu:COUNTxNAME with one of {', '.join(GPUS)}, as gpu:8xH100"
    )


QUIET_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""The environment in which libtpu compiles without looking for a TPU."""


def _tpu(name: str, chip: Chip) -> Topology:
    try:
        import libtpu  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise InputError(f"no compiler for {name}: pip install 'o3d-jax[tpu]'") from error
    for key, value in QUIET_TPU.items():
        os.environ.setdefault(key, value)
    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu")
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"libtpu knows no topology {name}: {str(error).splitlines()[0]}; give the shape of a "
            "slice that exists"
        ) from error
    return Topology(name, chip, tuple(found.devices), f"libtpu {libtpu.__version__}")


def _gpu(name: str, chip: Chip, count: int) -> Topology:
    try:
        importlib.import_module("jax_plugins.xla_cuda12")
    except ModuleNotFoundError as error:
        raise InputError(
            f"no compiler for {name}: pip install --no-deps jax-cuda12-plugin=={jax.__version__} "
            f"jax-cuda12-pjrt=={jax.__version__}"
        ) from error
    jax.devices()  # Which finds the plugin.
    found = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=gpu_target(chip),
        topology=f"1x1x{count}",
    )
    return Topology(name, chip, tuple(found.devices), f"jax-cuda12-plugin {jax.__version__}")


def gpu_target(chip: Chip) -> str:
    """Returns XLA's GPU target configuration, as text."""
    s = next(silicon for word, silicon in SILICON.items() if word in chip.name)
    major, minor = s.capability
    return (
        "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 "
        f"shared_memory_per_block: 49152 shared_memory_per_core: {s.shared_per_core} "
        f"threads_per_core_limit: {s.threads_per_core} core_count: {s.cores} "
        f"fpus_per_core: {s.fpus_per_core} "
        "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 "
        f"memory_bandwidth: {int(chip.memory_rate)} l2_cache_size: {s.l2} "
        f"clock_rate_ghz: {s.clock_ghz} device_memory_size: {chip.memory} "
        f"shared_memory_per_block_optin: {s.shared_per_block} "
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} "
        "registers_per_core_limit: 65536 "
        'registers_per_block_limit: 65536 } platform_name: "CUDA" '
        "dnn_version_info { major: 9 minor: 8 } "
        f'device_description_str: "{chip.name}" runtime_version {{ major: 12 minor: 9 }}'
    )
