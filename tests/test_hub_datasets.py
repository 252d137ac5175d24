"""Hugging Face `datasets`: objects, folders, Parquet files and streams; labels, columns, parts; no network."""

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from minmax_entropy.data import BoxError, DamagedFileError, HubImages, HubStream, LabelledStream, open_split, read_image

datasets = pytest.importorskip("datasets")

HEIGHT, WIDTH = 32, 48
ROWS = 20
NAMES = ["cat", "dog", "bird"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def picture(number):
    """The first pixel holds the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[0, 0] = number
    return Image.fromarray(pixels)


def number_of(image):
    return image.getpixel((0, 0))[0]


def mask(number):
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values[4 : 8 + number % 8, 3:20] = 255
    return values


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})
    return file.getvalue()


def make(rows=range(ROWS), **replaced):
    """A data set whose label is the row modulo 3, with masks and boxes."""
    columns = {
        "image": [{"bytes": encoded(picture(row)), "path": None} for row in rows],
        "label": [row % 3 for row in rows],
        "mask": [{"bytes": encoded(Image.fromarray(mask(row))), "path": None} for row in rows],
        "boxes": [[[3.0, 4.0, 20.0, 8.0 + row % 8]] for row in rows],
        **replaced,
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=NAMES),
        mask=datasets.Image(),
        boxes=datasets.List(datasets.List(datasets.Value("float32"))),
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def whole():
    return make()


ALL = dict(columns=dict(mask="mask", boxes="boxes"))


def numbers(data):
    return [number_of(sample.image) for sample in data]


# Rows


def test_samples(whole):
    data = open_split(whole, **ALL)
    assert isinstance(data, HubImages) and len(data) == ROWS and data.class_names == NAMES
    for row, sample in enumerate(data):
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(picture(row)))
        np.testing.assert_array_equal(sample.mask, mask(row) > 0)
        assert (sample.target, sample.boxes) == (row % 3, [(3.0, 4.0, 20.0, 8.0 + row % 8)])
        assert sample.name == f"Dataset, row {row}"
    without = open_split(whole)
    assert without[4].mask is None and without[4].boxes is None
    assert data.has_masks and not without.has_masks


def test_training_decodes_no_mask():
    broken = [{"bytes": b"not an image", "path": None}] * 3
    data = open_split(make(range(3), mask=broken), **ALL)
    assert [number_of(data.image(index)) for index in range(3)] == [0, 1, 2]
    with pytest.raises(DamagedFileError, match=r"row 1 can't be read as an image: not an image"):
        data[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"bytes": b"garbage", "path": None}, "not an image, or of an unknown format"),
        ({"bytes": encoded(picture(1))[:900], "path": None}, "."),
        (None, "expected an image, its bytes or a path, got NoneType"),
    ],
)
def test_damaged_image_is_named(content, reason):
    images = [{"bytes": encoded(picture(0)), "path": None}, content]
    dataset = make(range(2), image=images)
    with pytest.raises(DamagedFileError, match=f"Dataset, row 1 can't be read as an image: {reason}") as caught:
        open_split(dataset).image(1)
    assert pickle.loads(pickle.dumps(caught.value)).path == "Dataset, row 1"


def test_images_are_read_as_files_are(tmp_path):
    """Orientation, transparency and 16 bits: the same pixels as from a folder."""
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = picture(0).convert("RGBA")
    transparent.putalpha(40)
    wide = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 42)
    contents = [encoded(picture(0), exif=exif), encoded(transparent), encoded(wide)]
    data = open_split(make(range(3), image=[{"bytes": content, "path": None} for content in contents]))
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.png"
        path.write_bytes(content)
        np.testing.assert_array_equal(np.asarray(data.image(index)), np.asarray(read_image(path)))
    assert data.image(0).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["bytes", "paths", "files of an archive"])
def test_image_columns_of_other_types(tmp_path, kind):
    path = tmp_path / "a.png"
    picture(7).save(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "inner/a.png")
    value = {"bytes": path.read_bytes(), "paths": str(path)}.get(kind, f"zip://inner/a.png::{tmp_path / 'a.zip'}")
    dataset = datasets.Dataset.from_dict({"image": [value], "label": ["x"]})
    assert number_of(open_split(dataset).image(0)) == 7
    if kind != "bytes":
        lost = datasets.Dataset.from_dict({"image": [value.replace("a.png", "b.png")], "label": ["x"]})
        with pytest.raises((FileNotFoundError, KeyError)):
            open_split(lost).image(0)


def test_formats_and_transforms_of_the_object_do_not_matter(whole):
    data = open_split(whole.with_format("torch"))
    assert numbers(data) == list(range(ROWS))
    changed = whole.with_transform(lambda rows: {"image": rows["image"]})
    assert [sample.target for sample in open_split(changed)] == [row % 3 for row in range(ROWS)]


def test_objects_cross_processes(whole):
    data = pickle.loads(pickle.dumps(open_split(whole, **ALL)))
    assert numbers(data) == list(range(ROWS)) and data[3].mask.any()


# Labels and classes


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["dog", "cat", "dog", "ant"], ["ant", "cat", "dog"]),
        ([10, 2, 10, 1], ["1", "2", "10"]),
    ],
)
def test_labels_without_names(values, names):
    kind = datasets.Value("string" if isinstance(values[0], str) else "int64")
    data = open_split(relabelled(values, kind))
    assert data.class_names == names
    assert [data.class_names[data.target(index)] for index in range(4)] == [str(value) for value in values]


def relabelled(values, kind):
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(picture(row)), "path": None} for row in range(len(values))], "label": values},
        features=datasets.Features(image=datasets.Image(), label=kind),
    )


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["a", None], datasets.Value("string"), "row 1: a label is a text or a whole number, one an image; got None"),
        ([0.5, 1.0], datasets.Value("float32"), r"row 0: a label is a text or a whole number.*got 0\.5"),
        ([[0, 1], [1]], datasets.List(datasets.Value("int64")), r"row 0: a label is .*got \[0, 1\]"),
        ([0, -1], datasets.ClassLabel(names=NAMES), "row 1: the label is -1, there are 3 classes"),
    ],
)
def test_bad_labels(values, kind, message):
    with pytest.raises(ValueError, match=message):
        open_split(relabelled(values, kind))


def test_classes(whole, caplog):
    data = open_split(whole, "train", classes=["bird", "cat"])
    assert data.class_names == ["bird", "cat"]
    assert numbers(data) == [row for row in range(ROWS) if row % 3 != 1]
    assert [data.target(index) for index in range(4)] == [1, 0, 1, 0] and data.name(1).endswith("row 2")
    other = data.with_classes(["cat", "fish", "bird"])
    assert [other.target(index) for index in range(2)] == [0, 2] and data.target(0) == 1
    with pytest.raises(ValueError, match=r"class 'cat' of Dataset is none of the known classes \['bird'\]"):
        data.with_classes(["bird"])
    with pytest.raises(ValueError, match=r"no images of class 'fish' for train; its classes: \['bird', 'cat', 'dog'\]"):
        open_split(whole, classes=["cat", "fish"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(columns=dict(image="picture")),
            r"no column 'picture'; its columns: \['image', 'label', 'mask',",
        ),
        (dict(columns=dict(masks="mask")), r"columns are given for \('image', 'label', 'mask', 'boxes'\), got 'masks'"),
        (dict(box_format="yxyx"), r"box_format is one of \('xyxy', 'xywh'\), got 'yxyx'"),
    ],
)
def test_bad_columns(whole, options, message):
    with pytest.raises(ValueError, match=message):
        open_split(whole, **options)


def test_boxes():
    boxes = [[[3.0, 4.0, 17.0, 6.0], [0.0, 0.0, 48.0, 32.0]], [], [[0.0, 0.0, 20.0, 40.0]]]
    data = open_split(make(range(3), boxes=boxes), columns=dict(boxes="boxes"), box_format="xywh")
    assert data[0].boxes == [(3.0, 4.0, 20.0, 10.0), (0.0, 0.0, 48.0, 32.0)] and data[1].boxes == []
    with pytest.raises(BoxError, match=r"a box of Dataset, row 2 is \(0, 0, 20, 40\), the image is 48 x 32"):
        data[2]
    data = open_split(make(range(1), boxes=[[[1.0, 2.0]]]), columns=dict(boxes="boxes"))
    with pytest.raises(BoxError, match=r"row 0 is \[\[1.0, 2.0\]\], expected a list of four numbers a box"):
        data[0]


# Parts


@pytest.fixture(scope="module")
def parts():
    return datasets.DatasetDict(train=make(range(12)), validation=make(range(12, 16)), test=make(range(16, 20)))


def test_parts(parts):
    assert [numbers(open_split(parts, split)) for split in ("train", "valid", "test")] == [
        list(range(12)),
        list(range(12, 16)),
        list(range(16, 20)),
    ]
    assert numbers(open_split(parts, "train", split_names={"train": "test"})) == [16, 17, 18, 19]


def test_validation_part_is_held_out(caplog):
    """15 % of each class, with a documented draw; the two parts make the whole again."""
    rows = range(0, 60)
    whole = datasets.DatasetDict(train=make(rows))
    caplog.set_level("INFO", "minmax_entropy")
    train, valid = open_split(whole, "train"), open_split(whole, "valid")
    assert sorted(numbers(train) + numbers(valid)) == list(rows) and len(valid) == 9
    expected = [3 * position + k for k in range(3) for position in np.random.default_rng([0, k]).permutation(20)[:3]]
    assert numbers(valid) == sorted(expected)
    assert "DatasetDict, train has no validation part: 9 of 60 images are held out" in caplog.text
    assert numbers(open_split(whole, "valid", seed=1)) != numbers(valid)
    chosen = open_split(whole, "valid", classes=["dog"])
    assert numbers(chosen) == [number for number in numbers(valid) if number % 3 == 1]


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (None, "test", r"no part for 'test'; its parts: \['train', 'dev'\]\. Say split_names={'test': \.\.\.}"),
        ({"valid": "val"}, "valid", r"no part for 'valid'; its parts: \['train', 'dev'\]"),
    ],
)
def test_part_that_is_missing(whole, names, split, message):
    with pytest.raises(FileNotFoundError, match=message):
        open_split(datasets.DatasetDict(train=whole, dev=whole), split, split_names=names)


def test_part_of_an_unknown_name(parts):
    with pytest.raises(ValueError, match=r"split_names are given for .* got 'validation'"):
        open_split(parts, split_names={"validation": "test"})


# Where it comes from


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, parts):
    """A folder as the Hub has it: a Parquet file for each part."""
    root = tmp_path_factory.mktemp("parquet")
    for name, part in parts.items():
        (root / "data").mkdir(exist_ok=True)
        part.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


def test_folder_of_parquet_files(parquet):
    data = open_split(f"hf:{parquet}", "valid", **ALL)
    assert numbers(data) == [12, 13, 14, 15] and data.class_names == NAMES
    np.testing.assert_array_equal(data[1].mask, mask(13) > 0)
    assert data.name(1) == f"{parquet}, validation, row 1"


def test_parquet_file_and_saved_data_set(parquet, parts, tmp_path):
    file = parquet / "data" / "test-00000-of-00001.parquet"
    assert numbers(open_split(f"hf:{file}", split_names={"train": "train", "valid": "none"})) == [16, 17, 18, 19]
    assert numbers(open_split("hf:parquet", "test", data_files={"test": str(file)})) == [16, 17, 18, 19]
    parts.save_to_disk(tmp_path / "saved")
    assert numbers(open_split(f"hf:{tmp_path / 'saved'}", "test")) == [16, 17, 18, 19]


def test_folder_of_images(tmp_path):
    """What `datasets` makes of class folders."""
    for part in ("train", "test"):
        for number in range(4):
            path = tmp_path / part / NAMES[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path)
    data = open_split(f"hf:{tmp_path}", "test")
    assert data.class_names == ["cat", "dog"] and sorted(numbers(data)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("hf:", ValueError, "'hf:' names no data set"),
        ("hf:/nowhere/at/all", FileNotFoundError, "no folder or file /nowhere/at/all"),
        ("hf:./nowhere", FileNotFoundError, "no folder or file nowhere"),
    ],
)
def test_bad_source(source, error, message):
    with pytest.raises(error, match=message):
        open_split(source)


def test_file_of_another_kind(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt is none of \.parquet, \.arrow"):
        open_split(f"hf:{tmp_path / 'a.txt'}")


def test_datasets_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "minmax-entropy\[data\]"'):
        open_split(f"hf:{tmp_path}")


# Streams


def test_stream(parquet, parts):
    for source, options in ((f"hf:{parquet}", dict(streaming=True)), (parts, dict(streaming=True))):
        data = open_split(source, "train", **ALL, **options)
        assert isinstance(data, HubStream) and isinstance(data, LabelledStream) and data.class_names == NAMES
        for _ in range(2):
            samples = list(data)
            assert [number_of(sample.image) for sample in samples] == list(range(12))
        assert [sample.target for sample in samples] == [row % 3 for row in range(12)]
        assert all(sample.mask is None for sample in samples) and samples[3].boxes == [(3.0, 4.0, 20.0, 11.0)]
        data.with_masks = True
        for row, sample in enumerate(data):
            np.testing.assert_array_equal(sample.mask, mask(row) > 0)


def test_stream_of_an_object(whole):
    assert numbers(open_split(whole.to_iterable_dataset(num_shards=4), "test")) == list(range(ROWS))

    def rows():
        for number in range(3):
            yield {"image": picture(number), "label": "ab"[number % 2]}

    stream = open_split(datasets.IterableDataset.from_generator(rows), classes=["b", "a"])
    assert [(number_of(sample.image), sample.target) for sample in stream] == [(0, 1), (1, 0), (2, 1)]


def test_shuffled_stream(whole):
    """The same order for the same seed; every image once; the stream itself stays as it is."""
    stream = open_split(whole, streaming=True)
    shuffled = numbers(stream.shuffled(seed=1, buffer_size=8))
    assert shuffled == numbers(stream.shuffled(seed=1, buffer_size=8)) != numbers(stream.shuffled(2, buffer_size=8))
    assert sorted(shuffled) == numbers(stream) == list(range(ROWS)) != shuffled


@pytest.mark.parametrize("classes", [None, ["dog", "bird"]])
def test_stream_goes_on_where_it_stopped(whole, classes):
    """Skipping is the same before and after shuffling, and counts images of the classes alone."""
    stream = open_split(whole, streaming=True, classes=classes)
    plain, shuffled = numbers(stream), numbers(stream.shuffled(3, buffer_size=6))
    assert len(plain) == (20 if classes is None else 13)
    assert numbers(stream.skip(5)) == numbers(stream.skip(2).skip(3)) == plain[5:]
    assert numbers(stream.shuffled(3, buffer_size=6).skip(5)) == shuffled[5:]
    assert numbers(stream.skip(5).shuffled(3, buffer_size=6)) == shuffled[5:]
    assert numbers(stream.skip(20)) == [] and numbers(stream) == plain
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        stream.skip(-1)


def test_damaged_image_in_a_stream():
    """Its error names the row, and the stream goes on; it counts for `skip`."""
    images = [{"bytes": b"x" if row == 1 else encoded(picture(row)), "path": None} for row in range(4)]
    stream = open_split(make(range(4), image=images), streaming=True)
    iterator = iter(stream)
    assert number_of(next(iterator).image) == 0
    with pytest.raises(DamagedFileError, match="Dataset, row 1 of the stream can't be read as an image"):
        next(iterator)
    assert [number_of(sample.image) for sample in iterator] == [2, 3]
    assert numbers(stream.skip(2)) == [2, 3]


def test_stream_reads_no_mask_that_is_not_asked_for(whole, monkeypatch):
    """The column is left out: of Parquet files on the Hub, it is not even fetched."""
    chosen, select = [], datasets.IterableDataset.select_columns
    monkeypatch.setattr(
        datasets.IterableDataset, "select_columns", lambda self, names: (chosen.append(names), select(self, names))[1]
    )
    stream = open_split(whole, streaming=True, **ALL)
    next(iter(stream))
    stream.with_masks = True
    next(iter(stream))
    assert chosen == [["image", "label", "boxes"], ["image", "label", "mask", "boxes"]]


def test_stream_decodes_no_mask_that_is_not_asked_for():
    stream = open_split(make(range(3), mask=[{"bytes": b"x", "path": None}] * 3), streaming=True, **ALL)
    assert numbers(stream) == [0, 1, 2]
    stream.with_masks = True
    with pytest.raises(DamagedFileError):
        next(iter(stream))


def test_streams_that_are_refused(parts):
    texts = relabelled(["a", "b"], datasets.Value("string"))
    with pytest.raises(ValueError, match=r"read as a stream, and the column 'label' has no names: give classes="):
        open_split(texts, streaming=True)
    with pytest.raises(ValueError, match=r"Dataset has no images of the classes \['c'\]"):
        list(open_split(texts, streaming=True, classes=["c"]))
    with pytest.raises(FileNotFoundError, match="no validation part, and none can be held out from a stream"):
        open_split(datasets.DatasetDict(train=parts["train"]), "valid", streaming=True)
    with pytest.raises(ValueError, match=r"a class is named twice in \['a', 'a'\]"):
        open_split(texts, streaming=True, classes=["a", "a"])


def test_mask_of_another_size_in_a_stream():
    small = encoded(Image.fromarray(mask(0)[:5]))
    stream = open_split(make(range(1), mask=[{"bytes": small, "path": None}]), streaming=True, **ALL)
    stream.with_masks = True
    with pytest.raises(DamagedFileError, match="mask of Dataset, row 0 of the stream is 5 x 48, the image is 32 x 48"):
        next(iter(stream))
