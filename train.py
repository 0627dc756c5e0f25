"""Trains Ouroboros3D (Algorithm 1): `python train.py configs/nano.py [--optim.learning-rate 3e-4]`.

Read top to bottom: config, mesh, data, state, loop.
"""

import sys
import time
from pathlib import Path

import jax
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.io.banner import Setting, banner
from o3d_jax.io.checkpoint import RunCheckpoints, Weights, save_model
from o3d_jax.io.runlog import RunLog
from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel import make_mesh, place_batch, place_state
from o3d_jax.steps.train import draw_coin, init_state, make_optimizer, train_step
from o3d_jax.tools.cli import explained_config, use_compilation_cache
from o3d_jax.tools.evaluation_sheet import evaluation_sheet
from o3d_jax.tools.flops import train_step_flops
from o3d_jax.tools.start import start_weights


def train(config: Config, settings: tuple[Setting, ...] = ()) -> None:
    """Runs training to its last step, from the newest checkpoint if there is one."""
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
    if restored is not None:
        state, position = restored
        batches.set_state(position)
    first = int(state.step)
    _, key = jax.random.split(jax.random.key(config.seed))  # The first is start_weights'.
    flops = train_step_flops(config, networks).total

    with RunLog(folder, config, first, step_flops=flops) as log:
        log.banner(banner(config, mesh, state.params, frozen, settings=settings))
        if restored is not None:
            log.say(f"resumed at step {first}")
        heldout = heldout_batch(config, config.train.eval_objects)
        log.start()
        progress = tqdm(range(first, config.train.steps), initial=first, total=config.train.steps)
        for step in progress:
            log.begin_step(step)
            asked = time.perf_counter()
            local_batch = next(batches)
            waited = time.perf_counter() - asked
            state, report = train_step(
                state,
                frozen,
                place_batch(mesh, local_batch),
                key,
                use_feedback=draw_coin(config, step),
                networks=networks,
                config=config,
                optimizer=optimizer,
                mesh=mesh,
            )
            log.record(step + 1, report, (), waited)
            last = step + 1 == config.train.steps
            if last or (step + 1) % config.train.eval_every == 0:
                with log.paused():
                    sheet = evaluation_sheet(networks, config, state.ema, frozen, heldout)
                    log.image(step + 1, sheet)
            if last or (step + 1) % config.train.save_every == 0:
                with log.paused():
                    checkpoints.save(state, batches.get_state())
        checkpoints.close()
        save_model(folder / "model", config, Weights(params=state.ema, frozen=frozen))
        log.say(f"done: python sample.py IMAGE --checkpoint {folder / 'model'}")


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise InputError("no config file; give one first, as `python train.py configs/nano.py`")
    config, settings = explained_config(Path(sys.argv[1]), sys.argv[2:])
    use_compilation_cache()
    train(config, settings)


if __name__ == "__main__":
    main()
