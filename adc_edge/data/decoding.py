"""An image file -> pixels as a viewer shows them: 8-bit grey or RGB, upright, without alpha.

Alpha is composed on white, which is what viewers and browsers show behind a picture. An animation and a file of several
pages give their first frame. Colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from adc_edge.errors import DataError

Image.MAX_IMAGE_PIXELS = None  # Pillow refuses 180 megapixels as an attack; the limit below has a name in its error
_MOST_PIXELS = 500_000_000
_BIG_PIXELS = 40_000_000  # above this, one image is decoded at a time: 160 MB and more each
_NARROWEST = 250  # long side v short side: the short one becomes the model's size before the crop
_one_big_image = threading.Lock()
# Formats that Pillow names but cannot draw by itself (data, films), or draws by another program.
_NOT_DRAWN = {"BUFR", "EMF", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_12_BITS, _16_BITS = 4095, 65535
_ORIENTATION, _BITS, _PHOTOMETRIC, _MAX_VALUE, _SAMPLE_MAX = 274, 258, 262, 281, 341  # tags of EXIF and TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FLOAT_REMEDY = (
    "scale them, for example Image.fromarray((255 * (x - x.min()) / np.ptp(x)).astype('uint8')).save('new.png') "
    "with x = np.asarray(Image.open(file))"
)
_INTEGER_REMEDY = (
    "convert it, for 12 bits by Image.fromarray((np.asarray(Image.open(file)) * (255 / 4095)).astype('uint8'))"
    ".save('new.png')"
)
_COLOUR_REMEDY = (
    "convert it to 8 bits a channel with the program that wrote it: Pillow reads only the upper byte of each value"
)


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Names of the formats that this Pillow can draw, in the order in which it tries them."""
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _NOT_DRAWN)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """File suffixes of these formats, in lower case: ``.jpg``, ``.avif``, …"""
    formats = image_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def decode_image(path: Path) -> Image.Image:
    """Return the image in a file as a viewer shows it, in mode L or RGB.

    Raises:
        DataError: the file is no image or damaged, too large or too narrow, or has pixels without a known range.
            ``received`` is the file's folder and name and a short reason.
    """
    with _named(path), path.open("rb") as file, _opened(file) as image, _turn_of(image):
        return _decode(image, file)


def check_header(path: Path) -> None:
    """Raise DataError as ``decode_image`` does, for what the first bytes of a file show."""
    with _named(path), path.open("rb") as file, _opened(file):
        pass


def flatten(image: Image.Image, top: int | None = None) -> Image.Image:
    """Return a loaded image in mode L or RGB: integers scaled to 8 bits, alpha composed on white.

    Args:
        image: an image of any mode.
        top: the integer that means white, if the file declares it.

    Raises:
        DataError: float pixels, or integers without a known range.
    """
    if image.mode == "F":
        raise DataError("float pixels", "8 or 16 bits a channel", _FLOAT_REMEDY)
    if image.mode.startswith("I"):
        return _eight_bits(image, top)
    if image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned and mirrored as its EXIF orientation says."""
    return _turned(image, _orientation(image))


def reason_of(error: Exception) -> str:
    """Return a few words that say why an image could not be read."""
    if isinstance(error, DataError):
        return error.received
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    text = " ".join(str(error).split())
    if "truncated" in text.lower():
        return "truncated"
    if isinstance(error, MemoryError):
        return "too large for this machine's memory"
    return f"damaged ({text[:80] or type(error).__name__})"


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn any exception into a DataError that begins with the file's folder and name."""
    try:
        yield
    except Exception as error:  # on a broken file Pillow raises OSError, SyntaxError, ValueError, TypeError, …
        name = f"{path.parent.name}/{path.name}".encode("utf-8", "backslashreplace").decode()
        expected, remedy = "an image that Pillow can read", "mend the file, or leave it out"
        if isinstance(error, DataError):
            expected, remedy = error.expected, error.remedy
        raise DataError(f"{name}: {reason_of(error)}", expected, remedy) from error


def _turn_of(image: Image.Image) -> contextlib.AbstractContextManager[object]:
    return _one_big_image if image.width * image.height > _BIG_PIXELS else contextlib.nullcontext()


def _opened(file: BinaryIO) -> Image.Image:
    if not file.peek(1):  # type: ignore[attr-defined]
        raise DataError("empty file", "an image that Pillow can read", "copy it again, or leave it out")
    image = Image.open(file, formats=image_formats())
    if not 0 < image.width * image.height <= _MOST_PIXELS:
        size = f"{image.width}x{image.height} pixels"
        raise DataError(
            f"too large: {size}" if image.width * image.height else f"no pixels: {size}",
            f"1 to {_MOST_PIXELS // 1_000_000} megapixels",
            "make it smaller, or leave it out",
        )
    if max(image.size) > _NARROWEST * min(image.size):
        size = f"{image.width}x{image.height} pixels"
        raise DataError(f"too narrow: {size}", f"sides of at most {_NARROWEST} to 1", "crop it, or leave it out")
    if image.mode == "F":
        flatten(image)
    return image


def _decode(image: Image.Image, file: BinaryIO) -> Image.Image:
    is_deep, clear = _is_cut_to_8_bits(image), _clear_colour(image)
    top, is_negative = _declared_top(image, file), _is_negative(image)
    image.load()
    if clear is not None:
        image.info["transparency"] = clear
    orientation = _orientation(image)
    if is_deep:
        _check_range(image, top)
    flat = flatten(image, top)
    flat = Image.eval(flat, lambda value: 255 - value) if is_negative else flat
    return _turned(flat, orientation)


def _is_cut_to_8_bits(image: Image.Image) -> bool:
    """Whether Pillow will keep only the upper byte of each value: 16-bit colour of PNG, TIFF and SGI."""
    bits = getattr(image, "tag_v2", {}).get(_BITS) or (8,)
    is_deep = max(bits) > 8 or re.search(r";16[BLN]|SGI16|sgi_rle.*, 2\)", str(getattr(image, "tile", "")))
    return bool(is_deep) and not image.mode.startswith(("I", "F"))


def _check_range(image: Image.Image, top: int | None) -> None:
    """Raise DataError if the upper bytes of a 16-bit colour image say that it has fewer bits; black may be black."""
    names = [name for name in image.getbands() if name != "A"]
    high = max(int(image.getchannel(name).getextrema()[1]) for name in names)  # type: ignore[arg-type]
    limit = top if top is not None and _12_BITS < top < _16_BITS else _12_BITS
    if 0 < high <= limit >> 8:
        raise _unknown_range(f"16-bit pixels below {limit + 1:,}", _COLOUR_REMEDY)


def _clear_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """Return a PNG's transparent colour as its loaded pixels have it, where Pillow leaves it in the file's bits."""
    found = image.info.get("transparency")
    rawmode = re.search(r"'(1|L;2|L;4|RGB;16B)'", str(getattr(image, "tile", "")))
    if image.format != "PNG" or rawmode is None:
        return None
    if isinstance(found, tuple):
        return tuple(value >> 8 for value in found) if rawmode[1] == "RGB;16B" else None
    return found * {"1": 255, "L;2": 85, "L;4": 17}.get(rawmode[1], 1) if isinstance(found, int) else None


def _declared_top(image: Image.Image, file: BinaryIO) -> int | None:
    """Return the integer that means white in a file with integers, or None where it does not say."""
    if image.format in ("PPM", "JPEG2000"):  # their plugins scale to 16 bits
        return _16_BITS
    if image.format == "PNG" and image.mode.startswith("I"):
        bits = _significant_bits(file)
        return None if bits is None else (1 << bits) - 1
    tags = getattr(image, "tag_v2", {})
    found = tags.get(_SAMPLE_MAX, tags.get(_MAX_VALUE))
    if found is not None:
        found = found[0] if isinstance(found, tuple) else found
        return int(found) if 0 < found <= _16_BITS else None
    return _12_BITS if tags.get(_BITS) == (12,) else None


def _significant_bits(file: BinaryIO) -> int | None:
    """Return the bits that a grey PNG declares in its sBIT chunk, which Pillow does not read."""
    position, bits = file.tell(), None
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        if head[4:] == b"sBIT":
            bits = file.read(1)[0]
            break
        file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    file.seek(position)
    return bits if bits is not None and 0 < bits <= 16 else None


def _is_negative(image: Image.Image) -> bool:
    """Whether zero means white, which Pillow heeds in 8-bit TIFF alone."""
    return image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def _eight_bits(image: Image.Image, top: int | None) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _16_BITS:
        raise _unknown_range(f"pixels from {low} to {high}")
    if top is None and 0 < high <= _12_BITS:  # 12 bits, or 8, or a dark picture of 16
        raise _unknown_range("16-bit pixels below 4,096")
    if top is None or high > top:  # above a declared number: PNG demands that fewer bits are scaled to 16
        top = _16_BITS
    table = ((np.arange(top + 1, dtype=np.int64) * 255 + top // 2) // top).astype(np.uint8)
    pixels = np.take(table, values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return Image.fromarray(pixels)


def _unknown_range(received: str, remedy: str = _INTEGER_REMEDY) -> DataError:
    return DataError(received, "8 bits, 16 bits that reach 4,096, or a grey file that declares its bits", remedy)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF beside good pixels: struct.error, SyntaxError, …
        return None


def _turned(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)
