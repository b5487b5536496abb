"""The dVAE's recipe as a piece of a config, for configs/dvae.py and the first stage of configs/beit.py."""

from __future__ import annotations

from ml_collections import ConfigDict

# Encoder and decoder of DALL-E: 53,786,240 and 43,829,766 parameters, one code for 8 x 8 pixels.
DALLE = dict(groups=4, hidden=256, blocks=2, vocabulary=8192, pixels="dall-e")
# Of 9/8 to 12/8 of the result, rounded (listing 1).
DALLE_CROPS = dict(crop="dalle", min_area=0.444, max_area=0.79, interpolation="area")


def dvae(c: ConfigDict, *, epochs: int, batch_size: int, **network: int | str) -> ConfigDict:
    """DALL-E's training (appendix A.2) on a data set.

    The schedules are parts of the run, as in the paper's 3 million updates: the weight of the KL rises within
    5,000 of them, the temperature falls within 150,000, the learning rate within 1,200,000.

    Args:
        c: the data set, with the views of training.
        epochs, batch_size: of the training.
        network: what differs from DALLE; `codebook` and `dtype` too.
    """
    c.method = "dvae"
    c.epochs = epochs
    c.batch_size = batch_size
    c.views = dict(one=dict())
    channels = c.data.channels
    c.augment.update(
        mean=(0.0,) * channels, std=(1.0,) * channels, jitter_probability=0.0, grayscale_probability=0.0
    )
    c.model = dict(name="dvae", codebook=128, dtype=c.model.dtype, **DALLE)
    c.model.update(network)
    c.dvae = dict(
        loss="logit_laplace",  # [P]
        kl_weight=6.6,  # [P]
        kl_share=1 / 600,  # [P]
        temperature=1 / 16,  # [P]
        temperature_share=0.05,  # [P]
    )
    c.ema = dict(decay=0.999)  # [P]
    c.optim = dict(
        name="beit_adamw",
        learning_rate=1e-4,  # [P]
        scaling="none",
        weight_decay=1e-4,  # [P]
        end=1.25e-6,  # [P]
        cosine_share=0.4,  # [P]
    )
    c.eval_every_epochs = 0  # a tokenizer is judged by what it reconstructs
    c.checkpoint.best = ""
    c.evaluate.protocols = ("reconstruction",)
    return c


def short_dvae(c: ConfigDict) -> ConfigDict:
    """A short run on small images: a larger learning rate, an average over fewer steps, slower schedules [X].

    A token stands for 16 pixels there, not for 64, and the KL weighs less.
    """
    c.optim.update(learning_rate=6e-3, end=6e-5, cosine_share=1.0)
    c.ema.decay = 0.99
    c.dvae.update(temperature_share=0.5, kl_share=0.05, kl_weight=2.0 * c.data.channels)
    return c
