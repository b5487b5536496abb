"""One training step of the same network in PyTorch eager and here, on one thread of one core, in alternation.

    python -m benchmarks.step_vs_torch --torch-python PATH/TO/python [--rounds 3] [--nets resnet18,small_cnn,vit]

    resnet18     torchvision's with the CIFAR stem, 32 pixels, batch 16
    small_cnn    a ResNet-10 of base width 16 with the CIFAR stem, 32 pixels, batch 128
    vit          ViT-Ti with patches of 4, 32 pixels, batch 16; PyTorch's attention is scaled_dot_product_attention

A step is forward, cross-entropy over ten classes, backward and SGD with momentum, in float32; batch normalisation trains. PyTorch has its
default layout; "channels_last" is the same network in the other one (convolutional networks only). ssljax's step is jitted, its state
donated. Both processes live on one core and never work at the same time; a round is so many steps of each, and ratios are taken within
it. More threads than one prove nothing: the ratio then follows the machine's load. PyTorch is imported in the child process alone.

On a CPU start it with the environment of the README's "On a CPU".
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

CLASSES, SIDE, RATE, MOMENTUM = 10, 32, 0.01, 0.9
BATCH = {"resnet18": 16, "small_cnn": 128, "vit": 16}
SECONDS = 3.0  # of one turn
WARM = 2  # steps before the clock of each turn starts
VIT = SimpleNamespace(width=192, depth=12, heads=3, patch=4)


def turn(step: Callable[[], None]) -> float:
    """Seconds a step, the median of a turn: a step during which something else had the core does not count."""
    for _ in range(WARM):
        step()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def torch_network(name: str) -> nn.Module:
    """The network of this name in PyTorch, with fresh weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torchvision.models.resnet import BasicBlock, ResNet

    class Cifar(ResNet):
        def __init__(self, layers: list[int], width: int) -> None:
            super().__init__(BasicBlock, layers)
            self.inplanes = width
            self.conv1, self.bn1, self.maxpool = (
                nn.Conv2d(3, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.Identity(),
            )
            for group, blocks in enumerate(layers):
                setattr(
                    self,
                    f"layer{group + 1}",
                    self._make_layer(BasicBlock, width * 2**group, blocks, 1 if group == 0 else 2),
                )
            self.fc = nn.Linear(8 * width, CLASSES)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(VIT.width, 1e-6), nn.LayerNorm(VIT.width, 1e-6)
            self.qkv, self.proj = nn.Linear(VIT.width, 3 * VIT.width), nn.Linear(VIT.width, VIT.width)
            self.fc1, self.fc2 = nn.Linear(VIT.width, 4 * VIT.width), nn.Linear(4 * VIT.width, VIT.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, VIT.heads, -1)).permute(2, 0, 3, 1, 4)
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.token = (
                nn.Conv2d(3, VIT.width, VIT.patch, VIT.patch),
                nn.Parameter(torch.zeros(1, 1, VIT.width)),
            )
            self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // VIT.patch) ** 2 + 1, VIT.width))
            self.layers = nn.Sequential(*(Layer() for _ in range(VIT.depth)))
            self.norm, self.fc = nn.LayerNorm(VIT.width, 1e-6), nn.Linear(VIT.width, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
            return self.fc(self.norm(self.layers(x))[:, 0])

    torch.manual_seed(0)
    return {
        "resnet18": lambda: Cifar([2, 2, 2, 2], 64),
        "small_cnn": lambda: Cifar([1, 1, 1, 1], 16),
        "vit": Transformer,
    }[name]()


def child() -> None:
    """PyTorch's side: a line "NETWORK LAYOUT" on stdin, seconds a step and number of parameters on stdout."""
    import torch
    from torch.nn import functional as F

    def prepare(name: str, layout: torch.memory_format) -> tuple[Callable[[], None], int]:
        net = torch_network(name).to(memory_format=layout)
        image = torch.randn(BATCH[name], 3, SIDE, SIDE).to(memory_format=layout)
        label = torch.randint(CLASSES, (BATCH[name],))
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)

        def step() -> None:
            loss = F.cross_entropy(net(image), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

        return step, sum(p.numel() for p in net.parameters())

    torch.set_num_threads(1)
    print("ready", flush=True)
    ready = {}
    for line in sys.stdin:
        if line not in ready:
            name, layout = line.split()
            ready[line] = prepare(name, getattr(torch, layout))
        step, size = ready[line]
        print(turn(step), size, flush=True)


def ours(name: str) -> tuple[Callable[[], None], int]:
    """ssljax's step and its number of parameters."""
    from functools import partial

    import jax
    import optax
    from flax import linen as nn

    from ssljax.models import BACKBONES, ResNet, ViT

    if name == "vit":
        encoder = ViT(VIT.width, VIT.depth, VIT.heads, VIT.patch)
    else:
        (block, layers), width = (
            BACKBONES["resnet18" if name == "resnet18" else "resnet10"],
            64 if name == "resnet18" else 16,
        )
        encoder = ResNet(
            block,
            layers,
            tuple(width * 2**group for group in range(4)),
            width,
            "cifar",
            "torchvision",
            unbiased=True,
        )
    head, tx, keys = nn.Dense(CLASSES), optax.sgd(RATE, MOMENTUM), jax.random.split(jax.random.key(0), 4)
    image = jax.random.normal(keys[0], (BATCH[name], SIDE, SIDE, 3))
    label = jax.random.randint(keys[1], (BATCH[name],), 0, CLASSES)

    def loss(params: dict, stats: dict, image: jax.Array, label: jax.Array) -> tuple[jax.Array, dict]:
        h, new = encoder.apply(
            {"params": params["encoder"], "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
        )
        logits = head.apply({"params": params["head"]}, h)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), new.get(
            "batch_stats", {}
        )

    @partial(jax.jit, donate_argnums=0)
    def update(state: tuple, image: jax.Array, label: jax.Array) -> tuple[tuple, jax.Array]:
        params, stats, momentum = state
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, image, label)
        updates, momentum = tx.update(grads, momentum, params)
        return (optax.apply_updates(params, updates), stats, momentum), value

    @jax.jit
    def init() -> tuple:
        variables = encoder.init(keys[2], image[:1], train=False)
        h = encoder.apply(variables, image[:1], train=False)
        params = {"encoder": variables["params"], "head": head.init(keys[3], h)["params"]}
        return params, variables.get("batch_stats", {}), tx.init(params)

    state = init()
    size = sum(leaf.size for leaf in jax.tree.leaves(state[0]))

    def step() -> None:
        nonlocal state
        state, value = update(state, image, label)
        float(value)

    return step, size


def main() -> None:
    """Prints every round, then the medians and ranges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch and torchvision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", default=",".join(BATCH))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child()

    os.sched_setaffinity(
        0, {max(os.sched_getaffinity(0))}
    )  # before JAX counts its threads; the child inherits it
    names = flags.nets.split(",")
    if unknown := set(names) - set(BATCH):
        raise SystemExit(
            f"--nets {flags.nets}: no network {', '.join(sorted(unknown))}; there are {', '.join(BATCH)}"
        )
    from benchmarks.torch_process import TorchProcess

    torch = TorchProcess(flags.torch_python, __file__, "--child")
    steps = {}
    for name in names:
        steps[name], size = ours(name)
        _, theirs = torch.ask(f"{name} contiguous_format")
        print(f"{name}: parameters {size:,} here, {theirs:,.0f} in PyTorch; batch {BATCH[name]}", flush=True)
        if size != theirs:
            raise SystemExit(f"{name}: not the same network")
        turn(steps[name])
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for number in range(flags.rounds):
        for name in names:
            layouts = ("contiguous_format",) if name == "vit" else ("contiguous_format", "channels_last")
            row = (turn(steps[name]), *(torch.ask(f"{name} {layout}")[0] for layout in layouts))
            times[name].append(row)
            print(f"round {number + 1}, {name}: {_milliseconds(row)}", flush=True)
    torch.close()
    for name, rows in times.items():
        print(
            f"median, {name}: {_milliseconds([statistics.median(column) for column in zip(*rows, strict=True)], ratio=False)}; ssljax / "
            + " / ".join(
                f"{peer} {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                for peer, ratios in zip(
                    ("PyTorch", "channels_last"),
                    ([row[0] / row[i] for row in rows] for i in range(1, len(rows[0]))),
                    strict=False,
                )
            )
        )


def _milliseconds(row: list[float] | tuple[float, ...], *, ratio: bool = True) -> str:
    """ "ssljax 10.0, PyTorch 20.0 (0.50) ms"."""
    parts = [f"ssljax {1e3 * row[0]:.1f}"]
    parts += [
        f"{name} {1e3 * t:.1f}" + (f" (ratio {row[0] / t:.2f})" if ratio else "")
        for name, t in zip(("PyTorch", "channels_last"), row[1:], strict=False)
    ]
    return ", ".join(parts) + " ms"


if __name__ == "__main__":
    main()
