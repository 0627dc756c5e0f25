"""What a run says of itself before it starts."""

import dataclasses
import subprocess

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.parallel.layout import make_layout
from o3d_jax.parallel.processes import ProcessInfo
from o3d_jax.run.banner import (
    ProgramMemory,
    Setting,
    aligned_table,
    banner,
    gib,
    git_commit,
    program_memory,
)
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import Weights


def networks():
    unet = {
        "params": {"down_blocks_0": np.ones((3, 5)), "down_blocks_1": np.ones(7), "out": np.ones(2)}
    }
    params = Params(unet=unet, lgm={"params": {"in": np.ones(1100)}})
    return Weights(params=params, frozen=Frozen(vae={"params": {"a": np.ones(9)}}))


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_banner_says_what_runs_where_and_with_what(tiny):
    train = dataclasses.replace(tiny.train, batch_size=24, accumulate=3, zero=1)
    config = dataclasses.replace(tiny, train=train)
    mesh = make_layout(dataclasses.replace(train, fsdp=2)).mesh
    text = banner(
        config,
        mesh,
        networks(),
        processes=[ProcessInfo(0, "left", 5), ProcessInfo(1, "right-hand", 3)],
        memory=ProgramMemory(3 * 2**30, 2**30, 2**31, 2**30),
        settings=[Setting("optim.learning-rate", "0.1", "command line")],
    )
    found = lines(text)
    assert f"jax {jax.__version__}, jaxlib" in text and "o3d-jax 0.1.0 (git " in text
    assert "devices 8 cpu (cpu)" in found
    assert found.index("0 5 left") + 1 == found.index("1 3 right-hand")
    assert "mesh data 4 x fsdp 2" in found
    expected = (
        "batch 24 objects of 4 views a step, 3 objects a device, in 3 parts one after another"
    )
    assert expected in found
    assert "state ZeRO stage 1, shared by 2 devices" in found
    assert any("per device: 5.0 GiB = 3.0 GiB arguments + 2.0 GiB temp" in line for line in found)
    assert "unet 24 down_blocks* 22, out 2" in found
    assert "lgm 1,100 in 1,100" in found and "vae 9 a 9" in found
    assert "all 1,124 9" in found
    assert "optim.learning-rate 0.1 command line" in found


def test_trained_and_frozen_parameters_are_in_their_columns(tiny):
    text = banner(tiny, make_layout(tiny.train).mesh, networks())
    head = next(line for line in text.splitlines() if "trains" in line)
    for name, column in (("unet", "trains"), ("vae", "frozen")):
        line = next(line for line in text.splitlines() if f" {name} " in line)
        assert line[head.index(column)].isdigit()


def test_the_memory_of_a_program_is_its_compilers_with_donated_bytes_once():
    step = jax.jit(lambda a, b: (a + 1, b @ b), donate_argnums=0)
    shapes = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((40, 40), jnp.float32)
    memory = program_memory(step.lower(*shapes).compile())
    assert memory is not None
    assert memory.arguments == 4 * (1000 + 1600) and memory.aliased == 4000
    assert memory.outputs - memory.arguments in range(0, 64)  # And the table of a tuple.
    assert memory.total == memory.outputs + 6400 + memory.temporaries


def test_a_commit_is_that_of_a_checkout_and_of_no_folder_around_it(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True
        )

    assert git_commit(tmp_path) is None
    git("init")
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git_commit(tmp_path)
    assert commit is not None and len(commit) == len("git ") + 10
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == commit + ", with changes"
    assert git_commit(tmp_path / "inner") is None


def test_tables_align_and_bytes_are_for_people():
    assert aligned_table([("a", "bcd", "e"), ("fgh", "i", "")]) == ["a    bcd  e", "fgh  i"]
    assert [gib(n) for n in (3 * 2**20 // 2, 2**30, 80 * 2**30)] == [
        "1.5 MiB",
        "1.0 GiB",
        "80.0 GiB",
    ]
