"""Compare a convolutional network with the torchvision network in a golden file."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from ssljax.convert import weights
from ssljax.models import LinearClassifier
from tests.convert.foreign import like
from tests.models.golden_resnet import nhwc

CLOSE = dict(rtol=1e-4, atol=1e-5)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def assert_trees_close(ours, golden, **tolerance):
    """Equal structure and close values. An error names the leaf."""
    assert shapes(ours) == shapes(golden)
    jax.tree.map_with_path(
        lambda p, a, b: np.testing.assert_allclose(a, b, **tolerance, err_msg=jax.tree_util.keystr(p)),
        ours,
        golden,
    )


def evaluate(net, variables, image):
    """Pooled features and the sown activations with the running statistics."""
    pooled, state = net.apply(variables, image, train=False, mutable=["intermediates"])
    return pooled, {name: value for name, (value,) in state["intermediates"].items()}


def remat_changes_nothing(net, start, image, **close):
    """Rematerialised blocks have the same parameters, gradient and statistics."""

    def gradient(net):
        def loss(params):
            h, state = net.apply({**start, "params": params}, image, train=True, mutable=["batch_stats"])
            return (h**3).sum(), state["batch_stats"]

        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(start["params"])
        return traced.lower().compile()(start["params"]), str(traced.jaxpr).count("remat")

    frugal = net.clone(remat="blocks")
    fresh = jax.eval_shape(partial(frugal.init, train=False), jax.random.key(0), image)
    assert shapes(fresh) == shapes(start)
    (found, kept), (expected, none) = gradient(frugal), gradient(net)
    for a, b in zip(found, expected, strict=True):
        assert_trees_close(a, b, **close)
    assert kept > 0 == none


def computes_what_torch_does(net, case, family, layers):
    """Compare both modes, the running statistics after training and the gradients that are in the file.

    Args:
        net: the network.
        case: fields of the file: `state/`, `image`, `labels`, `eval/`, `train/`, `train/grad/`,
            `after_train/`.
        family: the names of its weights.
        layers: sown activation -> field below `eval/`.
    """
    under = lambda prefix: {
        name.removeprefix(prefix): value for name, value in case.items() if name.startswith(prefix)
    }
    image = jnp.asarray(nhwc(case["image"]))
    labels = jnp.asarray(case["labels"], jnp.int32)
    classes = int(case["num_classes"])
    classifier = LinearClassifier(classes)
    template = like(net, image, classes, "head")
    tree = weights.load(under("state/"), template, family)
    params = tree["params"]["encoder"]
    statistics = tree["model_state"]["encoder"]
    fc = {"params": tree["params"]["head"]}

    @jax.jit
    def both_modes(params):
        def loss(params):
            h, after = net.apply(
                {"params": params, "batch_stats": statistics}, image, train=True, mutable=["batch_stats"]
            )
            logits = classifier.apply(fc, h)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, after)

        pooled, found = evaluate(net, {"params": params, "batch_stats": statistics}, image)
        return pooled, classifier.apply(fc, pooled), found, jax.value_and_grad(loss, has_aux=True)(params)

    # 1. Activations and logits in both modes.
    pooled, logits, found, ((loss, (train_logits, after)), grads) = jax.device_get(both_modes(params))
    for layer, theirs in layers.items():
        expected = nhwc(case[f"eval/{theirs}"])  # large maps: of the first image alone
        np.testing.assert_allclose(found[layer][: len(expected)], expected, **CLOSE, err_msg=layer)
    np.testing.assert_allclose(pooled, case["eval/pooled"][:, :, 0, 0], **CLOSE)
    np.testing.assert_allclose(logits, case["eval/logits"], **CLOSE)
    np.testing.assert_allclose(train_logits, case["train/logits"], **CLOSE)
    np.testing.assert_allclose(loss, case["train/loss"], rtol=1e-5)

    # 2. Running statistics.
    running = {"model_state": {"encoder": after["batch_stats"]}}
    assert_trees_close(running, weights.load(under("after_train/"), running, family), **CLOSE)

    # 3. Gradients.
    named = under("train/grad/")
    flat = flatten_dict({"params": {"encoder": grads}}, sep="/")
    checked = [place for place in weights.places(template, family) if place.theirs in named]
    assert len(checked) == len(named) >= 3
    for place in checked:
        expected = place.reorder.ours(named[place.theirs])
        np.testing.assert_allclose(
            flat[place.ours], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=place.theirs
        )
