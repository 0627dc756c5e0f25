"""Goldens of the original code (see `check.py`), and the tool that checks them."""

import json
import pathlib
import sys

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent
sys.path.insert(0, str(GOLDEN))

import check  # noqa: E402
import rows  # noqa: E402
import splatting  # noqa: E402


@pytest.mark.parametrize("file", sorted((GOLDEN / "release").glob("*.npz")), ids=lambda f: f.stem)
def test_output_of_the_original_is_ours(file, capsys):
    status = check.main([str(file)])
    assert status == 0, capsys.readouterr()


def write_toy(folder, about):
    np.savez(folder / "a.npz", **{"in.x": np.ones((2, 3)), "out.y": np.full((2, 3), 0.5)})
    (folder / "a.json").write_text(json.dumps(about))
    return folder / "a.npz"


TOY = {"kind": "toy", "config": {}, "params": {}, "noise_max_abs": {"y": 1e-5}}


@pytest.mark.parametrize(
    ("error", "status", "word"), [(4e-5, 0, "PASS"), (6e-5, 1, "FAIL"), (np.nan, 1, "FAIL")]
)
def test_check_prints_a_verdict_and_exits_with_it(
    tmp_path, monkeypatch, capsys, error, status, word
):
    def halve(golden):
        return {"out.y": golden.given("x") / 2 + error}

    monkeypatch.setitem(check.KINDS, "toy", halve)
    assert check.main([str(write_toy(tmp_path, TOY))]) == status
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("toy ") and f"  {word}\n" in printed
    assert "5 x the file's float32 noise" in printed


def test_check_holds_outputs_without_noise_to_float32(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(check.KINDS, "toy", lambda golden: {"out.y": golden.given("x") / 2 + 2e-6})
    assert check.main([str(write_toy(tmp_path, TOY | {"noise_max_abs": {}}))]) == 1
    assert "2e-06 of the largest value" in capsys.readouterr().out


def test_check_holds_each_number_of_a_schedule_to_its_own_size(tmp_path, capsys):
    source = GOLDEN / "release" / "scheduler_euler_svd.npz"
    arrays = dict(np.load(source))
    arrays["out.sigmas"][-2] *= 1.0001  # 0.002, beside 700.
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "a.json").write_text(source.with_suffix(".json").read_text())
    assert check.main([str(tmp_path / "a.npz")]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert len(failed) == 1 and " a sigmas " in failed[0]


def test_check_holds_gradients_to_their_relative_error():
    golden = np.array([300.0, 400.0])
    ours = golden + np.array([0.0, 0.005])  # 1e-5 of the norm.
    row = rows.compare("toy", "x", ours, golden, splatting.GRADIENT32)
    assert row.passed and row.relative == pytest.approx(1e-5) and row.largest == pytest.approx(5e-3)
    assert not rows.compare("toy", "x", ours, golden, splatting.GRADIENT64).passed


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("kind", "teapot"),
        ("no json", "a.json"),
        ("half a json", "noise_max_abs"),
        ("bad json", "a.json"),
        ("text", "npz"),
        ("nothing", "npz"),
        ("output", "out.y"),
        ("no output", "no outputs"),
        ("input", "in.z"),
        ("shape", "(2, 3)"),
    ],
)
def test_check_refuses_what_it_does_not_know_in_one_line(
    tmp_path, capsys, monkeypatch, content, word
):
    monkeypatch.setitem(check.KINDS, "toy", lambda golden: {"out.other": golden.given("x")})
    file = write_toy(tmp_path, TOY | ({"kind": "teapot"} if content == "kind" else {}))
    about = file.with_suffix(".json")
    if content == "no json":
        about.unlink()
    elif content == "half a json":
        about.write_text(json.dumps({k: v for k, v in TOY.items() if k != "noise_max_abs"}))
    elif content == "bad json":
        about.write_text("{")
    elif content == "text":
        file.write_text("not an archive")
    elif content == "nothing":
        file.unlink()
    elif content == "no output":
        np.savez(file, **{"in.x": np.ones(3)})
    elif content == "input":
        monkeypatch.setitem(check.KINDS, "toy", lambda golden: {"out.y": golden.arrays["in.z"]})
    elif content == "shape":
        monkeypatch.setitem(check.KINDS, "toy", lambda golden: {"out.y": np.ones(3)})
    assert check.main([str(file)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{file}: ") and message.count("\n") == 1
    assert word in message


def test_check_refuses_parameters_of_other_names_or_shapes(tmp_path, capsys):
    source = GOLDEN / "release" / "adapter_xl.npz"
    about = json.loads(source.with_suffix(".json").read_text())
    about["params"]["adapter"]["manifest"]["conv_in.bias"] = [31]
    (tmp_path / "a.json").write_text(json.dumps(about))
    (tmp_path / "a.npz").write_bytes(source.read_bytes())
    assert check.main([str(tmp_path / "a.npz")]) == 2
    assert "conv_in.bias" in capsys.readouterr().err
