"""What a program needs of a machine that is not here."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from o3d_jax.commands import plan as plan_command
from o3d_jax.errors import InputError
from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel.layout import AXES, make_layout
from o3d_jax.planning import plan
from o3d_jax.planning.collectives import Collectives, collectives
from o3d_jax.planning.report import Bytes, Plan, Seconds, _exhausted, knobs
from o3d_jax.planning.topologies import FREE_SHARE, Chip, Topology, describe, gpu_target
from o3d_jax.run.programs import step_shapes
from o3d_jax.steps.train import Training, make_optimizer

ROOT = Path(__file__).parents[2]


def layout_of(tiny, **train):
    return make_layout(dataclasses.replace(tiny.train, smallest_shared=0, **train))


def test_collectives_are_counted_with_their_bytes_and_the_turns_of_their_loops(tiny):
    layout = layout_of(tiny, fsdp=4, zero=3)

    def device(x):
        def turn(carry, _):
            whole = jax.lax.all_gather(carry, "fsdp", axis=0, tiled=True)
            return jnp.tanh(whole[:6] + carry), None

        x, _ = jax.lax.scan(turn, x, None, length=3)
        return jax.lax.psum(x.sum(), AXES) + jax.lax.psum(x * 2, "data")

    f = jax.shard_map(
        device,
        mesh=layout.mesh,
        in_specs=PartitionSpec(AXES),
        out_specs=PartitionSpec("fsdp"),
        check_vma=False,
    )
    text = jax.jit(f).lower(jnp.zeros((48, 5))).compile().as_text()
    found = {c.kind: c for c in collectives(text)}
    # 3 turns gather 4 x 6 x 5 float32 each.
    assert found["all-gather"].count == 3 and found["all-gather"].bytes == 3 * 4 * 6 * 5 * 4
    assert found["all-reduce"].bytes == 4 + 6 * 5 * 4  # A scalar and 6 x 5, however joined.


@pytest.fixture
def planned(toy, tmp_path, monkeypatch, quick_compilation):
    """What is found of toys on the eight devices here, which plan knows no more of than of others;
    and whether they fit."""

    def planned(zero, *programs, offload=False):
        train = dataclasses.replace(
            toy.config.train, batch_size=16, smallest_shared=90, zero=zero, fsdp=4, accumulate=2
        )
        train = dataclasses.replace(train, offload_optimizer=offload)
        optim = dataclasses.replace(toy.config.optim, alpha_weight=0.4)  # So that a step reads all.
        config = dataclasses.replace(toy.config, train=train, optim=optim)
        monkeypatch.setattr(plan, "build_networks", lambda *_, **__: toy.networks)
        monkeypatch.setattr(plan, "_splat_backend", lambda _: "xla")
        here = Topology("cpu:8", Chip("CPU", 400_000, 1e9, 1e8, 1e7), tuple(jax.devices()), "XLA")
        monkeypatch.setitem(FREE_SHARE, "gpu", 1)
        fits = plan.plan_all(config, [here], programs, tmp_path / "plan.json")
        return json.loads((tmp_path / "plan.json").read_text()), fits

    return planned


@pytest.mark.parametrize("zero", [1, 2])
def test_a_step_is_weighed_by_what_its_program_takes_and_says(toy, planned, capsys, zero):
    ((found,), fits) = planned(zero, "step")
    arrays = jax.tree.leaves(toy.params)
    whole = 4 * sum(a.size for a in arrays)
    shared = 4 * sum(a.size for a in arrays if a.size >= 90)  # All have an axis that 4 divides.
    assert 0.5 * whole < shared < whole
    least = whole - shared + shared / 4
    held = found["bytes"]
    assert (held["parameters"], held["average"]) == (whole, least)
    assert held["optimizer"] == 2 * least + 2 * 4  # And two counts of steps.
    assert held["objects"] == 2 * 4 * (16 * 16 * (3 + 1) + 16 + 9) * 4  # Two of four views.
    assert held["padding"] == 8 + 1  # A key and a flag: the program takes nothing else.
    assert 0 < held["outputs"] < 2048 < 4 * least  # What it returns beside a state.
    moved = {c["kind"]: c["bytes"] for c in found["collectives"]}
    # Parameters from their parts, once; 16 noise levels.
    assert moved["all-gather"] == shared + 16 * 4
    if zero == 1:  # The gradient of both parts at once, and a few numbers.
        assert whole < moved["all-reduce"] < whole + 64 and "reduce-scatter" not in moved
    else:  # That of each part by itself.
        assert moved["reduce-scatter"] == 2 * shared / 4

    said = capsys.readouterr().out
    assert said.startswith("tiny on cpu:8: 8 x CPU") and "batch 16 in 2 parts, ZeRO stage" in said
    assert fits == found["fits"] == ("DOES NOT FIT" not in said) == ("What would help" not in said)


def test_a_step_with_an_offloaded_optimizer_is_weighed_as_the_two_programs_that_it_is(toy, planned):
    (gradient, update), _ = planned(1, "step", offload=True)
    assert (gradient["program"], update["program"]) == ("gradient", "update")
    arrays = jax.tree.leaves(toy.params)
    whole = 4 * sum(a.size for a in arrays)
    small = 4 * sum(a.size for a in arrays if a.size < 90)
    for found in (gradient, update):
        assert found["bytes"]["parameters"] == whole
        assert found["bytes"]["optimizer"] == 2 * small + 2 * 4  # Moments that stay, two counts.
    assert update["bytes"]["objects"] == whole  # The gradient, at stage 1.
    # The moments are brought here by the update, and by nothing before it.
    moments = 2 * (whole - small) / 4
    assert update["bytes"]["temporaries"] >= moments > 1.2 * gradient["bytes"]["padding"]


def test_an_offloaded_optimizer_is_not_planned_where_only_the_device_s_memory_is_known(toy):
    train = dataclasses.replace(toy.config.train, offload_optimizer=True)
    config = dataclasses.replace(toy.config, train=train)
    device = SimpleNamespace(platform="gpu")
    there = Topology("gpu:1xA100-40G", Chip("A100", 40e9, 1e9, 1e8, 1e7), (device,), "XLA")
    with pytest.raises(InputError, match="offload-optimizer cannot be planned for GPUs"):
        list(plan.plan(config, there, ("step",)))


def test_a_sampler_is_weighed_with_what_lies_there_in_training(toy, planned, capsys):
    ((found,), fits) = planned(3, "sampler")
    arrays = jax.tree.leaves(toy.params)
    shared = 4 * sum(a.size for a in arrays if a.size >= 90)
    held = found["bytes"]
    assert held["parameters"] == held["average"] == 4 * sum(a.size for a in arrays) - 0.75 * shared
    assert held["optimizer"] == 2 * held["average"] + 2 * 4
    assert held["objects"] == 4 * (16 * 16 * 3 + 4 * (16 + 9))  # One on each device.
    (moved,) = found["collectives"]
    assert (moved["kind"], moved["bytes"]) == ("all-gather", shared)
    assert fits and "sampler of 8 objects: fits" in capsys.readouterr().out


def test_compilers_complaints_are_read(tiny):
    new = "E1000: the total memory required for HLO temporaries (16.03G) exceeds available HBM "
    assert _exhausted(new + "(15.75G).") == (int(16.03 * 2**30), int(15.75 * 2**30))
    old = "Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. Exceeded"
    assert _exhausted(old) == (int(512.5 * 2**20), int(15.75 * 2**30))
    with pytest.raises(RuntimeError, match="the compiler failed: something else"):
        _exhausted("something else")


@pytest.mark.parametrize(
    "name", ["v9e:4x4", "v5e", "v5e:4", "gpu:8xB300", "gpu:0xH100", "gpu:H100"]
)
def test_unknown_topologies_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=f"topology '{name}' is not known; give one of v5e"):
        describe(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_is_named_with_how_to_get_it():
    with pytest.raises(InputError, match=r"no compiler for v5e:2x2: pip install 'o3d-jax\[tpu\]'"):
        describe("v5e:2x2")


def plan_of(needed):
    return Plan(
        program="step",
        topology="v5e:2x2",
        compiler="libtpu 0",
        devices=4,
        objects=8,
        bytes=Bytes(1, 2, 3, 4, 5, 6, 7, 8, needed - 36),
        needed=needed,
        available=100,
        flops=3e12,
        read_and_written=None,
        collectives=(),
        seconds=Seconds(1.0, 3.0, 2.0, 2.5),
        most_flops=(),
        most_bytes=(),
        compile_seconds=1.0,
    )


def test_a_plan_fits_up_to_the_last_byte_and_says_so_in_json():
    assert plan_of(100).fits and not plan_of(101).fits
    assert plan_of(100).bytes.total == 100 and plan_of(100).seconds.least == 3.0
    values = json.loads(json.dumps(plan_of(101).as_dict()))
    assert values["fits"] is False and values["bytes"]["optimizer"] == 3


TPU_TEXT = """
%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ag = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x), dimensions={0}
  %agd = f32[8,8]{1,0} all-gather-done(%ag)
}

%condition.1 (p: (s32[], f32[4])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%branch.1 (p: f32[4]) -> f32[4] {
  %ar = f32[16]{0} all-reduce(%y), to_apply=%add
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%condition.1, body=%body.1
  %c = f32[4] conditional(%k, %a, %b), branch_computations={%branch.1, %branch.2}
  %cp = (bf16[32,4]{1,0}, bf16[32,4]{1,0}, u32[], u32[]) collective-permute-start(%z)
  %rs = f32[6]{0} reduce-scatter(%g), dimensions={0}
}
"""


def test_collectives_of_other_compilers_are_read_too():
    found = {c.kind: c for c in collectives(TPU_TEXT)}
    assert found["all-gather"] == Collectives("all-gather", 5, 5 * 8 * 8 * 4)
    assert found["all-reduce"] == Collectives("all-reduce", 1, 64)
    assert found["collective-permute"] == Collectives("collective-permute", 1, 32 * 4 * 2)
    assert found["reduce-scatter"] == Collectives("reduce-scatter", 1, 24)
    # In a ring of four, a gathered array comes in three of its four parts; sums pass twice.
    sent = {kind: c.on_links(4) for kind, c in found.items()}
    assert sent["all-gather"] == 5 * 256 * 3 / 4 and sent["all-reduce"] == 64 * 2 * 3 / 4
    assert sent["reduce-scatter"] == 24 * 3


def test_knobs_name_only_what_is_left_to_turn(tiny):
    assert "--train.zero 3" in knobs(tiny) and "--model.remat:" in knobs(tiny)
    train = dataclasses.replace(tiny.train, zero=3, accumulate=2, batch_size=16)
    model = dataclasses.replace(tiny.model, remat=True, vae_chunk=1)
    text = knobs(dataclasses.replace(tiny, train=train, model=model))
    assert "zero" not in text and "remat" not in text and "--train.accumulate 4" in text


def test_gpu_targets_parse_and_differ():
    from o3d_jax.planning.topologies import GPUS

    targets = [gpu_target(chip) for chip in GPUS.values()]
    assert len(set(targets)) == len(GPUS)
    assert all(t.count("{") == t.count("}") == 4 for t in targets)
    capability = {
        name: re.search(r"major: (\d) minor: (\d)", target).groups()
        for name, target in zip(GPUS, targets, strict=True)
    }
    assert capability["A100-40G"] == ("8", "0") and capability["H200"] == ("9", "0")
    assert capability["RTX4090-24G"] == ("8", "9")  # Ada, with 128 cores.
    assert "core_count: 128 " in targets[list(GPUS).index("RTX4090-24G")]


@pytest.mark.parametrize("offload", [False, True])
def test_what_sampling_runs_is_weighed_with_its_parameters_alone(
    toy, monkeypatch, capsys, quick_compilation, offload
):
    monkeypatch.setattr(plan, "build_networks", lambda *_, **__: toy.networks)
    monkeypatch.setattr(plan, "_splat_backend", lambda _: "xla")
    monkeypatch.setitem(FREE_SHARE, "gpu", 1)
    here = Topology("cpu:8", Chip("CPU", 400_000, 1e9, 1e8, 1e7), tuple(jax.devices()), "XLA")
    found = list(plan.plan(toy.config, here, ("sample",), offload))
    names = ["embed", "begin", "denoise", "decode", "object"] if offload else ["prepare", "level"]
    assert [each.program for each in found] == [f"sample, {name}" for name in names]
    assert {each.objects for each in found} == {each.devices for each in found} == {1}

    # float32, as the toys compute; LPIPS is not there.
    whole = toy.params, dataclasses.replace(toy.frozen, lpips=None)
    nbytes = 4 * sum(a.size for a in jax.tree.leaves(whole))
    held = [each.bytes.parameters + each.bytes.frozen for each in found]
    if not offload:
        assert held == [nbytes, nbytes]
    else:
        assert sum(held) - held[1] == nbytes and held[1] == held[3]  # The VAE comes twice.
        assert held[2] == 4 * sum(a.size for a in jax.tree.leaves(toy.params.unet))
    for each in found:
        assert each.bytes.average == each.bytes.optimizer == each.bytes.padding == 0
        assert each.seconds.products > 0 and len(each.most_flops) > 0 and each.fits


def test_offload_is_planned_for_sampling_only():
    with pytest.raises(InputError, match="--offload goes with --program sample, not with both"):
        plan_command._read(["tiny", "--topology", "v5e:2x2", "--offload"], "o3d plan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology", "v7:4x4"), "topology 'v7:4x4' is not known"),
        (("--topology", "v5e:2x2", "--out", "nowhere/plan.json"), "no folder"),
        (("--topology", "v5e:2x2", "--train.zerro", "3"), "did you mean --train.zero?"),
        (("--topologi", "v5e:2x2"), "did you mean --topology?"),
        ((), "no machine to plan for; give --topology"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, message):
    command = [sys.executable, "-m", "o3d_jax", "plan", "tiny", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


@pytest.mark.slow  # Minutes, and needs libtpu.
def test_tiny_is_planned_for_a_tpu(tmp_path, tiny):
    pytest.importorskip("libtpu")
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "o3d_jax", "plan", "configs/tiny.py"]
    command += ["--topology", "v5e:2x2", "--program", "step", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())
    assert found["fits"] and found["devices"] == 4
    training = Training(
        tiny, build_networks(tiny.model), make_optimizer(tiny.optim, 9), layout_of(tiny)
    )
    whole = 4 * sum(a.size for a in jax.tree.leaves(step_shapes(training).state.params))
    held = found["bytes"]
    # Stage 2: parameters whole; of what is shared out over four a quarter and what is small.
    assert held["parameters"] == whole and whole / 4 < held["average"] < whole / 2
    moved = {c["kind"]: c["bytes"] for c in found["collectives"]}
    assert moved["all-gather"] > 0.5 * whole and moved["all-reduce"] > 0.5 * whole
