"""From a hub to an object: published weights are fetched, verified, converted and found by name."""

import dataclasses
import hashlib
import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.errors import InputError
from o3d_jax.media.ply import read_ply
from o3d_jax.sampling import loop
from o3d_jax.weights import start
from o3d_jax.weights.checkpoint import load_model
from o3d_jax.weights.hub.repositories import LGM_REPO
from o3d_jax.weights.pytorch.convert import FromRelease, convert
from support.hub_server import COMMITS, LGM, RELEASE, SVD, TOKEN, git_blob

pytestmark = pytest.mark.usefixtures("quick_compilation")
LGM_FILE = "model_fp16_fixrot.safetensors"


def fetch(capsys, *arguments):
    """What the command says."""
    o3d(["weights", "fetch", *map(str, arguments)])
    return capsys.readouterr().out


def all_files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def released(hub, allowed, unconverted, cache, capsys):
    """The release, fetched; and what was said."""
    return cache / "weights" / "released", fetch(capsys, "released")


def test_what_is_sampled_by_name_are_the_weights_that_were_fetched(
    hub, allowed, files, small, capsys, tmp_path, monkeypatch
):
    fetch(capsys, "released", "--config", small)
    given = {}

    def prepare(model, image, key):
        given.update(config=model.config, params=model.params, frozen=model.frozen)
        raise InputError("seen")  # tests/steps covers the rest, and the test below all of it.

    monkeypatch.setattr(loop, "sample_prepare", prepare)
    with pytest.raises(SystemExit):
        o3d(["sample", "--checkpoint", "released", "--out", str(tmp_path / "out")])
    convert(FromRelease(files / "released", tmp_path / "same", svd=files / "svd", config=small))
    same = load_model(tmp_path / "same")
    chex.assert_trees_all_equal(given["params"], same.weights.params)
    chex.assert_trees_all_equal(given["frozen"], same.weights.frozen)
    # What is asked of sampling by itself is not compiled in.
    assert dataclasses.replace(given["config"], sample=same.config.sample) == same.config


@pytest.mark.slow  # Half a minute, of which all but a second compiles.
def test_an_object_comes_of_one_command_to_fetch_and_one_to_sample(
    hub, allowed, small, tmp_path, capsys
):
    fetch(capsys, "released", "--config", small)
    few = ["--levels", "2", "--orbit-size", "16"]
    o3d(["sample", "--checkpoint", "released", "--out", str(tmp_path / "out"), *few])
    gaussians = read_ply(tmp_path / "out" / "rings" / "gaussians.ply")
    assert np.isfinite(gaussians.means).all() and np.ptp(gaussians.means, axis=0).min() > 0


def test_what_comes_and_its_licenses_are_said_and_kept_beside_the_weights(released, hub, cache):
    folder, said = released
    assert f"{RELEASE} at {COMMITS[RELEASE]}: 3 files, 0.00 GB\n" in said
    assert "license: Stability AI Community License; for commercial use see https://stabil" in said
    assert "(its card says: community); https://huggingface.co/stabilityai/stable-video" in said
    assert said.endswith(f"wrote {folder / 'model'}\n") and "looked at" in said
    papers = {f"{SVD}/LICENSE.md", f"{SVD}/README.md", f"{RELEASE}/README.md"}
    kept = {f"licenses/{paper.partition('/')[2]}" for paper in papers}
    assert {name for name in all_files(folder) if not name.startswith("model/")} == {
        "manifest.json",
        *kept,
    }
    assert (folder / "licenses/stable-video-diffusion-img2vid/LICENSE.md").read_bytes()[:8] == (
        b"You may."
    )
    assert all_files(cache) == {f"weights/released/{name}" for name in all_files(folder)} | {
        "downloads/released.lock"
    }


def test_the_manifest_has_the_commits_and_hashes_that_the_weights_came_with(released, published):
    manifest = json.loads((released[0] / "manifest.json").read_text())["repositories"]
    assert {name: facts["commit"] for name, facts in manifest.items()} == {
        name: COMMITS[name] for name in (RELEASE, SVD)
    }
    assert manifest[RELEASE]["revision"] == "main"
    unet = published[RELEASE]["mv_model_unet.safetensors"]
    assert manifest[RELEASE]["files"] == {
        "mv_model_unet.safetensors": hashlib.sha256(unet).hexdigest(),
        "recon_model.safetensors": hashlib.sha256(
            published[RELEASE]["recon_model.safetensors"]
        ).hexdigest(),
        "README.md": f"git blob {git_blob(published[RELEASE]['README.md'])}",
    }
    assert set(manifest[SVD]["files"]) == {
        *("vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"),
        *("image_encoder/config.json", "image_encoder/model.fp16.safetensors"),
        *("LICENSE.md", "README.md"),
    }


def test_the_token_goes_to_the_hub_and_to_no_other_host(released, hub):
    assert hub.asked
    for where, _, authorization in hub.asked:
        own = where.startswith("127.0.0.1")
        assert authorization == (f"Bearer {TOKEN}" if own else None), where
    assert any(where.startswith("localhost") for where, _, _ in hub.asked)


def test_weights_that_are_there_are_not_fetched_again_nor_taken_for_others(released, hub, capsys):
    hub.asked.clear()
    assert "is there already; remove it to fetch again\n" in fetch(capsys, "released")
    same = fetch(capsys, "released", "--revision", COMMITS[RELEASE])
    assert "is there already" in same and hub.asked == []
    with pytest.raises(SystemExit) as stop:
        fetch(capsys, "released", "--revision", "v2")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert f"is of {RELEASE} at {COMMITS[RELEASE]}, not v2; remove that folder" in said


def test_svd_and_lgm_come_whole_to_train_from(
    hub, allowed, published, small, cache, capsys, monkeypatch
):
    sha256 = hashlib.sha256(hub.repositories[LGM].files[LGM_FILE]).hexdigest()
    monkeypatch.setitem(LGM_REPO.known, LGM_FILE, sha256)

    def convert(order):
        for network, stem in (("unet", "diffusion_pytorch_model"), ("image_encoder", "model")):
            path = f"{network}/{stem}.safetensors"  # Not of fp16.
            assert (order.folder / path).read_bytes() == published[SVD][path]
        assert order.lgm.read_bytes() == published[LGM][LGM_FILE]
        assert (order.variant, order.config) == ("fp32", small)
        order.out.mkdir()
        (order.out / "report.txt").write_text("")

    monkeypatch.setattr("o3d_jax.weights.hub.fetch.convert", convert)
    folder = cache / "weights" / "svd-lgm"
    said = fetch(capsys, "svd-lgm", "--config", small)
    assert said.endswith(f"wrote {folder / 'model'}\n") and f"{LGM} at {COMMITS[LGM]}: 2" in said
    assert set(json.loads((folder / "manifest.json").read_text())["repositories"]) == {SVD, LGM}


def test_a_training_starts_from_weights_by_their_name(toy, cache, monkeypatch, tmp_path):
    read = []

    def load(folder):
        read.append(folder)
        raise InputError("seen")

    monkeypatch.setattr(start, "load_model", load)
    (cache / "weights" / "svd-lgm" / "model").mkdir(parents=True)
    named = dataclasses.replace(toy.config, weights=Path("svd-lgm"), run_dir=tmp_path)
    with pytest.raises(InputError, match="seen"):
        start.start_weights(named, toy.networks, jax.random.key(0))
    assert read == [cache / "weights" / "svd-lgm" / "model"]


@pytest.mark.parametrize("layout", ["as the hub has it", "all in one folder"])
def test_files_on_disk_are_taken_without_a_hub(
    layout, published, unconverted, cache, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = tmp_path / "source"
    for name in (RELEASE, SVD):
        folder = source / name.rpartition("/")[2] if layout == "as the hub has it" else source
        for path, content in published[name].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    folder = cache / "weights" / "released"
    said = fetch(capsys, "released", "--from", source)
    assert said == f"looked at\nwrote {folder / 'model'}\n" and len(unconverted) == 1
    assert "licenses/stable-video-diffusion-img2vid/LICENSE.md" in all_files(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["repositories"] == {} and manifest["options"]["source"] == str(source)
