"""A trained network in a Python session: `ssljax.load(workdir)`.

network = ssljax.load("runs/digits")
features = network.encode(["a.png", "b.png"])          # float32 [2, D]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from ssljax import weights
from ssljax.config.stored import restored
from ssljax.data import images as pictures
from ssljax.data.images import Picture
from ssljax.program import Evaluated, encoded, open_run
from ssljax.run import files
from ssljax.run.folder import facts_of
from ssljax.types import Facts

AT_ONCE = 4096  # images in memory at a time


class Network:
    """The network of a run, as evaluation sees it.

    Images are a list of paths, Pillow images, or arrays uint8 [H, W] or [H, W, C], of any sizes; or one array
    uint8 [N, H, W, C]. They are cropped and resized as in `ssljax evaluate`.

    Attributes:
        workdir: of the stage.
        config: of the stage, locked.
        step: optimizer updates done.
        evaluated: what the above are computed with.
    """

    def __init__(self, workdir: str, network: Evaluated):
        """See `load`."""
        self.workdir = workdir
        self.config = network.config
        self.step = network.step
        self.evaluated = network

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<ssljax network: {config.method}:{config.preset}, {config.model.name}, step {self.step}, "
            f"{config.data.image_size} px, {self.workdir}>"
        )

    def encode(self, images: Sequence[Picture], *, progress: bool = False) -> np.ndarray:
        """Features float32 [N, D], before any head.

        Args:
            images: N of them.
            progress: shows a bar.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: there are no images, one is not an image (named), or the features are not finite.
        """
        _, features = self._look(self.evaluated.encode, images, progress=progress)
        return features

    def encode_readable(
        self, images: Sequence[Picture], *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `encode`, without the images that cannot be read.

        Returns:
            int64 [K], the positions in `images` of those that can be read, and their features float32 [K, D].

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: no image can be read.
        """
        return self._look(self.evaluated.encode, images, progress=progress, on_bad="skip")

    def maps(self, images: Sequence[Picture], layer: str) -> np.ndarray:
        """What a layer gives for each image: float32 [N, h, w, C].

        Args:
            images: N of them.
            layer: its name; an unknown one raises and lists those there are.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: as for `encode`, or the network has no such layer.
        """
        shape: tuple[int, ...] = ()

        def flat(image: jax.Array) -> jax.Array:
            nonlocal shape
            found = self.evaluated.maps(image, layer)
            shape = found.shape[1:]
            return found.reshape(len(found), -1)

        _, features = self._look(flat, images)
        return features.reshape(-1, *shape)

    def classify(self, images: Sequence[Picture]) -> np.ndarray:
        """Logits float32 [N, classes] of the run's own classifier.

        Of several heads it is the one that counts (for DeiT, both together). A class is a position in the
        sorted list of class folders, or a label of the data set.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: as for `encode`, or the method learns no classifier.
        """
        classify = self.evaluated.method.classify
        if classify is None:
            raise ValueError(
                f"{self.config.method} learns no classes, {self.workdir} has no classifier: fit one to the "
                "features of `encode` (scikit-learn's LogisticRegression does), or load a run that learned "
                "from labels"
            )
        heads = classify(self.evaluated.params, self.evaluated.extra, jax.numpy.asarray(self.encode(images)))
        return np.asarray(next(iter(heads.values())), np.float32)

    def _look(
        self,
        function: Callable[[jax.Array], jax.Array],
        images: Sequence[Picture],
        *,
        progress: bool = False,
        on_bad: str = "error",
    ) -> tuple[np.ndarray, np.ndarray]:
        """The positions of the readable images, and what the function gives for them, [K, D]."""
        if isinstance(images, str) or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
            raise ValueError(
                "expected a list of images or an array [N, H, W, C]: put a single image into a list, [image]"
            )
        config = self.config.copy_and_resolve_references().unlock()
        config.data.on_bad_image = on_bad
        positions = []
        features = []
        with tqdm(total=len(images), unit="image", disable=not progress) as bar:

            def counted(image: jax.Array) -> jax.Array:
                bar.update(min(len(image), len(images) - bar.n))
                return function(image)

            for first in range(0, max(len(images), 1), AT_ONCE):
                source = pictures.source(images[first : first + AT_ONCE], config.data)
                if not len(source):
                    continue
                found = encoded(counted, self.evaluated.mesh, config, source)
                positions.append(first + found.index.astype(np.int64))
                features.append(found.features)
        if not features:
            raise ValueError(f"none of {len(images)} images can be read")
        return np.concatenate(positions), np.concatenate(features)


def load(workdir: str, stage: str = "") -> Network:
    """The network of a run's newest checkpoint, or one that comes with ssljax.

    Args:
        workdir: the folder that `ssljax train` or `ssljax convert` wrote, local or `gs://`; or
            ssljax://NAME, e.g. ssljax://simclr-digits, a small network that comes with ssljax.
        stage: of a config with stages the one to load; the last by default.

    Raises:
        FileNotFoundError: there is no run in the folder, or it has no checkpoint yet; or there is no network
            of that name.
        ValueError: there is no such stage, or a file of the run is damaged.
    """
    if workdir.startswith(weights.SCHEME):
        if stage:
            raise ValueError(f"stage={stage!r}: {workdir} is one network, it has no stages")
        return Network(workdir, weights.load(workdir.removeprefix(weights.SCHEME)).network)
    folder, config = _stage(epath.Path(workdir), stage)
    with config.unlocked():
        config.sharding.fsdp = 1
    facts = facts_of(str(folder))
    if facts is None:  # the checkpoint says how large its heads are
        facts = Facts(num_examples=config.batch_size, num_classes=1, num_ids=config.batch_size)
    return Network(str(folder), open_run(config, facts, str(folder)))


def _stage(workdir: epath.Path, stage: str) -> tuple[epath.Path, ConfigDict]:
    """The folder of a stage, and its config."""
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(
            f"there is no run in {workdir} (no config.json): name the --workdir of `ssljax train`"
            f"{_runs_below(workdir)}"
        )
    stored = files.read_config(workdir / "config.json")
    names = stored.get("stages", [])
    if stage and stage not in names:
        raise ValueError(
            f"stage={stage!r}: the stages of {workdir} are {', '.join(names) or 'none, it is a single run'}"
        )
    if not names:
        return workdir, restored(stored)
    folder = workdir / (stage or names[-1])
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"the stage {folder.name} of {workdir} has not begun: load an earlier one with stage=..., or "
            "go on with `ssljax train`"
        )
    return folder, restored(files.read_config(folder / "config.json"))


def _runs_below(workdir: epath.Path) -> str:
    """A hint: the folders of runs just below this one."""
    if not workdir.exists():
        return ""
    found = sorted(path.parent.name for path in workdir.glob("*/config.json"))
    return f", or one of the runs below it: {', '.join(found[:10])}" if found else ""
