"""Single operations at full size, in ssljax, in other forms of XLA, and in PyTorch (question d of README.md).

    python -m benchmarks.accelerator.kernels --kernel nt_xent --out FOLDER [--commit ID] [--toy]

    nt_xent      SimCLR's loss and its gradient at 4,096 to 65,536 images of 128 numbers
    attention    self-attention of a ViT-B and its gradient in bfloat16, at 224 and at 384 pixels
    knn          the 200 nearest of 1,281,167 features of 2,048 numbers, for 5,000 queries, from host to host
    kmeans       five Lloyd iterations of 1,281,167 x 256 with 10,000 clusters, and the assignment

Appends a line per size to FOLDER/kernels.jsonl: milliseconds of each form in each round, and the memory that
it needs. A form that fails, for instance because it does not fit, is written as NaN with its reason. PyTorch
works in a process of its own (kernels_torch.py), and only one of the two works at a time.

The other forms of XLA are candidates. Where one is faster or smaller here, ssljax should take it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accelerator import rows
from benchmarks.torch_process import TorchProcess

SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "nt_xent": ((4096, 128), (16384, 128), (65536, 128)),  # images, numbers
    "attention": ((128, 197, 12, 64), (32, 577, 12, 64)),  # images, tokens, heads, numbers per head
    "knn": ((1_281_167, 2048, 5_000),),  # rows, numbers, queries
    "kmeans": ((1_281_167, 256, 10_000),),  # rows, numbers, clusters
}
TOY_SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "nt_xent": ((64, 16), (128, 16)),
    "attention": ((2, 10, 3, 8),),
    "knn": ((3_000, 32, 300),),
    "kmeans": ((3_000, 16, 20),),
}
TEMPERATURE = 0.1
NEIGHBOURS = 200
ITERATIONS = 5
CHUNK = 2048  # rows of logits that exist at once in the chunked loss
LARGE_BLOCK = 8192  # rows of k-means at once, instead of the 256 that suit a CPU's cache
NAN = float("nan")


class Form(NamedTuple):
    """One way to compute something.

    Attributes:
        run: number of times -> seconds.
        memory: bytes on the device, or NaN where nothing says.
    """

    run: Callable[[int], float]
    memory: Callable[[], float]


def jitted(function: Callable[..., Any], *arguments: Any) -> Form:
    """A jitted function, compiled ahead."""
    import jax

    compiled = jax.jit(function).lower(*arguments).compile()
    plan = compiled.memory_analysis()
    size = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes

    def run(number: int) -> float:
        begin = time.perf_counter()
        for _ in range(number):
            result = compiled(*arguments)
        jax.block_until_ready(result)
        return time.perf_counter() - begin

    return Form(run, lambda: float(size))


def on_host(function: Callable[[], Any]) -> Form:
    """A function that waits for its own result."""
    import jax

    def run(number: int) -> float:
        begin = time.perf_counter()
        for _ in range(number):
            function()
        return time.perf_counter() - begin

    def peak() -> float:
        return float((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", NAN))

    return Form(run, peak)


# ------------------------------------------------------------------------------------------------- the forms


def nt_xent(images: int, numbers: int) -> dict[str, Callable[[], Form]]:
    """The loss as it is, and with the logits of CHUNK rows at a time, recomputed in the backward pass."""
    import jax
    import jax.numpy as jnp

    from ssljax.losses import contrastive
    from ssljax.losses.similarity import dot, l2_normalize

    z1, z2 = (jax.random.normal(key, (images, numbers)) for key in jax.random.split(jax.random.key(0)))

    def whole(z1: jax.Array, z2: jax.Array) -> jax.Array:
        return contrastive.nt_xent(z1, z2, temperature=TEMPERATURE).mean()

    def chunked(z1: jax.Array, z2: jax.Array) -> jax.Array:
        z = jnp.concatenate([l2_normalize(z1), l2_normalize(z2)])
        total = len(z)
        size = min(CHUNK, total)

        @jax.checkpoint
        def of_rows(first: jax.Array) -> jax.Array:
            at = first + jnp.arange(size)
            logits = dot(z[at], z) / TEMPERATURE
            itself = at[:, None] == jnp.arange(total)
            logits = jnp.where(itself, -contrastive.MASKED, logits)
            positive = jnp.take_along_axis(logits, ((at + images) % total)[:, None], axis=1)[:, 0]
            return jax.nn.logsumexp(logits, axis=1) - positive

        return jax.lax.map(of_rows, jnp.arange(0, total, size)).mean()

    return {
        "ssljax": lambda: jitted(jax.value_and_grad(whole, (0, 1)), z1, z2),
        "in chunks": lambda: jitted(jax.value_and_grad(chunked, (0, 1)), z1, z2),
    }


def attention(images: int, tokens: int, heads: int, numbers: int) -> dict[str, Callable[[], Form]]:
    """The attention of a ViT, its weights kept or computed again, and jax.nn's by XLA."""
    import jax
    import jax.numpy as jnp

    from ssljax.models import softmax_attention as ours

    shape = (images, tokens, heads, numbers)
    q, k, v, g = (
        jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)
    )

    def form(function: Callable[..., jax.Array]) -> Callable[[], Form]:
        def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> Any:
            out, back = jax.vjp(function, q, k, v)
            return out, back(g)

        return lambda: jitted(both, q, k, v, g)

    return {
        "ssljax": form(ours.attend),
        "written out": form(ours.written_out),
        "recomputed": form(jax.checkpoint(ours.written_out)),
        "jax.nn": form(jax.nn.dot_product_attention),
    }


def knn(bank: int, numbers: int, queries: int) -> dict[str, Callable[[], Form]]:
    """The search of protocols/knn.py."""
    from ssljax.protocols import knn as protocol

    train, test = features(bank, numbers), features(queries, numbers, seed=1)
    return {"ssljax": lambda: on_host(lambda: protocol.nearest(train, test, NEIGHBOURS))}


def kmeans(count: int, numbers: int, clusters: int) -> dict[str, Callable[[], Form]]:
    """targets/kmeans.py, with its blocks of rows and with larger ones."""
    import jax

    from ssljax.targets import kmeans as target

    x = jax.numpy.asarray(features(count, numbers))

    def with_block(block: int) -> Form:
        target.BLOCK = block
        target._lloyd.cache_clear()
        target._assign.cache_clear()
        key = jax.random.key(0)
        fit = lambda: jax.block_until_ready(target.fit(x, clusters, key, iterations=ITERATIONS))
        return on_host(fit)

    return {
        f"ssljax, blocks of {target.BLOCK}": lambda block=target.BLOCK: with_block(block),
        f"blocks of {LARGE_BLOCK}": lambda: with_block(LARGE_BLOCK),
    }


KERNELS = {"nt_xent": nt_xent, "attention": attention, "knn": knn, "kmeans": kmeans}


def features(count: int, numbers: int, seed: int = 0) -> np.ndarray:
    """Random rows, float32 [count, numbers], the same in both processes."""
    return np.random.default_rng(seed).standard_normal((count, numbers), np.float32)


# ---------------------------------------------------------------------------------------------------- main


def measured(flags: argparse.Namespace, size: tuple[int, ...], theirs: TorchProcess | None) -> dict[str, Any]:
    """Milliseconds and memory of every form at one size; a form that failed has NaN, and its reason."""
    times: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, build in KERNELS[flags.kernel](*size).items():
        try:
            form = build()
            times[name] = [1e3 * rows.turn(form.run, flags.seconds) for _ in range(flags.rounds)]
            memory[name] = form.memory()
        except Exception as error:  # out of memory, or a form that this device does not have
            times[name] = [NAN]
            memory[name] = NAN
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        print(f"{flags.kernel} {size}: {name} {statistics.median(times[name]):.2f} ms", flush=True)
    if theirs is not None:
        question = " ".join(map(str, [flags.kernel, flags.seconds, *size]))
        answers = [theirs.ask(question) or [NAN, NAN] for _ in range(flags.rounds)]
        times["torch"] = [1e3 * seconds for seconds, _ in answers]
        memory["torch"] = answers[-1][1]
        print(f"{flags.kernel} {size}: torch {statistics.median(times['torch']):.2f} ms", flush=True)
    return {"size": size, "milliseconds": times, "memory": memory, "failed": failed}


def main() -> None:
    """One line per size of one kernel."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", choices=KERNELS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of kernels.jsonl")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--commit", default="", help="of the source; empty asks git")
    parser.add_argument("--toy", action="store_true", help="a CPU, small sizes")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs the rest
    if flags.toy:
        flags.seconds = 0.1

    import jax

    from ssljax import results

    theirs = None
    try:
        theirs = TorchProcess(flags.torch_python, "-m", "benchmarks.accelerator.kernels_torch")
    except (SystemExit, OSError) as error:
        print(f"no PyTorch: ssljax is measured alone ({error})", flush=True)
    for size in (TOY_SIZES if flags.toy else SIZES)[flags.kernel]:
        line = {
            "question": "kernels",
            "kernel": flags.kernel,
            "toy": flags.toy,
            "commit": flags.commit or results.commit(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "date": results.now(),
            **measured(flags, size, theirs),
        }
        with (flags.out / "kernels.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
    if theirs is not None:
        theirs.close()


if __name__ == "__main__":
    main()
