"""THE loop: mesh, data, method, state, restore; then step, log, evaluate, refresh, checkpoint. Every run of every paper is this file.

    ssljax train --config configs/simclr.py:digits --workdir runs/digits [--config.optim.learning_rate=0.1] [--profile 5]

The same command after an interruption of any kind goes on from the last checkpoint and ends with bit-identical parameters.
`--profile N` records N steps for TensorBoard and XProf into <workdir>/profile and prints what they were spent on.
"""

from __future__ import annotations

import functools
import os
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssljax import cli, hosts, monitor, optim, profile, sharding
from ssljax.checkpoint import Checkpoints, load_part
from ssljax.data import loader, sources
from ssljax.data.sources import Source
from ssljax.methods import METHODS
from ssljax.protocols.features import Encode, Features, extract
from ssljax.protocols.knn import knn
from ssljax.refresh import Run
from ssljax.run_folder import RunFolder
from ssljax.step import make_train_step
from ssljax.types import Method, Pytree, TrainState

ONLINE_IMAGES = 2000      # kNN while training looks at no more than so many training and so many held-out images
AHEAD = 2                 # batches on their way to the devices


class Program(NamedTuple):
    """A config made executable: built once, run for any seed.

    Attributes:
        config: the stage's config, `data.num_classes` filled in.
        method: the paper's pure functions.
        tx: the optimizer.
        schedule: step -> learning rate.
        mesh: over all devices.
        shapes: a TrainState of shapes, dtypes and shardings.
        init: seed -> TrainState on the mesh.
        step: (state, batch, key) -> (state, metrics), jitted, donates the state.
        encode: (params, model_state, extra, image) -> features, jitted.
        total_steps: optimizer updates of the whole run.
        steps_per_epoch: whole batches in an epoch.
    """

    config: ConfigDict
    method: Method
    tx: optax.GradientTransformation
    schedule: optim.Schedule
    mesh: Mesh
    shapes: TrainState
    init: Callable[[int], TrainState]
    step: Callable[[TrainState, Pytree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    encode: Callable[..., jax.Array]
    total_steps: int
    steps_per_epoch: int


def build(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> Program:
    """Puts a config's pieces together; compiles nothing yet.

    Args:
        config: one stage.
        source: its training split; only its size and classes are looked at.
        mesh: the devices; None takes all.

    Raises:
        ValueError: an unknown method, a batch that the data or the devices do not fill or divide.
    """
    if config.method not in METHODS:
        raise ValueError(f"method={config.method!r} is not one of {', '.join(METHODS)}")
    config = with_examples(with_ids(with_classes(config, source.num_classes), source.num_ids), len(source))
    mesh = mesh or sharding.make_mesh(fsdp=config.sharding.fsdp)
    sharding.check_batch(mesh, config.batch_size, config.accumulate)
    steps_per_epoch = loader.steps_per_epoch(len(source), config.batch_size)
    total_steps = optim.train_steps(len(source), config.epochs, config.batch_size)
    method = METHODS[config.method](config)
    tx, schedule = optim.make_optimizer(config.optim, batch_size=config.batch_size, steps_per_epoch=len(source) / config.batch_size,
                                        total_steps=total_steps)

    def new_state(key: jax.Array) -> TrainState:
        params, model_state, extra = method.init(key, {})
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=tx.init(params), extra=extra)

    shapes = jax.eval_shape(new_state, jax.random.key(0))
    layout, split = sharding.state_sharding(mesh, shapes), sharding.batch_sharding(mesh)
    shapes = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, layout)
    init = jax.jit(new_state, out_shardings=layout)
    step = jax.jit(sharding.on_mesh(mesh, make_train_step(method, tx, config.accumulate)), in_shardings=(layout, split, None),
                   out_shardings=(layout, None), donate_argnums=0)
    return Program(config=config, method=method, tx=tx, schedule=schedule, mesh=mesh, shapes=shapes,
                   init=lambda seed: init(jax.random.key(seed)), step=step, encode=jax.jit(method.encode), total_steps=total_steps,
                   steps_per_epoch=steps_per_epoch)


def with_classes(config: ConfigDict, found: int) -> ConfigDict:
    """The config with `data.num_classes` read from the data where it says 0.

    Raises:
        ValueError: the config and the data disagree.
    """
    stated = config.data.num_classes
    if stated and stated != found:
        raise ValueError(f"data.num_classes={stated}, but {config.data.source} has {found} classes: set it to {found}, or to 0 to read it "
                         "from the data")
    config = config.copy_and_resolve_references()                # ConfigDict(config) would share its sections
    with config.unlocked():
        config.data.num_classes = found
    return config.lock()


def with_ids(config: ConfigDict, found: int) -> ConfigDict:
    """The config with `data.num_ids`: how many ids images have, gaps included."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_ids = found
    return config.lock()


def with_examples(config: ConfigDict, found: int) -> ConfigDict:
    """The config with `data.num_examples` read from the data where it says 0."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_examples = config.data.num_examples or found
    return config.lock()


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of a run with another seed; the program is the same."""
    config = config.copy_and_resolve_references()                # ConfigDict(config) would share its sections
    with config.unlocked():
        config.seed = seed
    return config


def device_batches(program: Program, source: Source, seed: int, start_step: int, balance: np.ndarray | None = None) -> Iterator[Pytree]:
    """The training stream as global arrays, AHEAD batches in flight; `balance` as in `loader.train_batches`."""
    split = sharding.batch_sharding(program.mesh)
    host = loader.train_batches(source, with_seed(program.config, seed), start_step=start_step, process_index=jax.process_index(),
                                process_count=jax.process_count(), balance=balance)
    flying: deque[Pytree] = deque()
    for batch in host:
        flying.append(sharding.put_batch(batch, split))
        if len(flying) > AHEAD:
            yield flying.popleft()


def balance(program: Program, source: Source, state: TrainState) -> np.ndarray | None:
    """What epochs are to be balanced over, int32 [N] by position, on every host; None where the method asks for nothing."""
    if program.method.balance is None:
        return None
    return np.asarray(jax.device_put(program.method.balance(state.extra), sharding.whole(program.mesh)))[source.index]


def refreshed(program: Program, source: Source, state: TrainState, seed: int, folder: RunFolder | None) -> TrainState:
    """The state after the method's refresh; what that finds is logged at the state's step."""
    step = int(state.step)
    log = functools.partial(folder.log_refresh if folder else monitor.check_finite, step)
    run = Run(program, source, seed, log, lambda: device_batches(program, source, seed, 0))
    return program.method.refresh(state, run)


def fit(program: Program, source: Source, *, seed: int, folder: RunFolder | None = None, test: Source | None = None,
        start: Callable[[TrainState], TrainState] = lambda state: state) -> TrainState:
    """Trains to the end and returns the final state.

    The order within a step: update, log, evaluate, refresh, checkpoint. A method that refreshes also does so before the first step: a
    checkpoint holds what was found, so a resumed run does not look again. It does not where less than an epoch is left to learn from it.

    Args:
        program: from `build`.
        source: the training split.
        seed: of the initialisation, the sampling order and every draw.
        folder: where to log and checkpoint; None writes and prints nothing.
        test: the held-out split, for kNN while training.
        start: puts an earlier stage's weights into a fresh state; not called on resume.

    Raises:
        monitor.NotFinite: a metric is NaN or infinite.
        SystemExit: (code 0) after a SIGTERM, with a checkpoint written.
    """
    config, total, spe = program.config, program.total_steps, program.steps_per_epoch
    state = folder.restore(program.shapes) if folder else None
    if state is None:
        state = start(program.init(seed))
        state = state if program.method.refresh is None else refreshed(program, source, state, seed, folder)
    key, batches = jax.random.key(seed), device_batches(program, source, seed, int(state.step), balance(program, source, state))
    for step in range(int(state.step) + 1, total + 1):
        asked = time.perf_counter()
        batch = next(batches)
        starved = time.perf_counter() - asked if state.step.is_ready() else 0.0          # the devices had nothing else to do
        state, metrics = program.step(state, batch, key)
        last = step == total
        if folder is not None:
            folder.tick(step, total, starved)
            if step % config.log_every == 0 or last:
                folder.log(step, total, spe, {**fetched(step, metrics), "learning_rate": float(program.schedule(step - 1))})
            if test is not None and config.eval_every_epochs and (last or step % (config.eval_every_epochs * spe) == 0):
                folder.log_knn(step, online_knn(program, state, source, test))
        if step % spe == 0 and program.method.refresh is not None and total - step >= spe:
            state = refreshed(program, source, state, seed, folder)
            if program.method.balance is not None:                 # the batches on their way were drawn from the old clusters
                batches.close()
                batches = device_batches(program, source, seed, step, balance(program, source, state))
        stop = folder is not None and folder.stop_asked()
        if folder is not None and (last or step % config.checkpoint.every_steps == 0 or stop):
            folder.save(state, fetched(step, metrics))
            if stop and not last:
                raise SystemExit(0)                # whoever opened the folder closes it, which waits for the checkpoint
        elif last:
            fetched(step, metrics)
    batches.close()
    return state


def fetched(step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
    """The metrics on the host, once they are known to be finite."""
    host = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if host.get("effective_rank") == 0.0:          # measured at the logged steps only; a measured rank is at least 1
        del host["effective_rank"]
    monitor.check_finite(step, host)
    return host


def encoded(encode: Encode, program: Program, source: Source) -> Features:
    """Features of a split, each batch spread over the devices of all hosts."""
    rows, devices = sharding.batch_sharding(program.mesh), program.mesh.devices.size
    batch_size = -(-program.config.evaluate.batch_size // devices) * devices

    def spread(image: np.ndarray) -> jax.Array:
        features = encode(jax.make_array_from_callback(image.shape, rows, lambda part: image[part]))
        return jax.device_put(features, sharding.whole(program.mesh))              # every host gets all rows
    return extract(spread, loader.eval_batches(source, program.config, batch_size=batch_size))


def online_knn(program: Program, state: TrainState, source: Source, test: Source) -> float:
    """Held-out kNN top-1 in percent, on at most ONLINE_IMAGES evenly spaced images of each split."""
    config = program.config

    encode = functools.partial(program.encode, state.params, state.model_state, state.extra)

    def features(split: Source) -> tuple[np.ndarray, np.ndarray]:
        rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), ONLINE_IMAGES)).astype(np.int64))
        return encoded(encode, program, split.select(rows))[:2]
    return knn(*features(source), *features(test), k=config.evaluate.knn_k, temperature=config.evaluate.knn_temperature,
               num_classes=config.data.num_classes)["top1"]


def restore(program: Program, workdir: str) -> TrainState:
    """The state of a run's newest checkpoint: the last epoch, never the best over the test split.

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(program.shapes)
    checkpoints.close()
    if state is None:
        raise FileNotFoundError(f"no checkpoint in {workdir}: run `ssljax train` with the same --config and --workdir first")
    return state


def start_from(program: Program, earlier: Mapping[str, str]) -> Callable[[TrainState], TrainState]:
    """What puts the weights of earlier runs into a fresh state: the method's `adopt`, or else `init_branches` of `config.init_from`.

    Args:
        program: of the new run.
        earlier: folders of the stages before it, by name; other names are folders themselves.
    """
    def load(run: str, like: Pytree, part: str, resize: Mapping[str, Callable] = types.MappingProxyType({})) -> Pytree:
        return load_part(earlier.get(run, run), like, part, resize)

    def branches(state: TrainState) -> TrainState:
        """Running statistics included."""
        donor = program.config.init_from
        if not donor:
            return state
        taken = [name for name in state.params if name in program.config.init_branches]
        params = {name: load(donor, state.params[name], f"params/{name}") for name in taken}
        statistics = {name: load(donor, state.model_state[name], f"model_state/{name}") for name in state.model_state if name in taken}
        return state.replace(params=state.params | params, model_state=state.model_state | statistics)

    return branches if program.method.adopt is None else lambda state: program.method.adopt(state, load)


def run_stage(config: ConfigDict, workdir: str, earlier: dict[str, str], *, profile_steps: int = 0) -> None:
    """One complete run of the loop, resumed if it was begun and left alone if it was finished.

    Args:
        config: of this stage.
        workdir: of this stage.
        earlier: folders of the stages before it, by name, for `init_from`.
        profile_steps: record so many steps into `workdir/profile`, from the tenth on; 0 = none.
    """
    source, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    program = build(config, source)

    with RunFolder(workdir, config) as folder:
        if profile_steps:
            program = program._replace(step=profile.recorded(program.step, profile_steps, workdir, left=program.total_steps))
        fit(program, source, seed=config.seed, folder=folder, test=test, start=start_from(program, earlier))


def stages(config: ConfigDict, workdir: str) -> list[tuple[str, ConfigDict, str]]:
    """(name, config, folder) of every stage; a config without stages is one, in workdir itself."""
    if "stages" not in config:
        return [("", config, workdir)]
    return [(name, config[name], os.path.join(workdir, name)) for name in config.stages]


def use_compilation_cache(workdir: str) -> None:
    """Compiled programs outlive the process, beside the run's folder: a second start of the same config compiles nothing.

    Not on several CPU devices: there a program out of the cache starts its collectives in any order and waits for ever (jaxlib 0.10.2).
    """
    if jax.default_backend() == "cpu" and sharding.make_mesh().devices.size > 1:
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.join(os.path.dirname(workdir.rstrip("/")) or ".", ".xla_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(argv: list[str] | None = None) -> None:
    """`ssljax train`."""
    flags = cli.parse("train", argv, profile=0, **hosts.FLAGS)
    earlier: dict[str, str] = {}
    with hosts.together("train", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        for name, config, folder in stages(flags.config, flags.workdir):
            try:
                run_stage(config, folder, earlier, profile_steps=flags.profile)
            except (ValueError, FileNotFoundError, MemoryError, monitor.NotFinite) as error:
                raise SystemExit(f"ssljax train: {error}") from error
            earlier[name] = folder
        if jax.process_index() == 0:
            print(f"done: {flags.workdir}")


if __name__ == "__main__":
    main()
