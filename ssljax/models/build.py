"""Build networks from a configuration: one table of backbones, and the heads on them."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssljax.models.alexnet_half import HalfAlexNet
from ssljax.models.alexnet_vgg import ARCHITECTURES, ConvNet
from ssljax.models.beit_vit import POOLING, RELATIVE, BeitViT
from ssljax.models.beit_vit import SIZES as BEIT_SIZES
from ssljax.models.boxes import RATIOS
from ssljax.models.cpc import STACKS, Classifier, Direction, PatchResNet, Stack
from ssljax.models.decoder import ViewDecoders
from ssljax.models.detector import C4, BoxHead, Detector, LinearHead, Plain, ProposalHead
from ssljax.models.dvae import Decoder, Encoder
from ssljax.models.efficientnet import SCALES, EfficientNet
from ssljax.models.fcn import DilatedFCN, FCN32s, FCNHead, Scores
from ssljax.models.heads import MLP, SCHEMES
from ssljax.models.multiview import MultiView, ViewHeads, view_name
from ssljax.models.regnet import TABLES, RegNet
from ssljax.models.resnet import KERNELS, PADDINGS, REMAT, SHORTCUTS, STEMS, Basic, Bottleneck, ResNet
from ssljax.models.vit import POSITIONS, REMATS, SIZES, ViT
from ssljax.models.vit import SCHEMES as VIT_SCHEMES

# Kind of block and number of blocks in each group; every group is twice as wide as the one before.
BACKBONES: dict[str, tuple[type[Basic] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet8": (Basic, (1, 1, 1)),  # three groups: small images on a CPU
    "resnet10": (Basic, (1, 1, 1, 1)),
    "resnet18": (Basic, (2, 2, 2, 2)),
    "resnet34": (Basic, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet200": (Bottleneck, (3, 24, 36, 3)),
}

DVAE = "dvae"  # the name of DALL-E's encoder among the backbones
ALEXNET_HALF = "alexnet_half"  # and that of the half AlexNet of CMC


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"config.model.{key} is {value!r}; it must be one of: {', '.join(valid)}")


def backbone(model: ConfigDict) -> nn.Module:
    """Build the backbone of `config.model`.

    Its call is `net(images [B, H, W, C], *, train)` and returns float32 features `[B, D]`.

    Args:
        model: `config.model`. `name` is a key of BACKBONES, ARCHITECTURES, TABLES, SCALES, SIZES or
            STACKS. `width` scales every layer of a ResNet, AlexNet, VGG or EfficientNet, including the first.
            `shortcut="torchvision"` also selects PyTorch's unbiased running variance (see BatchNorm), which a
            RegNet always has and an EfficientNet never. `sobel` puts a Sobel filter before the first layer of
            a ResNet, AlexNet or VGG. With `split` a ResNet or a half AlexNet is built once per view, see
            `multiview.py`. `drop_path` is the rate of stochastic depth of a ViT, a RegNet or an
            EfficientNet.

    Raises:
        ValueError: `name`, `stem`, `shortcut` or `remat` is unknown, `width` leaves no channels, or selective
            kernels are requested for basic blocks.
    """
    single = (DVAE, ALEXNET_HALF)
    known = (*BACKBONES, *ARCHITECTURES, *TABLES, *SCALES, *SIZES, *BEIT_SIZES, *STACKS, *single)
    _one_of("name", model.name, known)
    if model.name in SIZES:
        return _vit(model)
    if model.name in BEIT_SIZES:
        return _beit(model)
    if model.name == DVAE:
        return token_encoder(model)
    if model.name == ALEXNET_HALF:
        return _per_view(model, _alexnet_half(model))
    if model.name in TABLES:
        return _regnet(model)
    if model.name in SCALES:
        return _efficientnet(model)
    if model.name in STACKS:
        return _cpc(model)
    if model.name in ARCHITECTURES:
        return ConvNet(ARCHITECTURES[model.name], model.width, model.sobel, model.dropout, **_norm(model))
    return _per_view(model, _resnet(model))


def _per_view(model: ConfigDict, net: nn.Module) -> nn.Module:
    """The network itself, or one of its kind for each view of `model.split`."""
    split = tuple(model.split)
    if len({view_name(view) for view in split}) < len(split):
        raise ValueError(f"config.model.split={split} names a view twice: give each view once")
    return MultiView(net, split) if split else net


def view_heads(dim: int, model: ConfigDict) -> ViewHeads:
    """Build a linear embedding for each view of `model.split`."""
    return ViewHeads(tuple(model.split), dim)


def view_decoders(
    model: ConfigDict, directions: list[tuple[int, int]], channels: list[int], *, size: int, width: int
) -> ViewDecoders:
    """Build a decoder to pixels for each direction between views of `model.split`, see ViewDecoders."""
    return ViewDecoders(
        tuple(model.split),
        tuple(directions),
        tuple(channels),
        size,
        width,
        model.bn_momentum,
        model.bn_epsilon,
        jnp.dtype(model.dtype),
    )


def _alexnet_half(model: ConfigDict) -> HalfAlexNet:
    return HalfAlexNet(model.bn_momentum, model.bn_epsilon, jnp.dtype(model.dtype))


def _regnet(model: ConfigDict) -> RegNet:
    _one_of("remat", model.remat, REMAT)
    return RegNet(
        TABLES[model.name],
        drop_path=model.drop_path,
        remat=model.remat,
        bn_momentum=model.bn_momentum,
        bn_epsilon=model.bn_epsilon,
        unbiased=True,
        dtype=jnp.dtype(model.dtype),
    )


def _efficientnet(model: ConfigDict) -> EfficientNet:
    _one_of("remat", model.remat, REMAT)
    _one_of("stem", model.stem, STEMS)
    scale = SCALES[model.name]
    net = EfficientNet(
        width=model.width * scale.width,
        depth=model.depth * scale.depth,
        stem=model.stem,
        drop_path=model.drop_path,
        dropout=model.dropout,
        frozen_blocks=model.frozen_blocks,
        remat=model.remat,
        bn_momentum=model.bn_momentum,
        bn_epsilon=model.bn_epsilon,
        dtype=jnp.dtype(model.dtype),
    )
    if model.frozen_blocks > len(net.blocks):
        raise ValueError(
            f"config.model.frozen_blocks is {model.frozen_blocks}, and {model.name} has {len(net.blocks)} "
            "blocks: freeze fewer"
        )
    return net


def _resnet(model: ConfigDict) -> ResNet:
    _one_of("stem", model.stem, STEMS)
    _one_of("shortcut", model.shortcut, SHORTCUTS)
    _one_of("padding", model.padding, PADDINGS)
    _one_of("kernel_init", model.kernel_init, tuple(KERNELS))
    _one_of("remat", model.remat, REMAT)
    block, layers = BACKBONES[model.name]
    if model.sk_ratio > 0 and block is Basic:
        raise ValueError(
            f"config.model.sk_ratio is {model.sk_ratio}, but {model.name} has basic blocks and selective "
            "kernels replace the 3x3 convolution of a bottleneck: set sk_ratio to 0, or name to resnet50, "
            "resnet101, resnet152 or resnet200"
        )
    base = round(64 * model.width)
    if base < 2:
        raise ValueError(
            f"config.model.width is {model.width}, which leaves {base} channels in the stem: "
            "64 * width must be 2 or more"
        )
    return ResNet(
        block,
        layers,
        widths=tuple(base * 2**group for group in range(len(layers))),
        stem_width=model.stem_width or base,
        stem=model.stem,
        shortcut=model.shortcut,
        sk_ratio=model.sk_ratio,
        padding=model.padding,
        remat=model.remat,
        sobel=model.sobel,
        kernel_init=KERNELS[model.kernel_init],
        last_stride=model.last_stride,
        last_dilation=model.last_dilation,
        **_norm(model),
    )


def _vit(model: ConfigDict) -> ViT:
    _one_of("positions", model.positions, POSITIONS)
    _one_of("scheme", model.scheme, VIT_SCHEMES)
    _one_of("remat", model.remat, REMATS)
    width, depth, heads = SIZES[model.name]
    return ViT(
        width,
        depth,
        heads,
        model.patch,
        positions=model.positions,
        scheme=model.scheme,
        distillation=model.distillation,
        drop_path=model.drop_path,
        dropout=model.dropout,
        frozen_patch=model.frozen_patch,
        remat=model.remat,
        scan=model.scan,
        dtype=jnp.dtype(model.dtype),
    )


def _beit(model: ConfigDict) -> BeitViT:
    _one_of("relative", model.relative, RELATIVE)
    _one_of("pooling", model.pooling, POOLING)
    _one_of("remat", model.remat, REMATS)
    width, depth, heads = BEIT_SIZES[model.name]
    large = model.name == "beit_l"
    if model.layer_scale and (model.layer_scale <= 1e-4) != large:
        right = "1e-5" if large else "0.1"
        raise ValueError(
            f"config.model.layer_scale is {model.layer_scale} for {model.name}: it starts from {right} there "
            f"(0.1 for networks of the size of B, 1e-5 for L). Set --config.model.layer_scale={right}, or 0 "
            "for none"
        )
    return BeitViT(
        width,
        depth,
        heads,
        model.patch,
        absolute=model.absolute,
        relative=model.relative,
        layer_scale=model.layer_scale,
        pooling=model.pooling,
        drop_path=model.drop_path,
        remat=model.remat,
        dtype=jnp.dtype(model.dtype),
    )


def _cpc(model: ConfigDict) -> PatchResNet:
    _one_of("stem", model.stem, STEMS)
    _one_of("remat", model.remat, REMAT)
    stacks = tuple(
        Stack(blocks, round(features * model.width), round(bottleneck * model.width))
        for blocks, features, bottleneck in STACKS[model.name]
    )
    return PatchResNet(
        stacks,
        stem_width=round(64 * model.width),
        patch=model.patch,
        stride=model.stride,
        whole=model.whole,
        stem=model.stem,
        preact=model.preact,
        remat=model.remat,
        dtype=jnp.dtype(model.dtype),
    )


def cpc_direction(context: ConfigDict, model: ConfigDict, steps: tuple[int, ...]) -> Direction:
    """Build what one direction of CPC learns, of `config.context`; see `models.cpc.Direction`."""
    return Direction(steps, context.target_dim, context.blocks, context.hidden, dtype=jnp.dtype(model.dtype))


def cpc_classifier(classifier: ConfigDict, model: ConfigDict) -> Classifier:
    """Build CPC's residual network on feature maps, of `config.classifier`; see `models.cpc.Classifier`."""
    return Classifier(
        classifier.blocks,
        classifier.bottleneck,
        classifier.dropout,
        model.preact,
        model.remat,
        dtype=jnp.dtype(model.dtype),
    )


def two_stage_detector(model: ConfigDict, settings: ConfigDict, classes: int) -> Detector:
    """Build a two-stage detector on a ResNet, an AlexNet or a VGG-16.

    Args:
        model: `config.model`.
        settings: `config.detector`.
        classes: without the background.

    Raises:
        ValueError: the backbone is of another family, or there is one per view.
    """
    sizes = tuple(settings.anchor_sizes)
    rpn = ProposalHead(len(sizes) * len(RATIOS), jnp.dtype(model.dtype))
    net = backbone(model)
    if isinstance(net, ConvNet):
        plain = Plain(net, settings.side, settings.trained)
        return Detector(plain, rpn, LinearHead(classes), sizes, RATIOS)
    if not isinstance(net, ResNet):
        what = (
            f"model.split={tuple(model.split)}" if isinstance(net, MultiView) else f"model.name={model.name}"
        )
        raise ValueError(
            f"config.{what}: a detector needs one residual network, whose last group runs on regions, or a "
            f"plain one: set model.name to one of {', '.join((*BACKBONES, *ARCHITECTURES))}"
        )
    if len(net.layers) < 2:
        raise ValueError(
            f"config.model.name={model.name} has one group of blocks, and a detector runs the last on "
            "regions and those before it on images: use a network of several"
        )
    return Detector(C4(net), rpn, BoxHead(classes, **_norm(model)), sizes, RATIOS)


def segmenter(model: ConfigDict, section: ConfigDict, num_classes: int) -> DilatedFCN | FCN32s:
    """Build the network of `config.model` and `config.fcn` that gives a score per class for every pixel.

    Its branches are `encoder`, the backbone, and `head`.

    Args:
        model: `config.model`, a ResNet, AlexNet or VGG-16.
        section: `config.fcn`.
        num_classes: background included.

    Raises:
        ValueError: the backbone is of another family.
    """
    net = backbone(model)
    if isinstance(net, ResNet):
        return DilatedFCN(net, FCNHead(num_classes, section.channels, section.dilation, **_norm(model)))
    if isinstance(net, ConvNet):
        return FCN32s(net, Scores(num_classes, dropout=model.dropout), section.side, section.trained)
    raise ValueError(
        f"config.model.name is {model.name!r}: a segmentation network is made of a ResNet without "
        "model.split, of alexnet_bn or of vgg16_bn"
    )


def token_encoder(model: ConfigDict) -> Encoder:
    """Build the encoder of a dVAE: `config.model` of the method `dvae`, or `config.tokenizer` of `beit`."""
    return Encoder(
        group_count=model.groups,
        n_hid=model.hidden,
        n_blk_per_group=model.blocks,
        vocab_size=model.vocabulary,
        dtype=jnp.dtype(model.dtype),
    )


def token_decoder(model: ConfigDict, channels: int) -> Decoder:
    """Build the decoder of a dVAE for images of so many channels."""
    return Decoder(
        group_count=model.groups,
        n_init=model.codebook,
        n_hid=model.hidden,
        n_blk_per_group=model.blocks,
        output_channels=channels,
        vocab_size=model.vocabulary,
        dtype=jnp.dtype(model.dtype),
    )


def draws(model: ConfigDict) -> bool:
    """Whether this backbone needs a random key in training, for stochastic depth or dropout."""
    if model.name in SIZES or model.name in SCALES:
        return model.drop_path > 0 or model.dropout > 0
    if model.name in TABLES or model.name in BEIT_SIZES:
        return model.drop_path > 0
    return model.name in ARCHITECTURES and model.dropout > 0


def projection_head(head: ConfigDict, model: ConfigDict, *, built: int = -1) -> MLP:
    """Build SimCLR's projector of `config.head`, with the norms and the dtype of `config.model`.

    Args:
        head: `config.head`.
        model: `config.model`.
        built: how many of its layers to build, from the first; -1: all.
    """
    return MLP(
        head.layers,
        head.hidden,
        head.dim,
        hidden_bias=False,
        last_bias=False,
        norm=True,
        last_norm=True,
        last_gain=True,
        scheme="normal_0.01",
        built=built,
        **_norm(model),
    )


def mlp(head: ConfigDict, model: ConfigDict, dim: int) -> MLP:
    """Build a projector or predictor of MoCo or BYOL with `dim` outputs.

    Norms and dtype are those of `config.model`.

    Raises:
        ValueError: `head.scheme` is unknown.
    """
    if head.scheme not in SCHEMES:
        raise ValueError(f"a head's scheme is {head.scheme!r}; it must be one of: {', '.join(SCHEMES)}")
    norms = _norm(model) if head.norm or head.last_norm else {"dtype": jnp.dtype(model.dtype)}
    return MLP(
        head.layers,
        head.hidden,
        dim,
        hidden_bias=head.hidden_bias,
        last_bias=head.last_bias,
        norm=head.norm,
        last_norm=head.last_norm,
        scheme=head.scheme,
        **norms,
    )


def _norm(model: ConfigDict) -> dict:
    return dict(
        bn_momentum=model.bn_momentum,
        bn_epsilon=model.bn_epsilon,
        unbiased=model.shortcut == "torchvision",
        dtype=jnp.dtype(model.dtype),
    )
