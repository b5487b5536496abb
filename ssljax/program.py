"""A config made executable, and what every verb does with it: batches, features, checkpoints, stages."""

from __future__ import annotations

import os
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

from ssljax import optim, sharding
from ssljax.data import loader
from ssljax.data.source import Source
from ssljax.methods import METHODS
from ssljax.protocols.features import Encode, Features, extract
from ssljax.run.checkpoint import Checkpoints, load_part
from ssljax.step import make_train_step
from ssljax.types import Method, Pytree, TrainState

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
    config = with_ids(with_classes(config, source.num_classes), source.num_ids)
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
        has = f"{found} classes: set it to {found}, or to 0 to read it from the data"
        if not found:
            has = "no label on any training image: set it to 0"
        raise ValueError(f"data.num_classes={stated}, but {config.data.source} has {has}")
    config = config.copy_and_resolve_references()                # ConfigDict(config) would share its sections
    with config.unlocked():
        config.data.num_classes = found
    return config.lock()


def with_ids(config: ConfigDict, found: int) -> ConfigDict:
    """The config with `data.num_ids`, if it has one and that says 0, read from the data: how many ids images have, gaps included."""
    if "num_ids" not in config.data or config.data.num_ids:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_ids = found
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


def balance_of(program: Program, source: Source, state: TrainState) -> np.ndarray | None:
    """What epochs are to be balanced over, int32 [N] by position, on every host; None where the method asks for nothing."""
    if program.method.balance is None:
        return None
    return np.asarray(jax.device_put(program.method.balance(state.extra), sharding.whole(program.mesh)))[source.index]


def encoded(encode: Encode, program: Program, source: Source) -> Features:
    """Features of a split, each batch spread over the devices of all hosts."""
    rows, devices = sharding.batch_sharding(program.mesh), program.mesh.devices.size
    batch_size = -(-program.config.evaluate.batch_size // devices) * devices

    def spread(image: np.ndarray) -> jax.Array:
        features = encode(jax.make_array_from_callback(image.shape, rows, lambda part: image[part]))
        return jax.device_put(features, sharding.whole(program.mesh))              # every host gets all rows
    return extract(spread, loader.eval_batches(source, program.config, batch_size=batch_size))


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
    """What puts the weights of earlier runs into a fresh state: the method's `adopt`, or else the encoder of `config.init_from`.

    Args:
        program: of the new run.
        earlier: folders of the stages before it, by name; other names are folders themselves.
    """
    def load(run: str, like: Pytree, part: str, resize: Mapping[str, Callable] = types.MappingProxyType({})) -> Pytree:
        return load_part(earlier.get(run, run), like, part, resize)

    def encoder(state: TrainState) -> TrainState:
        """Running statistics included."""
        donor = program.config.init_from
        if not donor:
            return state
        params = {**state.params, "encoder": load(donor, state.params["encoder"], "params/encoder")}
        model_state = {**state.model_state, "encoder": load(donor, state.model_state["encoder"], "model_state/encoder")}
        return state.replace(params=params, model_state=model_state)

    return encoder if program.method.adopt is None else lambda state: program.method.adopt(state, load)


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
