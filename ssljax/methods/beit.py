"""BEiT: predict the visual tokens of masked patches.

Bao et al.: BEiT: BERT Pre-Training of Image Transformers, arXiv 2106.08254.

    x       a view of the image in N patches;  x'  the same crop at another size, for the tokenizer
    z       argmax of the frozen tokenizer's logits on x': one token per patch
    M       masked patches, in blocks (data/masking.py)
    h       f(x with the embeddings of the patches in M replaced by one learned vector)

    L = mean over all masked patches of the batch of  -log softmax(W h_i + b)[z_i]                 (eq. 2)

The tokenizer runs inside the step, in `extra`. It is the moving average of a run of the method `dvae`, whose
map of pixels comes with its weights. The backbone knows nothing of masks in fine-tuning: the mask token is a
branch of `params` beside it.

Ablations of table 4: `masking.name="scattered"` (no blocks) or "none"; `recover.what="pixels"` (regression of
the normalised pixels of a patch); `recover.where="all"` (recover 100 % of the patches).

Differences from the released code (microsoft/unilm at 768a3c8, beit/):
- The mean is over the masked patches of the global batch; there it is per device. [X]
- Tokens are made in the step, as there, and never stored: crops, flips and colours are drawn anew in every
  epoch, and the tokens of one image are others each time. On ImageNet they would be 500 MB in int16 for one
  crop of each image. The tokenizer's pass is a third of the operations of a step of ViT-B with DALL-E's
  network, and a tenth of the time of a step of the small presets. [X]
- Masks and crops follow from seed, step and image; there Python's generator is not seeded. [X]
- The head computes in float32. [X]
- The paper does not say what pixel regression predicts: here the pixels as the network sees them, by their
  mean squared error. [X]
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import masking, views
from ssljax.losses.classification import accuracy
from ssljax.losses.masked import masked_regression, masked_token_cross_entropy, over_masked
from ssljax.models import dvae as nets
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState

PATCHES = "patches"  # the names of the two views
TOKENS = "tokens"


class Tokenizer(NamedTuple):
    """The frozen tokenizer.

    Attributes:
        params: `encoder`, of a dVAE.
        input: `pixels`, the map of pixels that it was trained on.
    """

    params: Pytree
    input: dict[str, jax.Array]


def beit(config: ConfigDict, facts: Facts) -> Method:
    """Build BEiT as pure functions.

    `params` holds encoder, mask_token and head; `extra` is a Tokenizer, or () where pixels are predicted.
    """
    del facts
    view = {member.name: member for member in views.resolved(config)}
    _check(config, view)
    channels = config.data.channels
    side = view[PATCHES].size
    grid = side // config.model.patch
    by_tokens = config.recover.what == "tokens"
    slots = _slots(config, grid)

    encoder = models.backbone(config.model)
    tokenizer = models.token_encoder(config.tokenizer) if by_tokens else None
    outputs = config.tokenizer.vocabulary if by_tokens else config.model.patch**2 * channels
    corrupts = config.masking.name != "none"

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Tokenizer | tuple[()]]:
        del batch
        keys = jax.random.split(key, 4)
        f, f_state, h = models.initialise(encoder, keys[0], (side, side, channels))
        width = h.shape[-1]
        kernel = models.cut_normal(keys[1], (width, outputs))
        head = {"dense": {"kernel": kernel, "bias": jnp.zeros(outputs, jnp.float32)}}
        params = {"encoder": f, "head": head}
        if corrupts:
            params["mask_token"] = models.cut_normal(keys[2], (width,))
        if tokenizer is None:
            return params, {"encoder": f_state}, ()
        size = view[TOKENS].size
        t, _, _ = models.initialise(tokenizer, keys[3], (size, size, channels))
        frozen = Tokenizer({"encoder": t}, {"pixels": nets.pixel_map("dall-e")})
        return params, {"encoder": f_state}, frozen

    def tokens_of(extra: Tokenizer, image: jax.Array) -> jax.Array:
        """z, int32 [B, N], of images in [0, 1]."""
        assert tokenizer is not None
        x = nets.mapped(image, extra.input["pixels"])
        logits = models.infer(tokenizer, extra.params["encoder"], {}, x)
        return jnp.argmax(logits, axis=-1).reshape(len(image), -1).astype(jnp.int32)

    def loss(
        params: Pytree, model_state: Pytree, extra: Tokenizer, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One crop of each image, at the size of the patches and at that of the tokenizer; and its mask.
        made = views.make(batch, key, config)
        x = made[PATCHES][:, 0]
        mask = masks(key, batch["index"], config, grid)

        # 2. What is to be predicted: the tokenizer's tokens, or the pixels.
        target = tokens_of(extra, made[TOKENS][:, 0]) if by_tokens else models.patches(x, config.model.patch)

        # 3. The transformer sees the mask token in place of masked patches. Its class token is not used.
        corrupt = dict(mask=mask, mask_token=params["mask_token"]) if corrupts else {}
        h, f_state = models.forward(
            encoder,
            params["encoder"],
            model_state["encoder"],
            x,
            key=jax.random.fold_in(key, 1),
            tokens=True,
            **corrupt,
        )
        h = h[:, 1:]

        # 4. The loss over the masked patches, which fill `slots` places of a fixed shape; or over all.
        wanted = mask if config.recover.where == "masked" else jnp.ones_like(mask)
        places = jnp.argsort(~wanted, axis=1, stable=True)[:, :slots]
        at = partial(jnp.take_along_axis, axis=1)
        h = at(h, places[..., None])
        wanted = at(wanted, places)
        target = at(target, places if by_tokens else places[..., None])
        logits = models.logits(params["head"], h)
        metrics = {"masked": jnp.mean(mask.astype(jnp.float32))}
        if by_tokens:
            rows = masked_token_cross_entropy(logits, target, wanted)
            metrics |= _token_metrics(logits, target, wanted)
        else:
            rows = masked_regression(logits, target, wanted)
        return jnp.mean(rows), Out({"encoder": f_state}, (), metrics)

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Load the tokenizer: the moving average that its run exports, and its map of pixels."""
        if tokenizer is None:
            return state
        run = config.recover.tokenizer
        if not run:
            raise ValueError(
                "config.recover.tokenizer is empty, but BEiT predicts the tokens of a trained tokenizer: "
                "name the folder of a finished run of the method dvae, or an earlier stage"
            )
        like = {"evaluated/params": state.extra.params["encoder"], "extra/input": state.extra.input}
        found = load(run, like)
        return state.replace(extra=Tokenizer({"encoder": found["evaluated/params"]}, found["extra/input"]))

    def hidden(key: jax.Array, index: jax.Array) -> jax.Array:
        return masks(key, index, config, grid).reshape(-1, grid, grid)

    return Method(
        init=init,
        loss=loss,
        adopt=adopt,
        masks=hidden if corrupts else None,
        num_views=2 if by_tokens else 1,
        separable=False,
    )


def masks(key: jax.Array, index: jax.Array, config: ConfigDict, grid: int) -> jax.Array:
    """The mask of every image. It follows from the step's key and the image's id.

    Args:
        key: the key of the step.
        index: int32 [B], the stable ids of the images.
        config: reads `masking`.
        grid: patches per side.

    Returns:
        bool [B, grid * grid], row by row.
    """
    m = config.masking
    if m.name == "none":
        return jnp.zeros((len(index), grid * grid), bool)
    if m.name == "blockwise":
        draw = partial(
            masking.blockwise,
            num_masked=m.patches,
            min_block=m.min_block,
            max_block=m.max_block,
            min_aspect=m.min_aspect,
        )
    elif m.name == "algorithm_1":
        share = 0.4 * grid * grid  # of the paper, which is not whole
        draw = partial(masking.algorithm_1, num_masked=share, min_block=m.min_block, min_aspect=m.min_aspect)
    else:
        draw = partial(masking.scattered, num_masked=m.patches)

    def one(index: jax.Array) -> jax.Array:
        own = jax.random.fold_in(views.view_key(key, index, jnp.int32(0)), 3)
        return draw(own, grid, grid).reshape(-1)

    return jax.vmap(one)(index)


def _slots(config: ConfigDict, grid: int) -> int:
    """How many patches of an image can be in the loss."""
    capped = config.masking.name in ("blockwise", "scattered") and config.recover.where == "masked"
    return config.masking.patches if capped else grid * grid


def _token_metrics(logits: jax.Array, tokens: jax.Array, wanted: jax.Array) -> dict[str, jax.Array]:
    """Accuracy, that of always naming the batch's most frequent token, and how many tokens occur."""
    vocabulary = logits.shape[-1]
    weight = wanted.astype(jnp.float32)
    right = accuracy(logits.reshape(-1, vocabulary), tokens.reshape(-1)).reshape(tokens.shape)
    counts = jnp.zeros(vocabulary, jnp.float32).at[tokens.reshape(-1)].add(weight.reshape(-1))
    share = counts / jnp.maximum(weight.sum(), 1.0)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return {
        "token_accuracy": jnp.mean(over_masked(right, wanted)),
        "most_frequent_token": jnp.max(share),
        "token_perplexity": jnp.exp(entropy),
    }


def _check(config: ConfigDict, view: dict[str, views.View]) -> None:
    """Refuse views and masks that do not fit together.

    Raises:
        ValueError: names the setting and what to type.
    """
    names = (PATCHES, TOKENS) if config.recover.what == "tokens" else (PATCHES,)
    if tuple(view) != names:
        raise ValueError(
            f"config.views are {', '.join(view)}, and BEiT needs {' and '.join(names)}: "
            "patches=dict(), tokens=dict(size=112, of='patches') to predict tokens, patches=dict() for pixels"
        )
    grid = view[PATCHES].size // config.model.patch
    if names == (PATCHES, TOKENS):
        tokens = view[TOKENS]
        if tokens.first != view[PATCHES].first:
            raise ValueError(
                "config.views.tokens has a crop of its own, and its tokens would be those of other patches: "
                "set config.views.tokens.of='patches'"
            )
        nets.check_recipe(tokens.augment, "config.views.tokens")
        factor = 2 ** (config.tokenizer.groups - 1)
        if tokens.size != grid * factor:
            raise ValueError(
                f"config.views.tokens.size={tokens.size} gives {tokens.size / factor:g} tokens a side, and "
                f"there are {grid} patches: set config.views.tokens.size={grid * factor}"
            )
    if config.masking.name == "none":
        if config.recover.where == "masked":
            raise ValueError(
                "config.masking.name='none' leaves nothing to recover: set config.recover.where=all"
            )
    elif config.masking.name != "algorithm_1" and config.masking.patches >= grid * grid:
        raise ValueError(
            f"config.masking.patches={config.masking.patches} are not fewer than the {grid * grid} patches "
            f"of an image: set config.masking.patches={math.floor(0.4 * grid * grid)} (the paper's 40 %)"
        )
