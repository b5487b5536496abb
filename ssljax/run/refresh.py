"""What a method may do with the training data between two epochs, such as encoding every image once.

Every host reads its own share of the images. Features stay on the devices that computed them; nothing of
their size passes through a host.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import sharding
from ssljax.data import loader
from ssljax.data.source import Source
from ssljax.run.progress import Progress
from ssljax.types import Pytree, TrainState

REFRESH = 2**31 - 1  # folded into the key in place of a step; no run has that many steps


class Rows(NamedTuple):
    """Features of some images, split by rows over all devices.

    Attributes:
        features: float32 [M, D].
        position: int64 [M] on the host, the position in the source of each row's image.
        present: bool [M] on the host; False marks a copy that pads the last batch.
    """

    features: jax.Array
    position: np.ndarray
    present: np.ndarray


class Run(NamedTuple):
    """What `Method.refresh` is given: the run, and ways to look at its training data.

    Attributes:
        program: a `program.Program`.
        source: the training split.
        seed: the seed of the run.
        log: writes a dict of numbers to metrics.jsonl, as a row at the state's step.
        batches: () -> the training stream from step 0 on, as global arrays.
        progress: of a long refresh before the first step; None without a run folder.
    """

    program: Any
    source: Source
    seed: int
    log: Callable[[Mapping[str, float]], None]
    batches: Callable[[], Generator[Pytree, None, None]]
    progress: Progress | None = None

    @property
    def ids(self) -> np.ndarray:
        """int32 [N], the id of every training image, in the order of the source."""
        return self.source.index

    @property
    def labels(self) -> np.ndarray:
        """int32 [N], the true labels: for measurements, never for learning."""
        return self.source.labels

    def key(self, state: TrainState) -> jax.Array:
        """The key of the refresh at this step. No training step uses it."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), REFRESH), state.step)

    def epochs_done(self, state: TrainState) -> int:
        """The number of whole epochs so far."""
        return int(state.step) // self.program.steps_per_epoch

    def drawn(self, key: jax.Array, count: int) -> np.ndarray:
        """Positions of `count` different images, drawn at random and in random order."""
        return np.asarray(jax.random.permutation(key, len(self.source)))[:count]

    def epoch(self, state: TrainState) -> Iterator[tuple[Pytree, jax.Array]]:
        """The batches of one epoch, each with a key, for a method that needs them before the first step."""
        key = self.key(state)
        with contextlib.closing(self.batches()) as batches:
            for step, batch in zip(range(self.program.steps_per_epoch), batches, strict=False):
                yield batch, jax.random.fold_in(key, step)

    def place(self, state: TrainState) -> TrainState:
        """The state with every leaf sharded as the step expects it."""
        return jax.tree.map(
            lambda leaf, like: jax.device_put(leaf, like.sharding), state, self.program.shapes
        )

    def encoded(self, state: TrainState, positions: np.ndarray | None = None) -> Iterator[Rows]:
        """Features of training images, prepared as in evaluation, one batch at a time and in order.

        Args:
            state: the network.
            positions: int [N], which images; repeats are allowed. None takes all, in the order of the source.
        """
        encode = functools.partial(self.program.encode, state.params, state.model_state, state.extra)
        return self.looked(encode, positions)

    def looked(
        self,
        function: Callable[[jax.Array], jax.Array],
        positions: np.ndarray | None = None,
        *,
        size: int = 0,
    ) -> Iterator[Rows]:
        """What a function gives for training images, prepared as in evaluation, as `Rows.features`.

        Args:
            function: from uint8 [B, S, S, C] to float32 [B, D].
            positions: int [N], which images; repeats are allowed. None takes all, in the order of the source.
            size: S; 0: config.data.image_size. The crop leaves out as many pixels, see pseudo.teacher_size.
        """
        mesh = self.program.mesh
        config = self.program.config
        if size:
            config = config.copy_and_resolve_references().unlock()
            around = config.data.image_size / config.data.eval_crop - config.data.image_size
            config.data.update(image_size=size, eval_crop=size / (size + around))
        devices = mesh.devices.size
        batch = -(-config.evaluate.batch_size // devices) * devices
        positions = np.arange(len(self.source)) if positions is None else np.asarray(positions, np.int64)

        # Each row of `places` is one global batch. The last one is padded with images from the beginning.
        count = -(-len(positions) // batch)
        places = np.resize(positions, count * batch).reshape(count, batch)
        share = batch // jax.process_count()
        first = share * jax.process_index()
        own = places[:, first : first + share].ravel()

        split = sharding.batch_sharding(mesh)
        parts = loader.eval_batches(self.source, config, batch_size=share, positions=own)
        for number, part in enumerate(parts):
            image = jax.make_array_from_process_local_data(split, part["image"])
            features = function(image)
            present = np.arange(batch) + number * batch < len(positions)
            yield Rows(jax.device_put(features, split), places[number], present)

    def gathered(
        self,
        function: Callable[[jax.Array], jax.Array],
        positions: np.ndarray,
        into: Pytree,
        write: Callable[[Pytree, Rows], Pytree],
        *,
        of: Pytree,
        size: int = 0,
    ) -> Pytree:
        """What `looked` gives, written image by image into arrays. An interrupted call goes on where it was.

        Args:
            function, positions, size: see `looked`.
            into: the arrays, before anything is written.
            write: (the arrays, what was found for a batch) -> the arrays with it.
            of: the weights that `function` depends on.

        Raises:
            SystemExit: (code 0) the run was asked to stop, and all that was found is on disk.
        """
        done = 0
        if self.progress is not None:
            into, done = self.progress.resumed(into, {"images": self.ids[positions], "weights": of})
        for rows in self.looked(function, positions[done:], size=size):
            into = write(into, rows)
            done += int(rows.present.sum())
            if self.progress is not None:
                self.progress.reached(into, done, len(positions))
        if self.progress is not None:
            self.progress.close()
        return into

    def features(self, state: TrainState) -> Rows:
        """Features of all training images at once.

        The rows are in no particular order, because each device keeps its own rows of every batch.
        """
        store = None
        position = []
        present = []
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
        """Order values by the ids of their images.

        Args:
            values: int32 [M], one per row of `rows`; or [M, ...] with `into`.
            rows: the images that the values belong to.
            into: [ids, ...], the values of all other ids; None stands for int32 -1.

        Returns:
            [ids, ...].
        """
        into = jnp.full(self.program.facts.num_ids, -1, jnp.int32) if into is None else into
        ids = np.where(rows.present, self.source.index[rows.position], len(into))
        return _scatter(into, ids, values)

    def by_rows(self, array: np.ndarray) -> jax.Array:
        """Split an array that every host has by rows over the devices, as features are."""
        split = sharding.batch_sharding(self.program.mesh)
        return jax.make_array_from_callback(array.shape, split, lambda part: array[part])


@jax.jit
def _scatter(into: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Set `values` at `ids`; ids that are too large are dropped."""
    return into.at[ids].set(values, mode="drop")


@functools.partial(jax.jit, donate_argnums=0)
def _write(store: jax.Array, rows: jax.Array, number: jax.Array) -> jax.Array:
    """Write a batch [B, D] to its place in the store [B, batches, D]."""
    return jax.lax.dynamic_update_slice_in_dim(store, rows[:, None], number, axis=1)
