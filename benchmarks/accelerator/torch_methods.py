"""The five rows in PyTorch, as its users write them: torchvision's ResNet-50, timm's ViT-B, autocast.

Each is a module whose call is the loss of a batch, so that `torch.compile` sees forward pass and loss as
one graph. The networks, heads, losses and optimizers are those of the presets in `rows.ROWS`, without
random views.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.accelerator import rows
from benchmarks.accelerator.rows import Row

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ------------------------------------------------------------------------------------------------ networks


def backbone(row: Row, *, toy: bool) -> tuple[nn.Module, int]:
    """The network without a classifier, and the width of its features."""
    if row.vit:
        return vit(row, toy=toy), 64 if toy else 768
    from torchvision.models.resnet import BasicBlock, ResNet, resnet50

    net = (
        ResNet(BasicBlock, [1, 1, 1, 1], zero_init_residual=True)
        if toy
        else resnet50(zero_init_residual=True)
    )
    width = net.fc.in_features
    net.fc = nn.Identity()
    return net, width


def vit(row: Row, *, toy: bool) -> nn.Module:
    """timm's ViT-B with patches of 16; MoCo v3 freezes the patch projection and the positions."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": rows.PIXELS, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    if toy:
        sizes = {"img_size": rows.TOY_PIXELS, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
    drop_path = 0.1 if row.paper == "deit" else 0.0
    net = VisionTransformer(**sizes, num_classes=0, drop_path_rate=drop_path)
    if row.paper == "moco":
        net.patch_embed.requires_grad_(False)
        net.pos_embed.requires_grad_(False)
    return net


def mlp(sizes: Iterable[int], *, hidden_bias: bool, last_norm: str) -> nn.Sequential:
    """Linear, batch norm and ReLU per hidden layer, then Linear.

    Args:
        sizes: of the input, the hidden layers and the output.
        hidden_bias: whether the hidden layers have one; the last has none.
        last_norm: "" for none, "gain" for a batch norm without offset, "plain" without offset and gain.
    """
    sizes = list(sizes)
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [nn.Linear(before, after, bias=hidden_bias), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=False))
    if last_norm:
        norm = nn.BatchNorm1d(sizes[-1], affine=last_norm == "gain")
        if last_norm == "gain":
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------------------- methods


class Learner(nn.Module):
    """What all rows share: the backbone, and pixels as the network expects them.

    Attributes:
        target: modules that follow others as a moving average, no gradient reaches them.
    """

    momentum = 0.99

    def __init__(self, row: Row, classes: int, hidden: int, *, toy: bool) -> None:
        super().__init__()
        self.encoder, self.width = backbone(row, toy=toy)
        self.classes, self.hidden = classes, hidden
        mean, std = IMAGENET
        if row.paper in ("simclr", "supervised"):  # these presets leave pixels in [0, 1]
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("inverse", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)))

    def pixels(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 -> float32, normalised."""
        return (image.float() - self.mean) * self.inverse

    def follow(self) -> None:
        """Moves the target network, if there is one; called after the optimizer."""

    def probe_loss(self, probe: nn.Module, h: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Of the linear classifier on features that carry no gradient, in float32."""
        with torch.autocast(h.device.type, enabled=False):
            return F.cross_entropy(probe(h.detach().float()), label)


class Supervised(Learner):
    """Cross entropy on labels."""

    def __init__(self, *args: object, **settings: bool) -> None:
        super().__init__(*args, **settings)
        self.head = nn.Linear(self.width, self.classes)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        h = self.encoder(self.pixels(image))
        with torch.autocast(image.device.type, enabled=False):
            return F.cross_entropy(self.head(h.float()), label, label_smoothing=self.smoothing)

    smoothing = 0.0


class Deit(Supervised):
    """The same with smoothed labels; there is no teacher and no mixing."""

    smoothing = 0.1


class Simclr(Learner):
    """NT-Xent over both views in one pass; `image` holds view 1, then view 2."""

    temperature = 0.1

    def __init__(self, *args: object, **settings: bool) -> None:
        super().__init__(*args, **settings)
        self.projector = mlp((self.width, self.width, 128), hidden_bias=False, last_norm="gain")
        self.probe = nn.Linear(self.width, self.classes)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        h = self.encoder(self.pixels(image))
        z = F.normalize(self.projector(h).float())
        with torch.autocast(image.device.type, enabled=False):
            logits = z @ z.T / self.temperature
            logits = logits - 1e9 * torch.eye(len(z), device=z.device)
            other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
            loss = 2 * F.cross_entropy(logits, other)
        return loss + self.probe_loss(self.probe, h, label.repeat(2))


class WithTarget(Learner):
    """A projector, a predictor and a slow copy of encoder and projector, as BYOL and MoCo v3 have them."""

    def add_heads(self, projector: nn.Module, predictor: nn.Module) -> None:
        self.projector, self.predictor = projector, predictor
        self.target = copy.deepcopy(nn.Sequential(self.encoder, self.projector)).requires_grad_(False)
        online = (*self.encoder.parameters(), *self.projector.parameters())
        pairs = zip(self.target.parameters(), online, strict=True)
        self.pairs = [(slow, fast) for slow, fast in pairs if fast.requires_grad]

    @torch.no_grad()
    def follow(self) -> None:
        slow, fast = (list(side) for side in zip(*self.pairs, strict=True))
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    def views(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one, two = self.pixels(image).chunk(2)
        return one, two


class Byol(WithTarget):
    """Each view is a pass of its own, in the online network and in the target."""

    def __init__(self, *args: object, **settings: bool) -> None:
        super().__init__(*args, **settings)
        self.add_heads(
            mlp((self.width, self.hidden, 256), hidden_bias=True, last_norm=""),
            mlp((256, self.hidden, 256), hidden_bias=True, last_norm=""),
        )
        self.probe = nn.Linear(self.width, self.classes)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        one, two = self.views(image)
        h = self.encoder(one)
        p1 = self.predictor(self.projector(h))
        p2 = self.predictor(self.projector(self.encoder(two)))
        with torch.no_grad():
            t1, t2 = self.target(one), self.target(two)
        similar = F.cosine_similarity(p1.float(), t2.float()) + F.cosine_similarity(p2.float(), t1.float())
        return (4 - 2 * similar).mean() + self.probe_loss(self.probe, h, label)


class MocoV3(WithTarget):
    """Queries with a predictor against keys without; negatives are those of the batch."""

    temperature = 0.2

    def __init__(self, *args: object, **settings: bool) -> None:
        super().__init__(*args, **settings)
        self.add_heads(
            mlp((self.width, self.hidden, self.hidden, 256), hidden_bias=False, last_norm="plain"),
            mlp((256, self.hidden, 256), hidden_bias=False, last_norm="plain"),
        )

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        del label
        one, two = self.views(image)
        q1 = self.predictor(self.projector(self.encoder(one)))
        q2 = self.predictor(self.projector(self.encoder(two)))
        with torch.no_grad():
            k1, k2 = self.target(one), self.target(two)
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    def contrast(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        with torch.autocast(q.device.type, enabled=False):
            logits = F.normalize(q.float()) @ F.normalize(k.float()).T / self.temperature
            itself = torch.arange(len(q), device=q.device)
            return 2 * self.temperature * F.cross_entropy(logits, itself)


LEARNERS = {"supervised": Supervised, "deit": Deit, "simclr": Simclr, "byol": Byol, "moco": MocoV3}


def learner(row: Row, *, toy: bool) -> Learner:
    """The module of a row, with fresh weights."""
    classes = rows.TOY_CLASSES if toy else rows.CLASSES
    hidden = rows.TOY_HIDDEN if toy else rows.HIDDEN
    return LEARNERS[row.paper](row, classes, hidden, toy=toy)


# ---------------------------------------------------------------------------------------------- optimizers


class Lars(torch.optim.Optimizer):
    """LARS in multi-tensor operations; kernels are decayed and adapted, the rest has plain momentum."""

    def __init__(
        self, kernels: list[nn.Parameter], rest: list[nn.Parameter], rate: float, decay: float
    ) -> None:
        groups = [{"params": kernels, "adapted": True}, {"params": rest, "adapted": False}]
        super().__init__(groups, {"lr": rate, "decay": decay, "momentum": 0.9, "trust": 0.001})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in weights]
            for p in weights:
                if p not in self.state:
                    self.state[p]["velocity"] = torch.zeros_like(p)
            velocity = [self.state[p]["velocity"] for p in weights]
            if group["adapted"]:
                torch._foreach_add_(grads, weights, alpha=group["decay"])
                ratio = torch._foreach_div(torch._foreach_norm(weights), torch._foreach_norm(grads))
                torch._foreach_mul_(ratio, group["trust"])
                torch._foreach_mul_(grads, ratio)
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, grads)
            torch._foreach_add_(weights, velocity, alpha=-group["lr"])


def optimizer(row: Row, net: Learner) -> torch.optim.Optimizer:
    """The preset's optimizer, with the small learning rate of an early step of the warm-up."""
    trained = [p for p in net.parameters() if p.requires_grad]
    kernels, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    rate = 1e-4 * math.sqrt(row.batch)
    if row.paper in ("simclr", "byol"):
        return Lars(kernels, rest, rate, 1e-6)
    decay = {"supervised": 1e-4, "moco": 0.1, "deit": 0.05}[row.paper]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    if row.paper == "supervised":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=1e-2 * rate, fused=True)
