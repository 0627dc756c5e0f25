"""What a training asks of the machine it runs on."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from o3d_jax.parallel import host

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages as Linux does")
def test_a_repeated_program_finds_the_memory_again_that_it_has_freed():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "freed_memory.py"), "keep"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    pages, fresh = map(float, done.stdout.split())
    # What Python itself needs now and then; without keeping it, all of them each time.
    assert fresh < 0.01 * pages


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

FLAGS_OF_A_BLOCK = """
import ctypes, re
from pathlib import Path
from o3d_jax.parallel.host import keep_freed_memory

keep_freed_memory()
block = bytearray(2**26)  # For its own arrays, NumPy asks for large pages itself.
inside = ctypes.addressof(ctypes.c_char.from_buffer(block, 2**25))
areas = Path("/proc/self/smaps").read_text().split("VmFlags:")
for area, after in zip(areas, areas[1:]):
    start, end = re.findall("([0-9a-f]+)-([0-9a-f]+) [r-]", area)[-1]
    if int(start, 16) <= inside < int(end, 16):
        print(after.splitlines()[0])
"""


@pytest.mark.skipif(not LARGE_PAGES.exists(), reason="a kernel without large pages")
def test_memory_that_is_kept_comes_in_large_pages():
    done = subprocess.run(
        [sys.executable, "-c", FLAGS_OF_A_BLOCK],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "hg" in done.stdout.split()  # As Linux calls what was asked by madvise.


@pytest.fixture
def asked(monkeypatch):
    """What glibc is asked for, which is nothing in fact."""
    calls = []

    def refuse(_):  # So much memory at once.
        return None

    libc = SimpleNamespace(mallopt=lambda *call: calls.append(call), malloc=refuse)
    libc.free = libc.madvise = lambda *call: pytest.fail("there is no memory to tell of")
    monkeypatch.setattr(host.ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(host.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(host, "_realloc_of", lambda library: 1)
    return calls


def platforms(monkeypatch, names, plugins=(), modules=()):
    """JAX as if started with JAX_PLATFORMS, beside installed plug-ins for accelerators."""
    config = SimpleNamespace(jax_platforms=names, update=jax.config.update)
    monkeypatch.setattr(host, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(host.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: name in modules or None)


KEPT = [(-8, 1), (-4, 0), (-1, -1)]
"""One heap, no blocks beside it, and it never shrinks: numbers of malloc.h."""


@pytest.mark.parametrize(
    ("names", "plugins", "modules", "expected"),
    [
        ("cpu", (), (), KEPT),
        ("cpu", ("cuda",), ("libtpu",), KEPT),
        ("cuda", (), (), []),
        ("cuda,cpu", (), (), []),
        (None, (), (), KEPT),
        (None, ("cuda",), (), []),
        (None, (), ("libtpu",), []),
        (None, (), ("jax_plugins",), []),
    ],
)
def test_memory_is_kept_only_where_there_can_be_no_devices_but_cpus(
    monkeypatch, asked, names, plugins, modules, expected
):
    platforms(monkeypatch, names, plugins, modules)
    host.keep_freed_memory()
    assert asked == expected


def test_memory_is_left_alone_with_another_c_library(monkeypatch, asked):
    platforms(monkeypatch, "cpu")
    monkeypatch.setattr(host.platform, "libc_ver", lambda: ("", ""))
    host.keep_freed_memory()
    assert asked == []


def test_memory_is_left_alone_with_another_allocator(monkeypatch, asked):
    platforms(monkeypatch, "cpu")
    monkeypatch.setattr(host, "_realloc_of", lambda library: 1 if library else 2)
    host.keep_freed_memory()
    assert asked == []


def test_devices_of_one_thread_each_are_made_of_cores_only_if_asked_for(monkeypatch):
    made = []
    config = SimpleNamespace(update=lambda *change: made.append(change))
    monkeypatch.setattr(host, "jax", SimpleNamespace(config=config))
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_the_user=1")
    host.use_cpu_devices(0)
    assert made == [] and os.environ["XLA_FLAGS"] == "--xla_of_the_user=1"
    host.use_cpu_devices(3)
    assert made == [("jax_num_cpu_devices", 3)]
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--xla_of_the_user=1", "--xla_cpu_multi_thread_eigen=false"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from Linux's /proc")
def test_memory_that_is_free_within_a_heap_goes_back_to_the_kernel():
    def taken():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000

    kept = []

    def work():
        # Blocks small enough for the heap, and the last one, which is above them all, stays.
        blocks = [np.ones(50_000, np.uint8) for _ in range(4000)]
        kept.append(blocks[-1])

    thread = threading.Thread(target=work)  # Its heap is its own.
    thread.start()
    thread.join()
    before = taken()
    host.give_back_freed_memory()
    assert before - taken() > 150  # Of 200 MB.
    assert kept[0].all()
