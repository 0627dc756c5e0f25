"""When a training run saves, evaluates, samples and stops.

A run of several processes must decide alike in all of them, or one waits for the others for ever.
`taken` is the number of steps taken so far, this one among them.
"""

import jax

from o3d_jax.config import TrainConfig
from o3d_jax.run.interruption import Interruption
from o3d_jax.steps.train import StepReport


def is_last(train: TrainConfig, taken: int) -> bool:
    """Returns whether training is done after so many steps."""
    return taken >= train.steps


def must_evaluate(train: TrainConfig, taken: int, stops: bool) -> bool:
    """Returns whether held-out objects are evaluated now: not by a run that is asked to stop."""
    return is_last(train, taken) or (taken % train.eval_every == 0 and not stops)


def must_sample(train: TrainConfig, taken: int) -> bool:
    """Returns whether an evaluation samples, too, which takes long."""
    every = train.sample_every
    return every == 0 or taken % every == 0 or is_last(train, taken)


def must_save(train: TrainConfig, taken: int, stops: bool) -> bool:
    """Returns whether a checkpoint is due: regularly, at the last step, and when asked to stop.

    An evaluation saves first, whatever this says (`train.py`).
    """
    return is_last(train, taken) or stops or taken % train.save_every == 0


class StopVote:
    """Whether any process was asked to end the run, on which all agree after the same step.

    Each gives its own answer along with a step's inputs, and the step returns whether any was yes.
    """

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption
        self._before: StepReport | None = None

    @property
    def own(self) -> bool:
        """What this process answers."""
        return self._interruption.requested

    def stops(self, report: StepReport) -> bool:
        """Returns whether the step of this report was the last.

        A process alone need not ask. Of several, each reads the report of the step before, which
        is there already: reading the newest would leave the device without work.
        """
        if jax.process_count() == 1:
            return self.own
        before, self._before = self._before, report
        return before is not None and bool(before.is_last)
