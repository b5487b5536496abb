"""One training step of the same network in eager PyTorch and in ssljax, alternating on one core and thread.

    python -m benchmarks.step_vs_torch --torch-python PATH/TO/python \\
        [--rounds 3] [--nets resnet18,small_cnn,vit,efficientnet]

    resnet18     torchvision's with the CIFAR stem, 32 pixels, batch 16
    small_cnn    a ResNet-10 of base width 16 with the CIFAR stem, 32 pixels, batch 128
    vit          ViT-Ti with patches of 4, 32 pixels, batch 16; in PyTorch with scaled_dot_product_attention
    efficientnet efficientnet_xs, seven blocks, strided stem, 32 pixels, batch 64; torchvision's blocks

A step is forward, cross-entropy over ten classes, backward and SGD with momentum, in float32, with batch
normalisation in training mode. PyTorch uses its default layout; "channels_last" is the same network in the
other one (convolutional networks only). ssljax's step is jitted and donates its state. Both processes share
one core and never work at the same time. A round is a turn of each, and ratios are taken within it. With more
than one thread the ratio would follow the load of the machine. PyTorch is imported in the child process only.

On a CPU, start it with the environment of docs/cpu.md.
"""

from __future__ import annotations

import argparse
import functools
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
BATCH = {"resnet18": 16, "small_cnn": 128, "vit": 16, "efficientnet": 64}
SECONDS = 3.0  # the length of a turn
WARM = 2  # steps before the clock of each turn starts
PEERS = ("PyTorch", "channels_last")
VIT = SimpleNamespace(width=192, depth=12, heads=3, patch=4)


def turn(step: Callable[[], None]) -> float:
    """Seconds per step, the median of a turn, so that a step interrupted by other work does not count."""
    for _ in range(WARM):
        step()
    times = []
    end = time.perf_counter() + SECONDS
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
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig
    from torchvision.models.resnet import BasicBlock, ResNet

    class Cifar(ResNet):
        def __init__(self, layers: list[int], width: int) -> None:
            super().__init__(BasicBlock, layers)
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.maxpool = nn.Identity()
            for group, blocks in enumerate(layers):
                stride = 1 if group == 0 else 2
                layer = self._make_layer(BasicBlock, width * 2**group, blocks, stride)
                setattr(self, f"layer{group + 1}", layer)
            self.fc = nn.Linear(8 * width, CLASSES)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(VIT.width, 1e-6)
            self.norm2 = nn.LayerNorm(VIT.width, 1e-6)
            self.qkv = nn.Linear(VIT.width, 3 * VIT.width)
            self.proj = nn.Linear(VIT.width, VIT.width)
            self.fc1 = nn.Linear(VIT.width, 4 * VIT.width)
            self.fc2 = nn.Linear(4 * VIT.width, VIT.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, VIT.heads, -1)).permute(2, 0, 3, 1, 4)
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, VIT.width, VIT.patch, VIT.patch)
            self.token = nn.Parameter(torch.zeros(1, 1, VIT.width))
            self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // VIT.patch) ** 2 + 1, VIT.width))
            self.layers = nn.Sequential(*(Layer() for _ in range(VIT.depth)))
            self.norm = nn.LayerNorm(VIT.width, 1e-6)
            self.fc = nn.Linear(VIT.width, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
            return self.fc(self.norm(self.layers(x))[:, 0])

    def efficientnet() -> nn.Module:
        # kernel, stride, expansion, features of B0's seven stages; one block each, half as wide
        widths = (32, 16, 24, 40, 80, 112, 192, 320)
        stages = zip((3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, *(6,) * 6), strict=True)
        blocks = [
            MBConvConfig(expand, kernel, stride, widths[i], widths[i + 1], 1, width_mult=0.5)
            for i, (kernel, stride, expand) in enumerate(stages)
        ]
        norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        return EfficientNet(blocks, 0.0, 0.0, CLASSES, norm_layer=norm)

    torch.manual_seed(0)
    networks = {
        "resnet18": lambda: Cifar([2, 2, 2, 2], 64),
        "small_cnn": lambda: Cifar([1, 1, 1, 1], 16),
        "vit": Transformer,
        "efficientnet": efficientnet,
    }
    return networks[name]()


def child() -> None:
    """PyTorch's side: reads lines "NETWORK LAYOUT" from stdin.

    For each, it prints seconds per step and the number of parameters.
    """
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
    """Our step, and its number of parameters."""
    from functools import partial

    import jax
    import optax
    from flax import linen as nn

    from ssljax.models import BACKBONES, EfficientNet, ResNet, ViT

    if name == "vit":
        encoder = ViT(VIT.width, VIT.depth, VIT.heads, VIT.patch)
    elif name == "efficientnet":
        encoder = EfficientNet(0.5, 0.25)
    else:
        backbone, width = ("resnet18", 64) if name == "resnet18" else ("resnet10", 16)
        block, layers = BACKBONES[backbone]
        widths = tuple(width * 2**group for group in range(4))
        encoder = ResNet(block, layers, widths, width, "cifar", "torchvision", unbiased=True)
    head = nn.Dense(CLASSES)
    tx = optax.sgd(RATE, MOMENTUM)
    keys = jax.random.split(jax.random.key(0), 4)
    image = jax.random.normal(keys[0], (BATCH[name], SIDE, SIDE, 3))
    label = jax.random.randint(keys[1], (BATCH[name],), 0, CLASSES)

    def loss(params: dict, stats: dict, image: jax.Array, label: jax.Array) -> tuple[jax.Array, dict]:
        variables = {"params": params["encoder"], "batch_stats": stats}
        h, new = encoder.apply(variables, image, train=True, mutable=["batch_stats"])
        logits = head.apply({"params": params["head"]}, h)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return value, new.get("batch_stats", {})

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
    """Print every round, then the medians and ranges."""
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

    # Before JAX counts its threads. The child inherits it.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
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
            own = turn(steps[name])
            row = (own, *(torch.ask(f"{name} {layout}")[0] for layout in layouts))
            times[name].append(row)
            print(f"round {number + 1}, {name}: {_milliseconds(row)}", flush=True)
    torch.close()
    for name, rows in times.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        spreads = []
        for i, peer in enumerate(PEERS[: len(medians) - 1], start=1):
            ratios = [row[0] / row[i] for row in rows]
            spreads.append(f"{peer} {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        print(f"median, {name}: {_milliseconds(medians, ratio=False)}; ssljax / {' / '.join(spreads)}")


def _milliseconds(row: list[float] | tuple[float, ...], *, ratio: bool = True) -> str:
    """Times in words: "ssljax 10.0, PyTorch 20.0 (ratio 0.50) ms"."""
    parts = [f"ssljax {1e3 * row[0]:.1f}"]
    for name, seconds in zip(PEERS, row[1:], strict=False):
        share = f" (ratio {row[0] / seconds:.2f})" if ratio else ""
        parts.append(f"{name} {1e3 * seconds:.1f}{share}")
    return ", ".join(parts) + " ms"


if __name__ == "__main__":
    main()
