"""The HLO parser and the arithmetic of a plan, by hand; then real compilations for a v5e slice.

golden/plan_module.hlo is written by hand, in the form in which libtpu 0.0.42 prints a scheduled module. The
compilations need libtpu and are skipped without it.
"""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import simclr, supervised
from ssljax import plan
from ssljax.compiler import ahead, flops, hlo, slices
from ssljax.data import loader, sources
from ssljax.methods import METHODS
from ssljax.program import build
from ssljax.types import Facts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

TEXT = (ROOT / "tests" / "golden" / "plan_module.hlo").read_text()


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


# ------------------------------------------------------------------------------------------ the HLO parser


def test_a_module_is_parsed(module):
    assert module.entry == "main.1"
    assert module.aliases == ((0, 0), (2, 1))
    assert [i.opcode for i in module.computations["body"]] == [
        "parameter",
        "get-tuple-element",
        "fusion",
        "all-reduce",
        "tuple",
    ]
    reduce = module.computations["body"][3]
    assert reduce.operands == ("step.1", "x") and reduce.called == "add"
    assert hlo.arrays(reduce.shape) == [("f32", (8, 4)), ("f32", (4,))]
    assert hlo.arrays(module.computations["body"][4].shape) == [("s32", ()), ("f32", (8, 4))]
    assert module.computations["main.1"][1].op_name == "jit(train_step)/head"


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
    "shape, size",
    [("f32[8,4]{1,0:T(8,128)}", 128), ("bf16[3]", 6), ("pred[]", 1), ("(s32[], u8[10])", 14), ("token[]", 0)],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.shape_bytes(shape) == size


def test_loops_run_as_often_as_their_condition_or_the_compiler_says(module):
    times = {}
    for instruction, n in hlo.executed(module):
        times[instruction.name] = times.get(instruction.name, 0) + n
    assert times["all-reduce.2"] == 5 + 3 and times["fusion.1"] == 1
    assert times["u"] == 1 and "r.1" not in times, "of the branches of a condition the cheapest runs"
    assert hlo.loops(module) == 2


def test_collectives_count_loops_and_what_is_fused(module):
    found = {(c.kind, c.dtype): c for c in hlo.collectives(module)}
    assert set(found) == {("all-reduce", "f32"), ("all-reduce", "bf16"), ("all-gather", "f32")}
    assert (found["all-reduce", "f32"].count, found["all-reduce", "f32"].bytes) == (8, 8 * (8 * 4 + 4) * 4)
    assert (found["all-reduce", "bf16"].count, found["all-reduce", "bf16"].bytes) == (1, 16 * 64 * 2)
    gather = found["all-gather", "f32"]
    found = (gather.count, gather.bytes, gather.largest)
    assert found == (1, 4 * 8 * 4, "f32[4,8]"), "the start prints its operand too"


def test_cycles_are_summed_over_loops(module):
    assert hlo.static_cycles(module) == 700 + 8 * 100
    assert [(cycles, i.name) for cycles, i in hlo.costliest(module, 2)] == [
        (700, "fusion.1"),
        (500, "step.1"),
    ]


def test_products_show_what_they_multiply(module):
    assert hlo.products(module) == [
        hlo.Product("convolution", ("bf16", "f32"), "bf16[16,64]", "jit(train_step)/dot_general", "highest")
    ]


# ------------------------------------------------------------------------------------------ arithmetic


def test_flops_by_hand():
    def program(x, w, kernel, images):
        y, _ = jax.lax.scan(lambda c, _: (jnp.dot(c, w), None), x, None, length=5)
        logits = jnp.dot(y, y.T, precision="highest")
        features = jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return logits, features

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 8), (8, 8), (3, 3, 3, 16), (2, 10, 10, 3))]
    found = flops.count(program, *shapes)
    dots = 5 * 2 * 4 * 8 * 8
    logits = 2 * 4 * 4 * 8
    conv = 2 * (2 * 5 * 5 * 16) * (3 * 3 * 3)
    assert found.written == dots + logits + conv


def test_a_grouped_convolution_costs_three_times_its_forward_pass_to_train():
    """The gradient of its kernel is a convolution with batch groups and one output per weight."""

    def loss(w, x):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )
        return (y * y).sum()

    w = jnp.zeros((3, 3, 4, 32))
    x = jnp.zeros((8, 10, 10, 16))
    forward = 2 * (8 * 10 * 10 * 32) * (3 * 3 * 4)
    assert flops.count(loss, w, x).written == forward
    assert flops.count(jax.grad(loss, (0, 1)), w, x).written == 3 * forward


def test_a_float32_product_at_highest_precision_is_six_passes():
    def product(precision, dtype):
        x = jax.ShapeDtypeStruct((4, 4), dtype)
        return flops.count(lambda x: jnp.dot(x, x, precision=precision), x)

    assert product("highest", jnp.float32) == flops.Flops(128, 6 * 128)
    assert product("high", jnp.float32) == flops.Flops(128, 3 * 128)
    assert product("default", jnp.float32) == flops.Flops(128, 128)
    assert product("highest", jnp.bfloat16) == flops.Flops(128, 128)


def test_the_more_expensive_branch_of_a_condition_counts():
    x = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)
    found = flops.count(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x), x)
    assert found.written == 2 * 128


@pytest.mark.parametrize("name, units", [("v2", 1), ("v3", 2), ("v4", 4), ("v5e", 4), ("v5p", 4)])
def test_peaks_agree_with_clock_and_matrix_units(name, units):
    g = slices.GENERATIONS[name]
    assert g.cores * units * 128**2 * 2 * g.clock == pytest.approx(g.peak_flops, rel=0.005)


def test_topologies():
    slice_ = slices.parse("v4:4x4x4")
    assert (slice_.chips, slice_.topology) == (64, "v4:4x4x4")
    assert slice_.options == {"chip_config_name": "megacore"}
    assert slices.parse("v5e:8x8").options == {}
    assert slices.parse("v5e:1x1").options == {"chips_per_host_bounds": (1, 1, 1)}
    assert [s.topology for s in slices.larger(slices.parse("v5e:8x8"))] == ["v5e:8x16", "v5e:16x16"]
    for wrong in ("v7:2x2", "v5e", "v5e:8", "8x8", ""):
        with pytest.raises(ValueError, match="v5e:8x8"):
            slices.parse(wrong)
    with pytest.raises(ValueError, match="3 axes"):
        slices.parse("v4:8x8")
    assert all(slices.parse(topology).chips == 64 for topology in slices.SWEEP)


def test_sizes_of_data_sets_need_no_data():
    assert plan.known_facts(simclr.get_config("imagenet_r50"), 0) == Facts(1_281_167, 1000, 1_281_167)
    assert plan.known_facts(supervised.get_config("imagenet_r50_1pct"), 0).num_examples == 12_811
    assert plan.known_facts(simclr.get_config("digits"), 0).num_examples == 1500
    folder = simclr.get_config("folder")
    with pytest.raises(ValueError, match="--images N and --config.data.num_classes=C"):
        plan.known_facts(folder, 0)
    with folder.unlocked():
        folder.data.num_classes = 7
    assert plan.known_facts(folder, 900) == Facts(900, 7, 900)


BOX = dict(
    crop="torchvision",
    min_area=0.2,
    max_area=1.0,
    aspect=(3 / 4, 4 / 3),
    interpolation="bicubic",
    resize="tensorflow",
)


@pytest.mark.parametrize(
    "crop_on, named",
    [
        ("device", dict(one=dict(), two=dict())),
        ("host", dict(one=dict(), two=dict())),
        ("host", dict(one=dict(), two=dict(size=8))),
    ],
    ids=["device", "host", "two sizes"],
)
def test_the_batch_of_a_plan_has_the_shapes_that_the_loader_delivers(crop_on, named):
    config = simclr.get_config("digits").unlock()
    config.data.crop_on = crop_on
    config.views = named
    config.augment.update(BOX)
    batches = loader.train_batches(sources.load(config.data, "train"), config)
    delivered = next(batches)
    batches.close()
    planned = plan.abstract_batch(build(config.lock(), plan.known_facts(config, 0)))
    assert {k: (v.shape, v.dtype) for k, v in planned.items()} == {
        k: (v.shape, v.dtype) for k, v in delivered.items()
    }


def test_one_stage_alone_is_planned_for(monkeypatch, capsys):
    planned = []

    def refused(config, *_, **__):
        planned.append(config.method)
        raise ValueError("not compiled here")

    monkeypatch.setattr(plan, "plan", refused)
    monkeypatch.setattr(plan.ahead, "offline", lambda: None)  # it is for a process of its own
    argv = ["--config=simclr:digits_linear", "--topology=v5e:2x2"]
    for flags, method in (([], "simclr"), (["--stage=linear"], "linear")):
        with pytest.raises(SystemExit, match="not compiled here"):
            plan.main([*argv, *flags])
        assert planned.pop() == method and not planned
    with pytest.raises(SystemExit, match="--stage=probe: the stages of this config are pretrain, linear"):
        plan.main([*argv, "--stage=probe"])


def test_candidates_are_the_cheap_edits_first_then_larger_slices():
    config = ConfigDict(dict(accumulate=1, model=dict(remat="none"), sharding=dict(fsdp=1))).lock()
    found = [text for text, _, _ in plan.candidates(config, slices.parse("v5e:8x8"))]
    assert found[:3] == ["--config.model.remat=dots", "--config.model.remat=blocks", "--config.accumulate=2"]
    assert "--config.sharding.fsdp=8" in found
    assert found[-2:] == ["--topology v5e:8x16", "--topology v5e:16x16"]
    edited = {text: edited for text, edited, _ in plan.candidates(config, slices.parse("v5e:8x8"))}
    assert edited["--config.accumulate=4"].accumulate == 4
    assert edited["--config.model.remat=dots"].model.remat == "dots"
    assert config.accumulate == 1 and config.model.remat == "none", "the config itself must not change"


@pytest.mark.parametrize(
    "message, size",
    [
        (
            "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (25.92G) exceeds available "
            "HBM (15.75G).",
            25.92,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm.", 21.5),
        ("RESOURCE_EXHAUSTED: no figures", 0),
    ],
)
def test_what_a_program_needs_is_read_from_the_message(message, size):
    assert ahead.needed_bytes(message) == pytest.approx(size * 2**30, abs=2)


def made_up(**changes):
    """A plan with round numbers."""
    memory = plan.Memory(2**30, 3 * 2**30, 4 * 2**30, 16 * 2**30)
    reduce = hlo.Collective("all-reduce", "bf16", 2, 6_000_000, 4_000_000, "bf16[1000,2000]")
    facts = dict(
        config="paper:preset",
        topology="v5e:8x8",
        kind="TPU v5 lite",
        chips=64,
        devices=64,
        effort="full",
        compile_seconds=90.0,
        batch_size=4096,
        dtype="bfloat16",
        parameters=25_000_000,
        fits=True,
        problem="",
        memory=memory,
        flops=2 * 10**14,
        flops_xla=1.98e14,
        loops=0,
        hbm_bytes=5e10,
        matmul_ms=16.0,
        hbm_ms=61.0,
        bound_by="memory",
        static_ms=70.0,
        collectives=[reduce],
        buffers=[],
        costliest=[],
        steps=36_000,
        epochs=100,
    )
    return plan.Plan(**{**facts, **changes})


def test_a_full_effort_estimate_is_a_range_and_says_what_it_is():
    text = plan.show(made_up())
    for words in (
        "50 to 140 ms per step: 81,920 images/s, 0.5 h to 29,257 images/s, 1.4 h",  # 70 / 1.4 and 70 / 0.5
        "at most 256,000 images/s, 0.16 h",
        "not a measurement",
        "all on v3",
        "peak 4.00 GiB of 16.00 GiB per chip",
        "XLA counts 0.99 of it",
        "16 ms per step, matrix products at peak; 61 ms if the HBM traffic is right: bound by memory",
        "all-reduce bf16: 2, 6.00 MB per chip and step",
    ):
        assert words in text, words
    low = plan.show(made_up(effort="low", static_ms=0.0))
    assert "estimate" not in low, "at low effort the schedule means nothing"
    assert plan.plain(made_up())["estimate"]["step_ms"] == (50.0, 140.0)


def test_a_plan_that_does_not_fit_says_so_with_advice():
    memory = plan.Memory(0, 0, 20 * 2**30, 16 * 2**30)
    text = plan.show(made_up(fits=False, memory=memory, advice="--config.accumulate=2 fits"))
    assert "DOES NOT FIT: needs 20.00 GiB, a chip has 16.00 GiB" in text
    assert "--config.accumulate=2 fits" in text
    assert "images/s" not in text
    assert "NO" in plan.table([made_up(fits=False)])


def test_loops_leave_the_memory_traffic_unknown():
    text = plan.show(made_up(loops=2, hbm_ms=0.0, bound_by="unknown"))
    assert "HBM traffic   not known, the step has loops" in text and "bound by" not in text


# ------------------------------------------------------------------------------------------ libtpu's lock


def test_a_missing_libtpu_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ssljax\[plan\]'"):
        ahead.take_libtpu()


def test_a_second_plan_waits_for_the_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ahead.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ahead, "_held", [])
    with open(tmp_path / "ssljax-libtpu.lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (first, fcntl.LOCK_UN)).start()
        ahead.take_libtpu()
    assert "waiting" in capsys.readouterr().err and len(ahead._held) == 1
    os.close(ahead._held[0])


def test_a_foreign_process_with_libtpu_is_waited_for_and_other_errors_are_not(monkeypatch):
    monkeypatch.setattr(ahead.time, "sleep", lambda seconds: None)
    answers = iter(
        [RuntimeError("ABORTED: Internal error when accessing libtpu multi-process lockfile."), "compiled"]
    )

    def call():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert ahead.patiently(call) == "compiled"
    answers = iter([RuntimeError("INVALID_ARGUMENT: no such topology")])
    with pytest.raises(RuntimeError, match="no such topology"):
        ahead.patiently(call)


# ------------------------------------------------------------------------------------------ real compilations

# One process compiles everything, because libtpu serves one at a time. It runs the command line once, then
# compiles a step of every method, and of SimCLR and the supervised baseline as on photographs (cropped on the
# host, blurred, ResNet), for four chips.
DRIVER = """
import importlib, json, sys
from pathlib import Path
from ssljax import plan
from ssljax.compiler import ahead, slices
out, methods = Path(sys.argv[1]), sys.argv[2].split(",")
plan.main([
    "--config=configs/simclr.py:digits",
    "--config.model.dtype=bfloat16",
    "--topology=v5e:2x2",
    f"--out={out}/plan.json",
])
def config(method, preset):
    c = importlib.import_module(f"configs.{method}").get_config(preset).unlock()
    c = c[c.stages[-1]] if "stages" in c else c
    c.model.dtype = "bfloat16"
    if "teacher" in c:
        c.teacher.dtype = "bfloat16"
    if preset != "digits":
        c.batch_size, c.data.image_size = 64, 64
        c.model.update(name="resnet10", width=0.5)
    return c.lock()
topology = slices.parse("v5e:2x2")
photographs = [("simclr", "imagenet_r50"), ("supervised", "imagenet_r50")]
for method, preset in [*((method, "digits") for method in methods), *photographs]:
    program = plan.program_on(topology, config(method, preset))
    compiled = ahead.compile_step(program.step, plan.arguments(program), full=False)
    (out / f"{method}-{preset}.hlo").write_text(compiled.text)
    facts = plan.plain(plan.describe(program, topology, compiled, full=False))
    facts["leaves"] = len(__import__("jax").tree.leaves(program.shapes))
    (out / f"{method}-{preset}.json").write_text(json.dumps(facts))
"""
COMPILED = [
    *(f"{method}-digits" for method in sorted(METHODS)),
    "simclr-imagenet_r50",
    "supervised-imagenet_r50",
]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'ssljax[plan]' to compile for TPUs",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with the plans, the HLO and the output of DRIVER."""
    out = tmp_path_factory.mktemp("plans")
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(out), ",".join(sorted(METHODS))],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (out / "printed").write_text(done.stdout)
    return out


@needs_libtpu
@pytest.mark.xdist_group("libtpu")
class TestCompiled:
    """Assertions on real compilations for a slice of four v5e chips."""

    @pytest.fixture(params=COMPILED)
    def step(self, request, folder):
        """(name, figures, parsed module) of one compiled step."""
        name = request.param
        return (
            name,
            json.loads((folder / f"{name}.json").read_text()),
            hlo.parse((folder / f"{name}.hlo").read_text()),
        )

    def test_the_verb_prints_and_writes_the_plan(self, folder):
        printed = (folder / "printed").read_text()
        written = json.loads((folder / "plan.json").read_text())
        for word in (
            "simclr:digits on v5e:2x2: 4 chips, 4 devices (TPU v5 lite, a device is a chip), "
            "batch 128, bfloat16",
            "memory        fits",
            "TFLOP",
            "collectives   all-reduce",
            "lower bound",
            "469 steps for 40 epochs",
            "buffer",
        ):
            assert word in printed, word
        assert "optimal" not in printed
        (found,) = written["plans"]
        assert found["fits"] and found["devices"] == 4 and found["estimate"] == {}
        assert 0 < found["memory"]["peak"] < found["memory"]["available"] == 16 * 2**30
        assert found["memory"]["arguments"] > found["parameters"] * 4
        assert written["versions"]["libtpu"] and found["buffers"]

    def test_flops_as_written_are_those_xla_counts(self, step):
        """The two counts agree within a tenth on photographs.

        On digits of 16 pixels, much of a convolution is padding, which XLA leaves out. Of DeiT's two ways of
        mixing a step takes one, and XLA counts both, which is much beside so small a transformer.
        """
        name, figures, _ = step
        mixes = name == "deit-digits"
        assert figures["loops"] == (4 if mixes else 0)  # mixup and CutMix draw from Beta by rejection
        low = 0.6 if name.endswith("digits") else 0.85
        high = 1.2 if mixes else 1.1
        assert low < figures["flops_xla"] / figures["flops"] < high

    def test_no_float32_product_by_accident(self, step):
        intended = (
            "vmap(vmap(",  # augmentation: one image and view at a time
            "nd,md->nm",  # similarities
            "bd,bd->b",  # similarities
            "nd,ne->de",  # the Gram matrix of the effective rank
            "bnhd,bmhd->bhnm",  # the gradient of attention's float32 logits
            "LinearClassifier",  # logits
        )
        for product in hlo.products(step[2]):
            in_bfloat16 = set(product.dtypes) == {"bf16"}
            assert in_bfloat16 or any(name in product.op_name for name in intended), product

    def test_images_do_not_move_between_devices(self, step):
        """There are two exceptions.

        MoCo's ShuffleBN is meant to send the key images to other devices, and DeiT mixes with the mirrored
        batch.
        """
        name, _, module = step
        sent = {"moco-digits": "/gather", "deit-digits": "/jit(_flip)/rev"}
        exception = sent.get(name, "-")
        for scheduled, _ in hlo.executed(module):
            for i in hlo.inside(module, scheduled):
                if i.opcode.removesuffix("-start") not in hlo.COLLECTIVES or i.op_name.endswith(exception):
                    continue
                assert "u8[" not in i.shape, i
                if not i.opcode.startswith("all-reduce"):
                    assert all(len(dims) < 4 for _, dims in hlo.arrays(i.shape)), i

    def test_the_batch_is_not_copied_into_another_layout(self, step):
        module = step[2]
        parameters = [i for i in module.computations[module.entry] if i.opcode == "parameter"]
        images = [i.name for i in parameters if i.shape.startswith("u8[")]
        assert len(images) == 1
        for i, _ in hlo.executed(module):
            assert not (i.opcode in ("copy", "transpose") and images[0] in i.operands), i

    def test_gradients_travel_together(self, step):
        """All kernels are in one all-reduce, and the statistics of a normalisation in at most three."""
        module = step[2]
        reduces = [c for c in hlo.collectives(module) if c.kind == "all-reduce"]
        norms = {
            i.op_name.rsplit("/", 1)[0]
            for i, _ in hlo.executed(module)
            if i.opcode == "all-reduce" and "norm" in i.op_name
        }
        assert sum(c.count for c in reduces if c.dtype == "bf16") <= 1
        assert sum(c.count for c in reduces if c.dtype == "f32") <= 3 * len(norms) + 3

    def test_the_state_is_updated_in_place(self, step):
        _, figures, module = step
        assert len(module.aliases) == figures["leaves"]

    def test_logits_of_nt_xent_are_split_by_rows(self, folder):
        for preset, batch in (("digits", 128), ("imagenet_r50", 64)):
            module = hlo.parse((folder / f"simclr-{preset}.hlo").read_text())
            forward = [p for p in hlo.products(module) if "/jvp(nd,md->nm)" in p.op_name]
            assert forward and all(hlo.arrays(p.shape)[0][1] == (batch // 4, batch) for p in forward), forward
