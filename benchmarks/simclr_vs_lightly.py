"""SimCLR's training speed against lightly's, in alternation on the same machine, augmentation included.

    python -m benchmarks.simclr_vs_lightly --images FOLDER --torch-python PATH/TO/python \\
        [--rounds 5] [--steps 39]

FOLDER is CIFAR-10 as a folder of images (train/<class>/), of which the first 2,000 images of each class are
used. Both sides train a ResNet-18 of base width 16 with the CIFAR stem on 256 images per step. lightly uses
SimCLRTransform in two DataLoader workers, its own projection head and loss, and SGD; ssljax uses
`configs/simclr.py:cifar10_small`. A round is `--steps` steps of one, then of the other, and ratios are taken
within it. Both use all cores. PyTorch and lightly are imported in the child process only.

On a CPU, start it with the environment of docs/cpu.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH, WIDTH, PER_CLASS = 256, 16, 2000
WARM = 5  # steps before the clock of each turn starts: they use up prefetched batches and warm the memory


def child(folder: str, steps: int) -> None:
    """lightly's side: runs `steps` steps per line on stdin and prints their images per second."""
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
            self.conv1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(WIDTH)
            self.maxpool = self.fc = nn.Identity()
            for group in range(4):
                stride = 1 if group == 0 else 2
                layer = self._make_layer(BasicBlock, WIDTH * 2**group, 2, stride)
                setattr(self, f"layer{group + 1}", layer)

    net = Small()
    head = SimCLRProjectionHead(8 * WIDTH, 8 * WIDTH, 128)
    criterion = NTXentLoss(0.5)
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
    """Our side: the program and the batches of `ssljax train`."""
    import jax

    from configs.simclr import get_config
    from ssljax.config import resolve
    from ssljax.data import sources
    from ssljax.program import build, device_batches

    config = get_config("cifar10_small").unlock()
    config.data.source = f"folder:{folder}"
    config.data.train_per_class = PER_CLASS
    config = resolve(config)
    source = sources.load(config.data, "train")
    program = build(config.lock(), source.facts)
    state = program.init(0)
    key = jax.random.key(0)
    batches = device_batches(program, source, 0, 0)

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
    """Print every round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with torch, torchvision and lightly"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=39, help="of each side per round; 78 are an epoch")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.images, flags.steps)

    from benchmarks.torch_process import TorchProcess

    lightly = TorchProcess(
        flags.torch_python, __file__, "--child", "--images", flags.images, "--steps", str(flags.steps)
    )
    run = ours(flags.images, flags.steps)
    theirs = []
    own = []
    for number in range(flags.rounds):
        theirs.append(lightly.ask()[0])
        own.append(run())
        ratio = own[-1] / theirs[-1]
        print(
            f"round {number + 1}: lightly {theirs[-1]:.0f}, ssljax {own[-1]:.0f} images/s, ratio {ratio:.2f}",
            flush=True,
        )
    lightly.close()
    ratios = [b / a for a, b in zip(theirs, own, strict=True)]
    print(
        f"median: lightly {statistics.median(theirs):.0f}, ssljax {statistics.median(own):.0f} images/s, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
