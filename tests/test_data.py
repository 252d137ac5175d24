"""Images and masks of every mode, folders and lists, and the way to the network's input and back."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from minmax_entropy.data import (
    DamagedFileError,
    ImageFiles,
    LabelledImages,
    Preprocess,
    Record,
    open_split,
    padding,
    read_image,
    read_list,
    read_mask,
    scaled_size,
)
from minmax_entropy.data.selection import HELD_OUT

HEIGHT, WIDTH = 32, 48
INSIDE = np.zeros((HEIGHT, WIDTH), dtype=bool)
INSIDE[8:16, 8:32] = True  # JPEG's blocks: flat colours stay nearly exact; no symmetry


def paint(inside, outside, dtype=np.uint8):
    """The value `inside` in the object, `outside` around it."""
    values = np.where(INSIDE.reshape(*INSIDE.shape, *[1] * np.ndim(inside)), inside, outside)
    return values.astype(dtype)


def picture(inside, outside, dtype=np.uint8):
    return Image.fromarray(paint(inside, outside, dtype))


def palette(colours, inside=1, outside=0):
    image = Image.fromarray(paint(inside, outside)).convert("P")
    image.putdata(paint(inside, outside).ravel().tolist())
    image.putpalette([value for colour in colours for value in colour])
    return image


def cmyk(inside, outside):
    channels = [Image.fromarray(paint(a, b)) for a, b in zip(inside, outside, strict=True)]
    return Image.merge("CMYK", channels)


# Images


IMAGES = {
    "RGB JPEG": ("a.jpg", lambda: picture((200, 30, 90), (10, 240, 60)), (200, 30, 90), (10, 240, 60)),
    "upper case suffix": ("a.JPG", lambda: picture((9, 9, 9), (250, 250, 250)), (9, 9, 9), (250, 250, 250)),
    "greyscale JPEG": ("a.jpg", lambda: picture(200, 20), (200,) * 3, (20,) * 3),
    "greyscale PNG": ("a.png", lambda: picture(200, 20), (200,) * 3, (20,) * 3),
    "BMP": ("a.bmp", lambda: picture((1, 2, 3), (4, 5, 6)), (1, 2, 3), (4, 5, 6)),
    "1-bit": ("a.png", lambda: picture(255, 0).convert("1"), (255,) * 3, (0,) * 3),
    "RGBA": ("a.png", lambda: picture((200, 0, 0, 255), (0, 0, 200, 0)), (200, 0, 0), (255,) * 3),
    "half transparent": ("a.png", lambda: picture((0, 0, 0, 51), (0, 0, 0, 255)), (204,) * 3, (0,) * 3),
    "RGBA TIFF": ("a.tif", lambda: picture((200, 0, 0, 255), (0, 0, 200, 0)), (200, 0, 0), (255,) * 3),
    "LA": ("a.png", lambda: picture((90, 255), (0, 0)), (90,) * 3, (255,) * 3),
    "palette": ("a.png", lambda: palette([(5, 6, 7), (250, 100, 0)]), (250, 100, 0), (5, 6, 7)),
    "CMYK JPEG": ("a.jpg", lambda: cmyk((0, 255, 255, 0), (0, 0, 0, 255)), (255, 0, 0), (0, 0, 0)),
    "CMYK TIFF": ("a.tif", lambda: cmyk((0, 255, 255, 0), (0, 0, 0, 255)), (255, 0, 0), (0, 0, 0)),
    "16-bit PNG": ("a.png", lambda: picture(65535, 32896, dtype=np.uint16), (255,) * 3, (128,) * 3),
    "16-bit TIFF": ("a.tif", lambda: picture(65535, 32896, dtype=np.uint16), (255,) * 3, (128,) * 3),
    "16-bit big-endian TIFF": ("a.tif", lambda: picture(65535, 32896, dtype=">u2"), (255,) * 3, (128,) * 3),
    "16-bit PGM": ("a.pgm", lambda: picture(65535, 32896, dtype=np.uint16), (255,) * 3, (128,) * 3),
    "8 bits in 16": ("a.png", lambda: picture(255, 100, dtype=np.uint16), (255,) * 3, (100,) * 3),
    "32-bit TIFF": ("a.tif", lambda: picture(200000, 100000, dtype=np.int32), (255,) * 3, (128,) * 3),
    "float TIFF in [0, 1]": ("a.tif", lambda: picture(1.0, 0.2, dtype=np.float32), (255,) * 3, (51,) * 3),
    "float TIFF in [0, 255]": ("a.tif", lambda: picture(255.0, 51.4, dtype=np.float32), (255,) * 3, (51,) * 3),
    "float TIFF, negative": ("a.tif", lambda: picture(1.0, -3.0, dtype=np.float32), (255,) * 3, (0,) * 3),
    "float TIFF, NaN": ("a.tif", lambda: picture(0.2, np.nan, dtype=np.float32), (51,) * 3, (0,) * 3),
    "float TIFF, infinite": ("a.tif", lambda: picture(0.2, np.inf, dtype=np.float32), (51,) * 3, (0,) * 3),
    "WebP": ("a.webp", lambda: picture((200, 200, 200), (20, 20, 20)), (200,) * 3, (20,) * 3),
}


@pytest.mark.parametrize(("name", "make", "inside", "outside"), IMAGES.values(), ids=IMAGES.keys())
def test_image_modes(tmp_path, name, make, inside, outside):
    lossy = name.lower().endswith(("jpg", "webp"))
    make().save(tmp_path / name, **(dict(quality=95, subsampling=0) if lossy else {}))
    image = read_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
    tolerance = 6 if lossy else 0
    assert np.abs(np.asarray(image).astype(int) - paint(inside, outside, int)).max() <= tolerance


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["index", "alpha of each colour"])
def test_palette_with_transparency(tmp_path, transparency):
    palette([(5, 6, 7), (250, 100, 0)]).save(tmp_path / "a.png", transparency=transparency)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), paint((250, 100, 0), (255, 255, 255)))


@pytest.mark.parametrize("colour", [20, (20, 30, 40)], ids=["greyscale", "RGB"])
def test_transparent_colour(tmp_path, colour):
    inside = 90 if colour == 20 else (90, 90, 90)
    picture(inside, colour).save(tmp_path / "a.png", transparency=colour)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), paint((90, 90, 90), (255, 255, 255)))


def test_16_bit_colour(tmp_path):
    """Pillow writes no 16-bit colour: a PNG by hand."""
    values = paint((65535, 257 * 100, 0), (0, 0, 257 * 30), ">u2")
    raw = b"".join(b"\x00" + row.tobytes() for row in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), paint((255, 100, 0), (0, 0, 30)))


def test_first_frame_of_an_animation(tmp_path):
    frames = [picture((200, 0, 0), (0, 0, 0)), picture((0, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.gif")), paint((200, 0, 0), (0, 0, 0)))


# How a camera stores an image that is displayed upright, for each value of EXIF's orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save_rotated(displayed, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = displayed if STORED[orientation] is None else displayed.transpose(STORED[orientation])
    stored.save(path, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, orientation):
    """Image and mask come out as they are displayed, whichever of the two carries the orientation."""
    save_rotated(picture((200, 0, 0), (0, 0, 0)), tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), paint((200, 0, 0), (0, 0, 0)))
    save_rotated(picture(255, 0), tmp_path / "m.png", orientation)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), INSIDE)


def test_photograph_with_a_mask_in_displayed_orientation(tmp_path):
    save_rotated(picture((250, 250, 250), (0, 0, 0)), tmp_path / "a.jpg", 6)
    assert Image.open(tmp_path / "a.jpg").size == (HEIGHT, WIDTH)  # stored on its side
    picture(255, 0).save(tmp_path / "m.png")
    sample = ImageFiles([Record(tmp_path / "a.jpg", tmp_path / "m.png", "x")])[0]
    pixels = np.asarray(sample.image)
    assert pixels[sample.mask].min() > 240 and pixels[~sample.mask].max() < 15


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("exif", [b"zz", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"])
def test_bad_exif_is_passed_over(tmp_path, suffix, exif):
    picture((200, 200, 200), (0, 0, 0)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert np.asarray(read_image(tmp_path / f"a.{suffix}"))[INSIDE].min() > 190


def _truncate(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = {
    "truncated JPEG": ("a.jpg", _truncate),
    "truncated PNG": ("a.png", _truncate),
    "truncated TIFF": ("a.tif", _truncate),
    "truncated BMP": ("a.bmp", _truncate),
    "empty": ("a.png", lambda path: path.write_bytes(b"")),
    "text": ("a.jpg", lambda path: path.write_text("<html>404 Not Found</html>")),
    "header only": ("a.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n")),
}


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(("name", "damage"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_file_is_named(tmp_path, name, damage, read):
    damage(tmp_path / name)
    with pytest.raises(DamagedFileError, match=r"can't be read as an image: .") as caught:
        read(tmp_path / name)
    assert caught.value.path == str(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_damaged_file_error_crosses_processes():
    error = pickle.loads(pickle.dumps(DamagedFileError("a.png", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.png", "broken", "a.png can't be read as an image: broken")


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_missing_file(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "folder.png"):
        with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
            read(tmp_path / name)


def test_decompression_bomb_is_named(tmp_path, monkeypatch):
    picture(0, 255).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DamagedFileError, match=r"a\.png can't be read .* exceeds limit"):
        read_image(tmp_path / "a.png")


# Masks


MASKS = {
    "0 and 255": ("m.png", lambda: picture(255, 0)),
    "0 and 1": ("m.png", lambda: picture(1, 0)),
    "labels": ("m.png", lambda: picture(7, 0)),
    "128 over 127": ("m.png", lambda: picture(128, 127)),
    "JPEG": ("m.jpg", lambda: picture(255, 0)),
    "1-bit": ("m.png", lambda: picture(255, 0).convert("1")),
    "1-bit TIFF": ("m.tif", lambda: picture(255, 0).convert("1")),
    "palette's index 1, black on white": ("m.png", lambda: palette([(255, 255, 255), (0, 0, 0)])),
    "palette's index 2": ("m.png", lambda: palette([(255, 0, 0), (0, 0, 0), (9, 9, 9)], inside=2)),
    "palette's index 255": ("m.png", lambda: palette([(0, 0, 0)] * 256, inside=255)),
    "GIF": ("m.gif", lambda: palette([(255, 255, 255), (0, 0, 0)])),
    "RGB": ("m.png", lambda: picture((255, 255, 255), (0, 0, 0))),
    "blue": ("m.png", lambda: picture((0, 0, 255), (0, 0, 0))),
    "RGB 0 and 1": ("m.png", lambda: picture((1, 1, 1), (0, 0, 0))),
    "RGBA": ("m.png", lambda: picture((255, 255, 255, 255), (0, 0, 0, 255))),
    "RGBA 0 and 1": ("m.png", lambda: picture((1, 1, 1, 255), (0, 0, 0, 255))),
    "LA": ("m.png", lambda: picture((255, 255), (0, 255))),
    "CMYK": ("m.tif", lambda: cmyk((0, 0, 0, 0), (0, 0, 0, 255))),
    "16-bit": ("m.png", lambda: picture(65535, 0, dtype=np.uint16)),
    "16-bit 0 and 1": ("m.png", lambda: picture(1, 0, dtype=np.uint16)),
    "16-bit big-endian": ("m.tif", lambda: picture(65535, 0, dtype=">u2")),
    "32-bit labels": ("m.tif", lambda: picture(3, 0, dtype=np.int32)),
    "float": ("m.tif", lambda: picture(1.0, 0.0, dtype=np.float32)),
}


@pytest.mark.parametrize(("name", "make"), MASKS.values(), ids=MASKS.keys())
def test_mask_modes(tmp_path, name, make):
    make().save(tmp_path / name)
    mask = read_mask(tmp_path / name)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, INSIDE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "F"])
def test_empty_mask(tmp_path, mode):
    empty = picture(0, 0, dtype=np.uint16) if mode == "I;16" else picture((0, 0, 0), (0, 0, 0)).convert(mode)
    empty.save(tmp_path / "m.tif")
    mask = read_mask(tmp_path / "m.tif")
    assert mask.shape == (HEIGHT, WIDTH) and not mask.any()


def test_mask_of_another_size_names_both_sizes_and_the_file(tmp_path):
    picture(9, 0).save(tmp_path / "a.png")
    picture(255, 0).resize((20, 24)).save(tmp_path / "m.png")
    data = ImageFiles([Record(tmp_path / "a.png", tmp_path / "m.png", "x")])
    with pytest.raises(ValueError, match=rf"mask of .*a\.png is 24 x 20, the image is {HEIGHT} x {WIDTH}"):
        data[0]
    assert data.image(0).size == (WIDTH, HEIGHT)  # training never opens the mask


# Lists


def save(path, value=100, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


@pytest.fixture
def listed(tmp_path):
    """Two images, one mask; `write(text)` makes the list."""
    for name in ("a.png", "sub/b.png", "m.png"):
        save(tmp_path / name)

    def write(text, encoding="utf-8"):
        (tmp_path / "train.csv").write_bytes(text.encode(encoding))
        return tmp_path

    return write


ROWS = "a.png,m.png,cat\nsub/b.png,,dog\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (ROWS, "utf-8"),
        ("image,mask,class\n" + ROWS, "utf-8"),
        ("image,mask,class\n" + ROWS, "utf-8-sig"),
        ("Image_Path,mask_path,class_name\n" + ROWS, "utf-8"),
        (ROWS, "utf-8-sig"),
        (ROWS.replace("\n", "\r\n"), "utf-8"),
        ("a.png , m.png, cat\n\n , ,\nsub/b.png,,dog", "utf-8"),
        ('"a.png","m.png","cat"\n"sub/b.png","",dog\n', "utf-8"),
    ],
    ids=["plain", "header", "header and BOM", "other header", "BOM", "CRLF", "spaces and blank rows", "quotes"],
)
def test_list(listed, text, encoding):
    root = listed(text, encoding)
    first = Record(root / "a.png", root / "m.png", "cat")
    assert read_list(root / "train.csv", root) == [first, Record(root / "sub" / "b.png", None, "dog")]
    data = open_split(root, "train")
    assert data.class_names == ["cat", "dog"] and [data.target(i) for i in range(2)] == [0, 1]
    assert data[0].mask.shape == (6, 8) and data[1].mask is None
    assert data.name(1) == str(root / "sub" / "b.png")


def test_quoted_commas(listed, tmp_path):
    save(tmp_path / "one, two.png")
    data = open_split(listed('"one, two.png",,"cat, tabby"\na.png,,dog\n'))
    assert data.class_names == ["cat, tabby", "dog"] and data[0].image.size == (8, 6)


def test_class_names_of_other_alphabets(listed):
    assert open_split(listed("a.png,,Höhlenbär\nsub/b.png,,ネコ\n")).class_names == ["Höhlenbär", "ネコ"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (ROWS + "none.png,,cat\n", FileNotFoundError, r"train\.csv, line 3: no image .*none\.png"),
        ("none.png,,cat\n" + ROWS, FileNotFoundError, r"line 1: no image .*none\.png"),
        ("image,mask,class\nnone,,cat\n", FileNotFoundError, r"line 2: no image .*none"),
        ("none,,cat\n" + ROWS, FileNotFoundError, r"line 1: no image .*none"),
        ("a.png,none.png,cat\n", FileNotFoundError, r"line 1: no mask .*none\.png"),
        ("a.png,,cat\n\na.png,sub,cat\n", FileNotFoundError, r"line 3: no mask .*sub"),
        ("a.png,cat\n", ValueError, r"line 1: a row is image,mask,class .* got \['a\.png', 'cat'\]"),
        ("a.png;;cat\n", ValueError, r"line 1: a row is image,mask,class .* got \['a\.png;;cat'\]"),
        (ROWS + "a.png,,cat,4\n", ValueError, "line 3: a row is image,mask,class"),
        (ROWS + "a.png,m.png,\n", ValueError, "line 3: a row is image,mask,class"),
        (ROWS + ",m.png,cat\n", ValueError, "line 3: a row is image,mask,class"),
        ("", ValueError, r"train\.csv lists no images"),
        ("image,mask,class\n", ValueError, r"train\.csv lists no images"),
    ],
)
def test_bad_list(listed, text, error, message):
    with pytest.raises(error, match=message):
        open_split(listed(text))


@pytest.mark.parametrize(
    "text", ["a.png,,K\u00e4tzchen\n", f"a.png,,{'x' * 200_000}\n"], ids=["Latin-1", "endless cell"]
)
def test_list_that_is_not_csv_is_named(listed, text):
    with pytest.raises(ValueError, match=r"train\.csv can't be read as CSV in UTF-8: ."):
        open_split(listed(text, "latin-1"))


def test_lines_of_a_file_are_counted_as_an_editor_does(listed):
    """Empty lines count, and so do those within quotes."""
    with pytest.raises(ValueError, match=r"line 4: a row is image,mask,class .* got \['a\.png', 'cat'\]"):
        open_split(listed('a.png,,"cat\nfish"\n \na.png, cat \n'))


def test_list_that_is_missing_beside_others(listed):
    root = listed(ROWS)
    with pytest.raises(FileNotFoundError, match=r"has lists, but no test\.csv"):
        open_split(root, "test")


# Folders


def make_folders(root, counts, size=(8, 6), suffix="png"):
    for place, count in counts.items():
        for index in range(count):
            save(root / place / f"{index:02d}.{suffix}", size=size)


def files(data, root):
    return [str(record.image.relative_to(root)) for record in data.records]


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_class_folders_with_splits(tmp_path, prefix):
    counts = {"train/b": 2, "train/a": 3, "valid/a": 1, "valid/b": 1, "test/a": 1, "test/b": 2}
    make_folders(tmp_path, {prefix + place: count for place, count in counts.items()})
    train, valid, test = (open_split(tmp_path, split) for split in ("train", "valid", "test"))
    assert train.class_names == valid.class_names == test.class_names == ["a", "b"]
    assert files(train, tmp_path) == [f"{prefix}train/{name}.png" for name in ("a/00", "a/01", "a/02", "b/00", "b/01")]
    assert [train.target(index) for index in range(5)] == [0, 0, 0, 1, 1]
    assert (len(valid), len(test)) == (2, 3)


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_class_folders_without_splits(tmp_path, prefix):
    """Three parts that are disjoint, cover every image, hold the stated share of each class, and stay the same."""
    make_folders(tmp_path, {f"{prefix}a": 40, f"{prefix}b/deep": 20})
    parts = {split: open_split(tmp_path, split) for split in ("train", "valid", "test")}
    found = [name for part in parts.values() for name in files(part, tmp_path)]
    assert len(found) == len(set(found)) == 60
    for split, share in HELD_OUT.items():
        targets = [parts[split].target(index) for index in range(len(parts[split]))]
        assert (targets.count(0), targets.count(1)) == (40 * share, 20 * share)
    assert files(parts["valid"], tmp_path) == files(open_split(str(tmp_path), "valid"), tmp_path)
    held_out = [int(name[-6:-4]) for name in files(parts["test"], tmp_path)[:10]]
    assert held_out != list(range(10)) and held_out != list(range(30, 40))  # drawn, not the first or last
    assert held_out == sorted(held_out)
    order = np.random.default_rng(0).permutation(40)  # the documented draw: test first, then valid
    assert held_out == sorted(order[:10].tolist())
    assert [int(name[-6:-4]) for name in files(parts["valid"], tmp_path)[:6]] == sorted(order[10:16].tolist())


def test_hold_out_needs_enough_images(tmp_path):
    make_folders(tmp_path, {"a": 2, "b": 1})
    assert len(open_split(tmp_path, "train")) == 3
    with pytest.raises(ValueError, match="too few images a class to hold out a 'valid' part"):
        open_split(tmp_path, "valid")


@pytest.mark.parametrize("mask_name", ["01.png", "01.bmp", "01.PNG", "01.TIF"])
def test_masks_by_relative_path(tmp_path, mask_name):
    make_folders(tmp_path / "images", {"train/a": 2, "train/b": 2}, suffix="jpg")
    save(tmp_path / "masks" / "train" / "b" / mask_name, 255)
    data = open_split(tmp_path, "train")
    assert [data.mask(index) is not None for index in range(4)] == [False, False, False, True]
    assert data.mask(3).all() and data.records[3].mask.name == mask_name
    assert data.has_masks and not ImageFiles(data.records[:3]).has_masks


def test_masks_beside_class_folders(tmp_path):
    """Without a folder `images`, `masks` is not taken for a class."""
    make_folders(tmp_path, {"a": 10, "b": 10})
    make_folders(tmp_path / "masks", {"a": 10, "b": 10})
    data = open_split(tmp_path, "train")
    assert data.class_names == ["a", "b"] and all(data.mask(index) is not None for index in range(len(data)))


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    make_folders(tmp_path, {"train/a": 1, "train/b": 1, "train/.git": 1})
    (tmp_path / "train" / "a" / "._00.png").write_bytes(b"resource fork")
    save(tmp_path / "train" / "a" / ".ipynb_checkpoints" / "00-checkpoint.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("hello")
    (tmp_path / "train" / "a" / "folder.png").mkdir()
    (tmp_path / "train" / "README.md").write_text("hello")
    assert files(open_split(tmp_path), tmp_path) == ["train/a/00.png", "train/b/00.png"]


def test_a_hidden_folder_above_does_not_matter(tmp_path):
    make_folders(tmp_path / ".cache" / "data", {"train/a": 1, "train/b": 1})
    assert len(open_split(tmp_path / ".cache" / "data")) == 2


@pytest.mark.parametrize(
    ("counts", "split", "error", "message"),
    [
        ({}, "train", ValueError, "has no class folders: expected .*/<class>/<image>"),
        ({"train/a/b": 0, "test": 1}, "test", FileNotFoundError, "but none for 'test'"),
        ({"train/a": 1, "train/b": 0}, "train", ValueError, r"class folder .*b holds no images \(\.jpg, "),
        ({"train/a": 1}, "test", FileNotFoundError, "but none for 'test'"),
        ({"train/a": 1}, "valid", ValueError, "too few images a class to hold out a 'valid' part"),
        ({"train/a": 1}, "dev", ValueError, "split must be one of .*'valid'.* got 'dev'"),
    ],
)
def test_bad_folders(tmp_path, counts, split, error, message):
    for place in counts:
        (tmp_path / place).mkdir(parents=True)
    make_folders(tmp_path, counts)
    with pytest.raises(error, match=message):
        open_split(tmp_path, split)


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=f"no folder {place}"):
            open_split(place)


# Classes


@pytest.fixture
def splits(tmp_path):
    """Class c has no images to test, class d no images to train."""
    make_folders(tmp_path, {"train/a": 1, "train/b": 2, "train/c": 1, "test/a": 1, "test/b": 1, "test/d": 2})
    return tmp_path


def test_classes_set_order_and_choice(splits):
    data = open_split(splits, "train", classes=["c", "a"])
    assert data.class_names == ["c", "a"]
    assert files(data, splits) == ["train/a/00.png", "train/c/00.png"]
    assert [data.target(index) for index in range(2)] == [1, 0]


def test_classes_that_a_part_lacks_keep_their_index(splits, caplog):
    caplog.set_level("INFO", "minmax_entropy")
    data = open_split(splits, "test", classes=["c", "b", "a"])
    assert data.class_names == ["c", "b", "a"] and [data.target(index) for index in range(2)] == [2, 1]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["no images of c", "leaving out d"]


@pytest.mark.parametrize(
    ("split", "classes", "message"),
    [
        ("train", ["a", "d"], r"no images of class 'd' for train; its classes: \['a', 'b', 'c'\]"),
        ("test", ["A", "B"], r"no images of class 'A' for test; its classes: \['a', 'b', 'd'\]"),
        ("train", ["a", "b", "a"], r"a class is named twice in \['a', 'b', 'a'\]"),
    ],
)
def test_bad_classes(splits, split, classes, message):
    with pytest.raises(ValueError, match=message):
        open_split(splits, split, classes)


def test_unknown_class_in_the_test_part(splits):
    """Where the classes are not asked for but known from the training part."""
    train, test = open_split(splits, "train"), open_split(splits, "test")
    with pytest.raises(ValueError, match=r"class 'd' of .*00\.png is none of the known classes \['a', 'b', 'c'\]"):
        ImageFiles(test.records, train.class_names)


def test_no_records():
    with pytest.raises(ValueError, match="no images"):
        ImageFiles([])


def test_index_out_of_range(splits):
    data = open_split(splits, "train")
    assert len(list(data)) == 4  # iteration ends by IndexError
    for index in (4, -1):
        with pytest.raises(IndexError, match=f"index {index} is outside of 4 images"):
            data[index]


# Preprocessing


IDENTITY = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def noise_image(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "short_side", "reference", "expected"),
    [
        ((100, 50), None, False, (100, 50)),
        ((100, 50), 25, False, (50, 25)),
        ((50, 99), 100, False, (100, 198)),
        ((3, 16), 2, False, (2, 11)),  # 10.67
        ((3, 1000), 2, False, (1, 16)),  # a strip: eight short sides at most
        ((3, 1000), 2, True, (3, 1000)),  # the authors only enlarge
        ((3, 1000), 4, True, (4, 1333)),  # and truncate
        ((1, 1), 7, False, (7, 7)),
    ],
)
def test_scaled_size(size, short_side, reference, expected):
    assert scaled_size(*size, short_side, reference) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(64, (0, 0)), (63, (0, 1)), (62, (1, 1)), (33, (15, 16)), (1, (15, 16))]
)
def test_padding(size, expected):
    assert padding(size) == expected


@pytest.mark.parametrize("size", [(37, 53), (64, 64), (33, 31), (1, 1), (2, 65), (5, 40)])
@pytest.mark.parametrize("multiple", [1, 7, 32])
def test_round_trip_without_scaling_is_exact(size, multiple):
    """The network's input holds the image, mirrored at the borders; what comes back is just the image."""
    preprocess = Preprocess(**IDENTITY, multiple=multiple)
    image = noise_image(*size)
    tensor = preprocess(image)
    pixels = np.asarray(image, dtype=np.float32) / 255
    assert tensor.shape == (3, *(-(-side // multiple) * multiple for side in size))
    pads = [padding(side, multiple) for side in size]
    np.testing.assert_allclose(tensor.permute(1, 2, 0), np.pad(pixels, [*pads, (0, 0)], mode="reflect"), atol=1e-7)
    restored = preprocess.restore(tensor[1:2], size)
    assert restored.shape == (1, *size)
    np.testing.assert_allclose(restored[0], pixels[..., 1], atol=1e-7)


@pytest.mark.parametrize("size", [(37, 53), (120, 61), (200, 333), (31, 30)])
@pytest.mark.parametrize(
    "options",
    [dict(short_side=64), dict(short_side=47, multiple=14), dict(fixed_size=(96, 80)), dict(short_side=33, multiple=1)],
    ids=["32", "14", "fixed", "1"],
)
def test_a_scaled_mask_comes_back_in_its_place(size, options):
    height, width = size
    rows, columns = slice(height // 4, height // 2), slice(width // 3, 3 * width // 4)
    truth = np.zeros(size, dtype=bool)
    truth[rows, columns] = True
    preprocess = Preprocess(**IDENTITY, **options)
    tensor = preprocess(Image.fromarray(np.repeat(truth[..., None], 3, axis=2).astype(np.uint8) * 255))
    if "fixed_size" in options:
        assert tensor.shape[1:] == options["fixed_size"]
    else:
        assert all(side % options.get("multiple", 32) == 0 for side in tensor.shape[1:])
        assert 0 <= min(tensor.shape[1:]) - options["short_side"] < options.get("multiple", 32)
    restored = preprocess.restore(tensor[:1], size)
    assert restored.shape == (1, *size)
    found = restored[0].numpy() >= 0.5
    coarseness = max(1, max(size) / max(tensor.shape[1:]) / 2)  # half a pixel of the network's
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    for axis_found, axis_truth in zip(np.nonzero(found), np.nonzero(truth), strict=True):
        assert abs(axis_found.mean() - axis_truth.mean()) < 1
        assert abs(axis_found.min() - axis_truth.min()) <= coarseness
        assert abs(axis_found.max() - axis_truth.max()) <= coarseness


def test_reference_crop_is_a_pixel_off_for_odd_sizes():
    """37 x 60 becomes 64 x 64: 13 rows above; the authors cut off 32 - 18 = 14. Even sizes are cut exactly."""
    tensor = Preprocess(**IDENTITY)(noise_image(37, 60))[:1]
    exact = Preprocess(**IDENTITY).restore(tensor, (37, 60))
    reference = Preprocess(**IDENTITY, reference=True).restore(tensor, (37, 60))
    torch.testing.assert_close(reference[:, :-1], exact[:, 1:])


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming", "random"])
@pytest.mark.parametrize(
    "options", [dict(short_side=20, multiple=1), dict(fixed_size=(20, 30))], ids=["scaled", "fixed"]
)
def test_interpolation(name, options):
    image = noise_image(40, 60)
    how = Image.Resampling["BILINEAR" if name == "random" else name.upper()]
    tensor = Preprocess(**IDENTITY, **options, interpolation=name)(image)
    assert np.array_equal((tensor * 255).round().byte().permute(1, 2, 0), np.asarray(image.resize((30, 20), how)))


def test_unknown_interpolation():
    with pytest.raises(ValueError, match=r"interpolation must be one of \('bilinear', .*, got 'cubic'"):
        Preprocess(**IDENTITY, interpolation="cubic")


def test_normalization_by_hand():
    preprocess = Preprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0), multiple=1)
    tensor = preprocess(Image.new("RGB", (1, 1), (255, 51, 102)))
    torch.testing.assert_close(tensor.flatten(), torch.tensor([1.0, -0.2, 0.2]))
    assert tensor.dtype == torch.float32


def test_one_channel():
    preprocess = Preprocess(mean=(0.5,), std=(0.5,), multiple=8)
    tensor = preprocess(Image.new("RGB", (9, 7), (255, 255, 255)))
    torch.testing.assert_close(tensor, torch.ones(1, 8, 16))
    assert preprocess.restore(tensor, (7, 9)).shape == (1, 7, 9)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_other_modes(mode):
    image = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    torch.testing.assert_close(Preprocess(**IDENTITY, multiple=1)(image), torch.ones(3, 7, 9))


def test_four_channels_are_refused():
    with pytest.raises(ValueError, match="an image gives 3 channels or 1, the model takes 4"):
        Preprocess(mean=(0.0,) * 4, std=(1.0,) * 4)(noise_image(8, 8))


# Training images


class Few(LabelledImages):
    """Image 1 is damaged."""

    class_names = ("a", "b")

    def __len__(self):
        return 3

    def image(self, index):
        if index == 1:
            raise DamagedFileError("one.png", "broken")
        return Image.new("RGB", (4, 4), (index, 0, 0))

    def target(self, index):
        return index % 2

    def mask(self, index):
        raise AssertionError("training opens no masks")


def test_labelled_images_name_themselves_by_default():
    assert Few().name(2) == "2" and LabelledImages().mask(0) is None


def test_a_class_may_be_called_train(tmp_path):
    make_folders(tmp_path, {"boat": 8, "train": 8})
    assert open_split(tmp_path, "train").class_names == ["boat", "train"]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_other_names_of_the_validation(tmp_path, name):
    make_folders(tmp_path, {"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1})
    assert files(open_split(tmp_path, "valid"), tmp_path) == [f"{name}/a/00.png", f"{name}/b/00.png"]
    (tmp_path / "train.csv").write_text("train/a/00.png,,a\n")
    (tmp_path / f"{name}.csv").write_text(f"{name}/b/00.png,,b\n")
    assert files(open_split(tmp_path, "valid"), tmp_path) == [f"{name}/b/00.png"]


def test_a_validation_part_is_held_out_of_the_training(tmp_path, caplog):
    """Folders for train and test alone, the most common layout: 15 % of each class, and never an image twice."""
    make_folders(tmp_path, {"train/a": 20, "train/b": 7, "test/a": 2, "test/b": 2})
    parts = {}
    with caplog.at_level("INFO", logger="minmax_entropy"):
        for split in ("train", "valid", "test"):
            parts[split] = files(open_split(tmp_path, split), tmp_path)
    assert len(parts["valid"]) == 3 + 1 and len(parts["train"]) == 17 + 6 and len(parts["test"]) == 4
    assert not set(parts["train"]) & set(parts["valid"])
    assert sorted(parts["train"] + parts["valid"]) == sorted(
        [f"train/a/{i:02d}.png" for i in range(20)] + [f"train/b/{i:02d}.png" for i in range(7)]
    )
    assert "15 % of train are held out" in caplog.text


@pytest.mark.parametrize("options", [{}, {"lists": {"train": "train.csv"}}], ids=["folder", "lists"])
def test_a_validation_part_is_held_out_of_a_list(tmp_path, caplog, monkeypatch, options):
    """The same images as of the class folders, in the order of the list."""
    make_folders(tmp_path, {"train/a": 20, "train/b": 7})
    rows = [f"train/{name}/{index:02d}.png,,{name}" for index in range(20) for name in ("ab" if index < 7 else "a")]
    folders = {split: set(files(open_split(tmp_path, split, seed=3), tmp_path)) for split in ("train", "valid")}
    (tmp_path / "train.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    with caplog.at_level("INFO", logger="minmax_entropy"):
        for split in ("train", "valid"):
            found = files(open_split(tmp_path, split, seed=3, **options), tmp_path)
            assert found == [row.split(",")[0] for row in rows if row.split(",")[0] in folders[split]]
    assert len(found) == 3 + 1
    assert "train.csv has no validation part: 15 % of train are held out" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"has lists, but no test\.csv|no list for 'test' is given"):
        open_split(tmp_path, "test", **options)
    assert len(open_split(tmp_path, "valid", ["b"], **options)) == 1
    (tmp_path / "val.csv").write_text(rows[0])
    if not options:
        assert (len(open_split(tmp_path, "train")), len(open_split(tmp_path, "valid"))) == (27, 1)


def test_a_list_of_too_few_images_to_hold_any_out(listed):
    root = listed(ROWS)
    assert len(open_split(root, "train")) == 2
    with pytest.raises(ValueError, match=r"train\.csv has too few images a class to hold out a 'valid' part: give it"):
        open_split(root, "valid")


def test_void_of_a_palette_mask_is_not_an_object(tmp_path):
    values = np.zeros((8, 8), dtype=np.uint8)
    values[2:4], values[4:6] = 7, 255
    picture = Image.fromarray(values)
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), values == 7)
