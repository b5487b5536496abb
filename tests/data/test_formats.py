"""Files that only Pillow reads rightly: upright, opaque, of many formats, and alike for both decoders."""

import re

import numpy as np
import pytest
from PIL import Image

from ssljax import config
from ssljax.data import crops, decode, formats, images, sources
from tests.data.test_damage import cut, picture, saved

SIZE = (16, 16)
LEFT_BRIGHT = np.where(np.arange(16) < 8, 200, 40).astype(np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)


def by_tensorflow(content):
    return crops.decode_now(content, 3)


def by_pillow(content):
    return decode.decode(content, 16, 3)


@pytest.fixture(params=[by_tensorflow, by_pillow])
def decoded(request):
    """What a decoder makes of a file of a folder."""
    return lambda content, background="white": request.param(formats.plain(content, background))


def see_through(mode="RGBA"):
    """Red, but transparent in the left half, where the hidden pixels are black."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, 8:] = (255, 0, 0, 255)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("background, behind", [("white", 255), ("black", 0)])
def test_transparent_pixels_show_the_background(decoded, kind, background, behind):
    settings = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(saved(see_through(), kind, **settings), background)
    assert (found[:, :8] == behind).all() and (found[:, 8:] == (255, 0, 0)).all()


def test_half_transparent_pixels_are_mixed_with_the_background(decoded):
    grey = Image.fromarray(np.full((16, 16, 4), (100, 100, 100, 128), np.uint8))
    expected = round((128 * 100 + 127 * 255) / 255)
    assert np.abs(decoded(saved(grey, "PNG")).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_may_have_a_transparent_colour(decoded, kind):
    image = Image.fromarray(np.repeat([[0] * 8 + [1] * 8], 16, 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    found = decoded(saved(image, kind, transparency=0))
    assert (found[:, :8] == 255).all() and (found[:, 8:] == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation, turn", [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_is_upright_as_its_exif_says(decoded, kind, orientation, turn):
    exif = Image.Exif()
    exif[formats.ORIENTATION] = orientation
    settings = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    content = saved(Image.fromarray(LEFT_BRIGHT), kind, exif=exif, **settings)
    expected = np.rot90(LEFT_BRIGHT, turn)  # 6 asks for a quarter turn clockwise, three counter-clockwise
    assert np.abs(decoded(content).astype(int) - expected).max() < 12


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_read_and_the_first_frame_counts(decoded, kind):
    image = Image.fromarray(LEFT_BRIGHT)
    settings = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "blue")]} if kind != "BMP" else {}
    if kind == "WEBP":
        settings["lossless"] = True
    np.testing.assert_array_equal(decoded(saved(image, kind, **settings)), LEFT_BRIGHT)


def test_sixteen_bits_keep_their_range(decoded):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = decoded(saved(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(found, np.repeat((ramp >> 8)[..., None], 3, 2))


def test_a_tiff_of_sixteen_bits_keeps_its_range_also_as_32_bit_integers(decoded):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for pixels in (ramp, ramp.astype(np.int32), ramp // 256):  # the last is dark
        found = decoded(saved(Image.fromarray(pixels), "TIFF"))
        np.testing.assert_array_equal(found, np.repeat((pixels >> 8)[..., None], 3, 2))


@pytest.mark.parametrize(
    "dtype, top, values",
    [
        (np.float32, 1, "floats from 0 to 1 (mode F)"),
        (np.float32, 255, "floats from 0 to 255 (mode F)"),
        (np.int32, 200, "32-bit integers from 0 to 200 (mode I)"),
        (np.int32, 70_000, "32-bit integers from 0 to 70000 (mode I)"),
    ],
)
def test_values_that_may_mean_any_brightness_are_refused(tmp_path, dtype, top, values):
    image = Image.fromarray(np.linspace(0, top, 256).reshape(16, 16).astype(dtype))
    file = tmp_path / "depth.tif"
    image.save(file)
    with pytest.raises(ValueError, match=re.escape(f"its pixels are {values}") + ".* 8 or 16 bits"):
        by_pillow(formats.plain(file.read_bytes(), "white"))
    c = config.digits()
    for crop_on in ("device", "host"):
        c.data.update(image_size=16, channels=3, crop_on=crop_on)
        with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read as an image (its pixels are")):
            images.source([file], c.data)
    with pytest.raises(ValueError, match=re.escape(f"image 0 is a Pillow image of {values}")):
        images.source([image], c.data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_plain_file_passes_through_untouched(kind):
    content = saved(picture(), kind)
    assert formats.plain(content, "white") is content


def test_a_damaged_file_is_left_to_the_decoder_that_says_what_is_wrong():
    exif = Image.Exif()
    exif[formats.ORIENTATION] = 6
    content = cut(saved(picture(), "JPEG", exif=exif), 0.5)
    with pytest.raises(ValueError, match="its data end before the last pixel"):
        by_pillow(formats.plain(content, "white"))


def test_damaged_and_large_files_of_other_formats_are_found_before_training(tmp_path):
    (tmp_path / "half.webp").write_bytes(saved(picture(), "WEBP")[:300])
    wide = bytearray(saved(picture(), "BMP"))
    wide[18:26] = (40_000).to_bytes(4, "little") * 2  # what its header says of its size
    (tmp_path / "wide.bmp").write_bytes(wide)
    (tmp_path / "good.tif").write_bytes(saved(picture(), "TIFF"))
    found = {path.name: decode.problem_with(str(path)) for path in tmp_path.iterdir()}
    assert found["good.tif"] == "" and "178956970" in found["wide.bmp"] and found["half.webp"]


@pytest.mark.parametrize("crop_on", ["device", "host"])
def test_a_folder_of_many_formats_is_read_and_the_rest_is_counted(tmp_path, caplog, crop_on):
    for kind, ending in (("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "BMP"), ("TIFF", "tiff")):
        (tmp_path / f"a.{ending}").write_bytes(saved(see_through(), kind))
    for name in ("notes.txt", "more.TXT", "drawing.svg", "README"):
        (tmp_path / name).write_text("no image")

    c = config.folder()
    c.data.update(source=f"folder:{tmp_path}", labels="none", image_size=16, crop_on=crop_on, holdout=0.2)
    train = sources.load(c.data, "train")
    assert len(train) == 4 and len(sources.load(c.data, "test")) == 1
    assert caplog.text.count("2 .txt, 1 .svg, 1 without an ending") == 1

    pixels = train.images if crop_on == "device" else [by_tensorflow(x) for x in train.read(range(4))]
    corners = {tuple(image[0, 0]) for image in pixels}
    assert corners <= {(255, 255, 255), (0, 0, 0)} and (255, 255, 255) in corners


def test_pictures_for_a_trained_network_are_opaque_and_upright():
    c = config.digits()
    c.data.update(image_size=16, channels=3)
    turned = Image.fromarray(LEFT_BRIGHT)
    turned.getexif()[formats.ORIENTATION] = 6
    found = images.source([see_through(), np.asarray(see_through()), turned], c.data).images
    assert (found[:2, :, :8] == 255).all()
    np.testing.assert_array_equal(found[2], np.rot90(LEFT_BRIGHT, 3))


def test_exif_that_is_damaged_changes_nothing():
    content = saved(picture(), "JPEG")
    for exif in (b"MM\0*\0\0\0\x08\0\xff", b"", b"II*\0\xff\xff\xff\xff"):
        length = len(exif) + 8
        broken = content[:2] + b"\xff\xe1" + length.to_bytes(2, "big") + b"Exif\0\0" + exif + content[2:]
        assert not formats.needs_pillow(broken)
