"""What a method may do with the data between two epochs: see every training image once more, and leave what it finds on the devices.

Every host reads its own share of the images. Features stay where they were computed; nothing of their size passes through a host.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import sharding
from ssljax.data import loader
from ssljax.data.source import Source
from ssljax.types import Pytree, TrainState

REFRESH = 2**31 - 1  # in place of a step's number: no run has so many


class Rows(NamedTuple):
    """Features of some images, split by rows over all devices.

    Attributes:
        features: float32 [M, D].
        position: int64 [M] on the host, where in the source a row's image stands.
        present: bool [M] on the host; False marks a copy that fills the last batch.
    """

    features: jax.Array
    position: np.ndarray
    present: np.ndarray


class Run(NamedTuple):
    """What `Method.refresh` is given.

    Attributes:
        program: a `program.Program`.
        source: the training split.
        seed: the run's.
        log: a dict of numbers -> a row of metrics.jsonl at the state's step.
        batches: () -> the training stream from step 0 on, global arrays.
    """

    program: Any
    source: Source
    seed: int
    log: Callable[[Mapping[str, float]], None]
    batches: Callable[[], Iterator[Pytree]]

    @property
    def ids(self) -> np.ndarray:
        """int32 [N], the id of every training image, in the order of the source."""
        return self.source.index

    @property
    def labels(self) -> np.ndarray:
        """int32 [N], the true labels: for measuring, never for learning."""
        return self.source.labels

    def key(self, state: TrainState) -> jax.Array:
        """The key of the refresh at this step; no step of the training has it."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), REFRESH), state.step)

    def epochs_done(self, state: TrainState) -> int:
        """Whole epochs until here."""
        return int(state.step) // self.program.steps_per_epoch

    def drawn(self, key: jax.Array, count: int) -> np.ndarray:
        """Positions of `count` different images at random, in random order."""
        return np.asarray(jax.random.permutation(key, len(self.source)))[:count]

    def epoch(self, state: TrainState) -> Iterator[tuple[Pytree, jax.Array]]:
        """The batches of one epoch, each with a key, for a method that wants to see them before the first step."""
        key = self.key(state)
        with contextlib.closing(self.batches()) as batches:
            for step, batch in zip(range(self.program.steps_per_epoch), batches, strict=False):
                yield batch, jax.random.fold_in(key, step)

    def place(self, state: TrainState) -> TrainState:
        """The state with every leaf where the step wants it."""
        return jax.tree.map(
            lambda leaf, like: jax.device_put(leaf, like.sharding), state, self.program.shapes
        )

    def encoded(self, state: TrainState, positions: np.ndarray | None = None) -> Iterator[Rows]:
        """`encode` of training images as an evaluator sees them, a batch at a time, in order.

        Args:
            state: the network.
            positions: which images, int [N], repeats allowed; None: all, in the order of the source.
        """
        mesh, config = self.program.mesh, self.program.config
        batch = -(-config.evaluate.batch_size // mesh.devices.size) * mesh.devices.size
        positions = np.arange(len(self.source)) if positions is None else np.asarray(positions, np.int64)
        count = -(-len(positions) // batch)
        places = np.resize(positions, count * batch).reshape(count, batch)
        share, split = batch // jax.process_count(), sharding.batch_sharding(mesh)
        own = self.source.select(places[:, share * jax.process_index() :][:, :share].ravel())
        for number, part in enumerate(loader.eval_batches(own, config, batch_size=share)):
            image = jax.make_array_from_process_local_data(split, part["image"])
            features = self.program.encode(state.params, state.model_state, state.extra, image)
            present = np.arange(batch) + number * batch < len(positions)
            yield Rows(jax.device_put(features, split), places[number], present)

    def features(self, state: TrainState) -> Rows:
        """The same of all training images at once. Rows are in no particular order: each device has its own of every batch."""
        store, position, present = None, [], []
        split = sharding.batch_sharding(self.program.mesh)
        for number, rows in enumerate(self.encoded(state)):
            if store is None:
                batch, dim = rows.features.shape
                shape = (batch, -(-len(self.source) // batch), dim)
                store = jax.jit(lambda shape=shape: jnp.zeros(shape, jnp.float32), out_shardings=split)()
            store = _write(store, rows.features, number)
            position.append(rows.position)
            present.append(rows.present)
        flat = jax.jit(lambda store: store.reshape(-1, store.shape[2]), out_shardings=split)(store)
        return Rows(flat, np.stack(position, axis=1).ravel(), np.stack(present, axis=1).ravel())

    def by_id(self, values: jax.Array, rows: Rows, into: jax.Array | None = None) -> jax.Array:
        """int32 [M], a value a row of `rows` -> int32 [ids]; ids that are not among them keep what `into` has, or -1."""
        into = jnp.full(self.program.facts.num_ids, -1, jnp.int32) if into is None else into
        ids = np.where(rows.present, self.source.index[rows.position], self.program.facts.num_ids)
        return _scatter(into, ids, values)

    def by_rows(self, array: np.ndarray) -> jax.Array:
        """An array that every host has, split by rows over the devices as features are."""
        split = sharding.batch_sharding(self.program.mesh)
        return jax.make_array_from_callback(array.shape, split, lambda part: array[part])


@jax.jit
def _scatter(into: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """`into` with `values` at `ids`; ids that are too large are dropped."""
    return into.at[ids].set(values, mode="drop")


@functools.partial(jax.jit, donate_argnums=0)
def _write(store: jax.Array, rows: jax.Array, number: jax.Array) -> jax.Array:
    """Puts a batch [B, D] into its place of the store [B, batches, D]."""
    return jax.lax.dynamic_update_slice_in_dim(store, rows[:, None], number, axis=1)
