"""Seconds by stage, with a clock that tests turn."""

import time

import pytest

from o3d_jax.sampling import stages as stages_module
from o3d_jax.sampling.stages import Stages, seconds_since_start, seconds_table


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    turned = Clock()
    monkeypatch.setattr(stages_module, "time", turned)
    return turned


def test_the_first_level_has_what_programs_take_and_the_user_s_work_is_nobody_s(clock, capsys):
    def found():
        for took in (7.0, 1.0, 3.0):
            clock.now += took
            yield None

    stages = Stages({"start": 2.0, "model": 0.5})
    with stages.timed("sampling"):
        for _ in stages.watched(found(), 3):
            clock.now += 10  # What is done with a level, as keeping it.
    clock.now += 4
    assert stages.so_far() == {
        **{"start": 2.0, "model": 0.5, "sampling": 41.0},
        **{"level": 2.0, "programs": 5.0, "all": 47.5},
    }
    assert "sampling: 41.0 s" in capsys.readouterr().out


def test_of_one_level_alone_nobody_knows_what_its_programs_took(clock):
    stages = Stages({})
    assert list(stages.watched(iter([None]), 16, first=15)) == [None]
    assert set(stages.so_far()) == {"all"}


def test_the_table_has_the_stages_in_order_and_the_rest():
    seconds = {"turntable": 1.5, "sampling": 6.0, "start": 2.0, "level": 0.25, "all": 10.0}
    rows = [line.rsplit(maxsplit=2)[:2] for line in seconds_table(seconds).splitlines()]
    assert rows == [
        *(["start and imports", "2.00"], ["sampling", "6.00"], ["  each level, mean", "0.25"]),
        *(["turntable", "1.50"], ["rest", "0.50"], ["in all", "10.00"]),
    ]


def test_a_process_is_as_old_as_its_clock_says():
    before, since = seconds_since_start(), time.perf_counter()
    time.sleep(0.2)
    # The kernel counts its start in hundredths.
    assert abs(seconds_since_start() - before - (time.perf_counter() - since)) < 0.02
    assert before > 1  # What pytest took to import all this.
