"""Trains Ouroboros3D (Algorithm 1): `python train.py configs/nano.py [--optim.learning-rate 3e-4]`.

Read top to bottom: config, mesh, data, state, loop.
"""

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.io.checkpoint import Weights, save_model
from o3d_jax.io.interruption import Interruption
from o3d_jax.io.run_checkpoints import RunCheckpoints
from o3d_jax.io.runlog import RunLog
from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel import make_mesh, place_batch, place_state
from o3d_jax.steps.train import draw_coin, init_state, make_optimizer, train_step
from o3d_jax.tools.cli import read_config, use_compilation_cache
from o3d_jax.tools.evaluation_sheet import evaluation_sheet
from o3d_jax.tools.start import start_weights
from o3d_jax.types import TrainState


def train(config: Config) -> None:
    """Runs training to its last step, from the newest checkpoint if there is one.

    Asked by a signal to end, it saves and ends before; by Ctrl-C, with SystemExit.
    """
    with Interruption(tqdm.write, alone=jax.process_count() == 1) as interruption:
        _train(config, interruption)
    if interruption.status:
        raise SystemExit(interruption.status)


def _train(config: Config, interruption: Interruption) -> None:
    starting = contextlib.ExitStack()  # To the end of the first step, which compiles its program.
    starting.enter_context(interruption.unattended(None))
    folder = config.run_dir / config.name
    mesh = make_mesh(config.train.fsdp, config.train.batch_size)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = iter(training_batches(config, **process))
    networks = build_networks(config.model, lpips=config.optim.lpips_loss)
    weights = start_weights(config, networks)
    optimizer = make_optimizer(config.optim, config.train.steps)
    state = place_state(mesh, init_state(weights.params, optimizer))
    frozen = place_state(mesh, weights.frozen)

    checkpoints = RunCheckpoints(folder / "checkpoints", config, weights.frozen)
    restored = checkpoints.restore(state)
    log = RunLog(folder, config, state.params, frozen)
    if restored is not None:
        state, position = restored
        batches.set_state(position)
        log.say(f"resumed at step {int(state.step)}")
    log.rewind(int(state.step))  # To 0 where a run was killed before its first checkpoint.
    heldout = heldout_batch(config, config.train.eval_objects)

    _, key = jax.random.split(jax.random.key(config.seed))  # The first is start_weights'.
    first = int(state.step)
    progress = tqdm(range(first, config.train.steps), initial=first, total=config.train.steps)
    for step in progress:
        batch = place_batch(mesh, next(batches))
        state, report = train_step(
            state,
            frozen,
            batch,
            key,
            use_feedback=draw_coin(config, step),
            networks=networks,
            config=config,
            optimizer=optimizer,
            mesh=mesh,
        )
        starting.close()
        log.record(step + 1, report.terms, report.gradient_norm)
        last = step + 1 == config.train.steps
        position = batches.get_state()
        if last or (step + 1) % config.train.eval_every == 0:
            with interruption.unattended(functools.partial(_save, checkpoints, state, position)):
                log.image(step + 1, evaluation_sheet(networks, config, state.ema, frozen, heldout))
        if last or (step + 1) % config.train.save_every == 0 or interruption.requested:
            checkpoints.save(state, position)
        if interruption.requested:
            break
    starting.close()
    checkpoints.close()
    if interruption.requested:
        log.say(f"{interruption.name}: saved step {int(state.step)}; the same command goes on")
        log.close()
        return
    with interruption.unattended(None):  # The last state is saved: the same command writes anew.
        save_model(folder / "model", config, Weights(params=state.ema, frozen=frozen))
    log.say(f"done: python sample.py IMAGE --checkpoint {folder / 'model'}")
    log.close()


def _save(checkpoints: RunCheckpoints, state: TrainState, position: dict[str, Any]) -> None:
    checkpoints.save(state, position)
    checkpoints.wait()


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise InputError("no config file; give one first, as `python train.py configs/nano.py`")
    config = read_config(Path(sys.argv[1]), sys.argv[2:])
    use_compilation_cache()
    train(config)


if __name__ == "__main__":
    main()
