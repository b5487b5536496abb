"""What makes a file no readable image, as far as the decoders do not say it themselves.

Both decoders (TensorFlow's and Pillow's) take the formats and the number of pixels that are allowed here, and
both take a JPEG that ends before its last pixel for an unreadable image.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF")  # as Pillow calls them; TensorFlow's decode_jpeg reads the same three

MAX_PIXELS = 178_956_970
"""An image with more pixels is unreadable: 0.5 GB as RGB, which a file of a few kB can ask for. The number is
that of Pillow, which refuses more than twice its MAX_IMAGE_PIXELS."""

OTHERS = {  # the first bytes of what one finds under the name .jpg
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"RIFF": "a WebP file",
    b"BM": "a BMP file",
    b"%PDF": "a PDF file",
    b"%!PS": "a PostScript file",
    b"<": "a web page or another text",
}
SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of JPEG that begin with the image's size
BARE = {0x01, *range(0xD0, 0xDA)}  # those without a length
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # none of those that occur among the pixels
TOO_EARLY = "its data end before the last pixel, the rest would be grey"
GREY = (63, 64, 127, 128)  # what the decoders make of pixels that are not there, in RGB or CMYK
ENDS = b"\xff\x00" * 16  # bits that belong to no code; they let the decoder finish what is whole


def read(path: str) -> bytes:
    """Read an image file.

    Raises:
        ValueError: it is not a file.
        OSError: it cannot be read.
    """
    require_file(path)
    with open(path, "rb") as file:
        return file.read()


def require_file(path: str) -> int:
    """Return the size of a file in bytes. Raise a ValueError if it is empty, or a folder or a pipe."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is a pipe, a socket or a device, not a file")
    if not found.st_size:
        raise ValueError("it is empty, 0 bytes")
    return found.st_size


def lasting(path: str, error: OSError) -> str:
    """What is wrong with a path that cannot be opened; "" if it may work the next time.

    A file that a disk or the network failed to give is not an unreadable image. Otherwise each host, and each
    start of a run, could leave out other ones.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied"
    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
        if os.path.islink(path):
            return f"it is a link to {os.readlink(path)}, which does not exist"
        return "there is no such file"
    return ""


def check_header(file: BinaryIO) -> str:
    """Check the format and the size of an image. Reads a few hundred bytes, or the first few KB.

    Args:
        file: at its beginning.

    Returns:
        One of FORMATS.

    Raises:
        ValueError: it is of another format, or has more than MAX_PIXELS pixels, or is a TIFF file that is
            `unscaled`.
    """
    head = file.read(32)
    if head[:3] == b"\xff\xd8\xff":
        kind = "JPEG"
        file.seek(2)
        width, height = _size_of_jpeg(file)
    elif head[:8] == b"\x89PNG\r\n\x1a\n":
        kind = "PNG"
        width, height = struct.unpack(">II", head[16:24].ljust(8, b"\0"))
    elif head[:4] == b"GIF8":
        kind = "GIF"
        width, height = struct.unpack("<HH", head[6:10].ljust(4, b"\0"))
    else:
        known = (name for first, name in OTHERS.items() if head.lstrip().startswith(first))
        what = next(known, f"not an image, it begins with {head[:8]!r}")
        if what == "a TIFF file" and (values := _unscaled_tiff(file)):
            raise ValueError(
                f"its pixels are {values}, which do not say what is white: save it with 8 or 16 bits a pixel"
            )
        raise ValueError(f"it is {what}; JPEG, PNG and, in folders, WebP, GIF, BMP and TIFF are read")
    check_size(width, height)
    return kind


def unscaled(image: Image.Image) -> str:
    """The kind and range of a picture's values if they may mean any brightness, for messages; else "".

    So may floats. So may integers of 32 bits, unless they are those of 16 bits and some need more than 8.
    """
    if image.mode not in ("F", "I") or image.format == "PNG":  # whose integers have 16 bits at most
        return ""
    low, high = (float(value) for value in np.ravel(image.getextrema()))
    if image.mode == "I" and low >= 0 and 255 < high < 2**16:
        return ""
    kind = "floats" if image.mode == "F" else "32-bit integers"
    return f"{kind} from {low:.6g} to {high:.6g} (mode {image.mode})"


def _unscaled_tiff(file: BinaryIO) -> str:
    """`unscaled` of a TIFF file, "" for a damaged one."""
    from PIL import Image

    try:
        file.seek(0)
        return unscaled(Image.open(file, formats=("TIFF",)))
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        return ""


def check_size(width: int, height: int) -> None:
    """Raise a ValueError if an image has more than MAX_PIXELS pixels."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width:,} x {height:,} = {width * height:,} pixels, and the bound is {MAX_PIXELS:,}, "
            "because the whole image is decoded into memory: shrink it"
        )


def _size_of_jpeg(file: BinaryIO) -> tuple[int, int]:
    """Width and height of a JPEG, read behind its first marker; zeros if the file ends before them."""
    while byte := file.read(1):
        if byte != b"\xff":
            continue  # as the decoders do
        while byte == b"\xff":
            byte = file.read(1)
        if not byte or byte == b"\0" or byte[0] in BARE:
            continue
        length = int.from_bytes(file.read(2), "big")
        if byte[0] in SIZES:
            height, width = struct.unpack(">xHH", file.read(5).ljust(5, b"\0"))
            return width, height
        file.seek(max(length - 2, 0), os.SEEK_CUR)
    return 0, 0


def ends_too_early(encoded: bytes) -> bool:
    """Whether an image that a decoder accepts is a JPEG that ends before its last pixel.

    The decoders fill the rest with grey and do not say so, if there is an end marker behind the last byte. So
    this takes as long as decoding it; ask only where the last pixel is grey.

    A progressive JPEG that has all of its pixels but lacks details of them does not end too early.
    """
    from PIL import Image

    if encoded[:3] != b"\xff\xd8\xff":
        return False
    markers = list(_markers(encoded))
    codes = [code for code, _, _ in markers]
    if 0xC2 in codes:  # progressive
        try:
            return not _all_details(markers)
        except (IndexError, KeyError):  # the decoder found its way, so it is not for us to judge
            return False
    if not {0xC0, 0xC1} & set(codes) or 0xD9 not in codes:
        return False
    end = next(at for code, at, _ in markers if code == 0xD9)
    try:
        image = Image.open(io.BytesIO(encoded[:end] + ENDS), formats=("JPEG",))
        image.draft(None, (1, 1))  # decodes an eighth of the pixels
        image.load()
    except OSError:
        return True
    return False


def _markers(encoded: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the markers of a JPEG in order: (code, position, content), up to the end marker."""
    at = 2
    while found := MARKER.search(encoded, at):
        code = found[1][0]
        at = found.end()
        content = b""
        if code not in BARE:
            length = int.from_bytes(encoded[at : at + 2], "big")
            content = encoded[at + 2 : at + length]
            at += length
        yield code, found.start(), content
        if code == 0xD9:
            return


def _all_details(markers: list[tuple[int, int, bytes]]) -> bool:
    """Whether the scans of a progressive JPEG hold all 64 frequencies of every component, to the last bit."""
    found: dict[int, set[int]] = {}
    for code, _, content in markers:
        if code == 0xC2:
            found |= {content[6 + 3 * i]: set() for i in range(content[5])}
        if code == 0xDA and content[-1] & 15 == 0:
            for i in range(content[0]):
                found[content[1 + 2 * i]] |= {*range(content[-3], content[-2] + 1)}
    return all(len(frequencies) == 64 for frequencies in found.values())
