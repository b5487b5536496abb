"""Read `config.views`: the named views of an image, each with its own recipe. No pixels, no random draws.

An entry holds what differs from `config.augment`, the view's `size` and `count`, and, in `of`, the name of
the view whose crop it shares:

    views=dict(one=dict(), two=dict(blur_probability=0.1, solarize_probability=0.2))  # one recipe per view
    views=dict(large=dict(count=2), small=dict(count=6, size=96, max_area=0.14))      # sizes and counts
    views=dict(patches=dict(size=224), tokens=dict(size=112, of="patches"))           # one crop, two sizes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssljax.config import view_names

TAKEN = (
    "image",
    "label",
    "labels",
    "index",
    "copy",
    "mask",
    "boxes",
)  # entries of a batch that are not views
GEOMETRY = ("crop", "min_area", "max_area", "aspect", "flip", "rotate", "shift", "zoom", "shear")


class View(NamedTuple):
    """One entry of `config.views`.

    Attributes:
        name: its key in `config.views`.
        augment: its recipe: `config.augment` with the view's overrides.
        size: side in pixels.
        count: how many views it stands for.
        first: the number of its first view; the others follow. The number is folded into the view's random
            key. An entry with `of` has the numbers of the view named there, so that all its draws are the
            same.
    """

    name: str
    augment: ConfigDict
    size: int
    count: int  # type: ignore[assignment]  # hides the method tuple.count, which nothing calls on a View
    first: int


def resolved(config: ConfigDict) -> tuple[View, ...]:
    """List the views in the order of `config.views`.

    A view with `of` starts from the recipe of the view it names. Its own overrides (size, interpolation,
    mean, ...) come on top.

    Args:
        config: reads `views`, `augment` and `data.image_size`.

    Raises:
        ValueError: there is no view, or the settings of a view are impossible (the message names it).
    """
    defaults = {"size": config.data.image_size, "count": 1, "of": ""}
    stated = {name: {**defaults, **config.views[name].to_dict()} for name in view_names(config)}
    if not stated:
        raise ValueError("config.views is empty: name at least one view, e.g. views=dict(one=dict())")

    firsts: dict[str, int] = {}
    drawn = 0
    for name, view in stated.items():
        _check(name, view, stated)
        if not view["of"]:
            firsts[name] = drawn
            drawn += view["count"]

    views = []
    for name, view in stated.items():
        recipe = _recipe(config.augment, stated, name)
        first = firsts[view["of"] or name]
        if recipe.crop == "dalle" and view["of"] and view["size"] != stated[view["of"]]["size"]:
            raise ValueError(
                f"config.views.{name}.size={view['size']}: with the crop 'dalle' it is that of {view['of']!r}"
            )
        views.append(View(name, recipe, view["size"], view["count"], first))
    return tuple(views)


def _check(name: str, view: Mapping[str, Any], stated: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a view whose settings are impossible, with a ValueError."""
    place = f"config.views.{name}"
    if name in TAKEN:
        raise ValueError(
            f"{place}: a batch has another entry of that name. Give the view a name that is none of "
            f"{', '.join(TAKEN)}"
        )
    for key in ("size", "count"):
        if view[key] < 1:
            raise ValueError(
                f"{place}.{key}={view[key]}: it must be at least 1. To have no such view, remove its entry"
            )
    if not view["of"]:
        return
    partners = [other for other, values in stated.items() if not values["of"]]
    if view["of"] not in partners:
        raise ValueError(
            f"{place}.of={view['of']!r} does not name a view with a crop of its own. Use one of: "
            f"{', '.join(partners) or '(there is none)'}"
        )
    count = stated[view["of"]]["count"]
    if view["count"] != count:
        raise ValueError(
            f"{place}.count={view['count']}, but {view['of']!r}, whose crops it shares, has count {count}: "
            f"set {place}.count={count}"
        )
    own = [key for key in GEOMETRY if key in view]
    if own:
        raise ValueError(
            f"{place}.{own[0]}={view[own[0]]!r} does not go with of={view['of']!r}: the shared crop is drawn "
            f"for that view. Set config.views.{view['of']}.{own[0]} instead, or remove `of`"
        )


def _recipe(augment: ConfigDict, stated: Mapping[str, Mapping[str, Any]], name: str) -> ConfigDict:
    """Make the recipe of a view: `config.augment`, then its partner's overrides, then its own."""
    recipe = augment.copy_and_resolve_references().unlock()
    partner = stated[name]["of"]
    overrides = [stated[partner], stated[name]] if partner else [stated[name]]
    for view in overrides:
        recipe.update({key: value for key, value in view.items() if key not in ("size", "count", "of")})
    return recipe.lock()


def check_channels(config: ConfigDict) -> None:
    """Refuse a normalisation of another number of channels than the images have, and colours of no colours.

    Raises:
        ValueError: names the view and what to type.
    """
    channels = config.data.channels
    folders = tuple(config.data.get("view_folders", ()))
    for view in resolved(config):
        _check_folders(view, folders)
        if view.augment.color_space != "rgb" and channels != 3 and not folders:
            raise ValueError(
                f"config.views.{view.name}: color_space={view.augment.color_space!r} needs colours, and "
                f"data.channels={channels}: set --config.augment.color_space=rgb"
            )
        for key in ("mean", "std"):
            stated = tuple(view.augment[key])
            if len(stated) != channels and not (folders and len(stated) == 1):
                raise ValueError(
                    f"config.views.{view.name}: {key}={stated} has {len(stated)} entries, and data.channels="
                    f"{channels}: give one number per channel, e.g. --config.augment.{key}='"
                    f"({','.join(['0.5'] * channels)},)'"
                )


def _check_folders(view: View, folders: tuple[str, ...]) -> None:
    """Refuse what changes or converts colours where an image is several views.

    Raises:
        ValueError: names the setting and what to type.
    """
    augment = view.augment
    if folders and augment.color_space != "rgb" and not folders[0].endswith(":3"):
        raise ValueError(
            f"config.views.{view.name}: color_space={augment.color_space!r} converts the first view, and "
            f"data.view_folders begins with {folders[0]}: put a folder of colour images first, or set "
            "--config.augment.color_space=rgb"
        )
    for key in ("jitter_probability", "grayscale_probability"):
        if folders and augment[key] > 0.0:
            raise ValueError(
                f"config.views.{view.name}: {key}={augment[key]} changes colours, and not all of "
                f"data.view_folders={','.join(folders)} have any: set --config.augment.{key}=0"
            )


class Resizing(NamedTuple):
    """How crops and evaluation images are resized.

    Attributes:
        library: "tensorflow" or "pillow".
        method: "bicubic", "bilinear", "lanczos3" or "area".
        antialias: whether TensorFlow stretches its kernel when an image shrinks. Pillow always does.
    """

    library: str
    method: str
    antialias: bool


def resizing(augment: ConfigDict) -> Resizing:
    """Read how a recipe resizes. A warp has no interpolation of its own: evaluation is then bicubic."""
    if augment.crop == "affine":
        return Resizing("tensorflow", "bicubic", augment.antialias)
    if augment.resize == "pillow":
        return Resizing("pillow", augment.interpolation, True)
    return Resizing("tensorflow", augment.interpolation, augment.antialias)


def total(config: ConfigDict) -> int:
    """Count the views drawn per image. Views that share the crop of another do not count."""
    return max(view.first + view.count for view in resolved(config))


def host_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Return the shapes, per example, of the uint8 crops that the host makes with data.crop_on="host".

    Returns:
        If all views have one size: {"image": (V, S, S, C)}, with all views in order. If sizes differ:
        (count, size, size, C) by the view's name.
    """
    views = resolved(config)
    channels = config.data.channels
    if len({view.size for view in views}) == 1:
        count = sum(view.count for view in views)
        size = views[0].size
        return {"image": (count, size, size, channels)}
    return {view.name: (view.count, view.size, view.size, channels) for view in views}
