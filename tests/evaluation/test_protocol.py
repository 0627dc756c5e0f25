"""Protocols: what they say is all checked when they are read, and hashed by what they mean."""

import dataclasses

import pytest

from o3d_jax.errors import InputError
from o3d_jax.evaluation.protocol import BUNDLED_PROTOCOLS, Protocol, read_protocol

SHORT = 'name = "mine"\nversion = 3\n'


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_bundled_default_is_that_of_the_code():
    """So that a file which leaves a field out means what the bundled one says."""
    assert read_protocol("orbits") == Protocol(name="orbits", version=1)


def test_bundled_protocols_carry_their_files_names():
    found = [path.stem for path in BUNDLED_PROTOCOLS.glob("*.toml")]
    assert len(found) >= 2
    assert [read_protocol(name).name for name in found] == found


def test_the_hash_is_of_values_not_of_the_file(write):
    plain = read_protocol(write(SHORT))
    spelled_out = read_protocol(write(f"# A comment.\n{SHORT}[sampling]\nseed = 0\n"))
    assert plain.sha256 == spelled_out.sha256
    assert read_protocol(write(f"{SHORT}[sampling]\nseed = 1\n")).sha256 != plain.sha256
    assert dataclasses.replace(plain, version=4).sha256 != plain.sha256


def test_a_file_of_names_is_read_into_the_protocol_and_its_hash(write, tmp_path):
    (tmp_path / "ids.txt").write_text("chair\n\n table \n")
    from_file = read_protocol(write(f'{SHORT}[objects]\nnames = "ids.txt"\n'))
    assert from_file.objects.names == ("chair", "table")
    listed = read_protocol(write(f'{SHORT}[objects]\nnames = ["chair", "table"]\n'))
    assert from_file.sha256 == listed.sha256
    (tmp_path / "ids.txt").write_text("chair\n")
    assert read_protocol(write(f'{SHORT}[objects]\nnames = "ids.txt"\n')).sha256 != listed.sha256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is no TOML file"),
        ('name = "x"', "version"),
        (f"{SHORT}[image]\nresolution = 64", "no field 'image'; the nearest is 'images'"),
        (f"{SHORT}[images]\nresolution = 8", "resolution 8 is no whole number of at least 16"),
        (f"{SHORT}[images]\nbackground = [0.0, 0.0, 0.0]", "models draw on white"),
        (f'{SHORT}[images]\nresize_filter = "box"', "'box' is none of area, bicubic"),
        (f"{SHORT}[metrics]\nssim_window = 10", "ssim_window 10 is not odd"),
        (f"{SHORT}[sampling]\nlevels = 1", "levels 1 is no whole number of at least 2"),
        (f"{SHORT}[views]\nframes = [2, 4]", "begins with 0"),
        (f"{SHORT}[objects]\norbits = [1, 1]", "without repetitions"),
        (f"{SHORT}[objects]\norbits = [-1]", "count from 0"),
        (f'{SHORT}[objects]\nnames = "none.txt"', "none.txt with names of objects"),
        (f'{SHORT}[objects]\nnames = "none.txt{"x" * 999}"', "File name too long"),
        (f"{SHORT}[intervals]\ncoverage = 1.0", "coverage 1.0"),
        (f'{SHORT}[metrics]\nssim_sigma = "1.5"', "ssim_sigma '1.5' is no float"),
        (f"{SHORT}seed = {'[' * 3000}", "is no TOML file"),
        (f"{SHORT}seed = {'9' * 5000}", "is no TOML file"),
    ],
)
def test_a_mistake_is_one_message_that_names_it(write, text, said):
    with pytest.raises(InputError) as error:
        read_protocol(write(text))
    assert said in str(error.value) and "mine.toml" in str(error.value) or "none.txt" in text


def test_a_file_of_names_that_is_no_text_is_refused(write, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"chair\n\xff\n")
    with pytest.raises(InputError, match=r"ids\.txt is no text in UTF-8"):
        read_protocol(write(f'{SHORT}[objects]\nnames = "ids.txt"\n'))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no protocol obits; .* orbits, table2"):
        read_protocol("obits")
