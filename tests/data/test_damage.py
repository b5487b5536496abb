"""What is no readable image, for both decoders, and what the message says it is."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssljax.data import crops, damage, decode


def picture(mode="RGB", size=(150, 110)):
    """A smooth image with some noise, so that a JPEG of it has many bytes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)).resize(size, Image.BICUBIC)
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse, int) + noise, 0, 255).astype(np.uint8)).convert(mode)


def saved(image, kind="JPEG", **settings):
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def cut(jpeg, share=0.5):
    """A JPEG that ends too early, with an end marker."""
    return jpeg[: int(len(jpeg) * share)].rstrip(b"\xff") + b"\xff\xd9"


def holed(content, size=1000):
    """Zeros in the middle."""
    half = len(content) // 2
    return content[:half] + bytes(size) + content[half + size :]


def png(width, height):
    """A PNG of one bit per pixel and of any size, which takes a thousandth of its pixels in bytes."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 2) * 10), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def by_tensorflow(content):
    return crops.decode_now(content, 3)


def by_pillow(content):
    return decode.decode(content, 32, 3)


@pytest.fixture(params=[by_tensorflow, by_pillow])
def decoded(request):
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"restart_marker_blocks": 4}], ids=str)
def test_a_jpeg_that_ends_too_early_is_unreadable(decoded, mode, settings):
    whole = saved(picture(mode), **settings)
    assert decoded(whole).ndim == 3
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match="its data end before the last pixel, the rest would be grey"):
            decoded(cut(whole, share))
    with pytest.raises((ValueError, OSError)):
        decoded(whole[: len(whole) // 2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_hole_in_the_middle_is_found(decoded, kind):
    with pytest.raises((ValueError, OSError)):
        decoded(holed(saved(picture(), kind)))


def test_a_progressive_jpeg_may_lack_details_but_not_pixels(decoded):
    whole = saved(picture(size=(400, 300)), progressive=True)
    assert decoded(whole).ndim == 3 and decoded(cut(whole, 0.7)).ndim == 3
    with pytest.raises(ValueError, match="its data end before the last pixel"):
        decoded(cut(whole, 0.08))


@pytest.mark.parametrize("grey", [64, 127, 128])
@pytest.mark.parametrize("settings", [{}, {"progressive": True}], ids=str)
def test_a_grey_image_is_whole(decoded, grey, settings):
    image = picture()
    image.paste((grey,) * 3, (0, 60, 150, 110))
    content = saved(image, quality=100, **settings)
    assert decoded(content).ndim == 3
    assert decoded(content + b"what cameras append" + content).ndim == 3


@pytest.mark.parametrize(
    "kind, what",
    [("TIFF", "a TIFF file"), ("WEBP", "a WebP file"), ("BMP", "a BMP file"), ("EPS", "a PostS")],
)
def test_another_format_is_named_and_not_decoded(decoded, kind, what):
    with pytest.raises(ValueError, match=f"it is {what}.*; JPEG, PNG and"):
        decoded(saved(picture(), kind))


@pytest.mark.parametrize(
    "content, what",
    [(b"<!doctype html><html>", "a web page"), (b"abcdefgh", "not an image, it begins with b'abcdefgh'")],
)
def test_what_is_no_image_at_all(decoded, content, what):
    with pytest.raises(ValueError, match=f"it is {what}.*; JPEG, PNG and"):
        decoded(content)


def resized(jpeg, width, height):
    """A JPEG whose header says another size."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def with_thumbnail(jpeg):
    """As from a camera: a long segment with another JPEG in it comes before the size."""
    inside = bytes(20_000) + saved(picture(size=(16, 16)))
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(inside) + 2) + inside + jpeg[2:]


def with_junk(jpeg):
    """Bytes between two segments, which the decoders skip."""
    end = 4 + struct.unpack(">H", jpeg[4:6])[0]
    return jpeg[:end] + b"junk\xff\xff\x00\xff\xd0" + jpeg[end:]


@pytest.mark.parametrize("odd", [bytes, with_thumbnail, with_junk])
def test_one_bound_on_pixels_for_both_decoders(decoded, odd):
    for content in (png(20_990, 29_700), odd(resized(saved(picture()), 60_000, 20_000))):
        with pytest.raises(
            ValueError, match=r"it has .* = .*,000 pixels, and the bound is 178,956,970.*shrink"
        ):
            decoded(content)
    assert decoded(odd(saved(picture()))).ndim == 3
    damage.check_header(io.BytesIO(png(13_377, 13_377)))  # just below
    with pytest.raises(ValueError, match="13,378 x 13,378"):
        damage.check_header(io.BytesIO(png(13_378, 13_378)))


def test_a_file_is_checked_before_training_by_its_header(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("/nowhere/at all.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"%PDF-1.7 and so on")
    (tmp_path / "large.png").write_bytes(png(20_000, 20_000))
    (tmp_path / "good.jpg").write_bytes(with_thumbnail(saved(picture())))
    found = {path.name: decode.problem_with(str(path)) for path in tmp_path.iterdir()}
    assert found == {
        "folder.jpg": "it is a folder",
        "pipe.jpg": "it is a pipe, a socket or a device, not a file",
        "link.jpg": "it is a link to /nowhere/at all.jpg, which does not exist",
        "circle.jpg": f"it is a link to {tmp_path / 'circle.jpg'}, which does not exist",
        "empty.jpg": "it is empty, 0 bytes",
        "page.jpg": "it is a PDF file; JPEG, PNG and, in folders, WebP, GIF, BMP and TIFF are read",
        "large.png": "it has 20,000 x 20,000 = 400,000,000 pixels, and the bound is 178,956,970, because the "
        "whole image is decoded into memory: shrink it",
        "good.jpg": "",
    }
    with pytest.raises(ValueError, match="it is a pipe"):
        damage.read(str(tmp_path / "pipe.jpg"))


@pytest.mark.parametrize("number, said", [(errno.EACCES, "permission denied"), (errno.EIO, "")])
def test_a_failing_disk_is_no_unreadable_image(tmp_path, monkeypatch, number, said):
    """With on_bad_image="skip" it would silently change the stream, on one host only."""
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(picture()))

    def fails(*_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("builtins.open", fails)
    if said:
        assert decode.problem_with(str(path)) == said
        return
    with pytest.raises(
        ValueError, match="a.jpg could not be read .Input/output error.*start the same command"
    ):
        decode.problem_with(str(path))
