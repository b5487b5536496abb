"""Well-known bugs of the field, put into a copy of the source one at a time. The tests must notice each.

    python tests/mutations.py [--only NAME] [--jobs N]

Prints one line per bug and "N of N caught" at the end. The exit code is 1 if one survives. A bug is caught if
an assertion of the named tests fails. It is an error of the mutation itself if its text does not occur in the
source exactly once, if the code crashes instead of computing something wrong, or if the tests fail without
the bug.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutation(NamedTuple):
    """One bug.

    Attributes:
        name: its name for --only.
        file: the file, relative to the root of the repository.
        old: text that occurs exactly once in the file.
        new: the text that replaces it.
        bug: who made it, or how it comes about.
        tests: the tests that must fail, as arguments of pytest separated by blanks.
    """

    name: str
    file: str
    old: str
    new: str
    bug: str
    tests: str


CONTRASTIVE = "ssljax/losses/contrastive.py"
SIMCLR = "ssljax/methods/simclr.py"
OPTIM = "ssljax/optim.py"
AUGMENT = "ssljax/data/augment.py"
VIEWS_FILE = "ssljax/data/views.py"
RECIPES = "ssljax/data/recipes.py"
GEOMETRY = "ssljax/data/geometry.py"
CROPS = "ssljax/data/crops.py"
SAMPLER = "ssljax/data/sampler.py"
LOADER = "ssljax/data/loader.py"
PROGRAM = "ssljax/program.py"
READING = "ssljax/run/reading.py"
DIGEST = "ssljax/run/digest.py"
T_DAMAGE = "tests/test_damaged_checkpoint.py"
T_PROGRAM = "tests/test_program.py"
NORM = "ssljax/models/norm.py"
HEADS = "ssljax/models/heads.py"
RESNET = "ssljax/models/resnet.py"
KNN = "ssljax/protocols/knn.py"

T_NT_XENT = "tests/losses/test_contrastive.py"
T_SIMCLR = "tests/methods/test_simclr.py"
T_OPTIM = "tests/test_optim.py"
T_AUGMENT = "tests/data/test_augment.py"
T_GEOMETRY = "tests/data/test_geometry.py"
T_CROPS = "tests/data/test_crops.py"
T_VIEWS = "tests/data/test_views.py"
T_SAMPLER = "tests/data/test_sampler.py"
T_LOADER = "tests/data/test_loader.py"
T_NORM = "tests/models/test_norm.py"
T_HEADS = "tests/models/test_heads.py"
T_RESNET = "tests/models/test_resnet.py"
T_KNN = "tests/protocols/test_knn.py"

POLICIES = "ssljax/data/policies.py"
MIXING = "ssljax/data/mixing.py"
T_POLICIES = "tests/data/test_policies.py"
T_MIXING = "tests/data/test_mixing.py"

LOSS = f"{T_SIMCLR}::test_the_loss_is_the_sum_of_both_directions_and_the_probes"
STATISTICS = f"{T_SIMCLR}::test_running_statistics_are_those_of_all_views_together"
ENCODE = f"{T_SIMCLR}::test_encode_normalises_and_uses_the_running_statistics[simclr]"
VIEWS = f"{T_AUGMENT}::test_views_depend_on_key_index_and_view_only"
STREAM = f"{T_LOADER}::test_resume_and_processes_give_the_same_stream[memory]"
LOOP = "tests/test_train.py::test_the_loop_resumes_at_the_step_of_its_state[7]"
KERAS_NORM = f"{T_NORM}::test_keras_running_variance_is_biased_unless_fused[tf_bn_plain-False]"

LOSSES = [
    Mutation(
        "positive_is_the_next_row",
        CONTRASTIVE,
        "- jnp.diagonal(positives)",
        "- jnp.diagonal(jnp.roll(positives, -1, axis=1))",
        "labels offset after a gather: the loss stays at log(2N) (Spijkervet/SimCLR #30, #37)",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
    Mutation(
        "an_image_is_its_own_negative",
        CONTRASTIVE,
        "itself = MASKED * jnp.eye",
        "itself = 0.0 * jnp.eye",
        "the similarity of a row with itself left in the denominator",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
    Mutation(
        "local_negatives",
        CONTRASTIVE,
        "    logits = jnp.concatenate([positives, others], axis=1)",
        "    half = jnp.arange(others.shape[0]) < others.shape[0] // 2\n"
        "    away = MASKED * (half[:, None] != half[None, :]).astype(jnp.float32)\n"
        "    logits = jnp.concatenate([positives - away, others - away], axis=1)",
        "negatives of the own device alone (Lightning-Bolts #179, sthalles/SimCLR #59)",
        f"{T_NT_XENT}::test_equal_embeddings_cost_log_of_the_number_of_candidates[4]",
    ),
    Mutation(
        "negatives_of_the_other_view_only",
        CONTRASTIVE,
        "logits = jnp.concatenate([positives, others], axis=1)",
        "logits = positives",
        "CLIP's loss taken for NT-Xent: no negatives from the own view",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
    Mutation(
        "one_direction_twice",
        CONTRASTIVE,
        "_first_block_diagonal(ba, bb)",
        "_first_block_diagonal(ab, aa)",
        "only view 1 looks for view 2",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
    Mutation(
        "gathered_side_without_gradient",
        "ssljax/losses/similarity.py",
        "a, b, precision=",
        "a, jax.lax.stop_gradient(b), precision=",
        "a gather that does not differentiate (lightly #1528)",
        f"{T_NT_XENT}::test_loss_gradient_and_accuracy_equal_the_released_code[0]",
    ),
    Mutation(
        "temperature_multiplied",
        CONTRASTIVE,
        "jnp.float32(temperature)",
        "jnp.float32(1.0 / temperature)",
        "similarity * temperature",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
    Mutation(
        "embeddings_not_normalised",
        CONTRASTIVE,
        "    z1 = l2_normalize(z1)\n    z2 = l2_normalize(z2)\n    tau",
        "    z1 = z1.astype(jnp.float32)\n    z2 = z2.astype(jnp.float32)\n    tau",
        "dot products instead of cosines",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
    Mutation(
        "bfloat16_similarities",
        "ssljax/losses/similarity.py",
        'jnp.einsum("nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST)',
        'jnp.einsum("nd,md->nm", a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).astype(jnp.float32)',
        "mixed precision reaches the logits, or a TPU's default matmul does",
        f"{T_NT_XENT}::test_values_by_hand",
    ),
]

METHOD = [
    Mutation(
        "mean_for_sum",
        SIMCLR,
        "total = 2.0 * jnp.mean(rows)",
        "total = jnp.mean(rows)",
        "half the released loss: normalisation parameters learn at half speed",
        LOSS,
    ),
    Mutation(
        "views_paired_by_halves",
        SIMCLR,
        '"z": z.reshape(-1, 2, z.shape[1])}',
        '"z": jnp.swapaxes(z.reshape(2, -1, z.shape[1]), 0, 1)}',
        "the rows' layout and the pairing disagree, as after a gather in another order",
        LOSS,
    ),
    Mutation(
        "probe_labels_tiled",
        SIMCLR,
        'jnp.repeat(batch["label"], 2)',
        'jnp.tile(batch["label"], 2)',
        "labels laid out for the other order of views",
        LOSS,
    ),
    Mutation(
        "statistics_per_view",
        SIMCLR,
        'h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x)',
        'halves = [models.forward(encoder, params["encoder"], model_state["encoder"], x[v::2])'
        " for v in (0, 1)]\n"
        "        h, f_state = jnp.stack([halves[0][0], halves[1][0]], axis=1).reshape(x.shape[0], -1), "
        "halves[1][1]",
        "two passes, one per view, as ports of the paper's pseudocode do",
        STATISTICS,
    ),
    Mutation(
        "probe_trains_the_encoder",
        SIMCLR,
        "jax.lax.stop_gradient(h.reshape(-1, h.shape[2]))",
        "h.reshape(-1, h.shape[2])",
        "labels leak into the pretraining",
        f"{T_SIMCLR}::test_labels_reach_the_probe_and_nothing_else",
    ),
    Mutation(
        "batch_norm_trains_in_the_probe",
        PROGRAM,
        "models.infer(net, weights, statistics, views.for_network(image, config.augment))",
        "models.forward(net, weights, statistics, views.for_network(image, config.augment))[0]",
        "no eval() before the linear evaluation",
        ENCODE,
    ),
    Mutation(
        "encode_forgets_the_normalisation",
        PROGRAM,
        "infer(net, weights, statistics, views.for_network(image, config.augment))",
        "infer(net, weights, statistics, jax.vmap(views.to_float)(image))",
        "converted checkpoints near chance (google-research/simclr #12)",
        ENCODE,
    ),
    Mutation(
        "encode_divides_by_255_twice",
        PROGRAM,
        "infer(net, weights, statistics, views.for_network(image, config.augment))",
        "infer(net, weights, statistics, "
        "views.for_network(jax.vmap(views.to_float)(image) / 255.0, config.augment))",
        "the loader's scaling and the method's (google-research/simclr #12)",
        ENCODE,
    ),
    Mutation(
        "one_draw_for_all_steps",
        "ssljax/step.py",
        "key = jax.random.fold_in(key, state.step)",
        "key = jax.random.fold_in(key, 0)",
        "the same views of an image in every epoch",
        "tests/test_step.py",
    ),
]

OPTIMIZER = [
    Mutation(
        "lars_on_norms_and_biases",
        OPTIM,
        'return names[-1] == "kernel" and names[0] not in probes',
        "return True",
        "4 points of accuracy (solo-learn #305)",
        f"{T_OPTIM}::test_biases_norms_and_the_probe_are_neither_decayed_nor_adapted",
    ),
    Mutation(
        "sgd_decays_everything",
        OPTIM,
        "optax.add_decayed_weights(optim.weight_decay, mask=run.mask())",
        "optax.add_decayed_weights(optim.weight_decay)",
        "PyTorch's default",
        f"{T_OPTIM}::test_a_warmup_starts_at_zero_and_only_kernels_decay",
    ),
    Mutation(
        "trust_ratio_zero",
        OPTIM,
        "optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), mask)",
        "optax.masked(optax.stateless(lambda g, w: jax.tree.map(lambda g, w: "
        "g * trust_coefficient * jnp.linalg.norm(w) / jnp.maximum(jnp.linalg.norm(g), 1e-12), g, w)), mask)",
        "a zero-initialised kernel never moves",
        f"{T_OPTIM}::test_a_kernel_of_zeros_moves_by_its_plain_gradient",
    ),
    Mutation(
        "learning_rate_outside_the_momentum",
        OPTIM,
        "    if lr_in_momentum:\n",
        "    if not lr_in_momentum:\n",
        "the two papers' LARS taken for each other",
        f"{T_OPTIM}::test_the_two_forms_part_when_the_learning_rate_moves",
    ),
    Mutation(
        "weight_decay_after_the_ratio",
        OPTIM,
        "chain(decay, adapt, rate, velocity)",
        "chain(adapt, decay, rate, velocity)",
        "decay is not part of the norm that is adapted",
        f"{T_OPTIM}::test_simclr_lars",
    ),
    Mutation(
        "lars_one_step_ahead",
        OPTIM,
        "        schedule,",
        "        lambda count: schedule(count + 1),",
        "the schedule is stepped before the optimizer",
        f"{T_OPTIM}::test_a_warmup_starts_at_zero_and_only_kernels_decay",
    ),
    Mutation(
        "sgd_one_step_ahead",
        OPTIM,
        "optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)",
        "optax.sgd(lambda count: schedule(count + 1), momentum=optim.momentum, nesterov=optim.nesterov)",
        "the schedule is stepped before the optimizer",
        f"{T_OPTIM}::test_a_warmup_starts_at_zero_and_only_kernels_decay",
    ),
    Mutation(
        "warmup_starts_at_the_peak",
        OPTIM,
        "warm = start + (peak - start) * step / max(warmup_steps, 1)",
        "warm = peak + 0.0 * step",
        "large batches diverge in the first steps",
        f"{T_OPTIM}::test_imagenet_schedule_by_hand",
    ),
    Mutation(
        "cosine_runs_under_the_warmup",
        OPTIM,
        "begin = warmup_steps if shift else 0",
        "begin = 0",
        "timm's schedule taken for SimCLR's",
        f"{T_OPTIM}::test_imagenet_schedule_by_hand",
    ),
    Mutation(
        "steps_without_the_extra_one",
        OPTIM,
        "return num_examples * epochs // batch_size + 1",
        "return num_examples * epochs // batch_size",
        "the released code counts one more",
        f"{T_OPTIM}::test_imagenet_schedule_by_hand",
    ),
    Mutation(
        "steps_are_whole_epochs",
        OPTIM,
        "return num_examples * epochs // batch_size + 1",
        "return num_examples // batch_size * epochs + 1",
        "the remainder of each epoch dropped",
        f"{T_OPTIM}::test_imagenet_schedule_by_hand",
    ),
]

NETWORK = [
    Mutation(
        "batch_norm_momentum_of_torch",
        NORM,
        "self.momentum * running_mean.value + (1 - self.momentum) * mean",
        "(1 - self.momentum) * running_mean.value + self.momentum * mean",
        "PyTorch's 0.1 is 0.9 here",
        KERAS_NORM,
    ),
    Mutation(
        "batch_norm_momentum_of_flax",
        "ssljax/config/keys_networks.py",
        '.bn_momentum",\n            0.9,',
        '.bn_momentum",\n            0.99,',
        "Flax's default",
        STATISTICS,
    ),
    Mutation(
        "unbiased_running_variance",
        NORM,
        "if self.unbiased else 1.0",
        "if True else 1.0",
        "PyTorch's and fused Keras' running variance everywhere",
        KERAS_NORM,
    ),
    Mutation(
        "statistics_of_half_the_rows",
        NORM,
        "mean = _mean(x, mask)",
        "mean = _mean(x[:x.shape[0] // 2], mask)",
        "normalisation on one device, or over one view",
        KERAS_NORM,
    ),
    Mutation(
        "variance_in_one_pass",
        NORM,
        "var = _mean(jnp.square(x - _rows(mean, x)), mask)",
        "var = _mean(jnp.square(x), mask) - jnp.square(mean)",
        "E[x^2] - E[x]^2 cancels",
        f"{T_NORM}::test_a_large_mean_does_not_cancel_the_variance",
    ),
    Mutation(
        "last_gamma_is_one",
        RESNET,
        'self.norm(scale_init=nn.initializers.zeros, name="norm2")',
        'self.norm(name="norm2")',
        "residual branches are loud at the start",
        f"{T_RESNET}::test_a_fresh_block_is_its_shortcut[Basic-False]",
    ),
    Mutation(
        "last_gamma_of_bottlenecks_is_one",
        RESNET,
        'self.norm(scale_init=nn.initializers.zeros, name="norm3")',
        'self.norm(name="norm3")',
        "residual branches are loud at the start",
        f"{T_RESNET}::test_a_fresh_block_is_its_shortcut[Bottleneck-False]",
    ),
    Mutation(
        "no_projection_in_group_1",
        RESNET,
        'project = index == 1 and (self.shortcut == "simclr" or changes)',
        "project = index == 1 and changes",
        "torchvision's ResNet taken for SimCLR's",
        "tests/models/test_backbone.py::test_parameter_counts_of_the_official_networks[resnet18_x1]",
    ),
    Mutation(
        "tensorflow_same_padding",
        RESNET,
        'padding="SAME" if padding == "same" else symmetric',
        'padding="SAME"',
        "strided convolutions shifted by a pixel",
        f"{T_RESNET}::test_strided_convolutions_pad_like_pytorch_not_like_same",
    ),
    Mutation(
        "head_ends_without_norm",
        HEADS,
        "x = self._batch_norm(self.layers, use_bias=False)(x, train=train)",
        "pass",
        "the paper's head, not the released one",
        f"{T_HEADS}::test_official_weights_fill_exactly_our_tree",
    ),
    Mutation(
        "head_ends_with_an_offset",
        HEADS,
        "self._batch_norm(self.layers, use_bias=False)",
        "self._batch_norm(self.layers, use_bias=True)",
        "the last norm of the head has a scale only",
        f"{T_HEADS}::test_official_weights_fill_exactly_our_tree",
    ),
    Mutation(
        "head_ends_with_relu",
        HEADS,
        "            outputs.append(x)\n",
        "            outputs.append(nn.relu(x))\n",
        "half of the sphere is lost",
        f"{T_HEADS}::test_official_projection_in_both_modes",
    ),
]

AUGMENTATION = [
    Mutation(
        "one_key_for_both_views",
        VIEWS_FILE,
        "jax.random.fold_in(jax.random.fold_in(key, index), number)",
        "jax.random.fold_in(key, index)",
        "identical views: 100 % contrastive accuracy at step 0",
        VIEWS,
    ),
    Mutation(
        "view_depends_on_its_place",
        VIEWS_FILE,
        "(image, index, first, numbers, shared)",
        "(image, jnp.arange(index.shape[0], dtype=jnp.int32), first, numbers, shared)",
        "keys split over the batch instead of the example's id",
        VIEWS,
    ),
    Mutation(
        "one_draw_for_the_batch",
        VIEWS_FILE,
        "jax.random.fold_in(jax.random.fold_in(key, index), number)",
        "jax.random.fold_in(key, number)",
        "batch-wise augmentation: a batch shares its colours",
        VIEWS,
    ),
    Mutation(
        "jitter_order_fixed",
        VIEWS_FILE,
        "rank = (u[8:, None] > u[None, 8:]).sum(1, dtype=jnp.int32)",
        "rank = jnp.arange(4, dtype=jnp.int32)",
        "brightness, contrast, saturation, hue in this order always",
        f"{T_AUGMENT}::test_draw_has_the_ranges_of_the_paper",
    ),
    Mutation(
        "jitter_clips_only_at_the_end",
        AUGMENT,
        "x = tuple(clip(c * multiply",
        "x = tuple((c * multiply",
        "no clip between the operations",
        f"{T_AUGMENT}::test_jitter_is_the_four_operations_in_turn",
    ),
    Mutation(
        "hue_as_strong_as_the_rest",
        VIEWS_FILE,
        "augment.jitter_hue * augment.jitter_strength",
        "0.8 * augment.jitter_strength",
        "hue's 0.2 read as 0.8",
        f"{T_AUGMENT}::test_draw_has_the_ranges_of_the_paper",
    ),
    Mutation(
        "grey_is_the_mean",
        AUGMENT,
        "LUMA = (0.2989, 0.5870, 0.1140)",
        "LUMA = (1 / 3, 1 / 3, 1 / 3)",
        "no luma weights",
        f"{T_AUGMENT}::test_grayscale",
    ),
    Mutation(
        "grey_of_bgr",
        AUGMENT,
        "LUMA = (0.2989, 0.5870, 0.1140)",
        "LUMA = (0.1140, 0.5870, 0.2989)",
        "OpenCV's order of channels",
        f"{T_AUGMENT}::test_grayscale",
    ),
    Mutation(
        "blur_kernel_of_224",
        AUGMENT,
        "return 2 * int((side // 10) / 2) + 1",
        "return 23",
        "23 taps at every size: no H // 10 rule",
        f"{T_AUGMENT}::test_blur_kernel_follows_the_size",
    ),
    Mutation(
        "scaled_by_256",
        AUGMENT,
        "image.astype(jnp.float32) / 255.0",
        "image.astype(jnp.float32) / 256.0",
        "white is not 1",
        f"{T_AUGMENT}::test_nothing_random_is_the_image_normalised",
    ),
    Mutation(
        "crops_smaller_than_a_tenth",
        GEOMETRY,
        "fits = (\n"
        "        (area >= max(low, min_object_covered * height * width))\n"
        "        & (area <= high)\n"
        "        & (w <= width)\n"
        "        & (h <= height)\n"
        "        & (w > 0)\n"
        "        & (h > 0)\n"
        "    )",
        "fits = (area >= low) & (area <= high) & (w <= width) & (h <= height) & (w > 0) & (h > 0)",
        "8 % is 10 % in the released code: min_object_covered forgotten",
        f"{T_GEOMETRY}::test_no_tf_box_covers_less_than_a_tenth",
    ),
    Mutation(
        "host_crops_smaller_than_a_tenth",
        CROPS,
        "min_object_covered=0.1,",
        "min_object_covered=0.0,",
        "8 % is 10 % in the released code: min_object_covered forgotten",
        f"{T_CROPS}::test_tf_box_distribution",
    ),
    Mutation(
        "host_crops_follow_the_position",
        LOADER,
        "tf.stack([epoch, tf.cast(index, tf.int64)])",
        "tf.stack([epoch, tf.cast(position, tf.int64)])",
        "a selection of the data sees other views of the same image",
        f"{T_LOADER}::test_pixels_in_memory_can_be_cropped_on_the_host",
    ),
    Mutation(
        "host_crops_follow_the_worker",
        CROPS,
        "crop_seed,\n",
        "tf.random.uniform([2], maxval=1 << 30, dtype=tf.int64),\n",
        "random state of the worker (NumPy's seed copied into every PyTorch worker)",
        f"{T_CROPS}::test_a_view_depends_on_seed_epoch_index_and_number_alone",
    ),
    Mutation(
        "host_crops_repeat_every_epoch",
        CROPS,
        "stream = tf.constant(config.seed << 32, tf.int64) + epoch",
        "stream = tf.constant(config.seed << 32, tf.int64) + 0 * epoch",
        "workers seeded alike in every epoch",
        f"{T_CROPS}::test_a_view_depends_on_seed_epoch_index_and_number_alone",
    ),
]

BLUR = """    if augment.blur_probability > 0.0:
        width = drawn.sigma if sigma is None else sigma
        image = jnp.where(drawn.apply_blur, _blurred(image, width, augment), image)
"""
SOLARIZE = """    if augment.solarize_probability > 0.0:
        image = jnp.where(drawn.apply_solarize, solarize(image, augment.solarize_threshold), image)
"""
NAMED_VIEWS = [
    Mutation(
        "a_view_ignores_its_overrides",
        RECIPES,
        "overrides = [stated[partner], stated[name]] if partner else [stated[name]]",
        "overrides = [stated[partner]] if partner else []",
        "one recipe for all views: BYOL without its asymmetry",
        f"{T_VIEWS}::test_overrides_hold_for_their_view_alone",
    ),
    Mutation(
        "a_shared_crop_is_drawn_anew",
        RECIPES,
        'firsts[view["of"] or name]',
        "firsts.get(name, drawn)",
        "the tokenizer sees another crop than the network (BEiT)",
        f"{T_VIEWS}::test_a_shared_crop_is_one_box_at_two_sizes",
    ),
    Mutation(
        "solarized_before_the_blur",
        VIEWS_FILE,
        BLUR + SOLARIZE,
        SOLARIZE + BLUR,
        "the blur smooths what was inverted",
        f"{T_VIEWS}::test_solarize_follows_the_blur_and_inverts_from_its_threshold_on",
    ),
    Mutation(
        "solarized_from_the_middle",
        VIEWS_FILE,
        "solarize(image, augment.solarize_threshold)",
        "solarize(image, 0.5)",
        "128 of 255 whatever the threshold",
        f"{T_VIEWS}::test_solarize_follows_the_blur_and_inverts_from_its_threshold_on",
    ),
]

ORDER_AND_STATE = [
    Mutation(
        "every_epoch_alike",
        SAMPLER,
        "key=np.array([seed, epoch]",
        "key=np.array([seed, 0]",
        "DistributedSampler without set_epoch",
        f"{T_SAMPLER}::test_order_is_a_permutation_that_depends_on_seed_and_epoch_only",
    ),
    Mutation(
        "every_seed_alike",
        SAMPLER,
        "key=np.array([seed, epoch]",
        "key=np.array([0, epoch]",
        "seeds that share the order of the data",
        f"{T_SAMPLER}::test_order_is_a_permutation_that_depends_on_seed_and_epoch_only",
    ),
    Mutation(
        "seed_plus_epoch",
        SAMPLER,
        "key=np.array([seed, epoch]",
        "key=np.array([0, seed + epoch]",
        "seed 0's epoch 1 is seed 1's epoch 0",
        f"{T_SAMPLER}::test_order_is_the_documented_stream",
    ),
    Mutation(
        "hosts_read_the_same_rows",
        LOADER,
        "(step % spe) * batch_size + process_index * share",
        "(step % spe) * batch_size",
        "a global batch that holds every image twice",
        STREAM,
    ),
    Mutation(
        "resume_restarts_the_stream",
        LOADER,
        "steps = itertools.count(start_step)",
        "steps = itertools.count(0)",
        "the first images once more after every preemption",
        STREAM,
    ),
    Mutation(
        "the_loop_restarts_the_stream",
        "ssljax/run/loop.py",
        "device_batches(program, source, seed, int(state.step), ",
        "device_batches(program, source, seed, 0, ",
        "the first images once more after every preemption",
        LOOP,
    ),
    Mutation(
        "the_seed_misses_the_sampler",
        "ssljax/program.py",
        "        config.seed = seed\n",
        "        config.seed = 0\n",
        "seeds that share the order of the data",
        LOOP,
    ),
    Mutation(
        "only_parameters_are_restored",
        "ssljax/run/checkpoint.py",
        "            return reading.read_leaves(folder, like, stored.digests)\n",
        "            state = reading.read_leaves(folder, like, stored.digests)\n"
        "            return state.replace(opt_state=jax.tree.map(lambda leaf: 0 * leaf, state.opt_state))\n",
        "momentum starts from zero after every preemption",
        "tests/test_checkpoint.py",
    ),
    Mutation(
        "the_oldest_checkpoint_is_restored",
        READING,
        "for step in reversed(steps(directory)):",
        "for step in steps(directory):",
        "folders listed in the wrong order",
        "tests/test_checkpoint.py",
    ),
    Mutation(
        "evaluation_reads_the_raw_weights",
        "ssljax/methods/deit.py",
        "return ema.backbone(extra.ema, params, model_state)",
        "return ema.backbone((), params, model_state)",
        "layer probes and attention of the raw weights, although the paper evaluates the average",
        f"{T_PROGRAM}::test_maps_tokens_and_attention_are_those_of_the_average",
    ),
    Mutation(
        "only_the_encoder_is_taken",
        "ssljax/earlier.py",
        "for name in config.init_branches:",
        "for name in config.init_branches[:1]:",
        "the projector starts from scratch, although fine-tuning should continue it",
        f"{T_PROGRAM}::test_a_run_starts_from_the_branches_that_it_names",
    ),
    Mutation(
        "clusters_of_other_images",
        "ssljax/evaluate.py",
        "own_data = not elsewhere(",
        "own_data = True or elsewhere(",
        "labels looked up by id for images that the run never saw",
        f"{T_PROGRAM}::test_a_network_is_judged_on_data_that_it_was_not_trained_on[deepcluster-True]",
    ),
    Mutation(
        "stated_sizes_are_believed",
        "ssljax/data/sources.py",
        "if stated and stated != there:",
        "if False:",
        "a schedule of tau for another number of images",
        f"{T_PROGRAM}::test_facts_are_read_from_the_data_and_what_a_config_states_is_checked_against_them",
    ),
    Mutation(
        "subset_not_balanced",
        SAMPLER,
        "return np.flatnonzero(rank < per_class)",
        "return np.sort(shuffled[:per_class * len(np.unique(labels))])",
        "a plain random subset",
        f"{T_SAMPLER}::test_per_class_subset_and_its_error",
    ),
    Mutation(
        "one_percent_not_balanced",
        SAMPLER,
        "np.sort(np.lexsort((turn, rank))[:total])",
        "np.sort(shuffled[:total])",
        "a plain random subset, not SimCLR's lists",
        f"{T_SAMPLER}::test_subset_is_balanced_sorted_deterministic_and_nested",
    ),
    Mutation(
        "one_percent_not_within_ten",
        SAMPLER,
        "shuffled = order(seed, 0, len(labels))",
        "shuffled = order(seed, int(1000 * fraction), len(labels))",
        "each fraction drawn anew",
        f"{T_SAMPLER}::test_subset_is_balanced_sorted_deterministic_and_nested",
    ),
]

PROTOCOLS = [
    Mutation(
        "knn_of_unnormalised_features",
        KNN,
        "return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)",
        "return x",
        "dot products instead of cosines",
        f"{T_KNN}::test_top1_equals_scikit_learn",
    ),
    Mutation(
        "knn_temperature_multiplied",
        KNN,
        "(similarity - similarity[:, :1]) / temperature",
        "(similarity - similarity[:, :1]) * temperature",
        "exp(s * T): every neighbour counts the same",
        f"{T_KNN}::test_top5_equals_numpy",
    ),
    Mutation(
        "padding_is_evaluated",
        "ssljax/protocols/features.py",
        'mask = np.asarray(batch["mask"], bool)',
        'mask = np.ones(len(batch["mask"]), bool)',
        "DistributedSampler pads the test set: images counted twice",
        "tests/protocols/test_features.py::test_exact_count_and_order_for_any_batch_size[4]",
    ),
    Mutation(
        "last_test_batch_dropped",
        LOADER,
        "for first in range(0, n, batch_size):",
        "for first in range(0, n - n % batch_size, batch_size):",
        "drop_remainder at evaluation",
        f"{T_LOADER}::test_evaluation_sees_every_example_once_in_order[memory-40]",
    ),
    Mutation(
        "penalty_against_the_sum",
        "ssljax/protocols/linear.py",
        "c = 1.0 / (len(labels) * l2)",
        "c = 1.0 / l2",
        "scikit-learn's C multiplies the sum of losses: lambda off by N",
        "tests/protocols/test_linear.py::test_fit_minimises_mean_loss_plus_half_lambda_norm",
    ),
]

MOCO = "ssljax/methods/moco.py"
BYOL = "ssljax/methods/byol.py"
EMA = "ssljax/targets/ema.py"
QUEUE = "ssljax/targets/queue.py"
DEIT = "ssljax/methods/deit.py"
T_DEIT = "tests/methods/test_deit.py"
DISTILLATION = "ssljax/losses/distillation.py"
T_DISTILLATION = "tests/losses/test_distillation.py"
VIT = "ssljax/models/vit.py"
T_MOCO = "tests/methods/test_moco.py"
T_BYOL = "tests/methods/test_byol.py"
T_VIT = "tests/models/test_vit.py"
T_TARGETS = "tests/targets/test_targets.py"
QUEUE_LOSS = f"{T_MOCO}::test_the_queue_loss_is_both_directions_against_the_queue_before_this_batch"
V3 = f"{T_MOCO}::test_v3_predicts_each_view_and_contrasts_it_with_the_other_views_keys"
BYOL_LOSS = f"{T_BYOL}::test_the_loss_is_the_sum_of_both_directions_and_the_probe_on_view_1"

FOLLOWERS = [
    Mutation(
        "enqueued_before_the_logits",
        MOCO,
        "rows.append(info_nce(q, k, queue, temperature=tau))",
        "rows.append(info_nce(q, k, jnp.concatenate([k, queue[len(k):]]), temperature=tau))",
        "the positive is among the negatives",
        QUEUE_LOSS,
    ),
    Mutation(
        "keys_stay_shuffled",
        MOCO,
        "l2_normalize(k[jnp.argsort(order)])",
        "l2_normalize(k)",
        "un-shuffle forgotten (DenseCL #1)",
        f"{T_MOCO}::test_shuffling_mixes_the_groups_of_the_keys_and_nothing_else",
    ),
    Mutation(
        "keys_are_not_shuffled",
        MOCO,
        "order = jax.random.permutation(key, x.shape[0])",
        "order = jnp.arange(x.shape[0])",
        "split statistics leak who is whose key",
        f"{T_MOCO}::test_shuffling_mixes_the_groups_of_the_keys_and_nothing_else",
    ),
    Mutation(
        "statistics_of_the_whole_batch",
        "ssljax/models/apply.py",
        "    if groups > 1:\n",
        "    if groups > 10**9:\n",
        "BatchNorm under jit is global (dddzg/MoCo #5)",
        f"{T_MOCO}::test_groups_normalise_by_themselves_and_running_statistics_are_their_mean",
    ),
    Mutation(
        "momentum_on_running_statistics",
        MOCO,
        "return MocoState(key_params, carry.key_stats, queue)",
        "return MocoState(key_params, ema.update(extra.key_stats, carry.key_stats, 0.999), queue)",
        "the moving average runs over buffers too (lightly #322, facebookresearch/moco #144)",
        f"{T_MOCO}::test_update_moves_the_keys_network_and_enqueues",
    ),
    Mutation(
        "momentum_from_before_the_step",
        "ssljax/step.py",
        "method.update(state.extra, params, out.carry, state.step)",
        "method.update(state.extra, state.params, out.carry, state.step)",
        "the target lags by one step",
        f"{T_TARGETS}::test_update_after_the_optimizer_is_the_papers_momentum_before_the_keys",
    ),
    Mutation(
        "second_view_enqueued_first",
        MOCO,
        "keys.insert(0, k)",
        "keys.append(k)",
        "view 1's keys come first",
        QUEUE_LOSS,
    ),
    Mutation(
        "queue_always_starts_at_the_top",
        QUEUE,
        "(queue.pointer + batch) % size",
        "(queue.pointer + 0 * batch) % size",
        "a pointer that is not stored: only one batch of the queue is ever fresh",
        f"{T_TARGETS}::test_first_in_first_out",
    ),
    Mutation(
        "queue_learns",
        CONTRASTIVE,
        "jax.lax.stop_gradient(l2_normalize(queue))",
        "l2_normalize(queue)",
        "old keys get a gradient",
        f"{T_MOCO}::test_keys_and_queue_get_no_gradient_and_the_order_of_the_queue_is_nothing",
    ),
    Mutation(
        "labels_without_the_rank_offset",
        CONTRASTIVE,
        "- jnp.diagonal(logits)",
        "- jnp.diagonal(jnp.roll(logits, 1, axis=1))",
        "v3's labels after a gather without the offset of the rank",
        f"{T_MOCO}::test_in_batch_contrast_by_hand",
    ),
    Mutation(
        "v3_without_two_tau",
        MOCO,
        "return 2.0 * tau * jnp.mean(in_batch",
        "return jnp.mean(in_batch",
        "the plain cross entropy",
        V3,
    ),
    Mutation(
        "v3_momentum_of_the_past_step",
        MOCO,
        "online, m(step + 1))",
        "online, m(step))",
        "the schedule of m counted from another step",
        V3,
    ),
    Mutation(
        "frozen_patch_is_a_parameter",
        VIT,
        "if not self.frozen_patch:",
        "if True:",
        "stop_gradient alone: AdamW's decay still shrinks it",
        f"{T_MOCO}::test_a_frozen_patch_projection_survives_adamws_decay",
    ),
    Mutation(
        "norms_left_out_of_mocos_decay",
        OPTIM,
        "decay = optax.add_decayed_weights(optim.weight_decay)\n",
        "decay = optax.add_decayed_weights(optim.weight_decay, decayed)\n",
        "left out for safety: not the official run",
        f"{T_MOCO}::test_pytorchs_optimizers_decay_norms_and_biases_too",
    ),
    Mutation(
        "v2_cosine_by_step",
        OPTIM,
        "jnp.minimum(jnp.asarray(step, jnp.int32) // max(",
        "jnp.minimum(jnp.asarray(step, jnp.float32) / max(",
        "v2's cosine moves between epochs only",
        f"{T_MOCO}::test_learning_rates_of_v1_and_v2_change_between_epochs",
    ),
    Mutation(
        "mean_of_the_directions",
        BYOL,
        "jnp.mean(regression(p1, t2) + regression(p2, t1))",
        "0.5 * jnp.mean(regression(p1, t2) + regression(p2, t1))",
        "half the loss halves the updates of norms and biases",
        BYOL_LOSS,
    ),
    Mutation(
        "target_sees_the_same_view",
        BYOL,
        "regression(p1, t2) + regression(p2, t1)",
        "regression(p1, t1) + regression(p2, t2)",
        "nothing to be invariant to",
        BYOL_LOSS,
    ),
    Mutation(
        "view_2_forgets_view_1",
        BYOL,
        "online(params, state, v[:, 1])",
        "online(params, model_state, v[:, 1])",
        "running statistics move only once per step",
        BYOL_LOSS,
    ),
    Mutation(
        "target_statistics_stand_still",
        BYOL,
        "return total, Out(state, stats, metrics)",
        "return total, Out(state, extra.target_stats, metrics)",
        "the target's buffers stay as they were made",
        BYOL_LOSS,
    ),
    Mutation(
        "byol_probe_trains_the_encoder",
        BYOL,
        "jax.lax.stop_gradient(h1)",
        "h1",
        "labels leak into the pretraining",
        f"{T_BYOL}::test_labels_reach_the_classifier_and_nothing_else",
    ),
    Mutation(
        "tau_of_the_next_step",
        BYOL,
        "tau(step)), stats)",
        "tau(step + 1)), stats)",
        "tau counted from 1",
        f"{T_BYOL}::test_tau_is_that_of_the_steps_own_number_and_reaches_1",
    ),
    Mutation(
        "average_skips_biases_and_norms",
        EMA,
        "return jax.tree.map(one, target, online)",
        "return jax.tree_util.tree_map_with_path("
        'lambda p, a, b: one(a, b) if p[-1].key == "kernel" else a, target, online)',
        "named_parameters filtered by weight (Lightning-Bolts #440)",
        f"{T_BYOL}::test_a_constant_tau",
    ),
    Mutation(
        "average_in_bfloat16",
        EMA,
        "new.astype(jnp.float32)).astype(old.dtype)",
        "new.astype(jnp.float32)).astype(jnp.bfloat16).astype(old.dtype)",
        "the target freezes when tau nears 1",
        f"{T_TARGETS}::test_the_target_keeps_its_dtype_and_bfloat16_parameters_still_move_it",
    ),
    Mutation(
        "tau_turns_back",
        EMA,
        "progress = jnp.clip(jnp.asarray(step).astype(jnp.float32) / jnp.float32(total), 0.0, 1.0)",
        "progress = jnp.asarray(step).astype(jnp.float32) / jnp.float32(total)",
        "the cosine continues past its end",
        f"{T_TARGETS}::test_schedule_by_hand_and_clamped",
    ),
    Mutation(
        "target_gets_a_gradient",
        "ssljax/losses/regression.py",
        "jax.lax.stop_gradient(target)",
        "target",
        "stop_gradient missing",
        f"{T_BYOL}::test_values_by_hand",
    ),
    Mutation(
        "last_layer_with_a_bias",
        "configs/byol.py",
        "dim=256,\n        hidden_bias=True,\n        last_bias=False,",
        "dim=256,\n        hidden_bias=True,\n        last_bias=True,",
        "the last Linear of both heads has none",
        f"{T_BYOL}::test_parameter_counts_of_the_papers_networks",
    ),
    Mutation(
        "heads_before_query_key_value",
        VIT,
        "3, self.heads, size)\n        q, k, v = jnp.moveaxis(qkv, 2, 0)",
        "self.heads, 3, size)\n        q, k, v = jnp.moveaxis(qkv, 3, 0)",
        "qkv unpacked in the other order",
        f"{T_VIT}::test_timm_forward_and_backward",
    ),
    Mutation(
        "gelu_by_tanh",
        VIT,
        "approximate=False",
        "approximate=True",
        "Flax's default",
        f"{T_VIT}::test_timm_forward_and_backward",
    ),
    Mutation(
        "cubic_of_jax",
        VIT,
        "    a = -0.75\n",
        "    a = -0.5\n",
        "jax.image.resize taken for PyTorch's kernel (jax #15768)",
        f"{T_VIT}::test_resized_positions_of_deit",
    ),
    Mutation(
        "average_of_softmaxes",
        DEIT,
        '    if inference == "code":\n',
        '    if inference == "paper":\n',
        "probabilities averaged where the released code averages logits",
        f"{T_DEIT}::test_the_released_codes_prediction",
    ),
    Mutation(
        "teacher_sees_the_unmixed_image",
        DEIT,
        'infer(teacher, weights["encoder"], statistics["encoder"], x)',
        "infer(\n"
        '                teacher, weights["encoder"], statistics["encoder"],\n'
        '                views.for_network(batch["image"], config.augment),\n'
        "            )",
        "the teacher labels an image that the student does not see",
        f"{T_DEIT}::test_hard_distillation_of_a_mixed_image_by_numpy",
    ),
    Mutation(
        "teachers_label_smoothed",
        DISTILLATION,
        "alpha * cross_entropy(token, decision)",
        "alpha * cross_entropy(token, decision, label_smoothing=label_smoothing)",
        "the teacher's decision smoothed like a label",
        f"{T_DISTILLATION}::test_the_released_codes_loss_and_gradients",
    ),
    Mutation(
        "kl_over_the_batch_only",
        DISTILLATION,
        '    if normalization == "code":\n',
        "    if False:\n",
        "KL divided by B, a thousand times the released loss (facebookresearch/deit #61)",
        f"{T_DISTILLATION}::test_the_released_codes_loss_and_gradients",
    ),
    Mutation(
        "kl_the_other_way_round",
        DISTILLATION,
        "jnp.exp(teacher) * (teacher - pupil)",
        "jnp.exp(pupil) * (pupil - teacher)",
        "KL(student || teacher), as the paper's equation reads",
        f"{T_DISTILLATION}::test_the_released_codes_loss_and_gradients",
    ),
    Mutation(
        "learning_rate_a_step_not_an_epoch",
        OPTIM,
        "epoch = jnp.asarray(step, jnp.int32) // max(steps_per_epoch, 1)",
        "epoch = jnp.asarray(step, jnp.float32) / max(steps_per_epoch, 1)",
        "timm's schedule by epochs read as one by steps",
        f"{T_OPTIM}::test_timm_schedule_runs_its_cosine_under_the_warmup",
    ),
    Mutation(
        "positions_decay",
        OPTIM,
        'return name == "kernel" or (',
        'return name in ("kernel", "positions") or (',
        "weight decay on the positions",
        f"{T_OPTIM}::test_deit_schedule_and_decayed_leaves_by_hand",
    ),
    Mutation(
        "average_without_statistics",
        DEIT,
        "Ema(params, carry), config.ema.decay)",
        "Ema(params, extra.ema.model_state), 0.0)",
        "the average is a copy",
        f"{T_DEIT}::test_encode_and_classify_read_both_tokens_of_the_average",
    ),
    Mutation(
        "student_label_unmixed",
        DEIT,
        "rows = distilled((z, token), t, y)",
        'rows = distilled((z, token), t, batch["label"])',
        "the image is mixed and its label is not",
        f"{T_DEIT}::test_hard_distillation_of_a_mixed_image_by_numpy",
    ),
    Mutation(
        "one_rate_for_all_blocks",
        "ssljax/models/drop.py",
        "[last * block / max(blocks - 1, 1) for block in range(blocks)]",
        "[last] * blocks",
        "stochastic depth in the first block too",
        f"{T_VIT}::test_the_rate_grows_from_nothing_in_the_first_block",
    ),
]

TIMM = f"{T_MIXING}::test_mixed_images_and_targets_are_timms"

DEIT_DATA = [
    Mutation(
        "partner_by_permutation",
        MIXING,
        "lam * x + (1.0 - lam) * jnp.flip(x, 0)",
        "lam * x + (1.0 - lam) * jnp.roll(x, 1, 0)",
        "mixup with another row than the released code's: two flips are no identity",
        f"{TIMM}[mix0]",
    ),
    Mutation(
        "pasted_from_another_row",
        MIXING,
        "jnp.flip(image, 0), image)",
        "jnp.roll(image, 1, 0), image)",
        "the pixels' partner is not the targets'",
        f"{TIMM}[mix1]",
    ),
    Mutation(
        "smoothed_twice",
        MIXING,
        "* (1.0 - smoothing) + smoothing / classes",
        "* (1.0 - smoothing) ** 2 + smoothing * (2.0 - smoothing) / classes",
        "smoothing in the targets and again in the loss",
        f"{T_MIXING}::test_smoothing_by_hand",
    ),
    Mutation(
        "lambda_of_the_unclipped_box",
        MIXING,
        "return cutmix(images, targets, cutmix_box(box_key, lam, *images.shape[1:3]))",
        "return cutmix(images, targets, cutmix_box(box_key, lam, *images.shape[1:3]))[0], "
        "blend(targets, lam)",
        "lambda as drawn, although the box was cut at the border",
        f"{T_MIXING}::test_mix_draws_mixup_or_cutmix_and_corrects_lambda",
    ),
    Mutation(
        "copies_look_alike",
        CROPS,
        "tf.cast(copy, tf.int64) * total",
        "tf.cast(0 * copy, tf.int64) * total",
        "repeated augmentation keyed by the image alone",
        f"{T_LOADER}::test_copies_are_neighbours_with_views_of_their_own[repeated]",
    ),
    Mutation(
        "copies_look_alike_on_the_device",
        VIEWS_FILE,
        "else copy * drawn",
        "else 0 * copy * drawn",
        "repeated augmentation keyed by the image alone",
        f"{T_AUGMENT}::test_copies_of_an_image_have_views_of_their_own",
    ),
    Mutation(
        "epochs_three_times_as_long",
        SAMPLER,
        "return np.repeat(order(seed, epoch, n)[:different], repeats)[:n]",
        "return np.repeat(order(seed, epoch, n), repeats)",
        "repeats that lengthen the epoch: three times the steps and all images",
        f"{T_SAMPLER}::test_repeats_keep_the_length_and_see_a_third_of_the_images",
    ),
    Mutation(
        "copies_a_pass_apart",
        SAMPLER,
        "return np.repeat(order(seed, epoch, n)[:different], repeats)[:n]",
        "return np.tile(order(seed, epoch, n)[:different], repeats)[:n]",
        "the copies are never in one batch",
        f"{T_SAMPLER}::test_repeats_are_the_released_samplers[ra0]",
    ),
    Mutation(
        "erased_with_zeros",
        MIXING,
        "[:, :, None], noise, image)",
        "[:, :, None], 0.0 * noise, image)",
        "torchvision's default: grey, not noise",
        f"{T_MIXING}::test_erasing_is_noise_of_unit_deviation_in_the_box_alone",
    ),
    Mutation(
        "erased_before_the_normalisation",
        VIEWS_FILE,
        "    image = color(image, draw(color_key, augment), augment, sigma=sigma)\n",
        "    image = random_erasing("
        "image, jax.random.fold_in(key, 2), probability=augment.erasing_probability)\n"
        "    return color(image, draw(color_key, augment), augment, sigma=sigma)\n",
        "noise in units of the pixels",
        f"{T_AUGMENT}::test_erasing_comes_last_in_normalised_units",
    ),
    Mutation(
        "jitter_beside_the_policy",
        POLICIES,
        "if augment.jitter_probability > 0:",
        "if augment.jitter_probability > 1:",
        "colour jitter left on together with RandAugment",
        f"{T_POLICIES}::test_impossible_policies_are_refused",
    ),
    Mutation(
        "no_antialias",
        CROPS,
        "(height, width), method, antialias=antialias)",
        "(height, width), method, antialias=False)",
        "TensorFlow's bicubic taken for Pillow's",
        f"{T_CROPS}::test_antialiased_resize_is_pillows",
    ),
    Mutation(
        "operations_always_applied",
        POLICIES,
        "APPLIED = 0.5 ",
        "APPLIED = 1.0 ",
        "Google's RandAugment taken for timm's",
        f"{T_POLICIES}::test_randaugment_draws_as_timm_does",
    ),
    Mutation(
        "posterize_counts_the_other_way",
        POLICIES,
        '"PosterizeIncreasing": 4 - int(',
        '"PosterizeIncreasing": int(',
        "the strongest magnitude is the weakest",
        f"{T_POLICIES}::test_pixels_and_arguments_are_timms[PosterizeIncreasing]",
    ),
    Mutation(
        "one_policy_for_all_views",
        CROPS,
        "tf.stack([epoch, index, number])",
        "tf.stack([epoch, index, 0 * number])",
        "the policy forgets the view, and with it the copy",
        f"{T_CROPS}::test_the_policy_comes_after_crop_and_flip",
    ),
]

HOSTS = [
    Mutation(
        "every_host_reads_the_rows_of_the_first",
        "ssljax/program.py",
        "process_index=jax.process_index()",
        "process_index=0",
        "a shard index that stays 0 on every host: each image several times in a global batch",
        "tests/test_hosts.py::test_each_process_reads_its_own_rows_of_the_same_batches",
    ),
    Mutation(
        "one_task_of_a_job_waits_for_the_rest",
        "ssljax/run/hosts.py",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_NTASKS",
        "srun of a single process inside a larger allocation waits for processes that nobody starts",
        "tests/test_hosts.py::test_the_environment_says_whether_there_are_others",
    ),
]

WEIGHTS = "ssljax/convert/weights.py"
CONVERT_VIT = "ssljax/convert/vit.py"
T_WEIGHTS = "tests/convert/test_weights.py"
T_REGNET = "tests/models/test_regnet.py"

CONVERSION = [
    Mutation(
        "keys_before_queries",
        CONVERT_VIT,
        'reorder = LINEAR if leaf == "kernel" else SAME',
        'reorder = LINEAR if leaf == "kernel" else SAME\n'
        '        if path.endswith("qkv/kernel"):\n'
        "            reorder = Reorder(lambda w: np.roll(w, w.shape[0] // 3, axis=0).T, LINEAR.theirs)",
        "query, key and value in another order than timm's",
        f"{T_VIT}::test_timm_forward_and_backward",
    ),
    Mutation(
        "patches_column_by_column",
        WEIGHTS,
        "lambda w: CONV.ours(w).reshape(-1, w.shape[0]),",
        "lambda w: CONV.ours(w).swapaxes(0, 1).reshape(-1, w.shape[0]),",
        "height and width of the patch projection exchanged",
        f"{T_VIT}::test_timm_forward_and_backward",
    ),
    Mutation(
        "channels_of_a_patch_outermost",
        WEIGHTS,
        "lambda w: CONV.ours(w).reshape(-1, w.shape[0]),\n"
        "        lambda w: CONV.theirs(w.reshape(side, side, -1, w.shape[-1])),",
        "lambda w: w.reshape(w.shape[0], -1).T, "
        "lambda w: CONV.theirs(w.reshape(side, side, -1, w.shape[-1]))",
        "PyTorch's order of a flattened patch",
        f"{T_VIT}::test_timm_forward_and_backward",
    ),
    Mutation(
        "running_variance_for_the_mean",
        WEIGHTS,
        '"mean": "running_mean", "var": "running_var"',
        '"mean": "running_var", "var": "running_mean"',
        "the two buffers of BatchNorm exchanged",
        f"{T_RESNET}::test_torchvision_network[c0]",
    ),
    Mutation(
        "what_is_left_over_is_ignored",
        WEIGHTS,
        "    if left:\n",
        "    if not wanted:\n",
        "load_state_dict(strict=False): a file of another network fits",
        f"{T_WEIGHTS}::test_what_does_not_match_is_named",
    ),
    Mutation(
        "strides_of_a_transposed_array_are_written_away",
        WEIGHTS,
        "np.ascontiguousarray(array)",
        "array",
        "safetensors 0.8 ignores the strides of an array (safetensors #825)",
        f"{T_WEIGHTS}::test_half_precision_is_read_exactly_and_transposed_arrays_are_written_whole",
    ),
    Mutation(
        "gate_squeezes_the_blocks_output",
        "ssljax/models/regnet.py",
        "round(x.shape[-1] / 4)",
        "round(self.features / 4)",
        "the squeeze ratio counted from the wrong width: another network",
        f"{T_REGNET}::test_the_gate_squeezes_the_blocks_input",
    ),
    Mutation(
        "regnet_with_the_biased_variance",
        "ssljax/models/regnet.py",
        "unbiased: bool = True",
        "unbiased: bool = False",
        "running variance of TensorFlow in a network of PyTorch",
        f"{T_REGNET}::test_torchvision_network",
    ),
]

DEEPCLUSTER = "ssljax/methods/deepcluster.py"
KMEANS = "ssljax/targets/kmeans.py"
PLAIN = "ssljax/models/alexnet_vgg.py"
T_DEEPCLUSTER = "tests/methods/test_deepcluster.py"
T_KMEANS = "tests/targets/test_kmeans.py"
T_PLAIN = "tests/models/test_alexnet_vgg.py"
NEW_HEAD = f"{T_DEEPCLUSTER}::test_a_refresh_makes_a_new_head_without_a_past_and_touches_nothing_else"
NEAREST = f"{T_DEEPCLUSTER}::test_every_image_is_in_the_cluster_whose_centroid_is_nearest"
BANKS = f"{T_DEEPCLUSTER}::test_banks_hold_the_last_embeddings_and_prototypes_are_their_clusters"

CLUSTERING = [
    Mutation(
        "places_of_the_sorted_set",
        SAMPLER,
        "drawn = members[(start[:, None] + place).ravel()]",
        "drawn = (start[:, None] + place).ravel()",
        "positions in the set sorted by cluster read as positions in the data set: "
        "draws follow the clusters' sizes (facebookresearch/deepcluster, UnifLabelSampler)",
        f"{T_SAMPLER}::test_balanced_draws_are_those_of_the_released_sampler",
    ),
    Mutation(
        "labels_of_other_images",
        "ssljax/run/refresh.py",
        "np.stack(position, axis=1).ravel()",
        "np.stack(position, axis=0).ravel()",
        "features are in another order than the ids of the images",
        NEAREST,
    ),
    Mutation(
        "the_last_batch_is_dropped",
        "ssljax/run/refresh.py",
        "number * batch < len(positions)",
        "number * batch < len(positions) // batch * batch",
        "images of the last, incomplete batch get no label",
        f"{T_DEEPCLUSTER}::test_the_control_keeps_sizes_and_loses_what_they_mean",
    ),
    Mutation(
        "the_head_is_kept",
        DEEPCLUSTER,
        '"head": new_head',
        '"head": state.params["head"]',
        "the classifier of the old clusters is kept for the new ones",
        NEW_HEAD,
    ),
    Mutation(
        "the_heads_past_is_kept",
        DEEPCLUSTER,
        'opt_state = _forget(state.opt_state, "head")',
        "opt_state = state.opt_state",
        "momentum of a head that was replaced",
        f"{T_DEEPCLUSTER}::test_an_optimizer_that_remembers_the_head_forgets_it",
    ),
    Mutation(
        "features_after_the_relu",
        PLAIN,
        'x = self._full("fc7")(drop(x))',
        'x = nn.relu(self._full("fc7")(drop(x)))',
        "k-means on features after the last ReLU",
        f"{T_PLAIN}::test_the_layers_in_their_order",
    ),
    Mutation(
        "clustered_once_more_at_the_end",
        "ssljax/run/loop.py",
        "total - step >= spe",
        "step < total",
        "the last steps train a new head: the remainder of all epochs follows the last of them",
        f"{T_DEEPCLUSTER}::test_no_clustering_without_an_epoch_to_learn_it",
    ),
    Mutation(
        "the_same_first_centroids_every_time",
        "ssljax/run/refresh.py",
        "jax.random.key(self.seed), REFRESH), state.step)",
        "jax.random.key(self.seed), REFRESH), 0)",
        "a constant seed of k-means",
        f"{T_DEEPCLUSTER}::"
        "test_another_clustering_starts_from_other_images_and_one_device_finds_what_eight_find",
    ),
    Mutation(
        "weights_count_empty_clusters",
        DEEPCLUSTER,
        "used_clusters = (counts > 0).sum().astype(jnp.float32)",
        "used_clusters = jnp.float32(c.k)",
        "the mean weight is not one",
        f"{T_DEEPCLUSTER}::test_weights_make_every_cluster_count_alike",
    ),
    Mutation(
        "edges_of_the_sum_of_colours",
        "ssljax/models/sobel.py",
        ".mean(axis=-1)",
        ".sum(axis=-1)",
        "grey three times too bright",
        "tests/models/test_alexnet_vgg.py::test_sobel_of_the_released_network",
    ),
    Mutation(
        "every_head_reads_the_first_bank",
        DEEPCLUSTER,
        "extra.banks[:, head % num_banks]",
        "extra.banks[:, 0]",
        "v2: the other views' embeddings are never clustered",
        BANKS,
    ),
    Mutation(
        "prototypes_of_any_length",
        DEEPCLUSTER,
        "                spherical=True,\n",
        "",
        "v2: means instead of directions",
        BANKS,
    ),
    Mutation(
        "the_pool_leaves_out_the_border",
        "ssljax/models/pooling.py",
        ".mean((2, 4)).reshape(batch, -1)",
        ".sum((2, 4)).reshape(batch, -1) / jnp.maximum((x != 0).astype(jnp.float32)"
        ".reshape(batch, places, size, places, size, channels).sum((2, 4)).reshape(batch, -1), 1.0)",
        "zeros around the map not counted in the average",
        "tests/protocols/test_layers.py::test_averages_count_the_zeros_of_the_border",
    ),
]

# folders: who may write to a run's folder, what is in it, and hosts and data that are not the same
FOLDERS = [
    Mutation(
        "a_lock_that_many_may_share",
        "ssljax/run/lock.py",
        "fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        "two processes train in one folder",
        "tests/test_lock.py::test_a_second_process_is_refused_until_the_first_lets_go",
    ),
    Mutation(
        "a_lease_that_nobody_respects",
        "ssljax/run/lock.py",
        "            if left > 0:\n",
        "            if left > STALE_SECONDS:\n",
        "on a bucket two processes train in one folder",
        "tests/test_lock.py::test_a_fresh_lease_of_another_machine_is_respected",
    ),
    Mutation(
        "a_lost_lease_is_taken_back",
        "ssljax/run/lock.py",
        "        if holder and not self._is_me(holder):\n            self._leased = False\n",
        "        if not holder:\n            self._leased = False\n",
        "a machine that slept writes beside the one that took over",
        "tests/test_lock.py::test_whoever_lost_the_lease_stops_and_leaves_the_other_alone",
    ),
    Mutation(
        "hosts_compare_flags_alone",
        "ssljax/run/hosts.py",
        "for name, value in flat(config).items()}",
        "for name, value in flat(config).items() if name == 'preset'}",
        "another seed on one host trains without a word",
        "tests/test_hosts_alike.py::test_all_hosts_name_what_differs",
    ),
    Mutation(
        "the_first_host_alone_compares",
        "ssljax/run/hosts.py",
        "    if mine != first:\n",
        "    if mine != first and me == 0:\n",
        "another data set on one host trains without a word",
        "tests/test_hosts_alike.py::test_other_data_are_named",
    ),
    Mutation(
        "names_without_sizes",
        "ssljax/data/change.py",
        "        size = str(bytes_)\n",
        '        size = ""\n',
        "a file that another one replaced is not found",
        "tests/data/test_change.py::test_the_first_difference_is_named[host]",
    ),
    Mutation(
        "pixels_in_memory_are_not_looked_at",
        "ssljax/data/change.py",
        '"" if source.images is None else',
        '"" if source.file_of is None else "" if source.images is not None else',
        "an image that another of the same size replaced is trained on",
        "tests/data/test_change.py::test_other_pixels_are_seen_where_they_are_in_memory",
    ),
    Mutation(
        "changed_data_are_accepted_unasked",
        "ssljax/run/start.py",
        'if "train" in changed and not accept:',
        'if "classes" in changed and not accept:',
        "the run goes on with another stream of images",
        "tests/test_folder.py::test_changed_training_images_are_refused_or_accepted_and_noted",
    ),
    Mutation(
        "files_are_written_in_place",
        "ssljax/run/files.py",
        'unfinished = f"{os.fspath(file)}.{os.getpid()}"',
        "unfinished = os.fspath(file)",
        "a crash leaves half a config.json",
        "tests/test_folder.py::test_a_file_is_replaced_as_a_whole",
    ),
    Mutation(
        "damaged_lines_are_left_out",
        "ssljax/run/files.py",
        "        elif number < len(lines):\n",
        "        elif number < 0:\n",
        "a row of the log is lost without a word",
        "tests/test_folder.py::test_a_damaged_line_of_the_log_is_named_and_a_half_written_last_one_cut_off",
    ),
]

# Damage in checkpoints.
CHECKPOINTS = [
    Mutation(
        "digests_written_and_never_checked",
        READING,
        "wrong = digest.changed(tree, digests) if digests else []",
        "wrong: list[str] = []",
        "a flipped bit becomes a weight of 3e38",
        f"{T_DAMAGE}::test_damage_anywhere_is_noticed_or_changes_nothing[flip]",
    ),
    Mutation(
        "even_weights_in_the_digest",
        DIGEST,
        "(x ^ (x >> np.uint64(31))) | np.uint64(1)",
        "(x ^ (x >> np.uint64(31))) << np.uint64(32)",
        "a weight that swallows the high bits of an element",
        f"{T_DAMAGE}::test_every_flipped_bit_changes_the_digest[float32]",
    ),
    Mutation(
        "every_shard_begins_at_zero",
        DIGEST,
        "_weights(axis, starts[axis], total.shape[axis])",
        "_weights(axis, 0, total.shape[axis])",
        "a run that resumes on fewer devices finds all its checkpoints damaged",
        f"{T_DAMAGE}::test_a_digest_does_not_depend_on_where_an_array_lies[float32]",
    ),
    Mutation(
        "an_outage_taken_for_damage",
        READING,
        "if of_storage(error):",
        "if False:",
        "with expired credentials every checkpoint is passed over",
        f"{T_DAMAGE}::test_a_storage_error_stops_whoever_reads_weights[load_parts]",
    ),
    Mutation(
        "a_damaged_metrics_file_overlooked",
        READING,
        "    read_metrics(folder)\n    metadata",
        "    metadata",
        "evaluation reads a checkpoint that training has passed over",
        f"{T_DAMAGE}::test_a_metrics_file_that_is_not_json_is_damage_like_any_other[newest]",
    ),
    Mutation(
        "nan_after_a_resume_blamed_on_the_learning_rate",
        "ssljax/run/folder.py",
        "monitor.check_finite(step, metrics, self._resumed_from)",
        "monitor.check_finite(step, metrics)",
        "the damaged checkpoint is called the last good one",
        f"{T_DAMAGE}::test_nan_after_a_resume_suspects_the_checkpoint",
    ),
]

# Damaged images and files of strangers.
BAD_IMAGE = "ssljax/data/damage.py"
DECODING = "ssljax/data/reading.py"
PAGE = "ssljax/pictures/page.py"
T_BAD_IMAGE = "tests/data/test_damage.py"
T_DECODING = "tests/data/test_reading.py"
IMAGES = [
    Mutation(
        "grey_instead_of_the_missing_rows",
        BAD_IMAGE,
        "image.load()\n    except OSError:\n        return True",
        "image.load()\n    except OSError:\n        return False",
        "the decoders accept a JPEG that was cut before its end marker",
        f"{T_BAD_IMAGE}::test_a_jpeg_that_ends_too_early_is_unreadable",
    ),
    Mutation(
        "no_bound_on_pixels",
        BAD_IMAGE,
        "if width * height > MAX_PIXELS:",
        "if max(width, height) > MAX_PIXELS:",
        "a file of 48 kB asks for gigabytes",
        f"{T_BAD_IMAGE}::test_one_bound_on_pixels_for_both_decoders",
    ),
    Mutation(
        "any_format_that_pillow_knows",
        BAD_IMAGE,
        'raise ValueError(f"it is {what}; JPEG, PNG and, in folders, WebP, GIF, BMP and TIFF are read")',
        'return "PNG"',
        "TensorFlow ends a run at a PDF named .jpg, and Pillow runs Ghostscript on a PostScript file",
        f"{T_BAD_IMAGE}::test_a_file_is_checked_before_training_by_its_header",
    ),
    Mutation(
        "a_pipe_is_read",
        BAD_IMAGE,
        "if not stat.S_ISREG(found.st_mode):",
        "if stat.S_ISSOCK(found.st_mode):",
        "open() waits for a writer for ever",
        f"{T_BAD_IMAGE}::test_a_file_is_checked_before_training_by_its_header",
    ),
    Mutation(
        "a_failing_disk_is_skipped",
        BAD_IMAGE,
        'return "there is no such file"\n    return ""',
        'return "there is no such file"\n    return "unreadable"',
        "each host leaves out other images",
        f"{T_BAD_IMAGE}::test_a_failing_disk_is_no_unreadable_image",
    ),
    Mutation(
        "the_label_stays_behind",
        DECODING,
        "return np.int64(at), image",
        "return position, image",
        "the replacing image is trained on with the label of the replaced one",
        f"{T_DECODING}::test_the_next_readable_image_takes_the_place_with_its_own_label_and_id",
    ),
    Mutation(
        "going_on_one_batch_later",
        DECODING,
        "batches = pipeline(number, stand_in)\n            continue",
        "batches = pipeline(number + 1, stand_in)\n            continue",
        "the batch with the unreadable image is dropped, and the stream is another one",
        f"{T_DECODING}::test_the_next_readable_image_takes_the_place_with_its_own_label_and_id",
    ),
    Mutation(
        "skip_is_another_run",
        "ssljax/run/start.py",
        '    "data.on_bad_image",\n',
        "",
        "a run that ended at an unreadable image cannot go on without it",
        "tests/test_train.py::test_a_run_that_an_unreadable_image_ended_may_go_on_without_it",
    ),
    Mutation(
        "tags_in_a_report",
        PAGE,
        '"&lt;"',
        '"<"',
        "a script in somebody's results.jsonl runs where report.md is shown",
        "tests/test_report.py::test_text_of_strangers_stays_text_in_markdown",
    ),
    Mutation(
        "infinite_weights_are_converted",
        WEIGHTS,
        "<= LARGEST)",
        "<= np.inf)",
        "a float64 that float32 does not hold becomes infinite",
        f"{T_WEIGHTS}::test_numbers_that_no_network_computes_with_are_refused",
    ),
]

# What the drills of settings and of the terminal found.
SETTINGS_AND_TERMINAL = [
    Mutation(
        "infinity_lies_in_every_range",
        "ssljax/config/rows.py",
        "        if beyond(value, self):\n            return False\n",
        "",
        "weight_decay=inf and epochs=2**70 are accepted",
        "tests/test_fuzz.py::test_nonsense_is_answered_with_what_is_valid",
    ),
    Mutation(
        "a_missing_value_takes_the_next_flag",
        "ssljax/cli.py",
        'not yes_or_no and (following is None or following.startswith("--"))',
        "not yes_or_no and following is None",
        "--config.optim.learning_rate --config.seed=1 loses the seed",
        "tests/test_fuzz.py::test_words_that_do_not_go_together_are_answered",
    ),
    Mutation(
        "the_advice_does_not_look_at_the_memory",
        "ssljax/run/memory.py",
        "    while asked and size and asked / factor > 0.7 * size:",
        "    while not asked and size:",
        "half the batch is suggested where an eighth fits",
        "tests/test_terminal.py::test_the_advice_fits_the_verb_and_the_memory",
    ),
    Mutation(
        "an_error_waits_for_the_threads",
        "ssljax/process.py",
        "    os._exit(code)\n",
        "    sys.exit(code)\n",
        "after an error the process hangs until the pipeline of images ends",
        "tests/test_terminal.py::test_an_error_ends_the_process_although_a_thread_is_at_work",
    ),
    Mutation(
        "a_full_disk_behind_the_output_ends_a_verb",
        "ssljax/process.py",
        "        except OSError as error:\n            nowhere",
        "        except BrokenPipeError as error:\n            nowhere",
        "only `| head` was thought of",
        "tests/test_terminal.py::test_an_output_that_cannot_be_written_ends_nothing",
    ),
    Mutation(
        "the_notes_of_tensorflow_are_passed_on",
        "ssljax/data/quiet.py",
        "[line for line in held if not NOTES.match(line)]",
        "list(held)",
        "two lines per library on every terminal",
        "tests/test_terminal.py::test_notes_are_held_back_and_all_else_is_passed_on",
    ),
]

# the linear evaluation of every paper, and the images that it holds out
T_LINEAR = "tests/methods/test_linear.py"
LINEAR_EVALUATION = [
    Mutation(
        "a_probe_that_normalises_by_the_batch",
        "ssljax/methods/linear.py",
        "return models.infer(encoder, weights, statistics, x)",
        "return models.forward(encoder, weights, statistics, x)[0]",
        "the backbone in training mode while the classifier is trained (virtex #16)",
        f"{T_LINEAR}::test_logits_follow_the_authors_update_and_the_backbone_keeps_every_bit[moco]",
    ),
    Mutation(
        "a_probe_of_what_is_not_evaluated",
        "ssljax/earlier.py",
        "return evaluated_part(workdir, below) if branch == EVALUATED else part",
        'return f"{below}/encoder" if branch == EVALUATED else part',
        "the raw weights of a run whose moving average is what counts",
        f"{T_LINEAR}::test_a_moving_average_is_probed_where_the_run_evaluates_it",
    ),
    Mutation(
        "a_rate_of_30_that_grows_with_the_batch",
        "configs/moco.py",
        'learning_rate=30.0,\n            scaling="none",',
        'learning_rate=30.0,\n            scaling="linear",',
        "30 taken for a base rate, as v3's is",
        f"{T_LINEAR}::test_the_recipe_is_the_papers[imagenet_r50_v1]",
    ),
    Mutation(
        "a_layer_probe_whose_rate_falls_with_the_step",
        OPTIM,
        "return peak / jnp.sqrt(1.0 + peak",
        "return peak / (1.0 + peak",
        "the square root of learning_rate_decay forgotten",
        f"{T_LINEAR}::test_logits_follow_the_authors_update_and_the_backbone_keeps_every_bit[deepcluster]",
    ),
    Mutation(
        "crops_mirrored_top_to_bottom",
        "ssljax/benches.py",
        "lambda image: image[:, :, ::-1]",
        "lambda image: image[:, ::-1]",
        "the wrong axis of [B, H, W, C]",
        f"{T_LINEAR}::test_ten_crops_are_averaged_as_probabilities",
    ),
    Mutation(
        "corners_of_the_central_square",
        CROPS,
        "geometry.offset(shape[1] - crop_w, place[1])",
        "geometry.offset(tf.minimum(shape[0], shape[1]) - crop_w, place[1])",
        "TenCrop after CenterCrop(256) instead of Resize(256)",
        "tests/data/test_squares.py::test_the_five_places_are_those_of_torchvisions_five_crop[tensorflow-40-56]",
    ),
    Mutation(
        "a_square_that_never_lies_at_the_end",
        GEOMETRY,
        "jnp.int32(central - side + 1)",
        "jnp.int32(central - side)",
        "randint whose upper end is excluded",
        "tests/data/test_squares.py::test_squares_are_uniform_within_the_central_one[32-48-boxes_on_the_device]",
    ),
    Mutation(
        "the_stages_before_are_trained_as_well",
        "ssljax/train.py",
        'if only in ("", name):',
        'if only in ("", name) or name:',
        "--stage linear pretrains for a thousand epochs first",
        "tests/test_train.py::test_one_stage_alone_starts_from_any_run",
    ),
    Mutation(
        "two_kinds_of_probe_under_one_name",
        "ssljax/methods/linear.py",
        'return {"probe": models.logits',
        'return {"linear_sgd_cached": models.logits',
        "a number of one linear probe beside those of another",
        "tests/test_train.py::test_one_stage_alone_starts_from_any_run",
    ),
    Mutation(
        "held_out_images_with_the_labels_of_the_others",
        "ssljax/data/records.py",
        'urllib.parse.quote(stored, safe="")',
        '"".join(c for c in stored if c.isalnum())',
        "train[:50%] and train[50%:] share the file of stored labels",
        "tests/test_prepare.py::test_two_parts_of_a_split_have_labels_of_their_own",
    ),
]

# What the papers' released code does to photographs: views, crops, resizing, lists of images, schedules.
T_PAPERS = "tests/data/test_papers.py"
BYOL_CONFIG = "configs/byol.py"
MOCO_CONFIG = "configs/moco.py"
CONFIG = "ssljax/config/__init__.py"
PILLOW = "ssljax/data/pillow.py"
SOURCES = "ssljax/data/sources.py"

PAPERS_VIEWS = [
    Mutation(
        "both_views_of_byol_alike",
        BYOL_CONFIG,
        "two=dict(blur_probability=0.1, solarize_probability=0.2))  # [C]",
        "two=dict())  # [C]",
        "SimCLR's one recipe taken for BYOL's two",
        f"{T_PAPERS}::test_draws_have_the_ranges_and_the_shares_of_the_released_code",
    ),
    Mutation(
        "saturation_of_simclr_in_byol",
        BYOL_CONFIG,
        "jitter_saturation=0.4,  # times the strength: 0.8 to 1.2",
        "jitter_saturation=0.8,  # times the strength: 0.8 to 1.2",
        "0.6 to 1.4",
        f"{T_PAPERS}::test_draws_have_the_ranges_and_the_shares_of_the_released_code",
    ),
    Mutation(
        "both_views_of_moco_v3_alike",
        MOCO_CONFIG,
        "c.views.two = dict(blur_probability=0.1, solarize_probability=0.2)",
        "c.views.two = dict()",
        "v2's one recipe taken for v3's two",
        f"{T_PAPERS}::test_draws_have_the_ranges_and_the_shares_of_the_released_code",
    ),
    Mutation(
        "hue_of_moco_v2_in_v1",
        MOCO_CONFIG,
        "jitter_hue=0.8,  # times the strength: 0.4",
        "jitter_hue=0.2,  # times the strength: 0.4",
        "ColorJitter(0.4, 0.4, 0.4, 0.1)",
        f"{T_PAPERS}::test_draws_have_the_ranges_and_the_shares_of_the_released_code",
    ),
    Mutation(
        "grey_always_after_the_jitter",
        VIEWS_FILE,
        'augment.grayscale_order == "before"',
        'augment.grayscale_order == "never"',
        "v2's order of the operations in MoCo v1",
        f"{T_PAPERS}::test_grey_comes_before_the_jitter_in_moco_v1",
    ),
    Mutation(
        "brightness_of_simclr_v2_in_v1",
        "configs/simclr.py",
        'brightness="add",  # [P]',
        'brightness="multiply",  # [P]',
        "the default of the released code",
        f"{T_PAPERS}::test_draws_have_the_ranges_and_the_shares_of_the_released_code",
    ),
    Mutation(
        "tensorflows_colours_for_torchvisions",
        CONFIG,
        'dict(jitter="torchvision", blur_border="pillow")',
        'dict(jitter="tensorflow", blur_border="pillow")',
        "contrast about each channel's mean, saturation in HSV",
        f"{T_PAPERS}::test_colours_are_those_of_pillow",
    ),
    Mutation(
        "blur_into_the_dark",
        AUGMENT,
        "box = jnp.where(border, repeated, inner + outer)",
        "box = inner + outer",
        "zero padding darkens the border",
        f"{T_PAPERS}::test_pillows_blur_repeats_the_border",
    ),
    Mutation(
        "photographs_resized_by_tensorflow",
        CONFIG,
        'dict(crop="torchvision", resize="pillow", interpolation="bilinear")',
        'dict(crop="torchvision", resize="tensorflow", interpolation="bilinear")',
        "no antialiasing in MoCo and DeepCluster",
        f"{T_PAPERS}::test_presets_read_photographs_as_the_released_code",
    ),
    Mutation(
        "evaluation_without_the_margin",
        PILLOW,
        "short = int(size / share)",
        "short = size",
        "Resize(224) instead of Resize(256)",
        f"{T_PAPERS}::test_evaluation_resizes_the_shorter_side_and_crops_the_centre",
    ),
    Mutation(
        "byols_crop_drawn_again",
        CROPS,
        '"byol": box_byol}',
        '"byol": box_torchvision}',
        "torchvision's ten attempts",
        f"{T_PAPERS}::test_a_byol_view_is_a_box_cut_down_to_the_image",
    ),
    Mutation(
        "byols_evaluation_rounded",
        CROPS,
        'whole = "floor" if augment.crop == "byol" else "round"',
        'whole = "round"',
        "SimCLR's central crop in BYOL",
        f"{T_PAPERS}::test_byols_evaluation_cuts_the_side_to_whole_pixels",
    ),
    Mutation(
        "labelled_images_of_our_own",
        SOURCES,
        "return PAPERS_LISTS.get(data.label_fraction, data.source)",
        "return data.source",
        "other images than the papers' 1 %",
        f"{T_PAPERS}::test_parts_of_imagenet_are_the_papers_lists",
    ),
    Mutation(
        "byol_fine_tunes_at_a_quarter_of_its_rate",
        BYOL_CONFIG,
        "c.finetune.optim.learning_rate = 0.02",
        'c.finetune.optim.update(learning_rate=0.02, scaling="none")',
        "the base rate taken for the rate",
        f"{T_PAPERS}::test_byols_rate_of_fine_tuning_is_scaled_as_by_the_released_schedule",
    ),
    Mutation(
        "deepcluster_v2_ends_at_zero",
        OPTIM,
        "start=optim.start, end=optim.end)\n    tx = lars(",
        "start=optim.start)\n    tx = lars(",
        "final_lr left out",
        f"{T_DEEPCLUSTER}::test_the_rate_and_the_residual_branches_of_version_2_are_swavs",
    ),
    Mutation(
        "small_crops_in_the_banks",
        DEEPCLUSTER,
        "if side == max(view_sizes)]",
        "if side > 0]",
        "crops_for_assign forgotten",
        f"{T_DEEPCLUSTER}::test_small_crops_learn_the_clusters_of_the_large_ones",
    ),
    Mutation(
        "fine_tuning_with_stochastic_depth",
        DEIT,
        "        if config.evaluation_mode:\n",
        "        if config.evaluation_mode and teacher is not None:\n",
        "model.train() in the fine-tuning of DeiT",
        f"{T_DEIT}::test_fine_tuning_in_evaluation_mode_trains_the_mean_of_two_heads_without_stochastic_depth",
    ),
]

# SimCLRv2: the pitfalls of its three stages.
SIMCLR_V2_FILE = "ssljax/methods/simclr_v2.py"
SIMCLR_V2_CONFIG = "configs/simclr_v2.py"
T_SIMCLR_V2 = "tests/methods/test_simclr_v2.py"

SIMCLR_V2 = [
    Mutation(
        "weight_decay_of_version_1",
        SIMCLR_V2_CONFIG,
        "        weight_decay=1e-4,  # [C]\n        warmup_epochs=40",
        "        weight_decay=1e-6,  # [C]\n        warmup_epochs=40",
        "the default of the released TF2 code",
        f"{T_SIMCLR_V2}::test_the_recipes_of_a_network[imagenet_r50]",
    ),
    Mutation(
        "wide_networks_are_tuned_at_the_plain_rate",
        SIMCLR_V2_CONFIG,
        "0.005 if plain else 0.002",
        "0.005",
        "one rate for all networks",
        f"{T_SIMCLR_V2}::test_the_recipes_of_a_network[imagenet_r50_x2]",
    ),
    Mutation(
        "head_dropped_before_fine_tuning",
        SIMCLR_V2_CONFIG,
        '("encoder", "projector") if fraction < 1',
        '("encoder",) if fraction < 1',
        "a filter that leaves out every head of the checkpoint",
        f"{T_SIMCLR_V2}::test_the_recipes_of_a_network[imagenet_r50]",
    ),
    Mutation(
        "fine_tuned_under_colour_jitter",
        SIMCLR_V2_CONFIG,
        "    config.crops_alone(c)\n    c.eval_every_epochs = 0",
        "    c.views = dict(one=dict())\n    c.eval_every_epochs = 0",
        "the views of pretraining in all stages",
        f"{T_SIMCLR_V2}::test_the_recipes_of_a_network[imagenet_r50]",
    ),
    Mutation(
        "fine_tuned_from_before_the_relu",
        HEADS,
        "            outputs.append(nn.relu(x))",
        "            outputs.append(x)",
        "the layer taken before its activation",
        f"{T_HEADS}::test_official_projection_in_both_modes",
    ),
    Mutation(
        "the_layer_after_the_one_asked_for",
        HEADS,
        "range(1, min(built + 1, self.layers))",
        "range(1, min(built + 2, self.layers))",
        "counted from 0",
        f"{T_HEADS}::test_the_first_layers_alone_give_what_they_give_in_the_whole_head[1]",
    ),
    Mutation(
        "classifier_is_adapted",
        SIMCLR_V2_FILE,
        '        probes=("head",),\n',
        "",
        "head_supervised is not left out of LARS",
        f"{T_SIMCLR_V2}::test_fine_tuning_begins_at_the_log_of_the_classes_and_lars_leaves_the_classifier_alone",
    ),
    Mutation(
        "queries_in_the_memory",
        SIMCLR_V2_FILE,
        "l2_normalize(jnp.concatenate([k[:, 0], k[:, 1]]))",
        "l2_normalize(jnp.concatenate([q[:, 0], q[:, 1]]))",
        "the trained network's embeddings in the queue",
        f"{T_SIMCLR_V2}::test_the_loss_with_a_memory_by_hand",
    ),
    Mutation(
        "gradient_to_the_moving_average",
        SIMCLR_V2_FILE,
        "jax.lax.stop_gradient(embed(extra.params, extra.stats, x))",
        "embed(extra.params, extra.stats, x)",
        "no detach",
        f"{T_SIMCLR_V2}::test_no_gradient_reaches_the_moving_average",
    ),
    Mutation(
        "average_with_the_networks_statistics",
        SIMCLR_V2_FILE,
        "Carry(keys, stats)",
        "Carry(keys, model_state)",
        "one set of running statistics for both networks",
        f"{T_SIMCLR_V2}::test_the_loss_with_a_memory_by_hand",
    ),
    Mutation(
        "memory_contrasts_a_view_with_itself",
        CONTRASTIVE,
        "dot(q, same_view) / temperature - own_view",
        "dot(q, same_view) / temperature",
        "the key of the same view is a negative of its own query",
        f"{T_NT_XENT}::test_memory_adds_its_rows_and_the_keys_of_both_views_to_the_candidates[0.5]",
    ),
    Mutation(
        "unnormalised_memory",
        CONTRASTIVE,
        "memory = l2_normalize(queue)",
        "memory = queue",
        "stale keys of any length",
        f"{T_NT_XENT}::test_memory_of_equal_embeddings_costs_log_of_all_candidates",
    ),
    Mutation(
        "teacher_sees_another_crop",
        SIMCLR_V2_FILE,
        "inferred(teacher, teacher_layers, extra, x)",
        "inferred(teacher, teacher_layers, extra, x[:, :, ::-1])",
        "a flip of its own for each network",
        f"{T_SIMCLR_V2}::test_student_and_teacher_see_the_same_crop_and_the_teacher_its_running_statistics",
    ),
    Mutation(
        "temperature_of_the_teacher_alone",
        DISTILLATION,
        "pupil = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)",
        "pupil = jax.nn.log_softmax(student.astype(jnp.float32))",
        "only one of the softmaxes has the temperature",
        "tests/losses/test_distillation.py::test_probabilities_by_hand[0.1-9.9996368]",
    ),
    Mutation(
        "labelled_images_weigh_more",
        SIMCLR_V2_FILE,
        'rows += (1.0 - alpha) * cross_entropy(s, batch["label"])',
        'rows += (1.0 - alpha) * mean_of_labelled(cross_entropy(s, batch["label"]), batch["label"])',
        "the labelled term averaged over the labelled images",
        f"{T_SIMCLR_V2}::test_labels_count_where_there_are_any[0.25]",
    ),
    Mutation(
        "labels_that_were_to_be_forgotten",
        "ssljax/data/source.py",
        "labels = np.where(kept, self.labels, -1).astype(np.int32)",
        "labels = self.labels.astype(np.int32)",
        "a semi-supervised run with all labels",
        "tests/data/test_sources.py::test_images_outside_the_labelled_subset_may_stay_without_labels",
    ),
]

# What else the papers' own code and tables ask for: each recipe of a probe, of views and of a fine-tuning.
RECIPE = f"{T_LINEAR}::test_the_recipe_is_the_papers"
DRAWN = f"{T_PAPERS}::test_draws_have_the_ranges_and_the_shares_of_the_released_code"
READ = f"{T_PAPERS}::test_presets_read_photographs_as_the_released_code"
T_TABLES = "tests/test_paper_tables.py"
ROW = f"{T_TABLES}::test_a_row_has_the_papers_numbers_and_the_preset_that_fills_it"
DEEPCLUSTER_CONFIG = "configs/deepcluster.py"
DEIT_CONFIG = "configs/deit.py"

PAPERS_RECIPES = [
    Mutation(
        "simclrs_probe_decays",
        "configs/simclr.py",
        "weight_decay=0.0,  # [P]\n            warmup_epochs=0,\n        ),\n        head",
        "weight_decay=1e-6,  # [P]\n            warmup_epochs=0,\n        ),\n        head",
        "the README's command instead of the paper",
        f"{RECIPE}[imagenet_r50]",
    ),
    Mutation(
        "vits_probed_at_the_rate_of_a_resnet",
        MOCO_CONFIG,
        "c = linear_v3(c, 3.0)",
        "c = linear_v3(c, 0.1)",
        "the default of main_lincls.py",
        f"{RECIPE}[imagenet_vit_h_v3]",
    ),
    Mutation(
        "byols_probe_at_the_batch_of_its_pretraining",
        BYOL_CONFIG,
        "batch_size=1024,  # [P]",
        "batch_size=4096,  # [P]",
        "the default of the released code",
        f"{RECIPE}[imagenet_r50_e1000]",
    ),
    Mutation(
        "one_weight_decay_for_all_layers",
        DEEPCLUSTER_CONFIG,
        'weight_decay=1e-7 if layer == "conv3" else 1e-4',
        "weight_decay=1e-4",
        "the default of eval_linear.py instead of eval_linear.sh",
        f"{T_LINEAR}::test_milestones_and_layers_are_those_released",
    ),
    Mutation(
        "swavs_probe_decays_in_steps",
        DEEPCLUSTER_CONFIG,
        "weight_decay=1e-6,\n            milestones=(),",
        "weight_decay=1e-6,\n            milestones=(60, 80),",
        "MoCo's schedule in eval_linear.py of swav",
        f"{T_LINEAR}::test_logits_follow_the_authors_update_and_the_backbone_keeps_every_bit[deepcluster_v2]",
    ),
    Mutation(
        "a_layer_probe_without_ten_crops",
        DEEPCLUSTER_CONFIG,
        "evaluate=dict(ten_crops=True)",
        "evaluate=dict(ten_crops=False)",
        "--tencrops forgotten",
        f"{RECIPE}[imagenet_alexnet]",
    ),
    Mutation(
        "byols_symmetric_views_without_solarisation",
        BYOL_CONFIG,
        "c.augment.update(blur_probability=0.5, solarize_probability=0.2)",
        "c.augment.update(blur_probability=0.5)",
        "SimCLR's views taken for BYOL's symmetric ones",
        f"{DRAWN}[byol:imagenet_r50_e300_symmetric-one]",
    ),
    Mutation(
        "deits_jitter_by_tensorflow",
        DEIT_CONFIG,
        'c.augment.update(resize="pillow", jitter="torchvision")',
        'c.augment.update(resize="pillow")',
        "contrast about each channel's mean in the row without RandAugment",
        f"{T_PAPERS}::test_colours_are_those_of_pillow",
    ),
    Mutation(
        "deits_photographs_resized_by_tensorflow",
        DEIT_CONFIG,
        'c.augment.update(resize="pillow", jitter="torchvision")',
        'c.augment.update(jitter="torchvision")',
        "bicubic, but not Pillow's",
        f"{READ}[deit:imagenet_s]",
    ),
    Mutation(
        "residual_branches_of_swav_start_at_zero",
        DEEPCLUSTER_CONFIG,
        'c.zero_init_residual = False\n    c.optim = dict(\n        name="lars"',
        'c.zero_init_residual = True\n    c.optim = dict(\n        name="lars"',
        "the default of this code base, which swav overrides",
        f"{T_DEEPCLUSTER}::test_the_rate_and_the_residual_branches_of_version_2_are_swavs",
    ),
    Mutation(
        "the_headline_of_version_2_without_small_crops",
        DEEPCLUSTER_CONFIG,
        "dict(large=dict(count=2, **LARGE), small=dict(count=6, **SMALL_CROPS))",
        "dict(large=dict(count=2, **LARGE), small=dict(count=4, **SMALL_CROPS))",
        "75.2 asked of the views of 74.3",
        f"{T_PAPERS}::test_the_crops_of_version_2_have_the_areas_of_the_scripts",
    ),
    Mutation(
        "the_best_deit_fine_tuned_from_the_short_run",
        DEIT_CONFIG,
        'at_resolution(imagenet("b", "_distilled", LONG_FINETUNED[preset]), 384)',
        'at_resolution(imagenet("b", "_distilled"), 384)',
        "84.5 under the name of 85.2",
        f"{T_DEIT}::test_the_presets_of_table_10",
    ),
    Mutation(
        "vits_fine_tuned_in_evaluation_mode",
        MOCO_CONFIG,
        "    c.model.drop_path = 0.1\n",
        "    c.evaluation_mode = True\n    c.model.drop_path = 0.1\n",
        "--finetune of DeiT instead of --resume, against which the README of moco-v3 warns",
        f"{T_MOCO}::test_vits_are_fine_tuned_by_all_defaults_of_deit_for_150_epochs",
    ),
    Mutation(
        "vits_fine_tuned_for_deits_epochs",
        MOCO_CONFIG,
        "c.epochs = 150",
        "c.epochs = 300",
        "the default of DeiT",
        f"{T_MOCO}::test_vits_are_fine_tuned_by_all_defaults_of_deit_for_150_epochs",
    ),
    Mutation(
        "cached_features_under_the_papers_layer_probes",
        "experiments/deepcluster/paper.json",
        '     38.2\n    ],\n    "match": [\n     {\n      "protocol": "probe"',
        '     38.2\n    ],\n    "match": [\n     {\n      "protocol": "layer_conv1"',
        "a number of another probe beside the paper's",
        f"{T_TABLES}::test_every_layer_of_alexnet_is_filled_by_the_papers_own_probe",
    ),
    Mutation(
        "mocos_probe_starts_at_zero",
        CONFIG,
        'c.head = dict(scheme="normal_0.01")',
        'c.head = dict(scheme="zeros")',
        "SimCLR's first weights in main_lincls.py",
        f"{RECIPE}[imagenet_r50_v1]",
    ),
    Mutation(
        "a_report_that_does_not_say_which_probe",
        "ssljax/pictures/tables.py",
        '    if any(row["protocol"].startswith("linear") for row in rows):\n        said.append',
        "    if False:\n        said.append",
        "a cached probe beside a trained one, without a word",
        "tests/test_report.py::test_the_report_says_which_linear_probe_made_which_number",
    ),
    Mutation(
        "a_layer_probe_of_the_last_layer",
        "ssljax/methods/linear.py",
        "if not layer:",
        "if layer:",
        "every row of the table of layers is the same",
        f"{T_LINEAR}::test_a_layer_is_pooled_as_the_cached_probe_pools_it",
    ),
    Mutation(
        "the_lectures_shifted_row_of_retrieval",
        "experiments/deepcluster/paper.json",
        "61.0,\n     72.0",
        "55.4,\n     65.9",
        "the row of the table of detection, as the lecture has it",
        ROW,
    ),
    Mutation(
        "places_read_from_imagenet",
        "experiments/deepcluster/paper.json",
        "19.6,\n     33.2",
        "13.4,\n     32.3",
        "the row of the other data set",
        ROW,
    ),
    Mutation(
        "a_headline_of_two_crops",
        "experiments/deepcluster/paper.json",
        '"preset": "imagenet_r50_v2_linear"',
        '"preset": "imagenet_r50_v2_e400_linear"',
        "70.2 beside 75.2",
        f"{ROW} {T_TABLES}::test_a_row_is_filled_by_the_presets_that_its_command_evaluates",
    ),
    Mutation(
        "a_probe_beside_the_fine_tuned_vit",
        "experiments/moco/paper.json",
        '"preset": "imagenet_vit_b_v3_finetune_100pct"',
        '"preset": "imagenet_vit_b_v3_linear"',
        "76.5 beside 83.2",
        f"{ROW} {T_TABLES}::test_a_row_is_filled_by_the_presets_that_its_command_evaluates",
    ),
    Mutation(
        "two_widths_under_one_name",
        "experiments/moco/paper.json",
        '"preset": "imagenet_r50_v1_x4_linear"',
        '"preset": "imagenet_r50_v1_x2_linear"',
        "65.4 beside 68.6",
        f"{ROW} {T_TABLES}::test_a_row_is_filled_by_the_presets_that_its_command_evaluates",
    ),
    Mutation(
        "all_labels_of_byol_taken_for_a_probe",
        "experiments/byol/paper.json",
        '"preset": "imagenet_r50_finetune_100pct"',
        '"preset": "imagenet_r50_e1000_linear"',
        "74.3 beside 77.7",
        f"{ROW} {T_TABLES}::test_a_row_is_filled_by_the_presets_that_its_command_evaluates",
    ),
]

# The figures of a paper's table: what is plotted where.
SCALING = "ssljax/pictures/scaling.py"
T_SCALING = "tests/test_scaling.py"
OF_LABELS = (
    f"{T_SCALING}::test_accuracy_against_labels_is_the_mean_of_the_seeds_at_the_logarithm_of_the_labels"
)
OF_SIZES = f"{T_SCALING}::test_accuracy_against_parameters_joins_the_networks_of_a_series_by_their_size"

FIGURES = [
    Mutation(
        "axes_swapped",
        SCALING,
        "[point.x for point in points],\n                [point.mean for point in points],",
        "[point.mean for point in points],\n                [point.x for point in points],",
        "accuracy on the horizontal axis",
        f"{OF_LABELS} {OF_SIZES}",
    ),
    Mutation(
        "one_seed_for_all",
        SCALING,
        "mean, spread, _ = aggregate(rows)",
        "mean, spread, _ = aggregate(rows[:1])",
        "the first seed instead of the mean",
        f"{OF_LABELS} {OF_SIZES}",
    ),
    Mutation(
        "standard_error_for_the_deviation",
        SCALING,
        "mean, spread, _ = aggregate(rows)",
        "mean, spread, n = aggregate(rows)\n        spread /= n**0.5",
        "bars that are too short for what the caption says",
        OF_LABELS,
    ),
    Mutation(
        "labels_on_a_linear_scale",
        SCALING,
        "math.log10(labels[column])",
        "float(labels[column])",
        "1 % and 10 % next to each other, all labels far away",
        OF_LABELS,
    ),
    Mutation(
        "a_probe_joined_with_fine_tuning",
        SCALING,
        "for column, point in points.items() if column in named)",
        "for column, point in points.items())",
        "a curve that goes on from 100 % to another protocol",
        OF_LABELS,
    ),
    Mutation(
        "networks_in_the_order_of_the_table",
        SCALING,
        "curves = [Curve(name, sorted(points), []) for",
        "curves = [Curve(name, points, []) for",
        "a line that runs back and forth",
        OF_SIZES,
    ),
    Mutation(
        "the_papers_size_for_ours",
        SCALING,
        'return max(row["parameters"] for row in rows) / 1e6, mean, spread',
        "return 24.0, mean, spread",
        "a small network drawn at the size of the paper's",
        OF_SIZES,
    ),
    Mutation(
        "ours_drawn_as_the_papers",
        SCALING,
        'panels(table, here_values(cells), "here", False)',
        'panels(table, here_values(cells), "here", True)',
        "nobody can tell who measured what",
        f"{OF_LABELS} {OF_SIZES}",
    ),
    Mutation(
        "columns_in_another_order_than_their_cells",
        SCALING,
        'zip(table["columns"], cells, strict=False)',
        'zip(sorted(table["columns"]), cells, strict=False)',
        "the accuracy with 10 % of the labels drawn at 1 %",
        OF_LABELS,
    ),
    Mutation(
        "heads_counted_as_the_network",
        "ssljax/evaluate.py",
        "for leaf in jax.tree.leaves(backbone))",
        "for leaf in jax.tree.leaves(run.params))",
        "a projection head makes a network look larger than the classifier that comes of it",
        "tests/test_evaluate.py::test_every_measurement_is_recorded_with_its_provenance",
    ),
    Mutation(
        "a_recorded_size_is_forgotten",
        "ssljax/results.py",
        "fields = {**LATER, **versions, **record}",
        "fields = {**record, **LATER}",
        "the value of older files put over what was recorded",
        "tests/test_results.py::test_lines_without_a_later_field_are_still_read",
    ),
]


# Robustness: corruptions, ImageNet-A, ImageNet-P.
ROBUSTNESS_FILE = "ssljax/protocols/robustness.py"
CORRUPTIONS_FILE = "ssljax/data/corruptions.py"
T_ROBUSTNESS = "tests/protocols/test_robustness.py"
T_CORRUPTIONS = "tests/data/test_corruptions.py"
ROBUSTNESS = [
    Mutation(
        "alexnets_errors_by_position",
        ROBUSTNESS_FILE,
        "return np.array([ALEXNET[name] for name in corruptions])",
        "return np.array(list(ALEXNET.values())[: len(corruptions)])",
        "public lists have other orders: normalised by another corruption's error",
        f"{T_ROBUSTNESS}::test_mce_is_augmixs_in_any_order_of_the_corruptions[0]",
    ),
    Mutation(
        "mean_of_ratios_of_severities",
        ROBUSTNESS_FILE,
        "return float(100.0 * np.mean(np.mean(error, axis=1, dtype=np.float64) / alexnet))",
        "return float(100.0 * np.mean(error) / np.mean(alexnet))",
        "one ratio of all sums: corruptions that are hard for AlexNet weigh more",
        f"{T_ROBUSTNESS}::test_mce_is_augmixs_in_any_order_of_the_corruptions[0]",
    ),
    Mutation(
        "relative_mce_of_the_clean_error",
        ROBUSTNESS_FILE,
        "return mce(np.asarray(error) - clean, np.asarray(alexnet) - alexnet_clean)",
        "return mce(np.asarray(error) - clean, np.asarray(alexnet))",
        "the clean error is subtracted above alone",
        f"{T_ROBUSTNESS}::test_relative_mce_by_hand",
    ),
    Mutation(
        "noise_compared_with_the_frame_before",
        ROBUSTNESS_FILE,
        "reference = frames[:1] if noise else frames[:-step]",
        "reference = frames[:-step]",
        "noise is drawn anew in each frame: the first one is the reference",
        f"{T_ROBUSTNESS}::test_flip_probability_is_the_authors",
    ),
    Mutation(
        "difficulty_ignored",
        ROBUSTNESS_FILE,
        "    step = 1 if noise else difficulty\n    flips = []",
        "    step = 1\n    flips = []",
        "frames i, i + d, ... are one sequence",
        f"{T_ROBUSTNESS}::test_flip_probability_is_the_authors",
    ),
    Mutation(
        "imagenet_a_without_its_mask",
        "ssljax/protocols/imagenet_a.py",
        "accuracies(logits[:, list(IMAGENET_A)], among)",
        "accuracies(logits, labels)",
        "all 1,000 classes compete",
        f"{T_ROBUSTNESS}::test_imagenet_a_leaves_out_the_other_800_classes",
    ),
    Mutation(
        "severities_backwards",
        CORRUPTIONS_FILE,
        "corruption][severity - 1]",
        "corruption][-severity]",
        "severity 1 is the strongest",
        f"{T_CORRUPTIONS}::test_equal_to_the_released_code[32-contrast]",
    ),
    Mutation(
        "imagenets_constants_for_small_images",
        CORRUPTIONS_FILE,
        "(CIFAR if size < SMALL else IMAGENET)",
        "IMAGENET",
        "radii for 224 pixels on 32",
        f"{T_CORRUPTIONS}::test_equal_to_the_released_code[32-defocus_blur]",
    ),
    Mutation(
        "noise_by_place_in_the_batch",
        CORRUPTIONS_FILE,
        "[generator(corruption, severity, int(i)) for i in index[part]]",
        "[generator(corruption, severity, i) for i in range(len(index[part]))]",
        "another batch size, other images",
        f"{T_CORRUPTIONS}::test_an_image_depends_on_its_id_alone[32-3-gaussian_noise]",
    ),
    Mutation(
        "noise_is_not_deterministic",
        CORRUPTIONS_FILE,
        "np.random.Philox(key=[8 * CORRUPTIONS.index(corruption) + severity, index])",
        "np.random.Philox()",
        "every network sees other images",
        f"{T_CORRUPTIONS}::test_an_image_depends_on_its_id_alone[32-3-gaussian_noise]",
    ),
    Mutation(
        "values_are_rounded",
        CORRUPTIONS_FILE,
        "return (np.clip(changed, 0.0, 1.0) * 255.0).astype(np.uint8)",
        "return np.rint(np.clip(changed, 0.0, 1.0) * 255.0).astype(np.uint8)",
        "np.uint8 cuts",
        f"{T_CORRUPTIONS}::test_equal_to_the_released_code[32-contrast]",
    ),
    Mutation(
        "glass_exchanges_pixels",
        "ssljax/data/corruption_textures.py",
        "earlier = inside.ravel()[there] & (there > here)",
        "earlier = inside.ravel()[there] & (there < here)",
        "neighbours are read as they will be",
        f"{T_CORRUPTIONS}::test_glass_copies_the_value_that_a_neighbour_has_at_that_time",
    ),
    Mutation(
        "published_corruptions_cropped_again",
        LOADER,
        "    if source.whole:\n",
        "    if source.whole and False:\n",
        "ImageNet-C is cropped already",
        f"{T_ROBUSTNESS}::test_published_images_are_not_cropped_again",
    ),
    Mutation(
        "classes_of_another_folder_by_position",
        ROBUSTNESS_FILE,
        "return np.array([position[name] for name in source.class_names])[source.labels]",
        "return source.labels",
        "class folders of another set have other positions",
        f"{T_ROBUSTNESS}::test_corruptions_from_folders_are_whole_and_judged_by_the_names_of_their_classes",
    ),
]


# ----------------------------------------------------------------- BEiT and its tokenizer, a discrete VAE

DVAE_MODEL = "ssljax/models/dvae.py"
DVAE_METHOD = "ssljax/methods/dvae.py"
RECONSTRUCTION = "ssljax/losses/reconstruction.py"
MASKING = "ssljax/data/masking.py"
MASKED = "ssljax/losses/masked.py"
BEIT_MODEL = "ssljax/models/beit_vit.py"
BEIT_METHOD = "ssljax/methods/beit.py"
LAYERWISE = "ssljax/layerwise.py"
PILLOW = "ssljax/data/pillow.py"
T_DVAE_MODEL = "tests/models/test_dvae.py"
T_DVAE = "tests/methods/test_dvae.py"
T_RECONSTRUCTION = "tests/losses/test_reconstruction.py"
T_MASKING = "tests/data/test_masking.py"
T_MASKED = "tests/losses/test_masked.py"
T_BEIT_MODEL = "tests/models/test_beit_vit.py"
T_BEIT = "tests/methods/test_beit.py"
T_LAYERWISE = "tests/test_layerwise.py"
T_TWO_SIZES = "tests/data/test_two_sizes.py"

BEIT_AND_DVAE = [
    Mutation(
        "kl_of_the_noised_logits",
        DVAE_METHOD,
        "kl = kl_to_uniform(logits)",
        "kl = kl_to_uniform((logits + noise) / tau)",
        "the KL divided by the temperature, as in several re-implementations",
        f"{T_DVAE}::test_the_kl_knows_neither_the_noise_nor_the_temperature",
    ),
    Mutation(
        "kl_averaged_over_codes",
        RECONSTRUCTION,
        "return jnp.sum(jnp.exp(log_p) *",
        "return jnp.mean(jnp.exp(log_p) *",
        "sum and mean confused",
        f"{T_RECONSTRUCTION}::test_the_kl_lies_between_0_and_ln_k_and_is_per_place",
    ),
    Mutation(
        "kl_weight_of_f_8",
        DVAE_METHOD,
        "places = math.prod(logits.shape[1:3]) / math.prod(x.shape[1:])",
        "places = 1 / 192",
        "beta / 192 hard-coded",
        f"{T_DVAE}::test_the_weight_of_the_kl_follows_the_downsampling",
    ),
    Mutation(
        "straight_through_codes",
        DVAE_METHOD,
        "y = nets.gumbel_softmax(logits, noise, tau)",
        "y = jax.nn.one_hot(jnp.argmax(logits + noise, -1), logits.shape[-1], dtype=jnp.float32)",
        "hard=True of gumbel_softmax",
        f"{T_DVAE}::test_the_decoder_reads_relaxed_codes",
    ),
    Mutation(
        "one_noise_for_all_images",
        DVAE_METHOD,
        "views.view_key(key, index, jnp.int32(0)), 3)",
        "views.view_key(key, index * 0, jnp.int32(0)), 3)",
        "one key for a batch",
        f"{T_DVAE}::test_noise_follows_the_image_and_not_its_place_in_the_batch",
    ),
    Mutation(
        "raw_tokenizer_exported",
        DVAE_METHOD,
        "return extra.ema.params if isinstance(extra.ema, Ema) else params",
        "return params",
        "the moving average is kept but not used",
        f"{T_DVAE}::test_the_average_is_what_is_exported",
    ),
    Mutation(
        "logit_laplace_without_ln_2",
        RECONSTRUCTION,
        "return math.log(2.0) + ln_b",
        "return ln_b",
        "bsq-vit's LogitLaplaceLoss",
        f"{T_RECONSTRUCTION}::test_values_by_hand_and_a_density_of_integral_one",
    ),
    Mutation(
        "scale_of_the_wrong_sign",
        RECONSTRUCTION,
        "jnp.abs(logit - mu) * jnp.exp(-ln_b)",
        "jnp.abs(logit - mu) * jnp.exp(ln_b)",
        "the sign of ln b",
        f"{T_RECONSTRUCTION}::test_the_density_of_the_released_code_and_its_gradients",
    ),
    Mutation(
        "dvae_without_gain",
        DVAE_MODEL,
        "return skip + jnp.asarray(self.gain, y.dtype) * y",
        "return skip + y",
        "post_gain of the released code forgotten",
        f"{T_DVAE_MODEL}::test_the_released_encoder_and_decoder",
    ),
    Mutation(
        "smooth_upsampling",
        DVAE_MODEL,
        "return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)",
        "return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), 'bilinear')",
        "bilinear for nearest",
        f"{T_DVAE_MODEL}::test_upsampling_repeats_pixels_and_odd_images_are_refused",
    ),
    Mutation(
        "pixels_not_mapped",
        DVAE_METHOD,
        '        x = nets.mapped(image, extra.input["pixels"])\n\n        # 2.',
        "        x = image\n\n        # 2.",
        "map_pixels forgotten in training",
        f"{T_DVAE}::test_the_loss_by_numpy",
    ),
    Mutation(
        "blocks_as_wide_as_the_grid",
        MASKING,
        "fits = (blocks[:, HEIGHT] < height) & (blocks[:, WIDTH] < width)",
        "fits = (blocks[:, HEIGHT] <= height) & (blocks[:, WIDTH] <= width)",
        "the strict comparison of the released code",
        f"{T_MASKING}::test_a_block_as_wide_as_the_grid_is_not_taken",
    ),
    Mutation(
        "blocks_over_the_target",
        MASKING,
        " & (new > 0) & (new <= cap)",
        " & (new > 0)",
        "no cap, as in Algorithm 1",
        f"{T_MASKING}::test_the_statistics_of_the_released_generator",
    ),
    Mutation(
        "aspect_uniform",
        MASKING,
        "aspect = jnp.exp(-bound + 2.0 * bound * u[1])",
        "aspect = min_aspect + (1.0 / min_aspect - min_aspect) * u[1]",
        "the aspect of Algorithm 1 in the released code's masks",
        f"{T_MASKING}::test_blocks_have_the_aspect_of_the_released_code",
    ),
    Mutation(
        "mean_per_image_then_over_images",
        MASKED,
        "per_image = jnp.maximum(weight.sum(), 1.0) / values.shape[0]",
        "per_image = jnp.maximum(weight.sum(axis=1), 1.0)",
        "a mean per image, then over images",
        f"{T_MASKED}::test_the_mean_of_the_rows_is_the_mean_over_all_masked_patches",
    ),
    Mutation(
        "loss_over_all_patches",
        BEIT_METHOD,
        'wanted = mask if config.recover.where == "masked" else jnp.ones_like(mask)',
        "wanted = jnp.ones_like(mask)",
        "the ablation by accident",
        f"{T_BEIT}::test_the_loss_by_numpy",
    ),
    Mutation(
        "tokens_transposed",
        BEIT_METHOD,
        "return jnp.argmax(logits, axis=-1).reshape(",
        "return jnp.argmax(logits, axis=-1).swapaxes(1, 2).reshape(",
        "rows and columns exchanged",
        f"{T_BEIT}::test_the_loss_by_numpy",
    ),
    Mutation(
        "one_mask_for_all_images",
        BEIT_METHOD,
        "views.view_key(key, index, jnp.int32(0)), 3)",
        "views.view_key(key, index * 0, jnp.int32(0)), 3)",
        "one mask per batch",
        f"{T_BEIT}::test_masks_follow_the_image_and_the_step_not_the_place",
    ),
    Mutation(
        "another_input_map",
        BEIT_METHOD,
        '{"encoder": found["evaluated/params"]}, found["extra/input"])',
        '{"encoder": found["evaluated/params"]}, state.extra.input)',
        "the pixel map of dall-e for a customized tokenizer",
        f"{T_BEIT}::test_the_tokenizer_is_the_average_and_brings_its_map_of_pixels",
    ),
    Mutation(
        "truncated_at_two_sigma",
        BEIT_MODEL,
        "jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)",
        "jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)",
        "the usual truncated normal",
        f"{T_BEIT_MODEL}::test_initial_weights_are_truncated_at_one_standard_deviation",
    ),
    Mutation(
        "branches_not_rescaled",
        BEIT_MODEL,
        "scale = 1.0 / math.sqrt(2.0 * self.number)",
        "scale = 1.0",
        "fix_init_weight forgotten",
        f"{T_BEIT_MODEL}::test_initial_weights_are_truncated_at_one_standard_deviation",
    ),
    Mutation(
        "class_row_and_column_exchanged",
        BEIT_MODEL,
        "return index.at[0, 1:].set(last - 3).at[1:, 0].set(last - 2)",
        "return index.at[0, 1:].set(last - 2).at[1:, 0].set(last - 3)",
        "the two special entries exchanged",
        f"{T_BEIT_MODEL}::test_the_index_of_a_2_by_2_window_by_hand",
    ),
    Mutation(
        "class_token_in_the_mean",
        BEIT_MODEL,
        "normalised(x[:, 1:].mean(axis=1))",
        "normalised(x.mean(axis=1))",
        "mean pooling over all tokens",
        f"{T_BEIT_MODEL}::test_mean_pooling_leaves_the_class_token_out",
    ),
    Mutation(
        "masked_patches_shine_through",
        BEIT_MODEL,
        "x = jnp.where(mask[..., None], mask_token.astype(x.dtype)[None, None], x)",
        "x = x + jnp.where(mask[..., None], mask_token[None, None], jnp.zeros_like(mask_token)[None, None])",
        "the mask token added, not put in place",
        f"{T_BEIT_MODEL}::test_pixels_of_masked_patches_do_not_matter",
    ),
    Mutation(
        "tables_resized_linearly",
        BEIT_MODEL,
        "matrix = spline_matrix(offsets(old // 2, reach),",
        "matrix = spline_matrix(jnp.linspace(-reach, reach, old, dtype=jnp.float32),",
        "plain resizing of the table (unilm issue 376)",
        f"{T_BEIT_MODEL}::test_a_larger_grid_is_reached_by_a_geometric_spline",
    ),
    Mutation(
        "block_decay_off_by_one",
        LAYERWISE,
        "layer = jnp.float32(_block(path) + 1)",
        "layer = jnp.float32(_block(path))",
        "blocks counted from 0",
        f"{T_LAYERWISE}::test_rates_and_decay_of_every_parameter",
    ),
    Mutation(
        "rate_per_layer_without_weight_decay",
        LAYERWISE,
        "        parts.append(_by_layer(layer_decay))",
        "        parts.insert(-1, _by_layer(layer_decay))",
        "the rate scales the update, not the weight decay",
        f"{T_LAYERWISE}::test_the_rate_scales_the_weight_decay_too",
    ),
    Mutation(
        "warm_up_one_step_late",
        LAYERWISE,
        "/ max(warmup_steps - 1, 1)",
        "/ max(warmup_steps, 1)",
        "the warm-up of simclr for BEiT's",
        f"{T_LAYERWISE}::test_the_released_schedule",
    ),
    Mutation(
        "bias_tables_not_decayed",
        LAYERWISE,
        'NOT_DECAYED = ("positions", "class_token")',
        'NOT_DECAYED = ("positions", "class_token", "relative_bias")',
        "Swin's exceptions from weight decay",
        f"{T_LAYERWISE}::test_rates_and_decay_of_every_parameter",
    ),
    Mutation(
        "jitter_after_the_crop",
        PILLOW,
        'return augment.jitter_probability > 0.0 and augment.jitter_on == "image"',
        "return False",
        "the jitter of other papers, after the crop",
        f"{T_TWO_SIZES}::test_on_the_device_the_jitter_comes_before_the_crop_too",
    ),
    # Weights of DALL-E and BEiT, and the best layer.
    Mutation(
        "raw_weights_exported",
        "ssljax/convert/__main__.py",
        "_beside((run.params, run.extra), weights_read)",
        "_beside((run.params, run.extra), run.params['encoder'])",
        "the decoder of the last step beside the average's encoder",
        "tests/convert/test_tokenizer_files.py::test_the_average_is_what_is_written",
    ),
    Mutation(
        "average_not_begun_at_the_file",
        "ssljax/convert/__main__.py",
        "    if program.method.adopt is not None:\n",
        "    if not config.method:\n",
        "the average of a converted tokenizer stays random",
        "tests/convert/test_tokenizer_files.py::test_two_files_become_a_tokenizer_that_beit_trains_on",
    ),
    Mutation(
        "layer_chosen_on_test_images",
        "ssljax/protocols/best_layer.py",
        "found[layer] = probe(kept, held,",
        "found[layer] = probe(kept, labelled(bench.maps(bench.test, layer, reduce), '', 'test'),",
        "BEiT's released code reports the best layer on the test split",
        "tests/protocols/test_best_layer.py::test_held_out_training_images_choose_the_layer",
    ),
]


# Noisy Student: the network, TensorFlow's RMSProp and RandAugment, pseudo-labels.
EFFICIENTNET_FILE = "ssljax/models/efficientnet.py"
RANDAUGMENT_FILE = "ssljax/data/randaugment.py"
PSEUDO_FILE = "ssljax/targets/pseudo.py"
NOISY_FILE = "ssljax/methods/noisy_student.py"
T_EFFICIENTNET = "tests/models/test_efficientnet.py"
T_RANDAUGMENT = "tests/data/test_randaugment.py"
T_PSEUDO = "tests/targets/test_pseudo.py"
T_NOISY = "tests/methods/test_noisy_student.py"
T_RMSPROP = "tests/test_optim.py::test_rmsprop_is_tensorflows"

NOISY_STUDENT = [
    Mutation(
        "squeeze_of_the_expanded_channels",
        EFFICIENTNET_FILE,
        "SqueezeExcitation(max(1, width // 4)",
        "SqueezeExcitation(max(1, inside // 4)",
        "a quarter of the block's input, not of what it expands to: parameter counts",
        f"{T_EFFICIENTNET}::test_tables_and_parameter_counts_of_the_official_networks[b0]",
    ),
    Mutation(
        "symmetric_padding",
        EFFICIENTNET_FILE,
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
        "weights of TensorFlow on PyTorch's padding lose accuracy",
        f"{T_EFFICIENTNET}::test_padding_is_tensorflows_same",
    ),
    Mutation(
        "stochastic_depth_reaches_its_rate",
        EFFICIENTNET_FILE,
        "self.drop_path * number / len(blocks)",
        "self.drop_path * number / (len(blocks) - 1)",
        "the code divides by the number of blocks",
        f"{T_EFFICIENTNET}::test_rates_of_stochastic_depth_are_the_released_codes",
    ),
    Mutation(
        "stochastic_depth_without_a_shortcut",
        EFFICIENTNET_FILE,
        "        if self.stride > 1 or width != self.features:\n            return x\n",
        "        if self.stride > 1 or width != self.features:\n"
        '            return drop_path(x, self.drop, self.make_rng("drop_path")) if train else x\n',
        "a block without a shortcut loses everything",
        f"{T_EFFICIENTNET}::test_rates_of_stochastic_depth_are_the_released_codes",
    ),
    Mutation(
        "depthwise_gradient_not_reversed",
        "ssljax/models/conv.py",
        "return _depthwise(grad, kernel[::-1, ::-1], strides",
        "return _depthwise(grad, kernel, strides",
        "the input gradient meets the kernel in reverse",
        "tests/models/test_conv.py::test_grouped_and_depthwise[6-6-6-3-1]",
    ),
    Mutation(
        "rmsprop_from_zero",
        "ssljax/optim.py",
        "initial_scale=1.0",
        "initial_scale=0.0",
        "optax's default: the first steps are three times too long",
        T_RMSPROP,
    ),
    Mutation(
        "rmsprop_epsilon_outside_of_the_root",
        "ssljax/optim.py",
        "eps_in_sqrt=True",
        "eps_in_sqrt=False",
        "the other default of optax",
        T_RMSPROP,
    ),
    Mutation(
        "randaugment_capped_at_ten",
        RANDAUGMENT_FILE,
        "    level = magnitude / 10.0\n",
        "    level = min(magnitude / 10.0, 1.0)\n",
        "the code does not cap the magnitude",
        f"{T_RANDAUGMENT}::test_arguments_wrap_as_uint8_does[27]",
    ),
    Mutation(
        "solarize_never_at_large_magnitudes",
        RANDAUGMENT_FILE,
        "solarize=int(level * 256) % 256",
        "solarize=int(level * 256)",
        "Pillow's reading: a threshold of 691 does nothing",
        f"{T_RANDAUGMENT}::test_strong_operations_by_hand",
    ),
    Mutation(
        "posterize_keeps_eight_bits_at_most",
        RANDAUGMENT_FILE,
        "wrapped = shift % 256",
        "wrapped = max(shift, 0)",
        "Pillow's reading: ten bits are all of them",
        f"{T_RANDAUGMENT}::test_strong_operations_by_hand",
    ),
    Mutation(
        "contrast_towards_the_mean",
        RANDAUGMENT_FILE,
        "return blend(float(min(height * width // 256, 255)), image, factor)",
        "return blend(jnp.floor(grey(image).mean() + 0.5), image, factor)",
        "Pillow's contrast",
        f"{T_RANDAUGMENT}::test_strong_operations_by_hand",
    ),
    Mutation(
        "unlabelled_loss_is_not_weighted",
        NOISY_FILE,
        "total = total + ratio * unlabelled",
        "total = total + unlabelled",
        "r times as many images weigh r times as much",
        f"{T_NOISY}::test_the_loss_by_hand",
    ),
    Mutation(
        "soft_labels_smoothed",
        NOISY_FILE,
        "target = pseudo.soft(q, temperature=settings.temperature)",
        "target = 0.9 * pseudo.soft(q, temperature=settings.temperature) + 0.1 / classes",
        "only hard labels are smoothed",
        f"{T_NOISY}::test_the_loss_by_hand[ratio-soft]",
    ),
    Mutation(
        "labels_made_again_in_every_epoch",
        NOISY_FILE,
        "        if int(state.step):\n            return state\n",
        "        run.epochs_done(state)\n",
        "labels change under the student, and a restart waits for them",
        f"{T_NOISY}::test_labels_are_the_teachers_own_without_noise_and_are_made_once",
    ),
    Mutation(
        "a_restart_labels_again_what_is_labelled",
        "ssljax/run/refresh.py",
        "function, positions[done:], size",
        "function, positions, size",
        "an interrupted labelling of a hundred million images begins again",
        "tests/test_hosts.py::test_two_hosts_label_what_one_labels_and_a_restart_labels_nothing_again",
    ),
    Mutation(
        "labels_whole_on_every_device",
        NOISY_FILE,
        "pseudo.none(facts.rows, classes",
        "pseudo.none(facts.num_ids, classes",
        "a table of 5 GB for ImageNet on every device, because its rows do not split evenly",
        f"{T_NOISY}::test_labels_are_the_teachers_own_without_noise_and_are_made_once",
    ),
    Mutation(
        "epochs_counted_on_all_images",
        "ssljax/program.py",
        '    if method.epochs_of == "labelled":\n',
        '    if method.epochs_of == "":\n',
        "the schedule of 350 epochs would be another",
        f"{T_NOISY}::test_epochs_are_counted_on_the_images_that_the_config_names",
    ),
    Mutation(
        "copies_are_not_drawn",
        PSEUDO_FILE,
        "wanted = whole.astype(jnp.int32) + more.astype(jnp.int32)",
        "wanted = whole.astype(jnp.int32)",
        "large classes vanish: half a copy of each is none",
        f"{T_PSEUDO}::test_the_filter_and_the_copies_by_hand",
    ),
    Mutation(
        "filter_over_all_classes",
        PSEUDO_FILE,
        ".at[label, place].add(",
        ".at[:, place].add(",
        "the threshold is that of each class",
        f"{T_PSEUDO}::test_classes_do_not_disturb_each_other_and_the_bin_that_fills_a_class_is_taken_whole",
    ),
    Mutation(
        "both_kinds_in_the_same_order",
        "ssljax/data/sampler.py",
        "_pass(seed, 2 * number + stream, n)",
        "_pass(seed, stream, n)",
        "every pass would have the same order",
        "tests/data/test_sampler.py::test_mixed_batches_pass_over_both_kinds_in_turn",
    ),
    Mutation(
        "what_the_largest_probabilities_leave_is_lost",
        PSEUDO_FILE,
        "rest = jnp.maximum(1.0 - found.sum(1, keepdims=True), 0.0) / others",
        "rest = 0.0 * found.sum(1, keepdims=True) / others",
        "a target must sum to one",
        f"{T_PSEUDO}::test_the_largest_probabilities_and_what_they_leave",
    ),
    Mutation(
        "ids_of_a_second_source_follow_the_selection",
        "ssljax/data/sources.py",
        "    ids = source.num_ids\n    source = subset(source, data)\n",
        "    source = subset(source, data)\n    ids = source.num_ids\n",
        "ids of unlabelled images must not depend on how many labels are used",
        "tests/data/test_sources.py::test_a_second_source_without_labels_is_appended",
    ),
]

# CMC: banks, constants, views, colours. The numbers of the names are those of the pitfalls in the fact sheet.
BANK_LOSSES = "ssljax/losses/bank.py"
BANK = "ssljax/targets/bank.py"
CMC_FILE = "ssljax/methods/cmc.py"
CMC_CONFIG = "configs/cmc.py"
MULTIVIEW = "ssljax/models/multiview.py"
T_BANK = "tests/losses/test_bank.py"
T_CMC = "tests/methods/test_cmc.py"
T_MULTIVIEW = "tests/models/test_multiview.py"
T_COLOURS = "tests/data/test_colours.py"
BANK_STEP = f"{T_CMC}::test_the_loss_is_both_directions_against_the_other_views_bank_before_this_batch"
RELEASED_BANK = f"{T_BANK}::test_losses_gradients_constants_and_banks_of_the_released_code[0]"
RECIPES_APART = f"{T_CMC}::test_recipes_are_not_mixed"

CMC = [
    Mutation(
        "features_of_any_length",
        BANK_LOSSES,
        "    v = l2_normalize(v)\n",
        "    v = v.astype(jnp.float32)\n",
        "Z of 1e14 (HobbitLong/CMC #12)",
        f"{T_BANK}::test_only_the_anchor_is_normalised_and_gets_a_gradient",
    ),
    Mutation(
        "constant_without_the_number_of_images",
        BANK_LOSSES,
        "jnp.mean(jnp.exp(scores / temperature)) * jnp.float32(n_data)",
        "jnp.mean(jnp.exp(scores / temperature))",
        "Z is n times the mean",
        RELEASED_BANK,
    ),
    Mutation(
        "mean_over_the_negatives",
        BANK_LOSSES,
        "jnp.sum(is_noise, axis=1)",
        "jnp.mean(is_noise, axis=1)",
        "the negatives vanish beside the positive",
        RELEASED_BANK,
    ),
    Mutation(
        "bank_of_any_length",
        BANK,
        "l2_normalize(momentum * bank[index] + (1.0 - momentum) * rows)",
        "(momentum * bank[index] + (1.0 - momentum) * rows)",
        "averaged rows shrink",
        f"{T_BANK}::test_one_update_of_a_bank_by_hand",
    ),
    Mutation(
        "constant_of_every_batch",
        CMC_FILE,
        "return jnp.where(known < 0.0, estimate, after)",
        "return estimate",
        "Z estimated again at every step, or after a restart (HobbitLong/CMC #23)",
        f"{T_CMC}::test_z_is_kept_from_the_first_batch_or_follows_slowly",
    ),
    Mutation(
        "positive_from_the_batch",
        CMC_FILE,
        "rows = (bank.gather(extra.rows[j], index), bank",
        "rows = (l2_normalize(v[j]), bank",
        "the other view's embedding instead of its row in the bank",
        BANK_STEP,
    ),
    Mutation(
        "bank_updated_first",
        CMC_FILE,
        "rows = (bank.gather(extra.rows[j], index), bank",
        "rows = (bank.gather(bank.scatter(extra.rows[j], index, l2_normalize(v[j]), 0.5), index), bank",
        "the positive half leaks into its own score",
        f"{T_CMC}::test_the_bank_is_updated_after_it_was_scored",
    ),
    Mutation(
        "own_bank",
        CMC_FILE,
        "bank.gather(extra.rows[j], drawn))",
        "bank.gather(extra.rows[i], drawn))",
        "negatives from the bank of the same view",
        BANK_STEP,
    ),
    Mutation(
        "negatives_of_all_ids",
        CMC_FILE,
        "drawn = extra.ids[jax.random.randint(draw_key, shape, 0, facts.num_examples)]",
        "drawn = jax.random.randint(draw_key, shape, 0, facts.num_ids)",
        "with a part of the data most negatives are rows that no image ever touches",
        f"{T_CMC}::test_negatives_are_training_images_only",
    ),
    Mutation(
        "absent_views_are_remembered",
        CMC_FILE,
        "jnp.where(present.T, index, length)",
        "jnp.where(present.T, index, index)",
        "an absent view writes its noise into the bank",
        f"{T_CMC}::test_an_absent_view_counts_in_no_pair_and_keeps_its_row",
    ),
    Mutation(
        "one_network_sees_for_all",
        MULTIVIEW,
        "net(view_of(x, view), train=train)",
        "net(view_of(x, self.split[0]), train=train)",
        "every view's network sees the first view",
        f"{T_MULTIVIEW}::test_a_view_does_not_see_the_others_and_is_normalised_by_itself",
    ),
    Mutation(
        "crops_of_the_other_network",
        "ssljax/config/multiview.py",
        "    c.augment.min_area = 0.08\n",
        "    c.augment.min_area = 0.2\n",
        "AlexNet's crops for a ResNet, in pretraining and in the probe",
        RECIPES_APART,
    ),
    Mutation(
        "probe_rate_of_the_other_network",
        CMC_CONFIG,
        "rate = 0.1 if layer else 30.0",
        "rate = 0.1",
        "a rate of 0.1 under-trains a probe of a ResNet",
        RECIPES_APART,
    ),
    Mutation(
        "synchronised_statistics",
        CMC_CONFIG,
        "    c.bn.groups = 4\n",
        "    c.bn.groups = 1\n",
        "statistics of 128 images where the released code has 32 on each device",
        RECIPES_APART,
    ),
    Mutation(
        "colours_of_the_other_recipe",
        CMC_CONFIG,
        '        color_space="ydbdr",\n',
        '        color_space="lab",\n',
        "PyContrast's recipe with CMC's colours",
        RECIPES_APART,
    ),
    Mutation(
        "divided_by_255_twice",
        VIEWS_FILE,
        "normalize(from_rgb(image, augment.color_space)",
        "normalize(from_rgb(image / 255.0, augment.color_space)",
        "tensor conversion scales what is scaled already",
        f"{T_COLOURS}::test_views_and_evaluation_see_the_same_channels_and_pictures_stay_rgb",
    ),
    Mutation(
        "lab_of_gamma_encoded_pixels",
        "ssljax/data/colours.py",
        "((image + 0.055) / 1.055) ** 2.4)",
        "image)",
        "sRGB taken for linear light",
        f"{T_COLOURS}::test_lab_equals_scikit_image",
    ),
]


# ------------------------------------------------------------------------------------------------ CPC v2

CPC_MODEL = "ssljax/models/cpc.py"
CPC_METHOD = "ssljax/methods/cpc.py"
PATCHES = "ssljax/data/patches.py"
DISTORT = "ssljax/data/distort.py"
T_CPC = "tests/methods/test_cpc.py"
T_CPC_MODEL = "tests/models/test_cpc_networks.py"
T_CPC_LOSS = "tests/losses/test_cpc_info_nce.py"
T_PATCHES = "tests/data/test_patches.py"

CPC = [
    Mutation(
        "cpc_grid_of_version_1",
        "configs/cpc.py",
        "c = cpc(c, name, patch=80, stride=36)  # [P]",
        "c = cpc(c, name, patch=68, stride=32)",
        "7 x 7 patches that overlap by half, as in CPC v1",
        f"{T_CPC}::test_the_papers_recipe",
    ),
    Mutation(
        "cpc_norm_across_patches",
        CPC_MODEL,
        "centred = x - x.mean((1, 2, 3), keepdims=True)",
        "centred = x - x.mean((0, 1, 2, 3), keepdims=True)",
        "statistics of the batch, through which patches know of each other",
        f"{T_CPC_MODEL}::test_no_patch_knows_of_another_and_one_tree_serves_patches_and_images",
    ),
    Mutation(
        "cpc_gain_per_place",
        CPC_MODEL,
        "channels = (x.shape[-1],)",
        "channels = x.shape[1:]",
        "layer norm with an affine of the size of the map, which fits one image size",
        f"{T_CPC_MODEL}::test_no_patch_knows_of_another_and_one_tree_serves_patches_and_images",
    ),
    Mutation(
        "cpc_weights_of_bolts",
        CPC_METHOD,
        "rows += jnp.mean(own)",
        "rows += i * jnp.mean(own)",
        "lightning-bolts counts step i i times",
        f"{T_CPC}::test_the_loss_is_the_sum_over_directions_and_steps_of_the_means",
    ),
    Mutation(
        "cpc_row_convolution_aside",
        CPC_MODEL,
        '((0, 0), (1, 1)), name=f"block{block}_conv2")',
        '((0, 0), (2, 0)), name=f"block{block}_conv2")',
        "a mask over columns, too",
        f"{T_CPC_MODEL}::test_a_block_of_the_context_by_hand",
    ),
    Mutation(
        "cpc_padding_below",
        CPC_MODEL,
        "above = ((1, 0), (0, 0))",
        "above = ((0, 1), (0, 0))",
        "the context sees the rows that it predicts",
        f"{T_CPC_MODEL}::test_the_context_is_causal",
    ),
    Mutation(
        "cpc_labels_of_the_sources",
        CONTRASTIVE,
        "return places[:, step + 1 :].reshape(-1)",
        "return places[:, : height - step - 1].reshape(-1)",
        "every place predicts itself",
        f"{T_CPC_LOSS}::test_the_labels_of_the_sheet_on_a_square_and_on_a_wide_grid",
    ),
    Mutation(
        "cpc_labels_a_row_off",
        CONTRASTIVE,
        "return places[:, step + 1 :].reshape(-1)",
        "return places[:, step : height - 1].reshape(-1)",
        "offset i for offset i + 1",
        f"{T_CPC_LOSS}::test_the_loss_of_each_step_of_bolts",
    ),
    Mutation(
        "cpc_labels_by_column",
        CONTRASTIVE,
        ".reshape(images, height, width)\n    return places",
        ".reshape(images, width, height).swapaxes(1, 2)\n    return places",
        "height and width confused",
        f"{T_CPC_LOSS}::test_the_labels_of_the_sheet_on_a_square_and_on_a_wide_grid",
    ),
    Mutation(
        "cpc_targets_not_turned",
        CPC_METHOD,
        "            # 4. Every prediction",
        '            t, _ = direction.apply({"params": params["directions"][name]}, z)\n'
        "            # 4. Every prediction",
        "targets of the grid as it was, predictions of the turned one",
        f"{T_CPC}::test_the_loss_is_the_sum_over_directions_and_steps_of_the_means",
    ),
    Mutation(
        "cpc_mean_over_directions",
        CPC_METHOD,
        "total += rows\n",
        "total += rows / len(names)\n",
        "CPCV2-PyTorch averages over directions",
        f"{T_CPC}::test_the_loss_is_the_sum_over_directions_and_steps_of_the_means",
    ),
    Mutation(
        "cpc_without_clipping",
        OPTIM,
        "return optax.chain(optax.clip_by_global_norm(optim.clip), adam) if optim.clip else adam",
        "return adam",
        "the clip dropped, which Adam hides",
        f"{T_CPC}::test_the_gradient_is_clipped_before_adam",
    ),
    Mutation(
        "cpc_clip_after_adam",
        OPTIM,
        "optax.chain(optax.clip_by_global_norm(optim.clip), adam)",
        "optax.chain(adam, optax.clip_by_global_norm(optim.clip))",
        "the step is clipped, not the gradient",
        f"{T_CPC}::test_the_gradient_is_clipped_before_adam",
    ),
    Mutation(
        "cpc_image_changed_as_one",
        PATCHES,
        "jax.random.fold_in(own, place), recipe)",
        "own, recipe)",
        "the same change for all patches of an image",
        f"{T_PATCHES}::test_every_patch_of_a_constant_image_becomes_another",
    ),
    Mutation(
        "cpc_raw_weights_evaluated",
        CPC_METHOD,
        'return extra.params["encoder"], model_state["encoder"]',
        'return params["encoder"], model_state["encoder"]',
        "the moving average is kept but not used",
        f"{T_CPC}::test_the_average_is_evaluated_and_not_the_network",
    ),
    Mutation(
        "cpc_colours_clipped_each_time",
        DISTORT,
        "image = image + jnp.where(turn[0], brightness, 0.0)",
        "image = clip(image + jnp.where(turn[0], brightness, 0.0))",
        "a clip after each operation, as in SimCLR",
        f"{T_PATCHES}::test_it_is_clipped_once_at_the_end",
    ),
    Mutation(
        "cpc_groups_of_all_images",
        CPC_METHOD,
        'images = config.cpc.local_images if config.cpc.negatives == "local" else len(z)',
        "images = len(z)",
        "negatives of the whole batch where a worker has its own",
        f"{T_CPC}::test_an_untrained_network_is_near_the_log_of_the_candidates",
    ),
]

# Views in folders.
T_VIEW_FOLDERS = "tests/data/test_view_folders.py"
VIEW_FOLDERS = [
    Mutation(
        "views_of_the_next_example",
        "ssljax/data/view_folders.py",
        "examples = [tuple(view[stems[i]] for view in views) for i in rows]",
        "examples = [tuple(view[stems[i - n]] for n, view in enumerate(views)) for i in rows]",
        "the views of an example are of different examples",
        f"{T_VIEW_FOLDERS}::test_files_of_one_name_are_one_example_and_their_channels_are_stacked",
    ),
    Mutation(
        "incomplete_examples_pass",
        "ssljax/data/view_folders.py",
        'if on_bad == "error":',
        'if on_bad == "never":',
        "an example that lacks a view is left out without asking",
        f"{T_VIEW_FOLDERS}::test_an_example_that_lacks_a_view_is_named_or_left_out",
    ),
]


# Detection and segmentation
BOXES = "ssljax/models/boxes.py"
DETECTION_LOSS = "ssljax/losses/detection.py"
T_BOXES = "tests/models/test_boxes.py"
T_DETECTION = "tests/losses/test_detection.py"
HEAD_PARITY = f"{T_DETECTION}::test_head_losses_and_gradients_equal_detectron2"

DETECTION = [
    Mutation(
        "padded_box_claims_all_anchors",
        BOXES,
        "claimed = (overlap >= best * (1.0 - tie)) & (best > 0)",
        "claimed = overlap >= best * (1.0 - tie)",
        "a padded box overlaps nothing, and all anchors equal its best overlap (mmdetection #8289)",
        f"{T_BOXES}::test_matches_equal_detectron2_but_for_a_box_that_touches_nothing",
    ),
    Mutation(
        "padded_boxes_are_matched",
        BOXES,
        "overlap = jnp.where(valid[:, None], overlap, -1.0)",
        "overlap = overlap + 0.0",
        "what stands in the padding is taken for an object",
        f"{T_BOXES}::test_padded_boxes_change_no_match",
    ),
    Mutation(
        "best_overlap_compared_exactly",
        BOXES,
        "best * (1.0 - tie)",
        "best",
        "compilers round equal overlaps differently (facebookresearch/detectron2 #3750)",
        f"{T_BOXES}::test_candidates_as_good_as_the_best_are_positive_within_rounding",
    ),
    Mutation(
        "nms_drops_equal_overlap",
        BOXES,
        "[0] > threshold",
        "[0] >= threshold",
        "the tiled NMS of MLPerf's SSD",
        f"{T_BOXES}::test_nms_equals_torchvision_also_in_ties",
    ),
    Mutation(
        "nms_over_all_classes",
        BOXES,
        "drop &= classes == classes[best]",
        "drop &= classes == classes",
        "a person suppresses the horse below it",
        f"{T_BOXES}::test_nms_equals_torchvision_also_in_ties",
    ),
    Mutation(
        "growth_without_limit",
        BOXES,
        "jnp.minimum(deltas[..., 2:], MOST_GROWTH)",
        "deltas[..., 2:]",
        "exp of an untrained network's deltas overflows",
        f"{T_BOXES}::test_encode_and_decode_are_inverse_and_growth_is_limited",
    ),
    Mutation(
        "anchors_ratio_major",
        BOXES,
        """    for size in sizes:
        for ratio in ratios:
            width""",
        """    for ratio in ratios:
        for size in sizes:
            width""",
        "converted RPN weights predict for other anchors",
        f"{T_BOXES}::test_anchors_equal_detectron2",
    ),
    Mutation(
        "roi_half_cell_missing",
        "ssljax/models/roi.py",
        "corners = corners - 0.5",
        "corners = corners - 0.0",
        "aligned=False, the first RoIAlign",
        "tests/models/test_roi.py::test_a_ramp_by_hand",
    ),
    Mutation(
        "roi_zero_at_the_border",
        "ssljax/models/roi.py",
        "(position >= -1.0) & (position <= extent)",
        "(position >= 0.0) & (position <= extent - 1)",
        "zeros around the map instead of its border (scenic)",
        "tests/models/test_roi.py::test_adaptive_samples_and_their_gradient_equal_torchvision",
    ),
    Mutation(
        "roi_samples_by_reciprocal",
        "ssljax/models/roi.py",
        "samples - extra.astype(jnp.float32)",
        "samples",
        "compiled, 42 / 14 is more than 3, and its ceiling 4",
        "tests/models/test_roi.py::test_a_box_of_42_cells_has_three_samples_a_bin_also_when_compiled",
    ),
    Mutation(
        "background_first",
        DETECTION_LOSS,
        "jnp.arange(deltas.shape[2])[None, None]",
        "jnp.arange(1, deltas.shape[2] + 1)[None, None]",
        "class 0 is the background (scenic, torchvision)",
        HEAD_PARITY,
    ),
    Mutation(
        "box_loss_mean_over_positives",
        DETECTION_LOSS,
        "box.sum(axis=(1, 2)) / per_image",
        "box.sum(axis=(1, 2)) / (own & exists[..., None]).sum((1, 2), dtype=jnp.float32)",
        "mean over the foreground, not over the RoIs",
        HEAD_PARITY,
    ),
    Mutation(
        "rpn_box_loss_mean_over_positives",
        DETECTION_LOSS,
        "sampled & positive, beta).sum(axis=1) / per_image",
        "sampled & positive, beta).sum(axis=1) / positive.sum(axis=1, dtype=jnp.float32)",
        "mean over the positives (tensorflow/tpu)",
        f"{T_DETECTION}::test_rpn_losses_are_sums_over_256_anchors_an_image",
    ),
    Mutation(
        "missing_rois_are_counted",
        DETECTION_LOSS,
        "per_image = jnp.maximum(exists.sum(), 1).astype(jnp.float32) / exists.shape[0]",
        "per_image = jnp.float32(exists.shape[1])",
        "padding dilutes the losses",
        f"{T_DETECTION}::test_the_divisor_is_the_number_of_rois_that_exist_in_the_batch",
    ),
    Mutation(
        "clip_to_the_padded_size",
        "ssljax/models/detections.py",
        "boxes = clip(decoded, size)\n    usable",
        "boxes = clip(decoded, 2 * size)\n    usable",
        "boxes reach into the padding",
        "tests/models/test_detections.py::test_proposals_equal_detectron2",
    ),
    Mutation(
        "duplicate_detections_are_right",
        "ssljax/protocols/detection.py",
        "or (taken[best] and not truth.ignored[best])",
        "",
        "a second detection of an object counts again",
        "tests/protocols/test_detection_metrics.py::"
        "test_a_second_detection_of_a_box_is_wrong_and_a_difficult_box_counts_nowhere",
    ),
    Mutation(
        "absent_class_has_iou_zero",
        "ssljax/protocols/segmentation.py",
        "np.full_like(both, np.nan)",
        "np.zeros_like(both)",
        "mIoU over classes that do not occur",
        "tests/protocols/test_detection_metrics.py::"
        "test_pixels_are_pooled_over_images_and_padding_counts_nowhere",
    ),
]

# ------------------------------------------------------------------------------------------ Faster R-CNN

DETECTION_METHOD = "ssljax/methods/detection.py"
DETECTOR = "ssljax/models/detector.py"
T_DETECTOR = "tests/methods/test_detection.py"

FASTER_RCNN = [
    Mutation(
        "norm_after_the_last_group_missing",
        DETECTOR,
        "x = mean_of_valid(norm(x, train=train, mask=mask), None)",
        "norm(x, train=train, mask=mask)\n        x = mean_of_valid(x, None)",
        "the extra norm of MoCo's box head is left out (DenseCL #27)",
        f"{T_DETECTOR}::test_losses_and_statistics_equal_detectron2s",
    ),
    Mutation(
        "padding_is_black",
        DETECTOR,
        "x = jnp.where(valid_pixels(valid, *x.shape[1:3]), x, 0.0)",
        "x = jnp.where(valid_pixels(valid, *x.shape[1:3]), x, x)",
        "padding is black before it is normalised, not zero after it",
        f"{T_DETECTOR}::test_what_lies_in_the_padding_has_no_influence_on_the_map",
    ),
    Mutation(
        "pool_spills_into_the_padding",
        RESNET,
        "return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))",
        "return x",
        "the maximum of a window in the padding is that of the image beside it",
        f"{T_RESNET}::test_a_padded_image_gives_the_map_of_the_image_alone[Basic-torchvision]",
    ),
    Mutation(
        "norms_see_the_padding",
        DETECTOR,
        "x, train, size=valid, part=part)",
        "x, train, size=None, part=part)",
        "padded zeros stop being zero after a norm, and count in its statistics",
        f"{T_DETECTOR}::test_the_padding_of_images_and_boxes_changes_no_loss_and_no_detection",
    ),
    Mutation(
        "regions_see_the_padding",
        DETECTOR,
        "jax.vmap(pooled)(maps, boxes, extent)",
        "jax.vmap(pooled)(maps, boxes)",
        "boxes at the border of an image blend with padding",
        f"{T_DETECTOR}::test_the_padding_of_images_and_boxes_changes_no_loss_and_no_detection",
    ),
    Mutation(
        "statistics_of_regions_that_do_not_exist",
        DETECTOR,
        "size = jnp.where(exists[:, None], jnp.full((1, 2), self.cells, jnp.int32), 0)",
        "size = jnp.full((len(exists), 2), self.cells, jnp.int32)",
        "empty places count in the statistics of the last group",
        f"{T_DETECTOR}::test_the_padding_of_images_and_boxes_changes_no_loss_and_no_detection",
    ),
    Mutation(
        "detections_clipped_to_the_padding",
        DETECTION_METHOD,
        "proposals = proposed(at, size, before=settings.test_before",
        "proposals = proposed(at, 2 * size, before=settings.test_before",
        "proposals reach beyond the image",
        f"{T_DETECTOR}::test_proposals_and_detections_equal_detectron2s",
    ),
    Mutation(
        "true_boxes_are_no_regions",
        DETECTION_METHOD,
        "there = jnp.concatenate([exists, classes >= 0])",
        "there = jnp.concatenate([exists, classes < -1])",
        "true boxes are not added to the proposals",
        f"{T_DETECTOR}::test_losses_and_statistics_equal_detectron2s",
    ),
    Mutation(
        "box_deltas_without_their_weights",
        DETECTION_METHOD,
        "regions, weights=HEAD_WEIGHTS)",
        "regions, weights=RPN_WEIGHTS)",
        "the box head's deltas are not scaled by 10, 10, 5, 5",
        f"{T_DETECTOR}::test_what_the_box_head_should_say_of_a_proposal_by_hand",
    ),
    Mutation(
        "background_is_the_first_class",
        DETECTION_METHOD,
        "background=net.head.classes",
        "background=0",
        "background is class 0, as in torchvision, and shifts no others",
        f"{T_DETECTOR}::test_losses_and_statistics_equal_detectron2s",
    ),
    Mutation(
        "norms_frozen_in_fine_tuning",
        DETECTION_METHOD,
        "x, valid, train=True)",
        "x, valid, train=False)",
        "norms stay in inference mode during fine-tuning",
        f"{T_DETECTOR}::test_losses_and_statistics_equal_detectron2s",
    ),
    Mutation(
        "anchors_in_the_padding_are_background",
        DETECTION_METHOD,
        "jnp.where(inside, labels, -1)",
        "labels",
        "anchors in the padding are drawn as background",
        f"{T_DETECTOR}::test_anchors_outside_the_image_are_never_drawn_and_a_box_they_match_best_is_not_lost",
    ),
    Mutation(
        "anchors_in_the_padding_win_true_boxes",
        DETECTION_METHOD,
        "overlap = jnp.where(inside[None], iou(boxes, anchors), 0.0)",
        "overlap = iou(boxes, anchors)",
        "an anchor in the padding overlaps a box best, and no other anchor learns it",
        f"{T_DETECTOR}::test_anchors_outside_the_image_are_never_drawn_and_a_box_they_match_best_is_not_lost",
    ),
    Mutation(
        "precise_statistics_with_momentum",
        DETECTION_METHOD,
        "share = 1.0 / (count * (1.0 - config.model.bn_momentum))",
        "share = 1.0 / count",
        "a tenth of the batch's statistics is taken for the whole",
        f"{T_DETECTOR}::test_precise_statistics_are_means_over_batches",
    ),
    Mutation(
        "masked_places_in_the_mean",
        NORM,
        "sum(axes) / _at_least_one(_count(x, mask))",
        "sum(axes) / (x.size // x.shape[-1])",
        "padding counts in the statistics of a norm",
        f"{T_NORM}::test_masked_places_count_in_nothing",
    ),
    Mutation(
        "gradient_through_masked_places",
        NORM,
        "dy = _valid(cotangents[0], mask)",
        "dy = cotangents[0]",
        "what lies over padding reaches the gain and the offset",
        f"{T_NORM}::test_masked_places_count_in_nothing",
    ),
    Mutation(
        "detectron_decays_norms",
        OPTIM,
        "optim.weight_decay, mask=not_norms)\n    return optax.chain(decay, optax.sgd",
        "optim.weight_decay)\n    return optax.chain(decay, optax.sgd",
        "weight decay on gains and offsets of norms",
        f"{T_OPTIM}::test_detectron2s_schedules_and_what_it_decays",
    ),
    Mutation(
        "milestones_one_step_late",
        OPTIM,
        "(step >= at).astype(jnp.float32) for at in milestones), jnp.zeros(())",
        "(step > at).astype(jnp.float32) for at in milestones), jnp.zeros(())",
        "the rate falls after the step of a milestone",
        f"{T_OPTIM}::test_detectron2s_schedules_and_what_it_decays",
    ),
]


# Images with boxes or masks.
ANNOTATED = [
    Mutation(
        "voc_one_subtracted_twice",
        "ssljax/data/voc_objects.py",
        "box = (xmin - 1.0, ymin - 1.0, xmax, ymax)",
        "box = (xmin - 1.0, ymin - 1.0, xmax - 1.0, ymax - 1.0)",
        "VOC's last pixel belongs to the box",
        "tests/data/test_annotated.py::test_voc_counts_from_one_and_trains_on_difficult_objects",
    ),
    Mutation(
        "voc_counts_from_zero",
        "ssljax/data/voc_objects.py",
        "box = (xmin - 1.0, ymin - 1.0, xmax, ymax)",
        "box = (xmin, ymin, xmax, ymax)",
        "VOC's first pixel is 1",
        "tests/data/test_annotated.py::test_voc_counts_from_one_and_trains_on_difficult_objects",
    ),
    Mutation(
        "coco_sides_exchanged",
        "ssljax/data/coco.py",
        "box=(x, y, x + width, y + height)",
        "box=(x, y, x + height, y + width)",
        "COCO's boxes are x, y, width, height",
        "tests/data/test_annotated.py::test_coco_has_its_categories_by_id_and_its_images_by_id",
    ),
    Mutation(
        "categories_in_the_order_of_the_file",
        "ssljax/data/coco.py",
        'sorted(records["categories"], key=lambda c: c["id"])',
        'records["categories"]',
        "the classes of two files differ",
        "tests/data/test_annotated.py::test_coco_has_its_categories_by_id_and_its_images_by_id",
    ),
    Mutation(
        "crowds_are_trained_on",
        "ssljax/data/coco.py",
        "train_on_difficult=False",
        "train_on_difficult=True",
        "one box around a crowd is an object",
        "tests/data/test_annotated.py::test_coco_has_its_categories_by_id_and_its_images_by_id",
    ),
    Mutation(
        "unlabelled_is_background",
        "ssljax/data/coco.py",
        "meaning[[0, IGNORED]] = IGNORED",
        "meaning[[0, IGNORED]] = 0, IGNORED",
        "pixels without a label are counted",
        "tests/data/test_annotated.py::test_masks_are_numbers_and_not_colours",
    ),
    Mutation(
        "colours_of_the_palette",
        "ssljax/data/annotate.py",
        "stored = np.asarray(picture).astype(np.uint8)",
        'stored = np.asarray(picture.convert("L"))',
        "the palette's colours are read in place of its numbers",
        "tests/data/test_annotated.py::test_masks_are_numbers_and_not_colours",
    ),
    Mutation(
        "masks_are_interpolated",
        "ssljax/data/annotated_geometry.py",
        "Image.Resampling.NEAREST",
        "Image.Resampling.BILINEAR",
        "between classes 3 and 7 lies 5",
        "tests/data/test_annotated.py::test_masks_keep_their_classes_and_squares_are_filled",
    ),
    Mutation(
        "padding_has_a_class",
        "ssljax/data/annotated_geometry.py",
        "padded(mask[part], (side, side), IGNORED)",
        "padded(mask[part], (side, side), 0)",
        "padding is background",
        "tests/data/test_annotated.py::test_masks_keep_their_classes_and_squares_are_filled",
    ),
    Mutation(
        "sizes_rounded_down",
        "ssljax/data/annotated_geometry.py",
        "return int(new[0] + 0.5), int(new[1] + 0.5)",
        "return int(new[0]), int(new[1])",
        "detectron2 rounds",
        "tests/data/test_annotated.py::test_sizes_pixels_and_boxes_are_those_of_detectron2",
    ),
    Mutation(
        "mirror_of_the_last_pixel",
        "ssljax/data/annotated_geometry.py",
        "[width - x2, y1, width - x1, y2]",
        "[width - 1 - x2, y1, width - 1 - x1, y2]",
        "x becomes W - 1 - x, as for the numbers of pixels",
        "tests/data/test_annotated.py::test_sizes_pixels_and_boxes_are_those_of_detectron2",
    ),
    Mutation(
        "boxes_y_first",
        "ssljax/data/annotated_geometry.py",
        "np.array([new_width / width, new_height / height] * 2)",
        "np.array([new_height / height, new_width / width] * 2)",
        "boxes as y1, x1, y2, x2",
        "tests/data/test_annotated.py::test_boxes_end_where_the_image_ends",
    ),
    Mutation(
        "boxes_beyond_the_image",
        "ssljax/data/annotated_geometry.py",
        "np.clip(boxes * factor, 0.0, border)",
        "np.clip(boxes * factor, 0.0, None)",
        "boxes end in the padding",
        "tests/data/test_annotated.py::test_boxes_end_where_the_image_ends",
    ),
    Mutation(
        "squares_are_landscapes",
        "ssljax/data/annotated_geometry.py",
        "sizes[:, 1] <= sizes[:, 0]",
        "sizes[:, 1] < sizes[:, 0]",
        "detectron2: landscapes are wider than high",
        "tests/data/test_annotated.py::test_buckets_hold_every_image",
    ),
    Mutation(
        "mean_colour_as_padding",
        "ssljax/data/annotated.py",
        '"image": geometry.padded(image, bucket_of(config, portrait, training=draw is not None)),',
        '"image": geometry.padded(image, bucket_of(config, portrait, training=draw is not None), 124),',
        "padding is part of the image",
        "tests/data/test_annotated.py::test_boxes_lie_where_the_object_is_in_every_batch",
    ),
    Mutation(
        "boxes_stay_when_mirrored",
        "ssljax/data/annotated.py",
        "boxes = geometry.mirrored_boxes(boxes, size[1])",
        "boxes = boxes + 0.0",
        "the image is mirrored alone",
        "tests/data/test_annotated.py::test_boxes_lie_where_the_object_is_in_every_batch",
    ),
    Mutation(
        "the_same_crop_in_every_pass",
        "ssljax/data/annotated.py",
        "key = np.array([seed, number], np.uint64)",
        "key = np.array([seed, 0], np.uint64)",
        "draws without the epoch",
        "tests/data/test_annotated.py::test_draws_are_uniform_and_differ_by_seed_pass_and_image",
    ),
    Mutation(
        "leftovers_are_lost",
        "ssljax/data/sampler.py",
        "passes = entries // sizes[kind]\n    found",
        "passes = 0 * entries + number\n    found",
        "what does not fill a batch waits for no pass",
        "tests/data/test_annotated.py::test_portraits_have_batches_of_their_own_as_if_images_were_grouped_one_by_one",
    ),
    Mutation(
        "boxes_at_the_size_of_the_network",
        "ssljax/protocols/boxes.py",
        "np.tile((original / size)[::-1], 2)",
        "np.ones(4)",
        "boxes are measured without going back",
        "tests/protocols/test_found.py::test_boxes_go_back_to_the_original_size_and_empty_ones_are_dropped",
    ),
    Mutation(
        "scale_of_the_other_axis",
        "ssljax/protocols/boxes.py",
        "np.tile((original / size)[::-1], 2)",
        "np.tile(original / size, 2)",
        "height and width are exchanged",
        "tests/protocols/test_found.py::test_boxes_go_back_to_the_original_size_and_empty_ones_are_dropped",
    ),
    Mutation(
        "border_of_a_mask_counts",
        "ssljax/protocols/segmentation.py",
        'total += confusion(batch["mask"], found["mask"], classes=len(names))',
        'total += confusion(batch["mask"] % 255, found["mask"], classes=len(names))',
        "255 is background",
        "tests/protocols/test_found.py::test_masks_are_pooled_over_the_split",
    ),
]

# Segmentation networks.
T_FCN = "tests/models/test_fcn.py"
T_SEGMENTATION = "tests/methods/test_segmentation.py"
T_PIXELS = "tests/losses/test_segmentation_loss.py"
FCN = "ssljax/models/fcn.py"
PIXELS = "ssljax/losses/segmentation.py"
SEGMENTATION = [
    Mutation(
        "last_group_strided",
        "ssljax/models/resnet.py",
        "self.last_stride if is_last and group > 1 else min(group, 2)",
        "min(group, 2)",
        "a map of stride 32 under a network for one of stride 16",
        f"{T_FCN}::test_the_last_group_of_the_papers_network_has_stride_1",
    ),
    Mutation(
        "last_group_not_dilated",
        "ssljax/models/resnet.py",
        "partial(make_conv, dilation=self.last_dilation) if is_last else make_conv",
        "make_conv",
        "the stride is gone, and so is half of what a cell sees",
        f"{T_FCN}::test_the_last_group_by_hand",
    ),
    Mutation(
        "corners_aligned",
        FCN,
        "place = (pixel + 0.5) * (n / m) - 0.5",
        "place = pixel * ((n - 1.0) / (m - 1.0))",
        "align_corners=True, as in DeepLab",
        f"{T_FCN}::test_bilinear_interpolation_equals_pytorch",
    ),
    Mutation(
        "enlarged_by_the_stride",
        FCN,
        "within=(cells, size)",
        "within=(cells, cells * stride_of(self.encoder, len(self.encoder.layers)))",
        "the map is enlarged to a multiple of its stride, not to the image",
        f"{T_FCN}::test_padding_changes_no_score_of_an_image",
    ),
    Mutation(
        "padding_in_the_head",
        FCN,
        "norm(conv(x), train=train, mask=mask)",
        "norm(conv(x), train=train)",
        "norms make padding something else than 0",
        f"{T_FCN}::test_padding_changes_no_score_of_an_image",
    ),
    Mutation(
        "cropped_in_the_middle",
        FCN,
        "padding = layer.padding if i else BORDER",
        "padding = layer.padding",
        "the crop does not know the border of 100",
        f"{T_FCN}::test_fcn_32s_is_a_transposed_convolution_that_is_cropped",
    ),
    Mutation(
        "pools_drop_the_end",
        "ssljax/models/alexnet_vgg.py",
        "missing = [(0, (window - side) % stride) for side in x.shape[1:3]]",
        "missing = [(0, 0)] * 2",
        "Caffe's pools keep an incomplete window at the end, PyTorch's do not",
        f"{T_FCN}::test_fc6_as_a_convolution_is_fc6",
    ),
    Mutation(
        "statistics_of_one_image",
        "ssljax/models/alexnet_vgg.py",
        "self._conv(layer, x, train=train and not border)",
        "self._conv(layer, x, train=train)",
        "frozen convolutions with norms that follow the batch",
        f"{T_SEGMENTATION}::test_fc6_8_leaves_convolutions_and_all_statistics_as_they_are",
    ),
    Mutation(
        "convolutions_trained",
        "ssljax/methods/segmentation.py",
        'layer not in ("fc6", "fc7")',
        "layer in ()",
        "FC6-8 trains everything",
        f"{T_SEGMENTATION}::test_fc6_8_leaves_convolutions_and_all_statistics_as_they_are",
    ),
    Mutation(
        "ignored_pixels_counted",
        PIXELS,
        "total = jnp.where(counts, nll, 0.0).sum((1, 2))",
        "total = nll.sum((1, 2))",
        "255 becomes class 0",
        f"{T_PIXELS}::test_the_mean_and_its_gradient_equal_pytorch",
    ),
    Mutation(
        "divided_by_all_pixels",
        PIXELS,
        "labels.shape[0] / jnp.maximum(counts.sum(), 1).astype(jnp.float32)",
        "1.0 / jnp.prod(jnp.array(labels.shape[1:])).astype(jnp.float32)",
        "images with much padding count less",
        f"{T_PIXELS}::test_the_mean_and_its_gradient_equal_pytorch",
    ),
    Mutation(
        "means_of_images_of_any_size",
        "ssljax/methods/segmentation.py",
        'per_image = config.fcn.mean_over == "images"',
        "per_image = False",
        "the released FCN takes the mean image by image",
        f"{T_SEGMENTATION}::test_the_loss_of_fcn_32s_is_a_mean_over_images",
    ),
    Mutation(
        "padding_is_looked_at",
        "ssljax/methods/segmentation.py",
        'scores = models.infer(net, params, model_state, inputs(batch), size=batch["size"])',
        "scores = models.infer(net, params, model_state, inputs(batch))",
        "an image is judged with its padding",
        f"{T_SEGMENTATION}::test_ignored_pixels_and_what_lies_outside_of_an_image_have_no_influence",
    ),
]


# Fine-tuning, several labels per image, and pictures of retrieval.
FINE_TUNING = [
    Mutation(
        "difficult_is_negative",
        "ssljax/losses/classification.py",
        "counts = (labels == 0) | (labels == 1)",
        "counts = labels == labels",
        "what is only difficult counts as absent",
        "tests/methods/test_multilabel.py::test_the_loss_is_deepclusters",
    ),
    Mutation(
        "clipping_counts_what_stands_still",
        "ssljax/methods/multilabel.py",
        "jax.lax.stop_gradient(w) if fixed else w",
        "w",
        "the norm of the gradient is over all parameters",
        "tests/methods/test_multilabel.py::test_what_stands_still_has_no_gradient_that_clipping_would_count",
    ),
    Mutation(
        "fc6_8_by_batch_statistics",
        "ssljax/methods/multilabel.py",
        'running=config.tune.norms == "running"',
        "running=False",
        "model.train() after features.eval()",
        "tests/methods/test_multilabel.py::test_fc6_8_moves_the_full_layers_and_no_statistics",
    ),
    Mutation(
        "decay_shrinks_what_stands_still",
        "ssljax/methods/multilabel.py",
        'still=still if config.tune.layers != "all" else None',
        "still=None",
        "frozen layers are given to the optimizer",
        "tests/methods/test_multilabel.py::test_fc6_8_moves_the_full_layers_and_no_statistics",
    ),
    Mutation(
        "full_layers_of_the_pretraining",
        "ssljax/methods/multilabel.py",
        'return state.replace(params={**state.params, "encoder": fresh})',
        "return state",
        "fc6 and fc7 are not begun anew",
        "tests/methods/test_multilabel.py::test_the_full_layers_begin_anew_and_the_others_stay",
    ),
    Mutation(
        "full_layers_without_a_bias",
        "ssljax/methods/multilabel.py",
        'jnp.full_like(f[name]["bias"], config.tune.bias)',
        'jnp.zeros_like(f[name]["bias"])',
        "the 0.1 is forgotten",
        "tests/methods/test_multilabel.py::test_the_full_layers_begin_anew_and_the_others_stay",
    ),
    Mutation(
        "ties_help_positives",
        "ssljax/protocols/finetuned.py",
        "scores - TIE * (labels == 1)",
        "scores + TIE * (labels == 1)",
        "1e-5 is added",
        "tests/methods/test_multilabel.py::test_ties_count_against_positives",
    ),
    Mutation(
        "only_the_last_crop_counts",
        "ssljax/benches.py",
        "each.sum(axis=0)",
        "each[-1]",
        "the sum is overwritten",
        "tests/methods/test_multilabel.py::test_random_crops_are_summed_by_image",
    ),
    Mutation(
        "decay_not_divided_by_the_rate",
        "ssljax/finetune.py",
        "rate, decay = float(self.rate), float(self.decay / self.rate)",
        "rate, decay = float(self.rate), float(self.decay)",
        "SGD multiplies it by the rate",
        "tests/test_finetune.py::test_the_grid_is_the_papers_with_decays_divided_by_the_rate",
    ),
    Mutation(
        "searched_on_the_test_images",
        "ssljax/finetune.py",
        "'validation' if split == 'train' else 'test'",
        "'test'",
        "the best of 56 on the test split",
        "tests/test_finetune.py::test_a_search_is_judged_on_validation_images_and_its_best_pair_on_the_test_images",
    ),
    Mutation(
        "not_fitted_again_on_validation_images",
        "ssljax/finetune.py",
        'flags.steps, "train+validation")',
        'flags.steps, "train")',
        "the best run of the search is reported",
        "tests/test_finetune.py::test_a_search_is_judged_on_validation_images_and_its_best_pair_on_the_test_images",
    ),
    Mutation(
        "norms_remember_nine_tenths",
        "configs/transfer.py",
        "c.model.bn_momentum = max(1 - 10 / (IMAGES[name] // BATCH), 0.9)",
        "c.model.bn_momentum = 0.9",
        "the default of pretraining",
        "tests/test_finetune.py::test_presets_take_20000_steps_and_know_their_images",
    ),
    Mutation(
        "validation_is_trained_on",
        "ssljax/data/transfer.py",
        'rows = {"train": np.delete(every, held)',
        'rows = {"train": every',
        "the search fits what it is judged on",
        "tests/protocols/test_transfer.py::test_a_transfer_source_has_the_papers_four_splits",
    ),
    Mutation(
        "the_query_is_its_own_neighbour",
        "ssljax/protocols/retrieval.py",
        "near = order[~np.isin(order, junk[i])][:NEAREST]",
        "near = order[:NEAREST]",
        "junk is shown",
        "tests/protocols/test_retrieval.py::test_a_folder_is_judged_with_any_network",
    ),
]

# The predictive baseline of CMC: who predicts what, and by which distance.
PREDICTIVE_FILE = "ssljax/methods/predictive.py"
DECODER = "ssljax/models/decoder.py"
T_PREDICTIVE = "tests/methods/test_predictive.py"
SUM_OF_DIRECTIONS = f"{T_PREDICTIVE}::test_the_loss_is_the_mean_error_of_pixels_summed_over_all_directions"

PREDICTIVE = [
    Mutation(
        "a_view_predicts_itself",
        DECODER,
        "decoder(parts[source], train=train)",
        "decoder(parts[target], train=train)",
        "the decoder sees the view that it should predict",
        f"{T_PREDICTIVE}::test_a_direction_teaches_the_network_of_its_first_view_and_its_own_decoder",
    ),
    Mutation(
        "absolute_and_squared_error_swapped",
        PREDICTIVE_FILE,
        'LOSSES = {"l1": l1, "l2": l2}',
        'LOSSES = {"l1": l2, "l2": l1}',
        "predict.loss=l1 is squared error",
        SUM_OF_DIRECTIONS,
    ),
    Mutation(
        "one_direction_only",
        PREDICTIVE_FILE,
        "models.both_ways(models.pairs_of(len(split), config.predict.graph))",
        "models.pairs_of(len(split), config.predict.graph)",
        "the last view's network learns nothing",
        f"{T_PREDICTIVE}::test_the_core_view_predicts_all_others_and_all_others_the_core",
    ),
    Mutation(
        "decoders_of_all_pairs",
        PREDICTIVE_FILE,
        "models.pairs_of(len(split), config.predict.graph)",
        'models.pairs_of(len(split), "full")',
        "views other than the core predict each other",
        f"{T_PREDICTIVE}::test_the_core_view_predicts_all_others_and_all_others_the_core",
    ),
]

# FCN-32s on whole images of many sizes, and labels that are several.
FCN_32S_PADDED = f"{T_FCN}::test_padding_changes_no_score_of_an_image"

LOOSE_ENDS = [
    Mutation(
        "fc6_reaches_beyond_the_image",
        FCN,
        "cells(size) - (fc6 - 1)",
        "cells(size)",
        "places that an image has only in a larger square",
        FCN_32S_PADDED,
    ),
    Mutation(
        "incomplete_windows_of_small_images_left_out",
        "ssljax/models/alexnet_vgg.py",
        "return -(-(size - window) // stride) + 1 if window else size",
        "return (size - window) // stride + 1 if window else size",
        "PyTorch's pools instead of Caffe's",
        FCN_32S_PADDED,
    ),
    Mutation(
        "several_labels_pass_for_one",
        "ssljax/data/source.py",
        "            if several:\n                return\n",
        "            return\n",
        "supervised learning on the label -1",
        "tests/data/test_sources.py::test_a_source_may_be_partly_labelled",
    ),
]

# --------------------------------------------------------------------- Fast R-CNN's AlexNet and VGG-16

ROI = "ssljax/models/roi.py"
ALEXNET_VGG = "ssljax/models/alexnet_vgg.py"
T_ROI = "tests/models/test_roi.py"
T_FAST = "tests/methods/test_plain_detection.py"
PLAIN_MAP = (
    f"{T_FAST}::test_the_map_is_the_pretrained_networks_on_a_grid_that_starts_at_pixel_0[alexnet-15-6]"
)
PLAIN_PADDING = f"{T_FAST}::test_padding_changes_no_loss_and_no_detection"
FC6_8 = f"{T_FAST}::test_fc6_8_moves_the_full_layers_and_no_convolution_nor_statistics"

PLAIN_DETECTORS = [
    Mutation(
        "roi_pool_rounds_halves_to_even",
        ROI,
        "jnp.sign(corners) * jnp.floor(jnp.abs(corners) + 0.5)",
        "jnp.round(corners)",
        "C's round takes halves away from zero",
        f"{T_ROI}::test_the_maximum_and_its_gradient_equal_loops",
    ),
    Mutation(
        "roi_pool_without_the_last_cell",
        ROI,
        "side = jnp.clip(end - start + 1, 1, most)",
        "side = jnp.clip(end - start, 1, most)",
        "the cell of a box's end belongs to it",
        f"{T_ROI}::test_the_maximum_and_its_gradient_equal_loops",
    ),
    Mutation(
        "roi_pool_starts_from_zero",
        ROI,
        "bins = jnp.where(column[None, :, :, None], tall[:, None], -jnp.inf).max(2)",
        "bins = jnp.where(column[None, :, :, None], tall[:, None], 0.0).max(2)",
        "only a bin without cells is 0",
        f"{T_ROI}::test_the_maximum_and_its_gradient_equal_loops",
    ),
    Mutation(
        "roi_pool_keeps_maps",
        ROI,
        "jax.lax.map(jax.checkpoint(one), (rows, columns))",
        "jax.lax.map(one, (rows, columns))",
        "a backward pass keeps several maps for every box",
        f"{T_ROI}::test_a_gradient_keeps_no_map_per_box",
    ),
    Mutation(
        "pools_begin_at_the_border",
        ALEXNET_VGG,
        "before = (window - 1) // 2",
        "before = 0",
        "a cell lies half a window beside its pixel, and boxes beside what they show",
        PLAIN_MAP,
    ),
    Mutation(
        "plain_pool_spills_into_the_padding",
        ALEXNET_VGG,
        "x = x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))",
        "x = x if mask is None else x",
        "the maximum of a window in the padding is that of the image beside it",
        PLAIN_PADDING,
    ),
    Mutation(
        "plain_norms_see_the_padding",
        ALEXNET_VGG,
        "self._conv(layer, x, train=False, mask=mask)",
        "self._conv(layer, x, train=False)",
        "padded zeros stop being zero after a norm",
        PLAIN_PADDING,
    ),
    Mutation(
        "one_dropout_for_all_images",
        DETECTION_METHOD,
        "jax.random.fold_in(jax.random.fold_in(key, index), 2)",
        "jax.random.fold_in(jax.random.fold_in(key, 0 * index), 2)",
        "what is dropped follows neither image nor place",
        f"{T_FAST}::test_what_is_dropped_follows_the_image_and_the_step",
    ),
    Mutation(
        "fc6_8_trains_the_norms",
        DETECTOR,
        'and layer not in ("fc6", "fc7")',
        'and layer.startswith("conv")',
        "gains and offsets of the convolutions' norms are trained in FC6-8",
        FC6_8,
    ),
    Mutation(
        "fc6_8_decays",
        DETECTION_METHOD,
        'still=still if net.body.trained != "all" else None',
        "still=None",
        "weight decay moves what has no gradient",
        FC6_8,
    ),
    Mutation(
        "all_background_counts",
        DETECTION_METHOD,
        "jnp.where(there & ~far, labels, -1)",
        "jnp.where(there, labels, -1)",
        "Fast R-CNN's background overlaps a true box by 0.1 at least",
        f"{T_FAST}::test_a_region_that_overlaps_no_true_box_enough_is_not_learned_from",
    ),
    Mutation(
        "suppression_at_one_half",
        DETECTION_METHOD,
        "score=settings.score, threshold=settings.overlap)",
        "score=settings.score)",
        "Fast R-CNN suppresses from an IoU of 0.3 on",
        PLAIN_PADDING,
    ),
]


MUTATIONS = [
    *LOSSES,
    *METHOD,
    *OPTIMIZER,
    *NETWORK,
    *AUGMENTATION,
    *NAMED_VIEWS,
    *ORDER_AND_STATE,
    *PROTOCOLS,
    *FOLLOWERS,
    *DEIT_DATA,
    *HOSTS,
    *CONVERSION,
    *CLUSTERING,
    *FOLDERS,
    *CHECKPOINTS,
    *IMAGES,
    *SETTINGS_AND_TERMINAL,
    *LINEAR_EVALUATION,
    *PAPERS_VIEWS,
    *SIMCLR_V2,
    *PAPERS_RECIPES,
    *FIGURES,
    *ROBUSTNESS,
    *BEIT_AND_DVAE,
    *NOISY_STUDENT,
    *CMC,
    *CPC,
    *VIEW_FOLDERS,
    *DETECTION,
    *FASTER_RCNN,
    *ANNOTATED,
    *SEGMENTATION,
    *FINE_TUNING,
    *PREDICTIVE,
    *LOOSE_ENDS,
    *PLAIN_DETECTORS,
]


def mutated(mutation: Mutation) -> str:
    """The text of the file with the bug in it.

    Raises:
        ValueError: `old` does not occur exactly once, or the result is not Python.
    """
    text = (ROOT / mutation.file).read_text()
    if (count := text.count(mutation.old)) != 1:
        raise ValueError(
            f"mutation {mutation.name}: its old text is in {mutation.file} {count} times, not once: "
            f"{mutation.old!r}"
        )
    text = text.replace(mutation.old, mutation.new)
    try:
        compile(text, mutation.file, "exec")
    except SyntaxError as error:
        raise ValueError(f"mutation {mutation.name} makes {mutation.file} unreadable: {error}") from error
    return text


@contextlib.contextmanager
def copy_of_source(mutation: Mutation | None = None) -> Iterator[Path]:
    """A temporary copy of ssljax, configs, tests and the tables in experiments, with the bug in it."""
    unneeded = shutil.ignore_patterns("__pycache__", "golden", "*.png", "*.npz", "training")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("ssljax", "configs", "tests", "experiments"):
            shutil.copytree(ROOT / part, folder / part, ignore=unneeded)
        (folder / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
        shutil.copy(ROOT / "pyproject.toml", folder)
        if mutation is not None:
            (folder / mutation.file).write_text(mutated(mutation))
        yield folder


def pytest_in(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run pytest in a folder. Returns its exit code and its output: failures with reasons, no tracebacks."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "COLUMNS": "400",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CI": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-rf",
        *tests,
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def survivor(mutation: Mutation) -> str:
    """Run the tests on the bug and say what is wrong; "" if an assertion fails, as it should.

    Raises:
        ValueError: the mutation does not fit the source, see `mutated`.
    """
    with copy_of_source(mutation) as folder:
        code, output = pytest_in(folder, mutation.tests.split())
    if code == 0:
        return f"SURVIVED: {mutation.tests} passed"
    failure = re.search(r"^FAILED (\S+)(?: - (.*))?$", output, re.MULTILINE)
    if code != 1 or failure is None:
        return f"no test ran to its end (exit code {code}):\n{output}"
    if not (failure[2] or "").startswith(("AssertionError", "assert", "Failed: DID NOT RAISE")):
        return f"crashed instead of computing something wrong: {failure[0]}"
    return ""


def check_without_bugs(chosen: Sequence[Mutation]) -> None:
    """Check that the tests pass without any bug, because a test that fails anyway catches nothing.

    Raises:
        SystemExit: a test fails.
    """
    tests = {test for mutation in chosen for test in mutation.tests.split()}
    with copy_of_source() as folder:
        code, output = pytest_in(folder, sorted(tests))
    if code:
        raise SystemExit(f"the tests fail without any mutation:\n{output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the mutations and print which were caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="the mutation of this name")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once")
    flags = parser.parse_args(argv)
    chosen = [mutation for mutation in MUTATIONS if flags.only in ("", mutation.name)]
    if not chosen:
        names = ", ".join(mutation.name for mutation in MUTATIONS)
        raise SystemExit(f"no mutation {flags.only!r}; there are {names}")
    check_without_bugs(chosen)

    def one(mutation: Mutation) -> bool:
        begin = time.perf_counter()
        wrong = survivor(mutation)
        seconds = time.perf_counter() - begin
        verdict = "NOT CAUGHT" if wrong else "caught"
        print(f"{verdict:10}  {mutation.name:36} {seconds:5.1f} s  {wrong or mutation.bug}", flush=True)
        return not wrong

    with ThreadPoolExecutor(flags.jobs) as pool:
        caught = sum(pool.map(one, chosen))
    print(f"{caught} of {len(chosen)} caught")
    sys.exit(caught != len(chosen))


if __name__ == "__main__":
    main()
