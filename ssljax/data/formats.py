"""Turns the files that people have into what both decoders read alike: an upright, opaque JPEG or PNG.

Pillow does it, for those files alone that need it: a photograph that its camera held sideways (EXIF), a
picture with transparent pixels, and a WebP, GIF, BMP or TIFF file, of which the first frame counts. All
others pass through as they are.
"""

from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ssljax.data import damage

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

CONVERTED = ("WEBP", "BMP", "TIFF")  # as Pillow calls them; the decoders refuse them
BEGINNINGS = (b"RIFF", b"BM", b"II*\0", b"MM\0*")

ORIENTATION = 0x0112  # EXIF's tag
WITH_ALPHA = (4, 6)  # colour types of PNG
EXIF = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
FIRST = 2**16  # bytes among which the EXIF of a JPEG begins


def plain(encoded: bytes, background: str) -> bytes:
    """The same picture for both decoders.

    Args:
        encoded: an image file.
        background: the colour behind transparent pixels, by a name that Pillow knows.

    Returns:
        The bytes as they are, or a PNG of the upright, opaque picture. A file that is damaged or
        `damage.unscaled` stays as it is, so that the decoder says what is wrong with it.
    """
    if not needs_pillow(encoded):
        return encoded
    from PIL import Image, ImageOps

    if damage.ends_too_early(encoded):
        return encoded
    try:
        check(io.BytesIO(encoded))
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=damage.FORMATS + CONVERTED)
        image = ImageOps.exif_transpose(opaque(image, background))
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=1)
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        return encoded
    return out.getvalue()


def check(file: BinaryIO) -> str:
    """Check the format and the size of an image, see `damage.check_header`. Reads only its header.

    Args:
        file: at its beginning.

    Returns:
        One of `damage.FORMATS` or CONVERTED.

    Raises:
        ValueError: it is of another format, damaged in its header, or too large.
    """
    head = file.read(4)
    file.seek(0)
    if not head.startswith(BEGINNINGS):
        return damage.check_header(file)
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=CONVERTED)
    except UnidentifiedImageError:
        return damage.check_header(file)  # which says what it looks like
    damage.check_size(*image.size)
    assert image.format is not None
    return image.format


def needs_pillow(encoded: bytes) -> bool:
    """Whether a file is not an upright, opaque JPEG or PNG. Looks at its first bytes."""
    if encoded[:3] == b"\xff\xd8\xff":
        found = EXIF.search(encoded, 0, FIRST)
        return found is not None and _turned(encoded[found.end() : found.end() + FIRST])
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        before_pixels = encoded[: encoded.find(b"IDAT")]
        return encoded[25] in WITH_ALPHA or b"tRNS" in before_pixels or b"eXIf" in before_pixels
    return True


def opaque(image: Image.Image, background: str) -> Image.Image:
    """The picture in RGB or grey, of 8 bits, over a background; it keeps its EXIF.

    Raises:
        ValueError: it is `damage.unscaled`.
    """
    from PIL import Image

    exif = image.getexif()
    if values := damage.unscaled(image):
        raise ValueError(values)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip, not scale
        image = grey_of_16_bits(image)
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(over, image.convert("RGBA"))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.info["exif"] = exif.tobytes()
    return image


def grey_of_16_bits(image: Image.Image) -> Image.Image:
    """A picture of 16-bit grey as 8-bit grey: the upper byte of every pixel."""
    from PIL import Image

    return Image.fromarray((np.asarray(image, np.int64) >> 8).astype(np.uint8))


def _turned(exif: bytes) -> bool:
    """Whether the orientation in the TIFF header of an EXIF segment is another than upright."""
    order = ">" if exif[:2] == b"MM" else "<"
    try:
        (at,) = struct.unpack(f"{order}I", exif[4:8])
        (count,) = struct.unpack(f"{order}H", exif[at : at + 2])
        for i in range(count):
            first = at + 2 + 12 * i
            tag, _, _, value = struct.unpack(f"{order}HHIH", exif[first : first + 10])
            if tag == ORIENTATION:
                return 2 <= value <= 8
    except struct.error:  # the segment is damaged or incomplete
        return False
    return False
