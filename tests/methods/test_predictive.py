"""The predictive baseline put together from its parts, its decoder in NumPy, and its budget beside CMC's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cmc, predictive
from ssljax import models
from ssljax.config import stages
from ssljax.data import views
from ssljax.methods import METHODS
from ssljax.models.decoder import PixelDecoder
from tests.methods.small import FACTS, SIZE, batch_of, config_of, names, one_block, shaken

pytestmark = pytest.mark.slow

THREE = ("luminance", "gradient", "low")
CHANNELS = {"luminance": 1, "gradient": 2, "low": 1}


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with one_block():
        yield


class Pass:
    """One loss of a preset with random parameters everywhere."""

    def __init__(self, split=THREE, **changes):
        self.config = config_of("predictive", model__split=split, predict__width=4, **changes)
        self.method = METHODS["predictive"](self.config, FACTS)
        self.batch = batch_of(6)
        self.key = jax.random.key(3)
        params, state, _ = jax.eval_shape(lambda key: self.method.init(key, {}), jax.random.key(0))
        self.params = shaken(params, 1)
        self.state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), state)

    def loss(self, params=None):
        """The loss, and its Out; `params` replace those of the pass."""
        params = self.params if params is None else params
        return self.method.loss(params, self.state, (), self.batch, self.key, jnp.int32(0))

    def by_hand(self):
        """(view i, view j) -> decoded pixels and those of view j, from one decoder alone, in float64."""
        x = views.stacked(self.batch, self.key, self.config)[:, 0]
        net = models.backbone(self.config.model)
        h, _ = models.forward(net, self.params["encoder"], self.state["encoder"], x)
        split = self.config.model.split
        parts = dict(zip(split, jnp.split(h, len(split), 1), strict=True))
        found = {}
        for name, params in self.params["decoder"].items():
            i, j = name.split("_to_")
            decoder = PixelDecoder(SIZE, CHANNELS[j], 4)
            pixels, _ = models.forward(decoder, params, self.state["decoder"][name], parts[i])
            found[i, j] = np.float64(pixels), np.float64(models.view_of(x, j))
        return found


@pytest.fixture(scope="module")
def full():
    return Pass(predict__graph="full")


@pytest.mark.parametrize("name, power", [("l1", 1), ("l2", 2)])
def test_the_loss_is_the_mean_error_of_pixels_summed_over_all_directions(full, name, power):
    one = Pass(predict__graph="full", predict__loss=name)
    total, out = jax.jit(one.loss)()
    hand = full.by_hand()
    assert len(hand) == 6
    errors = {key: (np.abs(p - view) ** power).mean() for key, (p, view) in hand.items()}
    np.testing.assert_allclose(total, sum(errors.values()), rtol=1e-4)
    for (i, j), (p, view) in hand.items():
        np.testing.assert_allclose(out.metrics[f"loss_{i}_to_{j}"], errors[i, j], rtol=1e-4)
        variance = view.var((0, 1, 2)).mean()
        explained = 1.0 - np.square(p - view).mean() / variance
        np.testing.assert_allclose(out.metrics[f"explained_{i}_to_{j}"], explained, rtol=1e-3)


def test_a_direction_teaches_the_network_of_its_first_view_and_its_own_decoder(full):
    def error(params):
        return full.loss(params)[1].metrics["loss_luminance_to_gradient"]

    grads = jax.jit(jax.grad(error))(full.params)
    for branch, learns in (("encoder", "luminance"), ("decoder", "luminance_to_gradient")):
        for name, grad in grads[branch].items():
            moved = [bool(np.any(leaf != 0)) for leaf in jax.tree.leaves(grad)]
            assert all(moved) if name == learns else not any(moved), name


def test_the_core_view_predicts_all_others_and_all_others_the_core():
    core, two = Pass(), Pass(THREE[:2])
    directions = {"luminance_to_gradient", "luminance_to_low", "gradient_to_luminance", "low_to_luminance"}
    assert set(core.params["decoder"]) == directions
    assert set(two.params["decoder"]) == {"luminance_to_gradient", "gradient_to_luminance"}


def test_a_decoder_of_one_stage_in_numpy():
    """Dense, norm, ReLU; every pixel twice, 3x3, norm, ReLU; 3x3. Norms by the running statistics."""
    net = PixelDecoder(size=8, channels=2, width=3)
    h = np.random.default_rng(2).normal(size=(2, 5))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((2, 5)), train=False))
    p = jax.tree.map(np.float64, shaken(variables["params"], 3))
    state = jax.tree.map(jnp.square, shaken(variables["batch_stats"], 4))
    s = jax.tree.map(np.float64, state)

    def normed(x, i):
        centred = (x - s[f"norm{i}"]["mean"]) / np.sqrt(s[f"norm{i}"]["var"] + 1e-5)
        return np.maximum(centred * p[f"norm{i}"]["scale"] + p[f"norm{i}"]["bias"], 0.0)

    def convolved(x, kernel):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [(i, j) for i in range(3) for j in range(3)]
        return sum(x[:, i : i + 8, j : j + 8] @ kernel[i, j] for i, j in taps)

    x = normed((h @ p["dense"]["kernel"]).reshape(2, 4, 4, 3), 0)
    x = normed(convolved(np.kron(x, np.ones((1, 2, 2, 1))), p["conv1"]["kernel"]), 1)
    expected = convolved(x, p["output"]["kernel"]) + p["output"]["bias"]
    found = models.infer(net, shaken(variables["params"], 3), state, jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, side, convs", [(16, 4, 2), (28, 7, 2), (32, 4, 3), (33, 5, 3), (224, 7, 5)])
def test_a_decoder_fits_images_of_any_size(size, side, convs):
    net = PixelDecoder(size, channels=3, width=64)
    image, variables = jax.eval_shape(
        lambda: net.init_with_output(jax.random.key(0), jnp.zeros((2, 10)), train=False)
    )
    assert image.shape == (2, size, size, 3)
    assert variables["params"]["dense"]["kernel"].shape == (10, side * side * 64)
    widths = [variables["params"][f"conv{i}"]["kernel"].shape[-1] for i in range(1, convs + 1)]
    assert widths == [max(64 // 2**i, 8) for i in range(1, convs + 1)]
    assert f"conv{convs + 1}/kernel" not in names(variables["params"])


def test_one_view_cannot_be_predicted_from_another():
    with pytest.raises(ValueError, match="predictive relates views, and needs at least two"):
        Pass(split=("luminance",))


@pytest.mark.parametrize("preset", predictive.PRESETS)
def test_a_preset_has_the_network_and_the_budget_of_cmc(preset):
    """The objectives are then all that differs. The optimizer is the same too; its rate suits both."""
    ours, theirs = (stages(paper.get_config(preset)) for paper in (predictive, cmc))
    assert list(ours) == list(theirs)
    for name, c in ours.items():
        other = theirs[name]
        for key in ("data", "augment", "model", "bn", "views", "optim", "evaluate"):
            assert (key in c) == (key in other)
            assert key not in c or c[key].to_dict() == other[key].to_dict(), (name, key)
        assert (c.epochs, c.batch_size) == (other.epochs, other.batch_size)
