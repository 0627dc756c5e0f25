"""A run's log: what its lines say, what they leave out, and how a run ends."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import OptimConfig
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.run import clock as step_clock
from o3d_jax.run.compilations import COMPILED, CompilationWatch
from o3d_jax.run.log import RunLog
from o3d_jax.steps.losses import LossTerms
from support.curves import curves_in
from support.step_reports import report


def broken():
    return report(total=np.nan, norm=np.inf, finite=False)


@pytest.fixture
def config(tiny):
    """Six objects of four views a step, a line every third of nine steps, at most three skipped."""
    train = dataclasses.replace(
        tiny.train, steps=9, batch_size=6, log_every=3, most_skipped=3, fsdp=0
    )
    return dataclasses.replace(tiny, train=train)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def ending(folder):
    return json.loads((folder / "exit.json").read_text())


def test_a_line_has_the_means_of_its_steps_and_quantiles_of_all_their_levels(
    tmp_path, config, capsys
):
    with RunLog(tmp_path, config) as log:
        log.start()
        for step, (total, sigma) in enumerate(
            [(1, (1, 1)), (2, (1, np.e)), (6, (1, 1)), (8, (1, 1))]
        ):
            log.record(step + 1, report(total, sigma=sigma), (), 0.0)
        assert len(rows(tmp_path)) == 1
    (row,) = rows(tmp_path)
    assert row["step"] == 3 and row["averaged_steps"] == 3
    assert (row["total"], row["diffusion"], row["gradient_norm"]) == (3, 0.25, 2)
    # Of the levels 0, 0, 0, 0, 0, 1, with linear interpolation: 0.9 of the way lies at 4.5.
    np.testing.assert_allclose(
        [row[f"log_sigma_{q}"] for q in (10, 50, 90)], [0, 0, 0.5], atol=1e-6
    )
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("step 3 total 3 diffusion 0.25 rgb_noisy 0.5") and "0 0 0.5" in line


def test_rates_leave_out_what_was_not_training(tmp_path, config, clock):
    devices = jax.device_count()
    with RunLog(tmp_path, config) as log:
        clock.now += 50  # Compiling.
        log.start(5 * 10**12)
        for step in (1, 2):
            clock.now += 2
            log.record(step, report(), (), 0.5)
        with log.paused():
            clock.now += 30
        clock.now += 4
        log.record(3, report(), (), 1.0)
    (row,) = rows(tmp_path)
    # Three steps of six objects in eight seconds, two of which were waited for data.
    assert row["objects_per_second"] == 18 / 8
    assert row["images_per_second_per_device"] == 4 * 18 / 8 / devices
    assert row["data_wait_share"] == 2 / 8
    np.testing.assert_allclose(row["tflops_per_second_per_device"], 5 * 3 / 8 / devices)


def test_profiled_steps_leave_a_trace_and_do_not_count_into_rates(
    tmp_path, config, clock, capsys, monkeypatch
):
    config = dataclasses.replace(config, profile=(1, 1))
    unread, real = [], jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: unread.append(log._latest) or real())
    with RunLog(tmp_path, config) as log:
        log.start()
        for step in range(3):
            log.begin_step(step)
            clock.now += 10 if step == 1 else 2
            log.record(step + 1, report(), (), 0.5)
    (row,) = rows(tmp_path)
    assert row["objects_per_second"] == 12 / 4 and row["data_wait_share"] == 1 / 4
    assert row["averaged_steps"] == 3  # Its loss is one like others.
    assert unread == [None]  # The last step had ended when the recording did.
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    assert f"profile: in {tmp_path / 'profile'}" in capsys.readouterr().out


def test_a_profile_of_steps_that_never_come_is_missed_aloud(tmp_path, config, capsys):
    with RunLog(tmp_path, dataclasses.replace(config, profile=(50, 2))) as log:
        log.start()
        log.begin_step(0)
        log.record(1, report(), (), 0.0)
    assert "the steps of profile (50, 2) were not run" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


def test_skipped_steps_are_counted_and_left_out_of_means(tmp_path, config, capsys):
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=4)
    with RunLog(tmp_path, dataclasses.replace(config, optim=optim)) as log:
        log.start()
        reports = [report(1), broken(), report(5), broken(), report(2), broken()]
        for step, each in enumerate(reports):
            log.record(step + 1, each, (), 0.0)
    first, second = rows(tmp_path)
    assert (first["total"], first["averaged_steps"], first["skipped_steps"]) == (3, 2, 1)
    assert (second["total"], second["averaged_steps"], second["skipped_steps"]) == (2, 1, 3)
    # Of steps 3 and 6 (the latter skipped), the second and third that were taken: 1/4 and 2/4.
    np.testing.assert_allclose(
        [first["learning_rate"], second["learning_rate"]], [2.5e-4, 5e-4], rtol=1e-6
    )
    said = capsys.readouterr().out
    assert "3 steps skipped" in said and "learning rate 0.00025" in said
    assert ending(tmp_path)["skipped_steps"] == 3


def test_a_line_of_skipped_steps_only_is_json_without_means(tmp_path, config):
    train = dataclasses.replace(config.train, most_skipped=5)
    with RunLog(tmp_path, dataclasses.replace(config, train=train)) as log:
        log.start()
        for step in (1, 2, 3):
            log.record(step, broken(), (), 0.0)
    (row,) = rows(tmp_path)
    assert row["total"] is None and row["averaged_steps"] == 0 and row["skipped_steps"] == 3
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def run_into_skipped_steps(folder, config, log_steps):
    with RunLog(folder, config) as log:
        log.start()
        log.record(1, broken(), ("before",), 0.0)
        log.record(2, report(), ("good",), 0.0)
        for step in (3, 4, 5, 6, 7):
            log_steps.append(step)
            log.record(step, broken(), (f"object {step}", "cup"), 0.0)


def test_too_many_skipped_steps_in_a_row_end_the_run_and_are_kept(tmp_path, config):
    done = []
    with pytest.raises(InputError, match="steps 3 to 5; .*nonfinite.json has .*learning-rate"):
        run_into_skipped_steps(tmp_path, config, done)
    assert done == [3, 4, 5, 6]  # One step behind: the third's report is read with the next step.
    kept = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (kept["first_step"], kept["last_step"]) == (3, 5)
    assert [step["step"] for step in kept["steps"]] == [3, 4, 5]
    third = kept["steps"][0]
    assert (third["total"], third["gradient_norm"], third["diffusion"]) == ("nan", "inf", "0.25")
    assert third["sigma"] == [0.5, 2.0] and third["objects"] == ["object 3", "cup"]
    assert ending(tmp_path)["reason"] == "non-finite"


def test_every_process_ends_alike_and_keeps_its_objects_but_only_the_first_writes(
    tmp_path, config, monkeypatch, capsys
):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="nonfinite.1.json"):
        run_into_skipped_steps(tmp_path, config, [])
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite.1.json"]
    assert capsys.readouterr().out == ""


def test_a_report_is_read_one_step_behind(tmp_path, config, monkeypatch):
    read = []
    real = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda r: read.append(float(r.terms.total)) or real(r))
    with RunLog(tmp_path, config) as log:
        log.start()
        seen = []
        for step in (1, 2, 3, 4):
            log.record(step, report(step), (), 0.0)
            seen.append(list(read))
    assert seen == [[], [1], [1, 2, 3], [1, 2, 3]]  # A line is due at 3.


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (None, "done", ""),
        (KeyboardInterrupt(), "stopped", "SIGINT"),
        (InputError("no frame 3"), "input", "InputError: no frame 3"),
        (KeyError("x"), "error", "KeyError: 'x'"),
    ],
)
def test_the_last_thing_a_run_says_is_why_it_ended(tmp_path, config, capsys, error, reason, detail):
    def run():
        with RunLog(tmp_path, config) as log:
            assert not (tmp_path / "exit.json").exists()
            log.start()
            log.record(1, report(), (), 0.0)
            if error is not None:
                raise error

    (tmp_path / "exit.json").write_text("of an earlier run")
    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    found = ending(tmp_path)
    assert (found["step"], found["reason"], found["detail"]) == (1, reason, detail)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"ended at step 1: {reason}")


def test_an_error_that_was_told_already_is_still_why_a_run_ended(tmp_path, config):
    with pytest.raises(SystemExit), RunLog(tmp_path, config) as log:
        log.start()
        log.record(1, report(), (), 0.0)
        with exit_on_input_error():
            raise InputError("no frame 3")
    assert ending(tmp_path)["reason"] == "input"
    assert ending(tmp_path)["detail"] == "InputError: no frame 3"


def test_a_run_that_a_signal_stops_keeps_the_steps_since_its_last_line(tmp_path, config):
    with pytest.raises(SystemExit), RunLog(tmp_path, config) as log:
        log.start()
        for step in (1, 2, 3, 4):
            log.record(step, report(step), (), 0.0)
        log.stopped("SIGTERM")
        raise SystemExit(0)
    assert [(row["step"], row["total"]) for row in rows(tmp_path)] == [(3, 2), (4, 4)]
    assert (ending(tmp_path)["reason"], ending(tmp_path)["detail"]) == ("stopped", "SIGTERM")


def test_a_resumed_log_forgets_later_lines_and_those_cut_off(tmp_path, config):
    with RunLog(tmp_path, config) as log:
        log.start()
        for step in (1, 2, 3, 4, 5, 6):
            log.record(step, broken() if step == 2 else report(step), (), 0.0)
    with (tmp_path / "log.jsonl").open("a") as lines:
        lines.write('{"step": 9, "tot')  # Killed while writing.
    with RunLog(tmp_path, config, step=3) as log:
        assert [row["step"] for row in rows(tmp_path)] == [3]
        log.start()
        for step in (4, 5, 6):
            log.record(step, report(7), (), 0.0)
    last = rows(tmp_path)[-1]
    assert (last["step"], last["total"], last["skipped_steps"]) == (6, 7, 1)  # Counted on.


def figures(folder):
    return [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]


def test_an_evaluation_is_a_row_that_is_printed_tracked_and_drawn(tmp_path, config, capsys):
    tracked = []
    with RunLog(tmp_path, config) as log:
        log._trackers.append(
            SimpleNamespace(scalars=lambda step, values: tracked.append((step, values)))
        )
        log.evaluation(3, {"lgm_psnr": 19.5, "diffusion_2": 0.25})
        log.evaluation(6, {"lgm_psnr": 20.5, "diffusion_2": 0.125})
    assert figures(tmp_path) == [
        {"step": 3, "lgm_psnr": 19.5, "diffusion_2": 0.25},
        {"step": 6, "lgm_psnr": 20.5, "diffusion_2": 0.125},
    ]
    assert "held out, step 6: lgm_psnr 20.5, diffusion_2 0.125" in capsys.readouterr().out
    assert tracked[1] == (6, {"heldout/lgm_psnr": 20.5, "heldout/diffusion_2": 0.125})
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_evaluations_that_are_done_again_after_a_resume_are_kept_and_drawn_once(
    tmp_path, config, monkeypatch
):
    drawn = curves_in(monkeypatch)
    with RunLog(tmp_path, config) as log:
        for step, value in ((3, 10.0), (6, 11.0), (9, 12.0)):
            log.evaluation(step, {"lgm_psnr": value})
    with (tmp_path / "eval.jsonl").open("a") as lines:
        lines.write('{"step": 12, "lgm_')  # Killed while writing.
    with RunLog(tmp_path, config, step=5) as log:
        log.evaluation(6, {"lgm_psnr": 13.0})
    assert [(row["step"], row["lgm_psnr"]) for row in figures(tmp_path)] == [(3, 10), (6, 13)]
    assert drawn[-1]["held-out PSNR, dB"] == {"lgm_psnr": ([3, 6], [10, 13])}


def test_a_part_that_has_no_noise_levels_logs_none(tmp_path, config, capsys):
    terms = LossTerms(total=jnp.array(0.5), decoded=jnp.array(0.25), kl=jnp.array(7.0))
    alone = dataclasses.replace(report(), terms=terms, sigma=None)
    with RunLog(tmp_path, config) as log:
        log.start()
        for step in (1, 2, 3):
            log.record(step, alone, (), 0.0)
    (row,) = rows(tmp_path)
    assert (row["total"], row["decoded"], row["kl"]) == (0.5, 0.25, 7)
    assert not any("sigma" in name or name == "diffusion" for name in row)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("step 3 total 0.5 decoded 0.25 kl 7 gradient_norm 2 | learning rate")


def test_a_step_that_is_compiled_in_the_loop_is_warned_of_once(tmp_path, config, capsys):
    @jax.jit
    def train_step(x):
        return x + 1

    x3, x5 = jnp.ones(3), jnp.ones(5)  # These compile as well.
    train_step(x3)
    with RunLog(tmp_path, config) as log:
        log.start()
        for step, x in enumerate([x3, x5, x5]):
            train_step(x)
            log.record(step + 1, report(), (), 0.0)
    warnings = [w for w in capsys.readouterr().out.splitlines() if "compiled" in w]
    assert len(warnings) == 1 and "jit(train_step) was compiled at step 2" in warnings[0]
    assert rows(tmp_path)[0]["compilations"] == 1
    train_step(jnp.ones(6))  # Nobody listens any more.
    assert log._watch.take() == []


def test_long_compilations_count_and_an_evaluation_may_compile_once(tmp_path):
    watch = CompilationWatch()

    def compiled(name, seconds):
        jax.monitoring.record_event_duration_secs(COMPILED, seconds, fun_name=name)

    compiled("early", 9.0)
    watch.start()
    compiled("small", 0.5)
    compiled("large", 1.5)
    jax.monitoring.record_event_duration_secs("/jax/of/a/later/version", 9.0)
    watch.in_steps = False
    compiled("generate", 20.0)
    assert [c.name for c in watch.take()] == ["large"]
    compiled("generate", 20.0)
    assert [c.name for c in watch.take()] == ["generate"]
    watch.close()
    compiled("late", 9.0)
    assert watch.take() == [] and watch.count == 2
