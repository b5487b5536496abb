"""Training and evaluation on annotated images, with batches of two shapes and a method of a few lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config, evaluate, plan, program, sharding, train
from ssljax.data import loader, sources
from ssljax.methods import METHODS
from ssljax.pictures import overlays
from ssljax.run.checkpoint import load_weights
from ssljax.run.folder import RunFolder
from ssljax.run.loop import by_shape, fit
from ssljax.types import Method, Out
from tests import scenes

pytestmark = pytest.mark.slow


def finder(c, facts):
    """Learns a colour per class; finds what is there, but in padded pixels nothing."""

    def init(key, batch):
        params = {"encoder": {"w": jax.random.normal(key, (3, facts.num_classes))}}
        return params, {"encoder": {"finished": jnp.zeros(3, jnp.int32)}}, ()

    def loss(params, model_state, extra, batch, key, step):
        height, width = batch["image"].shape[1:3]
        inside = jnp.arange(height)[None, :, None] < batch["size"][:, :1, None]
        inside &= jnp.arange(width)[None, None] < batch["size"][:, 1:, None]
        image = batch["image"].astype(jnp.float32) / 255.0
        colour = (
            jnp.where(inside[..., None], image, 0.0).sum((1, 2))
            / inside.sum((1, 2)).astype(jnp.float32)[:, None]
        )
        wanted = jax.nn.one_hot(batch["classes"], facts.num_classes).sum(1)
        return jnp.square(colour @ params["encoder"]["w"] - wanted).mean(), Out(model_state, (), {})

    def predict(params, model_state, extra, batch):
        score = jnp.where(batch["classes"] >= 0, 0.9, 0.0)
        return {"boxes": batch["boxes"], "scores": score, "classes": batch["classes"]}

    def finish(state, run):
        """Count, and note the step and the ids of the first batch."""
        ids = next(run.batches())["index"].sum()
        before = state.model_state["encoder"]["finished"][0]
        noted = jnp.stack([before + 1, state.step, ids])
        return run.place(state.replace(model_state={"encoder": {"finished": noted}}))

    return Method(init=init, loss=loss, predict=predict, finish=finish, separable=True)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "finder", finder)
    c = config.base()
    config.annotated(c, "boxes")
    c.method = "finder"
    c.epochs, c.batch_size, c.log_every = 4, 8, 4
    c.checkpoint.every_steps = 4
    c.data.source = f"coco:{scenes.coco(tmp_path / 'coco', copies=3)}"
    c.annotated = dict(short_sides=(24, 32), test_short_side=32, long_side=64)
    c.optim = dict(name="sgd", learning_rate=0.1)
    c.evaluate.update(protocols=("detection",), batch_size=3)
    return config.named(c, "scenes")


def test_a_run_of_two_shapes_goes_on_where_it_stopped_and_finds_what_is_there(recipe, tmp_path, capsys):
    train.run_stages(recipe, str(tmp_path / "whole"))
    said = capsys.readouterr().out
    assert "15 training images with 15 objects of 3 classes; 21 held out" in said
    assert "on 32 x 64 and 64 x 32 pixels" in said

    source = sources.load(recipe.data, "train")
    built = program.build(recipe, sources.facts(recipe.data, source))
    planned = plan.abstract_batch(built)
    batch = next(program.device_batches(built, source, 0, 0))
    assert planned.keys() == batch.keys()
    for name in set(batch) - {"boxes", "classes", "difficult"}:  # which have room for as many as COCO has
        assert (planned[name].shape, planned[name].dtype) == (batch[name].shape, batch[name].dtype)
    assert planned["boxes"].shape == (8, 128, 4) and planned["classes"].dtype == batch["classes"].dtype
    calls = []

    def stopping(step):
        def call(*arguments):
            calls.append(arguments[1]["image"].shape)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return step(*arguments)

        return call

    with pytest.raises(KeyboardInterrupt), RunFolder(str(tmp_path / "cut"), recipe, built.facts) as folder:
        fit(built, source, seed=recipe.seed, folder=folder, watched=stopping)
    train.run_stages(recipe, str(tmp_path / "cut"))
    ends = [load_weights(str(tmp_path / name), built.shapes) for name in ("whole", "cut")]
    assert int(ends[0].step) == 8 and set(calls) == {(8, 32, 64, 3), (8, 64, 32, 3)}
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)

    # What is done after the last step is in its checkpoint, of either run, and done once.
    for end in ends:
        finished = end.model_state["encoder"]["finished"]
        np.testing.assert_array_equal(finished, [1, 8, int(batch["index"].sum())])

    # One device computes what eight do.
    alone = program.build(recipe, built.facts, mesh=sharding.make_mesh(1))
    state = fit(alone, source, seed=recipe.seed)
    np.testing.assert_allclose(state.params["encoder"]["w"], ends[0].params["encoder"]["w"], rtol=1e-5)

    found = evaluate.measure(
        recipe, str(tmp_path / "whole"), ("detection",), (), tmp_path / "gallery.npz", "evaluate", {}, "0"
    )
    ((_, row),) = list(found)
    assert row["AP"] == pytest.approx(100.0) and row["n"] == 21 and row["features"] == "finder"


def test_a_step_is_compiled_once_for_each_shape():
    traced = []

    @jax.jit
    def step(state, batch, key):
        traced.append(batch["image"].shape)
        return state + batch["image"].sum(), {}

    said = []
    advance = by_shape(step, said.append)
    state = jnp.zeros(())
    for shape in ((2, 3), (3, 2), (2, 3), (3, 2)):
        state, _ = advance(state, {"image": jnp.ones(shape)}, jax.random.key(0))
    assert traced == [(2, 3), (3, 2)] and len(said) == 2 and float(state) == 24.0


def test_the_preview_shows_the_first_batch_under_its_boxes(recipe, tmp_path):
    from PIL import Image

    source = sources.load(recipe.data, "train")
    rows = overlays.training(recipe, source, 8)
    batch = next(loader.train_batches(source, recipe))
    for b, (stored, first, *later) in enumerate(rows):
        np.testing.assert_array_equal(first.image, batch["image"][b])
        np.testing.assert_array_equal(first.boxes, batch["boxes"][b])
        assert first.names == [source.class_names[batch["classes"][b, 0]]]
        assert stored.image.shape[:2] == tuple(batch["original"][b])
        assert len(later) == overlays.TIMES - 1
    overlays.sheet(tmp_path / "sheet.png", "scenes", rows)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    line = np.rint(255 * np.array(overlays.colour(batch["classes"][0, 0]))).astype(int)
    assert (np.abs(pixels - line).max(axis=1) < 8).sum() > 200

    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = overlays.over(image, np.array([[0, 1], [255, 1]], np.uint8))
    assert drawn[0, 0].tolist() == [100] * 3 and drawn[1, 0].tolist() == [185] * 3
    np.testing.assert_allclose(drawn[0, 1], 45 + 0.55 * 255 * np.array(overlays.colour(1)), atol=0.5 + 1e-9)
