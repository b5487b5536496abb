"""What protocols are given: a run's network, an untrained one, or the raw pixels, each as a `Bench`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssljax import models
from ssljax.config import resolve
from ssljax.data import geometry, loader, sources, views
from ssljax.data.reading import readable
from ssljax.data.source import Source
from ssljax.program import Evaluated, encoded, predicted, spread
from ssljax.protocols.bench import Bench, Reduce
from ssljax.protocols.features import Features, extract, raw_pixels
from ssljax.protocols.reconstruction import errors_and_codes
from ssljax.sharding import make_mesh
from ssljax.types import Batch, Pytree


def of_network(
    network: Evaluated, name: str, source: Source, test: Source, assignment: np.ndarray | None = None
) -> Bench:
    """The bench of a run's network or of an untrained one; `assignment` is that of `Bench`."""
    config = network.config

    def maps(split: Source, layer: str, reduce: Reduce) -> Features:
        return encoded(lambda image: reduce(network.maps(image, layer)), network.mesh, config, split)

    def last_map(images: np.ndarray, reduce: Reduce) -> np.ndarray:
        return at_once(lambda image: reduce(network.last_map(image)), network.mesh, images)

    def predictions(split: Source) -> Mapping[str, np.ndarray]:
        assert network.method.classify is not None, "a bench without heads has no predictions"
        if config.method == "linear" and config.evaluate.ten_crops:
            return over_ten_crops(network, split)
        if config.evaluate.random_crops:
            return over_random_crops(network, split)
        inputs = jax.numpy.asarray(features(split).features)
        found = network.method.classify(network.params, network.extra, inputs)
        return {head: np.asarray(logits) for head, logits in found.items()}

    def reconstructions(split: Source) -> Features:
        reconstruct = network.method.reconstruct
        assert reconstruct is not None, "a bench without a decoder has no reconstructions"

        @jax.jit
        def rows(params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array) -> jax.Array:
            return errors_and_codes(image, *reconstruct(params, model_state, extra, image))

        bound = functools.partial(rows, network.params, network.model_state, network.extra)
        return encoded(bound, network.mesh, config, split)

    @jax.jit
    def predict(params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch) -> dict[str, jax.Array]:
        assert network.method.predict is not None, "a bench that finds nothing is never asked"
        return network.method.predict(params, model_state, extra, batch)

    def found(split: Source) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        bound = functools.partial(predict, network.params, network.model_state, network.extra)
        return predicted(bound, network.mesh, config, split)

    features = once(lambda split: encoded(network.encode, network.mesh, config, split), source, test)
    return Bench(
        config=config,
        name=name,
        channels=0,
        train=source,
        test=test,
        load=further(config),
        features=features,
        encode=functools.partial(at_once, network.encode, network.mesh),
        last_map=last_map if models.convolutional(models.backbone(config.model)) else None,
        maps=maps,
        predictions=None if network.method.classify is None else predictions,
        reconstructions=None if network.method.reconstruct is None else reconstructions,
        predicted=None if network.method.predict is None else found,
        assignment=assignment,
    )


def over_ten_crops(network: Evaluated, split: Source) -> dict[str, np.ndarray]:
    """What the heads say of four corners, the centre and their mirror images of each image.

    Returns:
        The logarithm of the mean of the ten probabilities by the head's name, float32 [N, classes].
    """
    assert network.method.classify is not None
    mirror = jax.jit(lambda image: image[:, :, ::-1])
    total: dict[str, np.ndarray] = {}
    for place in geometry.FIVE:
        for encode in (network.encode, lambda image: network.encode(mirror(image))):
            found = encoded(encode, network.mesh, network.config, split, place)
            heads = network.method.classify(network.params, network.extra, jax.numpy.asarray(found.features))
            for head, logits in heads.items():
                total[head] = total.get(head, 0.0) + np.asarray(jax.nn.softmax(logits))
    return {head: np.log(probabilities / 10) for head, probabilities in total.items()}


def over_random_crops(network: Evaluated, split: Source) -> dict[str, np.ndarray]:
    """What the heads say of `evaluate.random_crops` crops of each image, drawn as in training.

    Returns:
        The sum of the logits by the head's name, float32 [N, classes].
    """
    config, method, devices = network.config, network.method, network.mesh.devices.size
    assert method.classify is not None
    net = models.backbone(config.model)
    weights, statistics = method.evaluated(network.params, network.model_state, network.extra)
    infer = jax.jit(functools.partial(models.infer, net))
    draw = jax.jit(lambda batch, key: views.stacked(batch, key, config)[:, 0])
    batch_size = -(-config.evaluate.batch_size // devices) * devices

    def crops() -> Iterator[dict[str, np.ndarray]]:
        drawn = loader.drawn_batches(split, config, config.evaluate.random_crops, batch_size)
        for number, batch in enumerate(drawn):
            mask = batch.pop("mask")
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            yield {**batch, "image": np.asarray(draw(batch, key)), "mask": mask}

    encode = spread(lambda image: infer(weights, statistics, image), network.mesh)
    found = jax.numpy.asarray(extract(encode, crops()).features)
    heads = method.classify(network.params, network.extra, found)
    passes = {
        head: np.asarray(logits).reshape(-1, len(split), logits.shape[1]) for head, logits in heads.items()
    }
    return {head: each.sum(axis=0) for head, each in passes.items()}


def of_pixels(config: ConfigDict, source: Source, test: Source) -> Bench:
    """The bench of the raw pixels, without a network."""
    mesh = make_mesh(fsdp=config.sharding.fsdp)
    features = once(lambda split: encoded(raw_pixels, mesh, config, split), source, test)
    return Bench(
        config=config,
        name="raw_pixels",
        channels=config.data.channels,
        train=source,
        test=test,
        load=further(config),
        features=features,
        encode=functools.partial(at_once, raw_pixels, mesh),
    )


def at_once(function: Callable[[jax.Array], jax.Array], mesh: Mesh, images: np.ndarray) -> np.ndarray:
    """A function of a few images [B, ...]. The last is repeated until the devices have equally many."""
    repeats = -len(images) % mesh.devices.size
    padded = np.concatenate([images, np.repeat(images[-1:], repeats, axis=0)])
    return np.asarray(spread(function, mesh)(padded))[: len(images)]


def further(config: ConfigDict) -> Callable[..., Source]:
    """Return `Bench.load`: (split, changed settings of `config.data`) -> a source."""

    def load(split: str, **settings: Any) -> Source:
        changed = config.copy_and_resolve_references().unlock()
        if "source" in settings:
            changed.data.annotations = ""
        changed.data.update(settings)
        data = resolve(changed).data  # another kind of source reads other settings
        return readable(sources.load(data, split), data)

    return load


def once(function: Callable[[Source], Features], *kept: Source) -> Callable[[Source], Features]:
    """Cache the function's results for the sources in `kept`.

    Results for other sources are not kept: a protocol may load 75 of them.
    """
    known: dict[int, Features] = {}

    def call(source: Source) -> Features:
        if not any(source is one for one in kept):
            return function(source)
        if id(source) not in known:
            known[id(source)] = function(source)
        return known[id(source)]

    return call
