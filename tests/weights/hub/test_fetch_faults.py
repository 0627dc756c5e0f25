"""Whatever keeps weights from coming is one line, and the next run needs only what is missing."""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from o3d_jax.__main__ import main as o3d
from support.hub_server import COMMITS, LGM, RELEASE, SVD, TOKEN

UNET = "mv_model_unet.safetensors"
MOVED = "4" * 40

pytestmark = pytest.mark.usefixtures("cache")


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        o3d(["weights", "fetch", *map(str, arguments)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def completes(capsys, cache, *arguments):
    """That nothing of the weights is there, and that another run brings them."""
    assert not list((cache / "weights").glob("*"))
    o3d(["weights", "fetch", "released", *arguments])
    assert capsys.readouterr().out.endswith(f"wrote {cache / 'weights/released/model'}\n")
    assert not (cache / "downloads" / "released").exists()
    return True


# What comes is broken


def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    hub, allowed, impatient, unconverted, cache, capsys
):
    hub.cut[UNET] = [1000, 500, *[0] * 9]
    size = len(hub.repositories[RELEASE].files[UNET])
    said = refused(capsys, "released")
    assert f"{UNET} broke off after 1,500 of {size:,} bytes: " in said
    assert "; run the command again, and it goes on from there" in said
    before = hub.sent(f"{RELEASE}/{UNET}")
    assert before[:3] == [None, "bytes=1000-", "bytes=1500-"]
    hub.cut.clear()
    hub.asked.clear()
    assert completes(capsys, cache)
    assert hub.sent(f"{RELEASE}/{UNET}") == ["bytes=1500-"]
    assert hub.sent(f"{RELEASE}/README.md") == []  # It is there, whole.


def test_a_transfer_that_breaks_off_for_a_moment_does_not_end_the_command(
    hub, allowed, impatient, unconverted, cache, capsys
):
    hub.cut[UNET] = [700, 300]
    assert completes(capsys, cache)
    assert hub.sent(f"{RELEASE}/{UNET}") == [None, "bytes=700-", "bytes=1000-"]


@pytest.mark.parametrize(("file", "kind"), [(UNET, "SHA-256"), ("README.md", "git blob")])
def test_what_comes_with_another_hash_is_thrown_away(
    file, kind, hub, allowed, unconverted, cache, capsys
):
    hub.spoiled[file] = 1
    said = refused(capsys, "released")
    assert f"{file} of {RELEASE} came with {kind} " in said
    assert "it was thrown away: run the command again" in said
    assert not list(cache.rglob(f"*Ouroboros3D-SVD-LGM/*{file}*"))
    hub.asked.clear()
    assert completes(capsys, cache)
    assert hub.sent(f"{RELEASE}/{file}") == [None]


def test_a_part_that_is_longer_than_the_file_is_begun_anew(
    hub, allowed, unconverted, cache, capsys
):
    hub.spoiled["README.md"] = 1
    refused(capsys, "released")
    part = cache / "downloads/released/Ouroboros3D-SVD-LGM/.README.md.part"
    part.write_bytes(bytes(99))
    assert completes(capsys, cache)


# Who may read


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "(status 401); accept its license at {}, then make a token at "),
        ("hf_x", "(status 403); accept its license at {} with the account that your token is of"),
    ],
)
def test_a_gated_repository_is_told_by_both_addresses_before_large_files_come(
    token, said, hub, unconverted, cache, capsys, monkeypatch
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refused(capsys, "released")
    assert f"error: {SVD} is gated {said.format(f'https://huggingface.co/{SVD}')}" in error
    assert "make a token at https://huggingface.co/settings/tokens and give it by `hf auth" in error
    assert hub.sent(f"{RELEASE}/{UNET}") == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert completes(capsys, cache)


def test_a_token_that_the_hub_does_not_take_is_named(hub, allowed, capsys):
    hub.status = 403
    assert f"your token may not read {RELEASE} (status 403); make one" in refused(
        capsys, "released"
    )


# What is where


def test_a_file_that_was_moved_is_told_with_what_is_there(
    hub, allowed, unconverted, cache, capsys, published
):
    files = hub.repositories[RELEASE].files
    files["weights/unet.safetensors"] = files.pop(UNET)
    said = refused(capsys, "released")
    assert f"{RELEASE} at 111111111111 has no {UNET} or mv_model_unet.pth, but recon_mo" in said
    assert "weights/unet.safetensors; give the revision of a commit that has" in said
    files[UNET] = files.pop("weights/unet.safetensors")
    assert completes(capsys, cache)


def test_a_file_that_is_listed_and_gone_is_told(hub, allowed, unconverted, cache, capsys):
    hub.gone.add(UNET)
    said = refused(capsys, "released")
    assert f"{hub.address}/{RELEASE}/resolve/{COMMITS[RELEASE]}/{UNET} is not there any" in said
    hub.gone.clear()
    assert completes(capsys, cache)


def test_files_of_two_commits_never_come_together(
    hub, allowed, impatient, unconverted, cache, capsys
):
    hub.cut[UNET] = [1000, *[0] * 9]
    refused(capsys, "released")
    hub.cut.clear()
    hub.repositories[RELEASE].commit = MOVED
    said = refused(capsys, "released")
    folder = cache / "downloads/released"
    assert f"main of {RELEASE} is {MOVED} by now, and what is in {folder} is of {'1' * 40}" in said
    shutil.rmtree(folder)
    assert completes(capsys, cache)


def test_lgm_s_file_must_be_the_one_that_is_known(hub, allowed, small, capsys):
    said = refused(capsys, "svd-lgm", "--config", small)
    assert f"model_fp16_fixrot.safetensors of {LGM} is another file than it was" in said
    assert f"744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab; if you want it, ask for its commit: {COMMITS[LGM]}" in said  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda hub: hub.repositories.pop(RELEASE), f"there is no {RELEASE} at http://127"),
        (lambda hub: setattr(hub, "status", 503), "answered 503 for huanngzh"),
        (lambda hub: setattr(hub, "text", b"<html>Log in</html>"), "something else than a hub"),
        (lambda hub: setattr(hub, "text", b'{"siblings": []}'), "something else than a hub"),
    ],
)
def test_a_hub_that_does_not_have_it_or_is_none_is_told(spoil, said, hub, allowed, capsys):
    spoil(hub)
    assert said in refused(capsys, "released")


def test_a_revision_that_is_not_there_is_named(hub, allowed, capsys):
    said = refused(capsys, "released", "--svd-revision", "v9")
    assert f"{SVD} has no revision v9 at http://127.0.0.1" in said


# The way


def test_without_a_network_the_address_is_named(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    said = refused(capsys, "released")
    assert f"cannot reach http://127.0.0.1:9 for {RELEASE}: [Errno 111] Connection refused" in said
    assert "or get the files elsewhere and give their folder as --from" in said


def test_what_is_set_to_be_offline_asks_nobody(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "and HF_HUB_OFFLINE if they are set" in refused(capsys, "released")
    assert hub.asked == []


def test_hf_endpoint_is_where_the_command_asks(hub, tmp_path):
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "no-home")}
    done = subprocess.run(
        [sys.executable, "-m", "o3d_jax", "weights", "fetch", "released"],
        cwd=Path(__file__).parents[3],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith(f"error: {SVD} is gated (status 401)")
    assert done.stderr.count("\n") == 1 and f"{RELEASE} at {'1' * 40}: 3 files" in done.stdout


# The disk


def test_a_disk_without_enough_room_is_refused_before_anything_comes(
    hub, allowed, unconverted, cache, capsys, monkeypatch
):
    sizes = {
        path: len(content)
        for name in (RELEASE, SVD)
        for path, content in hub.repositories[name].files.items()
        if path not in ("sample.gif", "unet/config.json")
        and (name == RELEASE or "safetensors" not in path or "/" in path and ".fp16." in path)
        and not path.startswith("unet/")
    }
    readmes = len(hub.repositories[RELEASE].files["README.md"])  # Two, of one name.
    weights = sum(size for path, size in sizes.items() if path.endswith(".safetensors"))
    needed = sum(sizes.values()) + readmes + weights

    def leave(free):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    leave(needed - 1)
    said = refused(capsys, "released")
    assert " 0.00 GB are free in " in said and "or set XDG_CACHE_HOME to a folder on" in said
    assert not cache.exists() and not any("resolve" in where for where, _, _ in hub.asked)
    leave(needed)
    assert completes(capsys, cache)


def test_a_disk_that_fills_up_is_told_and_what_came_is_used(
    hub, allowed, unconverted, cache, capsys
):
    folder = cache / "downloads" / "released" / "Ouroboros3D-SVD-LGM"
    folder.mkdir(parents=True)
    (folder / f".{UNET}.part").symlink_to("/dev/full")
    said = refused(capsys, "released")
    assert f"{folder}/.{UNET}.part: No space left on device; make room" in said
    (folder / f".{UNET}.part").unlink()
    hub.asked.clear()
    assert completes(capsys, cache)
    assert hub.sent(f"{RELEASE}/README.md") == []


def test_two_processes_do_not_fetch_the_same(hub, allowed, cache, unconverted, capsys):
    (cache / "downloads").mkdir(parents=True)
    with (cache / "downloads" / "released.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert "another process is at work in" in refused(capsys, "released")
    assert completes(capsys, cache)


def test_what_a_killed_conversion_has_left_is_removed(hub, allowed, cache, unconverted, capsys):
    left = cache / "weights" / ".released-0123abcd"
    theirs = cache / "weights" / ".released-notes.md"  # As long a name, and not ours.
    (left / ".model-0123abcd").mkdir(parents=True)
    (left / ".model-0123abcd" / "checksum").write_text("half")
    theirs.mkdir()
    (theirs / "notes.txt").write_text("keep me")
    o3d(["weights", "fetch", "released"])
    assert not left.exists() and (theirs / "notes.txt").read_text() == "keep me"


# What has to be installed


def test_without_huggingface_hub_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "install huggingface_hub: pip install 'o3d-jax[hub]'" in refused(capsys, "released")


def test_torch_is_asked_for_before_files_come_that_need_it(
    hub, allowed, cache, capsys, monkeypatch
):
    files = hub.repositories[RELEASE].files
    files["mv_model_unet.pth"] = files.pop(UNET)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    said = refused(capsys, "released")
    assert "to read mv_model_unet.pth, install torch: pip install 'o3d-jax[convert]'" in said
    assert not cache.exists()


# What is asked for


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to fetch; give one of these first: released, svd-lgm"),
        (
            ["relased"],
            "cannot fetch 'relased'; give one of released, svd-lgm; the nearest is 'rele",
        ),
        (["released", "--variant", "fp8"], "fp8"),
        (["released", "--config", "relased"], "no config file relased; .* did you mean released?"),
        (["svd-lgm", "--lpips", "trunk", "lin"], "no file trunk; give LPIPS's two files, or leave"),
        (["released", "--from", "nowhere"], "nowhere holds none of mv_model_unet.pth"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(arguments, said, cache, capsys):
    assert re.search(said.replace("?", "[?]"), refused(capsys, *arguments))
    assert not list(cache.glob("weights/*"))


def test_weights_that_were_not_fetched_are_told_with_the_command(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        o3d(["sample", "--checkpoint", "released", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "fetch them by `o3d weights fetch released`" in said
