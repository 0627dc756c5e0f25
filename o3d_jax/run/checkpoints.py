"""What a training run resumes from: its state, several steps of it, and where its data were.

A checkpoint is a folder named by its step: `state` has the arrays (parameters, their average,
optimizer), `record` is JSON: the config, the data iterator's position, and what the arrays must be.
No key is kept, for none is needed: a step's random numbers follow from `config.seed` and the step's
number (`steps.train`), an orbit's first frame from the seed and its place in the order of data.

`run/schedule.py` says when one is written.

Orbax writes them behind training's back, whole or not at all, and deletes an old one only when the
new one is whole. A disk may still damage them later; `restore` then takes the one before.
"""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import threading
import time
import types
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError
from o3d_jax.files.full_disk import full_disk_named, threads_quiet_about_full_disk
from o3d_jax.run.fingerprints import fingerprints
from o3d_jax.types import Frozen, TrainState

FREE_FIELDS = (
    *("train.log_every", "train.eval_every", "train.save_every", "train.keep"),
    *(
        "train.eval_objects",
        "train.sample_every",
        "train.fsdp",
        "train.zero",
        "train.smallest_shared",
        "train.offload_optimizer",
    ),
    *("train.accumulate", "train.most_skipped", "train.trackers", "profile", "run_dir"),
    *("data.workers", "data.cache", "weights", "model.remat", "model.remat_keeps"),
    "model.vae_chunk",
)
"""Fields that may change between the parts of a run: how often, on how many devices, where."""

FREE_GROUPS = ("sample.", "launch.")
"""Groups of fields all of which may change between the parts of a run."""


class _Damaged(Exception):
    """A checkpoint cannot be used; the message says why."""


class _Loss(NamedTuple):
    """A damaged checkpoint."""

    step: int
    reason: str


@dataclasses.dataclass(frozen=True)
class _Record:
    """What is saved beside the arrays; all of it plain JSON values."""

    config: dict[str, Any]
    data: dict[str, Any]
    """The data iterator's position."""
    kinds: dict[str, str]
    """Shape and type of each array, by its path."""
    fingerprints: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, with a digest by which a changed byte is noticed."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain | {"digest": _text_digest(plain)}

    @staticmethod
    def from_json(values: Any) -> "_Record":
        """Returns the record again; raises a ValueError if it is not what was saved."""
        if not isinstance(values, dict):
            raise ValueError("its record is no group of fields")
        plain = {name: value for name, value in values.items() if name != "digest"}
        if values.get("digest") != _text_digest(plain):
            raise ValueError("its record is not what was saved")
        return _Record(**plain)


class RunCheckpoints:
    """The checkpoints of a training run in `folder`.

    With several processes all must call its methods, in the same order.
    """

    def __init__(self, folder: Path, config: Config, frozen: Frozen):
        """Opens the folder, or makes it.

        Raises:
            InputError: each process has a folder of its own there.
        """
        self.folder = folder.absolute()
        self.saved_with = to_dict(config) | {"frozen networks": _digest(frozen)}
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_shared(self.folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.train.keep,
            cleanup_tmp_directories=True,  # What a killed run had begun to write.
            lightweight_initialize=True,  # Else one damaged file keeps all from being opened.
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.lock = threading.RLock()
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(threads_quiet_about_full_disk())

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves a step unless it is saved; arrays are copied at once, and written later.

        May be called from another thread while the first is in here.

        Raises:
            OSError: the disk is full; it may come from the checkpoint before.
        """
        with self.lock, full_disk_named(self.folder):
            step = int(state.step)
            if step in self.manager.all_steps():
                return

            record = _Record(
                config=self.saved_with,
                data=data_state,
                kinds=_kinds(state),
                fingerprints=fingerprints(state),
            )
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    record=ocp.args.JsonSave(record.to_json()),  # pyright: ignore[reportCallIssue]
                ),
            )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the newest state that is whole, and the data's position; None if there is none.

        Arrays are placed as those of `like`, on whatever devices they were written. A newer but
        damaged checkpoint is warned of and moved aside, so that its step can be saved again.

        Raises:
            InputError: the run was made by another config (the fields that differ are named), or
                all checkpoints are damaged.
        """
        lost: list[_Loss] = []
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = self._read(step, like)
            except _Damaged as damage:
                lost.append(_Loss(step, str(damage)))
                continue
            self._move_aside(lost, step)
            return found

        if lost:
            raise InputError(
                f"all {len(lost)} checkpoints in {self.folder} are damaged, the newest, "
                f"{lost[0].step}: {lost[0].reason}; restore one from a copy, or start anew under "
                "another --name"
            )
        return None

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
            OSError: the disk is full.
        """
        with self.lock, full_disk_named(self.folder):
            self.manager.wait_until_finished()

    def save_now(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves a step unless it is saved, and waits until all is written.

        Raises:
            OSError: the disk is full.
        """
        with self.lock:
            self.save(state, data_state)
            self.wait()

    def close(self) -> None:
        """Waits until all is written; nothing can be saved any more."""
        with self.lock, self._quiet:
            self.wait()
            self.manager.close()

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns a state and a position; raises _Damaged, in all processes alike.

        It does not go by way of the manager, which makes all processes wait for one that could not
        read.
        """
        folder: Any = self.folder / str(step)  # Orbax asks for a Path of its own.
        with _Reading():
            record = _Record.from_json(ocp.JsonCheckpointHandler().restore(folder / "record"))
        _check_same_run(record.config, self.saved_with, self.folder)
        _check_same_arrays(record.kinds, _kinds(like), folder)
        with _Reading():
            arguments = ocp.args.StandardRestore(like)  # pyright: ignore[reportCallIssue]
            try:
                state = ocp.StandardCheckpointHandler().restore(folder / "state", args=arguments)
            except ValueError as error:  # Also where all arrays are the same, but not what is None.
                if "tree structures do not match" in str(error):
                    raise _another_version(folder, "what is in the state differs") from error
                raise
        with _Reading():
            _check_values(fingerprints(state), record.fingerprints)
        return state, record.data

    def _move_aside(self, lost: Iterable[_Loss], step: int) -> None:
        for loss in lost:
            folder = self.folder / str(loss.step)
            aside = folder.with_name(f"{loss.step}.damaged")
            count = 1
            while aside.exists():
                count += 1
                aside = folder.with_name(f"{loss.step}.damaged-{count}")
            _wait_for_all(f"{loss.step} is to be moved")  # All have looked whether it exists.
            if jax.process_index() == 0:
                folder.rename(aside)
            _wait_for_all(f"{loss.step} is moved")
            warnings.warn(
                f"checkpoint {folder} is damaged: {loss.reason}; it is {aside.name} now, and "
                f"training goes on from step {step}",
                stacklevel=3,
            )
        self.manager.reload()


class _Reading:
    """Turns what damaged files raise into `_Damaged`, in all processes if in one.

    By the time arrays are read, the record has shown that they are those of this run. So where
    orbax does not find its way, the files are at fault. Which errors it then raises was found by
    damaging each of its files, in all ways that came to mind and some hundred times at random.
    """

    KINDS = (FileNotFoundError, KeyError, AttributeError, TypeError, ValueError)
    NOT_THE_FILE = ("PERMISSION_DENIED", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
    """How TensorStore's complaints about other things begin."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if type(error) is Exception:  # Orbax wraps in one what TensorStore says of an array.
            error = error.__cause__ or error
        is_damage = isinstance(error, self.KINDS)
        if error is not None and not (is_damage and not str(error).startswith(self.NOT_THE_FILE)):
            return
        if _anywhere(is_damage):
            said = "another process cannot read it" if error is None else _first_line(error)
            raise _Damaged(said) from error


def _first_line(error: BaseException) -> str:
    line = str(error).partition("\n")[0]
    return line if len(line) < 200 else f"{line[:200]} ..."


def _anywhere(fact: bool) -> bool:
    """Returns whether it is so in any process; all must ask."""
    if jax.process_count() == 1:
        return fact
    return bool(np.any(multihost_utils.process_allgather(np.asarray(fact))))


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _check_shared(folder: Path) -> None:
    """Raises an InputError unless all processes see the same folder.

    Else each would wait for the others' parts of a checkpoint, which are elsewhere.
    """
    if jax.process_count() == 1:
        return

    # Process 0 writes a number of this run there, and all look whether they find it.
    mine = np.frombuffer(secrets.token_bytes(4), np.uint32)
    token = str(multihost_utils.broadcast_one_to_all(mine)[0])
    path = folder / "shared-by-all-processes"
    if jax.process_index() == 0:
        path.write_text(token)
    _wait_for_all(f"{path.name} is written")
    end = time.monotonic() + 5  # A network's folder may show it late.
    while not (seen := path.is_file() and path.read_text() == token) and time.monotonic() < end:
        time.sleep(0.2)

    missing = _anywhere(not seen)
    if jax.process_index() == 0:
        path.unlink()
    if missing:
        raise InputError(
            f"{folder} is another folder on other hosts; give a --run-dir that all of them share"
        )


def _text_digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(frozen: Frozen) -> str:
    """Returns a digest of all values: with another VAE a run would go on with other latents."""
    digest = hashlib.blake2b(digest_size=16)
    for array in jax.tree.leaves(frozen):
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def _kinds(state: TrainState) -> dict[str, str]:
    """Returns types and shapes, as "float32 (3, 5)", by the arrays' paths."""
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): f"{a.dtype} {tuple(a.shape)}" for path, a in flat}


def _check_same_arrays(saved: dict[str, str], wanted: dict[str, str], folder: Path) -> None:
    """Raises an InputError unless arrays are of the same types and shapes.

    The config is the same, but the program may be another version of itself.
    """
    wrong = [
        f"state{name}: {saved.get(name, 'nothing')} there, {wanted.get(name, 'nothing')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        raise _another_version(folder, f"{len(wrong)} arrays differ, {'; '.join(wrong[:3])}")


def _another_version(folder: Path, how: str) -> InputError:
    return InputError(
        f"{folder} was written by another version of this program: {how}; go on with that version, "
        "or start anew under another --name"
    )


def _check_values(found: dict[str, int], saved: dict[str, int]) -> None:
    wrong = [name for name, value in found.items() if value != saved[name]]
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"state{wrong[0]}{others} is not what was saved")


def _check_same_run(saved: dict, wanted: dict, folder: Path) -> None:
    """Raises an InputError unless the config is the same, but for what may change in a run.

    With the cosine schedule the number of steps may not: each step's rate depends on it.
    """

    def flat(values: dict, prefix: str = "") -> dict[str, Any]:
        rows = {}
        for name, value in values.items():
            nested = isinstance(value, dict)
            rows.update(flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
        return rows

    # What an older version's config lacks came later, and is off by default: the run had that. What
    # it has more shows as a difference.
    is_cosine = wanted["optim"]["schedule"] == "cosine"
    free = FREE_FIELDS if is_cosine else (*FREE_FIELDS, "train.steps")
    defaults = flat(to_dict(Config(name=wanted["name"])))
    have, want = defaults | flat(saved), flat(wanted)
    wrong = [
        f"{name} {have.get(name)!r} there, {want.get(name)!r} here"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
        and name not in free
        and not name.startswith(FREE_GROUPS)
    ]
    if wrong:
        raise InputError(
            f"{folder} is a run of another config ({'; '.join(wrong[:3])}); choose another name "
            "or run_dir, or the same values"
        )
