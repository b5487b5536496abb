"""Networks. `build` makes them from a configuration, `apply` runs them. Only this package uses flax.linen."""

from ssljax.models.alexnet_vgg import ConvNet
from ssljax.models.apply import (
    activation,
    attention,
    begun_anew,
    convolutional,
    forward,
    infer,
    initialise,
    initialise_head,
    last_map,
    logits,
    resizable,
    tokens,
    unit_gains,
)
from ssljax.models.beit_vit import BeitViT, cut_normal, patches
from ssljax.models.build import (
    BACKBONES,
    backbone,
    cpc_classifier,
    cpc_direction,
    draws,
    mlp,
    projection_head,
    segmenter,
    token_decoder,
    token_encoder,
    two_stage_detector,
    view_decoders,
    view_heads,
)
from ssljax.models.cpc import DIRECTIONS, GridClassifier, PatchResNet, cut, turned
from ssljax.models.efficientnet import EfficientNet
from ssljax.models.heads import MLP, LinearClassifier
from ssljax.models.multiview import (
    MultiView,
    both_ways,
    check_views,
    features_of,
    pairs_of,
    view_name,
    view_of,
)
from ssljax.models.norm import BatchNorm
from ssljax.models.pooling import pooled
from ssljax.models.regnet import RegNet
from ssljax.models.resnet import ResNet, valid_pixels
from ssljax.models.vit import ViT, resize_positions

__all__ = [
    "BACKBONES",
    "BatchNorm",
    "BeitViT",
    "ConvNet",
    "DIRECTIONS",
    "EfficientNet",
    "GridClassifier",
    "LinearClassifier",
    "MLP",
    "MultiView",
    "PatchResNet",
    "RegNet",
    "ResNet",
    "ViT",
    "activation",
    "attention",
    "backbone",
    "begun_anew",
    "both_ways",
    "check_views",
    "convolutional",
    "cpc_classifier",
    "cpc_direction",
    "cut",
    "cut_normal",
    "draws",
    "features_of",
    "forward",
    "infer",
    "initialise",
    "initialise_head",
    "last_map",
    "logits",
    "mlp",
    "pairs_of",
    "patches",
    "pooled",
    "projection_head",
    "resizable",
    "resize_positions",
    "segmenter",
    "token_decoder",
    "token_encoder",
    "tokens",
    "turned",
    "two_stage_detector",
    "unit_gains",
    "valid_pixels",
    "view_decoders",
    "view_heads",
    "view_name",
    "view_of",
]
