"""The executable form of a config, and what all verbs share: batches, features, checkpoints and stages."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from ssljax import models, optim, sharding
from ssljax.config import check as check_config
from ssljax.config import stages as stages_of
from ssljax.data import annotated, geometry, loader, recipes, views
from ssljax.data.source import Source
from ssljax.methods import METHODS
from ssljax.protocols import PROTOCOLS
from ssljax.protocols.features import Features, extract
from ssljax.run.checkpoint import load_weights
from ssljax.step import make_train_step
from ssljax.types import EncodeFn, Facts, Method, Pytree, TrainState

AHEAD = 2  # batches in flight to the devices
MOST_STEPS = 2**31 - 2  # an int32 counts them


class Program(NamedTuple):
    """A config made executable: built once, run for any seed.

    Attributes:
        config: the stage's config.
        facts: the facts of its training split.
        method: the paper's pure functions.
        tx: the optimizer.
        schedule: step -> learning rate.
        mesh: a mesh over all devices.
        shapes: a TrainState of shapes, dtypes and shardings.
        init: seed -> TrainState on the mesh.
        step: (state, batch, key) -> (state, metrics); jitted, donates the state.
        encode: (params, model_state, extra, image) -> features; jitted.
        total_steps: the number of optimizer updates in the whole run.
        steps_per_epoch: the number of whole batches in an epoch.
    """

    config: ConfigDict
    facts: Facts
    method: Method
    tx: optax.GradientTransformation
    schedule: optim.Schedule
    mesh: Mesh
    shapes: TrainState
    init: Callable[[int], TrainState]
    step: jax.stages.Wrapped
    encode: EncodeFn
    total_steps: int
    steps_per_epoch: int


def build(config: ConfigDict, facts: Facts, mesh: Mesh | None = None) -> Program:
    """Build the program of a config. Nothing is compiled yet.

    Args:
        config: one stage.
        facts: the facts of its training split, see `sources.facts`.
        mesh: the devices to run on; None takes all.

    Returns:
        The program, with its functions jitted for the mesh.

    Raises:
        ValueError: a setting is out of range, the method is unknown or does not take this number of views,
            the data or the devices do not fill a batch, or the run has more steps than 32 bits count.
    """
    mesh = mesh or sharding.make_mesh(fsdp=config.sharding.fsdp)
    method, (tx, schedule), total_steps, steps_per_epoch = checked(config, facts, mesh)

    def new_state(key: jax.Array) -> TrainState:
        state = fresh(method, key)
        return state.replace(opt_state=tx.init(state.params))

    shapes, places = placed(mesh, jax.eval_shape(new_state, jax.random.key(0)), method)
    weights = beginning(method, places)
    moments = once(tx.init, places.opt_state)

    def init(seed: int) -> TrainState:
        state = weights(seed)
        return state.replace(opt_state=moments(state.params))

    step = jax.jit(
        sharding.on_mesh(mesh, make_train_step(method, tx, config.accumulate)),
        in_shardings=(places, sharding.batch_sharding(mesh), None),
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
        init=init,
        step=step,
        encode=jax.jit(encoder(method, config)),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )


def checked(config: ConfigDict, facts: Facts, mesh: Mesh) -> tuple[Method, optim.Optimizer, int, int]:
    """What a program is made of that costs nothing to have, after all checks that need no more.

    The arguments and errors are those of `build`.

    Returns:
        The method, the optimizer with its schedule, `total_steps` and `steps_per_epoch`.
    """
    check_config(config)
    check_protocols(config)
    method = method_of(config, facts)
    sharding.check_batch(mesh, config.batch_size, config.accumulate)

    examples, rows = epoch_of(method, facts, config.batch_size)
    steps_per_epoch = loader.steps_per_epoch(examples, rows)
    total_steps = config.steps or optim.train_steps(examples, config.epochs, rows)
    if total_steps > MOST_STEPS:
        most = MOST_STEPS * rows // examples
        raise ValueError(
            f"config.epochs={config.epochs} are {total_steps} steps, and steps are counted up to "
            f"{MOST_STEPS}: with batch_size={config.batch_size}, epochs must be at most {most}"
        )
    tx, schedule = optim.make_optimizer(
        config.optim,
        batch_size=config.batch_size,
        total_steps=total_steps,
        probes=method.probes,
        steps_per_epoch=examples / rows,
        restarted=method.restarted,
    )
    if method.still is not None:
        tx = optim.keeping(tx, method.still)
    return method, (tx, schedule), total_steps, steps_per_epoch


def epoch_of(method: Method, facts: Facts, batch_size: int) -> tuple[int, int]:
    """How many images an epoch passes over, and how many of them a batch has, as `Method.epochs_of` says.

    Raises:
        ValueError: the method mixes labelled and unlabelled images, and the data have only one kind.
    """
    if not method.ratio:
        return facts.num_examples, batch_size
    labelled = facts.num_examples - facts.num_unlabelled
    if not labelled or not facts.num_unlabelled:
        raise ValueError(
            f"the batches mix labelled and unlabelled images, and the data have {labelled} and "
            f"{facts.num_unlabelled} of them: hide some labels with --config.data.label_fraction=0.1 "
            "--config.data.keep_unlabelled=True, or add images with --config.data.unlabelled=folder:PATH"
        )
    first = batch_size // (1 + method.ratio)
    if method.epochs_of == "labelled":
        return labelled, first
    return facts.num_unlabelled, batch_size - first


def check_protocols(config: ConfigDict) -> None:
    """Refuse protocols that `ssljax evaluate` would not know after the training.

    Raises:
        ValueError: names the protocol and those there are.
    """
    for name in config.evaluate.protocols:
        if name not in PROTOCOLS:
            raise ValueError(
                f"config.evaluate.protocols names {name!r}: the protocols are {', '.join(PROTOCOLS)}"
            )


def method_of(config: ConfigDict, facts: Facts) -> Method:
    """Build the method that a config names, for these data.

    Raises:
        ValueError: the method is unknown, does not take this number of views, or learns classes and there are
            none; or the images are normalised for another number of channels.
    """
    if config.method not in METHODS:
        raise ValueError(f"method={config.method!r} is not one of {', '.join(METHODS)}")
    method = METHODS[config.method](config, facts)
    found = sum(view.count for view in views.resolved(config))
    if method.num_views and found != method.num_views:
        raise ValueError(
            f"config.views draws {found} views of each image, and {config.method} takes {method.num_views}: "
            f"change config.views to draw {method.num_views}"
        )
    recipes.check_channels(config)
    if method.needs_labels and not facts.num_classes:
        raise ValueError(
            f"{config.method} learns from labels, and data.source={config.data.source!r} has none: "
            "use labelled images, or a method that needs no labels"
        )
    return method


def placed(mesh: Mesh, shapes: TrainState, method: Method) -> tuple[TrainState, TrainState]:
    """Return (the shapes with their shardings on the mesh, the shardings alone)."""

    def on_devices(leaf: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    places = sharding.state_sharding(mesh, shapes, method.rows)
    return jax.tree.map(on_devices, shapes, places), places


# ------------------------------------------------------------------------------------------ during training


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of a run with another seed. The program does not change."""
    config = config.copy_and_resolve_references()  # ConfigDict(config) would share its sections
    with config.unlocked():
        config.seed = seed
    return config


def device_batches(
    program: Program, source: Source, seed: int, start_step: int, balance: np.ndarray | None = None
) -> Generator[Pytree, None, None]:
    """Yield the training stream as global arrays, with AHEAD batches in flight.

    Args:
        program: from `build`.
        source: the training split.
        seed: determines the sampling order and every draw.
        start_step: the first step to deliver.
        balance: what epochs draw evenly from, see `loader.train_batches`.
    """
    split = sharding.batch_sharding(program.mesh)
    host = loader.train_batches(
        source,
        with_seed(program.config, seed),
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        balance=balance,
        ratio=program.method.ratio,
    )
    in_flight: deque[Pytree] = deque()
    for batch in host:
        in_flight.append(sharding.put_batch(batch, split))
        if len(in_flight) > AHEAD:
            yield in_flight.popleft()


def balance_of(program: Program, source: Source, state: TrainState) -> np.ndarray | None:
    """The labels that epochs draw evenly from, on every host.

    Returns:
        int32 [N] by position in the source; None if the method draws every image once per epoch.
    """
    if program.method.balance is None:
        return None
    labels = jax.device_put(program.method.balance(state.extra), sharding.whole(program.mesh))
    return np.asarray(labels)[source.index]


# ------------------------------------------------------------------------------------------ evaluation


def encoder(method: Method, config: ConfigDict) -> EncodeFn:
    """The method's own `encode`, or inference with its evaluated backbone; see `types.EncodeFn`."""
    if method.encode is not None:
        return method.encode
    net = models.backbone(config.model)

    def encode(params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array) -> jax.Array:
        weights, statistics = method.evaluated(params, model_state, extra)
        return models.infer(net, weights, statistics, views.for_network(image, config.augment))

    return encode


class Evaluated(NamedTuple):
    """A run's network as evaluation sees it: the one that `Method.evaluated` names.

    All functions take images uint8 [B, H, W, C], already resized.

    Attributes:
        config: the run's stage; its data and evaluation settings may be others than in training.
        method: the paper's pure functions.
        mesh: a mesh over all devices.
        step: the number of updates done.
        params, model_state, extra: as the run left them; there is no optimizer state.
        encode: image -> float32 [B, D].
        maps: (image, layer) -> float32 [B, h, w, C], the feature map of a layer.
        last_map: image of any size -> float32 [B, h, w, C], for a convolutional network.
        tokens: image -> float32 [B, N, D], for a vision transformer.
        attention: image -> float32 [B, heads, 1 or 2, N], the attention of the class token, and of the
            distillation token if there is one, in the last block.
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
    last_map: Callable[[jax.Array], jax.Array]
    tokens: Callable[[jax.Array], jax.Array]
    attention: Callable[[jax.Array], jax.Array]

    def assignment(self) -> np.ndarray | None:
        """The labels that the network gave its own training images.

        Returns:
            int32 [ids], -1 for none; the first clustering if there are several. None if the method gives no
            labels.
        """
        if self.method.assignment is None:
            return None
        labels = self.method.assignment(self.extra)
        found = np.asarray(jax.device_put(labels, sharding.whole(self.mesh)))
        return found if found.ndim == 1 else found[:, 0]


def evaluated(config: ConfigDict, facts: Facts, state: TrainState, mesh: Mesh) -> Evaluated:
    """The functions of a state's evaluated network, each jitted."""
    method = method_of(config, facts)
    net = models.backbone(config.model)
    weights, statistics = method.evaluated(state.params, state.model_state, state.extra)

    def bound(function: Callable[..., jax.Array], **settings: str) -> Callable[[jax.Array], jax.Array]:
        @jax.jit
        def call(weights: Pytree, statistics: Pytree, image: jax.Array) -> jax.Array:
            return function(net, weights, statistics, views.for_network(image, config.augment), **settings)

        return functools.partial(call, weights, statistics)

    @functools.cache
    def of_layer(layer: str) -> Callable[[jax.Array], jax.Array]:
        return bound(models.activation, layer=layer)

    jitted = jax.jit(encoder(method, config))
    wanted = (config.data.image_size, config.data.image_size, config.data.channels)

    def encode(image: jax.Array) -> jax.Array:
        if image.dtype != jnp.uint8 or image.shape[1:] != wanted:
            raise ValueError(
                f"images are {image.dtype} {list(image.shape)}, and this network takes uint8 [N, "
                f"{', '.join(map(str, wanted))}] with values from 0 to 255: `ssljax.load(workdir).encode` "
                "resizes images of any size"
            )
        return jitted(state.params, state.model_state, state.extra, image)

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
        last_map=bound(models.last_map),
        tokens=bound(models.tokens),
        attention=bound(models.attention),
    )


def open_run(config: ConfigDict, facts: Facts, workdir: str) -> Evaluated:
    """Open the network of a run's newest checkpoint: the last one, never the best on the test split.

    Only what evaluation needs is read, branch by branch and with the shapes that the checkpoint has. The
    optimizer state is never read. A head or labels that belong to another data set are read as they are.

    Args:
        config: the run's stage; its data and evaluation settings may be others than in training.
        facts: the facts of the data that the run was trained on, if known (see `RunFolder`); otherwise those
            of the data at hand.
        workdir: the folder of the stage.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is of another network.
    """
    method = method_of(config, facts)
    mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
    shapes, _ = placed(mesh, fresh_shapes(method), method)
    state = load_weights(workdir, shapes)
    return evaluated(config, facts, state, mesh)


def untrained(config: ConfigDict, facts: Facts) -> Evaluated:
    """The network that a run starts from, before its first step."""
    method = method_of(config, facts)
    mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
    _, places = placed(mesh, fresh_shapes(method), method)
    state = beginning(method, places)(config.seed)
    return evaluated(config, facts, switched_on(state), mesh)


def beginning(method: Method, places: TrainState) -> Callable[[int], TrainState]:
    """`fresh` as a program: one for training and for a random network, so that it is compiled once for both.

    Args:
        method: what to initialise.
        places: the shardings of a state; those of an optimizer state are left alone.

    Returns:
        The state of a seed, without optimizer state.
    """
    run = once(functools.partial(fresh, method), places.replace(opt_state=()))
    return lambda seed: run(jax.random.key(seed))


def once(function: Callable[..., Any], places: Any = None) -> jax.stages.Wrapped:
    """jit for a program that runs once: an initialisation, the views of a preview.

    On CPUs it is compiled without optimising: for SimCLR on the digits in 1.5 s instead of 8 to 10.

    Args:
        function: what to compile.
        places: the shardings of its results; None leaves them to the compiler.
    """
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, out_shardings=places, compiler_options=quick)


def fresh(method: Method, key: jax.Array) -> TrainState:
    """A state before the first step, without optimizer state."""
    params, model_state, extra = method.init(key, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=(), extra=extra
    )


def fresh_shapes(method: Method) -> TrainState:
    """The shapes and dtypes of `fresh`, without computing it."""
    return jax.eval_shape(functools.partial(fresh, method), jax.random.key(0))


def switched_on(state: TrainState) -> TrainState:
    """Set all scales of the normalisation layers to one, so that every residual branch is switched on.

    The last scale of each branch starts at zero. That helps training but leaves only the shortcuts of an
    untrained network: on digits its kNN accuracy is 48 % instead of 64 %, and a baseline should be as good
    as it can be.
    """
    return state.replace(params=models.unit_gains(state.params))


def spread(function: Callable[[Pytree], Pytree], mesh: Mesh) -> Callable[[Pytree], Pytree]:
    """The same function of host images, or of a dict of arrays, computed on the devices of all hosts.

    The batch is split over the devices; the result is on every host.
    """
    rows = sharding.batch_sharding(mesh)
    everywhere = sharding.whole(mesh)

    def split(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, rows, lambda part: values[part])

    def over_devices(batch: Pytree) -> Pytree:
        return jax.device_put(function(jax.tree.map(split, batch)), everywhere)

    return over_devices


def encoded(
    encode: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    config: ConfigDict,
    source: Source,
    place: geometry.Place = geometry.CENTRE,
) -> Features:
    """Features of a split, with each batch spread over the devices of all hosts.

    `place` is where the crop of an image lies.
    """
    batches = loader.eval_batches(source, config, batch_size=at_once(config, mesh), place=place)
    return extract(spread(encode, mesh), batches)


def at_once(config: ConfigDict, mesh: Mesh) -> int:
    """How many images are evaluated at once: `evaluate.batch_size`, rounded up to what the devices divide."""
    devices = mesh.devices.size
    return -(-config.evaluate.batch_size // devices) * devices


def predicted(
    predict: Callable[[Pytree], Pytree], mesh: Mesh, config: ConfigDict, source: Source
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """What a network finds in annotated images, with each batch spread over the devices of all hosts.

    Args:
        predict: from a batch to what `Method.predict` gives.
        mesh: the devices.
        config: reads `data`, `augment`, `annotated` and `evaluate`.
        source: any split with boxes or masks.

    Yields:
        A batch and what was found in it, row by row; every image once, in the order of
        `annotated.eval_batches`.
    """
    over_devices = spread(predict, mesh)
    for batch, count in annotated.eval_batches(source, config, batch_size=at_once(config, mesh)):
        found = over_devices(batch)
        yield (
            {name: values[:count] for name, values in batch.items()},
            {name: np.asarray(values)[:count] for name, values in found.items()},
        )


# ------------------------------------------------------------------------------------------ stages


def stages(config: ConfigDict, workdir: str) -> list[tuple[str, ConfigDict, str]]:
    """(name, config, folder) of every stage. A config without stages is a single one, in `workdir` itself."""
    return [
        (name, part, os.path.join(workdir, name) if name else workdir)
        for name, part in stages_of(config).items()
    ]


def stage(config: ConfigDict, workdir: str, name: str = "") -> tuple[ConfigDict, str]:
    """The config and the folder of one stage; the last stage if no name is given.

    Raises:
        ValueError: there is no such stage; lists those there are.
    """
    found = {each: (part, folder) for each, part, folder in stages(config, workdir)}
    if not name:
        return list(found.values())[-1]
    if name not in found:
        known = ", ".join(filter(None, found)) or "none, it is a single run"
        raise ValueError(f"--stage={name}: the stages of this config are {known}")
    return found[name]


def use_compilation_cache(workdir: str) -> None:
    """Keep compiled programs beside the run's folder, so that a second start compiles nothing.

    The cache is off on several CPU devices: there a program from the cache starts its collectives in any
    order and waits forever (jaxlib 0.10.2).
    """
    if jax.default_backend() == "cpu" and sharding.make_mesh().devices.size > 1:
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # defined by name in JAX
        parent = os.path.dirname(workdir.rstrip("/")) or "."
        jax.config.update("jax_compilation_cache_dir", os.path.join(parent, ".xla_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
