"""Faster R-CNN, fine-tuned from a pretrained network: the transfer of MoCo and DeepCluster to detection.

Ren, He, Girshick, Sun: Faster R-CNN, arXiv 1506.01497. On a ResNet it has MoCo's recipe and extra norm (He et
al., arXiv 1911.05722, section 4.2 and appendix, in facebookresearch/moco, detection/, on
facebookresearch/detectron2). On an AlexNet or VGG-16 it has the network of Fast R-CNN (Girshick, arXiv
1504.08083), which DeepCluster's table reports (Caron et al., arXiv 1807.05520, section 4.5).

    ResNet   C = all groups of f but the last;   h(r) = mean(norm(last group of f on RoIAlign(C, r)))
    plain    C = the convolutions of f;          h(r) = fc7(fc6(RoI max-pool(C, r))), with dropout

    L =  sum over sampled anchors of BCE(logit, is an object)              / (256 images)
       + sum over sampled positive anchors of |delta - encode(box)|        / (256 images)
       + sum over sampled regions r of CE(W h(r), class)                   / regions
       + sum over those that are objects of |V_class h(r) - encode(box)|   / regions

Of a ResNet every layer is trained, norms included. Their statistics are those of the global batch. After the
last step they are computed anew, as means over `detector.precise_bn` batches (precise-BN). The norms of a
plain network use the running statistics of the pretraining. All of it is trained (ALL), or all but the
convolutions and their norms (FC6-8, `detector.trained="fc"`).

Differences from the released code:
- Detectron2 pads the images of a device's batch to the largest, and norms, proposals and anchors see the
  padding. Here nothing does, so that an image gives the same in whatever it is padded to. [X]
- A true box that overlaps no anchor claims none; there it makes all anchors positive. Overlaps that are equal
  up to 1e-6 count as equal. [X], see `models/boxes.py`
- Random choices follow the image and the step, not a device. Losses divide by the regions of the global
  batch; there by those of each device. [X]
- Running variances are unbiased with shortcut="torchvision"; naiveSyncBN's are not: 1 in 10^5. [X]

Differences of the plain networks from rbgirshick/fast-rcnn (DeepCluster's own settings were not released):
- **Regions are proposals of the RPN above, which learns beside the rest**, also in FC6-8. There they are the
  boxes of selective search, about 2,000 per image, which are not reproduced here. [X]
- Boxes, their losses and the draw are detectron2's: no + 1 in widths, deltas scaled by 10 and 5 instead of by
  the data's deviations, L1 instead of smooth L1, and difficult objects are learned too. [X]
- Batch norms stand where CaffeNet has local response norms; biases have the rate and decay of kernels. [X]
- ALL trains conv1 too (conv1 and conv2 of VGG-16), which fast-rcnn never does. [P]
- AlexNet's pools leave half the cells of a side, rounded up; Caffe's leave one more of an even side. [X]
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.detection import drawn_first, head_losses, rpn_losses, sample
from ssljax.models import detector as nets
from ssljax.models.boxes import HEAD_WEIGHTS, RPN_WEIGHTS, encode, iou, match
from ssljax.models.detections import detect, propose
from ssljax.types import Batch, Facts, Method, Out, Pytree, TrainState, TwoPass


def detection(config: ConfigDict, facts: Facts) -> Method:
    """Build Faster R-CNN as pure functions.

    `params` holds encoder (the whole pretrained network), rpn and head; there is no extra state.

    Raises:
        ValueError: the images have no boxes, or the backbone is of another family.
    """
    if config.data.annotations != "boxes":
        raise ValueError(
            f"detection learns from boxes, and config.data.annotations is {config.data.annotations!r}: set "
            "--config.data.annotations=boxes, with a source that has them"
        )
    net = models.two_stage_detector(config.model, config.detector, facts.num_classes)
    still = functools.partial(nets.stands_still, net)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, tuple]:
        del batch
        return *nets.initialise_detector(net, key, config.data.channels), ()

    def embed(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Pytree, Pytree]:
        # What stands still has no gradient.
        stopped = lambda leaf, fixed: jax.lax.stop_gradient(leaf) if fixed else leaf
        params = jax.tree.map(stopped, params, still(params))
        x = views.for_network(batch["image"], config.augment)
        return outputs(net, config.detector, params, model_state, x, batch, key, valid=batch["size"])

    def objective(
        params: Pytree, embeddings: Pytree, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        # 6. The four losses, each over the whole batch.
        losses = losses_of(embeddings, config.detector)
        foreground = embeddings["head"]["classes"] < facts.num_classes
        found = jnp.where(foreground, embeddings["head"]["weights"], 0.0).sum(axis=1)
        return sum(losses.values(), jnp.zeros(())), {**losses, "foreground_regions": jnp.mean(found)}

    def loss(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        embeddings, model_state = embed(params, model_state, extra, batch, key, step)
        total, metrics = objective(params, embeddings, batch, step)
        return total, Out(model_state, (), metrics)

    def predict(params: Pytree, model_state: Pytree, extra: tuple, batch: Batch) -> dict[str, jax.Array]:
        x = views.for_network(batch["image"], config.augment)
        return detections(net, config.detector, params, model_state, x, batch["size"], valid=batch["size"])

    def finish(state: TrainState, run: Any) -> TrainState:
        """Precise-BN: means over `detector.precise_bn` training batches, with the weights as they are."""
        count = config.detector.precise_bn
        # From zeros, one step leaves 1 - momentum times the statistics of the batch.
        zeros = jax.tree.map(jnp.zeros_like, state.model_state)
        share = 1.0 / (count * (1.0 - config.model.bn_momentum))

        @jax.jit
        def add(total: Pytree, params: Pytree, batch: Batch, key: jax.Array) -> Pytree:
            _, after = embed(params, zeros, (), batch, key, state.step)
            return jax.tree.map(lambda sum_, leaf: sum_ + share * leaf, total, after)

        total = zeros
        key = run.key(state)
        with contextlib.closing(run.batches()) as batches:
            for number, batch in zip(range(count), batches, strict=False):
                total = add(total, state.params, batch, jax.random.fold_in(key, number))
        return run.place(state.replace(model_state=total))

    return Method(
        init=init,
        loss=loss,
        predict=predict,
        finish=finish if config.detector.get("precise_bn", 0) else None,
        still=still if net.body.trained != "all" else None,
        num_views=1,
        two_pass=TwoPass(embed, objective),
    )


def outputs(
    net: nets.Detector,
    settings: ConfigDict,
    params: Pytree,
    model_state: Pytree,
    x: jax.Array,
    batch: Batch,
    key: jax.Array,
    *,
    valid: jax.Array,
) -> tuple[Pytree, Pytree]:
    """What both stages give in training, and what they should give.

    Args:
        net: the networks.
        settings: `config.detector`.
        params: their parameters.
        model_state: their running statistics.
        x: normalised images [B, H, W, C].
        batch: size, boxes, classes and index of the images.
        key: of the step.
        valid: int32 [B, 2], the pixels that the networks see: those of the images.

    Returns:
        {"rpn": ..., "head": ...}, the arguments of the two losses, all of them float32 with one row per
        image; and the running statistics.
    """
    # 1. The map of every image, and a logit and deltas for every anchor.
    maps, model_state = nets.feature_map(net, params, model_state, x, valid, train=True)
    at = nets.at_anchors(net, params, maps, valid)

    # 2. Anchors that are objects or background, and the draw of those that count.
    keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(batch["index"])
    anchor_labels = jax.vmap(lambda inside, boxes, classes: label_anchors(at.boxes, inside, boxes, classes))
    targets, labels = anchor_labels(at.inside, batch["boxes"], batch["classes"])
    count = settings.anchors
    drawn = jax.vmap(lambda key, labels: sample(key, labels, count=count, positives=count // 2))
    weights = drawn(keys[:, 0], labels)
    rpn = {
        "logits": at.logits,
        "deltas": at.deltas,
        "labels": labels,
        "weights": weights,
        "targets": targets,
    }

    # 3. Proposals, without a gradient.
    proposals = proposed(at, batch["size"], before=settings.train_before, after=settings.train_after)

    # 4. Proposals and true boxes that are objects or background, and the draw of those that count.
    regions = jax.vmap(lambda *one: draw_regions(*one, settings=settings, background=net.head.classes))(
        keys[:, 1], proposals.boxes, proposals.exists, batch["boxes"], batch["classes"]
    )

    # 5. Features of the drawn regions, and the box head on them.
    exists = regions["weights"] > 0
    drops = jax.vmap(lambda index: jax.random.fold_in(jax.random.fold_in(key, index), 2))(batch["index"])
    logits, deltas, model_state = nets.at_regions(
        net, params, model_state, maps, valid, regions["boxes"], exists, keys=drops
    )
    head = {"logits": logits, "deltas": deltas, **{k: regions[k] for k in ("classes", "weights", "targets")}}
    given = {"rpn": rpn, "head": head}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), given), model_state


def label_anchors(
    anchors: jax.Array, inside: jax.Array, boxes: jax.Array, classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the anchors of one image should say.

    Args:
        anchors: float32 [N, 4].
        inside: bool [N]; anchors of cells outside the image are never drawn.
        boxes: float32 [G, 4].
        classes: int32 [G], -1 for padding.

    Returns:
        targets: float32 [N, 4], deltas.
        labels: int32 [N], 1 object, 0 background, -1 neither.
    """
    overlap = jnp.where(inside[None], iou(boxes, anchors), 0.0)
    which, labels = match(overlap, classes >= 0, below=0.3, above=0.7, low_quality=True)
    return encode(boxes[which], anchors, weights=RPN_WEIGHTS), jnp.where(inside, labels, -1)


def proposed(at: nets.Anchors, size: jax.Array, *, before: int, after: int) -> Any:
    """The proposals of every image, see `detections.propose`."""
    logits = jnp.where(at.inside, at.logits, -jnp.inf)
    one = lambda logits, deltas, size: propose(logits, deltas, at.boxes, size, before=before, after=after)
    return jax.vmap(one)(logits, at.deltas, size)


def draw_regions(
    key: jax.Array,
    proposals: jax.Array,
    exists: jax.Array,
    boxes: jax.Array,
    classes: jax.Array,
    *,
    settings: ConfigDict,
    background: int,
) -> dict[str, jax.Array]:
    """The regions of one image that the box head learns from, and what it should say of them.

    Args:
        key: of the image.
        proposals: float32 [P, 4].
        exists: bool [P].
        boxes: float32 [G, 4], the true ones, which are regions too.
        classes: int32 [G], -1 for padding.
        settings: `config.detector`.
        background: K, the class of the background.

    Returns:
        boxes float32 [T, 4], classes int32 [T], weights float32 [T] (1 for regions that were drawn, else 0)
        and targets float32 [T, 4], with T = `settings.regions` or all there are.
    """
    candidates = jnp.concatenate([proposals, boxes])
    there = jnp.concatenate([exists, classes >= 0])
    overlap = iou(boxes, candidates)
    which, labels = match(overlap, classes >= 0, below=0.5, above=0.5, low_quality=False)
    far = jnp.where((classes >= 0)[:, None], overlap, 0.0).max(axis=0) < settings.background
    labels = jnp.where(there & ~far, labels, -1)

    count = settings.regions
    weights = sample(key, labels, count=count, positives=count // 4)
    index, weights = drawn_first(labels, weights, count=count)
    regions = candidates[index]
    targets = encode(boxes[which[index]], regions, weights=HEAD_WEIGHTS)
    own = jnp.where(labels[index] == 1, classes[which[index]], background)
    return {"boxes": regions, "classes": own, "weights": weights, "targets": targets}


def losses_of(embeddings: Pytree, settings: ConfigDict) -> dict[str, jax.Array]:
    """The four losses of a batch; see `outputs` for the embeddings."""
    rpn = {**embeddings["rpn"], "labels": embeddings["rpn"]["labels"].astype(jnp.int32)}
    head = {**embeddings["head"], "classes": embeddings["head"]["classes"].astype(jnp.int32)}
    objectness, rpn_box = rpn_losses(**rpn, per_image=settings.anchors)
    classification, box = head_losses(**head)
    return {
        "objectness_loss": jnp.mean(objectness),
        "proposal_loss": jnp.mean(rpn_box),
        "class_loss": jnp.mean(classification),
        "box_loss": jnp.mean(box),
    }


def detections(
    net: nets.Detector,
    settings: ConfigDict,
    params: Pytree,
    model_state: Pytree,
    x: jax.Array,
    size: jax.Array,
    *,
    valid: jax.Array,
) -> dict[str, jax.Array]:
    """What the detector finds, see `types.PredictFn`. The arguments are those of `outputs`."""
    maps, _ = nets.feature_map(net, params, model_state, x, valid, train=False)
    at = nets.at_anchors(net, params, maps, valid)
    proposals = proposed(at, size, before=settings.test_before, after=settings.test_after)
    logits, deltas, _ = nets.at_regions(
        net, params, model_state, maps, valid, proposals.boxes, proposals.exists, keys=None
    )
    limits = dict(keep=settings.keep, score=settings.score, threshold=settings.overlap)
    best = lambda *one: detect(*one, **limits)
    found = jax.vmap(best)(logits, deltas, proposals.boxes, proposals.exists, size)
    return {"boxes": found.boxes, "scores": found.scores, "classes": found.classes}
