"""`ssljax.load` and `ssljax embed`: what they give is what evaluation sees."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import load_file

import ssljax
from configs import deit, simclr, supervised
from ssljax import embed, export, sharding
from ssljax.config import flat, stages
from ssljax.config.stored import restored
from ssljax.convert import __main__ as convert
from ssljax.data import sources
from ssljax.program import build, encoded, open_run
from ssljax.run.folder import RunFolder, facts_of
from tests.processes import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        mesh = sharding.make_mesh(1)
        patch.setattr(sharding, "make_mesh", lambda fsdp=1: mesh)  # compiles sooner than for eight
        yield


def trained(folder, config):
    """A run's folder with the checkpoint of step 0, and the digits it was made for."""
    source = sources.load(config.data, "train")
    program = build(config, source.facts)
    with RunFolder(str(folder), config, program.facts) as run:
        run.save(program.init(1), {})
    return str(folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """SimCLR with a small network."""
    config = simclr.get_config("digits").unlock()
    config.model.update(width=0.125, stem="cifar")
    config.evaluate.batch_size = 50
    return trained(tmp_path_factory.mktemp("digits"), config.lock())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The same network for colour images of 40 pixels that are cropped on the host, and seven such images."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(7):
        (folder / "images" / f"day {i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (60 + 4 * i, 90 - 5 * i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"day {i % 2}" / f"{i}.png")
    config = simclr.get_config("folder").unlock()
    config.data.update(source=f"folder:{folder / 'images'}", image_size=40, labels="none")
    config.model.update(name="resnet8", width=0.125, dtype="float32")
    config.batch_size = 2
    config.evaluate.batch_size = 4
    return trained(folder / "run", config.lock()), folder / "images"


def test_importing_ssljax_imports_no_jax():
    code = "import sys, ssljax; assert 'jax' not in sys.modules; print(ssljax.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ssljax.__version__


@pytest.mark.parametrize("module", [simclr, deit])
def test_a_config_comes_back_from_its_file_as_it_was(module):
    for preset in module.PRESETS:
        for stage in stages(module.get_config(preset)).values():
            back = restored(json.loads(stage.to_json()))
            assert back.to_dict() == stage.to_dict()  # tuples too, which JSON has not
            assert flat(back) == flat(stage)


def test_encode_gives_what_evaluation_sees(digits):
    network = ssljax.load(digits)
    test = sources.load(network.config.data, "test")
    run = open_run(network.config, facts_of(digits), digits)
    expected = encoded(run.encode, run.mesh, network.config, test).features
    assert expected.shape == (297, 32)
    np.testing.assert_array_equal(network.encode(test.images), expected)
    np.testing.assert_array_equal(network.encode(list(test.images[:3, :, :, 0])), expected[:3])
    assert repr(network) == f"<ssljax network: simclr:digits, resnet8, step 0, 16 px, {digits}>"


def test_paths_pillow_images_and_arrays_of_many_sizes_are_prepared_as_in_evaluation(photographs):
    workdir, folder = photographs
    network = ssljax.load(workdir)
    paths = sorted(folder.rglob("*.png"))
    everything = network.config.data.copy_and_resolve_references().unlock()
    everything.holdout = 0.5
    held = sources.load(everything, "test")
    run = open_run(network.config, facts_of(workdir), workdir)
    expected = encoded(run.encode, run.mesh, network.config, held)
    names = [held.describe(i) for i in range(len(held))]
    assert len(names) == 4 and names == sorted(names)
    np.testing.assert_array_equal(network.encode(names), expected.features)

    pillow = [Image.open(path) for path in paths]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    features = network.encode(paths)
    assert features.shape == (7, 32) and features.dtype == np.float32
    np.testing.assert_array_equal(network.encode(pillow), features)
    np.testing.assert_array_equal(network.encode(arrays), features)
    grey = pillow[0].convert("L")
    np.testing.assert_array_equal(network.encode([grey]), network.encode([grey.convert("RGB")]))
    print_colours = pillow[0].convert("CMYK")
    np.testing.assert_array_equal(
        network.encode([print_colours]), network.encode([print_colours.convert("RGB")])
    )


def test_more_images_than_fit_at_once(digits, monkeypatch):
    network = ssljax.load(digits)
    test = sources.load(network.config.data, "test")
    whole = network.encode(test.images[:60])
    monkeypatch.setattr("ssljax.network.AT_ONCE", 25)
    np.testing.assert_allclose(network.encode(test.images[:60]), whole, rtol=1e-6)


def test_maps_of_a_layer_and_their_mean_over_positions_is_the_feature(digits):
    network = ssljax.load(digits)
    test = sources.load(network.config.data, "test").images[:5]
    maps = network.maps(test, "group3")
    assert maps.shape == (5, 4, 4, 32)
    np.testing.assert_allclose(maps.mean((1, 2)), network.encode(test), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no layer 'stage3'; its layers are stem, group1, group2, group3"):
        network.maps(test, "stage3")


def test_classify_is_the_head_on_the_features(tmp_path):
    config = supervised.get_config("digits").unlock()
    config.model.width = 0.125
    network = ssljax.load(trained(tmp_path, config.lock()))
    test = sources.load(config.data, "test").images[:9]
    head = load_head(network.workdir)
    by_hand = network.encode(test) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    assert by_hand.shape == (9, 10)
    np.testing.assert_allclose(network.classify(test), by_hand, rtol=1e-5, atol=1e-6)


def load_head(workdir):
    """The arrays of the linear classifier, as Orbax gives them."""
    stored = ocp.StandardCheckpointer().restore(f"{workdir}/checkpoints/0/default")
    return stored["params"]["head"]["dense"]


def test_a_method_without_labels_has_no_classifier(digits):
    with pytest.raises(ValueError, match="simclr learns no classes.*has no classifier: fit one"):
        ssljax.load(digits).classify([np.zeros((16, 16, 1), np.uint8)])


@pytest.mark.parametrize(
    "given, error, message",
    [
        ([], ValueError, "there are no images"),
        ("one.png", ValueError, r"put a single image into a list"),
        (np.zeros((16, 16), np.uint8), ValueError, r"put a single image into a list"),
        (["nowhere.png"], FileNotFoundError, "image 0: there is no file nowhere.png"),
        ([np.zeros((16, 16, 1))], ValueError, r"image 0 is float64 of shape \[16, 16, 1\].*uint8"),
        (
            [np.eye(16)],
            ValueError,
            r"with values from 0 to 1: .*255; scale its values to 0..255.*255 \* image",
        ),
        (np.full((2, 9, 9, 3), 200.0), ValueError, "image 0 is float64 of .*with values from 200 to 200"),
        ([Image.new("F", (4, 4), 0.5)], ValueError, "a Pillow image of floats from 0.5 to 0.5"),
        ([np.zeros((16, 16, 2), np.uint8)], ValueError, r"image 0 is uint8 of shape \[16, 16, 2\]"),
        ([3], ValueError, "image 0 is int of shape"),
        ([__file__], ValueError, "test_network.py cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_named(digits, given, error, message):
    with pytest.raises(error, match=message):
        ssljax.load(digits).encode(given)


def test_images_of_16_bits_and_of_another_size_are_prepared_and_raw_ones_refused(digits):
    network = ssljax.load(digits)
    grey = np.random.default_rng(0).integers(0, 2**16, (16, 16))
    expected = network.encode([np.uint8(grey >> 8)])
    for wide in (Image.fromarray(grey.astype(np.int32)), Image.fromarray(grey.astype(np.uint16))):
        np.testing.assert_array_equal(network.encode([wide]), expected)
    twice = np.uint8(grey >> 8).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(network.encode([twice]), expected, rtol=0.2, atol=0.2)
    for raw in (twice[None, :, :, None], np.float32(grey >> 8)[None, :, :, None]):
        with pytest.raises(ValueError, match=r"this network takes uint8 \[N, 16, 16, 1\] with values from 0"):
            network.evaluated.encode(raw)


def test_a_folder_without_a_run_names_the_runs_below_it(digits, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run in .*no config.json.*--workdir"):
        ssljax.load(str(tmp_path))
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="or one of the runs below it: seed0"):
        ssljax.load(str(tmp_path))
    with pytest.raises(ValueError, match="stage='finetune': the stages of .* are none, it is a single run"):
        ssljax.load(digits, stage="finetune")


# ----------------------------------------------------------------------------------------------- ssljax embed


def embedded(workdir, folder, out, *flags):
    embed.main([f"--workdir={workdir}", f"--images={folder}", f"--out={out}", *flags])


def test_embed_writes_paths_and_features_in_three_formats(photographs, tmp_path, capsys):
    workdir, folder = photographs
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    features = ssljax.load(workdir).encode(paths)

    embedded(workdir, folder, tmp_path / "a.npz")
    assert capsys.readouterr().out == f"{tmp_path}/a.npz: 7 images, 32 features each\n"
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["path"].tolist() == paths
    np.testing.assert_array_equal(arrays["features"], features)

    embedded(workdir, folder, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert rows[0] == ["path", *(f"f{i}" for i in range(32))]
    assert [row[0] for row in rows[1:]] == paths
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], np.float32), features)

    embedded(workdir, folder, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["path", "features"]
    assert table["path"].to_pylist() == paths
    np.testing.assert_array_equal(np.float32(table["features"].to_pylist()), features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.npz", "a.parquet"]


def test_embed_stops_at_an_unreadable_file_or_leaves_it_out(photographs, tmp_path, capsys):
    workdir, folder = photographs
    copy = tmp_path / "images"
    shutil.copytree(folder, copy)
    (copy / "day 0" / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="3.jpg cannot be read as an image.*--on_bad_image skip"):
        embedded(workdir, copy, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()

    embedded(workdir, copy, tmp_path / "a.npz", "--on_bad_image=skip")
    assert capsys.readouterr().out.endswith("7 images, 32 features each, 1 of 8 files left out\n")
    arrays = np.load(tmp_path / "a.npz")
    assert [path.rsplit("/", 1)[1] for path in arrays["path"]] == [f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5)]


def test_embed_leaves_out_what_only_the_decoder_finds(photographs, tmp_path, capsys):
    workdir, folder = photographs
    copy = tmp_path / "images"
    shutil.copytree(folder, copy)
    bad = copy / "day 0" / "4.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:200] + bytes(200) + content[400:])
    with pytest.raises(SystemExit, match="4.png cannot be read as an image.*--on_bad_image skip"):
        embedded(workdir, copy, tmp_path / "a.npz")

    embedded(workdir, copy, tmp_path / "a.npz", "--on_bad_image=skip")
    assert capsys.readouterr().out.endswith("6 images, 32 features each, 1 of 7 files left out\n")
    embedded(workdir, folder, tmp_path / "all.npz")
    some, whole = np.load(tmp_path / "a.npz"), np.load(tmp_path / "all.npz")
    kept = [i for i, path in enumerate(whole["path"]) if not path.endswith("4.png")]
    assert [path[-5:] for path in some["path"]] == [whole["path"][i][-5:] for i in kept]
    np.testing.assert_allclose(some["features"], whole["features"][kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "images, out, message",
    [
        ("nowhere", "a.npz", "--images=nowhere: there is no such folder"),
        ("some/a.jpg", "a.npz", "--images=some/a.jpg is a file: name its folder, --images=some"),
        (".", "a.txt", "--out=a.txt: the file must end in .npz, .parquet, .csv"),
        (".", "nowhere/a.npz", "--out=nowhere/a.npz: there is no folder nowhere"),
        ("some/none", "a.npz", "hold no images"),
    ],
)
def test_embed_refuses_before_it_loads_anything(images, out, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "none").mkdir(parents=True)
    (tmp_path / "some" / "a.jpg").touch()
    with pytest.raises(SystemExit, match=message):
        embedded("no run", images, out)


RELOADED = """
import sys
import jax.export
import numpy as np
network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **network.call(images), first=network.call(images[:1])["features"])
assert not {"ssljax", "flax", "tensorflow"} & set(sys.modules)
"""


@pytest.mark.parametrize("labels", [False, True], ids=["features", "classifier"])
def test_an_exported_network_runs_without_ssljax_on_any_number_of_images(digits, labels, tmp_path, capsys):
    workdir = digits
    if labels:
        config = supervised.get_config("digits_vit").unlock()
        config.model.update(name="vit_xxs", scan=True)
        workdir = trained(tmp_path / "run", config.lock())
    export.main(["--workdir", workdir, "--to", f"stablehlo:{tmp_path / 'network'}"])
    assert ("logits [N, 10]" in capsys.readouterr().out) == labels

    images = sources.load(ssljax.load(workdir).config.data, "test").images[:7]
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("network", "images.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", RELOADED, *files], cwd=tmp_path, check=True)
    out = np.load(tmp_path / "out.npz")
    network = ssljax.load(workdir)
    np.testing.assert_allclose(out["features"], network.encode(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["first"], out["features"][:1], rtol=1e-4, atol=1e-5)
    if labels:
        np.testing.assert_allclose(out["logits"], network.classify(images), rtol=1e-4, atol=1e-5)


def test_a_folder_for_timm_describes_the_network_and_is_read_back(tmp_path, capsys):
    config = supervised.get_config("digits_vit").unlock()
    config.model.name = "vit_xxs"
    workdir = trained(tmp_path / "run", config.lock())
    network = ssljax.load(workdir)
    folder = tmp_path / "hf"
    export.main(["--workdir", workdir, "--to", f"hf:{folder}"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]

    said = json.loads((folder / "config.json").read_text())
    assert said["architecture"] == "vit_base_patch16_224"
    assert (said["num_classes"], said["num_features"]) == (10, 32)
    sizes = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 16, "in_chans": 1}
    assert said["model_args"] == sizes | {"global_pool": "token"}
    images = {"input_size": [1, 16, 16], "mean": [0.0], "std": [1.0], "crop_pct": 1.0}
    assert images.items() <= said["pretrained_cfg"].items()
    arrays = load_file(folder / "model.safetensors")
    params = network.evaluated.params
    assert len(arrays) == 4 + 2 * 12 + 2 + 2  # tokens and patches, two blocks, norm, head
    np.testing.assert_array_equal(arrays["head.weight"], params["head"]["dense"]["kernel"].T)
    kernel = np.asarray(params["encoder"]["patch"]["kernel"])  # rows are pixels of a patch
    np.testing.assert_array_equal(arrays["patch_embed.proj.weight"], kernel.T.reshape(32, 1, 4, 4))
    card = (folder / "README.md").read_text()
    for line in (
        "library_name: timm",
        "license: other",
        "`digits`, 1,500 images",
        "`ssljax evaluate` was not",
    ):
        assert line in card

    again = tmp_path / "again"
    words = ["--config", "supervised:digits_vit", "--config.model.name=vit_xxs", "--workdir", str(again)]
    convert.main([*words, "--from", f"hf:{folder}"])
    assert "licence: not-chosen-yet\n" in capsys.readouterr().out
    test = sources.load(config.data, "test").images[:5]
    np.testing.assert_array_equal(ssljax.load(str(again)).encode(test), network.encode(test))


def test_export_refuses_what_it_cannot_write(digits, tmp_path):
    with pytest.raises(SystemExit, match="say stablehlo:FILE or hf:DIR; weights alone.*ssljax convert"):
        export.main(["--workdir", digits, "--to", "network.onnx"])
    with pytest.raises(SystemExit, match="model.shortcut is 'simclr'.*ssljax export .*--to=stablehlo:FILE"):
        export.main(["--workdir", digits, "--to", f"hf:{tmp_path / 'hf'}"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="is there already and not an empty folder"):
        export.main(["--workdir", digits, "--to", f"hf:{digits}"])
    with pytest.raises(SystemExit, match="there is no folder"):
        export.main(["--workdir", digits, "--to", f"stablehlo:{tmp_path}/nowhere/x"])
    with pytest.raises(SystemExit, match="there is no run in"):
        export.main(["--workdir", str(tmp_path), "--to", f"stablehlo:{tmp_path}/x"])
