"""SimCLR's training speed against lightly's, in alternation on the same machine: images a second, augmentation included.

    python -m benchmarks.simclr_vs_lightly --images FOLDER --torch-python PATH/TO/python [--rounds 5] [--steps 39]

FOLDER is CIFAR-10 as a folder of images (train/<class>/); its first 2,000 images of each class are used. Both train a ResNet-18 of base
width 16 with the CIFAR stem on 256 images a step: lightly with SimCLRTransform in two DataLoader workers, its projection head and loss,
SGD; ssljax with `configs/simclr.py:cifar10_small`. A round is so many steps of one, then of the other; ratios are taken within it.
Both use all cores. PyTorch and lightly are imported in the child process alone.

On a CPU start it with the environment of the README's "On a CPU".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH, WIDTH, PER_CLASS = 256, 16, 2000
WARM = 5  # steps before the clock of each turn starts: prepared batches are used up, memory is back


def child(folder: str, steps: int) -> None:
    """lightly's side: for every line on stdin `steps` steps, their images a second on stdout."""
    import numpy as np
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch import nn
    from torchvision.models.resnet import BasicBlock, ResNet

    files = [f for c in sorted(Path(folder, "train").iterdir()) for f in sorted(c.iterdir())[:PER_CLASS]]
    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in files]

    class Views(torch.utils.data.Dataset):
        transform = SimCLRTransform(input_size=32, gaussian_blur=0.0, cj_strength=0.5)

        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> list[torch.Tensor]:
            return self.transform(Image.fromarray(pictures[i]))

    class Small(ResNet):
        def __init__(self) -> None:
            super().__init__(BasicBlock, [2, 2, 2, 2])
            self.inplanes = WIDTH
            self.conv1, self.bn1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH)
            self.maxpool = self.fc = nn.Identity()
            for group in range(4):
                setattr(
                    self,
                    f"layer{group + 1}",
                    self._make_layer(BasicBlock, WIDTH * 2**group, 2, 1 if group == 0 else 2),
                )

    net, head, criterion = Small(), SimCLRProjectionHead(8 * WIDTH, 8 * WIDTH, 128), NTXentLoss(0.5)
    optimizer = torch.optim.SGD(
        [*net.parameters(), *head.parameters()], lr=0.12, momentum=0.9, weight_decay=5e-4
    )

    def batches():
        loader = torch.utils.data.DataLoader(
            Views(), BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
        )
        while True:
            yield from loader

    stream = batches()

    def step() -> None:
        first, second = next(stream)[:2]
        loss = criterion(head(net(first)), head(net(second)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(WARM):
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        print(steps * BATCH / (time.perf_counter() - start), flush=True)


def ours(folder: str, steps: int) -> Callable[[], float]:
    """ssljax's side: the program and the batches of `ssljax train`."""
    import jax

    from configs.simclr import get_config
    from ssljax.config import resolve
    from ssljax.data import sources
    from ssljax.program import build, device_batches

    config = get_config("cifar10_small").unlock()
    config.data.source, config.data.train_per_class = f"folder:{folder}", PER_CLASS
    config = resolve(config)
    source = sources.load(config.data, "train")
    program = build(config.lock(), source.facts)
    state, key, batches = program.init(0), jax.random.key(0), device_batches(program, source, 0, 0)

    def run(count: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = program.step(state, next(batches), key)
        metrics["loss"].block_until_ready()
        return count * BATCH / (time.perf_counter() - start)

    def warm_run() -> float:
        run(WARM)
        return run(steps)

    return warm_run


def main() -> None:
    """Prints every round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with torch, torchvision and lightly"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=39, help="of each side a round; 78 are an epoch")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.images, flags.steps)

    from benchmarks.torch_process import TorchProcess

    lightly = TorchProcess(
        flags.torch_python, __file__, "--child", "--images", flags.images, "--steps", str(flags.steps)
    )
    run, rates = ours(flags.images, flags.steps), []
    for number in range(flags.rounds):
        rates.append((lightly.ask()[0], run()))
        peer, own = rates[-1]
        print(
            f"round {number + 1}: lightly {peer:.0f}, ssljax {own:.0f} images/s, ratio {own / peer:.2f}",
            flush=True,
        )
    lightly.close()
    ratios = [b / a for a, b in rates]
    print(
        f"median: lightly {statistics.median(a for a, _ in rates):.0f}, ssljax {statistics.median(b for _, b in rates):.0f} images/s, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
