"""The dVAE: its objective by NumPy, its schedules, what is exported, and the alarm of a dead codebook."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import models
from ssljax.config import resolve
from ssljax.methods import METHODS
from ssljax.methods.dvae import cosine, gumbel
from ssljax.models import dvae as nets
from ssljax.protocols import reconstruction
from ssljax.protocols.features import Features
from ssljax.run import monitor
from tests.methods.small import FACTS, batch_of, config_of, shaken, spied

SMALL = dict(
    model__groups=2, model__hidden=4, model__blocks=1, model__vocabulary=12, model__codebook=6, batch_size=4
)


@functools.cache
def built(**changes):
    """The config, the method, a shaken state, and the loss with what encoder and decoder saw and gave."""
    c = config_of("dvae", **(SMALL | changes))
    method = METHODS["dvae"](c, FACTS)
    key = jax.random.key(0)
    state = shaken(jax.eval_shape(method.init, key, {}), 1)
    given = jax.jit(lambda key: method.init(key, {})[2].input)(key)
    state = (*state[:2], state[2]._replace(input=given))
    run = spied(method.loss, forward=lambda net, x, out, **rest: {type(net).__name__: (x, out[0])})

    def loss(key=0, step=0, state=state):
        return run(*state, batch_of(4), jax.random.key(key), jnp.int32(step))

    return c, method, state, loss


draw = jax.jit(gumbel, static_argnums=2)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("step", [0, 100, 10_000])
def test_the_loss_by_numpy(step):
    c, _, _, loss = built()
    batch = batch_of(4)
    value, out, seen = loss(3, step)
    x, logits = seen["Encoder"]
    y, stats = seen["Decoder"]
    np.testing.assert_allclose(x, 0.8 * np.asarray(batch["image"]) / 255 + 0.1, atol=1e-6)

    total = 1500 * c.epochs // 4
    share = np.cos(np.pi * np.clip(step / (0.5 * total), 0, 1))
    tau = 1 / 16 + 0.5 * (1 - 1 / 16) * (1 + share)
    np.testing.assert_allclose(out.metrics["temperature"], tau, rtol=1e-5)
    np.testing.assert_allclose(y.sum(-1), 1.0, rtol=1e-5)
    noise = np.asarray(draw(jax.random.key(3), batch["index"], (4, 4, 12)))
    np.testing.assert_allclose(y, softmax((logits + noise) / tau), rtol=1e-3, atol=1e-5)

    mu, ln_b = np.split(stats.astype(np.float64), 2, axis=-1)
    logit = np.log(x) - np.log1p(-x)
    nll = np.log(2) + ln_b + np.log(x * (1 - x)) + np.abs(logit - mu) * np.exp(-ln_b)
    beta = 0.5 * c.dvae.kl_weight * (1 - np.cos(np.pi * np.clip(step / (0.05 * total), 0, 1)))
    p = softmax(logits.astype(np.float64))
    kl = (p * (np.log(p) + np.log(12))).sum(-1)
    per_image = nll.sum((1, 2, 3)) + beta * kl.sum((1, 2))
    np.testing.assert_allclose(value, per_image.mean() / (8 * 8 * 1), rtol=1e-4)
    np.testing.assert_allclose(out.metrics["kl"], kl.mean(), rtol=1e-4)


def test_the_kl_knows_neither_the_noise_nor_the_temperature():
    loss = built()[3]
    runs = [loss(1, 0), loss(2, 0), loss(2, 10_000)]
    assert float(runs[0][0]) != float(runs[1][0])
    assert float(runs[1][1].metrics["temperature"]) != float(runs[2][1].metrics["temperature"])
    for _, out, _ in runs[1:]:
        np.testing.assert_array_equal(out.metrics["kl"], runs[0][1].metrics["kl"])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_weight_of_the_kl_follows_the_downsampling(groups):
    """One-hot posteriors add beta ln K / (C f^2): DALL-E's 6.6 ln 8192 / 192 is .3098."""
    settings = {"model__groups": groups, "dvae__kl_weight": 6.6, "dvae__temperature_share": 0.0}
    _, _, (params, model_state, extra), loss = built(**settings)
    encoder = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params["encoder"])
    encoder["output"]["bias"][3] = 1e4
    state = ({**params, "encoder": encoder}, model_state, extra)
    begin, end = (loss(step=step, state=state)[0] for step in (0, 10**6))  # its weight grows from 0
    np.testing.assert_allclose(end - begin, 6.6 * np.log(12) / 4 ** (groups - 1), rtol=1e-3)


def test_the_decoder_reads_relaxed_codes():
    y, _ = built()[3]()[2]["Decoder"]
    assert ((y > 0.01) & (y < 0.99)).any()


def test_the_reconstruction_trains_the_encoder():
    _, method, (params, model_state, extra), _ = built(dvae__kl_weight=0.0)
    loss = lambda p: method.loss(p, model_state, extra, batch_of(4), jax.random.key(0), jnp.int32(0))[0]
    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads["encoder"]))


def test_noise_follows_the_image_and_not_its_place_in_the_batch():
    key = jax.random.key(0)
    one = draw(key, np.array([5, 9], np.int32), (2, 2, 7))
    other = draw(key, np.array([9, 5, 1], np.int32), (2, 2, 7))
    np.testing.assert_array_equal(one[0], other[1])
    many = np.asarray(draw(key, np.arange(64, dtype=np.int32), (32, 32, 32)))
    assert many.dtype == np.float32 and np.isfinite(many).all()
    np.testing.assert_allclose([many.mean(), many.std()], [0.5772, np.pi / 6**0.5], atol=5e-3)


@pytest.mark.parametrize(
    "start, end, steps, values",
    [
        (0.0, 6.6, 5000, {0: 0.0, 1250: 0.9665, 2500: 3.3, 5000: 6.6, 9999: 6.6}),
        (1.0, 1 / 16, 150_000, {0: 1.0, 37_500: 0.862706, 75_000: 0.53125, 112_500: 0.199794, 10**6: 0.0625}),
        (1.0, 0.5, 0.0, {0: 0.5}),
    ],
)
def test_the_papers_schedules(start, end, steps, values):
    for step, value in values.items():
        np.testing.assert_allclose(cosine(jnp.int32(step), start, end, steps), value, rtol=2e-4, atol=1e-6)


def test_the_shares_of_the_paper_give_its_numbers_of_updates():
    from configs.dvae import get_config

    c = get_config("imagenet")
    total = 1_281_167 * c.epochs // c.batch_size
    assert abs(total - 3_000_000) < 3_000
    found = [c.dvae.kl_share * total, c.dvae.temperature_share * total, c.optim.cosine_share * total]
    np.testing.assert_allclose(found, [5_000, 150_000, 1_200_000], rtol=1e-3)
    a = c.augment
    assert (a.crop, a.interpolation, a.min_area, a.max_area) == ("dalle", "area", 0.444, 0.79)
    assert (c.model.hidden, c.model.vocabulary, c.model.codebook, c.ema.decay) == (256, 8192, 128, 0.999)


def test_the_average_is_what_is_exported():
    c, method, (params, model_state, extra), _ = built(ema__decay=0.5)
    image = batch_of(4)["image"]
    after = jax.jit(method.update)(extra, params, (), jnp.int32(0))
    expected = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, extra.ema.params, params)
    weights, _ = method.evaluated(params, model_state, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weights, expected["encoder"])
    reconstruct = jax.jit(method.reconstruct)
    codes, images = reconstruct(params, model_state, after, image)
    assert codes.shape == (4, 4, 4) and images.shape == (4, 8, 8, 1)

    @jax.jit
    def by_hand(image, codes):
        encoder, decoder = models.token_encoder(c.model), models.token_decoder(c.model, 1)
        logits = encoder.apply({"params": expected["encoder"]}, 0.8 * image.astype(jnp.float32) / 255 + 0.1)
        one_hot = jax.nn.one_hot(codes, 12, dtype=jnp.float32)
        stats = decoder.apply({"params": expected["decoder"]}, one_hot)
        return jnp.argmax(logits, -1), nets.image_of(stats)

    again, pictures = by_hand(image, codes)
    np.testing.assert_array_equal(codes, again)
    np.testing.assert_allclose(images, pictures, rtol=1e-4, atol=1e-5)
    raw, _ = reconstruct(params, model_state, extra._replace(ema=()), image)
    assert np.any(np.asarray(raw) != np.asarray(codes))


def test_squared_error_of_pixels_between_minus_one_and_one():
    loss = built(dvae__loss="l2", model__pixels="customized", dvae__kl_weight=0.0)[3]
    value, _, seen = loss()
    x, _ = seen["Encoder"]
    assert x.min() < -0.9 and x.max() > 0.9
    mu = seen["Decoder"][1][..., :1]
    np.testing.assert_allclose(value, np.square(x - mu).mean(), rtol=1e-5)


def test_wrong_pixels_are_refused():
    with pytest.raises(ValueError, match="model.pixels=dall-e, or dvae.loss=l2"):
        built(model__pixels="customized")
    c = resolve(config_of("dvae", **SMALL)).unlock()
    c.augment.mean = (0.5,)
    with pytest.raises(ValueError, match=r"--config.augment.mean='\(0.,\)'"):
        METHODS["dvae"](c, FACTS)


def test_a_dead_codebook_raises_an_alarm():
    healthy = {"codebook_usage": 0.4, "codebook_perplexity": 90.0}
    assert monitor.warnings("dvae", 500, healthy) == []
    (found,) = monitor.warnings("dvae", 500, healthy | {"codebook_usage": 0.03})
    assert "codebook_usage = 0.03" in found and "dvae.kl_weight" in found


@dataclasses.dataclass
class FakeBench:
    config: object
    test: object
    reconstructions: object


def test_the_protocol_by_hand():
    """Two images of two tokens: codes 0, 0, 1, 2 of four."""
    image = np.zeros((2, 2, 2, 1), np.uint8)
    made = np.full((2, 2, 2, 1), 0.1, np.float32)
    made[1] = 0.3
    codes = np.array([[[0, 0]], [[1, 2]]])
    rows = jax.jit(reconstruction.errors_and_codes)(image, np.int32(codes), made)
    features = Features(np.asarray(rows), np.zeros(2, np.int32), np.arange(2, dtype=np.int32))
    c = resolve(config_of("dvae", **SMALL)).unlock()
    c.model.vocabulary = 4
    (found,) = reconstruction.judge(FakeBench(c, None, lambda split: features))
    np.testing.assert_allclose(found["mae"], 20.0, rtol=1e-5)
    np.testing.assert_allclose(found["psnr"], -10 * np.log10(0.05), rtol=1e-5)
    np.testing.assert_allclose([found["bits"], found["codebook_usage"]], [1.5, 75.0])
