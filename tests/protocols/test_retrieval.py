"""R-MAC and mean average precision by DeepCluster's and revisitop's code, and sets for retrieval by hand."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ssljax import models
from ssljax.config import resolve
from ssljax.data import landmarks
from ssljax.pictures.shown import retrieval_blocks
from ssljax.protocols import PROTOCOLS, ranking, rmac
from ssljax.protocols.bench import Bench


@pytest.fixture(scope="module")
def g(golden):
    return golden("retrieval")


def test_regions_are_the_released_ones(g):
    for case in range(5):
        height, width = g[f"regions{case}/map_hw"].tolist()
        np.testing.assert_array_equal(rmac.regions(height, width), g[f"regions{case}/xywh"])
    assert len(rmac.regions(32, 32)) == 14
    assert rmac.regions(1, 1) == [(0, 0, 1, 1)]  # the squares of the other levels are empty


@pytest.mark.slow
def test_descriptors_are_the_released_ones(g):
    maps = [jnp.asarray(g[f"{name}_nchw"].transpose(0, 2, 3, 1)) for name in ("feature_map", "feature_map2")]
    vectors = [np.asarray(rmac.region_vectors(one)) for one in maps]
    np.testing.assert_allclose(vectors[0], g["region_descriptors"], atol=1e-6)

    rows = g["pca/fit_rows"]
    whitening = rmac.fit(rows, int(g["pca/n_components"]))
    np.testing.assert_allclose(whitening.mean, g["pca/mean"][0], atol=1e-6)
    np.testing.assert_allclose(abs(rmac.whiten(rows, whitening)), g["pca/apply_on_fit_rows_abs"], atol=1e-5)

    one, other = (rmac.descriptor(found[0], whitening) for found in vectors)
    np.testing.assert_allclose(abs(one), g["rmac_whitened_abs_map1"][0], atol=1e-5)
    np.testing.assert_allclose(one @ other, g["rmac_whitened_dot_map1_map2"], atol=1e-5)
    assert not np.asarray(rmac.region_vectors(jnp.zeros((1, 3, 3, 2)))).any()


def truth(g):
    rows = {name: [np.flatnonzero(row) for row in g[name]] for name in ("easy", "hard", "junk")}
    both = lambda a, b: [np.concatenate(pair) for pair in zip(rows[a], rows[b], strict=True)]  # noqa: E731
    return rows, both


def test_mean_average_precision_is_revisitops(g):
    rows, both = truth(g)
    similarity = g["similarity_db_by_query"].T
    for name, wanted, junk in (
        ("easy", rows["easy"], both("junk", "hard")),
        ("medium", both("easy", "hard"), rows["junk"]),
        ("hard", rows["hard"], both("junk", "easy")),
    ):
        mean, each, precisions = ranking.mean_ap(similarity, wanted, junk)
        np.testing.assert_allclose(mean, g[f"{name}/map"], rtol=1e-9)
        np.testing.assert_allclose(each, g[f"{name}/ap"], rtol=1e-9)
        if f"{name}/mp_at_1_5_10" in g:
            np.testing.assert_allclose(list(precisions.values()), g[f"{name}/mp_at_1_5_10"], rtol=1e-9)


@pytest.mark.parametrize(
    "ranks, count, expected", [([0, 2], 2, 0.791667), ([1], 1, 0.25), ([0, 2], 3, 0.527778)]
)
def test_trapezoids_by_hand(ranks, count, expected):
    """A positive that is never retrieved adds nothing."""
    similarity = -np.arange(4.0)
    found, _ = ranking.trapezoid(similarity, np.array(ranks), np.array([], int))
    assert found * len(ranks) / count == pytest.approx(expected, abs=1e-6)
    shifted = np.append(5.0, similarity)  # junk in front changes nothing
    found, places = ranking.trapezoid(shifted, np.array(ranks) + 1, np.array([0]))
    assert found * len(ranks) / count == pytest.approx(expected, abs=1e-6) and places.tolist() == ranks


@pytest.mark.parametrize(
    "hits, eleven, area, step",
    [([1, 0, 1], 0.848485, 0.833333, 0.833333), ([0, 1, 1], 0.666667, 0.666667, 0.583333)],
)
def test_average_precisions_by_hand(hits, eleven, area, step):
    arguments = np.array([3.0, 2.0, 1.0]), np.array(hits, bool)
    assert ranking.eleven_points(*arguments) == pytest.approx(eleven, abs=1e-6)
    assert ranking.envelope(*arguments) == pytest.approx(area, abs=1e-6)
    assert ranking.step(*arguments) == pytest.approx(step, abs=1e-6)


def picture(file, colour, size=(40, 20)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def test_revisited_truth_is_read_without_running_it(tmp_path):
    for name in "abcdq":
        picture(tmp_path / "jpg" / f"{name}.jpg", "red")
    one = {"bbx": [1.0, 2.0, 30.0, 18.0], "easy": np.array([0]), "hard": [2], "junk": [3]}
    stored = {"imlist": list("abcd"), "qimlist": ["q"], "gnd": [one]}
    file = tmp_path / "gnd_roxford5k.pkl"
    file.write_bytes(pickle.dumps(stored))
    found = landmarks.load(str(tmp_path))
    assert found.protocol == "revisited" and found.boxes == [(1.0, 2.0, 30.0, 18.0)]
    parts = {name: [each[0].tolist() for each in pair] for name, pair in found.found.items()}
    assert parts == {"easy": [[0], [3, 2]], "medium": [[0, 2], [3]], "hard": [[2], [3, 0]]}

    file.write_bytes(pickle.dumps({"imlist": print}))
    with pytest.raises(ValueError, match="it asks for builtins.print"):
        landmarks.load(str(tmp_path))


def test_original_truth_keeps_the_query_and_drops_damaged_files(tmp_path):
    for name in ("all_souls_000013", "all_souls_000002", "x_1", "paris_louvre_000136"):
        picture(tmp_path / "jpg" / f"{name}.jpg", "red")
    texts = {
        "query": "oxc1_all_souls_000013 1.5 2 30 18",
        "good": "all_souls_000013\n",
        "ok": "",
        "junk": "x_1",
    }
    for kind, text in texts.items():
        (tmp_path / "lab").mkdir(exist_ok=True)
        (tmp_path / "lab" / f"all_souls_1_{kind}.txt").write_text(text)
    found = landmarks.load(str(tmp_path))
    assert len(found.files) == 3 and found.boxes == [(1.5, 2.0, 30.0, 18.0)]
    wanted, junk = found.found[""]
    assert (wanted[0].tolist(), junk[0].tolist()) == ([1], [2])


def test_images_are_resized_to_few_shapes_and_boxes_cut_after_that():
    assert landmarks.shape_of(768, 1024, 1024) == (768, 1024)
    assert landmarks.shape_of(1000, 400, 1024) == (1024, 416)  # 409.6
    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 40:120] = 255
    assert landmarks.resized(image, 64).shape == (32, 64, 3)
    part = landmarks.resized(image, 64, (40, 20, 120, 60))
    assert part.shape == (12, 24, 3) and part[2:-2, 2:-2].min() > 250
    assert landmarks.squashed(image, 8, (44, 24, 116, 56)).min() == 255


@pytest.mark.slow
def test_a_folder_is_judged_with_any_network(tmp_path):
    """A map that is the image itself: images of one colour find each other."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    entries = []
    for colour, rgb in colours.items():
        for i in range(2):
            picture(tmp_path / "set" / "images" / f"{colour}{i}.png", rgb, size=(40, 20 + 12 * i))
            entries.append({"file": f"{colour}{i}.png", "place": colour, "kind": "plain"})
    picture(tmp_path / "set" / "images" / "alone.png", "white")
    entries.append({"file": "alone.png", "place": "alone"})
    (tmp_path / "set" / "index.json").write_text(json.dumps(entries))
    settings = {"retrieval": str(tmp_path / "set"), "retrieval_pca": "none", "retrieval_size": 32}
    config = ConfigDict({"data": {"image_size": 8, "channels": 3}, "evaluate": settings})
    shapes = set()

    def last_map(images, reduce):
        shapes.add(images.shape)
        return np.asarray(reduce(jnp.asarray(images, jnp.float32)))

    one = Bench(config, "simclr", 0, None, None, None, None, last_map=last_map)
    assert PROTOCOLS["retrieval"].refuse(one) == ""
    (found,) = PROTOCOLS["retrieval"].judge(one)
    assert found["protocol"] == "retrieval_set" and found["n"] == 6 and found["map"] == 100.0
    assert found["settings"]["map_by_kind"] == {"plain": 100.0}
    shown = found["shown"]
    assert shown["query"].shape == (6, 64, 64, 3) and shown["nearest"].shape == (6, 6, 64, 64, 3)
    assert shown["right"].tolist() == [[True, *[False] * 5]] * 6  # the query itself is not among them
    np.testing.assert_array_equal(shown["query"][0, 32, 32], shown["nearest"][0, 0, 32, 32])
    np.testing.assert_array_equal(shown["precision"], 1)
    figures = retrieval_blocks(gallery(tmp_path / "g.npz", shown), "retrieval_set", "x", tmp_path)
    assert [Image.open(tmp_path / block.content[0]).size[0] > 300 for block in figures] == [True, True]
    assert shapes == {(1, 16, 32, 3), (1, 26, 32, 3)}

    config.evaluate.retrieval = str(tmp_path / "none")
    assert "there is no folder" in PROTOCOLS["retrieval"].refuse(one)
    del entries[1::2]
    (tmp_path / "set" / "index.json").write_text(json.dumps(entries))
    config.evaluate.retrieval = str(tmp_path / "set")
    assert "every place has one image" in PROTOCOLS["retrieval"].refuse(one)


def test_cpcs_grid_of_patches_has_no_map_of_images_of_any_size():
    stated = {"method": "cpc", "model": {"name": "cpc_r8", "patch": 8, "stride": 4}}
    net = models.backbone(resolve(ConfigDict(stated)).model)
    assert not models.convolutional(net)
    assert models.convolutional(net.clone(whole=True))


def gallery(file, shown):
    """A gallery with these examples of one kind of features."""
    fields = {f"retrieval_set/simclr/{name}": values for name, values in shown.items()}
    np.savez(file, kinds=np.array(["simclr"]), **fields)
    return np.load(file)


def test_precision_at_recalls_by_hand():
    """Found at the ranks 0 and 2 once the junk in front is gone: a recall of 0.5 costs nothing."""
    similarity = np.array([9.0, 5.0, 4.0, 3.0])
    found = ranking.precision_at_recalls(similarity, np.array([1, 3]), np.array([0]))
    np.testing.assert_allclose(found, [1.0] * 6 + [2 / 3] * 5)


@pytest.mark.slow
def test_the_last_map_of_an_alexnet_takes_any_size():
    stated = {"method": "supervised", "model": {"name": "alexnet_bn", "width": 0.05}}
    net = models.backbone(resolve(ConfigDict(stated)).model)
    params, statistics, _ = jax.jit(lambda key: models.initialise(net, key, (96, 96, 3)))(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (1, 96, 96, 3))
    expected = jax.jit(lambda x: models.activation(net, params, statistics, x, "conv5"))(image)
    last = jax.jit(lambda x: models.last_map(net, params, statistics, x))
    np.testing.assert_allclose(last(image), expected, rtol=1e-6)
    assert last(jnp.zeros((1, 96, 192, 3))).shape[2] > expected.shape[2]
