"""Image files as a viewer shows them: deep grey, orientation, alpha, colour spaces, large pictures, damaged files."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from adc_edge.data.decoding import check_header, decode_image, flatten, image_suffixes, upright
from adc_edge.errors import DataError

RAMP = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
SCENE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def seen(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(decode_image(path))


def in_8_bits(values: npt.NDArray[Any], top: int) -> npt.NDArray[Any]:
    return np.rint(values * (255 / top)).astype(np.uint8)


def lossless(kind: str) -> dict[str, Any]:
    return {"lossless": True} if kind == "webp" else {}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(path: Path, extra: bytes) -> None:
    """Put one more chunk behind the header of a PNG file."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + extra + data[33:])


def tiff(path: Path, values: npt.NDArray[Any], **tags: int) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        directory[int(number.removeprefix("tag"))] = value
    Image.fromarray(values).save(path, "TIFF", tiffinfo=directory)


# deep grey


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_its_range(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    image = seen(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image, in_8_bits(RAMP, 65535))
    assert (image.min(), image.max()) == (0, 255)


def test_big_endian_and_32_bit_grey_are_scaled_too(tmp_path: Path) -> None:
    tiff(tmp_path / "big.tif", RAMP.astype(">u2"))
    tiff(tmp_path / "int32.tif", RAMP.astype(np.int32))
    for name in ("big.tif", "int32.tif"):
        np.testing.assert_array_equal(seen(tmp_path / name), in_8_bits(RAMP, 65535))


def test_12_bits_in_16_are_scaled_by_what_the_file_declares(tmp_path: Path) -> None:
    twelve = RAMP >> 4
    tiff(tmp_path / "max.tif", twelve, tag281=4095)
    tiff(tmp_path / "sample_max.tif", twelve, tag341=4095)
    Image.fromarray(twelve).save(tmp_path / "sbit.png")
    png_with(tmp_path / "sbit.png", chunk(b"sBIT", b"\x0c"))
    (tmp_path / "max.pgm").write_bytes(b"P5 40 30 4095 " + twelve.astype(">u2").tobytes())
    for name in ("max.tif", "sample_max.tif", "sbit.png", "max.pgm"):
        assert np.abs(seen(tmp_path / name).astype(int) - in_8_bits(twelve, 4095)).max() <= 1, name


def test_an_sbit_png_that_is_scaled_as_its_standard_demands_is_read_as_it_stands(tmp_path: Path) -> None:
    Image.fromarray(RAMP & 0xFFF0).save(tmp_path / "a.png")
    png_with(tmp_path / "a.png", chunk(b"sBIT", b"\x0c"))
    np.testing.assert_array_equal(seen(tmp_path / "a.png"), in_8_bits(RAMP & 0xFFF0, 65535))


def test_packed_12_bit_tiff_is_scaled_by_12_bits(tmp_path: Path) -> None:
    twelve = (RAMP >> 4).astype(int)
    first, second = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    tags = [(256, 3, 40), (257, 3, 30), (258, 3, 12), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 3, 30)]
    tags += [(273, 4, 8), (279, 4, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    np.testing.assert_array_equal(seen(tmp_path / "a.tif"), in_8_bits(twelve, 4095))


def test_16_bit_tiff_whose_zero_is_white_is_inverted(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    data[at : at + 2] = bytes(2)
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(seen(tmp_path / "a.tif"), 255 - in_8_bits(RAMP, 65535))


def test_a_16_bit_file_that_may_have_12_bits_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    Image.fromarray(RAMP >> 4).save(tmp_path / "cells.png")
    with pytest.raises(DataError, match=r"cells.png: 16-bit pixels below 4,096") as caught:
        decode_image(tmp_path / "cells.png")
    file = tmp_path / "cells.png"
    line = caught.value.remedy.partition(" by ")[2].replace("new.png", str(tmp_path / "new.png"))
    exec(line, {"np": np, "Image": Image, "file": file})
    np.testing.assert_array_equal(seen(tmp_path / "new.png"), ((RAMP >> 4) * (255 / 4095)).astype("uint8"))
    Image.fromarray(RAMP * 0).save(tmp_path / "black.png")
    assert not seen(tmp_path / "black.png").any()


def test_integers_beyond_16_bits_are_refused_by_their_range(tmp_path: Path) -> None:
    for name, values, words in (
        ("wide", RAMP * np.int32(9), "from 0 to 589815"),
        ("ct", RAMP - np.int32(1024), "-102"),
    ):
        tiff(tmp_path / f"{name}.tif", values.astype(np.int32))
        with pytest.raises(DataError, match=rf"{name}.tif: pixels .*{words}"):
            decode_image(tmp_path / f"{name}.tif")


def test_float_pixels_are_refused_by_name_with_the_line_that_converts_them(tmp_path: Path) -> None:
    tiff(tmp_path / "depth.tif", RAMP.astype(np.float32) / 7)
    for read in (decode_image, check_header):
        with pytest.raises(DataError, match=r"depth.tif: float pixels") as caught:
            read(tmp_path / "depth.tif")
    line, _, x = caught.value.remedy.partition("example ")[2].partition(" with ")
    names = {"np": np, "Image": Image, "file": tmp_path / "depth.tif"}
    exec(f"{x}\n{line.replace('new.png', str(tmp_path / 'new.png'))}", names)
    image = seen(tmp_path / "new.png")
    assert image.min() == 0
    assert image.max() >= 254


def deep_png(path: Path, values: npt.NDArray[Any]) -> None:
    """Write 16-bit RGB (3 channels), RGBA (4) or grey with alpha (2), which Pillow cannot."""
    kind = {2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">2I5B", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_png_keeps_its_colours_or_is_refused_where_it_may_have_12_bits(
    tmp_path: Path, channels: int
) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP // 2], -1)[..., : 1 if channels == 2 else 3]
    opaque = np.full((*RAMP.shape, 1), 65535, np.uint16)
    for name, values in (("deep", colours), ("cells", colours >> 4)):
        whole = values if channels == 3 else np.concatenate([values, opaque], -1)
        deep_png(tmp_path / f"{name}.png", whole)
    np.testing.assert_array_equal(seen(tmp_path / "deep.png"), np.broadcast_to(colours >> 8, (30, 40, 3)))
    with pytest.raises(DataError, match="16-bit pixels below 4,096"):
        decode_image(tmp_path / "cells.png")


def deep_tiff(path: Path, values: npt.NDArray[Any], order: str, top: int | None = None) -> None:
    """Write 16-bit RGB or RGBA, which Pillow cannot, in little (``<``) or big (``>``) endian order."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    tags: dict[int, tuple[str, list[int]]] = {256: ("H", [width]), 257: ("H", [height]), 258: ("H", [16] * channels)}
    tags |= {259: ("H", [1]), 262: ("H", [2]), 273: ("I", [8]), 277: ("H", [channels]), 278: ("H", [height])}
    tags |= {279: ("I", [len(pixels)])} | ({281: ("H", [top] * channels)} if top else {})
    tags |= {338: ("H", [2])} if channels == 4 else {}
    entries, far, start = b"", b"", 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(content) > 4:
            content, far = struct.pack(f"{order}I", start + len(far)), far + content
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(numbers)) + content.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    path.write_bytes(head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + far)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_tiff_keeps_its_colours_or_is_refused_where_it_may_have_fewer_bits(
    tmp_path: Path, order: str
) -> None:
    file, colours = tmp_path / "a.tif", np.stack([RAMP, RAMP[::-1], RAMP // 2], -1)
    deep_tiff(file, colours, order)
    np.testing.assert_array_equal(seen(file), colours >> 8)
    for shift, top, words in ((4, None, "4,096"), (4, 4095, "4,096"), (2, 16383, "16,384")):
        cells = np.concatenate([colours, np.full((*RAMP.shape, 1), 65535, np.uint16)], -1) >> shift
        for channels in (3, 4):
            deep_tiff(file, cells[..., :channels], order, top)
            with pytest.raises(DataError, match=f"a.tif: 16-bit pixels below {words}") as caught:
                decode_image(file)
            assert "8 bits a channel" in caught.value.remedy
    deep_tiff(file, colours * 0, order)
    assert not seen(file).any()


@pytest.mark.parametrize("stored", ["plain", "run lengths"])
def test_16_bit_colour_of_sgi_is_refused_where_it_may_have_12_bits(tmp_path: Path, stored: str) -> None:
    header = struct.pack(">hBBHHHHii", 474, int(stored == "run lengths"), 2, 3, 2, 2, 3, 0, 4095).ljust(512, b"\0")
    if stored == "plain":
        body = struct.pack(">12H", *[4000] * 12)
    else:
        starts = [512 + 6 * 4 * 2 + 6 * n for n in range(6)]
        body = struct.pack(">12i", *starts, *[6] * 6) + struct.pack(">3H", 2, 4000, 0) * 6
    (tmp_path / "a.rgb").write_bytes(header + body)
    with pytest.raises(DataError, match=r"a.rgb: 16-bit pixels below 4,096"):
        decode_image(tmp_path / "a.rgb")


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_photos_stand_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    image = Image.fromarray(np.kron(SCENE, np.ones((8, 8, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{kind}", exif=exif, **lossless(kind))
    with Image.open(tmp_path / f"a.{kind}") as stored:
        expected = ImageOps.exif_transpose(stored)
        assert expected is not None
        np.testing.assert_array_equal(seen(tmp_path / f"a.{kind}"), np.asarray(expected))
    turned = np.asarray(expected).shape[:2]
    assert turned == ((48, 72) if orientation < 5 else (72, 48))
    np.testing.assert_array_equal(np.asarray(upright(expected)), np.asarray(expected))  # once


def test_damaged_exif_does_not_spoil_good_pixels(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    png_with(tmp_path / "a.png", chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff\xff"))
    np.testing.assert_array_equal(seen(tmp_path / "a.png"), SCENE)


# alpha


def hidden_red(mode: str) -> Image.Image:
    """Half opaque black, half transparent with a colour that no viewer shows."""
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 4))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "tif")])
def test_transparent_pixels_are_white_as_viewers_show_them(tmp_path: Path, mode: str, kind: str) -> None:
    hidden_red(mode).save(tmp_path / f"a.{kind}", **lossless(kind))
    image = np.broadcast_to(seen(tmp_path / f"a.{kind}").reshape(4, 8, -1), (4, 8, 3))
    assert (image[:, :4] == 0).all()
    assert (image[:, 4:] == 255).all()


def transparent_colours() -> dict[str, Callable[[Path], object]]:
    black = np.zeros((4, 8, 3), np.uint8)
    black[:, 4:] = (9, 8, 7)
    colour, grey = Image.fromarray(black), Image.fromarray(black[..., 0])
    palette = colour.quantize(2)
    clear = int(np.asarray(palette)[0, 7])
    deep = np.zeros((4, 8), np.uint16)
    deep[:, 4:], deep[0, 0] = 9, 60000
    return {
        "palette.png": lambda path: palette.save(path, transparency=clear),
        "palette with bytes.png": lambda path: palette.save(
            path, transparency=bytes([255, 0][:: 1 - 2 * (clear == 0)])
        ),
        "palette.gif": lambda path: palette.save(path, transparency=clear),
        "RGB.png": lambda path: colour.save(path, transparency=(9, 8, 7)),
        "grey.png": lambda path: grey.save(path, transparency=9),
        "16 bits.png": lambda path: Image.fromarray(deep).save(path, transparency=9),
    }


@pytest.mark.parametrize("name", transparent_colours())
def test_a_colour_that_is_declared_transparent_is_white(tmp_path: Path, name: str) -> None:
    transparent_colours()[name](tmp_path / name)
    image = np.broadcast_to(seen(tmp_path / name).reshape(4, 8, -1), (4, 8, 3))
    assert (image[1:, :4] == 0).all()
    assert (image[:, 4:] == 255).all()


def raw_png(path: Path, bits: int, kind: int, row: bytes, clear: bytes) -> None:
    """Write two pixels of a PNG with a transparent colour."""
    header = chunk(b"IHDR", struct.pack(">2I5B", 2, 1, bits, kind, 0, 0, 0)) + chunk(b"tRNS", clear)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("bits", "kind", "row", "clear"),
    [
        (1, 0, b"\x40", b"\0\1"),
        (1, 0, b"\x80", b"\0\0"),
        (2, 0, b"\x10", b"\0\1"),
        (4, 0, b"\x05", b"\0\5"),
        (16, 2, struct.pack(">6H", 0, 0, 0, 40000, 20000, 60000), struct.pack(">3H", 40000, 20000, 60000)),
    ],
)
def test_a_transparent_colour_of_1_2_4_and_16_bits_is_white(
    tmp_path: Path, bits: int, kind: int, row: bytes, clear: bytes
) -> None:
    raw_png(tmp_path / "a.png", bits, kind, row, clear)
    image = np.broadcast_to(seen(tmp_path / "a.png").reshape(1, 2, -1), (1, 2, 3))
    assert (image[0, 1] == 255).all()
    assert (image[0, 0] == (255 if clear == b"\0\0" else 0)).all()


def test_a_transparent_colour_of_a_tga_palette_is_white(tmp_path: Path) -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
    (tmp_path / "a.tga").write_bytes(header + bytes([10, 20, 30, 0, 40, 50, 60, 255]) + bytes([0, 1]))
    assert seen(tmp_path / "a.tga")[0].tolist() == [[255, 255, 255], [60, 50, 40]]


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    for mode, colour in (
        ("RGBA", (100, 0, 200, 128)),
        ("LA", (100, 128)),
        ("RGBa", (50, 0, 100, 128)),
        ("La", (50, 128)),
    ):
        image = np.asarray(flatten(Image.new(mode, (2, 2), colour)).convert("RGB"))[0, 0]
        assert abs(int(image[0]) - (100 * 128 + 255 * 127) // 255) <= 1, mode
    assert flatten(Image.new("PA", (2, 2))).mode == "RGB"


# colour spaces and frames


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "jpg"), ("YCbCr", "jpg"), ("CMYK", "tif"), ("1", "png"), ("P", "png")]
)
def test_other_colour_spaces_become_what_they_show(tmp_path: Path, mode: str, kind: str) -> None:
    image = Image.new("RGB", (32, 32), (200, 60, 20))
    image.convert(mode).save(tmp_path / f"a.{kind}")
    middle = np.asarray(decode_image(tmp_path / f"a.{kind}").convert("RGB"))[16, 16].astype(int)
    expected = np.asarray(image.convert(mode).convert("RGB"))[16, 16]
    assert np.abs(middle - expected).max() <= 4


def test_lab_and_hsv_become_rgb() -> None:
    image = Image.new("RGB", (4, 4), (200, 60, 20))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert lab is not None
    for other in (lab, image.convert("HSV")):
        assert np.abs(np.asarray(flatten(other), int) - (200, 60, 20)).max() <= 4


def test_an_animation_and_a_file_of_pages_give_their_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for kind in ("gif", "tif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **lossless(kind))
        assert tuple(seen(tmp_path / f"a.{kind}")[0, 0]) == (255, 0, 0), kind


def test_the_suffixes_are_those_that_pillow_opens_and_draws() -> None:
    wanted = {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".tga",
        ".ppm",
        ".pgm",
    }
    assert wanted <= image_suffixes()
    assert not image_suffixes() & {".h5", ".hdf", ".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".pdf", ".txt"}


# large and damaged files


def blank_png(path: Path, width: int, height: int) -> None:
    """Write a black PNG of one bit a pixel without making the pixels."""
    work, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    rows = b"".join(work.compress(row * min(1000, height - start)) for start in range(0, height, 1000)) + work.flush()
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_a_picture_of_187_megapixels_is_read(tmp_path: Path) -> None:
    blank_png(tmp_path / "a.png", 17_000, 11_000)
    assert decode_image(tmp_path / "a.png").size == (17_000, 11_000)


def test_a_picture_above_the_limit_is_refused_by_its_size_before_it_is_decoded(tmp_path: Path) -> None:
    blank_png(tmp_path / "huge.png", 30_000, 10)
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[8:33] = chunk(b"IHDR", struct.pack(">2I5B", 30_000, 20_000, 1, 0, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(data)
    for read in (decode_image, check_header):
        with pytest.raises(DataError, match=r"huge.png: too large: 30000x20000 pixels[^$]*500 megapixels"):
            read(tmp_path / "huge.png")


def test_a_picture_too_narrow_to_be_resized_is_refused_by_that_name(tmp_path: Path) -> None:
    blank_png(tmp_path / "line.png", 60_000, 2)
    with pytest.raises(DataError, match=r"line.png: too narrow: 60000x2 pixels"):
        check_header(tmp_path / "line.png")


def test_big_pictures_are_decoded_one_at_a_time_and_all_arrive(tmp_path: Path) -> None:
    blank_png(tmp_path / "a.png", 8_000, 6_000)
    sizes: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda: sizes.append(decode_image(tmp_path / "a.png").size)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(8_000, 6_000)] * 3


def cut(kind: str) -> bytes:
    data = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, kind)
    return data.getvalue()[: len(data.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"no picture", "no image"),
        (cut("JPEG"), "truncated"),
        (cut("PNG"), "truncated"),
        (cut("BMP"), "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),  # another program would have to draw it
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_a_short_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode_image(tmp_path / "cat/a.jpg")
    assert caught.value.received == f"cat/a.jpg: {reason}"


def test_an_absent_file_a_folder_and_a_name_that_is_no_text_are_named_too(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").mkdir()
    for name, reason in (
        ("a.jpg", "no such file"),
        ("b.jpg", "is a directory"),
        ("\udcff.jpg", r"\\udcff.jpg: no such"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            decode_image(tmp_path / name)
        str(caught.value).encode()
