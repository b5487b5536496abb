"""Every leaf of a preset is read when a run is built, a step is traced or batches are made."""

import importlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssljax import config, earlier, models, plan, program, sharding
from ssljax.data import annotated, crops, loader, policies, sources
from ssljax.models import beit_vit, cpc, vit
from ssljax.models.resnet import Basic
from ssljax.types import TrainState

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Groups of one block, and a gradient that is not derived: what is left reads every key."""

    def value_and_grad(loss, has_aux):
        return lambda params, *rest: (loss(params, *rest), params)

    monkeypatch.setattr(jax, "value_and_grad", value_and_grad)
    for name, (block, counts) in models.BACKBONES.items():
        monkeypatch.setitem(models.BACKBONES, name, (block, (1,) * len(counts)))
    monkeypatch.setitem(models.BACKBONES, "resnet8", (Basic, (1, 1)))
    for name, stacks in cpc.STACKS.items():
        monkeypatch.setitem(cpc.STACKS, name, tuple(stack._replace(blocks=1) for stack in stacks))
    for sizes in (vit.SIZES, beit_vit.SIZES):
        for name, (width, _, heads) in sizes.items():
            monkeypatch.setitem(sizes, name, (width, 1, heads))


# Keys that the verbs read around a step: logging, checkpoints, evaluation (which crops on the host), names.
AROUND = (
    "name",
    "preset",
    "log_every",
    "eval_every_epochs",
    "checkpoint.",
    "evaluate.",
    "data.eval_crop",
    "data.background",  # of pictures that a trained network is given
    "augment.antialias",
    "augment.resize",
)
# Keys that say which images to use. The large data sets are not on this machine.
WHERE = (
    "data.source",
    "data.data_dir",
    "data.train_split",
    "data.test_split",
    "data.on_bad_image",
    "data.background",
    "data.labels",
    "data.holdout",
    "data.train_per_class",
    "data.label_fraction",
    "data.label_list",
    "data.labels_per_class",
    "data.subset_seed",
    "data.keep_unlabelled",
    "data.unlabelled",
    "data.unlabelled_split",
    "data.num_classes",
    "data.num_examples",
)
# Keys that a method reads in its looks at the training data, which are tested with the methods.
LOOKED = (
    "clusters.iterations",
    "clusters.algorithm",
    "clusters.repair",
    "clusters.distinct",
    "clusters.shuffled",
    "detector.precise_bn",
)


class Recording(ConfigDict):
    """A ConfigDict that notes which keys are read; so do its copies."""

    def __getitem__(self, key: str):
        value = super().__getitem__(key)
        if "_notes" in self.__dict__:
            seen, prefix = self.__dict__["_notes"]
            seen.add(prefix + key)
        return value

    def copy_and_resolve_references(self, visit_map=None):
        copy = super().copy_and_resolve_references(visit_map)
        return recording(copy, *self.__dict__["_notes"]) if "_notes" in self.__dict__ else copy


def recording(c: ConfigDict, seen: set[str], prefix: str = "") -> ConfigDict:
    """Makes a ConfigDict and its sections note the keys that are read in `seen`."""
    for name, section in list(c._fields.items()):
        if isinstance(section, ConfigDict):
            recording(section, seen, f"{prefix}{name}.")
    object.__setattr__(c, "__class__", Recording)
    object.__setattr__(c, "_notes", (seen, prefix))
    return c


def stage_of(paper: str, preset: str, stage: str) -> ConfigDict:
    c = importlib.import_module(f"configs.{paper}").get_config(preset)
    return config.stages(c)[stage].copy_and_resolve_references()


def traced(built: program.Program) -> None:
    """Traces a step, the features and the classifier, or what is found in images, from shapes alone."""
    state = built.shapes
    arguments = plan.arguments(built)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        jax.eval_shape(built.step, *arguments)
    if built.method.predict is not None:
        jax.eval_shape(built.method.predict, state.params, state.model_state, state.extra, arguments[1])
        return
    c = built.config
    image = jax.ShapeDtypeStruct((2, c.data.image_size, c.data.image_size, c.data.channels), np.uint8)
    features = jax.eval_shape(built.encode, state.params, state.model_state, state.extra, image)
    if built.method.classify is not None:
        jax.eval_shape(built.method.classify, state.params, state.extra, features)


def adopted(built: program.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces loading `init_from` and a teacher; the fresh state stands in for their checkpoints."""
    monkeypatch.setattr(earlier, "evaluated_part", lambda run, part: f"{part}/encoder")
    monkeypatch.setattr(earlier, "load_parts", lambda run, like, resize, optional: dict(like))
    state = jax.eval_shape(lambda s: earlier.start_from(built, {})(s), built.shapes)
    assert isinstance(state, TrainState)


def unread(c: ConfigDict, seen: set[str], exempt: tuple[str, ...]) -> set[str]:
    return {name for name in config.flat(c) if name not in seen and not name.startswith(exempt)}


def small_stages() -> list[tuple[str, str, str]]:
    """(paper, preset, stage) of every digits preset."""
    found = []
    for paper in (
        "simclr",
        "moco",
        "byol",
        "deepcluster",
        "deit",
        "supervised",
        "linear",
        "dvae",
        "beit",
        "cpc",
        "detection",
        "segmentation",
        "multilabel",
        "predictive",
        "cmc",
        "simclr_v2",
    ):
        module = importlib.import_module(f"configs.{paper}")
        for preset in module.PRESETS:
            if preset.startswith("digits"):
                stages = config.stages(module.get_config(preset))
                found += [(paper, preset, stage) for stage in stages]
    return found


DIGITS = small_stages()


@pytest.mark.parametrize(
    "paper, preset, stage", DIGITS, ids=["-".join(filter(None, case)) for case in DIGITS]
)
def test_every_leaf_of_a_small_preset_is_read(paper, preset, stage, monkeypatch):
    plain = stage_of(paper, preset, stage)
    seen = set()
    c = recording(plain.copy_and_resolve_references(), seen).lock()

    source = sources.load(c.data, "train")
    built = program.build(c, sources.facts(c.data, source), sharding.make_mesh(1, fsdp=c.sharding.fsdp))
    traced(built)
    adopted(built, monkeypatch)
    balance = np.zeros(len(source), np.int32) if built.method.balance is not None else None
    next(loader.train_batches(source, c, balance=balance))
    if c.data.annotations:
        next(annotated.eval_batches(source, c, batch_size=8))
    else:
        next(loader.eval_batches(source, c, batch_size=8))
    looked = LOOKED if built.method.refresh is not None or built.method.finish is not None else ()
    assert unread(plain, seen, (*AROUND, *looked)) == set()


# Presets with keys that no digits preset of their method has.
IMAGENET = [
    ("deit", "imagenet_b", ""),
    ("moco", "imagenet_vit_b_v3", ""),
    ("byol", "imagenet_r50_e300", ""),
    ("deepcluster", "imagenet_alexnet", ""),
    ("moco", "imagenet_r50_v1", ""),
    ("moco", "imagenet_vit_b_v3_linear", "linear"),
    ("deepcluster", "imagenet_alexnet_linear", "linear"),
    ("deepcluster", "imagenet_r50_v2", ""),
    ("deit", "imagenet_b_distilled_384", "finetune"),
    ("dvae", "imagenet", ""),
    ("beit", "imagenet_b", "pretrain"),
    ("beit", "imagenet_b_plus", "finetune"),
    ("beit", "imagenet_b_linear", "linear"),
    ("cpc", "imagenet_r161", ""),
    ("detection", "voc", ""),
    ("segmentation", "voc", ""),
    ("segmentation", "voc_alexnet_fc6_8", ""),
    ("multilabel", "voc_alexnet_fc6_8", ""),
]


FEWER_LAYERS = {  # to trace
    "model.name": {"resnet50": "resnet8", "cpc_r161": "cpc_r8"},
    "model.blocks": {2: 1},
    "probe.layer": {"block8": "block0"},
}


@pytest.mark.parametrize(
    "paper, preset, stage", IMAGENET, ids=[f"{paper}-{preset}" for paper, preset, _ in IMAGENET]
)
def test_every_leaf_of_a_large_preset_is_read(paper, preset, stage, monkeypatch):
    plain = stage_of(paper, preset, stage)
    seen = set()
    if "distill" in plain and plain.distill.name != "none":
        plain.unlock().distill.teacher = "elsewhere"
    flat = config.flat(plain)
    fewer = {name: values[flat[name]] for name, values in FEWER_LAYERS.items() if flat.get(name) in values}
    plain.unlock().update_from_flattened_dict(fewer)
    c = recording(plain.copy_and_resolve_references(), seen).lock()
    built = program.build(c, plan.known_facts(c, 0), sharding.make_mesh(1, fsdp=c.sharding.fsdp))
    traced(built)
    if paper == "multilabel":  # its `adopt` asks where arrays lie, and shapes lie nowhere
        built = built._replace(method=built.method._replace(adopt=None))
    adopted(built, monkeypatch)
    if c.data.annotations:
        data = c.data.copy_and_resolve_references().unlock()
        data.update(source="digits", categories=())
        scenes = sources.load(data, "train")
        annotated.training_example(scenes, 0, c, 0)
        annotated.check(c)
        next(annotated.eval_batches(scenes, c, batch_size=1))
    else:
        policies.check(c)
        crops.training_views(np.zeros((240, 250, 3), np.uint8), np.int64([0, 5]), c)
    named = ("epochs",) if plain.steps else ()  # in tables
    assert unread(plain, seen, (*AROUND, *WHERE, *LOOKED, *named, "data.repeats")) == set()


def test_the_recorder_tells_keys_that_are_read_from_those_that_are_not():
    plain = stage_of("simclr", "digits", "")
    seen = set()
    c = recording(plain.copy_and_resolve_references(), seen).lock()
    _ = (c.copy_and_resolve_references().optim.momentum, c.seed)
    assert {"optim.momentum", "seed"} <= seen
    assert "optim.nesterov" in unread(plain, seen, AROUND)
