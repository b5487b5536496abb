"""A config made executable, and what every verb does with it: batches, features, checkpoints, stages."""

from __future__ import annotations

import functools
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

from ssljax import models, optim, sharding
from ssljax.config import stages as stages_of
from ssljax.data import loader, views
from ssljax.data.source import Source
from ssljax.methods import METHODS
from ssljax.protocols.features import Encode, Features, extract
from ssljax.run.checkpoint import load_part, load_weights
from ssljax.step import make_train_step
from ssljax.types import Facts, Method, Pytree, TrainState

AHEAD = 2  # batches on their way to the devices


class Program(NamedTuple):
    """A config made executable: built once, run for any seed.

    Attributes:
        config: of the stage.
        facts: of its training split.
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
    facts: Facts
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


def build(config: ConfigDict, facts: Facts, mesh: Mesh | None = None) -> Program:
    """Puts a config's pieces together; compiles nothing yet.

    Args:
        config: one stage.
        facts: of its training split, see `sources.facts`.
        mesh: the devices; None takes all.

    Raises:
        ValueError: an unknown method, a number of views that it does not take, a batch that the data or the devices do not fill.
    """
    method = method_of(config, facts)
    mesh = mesh or sharding.make_mesh(fsdp=config.sharding.fsdp)
    sharding.check_batch(mesh, config.batch_size, config.accumulate)
    steps_per_epoch = loader.steps_per_epoch(facts.num_examples, config.batch_size)
    total_steps = optim.train_steps(facts.num_examples, config.epochs, config.batch_size)
    tx, schedule = optim.make_optimizer(
        config.optim,
        batch_size=config.batch_size,
        total_steps=total_steps,
        probes=method.probes,
        steps_per_epoch=facts.num_examples / config.batch_size,
        restarted=method.restarted,
    )

    def new_state(key: jax.Array) -> TrainState:
        params, model_state, extra = method.init(key, {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=tx.init(params),
            extra=extra,
        )

    shapes, places = placed(mesh, jax.eval_shape(new_state, jax.random.key(0)), method)
    split = sharding.batch_sharding(mesh)
    init = jax.jit(new_state, out_shardings=places)
    step = jax.jit(
        sharding.on_mesh(mesh, make_train_step(method, tx, config.accumulate)),
        in_shardings=(places, split, None),
        out_shardings=(places, None),
        donate_argnums=0,
    )
    return Program(
        config=config,
        facts=facts,
        method=method,
        tx=tx,
        schedule=schedule,
        mesh=mesh,
        shapes=shapes,
        init=lambda seed: init(jax.random.key(seed)),
        step=step,
        encode=jax.jit(encoder(method, config)),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )


def method_of(config: ConfigDict, facts: Facts) -> Method:
    """The paper of a config, for these data.

    Raises:
        ValueError: an unknown method, a number of views that it does not take, or no classes where it learns them.
    """
    if config.method not in METHODS:
        raise ValueError(f"method={config.method!r} is not one of {', '.join(METHODS)}")
    method = METHODS[config.method](config, facts)
    found = sum(view.count for view in views.resolved(config))
    if method.num_views and found != method.num_views:
        raise ValueError(
            f"config.views draws {found} views of each image, and {config.method} takes {method.num_views}: name as many "
            "in config.views"
        )
    if method.needs_labels and not facts.num_classes:
        raise ValueError(
            f"{config.method} learns from labels, and data.source={config.data.source!r} has none: use labelled images, or a "
            "method that needs no labels"
        )
    return method


def placed(mesh: Mesh, shapes: TrainState, method: Method) -> tuple[TrainState, TrainState]:
    """A state of shapes with their places on the mesh, and the places alone."""
    places = sharding.state_sharding(mesh, shapes, method.rows)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    ), places


# ----------------------------------------------------------------------------------------------------------------- while training


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of a run with another seed; the program is the same."""
    config = config.copy_and_resolve_references()  # ConfigDict(config) would share its sections
    with config.unlocked():
        config.seed = seed
    return config


def device_batches(
    program: Program, source: Source, seed: int, start_step: int, balance: np.ndarray | None = None
) -> Iterator[Pytree]:
    """The training stream as global arrays, AHEAD batches in flight; `balance` as in `loader.train_batches`."""
    split = sharding.batch_sharding(program.mesh)
    host = loader.train_batches(
        source,
        with_seed(program.config, seed),
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        balance=balance,
    )
    flying: deque[Pytree] = deque()
    for batch in host:
        flying.append(sharding.put_batch(batch, split))
        if len(flying) > AHEAD:
            yield flying.popleft()


def balance_of(program: Program, source: Source, state: TrainState) -> np.ndarray | None:
    """What epochs are to be balanced over, int32 [N] by position, on every host; None where the method asks for nothing."""
    if program.method.balance is None:
        return None
    return np.asarray(jax.device_put(program.method.balance(state.extra), sharding.whole(program.mesh)))[
        source.index
    ]


def start_from(program: Program, earlier: Mapping[str, str]) -> Callable[[TrainState], TrainState]:
    """What puts the weights of earlier runs into a fresh state: the branches of `config.init_from`, then what the method adopts.

    Args:
        program: of the new run.
        earlier: folders of the stages before it, by name; other names are folders themselves.
    """
    config, method = program.config, program.method

    def load(
        run: str, like: Pytree, part: str, resize: Mapping[str, Callable] = types.MappingProxyType({})
    ) -> Pytree:
        return load_part(earlier.get(run, run), like, part, resize)

    def start(state: TrainState) -> TrainState:
        if config.init_from:
            state = with_branches(state, functools.partial(load, config.init_from), config)
        return state if method.adopt is None else method.adopt(state, load)

    return start


def with_branches(state: TrainState, load: Callable[..., Pytree], config: ConfigDict) -> TrainState:
    """The state with `config.init_branches` of another run, running statistics included; a ViT's positions are resized.

    Args:
        state: a fresh one.
        load: (like, part, resize) -> one branch, see `checkpoint.load_part`.
        config: of the new run.

    Raises:
        ValueError: the new network has no such branch, or the other run has not, or of another shape.
    """
    resize = models.resizable(models.backbone(config.model), config.data.image_size)
    params, model_state = dict(state.params), dict(state.model_state)
    for name in config.init_branches:
        if name not in params:
            raise ValueError(
                f"config.init_branches names {name!r}, and this network has {', '.join(params)}: take some of these"
            )
        params[name] = load(params[name], f"params/{name}", resize)
        if name in model_state:
            model_state[name] = load(model_state[name], f"model_state/{name}")
    return state.replace(params=params, model_state=model_state)


# -------------------------------------------------------------------------------------------------------------- looking at networks


def encoder(method: Method, config: ConfigDict) -> Callable[..., jax.Array]:
    """(params, model_state, extra, image uint8 [B, H, W, C], resized) -> float32 [B, D]: the method's own, or its evaluated backbone."""
    if method.encode is not None:
        return method.encode
    net = models.backbone(config.model)

    def encode(params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array) -> jax.Array:
        weights, statistics = method.evaluated(params, model_state, extra)
        return models.infer(net, weights, statistics, views.for_network(image, config.augment))

    return encode


class Evaluated(NamedTuple):
    """A run's network as evaluation looks at it: the one that `Method.evaluated` names. Images are uint8 [B, H, W, C], resized.

    Attributes:
        config: the run's stage, its data and evaluation perhaps another's.
        method: the paper.
        mesh: over all devices.
        step: updates done.
        params, model_state, extra: as the run left them; no optimizer state.
        encode: image -> float32 [B, D].
        maps: (image, layer) -> float32 [B, h, w, C], what a layer gives.
        tokens: image -> float32 [B, N, D], of a vision transformer.
        attention: image -> float32 [B, heads, 1 or 2, N]; where the class token, and the distillation token, look in the last block.
    """

    config: ConfigDict
    method: Method
    mesh: Mesh
    step: int
    params: Pytree
    model_state: Pytree
    extra: Pytree
    encode: Callable[[jax.Array], jax.Array]
    maps: Callable[[jax.Array, str], jax.Array]
    tokens: Callable[[jax.Array], jax.Array]
    attention: Callable[[jax.Array], jax.Array]

    def assignment(self) -> np.ndarray | None:
        """int32 [ids], the labels that the network gave itself, -1 for none; of several clusterings the first. None: it gives none."""
        if self.method.assignment is None:
            return None
        found = np.asarray(jax.device_put(self.method.assignment(self.extra), sharding.whole(self.mesh)))
        return found if found.ndim == 1 else found[:, 0]


def evaluated(config: ConfigDict, facts: Facts, state: TrainState, mesh: Mesh) -> Evaluated:
    """The functions of a state's evaluated network, each jitted."""
    method, net = method_of(config, facts), models.backbone(config.model)
    weights, statistics = method.evaluated(state.params, state.model_state, state.extra)

    def looking(function: Callable[..., jax.Array], **how: str) -> Callable[[jax.Array], jax.Array]:
        @jax.jit
        def look(weights: Pytree, statistics: Pytree, image: jax.Array) -> jax.Array:
            return function(net, weights, statistics, views.for_network(image, config.augment), **how)

        return functools.partial(look, weights, statistics)

    @functools.cache
    def of_layer(layer: str) -> Callable[[jax.Array], jax.Array]:
        return looking(models.activation, layer=layer)

    encode = functools.partial(jax.jit(encoder(method, config)), state.params, state.model_state, state.extra)
    return Evaluated(
        config=config,
        method=method,
        mesh=mesh,
        step=int(state.step),
        params=state.params,
        model_state=state.model_state,
        extra=state.extra,
        encode=encode,
        maps=lambda image, layer: of_layer(layer)(image),
        tokens=looking(models.tokens),
        attention=looking(models.attention),
    )


def open_run(config: ConfigDict, facts: Facts, workdir: str) -> Evaluated:
    """The network of a run's newest checkpoint: the last epoch, never the best over the test split.

    Only what evaluation looks at is read, branch by branch and with the shapes that the checkpoint has: the optimizer's state never, and
    a head or labels of another data set as they are.

    Args:
        config: the run's stage, its data and evaluation perhaps another's.
        facts: of the data that the run was trained on where they are known, see `RunFolder`; else of the data at hand.
        workdir: of the stage.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of another network.
    """
    method, mesh = method_of(config, facts), sharding.make_mesh(fsdp=config.sharding.fsdp)
    shapes, _ = placed(mesh, jax.eval_shape(lambda key: fresh(method, key), jax.random.key(0)), method)
    state = load_weights(workdir, shapes)
    return evaluated(config, facts, state, mesh)


def untrained(config: ConfigDict, facts: Facts) -> Evaluated:
    """The network that a run starts from, before its first step."""
    method, mesh = method_of(config, facts), sharding.make_mesh(fsdp=config.sharding.fsdp)
    shapes = jax.eval_shape(lambda key: fresh(method, key), jax.random.key(0))
    _, places = placed(mesh, shapes, method)
    state = jax.jit(functools.partial(fresh, method), out_shardings=places)(jax.random.key(config.seed))
    return evaluated(config, facts, switched_on(state), mesh)


def fresh(method: Method, key: jax.Array) -> TrainState:
    """A state before any step, without an optimizer."""
    params, model_state, extra = method.init(key, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=(), extra=extra
    )


def switched_on(state: TrainState) -> TrainState:
    """A fresh network with every residual branch switched on: all scales of its normalisation are one.

    The last scale of each branch starts at zero, which helps training but leaves only shortcuts of an untrained network: on digits its
    kNN accuracy is 48 % instead of 64 %, and a baseline should be as good as it can be.
    """
    return state.replace(params=models.unit_gains(state.params))


def spread(function: Encode, mesh: Mesh) -> Encode:
    """The function, its batch spread over the devices of all hosts, its result on every host."""
    rows, everywhere = sharding.batch_sharding(mesh), sharding.whole(mesh)

    def over_devices(image: np.ndarray) -> jax.Array:
        found = function(jax.make_array_from_callback(image.shape, rows, lambda part: image[part]))
        return jax.device_put(found, everywhere)

    return over_devices


def encoded(encode: Encode, mesh: Mesh, config: ConfigDict, source: Source) -> Features:
    """Features of a split, each batch spread over the devices of all hosts."""
    devices = mesh.devices.size
    batch_size = -(-config.evaluate.batch_size // devices) * devices
    return extract(spread(encode, mesh), loader.eval_batches(source, config, batch_size=batch_size))


# ------------------------------------------------------------------------------------------------------------------------- stages


def stages(config: ConfigDict, workdir: str) -> list[tuple[str, ConfigDict, str]]:
    """(name, config, folder) of every stage; a config without stages is one, in workdir itself."""
    parts = stages_of(config)
    return [(name, part, os.path.join(workdir, name) if name else workdir) for name, part in parts.items()]


def stage(config: ConfigDict, workdir: str, name: str = "") -> tuple[ConfigDict, str]:
    """The config and folder of one stage, the last where no name is given.

    Raises:
        ValueError: there is no such stage; lists those there are.
    """
    found = {each: (part, folder) for each, part, folder in stages(config, workdir)}
    if name and name not in found:
        raise ValueError(
            f"--stage={name}: the stages of this config are {', '.join(filter(None, found)) or 'none, it is a single run'}"
        )
    return found[name] if name else list(found.values())[-1]


def use_compilation_cache(workdir: str) -> None:
    """Compiled programs outlive the process, beside the run's folder: a second start of the same config compiles nothing.

    Not on several CPU devices: there a program out of the cache starts its collectives in any order and waits for ever (jaxlib 0.10.2).
    """
    if jax.default_backend() == "cpu" and sharding.make_mesh().devices.size > 1:
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update(
            "jax_compilation_cache_dir",
            os.path.join(os.path.dirname(workdir.rstrip("/")) or ".", ".xla_cache"),
        )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
