"""Every cache is optional: where it cannot be, it is elsewhere or nowhere, and a line says so."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from o3d_jax import caches
from o3d_jax.caches import cache_folder
from o3d_jax.cli import use_compilation_cache

ROOT = Path(__file__).parents[1]
NOWHERE = "/dev/null/home"
"""Nobody can make a folder there, not even root."""


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """The folder for temporary files, and no decision of before."""
    caches._cache_folder.cache_clear()
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield folder
    caches._cache_folder.cache_clear()


def test_a_cache_is_in_the_user_s_folder_and_nothing_is_said(temporary, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(temporary))
    assert cache_folder("a") == temporary / ".cache" / "o3d_jax" / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary / "xdg"))
    assert cache_folder("b") == temporary / "xdg" / "o3d_jax" / "b"
    assert cache_folder("c", temporary / "chosen") == temporary / "chosen"
    assert cache_folder("c", Path(NOWHERE)) == temporary / "xdg" / "o3d_jax" / "c"
    assert len(caplog.messages) == 1 and f"since {NOWHERE} is full or" in caplog.text


@pytest.mark.parametrize("home", [NOWHERE, None])
def test_without_a_home_it_is_among_temporary_files_and_said_once(
    temporary, monkeypatch, caplog, home
):
    monkeypatch.setenv("HOME", home or "")
    if home is None:  # An unknown user's.
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for _ in range(2):
        place = cache_folder("a")
    assert place == temporary / f"o3d_jax-{os.getuid()}" / "a" and place.is_dir()
    assert place.parent.stat().st_mode & 0o777 == 0o700
    (line,) = caplog.messages
    assert str(place) in line and ("there is no home" if home is None else NOWHERE) in line


@pytest.mark.parametrize("kind", ["of all", "a link", "a file", "no temporary files", "full"])
def test_a_folder_that_others_may_write_to_is_no_cache(temporary, monkeypatch, caplog, kind):
    """What is read from a cache is executed."""
    monkeypatch.setenv("HOME", NOWHERE)
    own = temporary / f"o3d_jax-{os.getuid()}"
    if kind == "of all":
        own.mkdir()
        own.chmod(0o777)
    elif kind == "a link":
        own.symlink_to(temporary, target_is_directory=True)
    elif kind == "a file":
        own.write_text("")
    elif kind == "full":
        monkeypatch.setattr(caches, "LEAST_ROOM", 2**70)
    else:
        monkeypatch.setattr("tempfile.tempdir", NOWHERE)
    assert cache_folder("a") is None
    assert len(caplog.messages) == 1 and "set XDG_CACHE_HOME to a folder" in caplog.text


@pytest.mark.parametrize("has_temporary", [True, False])
def test_compiled_programs_are_kept_where_they_can_be(temporary, monkeypatch, has_temporary):
    monkeypatch.setenv("HOME", NOWHERE)
    if not has_temporary:
        monkeypatch.setattr("tempfile.tempdir", NOWHERE)
    before = jax.config.jax_compilation_cache_dir
    try:
        for chosen in (None, NOWHERE):
            jax.config.update("jax_compilation_cache_dir", chosen)
            use_compilation_cache()
            expected = str(temporary / f"o3d_jax-{os.getuid()}" / "xla") if has_temporary else None
            assert jax.config.jax_compilation_cache_dir == expected
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


PROGRAM = """
from o3d_jax.data.compiled import inlined, kernel

@inlined
def twice(x):
    return 2 * x

@kernel
def after(x):
    return twice(x) + 1

assert after(3) == 7
"""


@pytest.mark.parametrize("place", ["beside", "home", "tmp", "chosen", "none"])
def test_numba_compiles_wherever_its_cache_can_be(tmp_path, place):
    """Numba itself ends with "no locator available", or makes a folder called ~."""
    source = tmp_path / "program" / "program.py"
    source.parent.mkdir()
    source.write_text(PROGRAM)
    if place != "beside":  # As read-only as root can have it.
        (source.parent / "__pycache__").write_text("")
    folders = {name: tmp_path / name for name in ("home", "tmp", "chosen")}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"},
        "PYTHONPATH": str(ROOT),
        "HOME": str(folders["home"]) if place == "home" else NOWHERE,
        "TMPDIR": str(folders["tmp"]) if place == "tmp" else NOWHERE,
        "NUMBA_CACHE_DIR": str(folders["chosen"]) if place == "chosen" else "",
    }
    # Where TMPDIR is none, Python takes /tmp and others; one of these would do.
    keep = "import tempfile; tempfile.tempdir = __import__('os').environ['TMPDIR']; "
    command = [sys.executable, "-c", keep + f"import runpy; runpy.run_path({str(source)!r})"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == {"beside": 0, "chosen": 0, "tmp": 1, "home": 0, "none": 1}[place], lines
    kept = {name for name, folder in folders.items() if list(folder.rglob("*.nbi"))}
    assert kept == {place} - {"beside", "none"}
    assert bool(list(source.parent.rglob("*.nbi"))) == (place == "beside")
    assert not (tmp_path / "~").exists()
