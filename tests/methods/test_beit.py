"""BEiT: the loss by NumPy, what the tokenizer sees, masks, ablations, and what stages take over."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.beit import PRESETS, get_config
from ssljax import preview
from ssljax.config import resolve, stages
from ssljax.data import sources
from ssljax.earlier import start_from
from ssljax.methods import METHODS
from ssljax.methods.beit import masks
from ssljax.methods.dvae import DvaeState
from ssljax.pictures import gallery
from ssljax.program import build
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder
from ssljax.sharding import make_mesh
from ssljax.targets.ema import Ema
from ssljax.types import TrainState
from tests.methods.small import FACTS, batch_of, shaken, spied

SMALL = {
    "data.image_size": 8,
    "batch_size": 8,
    "augment.crop": "none",
    "model.name": "beit_xxs",
    "model.patch": 2,
    "views.tokens.size": 8,
    "tokenizer.groups": 2,
    "tokenizer.hidden": 4,
    "tokenizer.vocabulary": 11,
}
KEY = jax.random.key(7)


def config_of(**changes):
    """The pretraining of the digits at 8 pixels: 4 x 4 patches of 2 pixels, 11 codes."""
    c = get_config("digits").pretrain.unlock()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    if changes.get("recover.what") == "pixels":
        c.views = dict(patches=dict())
    found = {
        name: value
        for name, value in (SMALL | changes).items()
        if "tokens" in c.views or "tokens" not in name
    }
    c.update_from_flattened_dict(found)
    return resolve(c).lock()


@functools.cache
def fresh():
    return jax.jit(METHODS["beit"](config_of(), FACTS).init)(jax.random.key(0), {})


@functools.cache
def built(**changes):
    """The config, the method, a shaken state, and the loss with what the networks saw and gave."""
    c = config_of(**changes)
    method = METHODS["beit"](c, FACTS)
    params, model_state, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    if extra:
        extra = fresh()[2]._replace(params=shaken(extra.params, 2))
    run = spied(
        method.loss,
        forward=lambda net, x, out, mask=None, **rest: dict(x=x, mask=mask, tokens=out[0]),
        infer=lambda net, x, out: dict(tokenizer=x, logits=out),
    )
    loss = lambda state, batch, key=KEY, step=0: run(*state, batch, key, jnp.int32(step))
    return c, method, (shaken(params, 1), model_state, extra), loss


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["masked", "all"])
def test_the_loss_by_numpy(where):
    """Cross entropy of the tokens of the masked patches, averaged over those of the whole batch."""
    c, _, state, loss = built(recover__where=where)
    value, out, seen = loss(state, batch_of(8))
    head = jax.tree.map(np.asarray, state[0]["head"]["dense"])
    np.testing.assert_allclose(seen["tokenizer"], 0.8 * seen["x"] + 0.1, atol=1e-6)
    z = seen["logits"].argmax(-1).reshape(8, 16)
    h = seen["tokens"][:, 1:].astype(np.float64)
    logits = h @ head["kernel"] + head["bias"]
    nll = -np.take_along_axis(log_softmax(logits), z[..., None], -1)[..., 0]
    mask = seen["mask"]
    assert mask.sum(1).min() > 0 and mask.sum(1).max() <= c.masking.patches
    wanted = mask if where == "masked" else np.ones_like(mask)
    np.testing.assert_allclose(value, nll[wanted].mean(), rtol=1e-4)
    right = logits.argmax(-1) == z
    np.testing.assert_allclose(out.metrics["token_accuracy"], right[wanted].mean(), rtol=1e-5)
    most = np.bincount(z[wanted], minlength=11).max() / wanted.sum()
    np.testing.assert_allclose(out.metrics["most_frequent_token"], most, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["masked"], mask.mean(), rtol=1e-5)


@pytest.mark.slow
def test_pixels_of_masked_patches_change_neither_prediction_nor_gradient_path():
    """The tokens do change with them: they are what is predicted."""
    _, _, state, loss = built()
    batch = batch_of(8)
    before = loss(state, batch)[2]
    pixels = before["mask"].reshape(8, 4, 4).repeat(2, 1).repeat(2, 2)[..., None]
    image = np.asarray(batch["image"])
    after = loss(state, dict(batch, image=np.where(pixels, 255 - image, image)))[2]
    assert np.any(after["logits"] != before["logits"])
    np.testing.assert_array_equal(after["tokens"], before["tokens"])


@pytest.mark.slow
def test_tokens_and_patches_lie_at_the_same_places():
    """A distinctive upper right quadrant has its tokens at the patches of that quadrant."""
    _, _, state, loss = built()
    image = np.full((8, 8, 8, 1), 20, np.uint8)
    image[:, :4, 4:] = 230
    seen = loss(state, dict(batch_of(8), image=image))[2]
    x = seen["x"][0, :, :, 0].reshape(4, 2, 4, 2).mean((1, 3))
    assert (x[:2, 2:] > 0.5).all() and (x[2:] < 0.5).all()
    bright = seen["tokenizer"][0, :, :, 0].reshape(4, 2, 4, 2).mean((1, 3)) > 0.5
    np.testing.assert_array_equal(bright, x > 0.5)


@pytest.mark.slow
def test_the_first_loss_is_that_of_a_uniform_guess():
    np.testing.assert_allclose(built()[3](fresh(), batch_of(8))[0], np.log(11), atol=0.02)


@pytest.mark.slow
def test_masks_follow_the_image_and_the_step_not_the_place():
    _, _, state, loss = built()
    batch = batch_of(8)
    first = loss(state, batch)[2]["mask"]
    assert len({mask.tobytes() for mask in first}) > 3
    turned = {name: np.asarray(value)[::-1] for name, value in batch.items()}
    np.testing.assert_array_equal(loss(state, turned)[2]["mask"], first[::-1])
    assert np.any(loss(state, batch, jax.random.key(8), 1)[2]["mask"] != first)


def test_pixel_regression_by_numpy():
    _, method, state, loss = built(recover__what="pixels")
    assert state[2] == () and method.num_views == 1
    value, _, seen = loss(state, batch_of(8))
    head = jax.tree.map(np.asarray, state[0]["head"]["dense"])
    x = seen["x"].reshape(8, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(8, 16, 4)
    h = seen["tokens"][:, 1:].astype(np.float64)
    made = h @ head["kernel"] + head["bias"]
    error = np.square(made - x).mean(-1)
    np.testing.assert_allclose(value, error[seen["mask"]].mean(), rtol=1e-4)
    assert "tokenizer" not in seen


@pytest.mark.slow
def test_without_masks_there_is_no_mask_token():
    _, _, state, loss = built(masking__name="none", recover__where="all")
    assert "mask_token" not in state[0]
    _, out, seen = loss(state, batch_of(8))
    assert seen["mask"] is None and out.metrics["masked"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name, low, high", [("scattered", 6, 6), ("algorithm_1", 7, 16)])
def test_other_masks(name, low, high):
    _, _, state, loss = built(masking__name=name)
    count = loss(state, batch_of(8))[2]["mask"].sum(1)
    assert count.min() >= low and count.max() <= high


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"views__tokens__size": 16}, "set config.views.tokens.size=8"),
        ({"masking__patches": 16}, "config.masking.patches=6"),
        ({"masking__name": "none"}, "config.recover.where=all"),
        ({"views__tokens__mean": (0.5,)}, "--config.views.tokens.mean"),
        ({"views__tokens__of": ""}, "config.views.tokens.of='patches'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        METHODS["beit"](config_of(**changes), FACTS)


def program_of(c):
    return build(c, FACTS, make_mesh(1))


def donor(folder):
    """A run of a dVAE whose average and input map differ from what BEiT starts with."""
    d = get_config("digits").tokenizer.unlock()
    d.update_from_flattened_dict(
        {
            "data.image_size": 8,
            "model.groups": 2,
            "model.hidden": 4,
            "model.vocabulary": 11,
            "model.codebook": 6,
            "model.pixels": "customized",
            "dvae.loss": "l2",
        }
    )
    d = resolve(d).lock()
    program = program_of(d)
    state = program.init(0)
    state = state.replace(extra=state.extra._replace(ema=Ema(shaken(state.params, 5), {})))
    with RunFolder(str(folder), d, program.facts) as run:
        run.save(state, {})
    return state


@pytest.mark.slow
def test_the_tokenizer_is_the_average_and_brings_its_map_of_pixels(tmp_path):
    c = config_of(recover__tokenizer="tokenizer")
    tokenizer = donor(tmp_path / "tokenizer")
    assert isinstance(tokenizer.extra, DvaeState)
    program = program_of(c)
    state = start_from(program, {"tokenizer": str(tmp_path / "tokenizer")})(shaken(program.shapes, 6))
    expected = tokenizer.extra.ema.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, state.extra.params["encoder"], expected)
    np.testing.assert_allclose(state.extra.input["pixels"], [2.0, -1.0])
    orphan = METHODS["beit"](config_of(recover__tokenizer=""), FACTS)
    with pytest.raises(ValueError, match="config.recover.tokenizer is empty"):
        orphan.adopt(state, None)
    other = program_of(config_of(tokenizer__vocabulary=12))
    with pytest.raises(ValueError, match="output/bias is"):
        start_from(other, {"tokenizer": str(tmp_path / "tokenizer")})(shaken(other.shapes, 6))


@pytest.mark.slow
def test_fine_tuning_takes_the_blocks_copies_the_table_and_begins_a_fresh_norm(tmp_path):
    finetune = get_config("digits").finetune.unlock()
    finetune.update_from_flattened_dict(
        {
            "data.image_size": 16,
            "batch_size": 8,
            "model.name": "beit_xxs",
            "model.patch": 2,
            "init_from": "pretrain",
        }
    )
    finetune = resolve(finetune).lock()
    params, model_state, extra = built()[2]
    checkpoints = Checkpoints(str(tmp_path / "pretrain"))
    checkpoints.save(TrainState(jnp.int32(1), params, model_state, (), extra), {})
    checkpoints.close()
    program = program_of(finetune)
    begun = program.init(0)
    state = start_from(program, {"pretrain": str(tmp_path / "pretrain")})(begun)
    ours = state.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, ours["block1"], params["encoder"]["block1"])
    np.testing.assert_array_equal(ours["fc_norm"]["scale"], np.ones(32))
    assert "norm" not in ours and ours["relative_bias"].shape == (2, 15 * 15 + 3, 2)
    np.testing.assert_array_equal(ours["relative_bias"][1, -3:], params["encoder"]["relative_bias"][-3:])
    assert np.abs(state.params["head"]["dense"]["kernel"]).max() < 1e-4

    # A further stage goes on with the norm that this one trained.
    trained = state.replace(params=shaken(state.params, 4))
    checkpoints = Checkpoints(str(tmp_path / "finetune"))
    checkpoints.save(trained, {})
    checkpoints.close()
    again = start_from(program, {"pretrain": str(tmp_path / "finetune")})(begun)
    jax.tree.map(np.testing.assert_array_equal, again.params["encoder"], trained.params["encoder"])


@pytest.mark.slow
def test_the_preview_shows_the_masks_of_the_first_step():
    c = get_config("digits").pretrain
    _, columns, _ = preview.examples(c)
    assert [column.name.split(" ")[0] for column in columns] == ["patches,", "tokens,"] * 3 + ["masked"]
    first, last = columns[0].images, columns[-1].images
    grey = (last != first).any(-1).reshape(8, 4, 4, 4, 4).any((2, 4))
    assert 0 < grey.sum((1, 2)).max() <= c.masking.patches
    stated = [int(caption.split()[0]) for caption in columns[-1].captions]
    np.testing.assert_array_equal(grey.sum((1, 2)), stated)


def test_the_gallery_shows_masks():
    c = config_of(data__image_size=16, views__tokens__size=16, model__patch=4, tokenizer__groups=3)
    test = sources.load(c.data, "test")
    rows = np.array([3, 5])
    shown = gallery.masked(SimpleNamespace(config=c, method=METHODS["beit"](c, FACTS)), test, rows)
    images = gallery.thumbnails(test, rows, c)
    mask = masks(jax.random.key(c.seed), jnp.asarray(test.index[rows], jnp.int32), c, 4)
    assert 0 < mask.sum() < mask.size
    for image, picture, masked in zip(images, shown, mask, strict=True):
        for place, hidden in enumerate(np.asarray(masked)):
            at = np.s_[place // 4 * 4 : place // 4 * 4 + 4, place % 4 * 4 : place % 4 * 4 + 4]
            np.testing.assert_array_equal(picture[at], 128 if hidden else image[at])


def test_the_papers_numbers_are_in_the_presets():
    c = get_config("imagenet_b")
    p, f = c.pretrain, c.finetune
    assert (p.epochs, p.batch_size, p.optim.learning_rate, p.optim.clip) == (800, 2048, 1.5e-3, 3.0)
    assert (p.masking.patches, p.views.tokens.size, p.views.tokens.of) == (75, 112, "patches")
    assert (p.views.tokens.interpolation, p.augment.interpolation) == ("lanczos3", "bicubic")
    assert (f.epochs, f.batch_size, f.optim.layer_decay, f.head.std) == (100, 1024, 0.65, 2e-5)
    large = get_config("imagenet_l")
    assert (large.pretrain.optim.clip, large.finetune.epochs, large.finetune.optim.layer_decay) == (
        1.0,
        50,
        0.75,
    )
    c = get_config("imagenet_b_384")
    assert c.finetune_384.data.image_size == 384 and c.finetune_384.init_branches == ("encoder", "head")
    c = get_config("imagenet_b_intermediate_cifar100")
    assert c.stages == ("tokenizer", "pretrain", "intermediate", "finetune")
    assert c.finetune.init_from == "intermediate" and c.finetune.data.source == "tfds:cifar100"
    assert get_config("imagenet_b_linear").linear.probe.layer == "block8"
    assert get_config("imagenet_b_ablation_pixels").stages == ("pretrain", "finetune")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["imagenet_b", "imagenet_b_plus"])
def test_both_networks_have_the_papers_number_of_parameters(preset):
    c = get_config(preset).pretrain
    params, _, _ = jax.eval_shape(lambda key: METHODS["beit"](c, FACTS).init(key, {}), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == {"imagenet_b": 92_089_856, "imagenet_b_plus": 91_965_776}[preset]
    finetune = get_config(preset).finetune
    facts = FACTS._replace(num_classes=1000)
    params, _, _ = jax.eval_shape(
        lambda key: METHODS["deit"](finetune, facts).init(key, {}), jax.random.key(0)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == {"imagenet_b": 86_558_440, "imagenet_b_plus": 86_530_984}[preset]


def test_pretraining_and_fine_tuning_normalise_alike():
    """Another mean in fine-tuning costs accuracy without an error."""
    for preset in PRESETS:
        found = stages(get_config(preset))
        if "pretrain" in found:
            first = found["pretrain"].augment
            for name in set(found) - {"tokenizer", "pretrain"}:
                assert (found[name].augment.mean, found[name].augment.std) == (first.mean, first.std), preset
