"""Published data sets in the layout of their archives, lists, boxes, and how a source is recognized."""

import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from minmax_entropy.data import (
    BoxError,
    DamagedFileError,
    ImageFiles,
    Record,
    SyntheticShapes,
    image_size,
    list_readers,
    open_split,
    register_reader,
    synthetic,
)
from minmax_entropy.data import cub as cub_module
from minmax_entropy.data import flowers as flowers_module
from minmax_entropy.data import glas as glas_module
from minmax_entropy.data import sources as sources_module
from minmax_entropy.data.cub import CUB5_CLASSES
from minmax_entropy.data.downloads import Download
from minmax_entropy.data.flowers import read_flowers_mask
from minmax_entropy.data.selection import draw_per_class
from minmax_entropy.engine import evaluate_all_ones
from minmax_entropy.reference import CLASSES

SPLITS = ("train", "valid", "test")
HEIGHT, WIDTH = 32, 48


def noise(height=HEIGHT, width=WIDTH, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def names(data):
    return [record.image.name for record in data.records]


def class_counts(data):
    return np.bincount([data.target(index) for index in range(len(data))], minlength=len(data.class_names))


def open_all(source, **options):
    return {split: open_split(source, split, **options) for split in SPLITS}


def check_parts(parts, images):
    """Disjoint, and together everything."""
    found = [name for part in parts.values() for name in names(part)]
    assert len(found) == len(set(found)) == images


# GlaS: all 165 images, a few pixels each


GLAS_FOLDER = "Warwick QU Dataset (Released 2016_07_08)"
GRADES = {"testA": (33, 27), "testB": (4, 16), "train": (37, 48)}  # benign, malignant


def make_glas(root, grades=GRADES):
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for part, (benign, malignant) in grades.items():
        for number in range(1, benign + malignant + 1):
            grade, other = ("benign", "adenomatous") if number <= benign else ("malignant", "poorly differentiated")
            rows.append(f"{part}_{number},{number % 16}, {grade}, {other}")
            save(noise(6, 8, number), root / f"{part}_{number}.bmp")
            labels = np.zeros((6, 8), dtype=np.uint8)
            labels[1, 2:4], labels[4, 5:8] = 1, number % 7 + 2
            save(Image.fromarray(labels), root / f"{part}_{number}_anno.bmp")
    (root / "Grade.csv").write_text("\r\n".join(rows) + "\r\n")
    return root


@pytest.fixture(scope="module")
def glas(tmp_path_factory):
    root = tmp_path_factory.mktemp("glas")
    make_glas(root / GLAS_FOLDER)
    return root


@pytest.fixture
def own_glas(tmp_path):
    """A small copy to damage: 5 benign and 6 malignant images to train, of which 1 and 2 to validate, 3 to test."""
    return make_glas(tmp_path / "glas", {"testA": (1, 1), "testB": (0, 1), "train": (5, 6)})


def test_glas_splits(glas):
    parts = open_all(glas)
    check_parts(parts, 165)
    assert {split: class_counts(part).tolist() for split, part in parts.items()} == {
        "train": [29, 38],
        "valid": [8, 10],
        "test": [37, 43],
    }
    assert all(part.class_names == ["benign", "malignant"] for part in parts.values())
    assert all(name.startswith("test") == (split == "test") for split, part in parts.items() for name in names(part))
    assert names(open_split(f"glas:{glas / GLAS_FOLDER}", "valid")) == names(parts["valid"])
    assert names(open_split(glas, "valid", seed=1)) != names(parts["valid"])
    assert CLASSES["glas"] == parts["train"].class_names  # those of converted checkpoints


def test_glas_draw_is_the_documented_one(glas):
    """Benign images are train_1 to train_37 of this copy, malignant ones train_38 to train_85."""
    benign = np.random.default_rng([0, 0]).permutation(37)[:8] + 1
    malignant = np.random.default_rng([0, 1]).permutation(48)[:10] + 38
    expected = [f"train_{number}.bmp" for number in sorted([*benign, *malignant])]
    assert names(open_split(glas, "valid")) == expected
    assert benign.tolist() == [5, 35, 21, 19, 3, 4, 36, 25]  # NumPy's stream as it was when figures were measured


def test_glas_masks(glas):
    data = open_split(glas, "test")
    assert data.records[1].image.name == "testA_2.bmp"  # in the order of the numbers
    sample = data[1]
    expected = np.zeros((6, 8), dtype=bool)
    expected[1, 2:4] = expected[4, 5:8] = True
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.boxes is None
    np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(noise(6, 8, 2)))
    assert evaluate_all_ones(data)["mask_area"] == 1


def test_glas_annotation_with_a_palette(own_glas):
    labels = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 5)
    picture = Image.frombytes("P", labels.size, labels.tobytes())
    picture.putpalette([0, 0, 0, 0, 0, 0, 9, 9, 9, 255, 0, 0, 1, 2, 3])  # label 1 is black, too
    picture.save(own_glas / "testA_1_anno.bmp")
    np.testing.assert_array_equal(open_split(own_glas, "test").mask(0), np.asarray(labels) != 0)


def test_glas_without_masks_opens(own_glas, caplog):
    for path in own_glas.glob("*_anno.bmp"):
        path.unlink()
    caplog.set_level("INFO", "minmax_entropy")
    data = open_split(own_glas, "train")
    assert len(data) == 8 and data.mask(0) is None
    assert len(caplog.records) == 1 and "has no masks" in caplog.text


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("Grade.csv", r"no .*Grade\.csv: it is in warwick_qu_.*\.zip of .GlaS@MICCAI'2015.*, https://warwick.*extract"),
        ("train_3.bmp", r"no .*train_3\.bmp: it is in warwick_qu_dataset_released_2016_07_08\.zip"),
    ],
)
def test_glas_file_missing(own_glas, lost, message):
    (own_glas / lost).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        open_split(own_glas, "train") and open_split(own_glas, "valid")


def test_glas_one_mask_missing(own_glas):
    data = open_split(own_glas, "test")
    (own_glas / "testA_1_anno.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*testA_1_anno\.bmp: it is in warwick_qu"):
        data[0]
    assert data.image(0).size == (8, 6)  # training never opens it
    (own_glas.parent / "warwick_qu_dataset_released_2016_07_08.zip").touch()
    with pytest.raises(
        FileNotFoundError, match=rf"not extracted, or not completely: unzip .*\.zip in {own_glas.parent}$"
    ):
        data[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Grade\.csv has columns \[\], expected 'name' and 'grade \(glas\)'"),
        ("name,grade\ntrain_1,benign\n", r"has columns \['name', 'grade'\]"),
        ("name,grade (GlaS)\ntrain_1,healthy\n", r"line 2: expected .*malignant.*got \['train_1', 'healthy'\]"),
        ("name,grade (GlaS)\ntrain_1\n", r"line 2: expected"),
        ("name,grade (GlaS)\nvalid_1,benign\n", r"line 2: expected train_N"),
        ("name,grade (GlaS)\n\n,\ntrain_1,\n", r"line 4: expected .*got \['train_1', ''\]"),
        (b"name,grade (GlaS)\ntrain_1,b\xe9nin\n", r"Grade\.csv can't be read as CSV in UTF-8"),
    ],
)
def test_glas_bad_grades(own_glas, text, message):
    (own_glas / "Grade.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        open_split(own_glas)


# CUB-200-2011: lists of all 11,788 images, without files; small copies with files


SPECIES = {
    1: "Black_footed_Albatross",
    19: "Gray_Catbird",
    99: "Ovenbird",
    108: "White_necked_Raven",
    171: "Myrtle_Warbler",
    178: "Swainson_Warbler",
}


def make_cub(root, classes=range(1, 201), train=None, test=None, files=True):
    """The official counts: 5994 training images, of six classes 29 and 30 of the others, and 5794 test images."""
    lists = {name: [] for name in ("images", "train_test_split", "image_class_labels", "classes", "bounding_boxes")}
    number = 0
    for label in classes:
        name = f"{label:03d}.{SPECIES.get(label, f'Bird_{label}')}"
        lists["classes"].append(f"{label} {name}")
        (root / "images" / name).mkdir(parents=True)
        in_train = train or (29 if 20 < label <= 26 else 30)
        in_test = test or (28 if 20 < label <= 26 else 29)
        for position in range(in_train + in_test):
            number += 1
            file = f"{name}/{name[4:]}_{position:04d}_{number}.jpg"
            if files:
                (root / "images" / file).touch()
            lists["images"].append(f"{number} {file}")
            lists["train_test_split"].append(f"{number} {int(position % 2 == 0 or position >= 2 * in_test)}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["bounding_boxes"].append(f"{number} 10.0 5.0 20.5 40.0")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def add_masks(cub, folder):
    """Real images and segmentations for the test part: a gradient, so that every value occurs."""
    data = open_split(cub, "test")
    for record in data.records:
        save(noise(), record.image)
        relative = record.image.relative_to(record.image.parents[1]).with_suffix(".png")
        save(Image.fromarray(gradient()), folder / relative)


def gradient():
    return np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    root = tmp_path_factory.mktemp("cub")
    make_cub(root / "CUB_200_2011", files=False)
    return root


@pytest.fixture
def no_files(monkeypatch):
    """Open data sets of which the lists alone exist."""
    monkeypatch.setattr(Download, "require", lambda *arguments: None)


@pytest.fixture
def small_cub(tmp_path):
    root = make_cub(tmp_path / "CUB_200_2011", classes=(1, 2), train=9, test=2)
    add_masks(root, tmp_path / "segmentations")
    return root


def test_cub_splits(cub, no_files):
    parts = open_all(cub)
    check_parts(parts, 11_788)
    assert {split: len(part) for split, part in parts.items()} == {"train": 4794, "valid": 1200, "test": 5794}
    assert set(class_counts(parts["valid"])) == {6} and len(parts["valid"].class_names) == 200
    assert parts["train"].class_names[:2] == ["Black_footed_Albatross", "Bird_2"]
    ids = dict(line.split() for line in (cub / "CUB_200_2011/train_test_split.txt").read_text().splitlines())
    assert {ids[name[:-4].rsplit("_", 1)[1]] for name in names(parts["test"])} == {"0"}


def test_cub_draw_is_the_documented_one(cub, no_files):
    """Class 3, from the lists by hand."""
    folder = cub / "CUB_200_2011"
    tables = [
        [line.split()[1] for line in (folder / f"{name}.txt").read_text().splitlines()]
        for name in ("images", "image_class_labels", "train_test_split")
    ]
    members = [image for image, label, train in zip(*tables, strict=True) if (label, train) == ("3", "1")]
    drawn = sorted(np.random.default_rng([0, 3]).permutation(30)[:6])
    valid = open_split(f"cub:{folder}", "valid", ["Bird_3"])
    assert [f"003.Bird_3/{name}" for name in names(valid)] == [members[position] for position in drawn]


def test_cub5(cub, no_files):
    parts = open_all(f"cub5:{cub}")
    assert {split: len(part) for split, part in parts.items()} == {"train": 120, "valid": 30, "test": 145}
    assert all(class_counts(part).min() == class_counts(part).max() for part in parts.values())
    assert list(CUB5_CLASSES) == CLASSES["cub5"] == parts["test"].class_names  # those of converted checkpoints
    assert set(names(parts["valid"])) < set(names(open_split(cub, "valid")))
    assert open_split(f"cub5:{cub}", "test", ["Ovenbird", "Gray_Catbird"]).class_names == ["Ovenbird", "Gray_Catbird"]


def test_cub_masks_and_boxes(small_cub):
    """The value 127 is background, 128 is foreground; the box is cut off at the lower border."""
    for place in (small_cub, small_cub.parent, small_cub / "."):
        sample = open_split(place, "test")[1]
        np.testing.assert_array_equal(sample.mask, gradient() >= 128)
        assert sample.boxes == [(10.0, 5.0, 30.5, HEIGHT)]
    shutil.move(small_cub.parent / "segmentations", small_cub / "segmentations")
    assert open_split(small_cub, "test")[1].mask.any()


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_cub_segmentations_of_other_modes(small_cub, mode):
    data = open_split(small_cub, "test")
    picture = Image.fromarray(gradient()).convert(mode)
    if mode.endswith("A"):
        picture.putalpha(7)  # does not count
    picture.save(data.records[0].mask)
    np.testing.assert_array_equal(data.mask(0), gradient() > 127)


def test_cub_faint_segmentation_is_empty(small_cub):
    """Marked by less than half of the annotators: background, though nothing else is brighter."""
    data = open_split(small_cub, "test")
    Image.fromarray(gradient() // 2).save(data.records[0].mask)
    assert not data.mask(0).any()


def test_cub_without_masks_opens(small_cub, caplog):
    shutil.rmtree(small_cub.parent / "segmentations")
    caplog.set_level("INFO", "minmax_entropy")
    data = open_split(small_cub, "test")
    assert data.mask(0) is None and data[0].boxes is not None
    assert len(caplog.records) == 1 and "segmentations.tgz of 'Perona Lab - CUB-200-2011'" in caplog.text


def test_cub_one_mask_missing(small_cub):
    data = open_split(small_cub, "test")
    data.records[1].mask.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{data.records[1].mask.name}: it is in segmentations\.tgz of"):
        data[1]


@pytest.mark.parametrize("name", ["images", "train_test_split", "image_class_labels", "classes"])
def test_cub_list_missing(small_cub, name):
    (small_cub / f"{name}.txt").unlink()
    for place in (small_cub, small_cub.parent):
        with pytest.raises(
            FileNotFoundError, match=rf"no .*{name}\.txt: it is in CUB_200_2011\.tgz of .*, https://"
        ) as e:
            open_split(place)
        assert str(e.value).endswith(f"extract that in {small_cub.parent}")


def test_cub_image_missing(small_cub):
    image = open_split(small_cub, "valid").records[3].image
    image.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{image.name}: it is in CUB_200_2011\.tgz"):
        open_split(small_cub, "valid")
    assert len(open_split(small_cub, "train")) == 6


def test_cub_boxes_may_be_missing(small_cub):
    (small_cub / "bounding_boxes.txt").unlink()
    assert open_split(small_cub, "test")[0].boxes is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda lines: lines[:-1], r"image_class_labels\.txt lists 22 images, images\.txt lists 21"),
        ("train_test_split", lambda lines: lines[:5], r"train_test_split\.txt lists 5 images, images\.txt lists 22"),
        ("bounding_boxes", lambda lines: lines[1:], r"bounding_boxes\.txt lists 21 images"),
        ("bounding_boxes", lambda lines: [], r"bounding_boxes\.txt lists 0 images"),
        ("bounding_boxes", lambda lines: ["1 2 3", *lines[1:]], r"bounding_boxes\.txt, line 1 is damaged: '1 2 3'"),
        ("image_class_labels", lambda lines: ["1 x", *lines[1:]], r"image_class_labels\.txt, line 1 is damaged: '1 x'"),
        ("image_class_labels", lambda lines: ["1 7", *lines[1:]], r"has classes that classes\.txt does not name"),
        (
            "train_test_split",
            lambda lines: [f"{i} {int(i < 7)}" for i in range(1, 23)],
            "a class has 6 training images",
        ),
    ],
)
def test_cub_bad_lists(small_cub, name, change, message):
    path = small_cub / f"{name}.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        open_split(small_cub)


@pytest.mark.parametrize(
    ("place", "lost"),
    [
        ("images", []),  # the folder below
        ("", ["images.txt"]),
        ("", ["images.txt", "train_test_split.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt"]),
    ],
)
def test_cub_is_never_taken_for_class_folders(small_cub, place, lost):
    for name in lost:
        (small_cub / name).unlink()
    with pytest.raises(FileNotFoundError, match="give the folder above" if place else r"images\.txt: it is in CUB_200"):
        open_split(small_cub / place)
    assert len(open_split(f"folders:{small_cub}", "train").class_names) == 2  # unless that is what is asked for


# Flowers 102: labels and parts of all 8189 images, without files; small copies with files


def make_flowers(root, images=8189, files=True):
    labels = np.arange(images) % 102 + 1
    order = np.random.default_rng(5).permutation(images) + 1
    parts = dict(trnid=order[:1020], valid=order[1020:2040], tstid=order[2040:])
    if images < 2040:
        parts = dict(trnid=order[:2], valid=order[2:3], tstid=order[3:])
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    scipy.io.savemat(root / "setid.mat", {key: ids[None].astype(np.uint16) for key, ids in parts.items()})
    (root / "jpg").mkdir()
    for number in range(1, images + 1 if files else 1):
        (root / "jpg" / f"image_{number:05d}.jpg").touch()
    return root


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    return make_flowers(tmp_path_factory.mktemp("flowers"), files=False)


@pytest.fixture
def few_flowers(tmp_path):
    root = tmp_path / "flowers"
    root.mkdir()
    return make_flowers(root, images=6)


def test_flowers_splits(flowers, no_files):
    parts = open_all(flowers)
    check_parts(parts, 8189)
    assert {split: len(part) for split, part in parts.items()} == {"train": 1020, "valid": 1020, "test": 6149}
    ids = scipy.io.loadmat(flowers / "setid.mat")
    for split, key in (("train", "trnid"), ("valid", "valid"), ("test", "tstid")):
        assert names(parts[split]) == [f"image_{number:05d}.jpg" for number in sorted(ids[key].ravel())]
    data = parts["test"]
    assert data.class_names == sorted(data.class_names) and len(data.class_names) == 102
    assert (data.class_names[0], data.class_names[-1]) == ("001", "102")
    number = int(data.records[7].image.stem[-5:])
    assert data.target(7) == (number - 1) % 102


def flower(colour, quality, subsampling):
    """A disc of petals on the segmentations' blue, and where it is."""
    rows, columns = np.mgrid[:96, :96]
    inside = np.hypot(rows - 50, columns - 44) < 30
    shade = np.random.default_rng(0).uniform(0.7, 1, (96, 96, 1))
    pixels = np.where(inside[..., None], np.asarray(colour) * shade, (0, 0, 254)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue(), inside


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [60, 90])
@pytest.mark.parametrize("colour", [(250, 250, 250), (230, 40, 60), (20, 20, 20), (130, 90, 220)])
def test_flowers_masks(tmp_path, colour, quality, subsampling):
    """The outline is found to a pixel or so, through JPEG's blur; nothing is found far from it."""
    data, inside = flower(colour, quality, subsampling)
    (tmp_path / "m.jpg").write_bytes(data)
    found = read_flowers_mask(tmp_path / "m.jpg")
    assert (found & inside).sum() / (found | inside).sum() > 0.94
    rows, columns = np.mgrid[:96, :96]
    distance = np.abs(np.hypot(rows - 50, columns - 44) - 30)
    np.testing.assert_array_equal(found[distance > 2], inside[distance > 2])


def test_flowers_samples(few_flowers):
    data = open_split(few_flowers, "train")
    assert data.mask(0) is None
    for record in data.records:
        content, _ = flower((230, 40, 60), 90, "4:4:4")
        noise(96, 96).save(record.image)
        mask = few_flowers / "segmim" / record.image.name.replace("image", "segmim")
        mask.parent.mkdir(exist_ok=True)
        mask.write_bytes(content)
    assert 0.2 < open_split(few_flowers, "train")[0].mask.mean() < 0.4
    mask.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no .*segmim_\d+\.jpg: it is in 102segmentations\.tgz of '102 Category"
    ):
        open_split(few_flowers, "train")[1]


def test_flowers_without_masks_say_so(few_flowers, caplog):
    caplog.set_level("INFO", "minmax_entropy")
    open_split(few_flowers, "test")
    assert len(caplog.records) == 1 and "no masks: 102segmentations.tgz of '102 Category" in caplog.text


@pytest.mark.parametrize("lost", ["setid.mat", "imagelabels.mat"])
def test_flowers_mat_missing(few_flowers, lost):
    (few_flowers / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{lost}: download {lost} from '102 Category.*robots\.ox"):
        open_split(few_flowers)


def test_flowers_image_missing(few_flowers):
    shutil.rmtree(few_flowers / "jpg")
    with pytest.raises(FileNotFoundError, match=r"no .*image_\d+\.jpg: it is in 102flowers\.tgz of"):
        open_split(few_flowers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: path.write_bytes(b"<html>404</html>"), r"setid\.mat can't be read as a MATLAB file: ."),
        (lambda path: scipy.io.savemat(path, {"other": [1]}), r"setid\.mat has no 'trnid'"),
        (lambda path: scipy.io.savemat(path, {"trnid": [[7]]}), r"names images 1 to 7, imagelabels\.mat has 6"),
    ],
)
def test_flowers_bad_mat(few_flowers, content, message):
    content(few_flowers / "setid.mat")
    with pytest.raises(ValueError, match=message):
        open_split(few_flowers)


def test_flowers_need_scipy(few_flowers, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r'pip install "minmax-entropy\[data\]"'):
        open_split(few_flowers)


# Archives that are not extracted


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        ("warwick_qu_dataset_released_2016_07_08.zip", r"no .*Grade\.csv: .*\.zip is not extracted.*: unzip warwick"),
        ("CUB_200_2011.tgz", r"no .*images\.txt: .*CUB_200_2011\.tgz is not extracted.*: tar -xf CUB_200_2011\.tgz in"),
        ("102flowers.tgz", r"no .*imagelabels\.mat: download imagelabels\.mat from"),
    ],
)
def test_archive_that_is_not_extracted(tmp_path, archive, message):
    (tmp_path / archive).touch()
    with pytest.raises(FileNotFoundError, match=message):
        open_split(tmp_path)


def test_mask_archive_that_is_not_extracted(small_cub, few_flowers):
    data = open_split(small_cub, "test")
    (small_cub.parent / "segmentations.tgz").touch()
    data.records[0].mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"segmentations\.tgz is not extracted, or not completely"):
        data.mask(0)
    shutil.rmtree(few_flowers / "jpg")
    (few_flowers / "102flowers.tgz").touch()
    with pytest.raises(FileNotFoundError, match=rf"102flowers\.tgz is not extracted.* in {few_flowers}$"):
        open_split(few_flowers)


# Sources


def test_sources_are_recognized(glas, cub, flowers, no_files, tmp_path):
    """By their files alone, as with the prefix; options reach the reader."""
    for prefix, place in (("glas", glas), ("cub", cub), ("flowers", flowers)):
        assert names(open_split(place, "valid")) == names(open_split(f"{prefix}:{place}", "valid"))
    save(noise(), tmp_path / "a" / "1.png")
    assert names(open_split(tmp_path)) == names(open_split(f"folders:{tmp_path}")) == ["1.png"]
    (tmp_path / "train.csv").write_text("a/1.png,,b\n")
    assert open_split(tmp_path).class_names == open_split(f"lists:{tmp_path}").class_names == ["b"]
    assert open_split(f"folders:{tmp_path}").class_names == ["a"]
    assert {"cub", "cub5", "flowers", "folders", "glas", "hf", "lists", "shapes"} <= set(list_readers())


def test_lists_come_before_what_else_is_in_a_folder(own_glas):
    (own_glas / "train.csv").write_text("train_1.bmp,train_1_anno.bmp,x\n")
    assert names(open_split(own_glas)) == ["train_1.bmp"]


def test_folder_of_several_data_sets(small_cub):
    make_glas(small_cub.parent / GLAS_FOLDER, {"train": (5, 5), "testA": (2, 2)})
    with pytest.raises(ValueError, match=rf"holds several data sets: say which one, .*cub:{small_cub.parent}"):
        open_split(small_cub.parent)
    assert len(open_split(f"glas:{small_cub.parent}", "test")) == 4


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("glass:nowhere", {}, FileNotFoundError, r"no folder glass:nowhere \(known prefixes: cub, cub5, .*shapes\)"),
        ("glas:nowhere", {}, FileNotFoundError, "no folder nowhere"),
        ("glas:", {}, ValueError, "'glas:' names no folder: write glas:FOLDER"),
        ("flowers:.", dict(seed=1), TypeError, "flowers: has no option 'seed'; its options: none"),
        ("cub:.", dict(sed=1), TypeError, "cub: has no option 'sed'; its options: seed"),
        ("shapes:64", {}, ValueError, "nothing behind it, got '64'"),
        (3, {}, TypeError, "a source is a path, a text, or an object of `datasets`, got int"),
    ],
)
def test_bad_sources(source, options, error, message):
    with pytest.raises(error, match=message):
        open_split(source, **options)


def test_a_path_has_no_prefix(tmp_path, monkeypatch):
    save(noise(), tmp_path / "glas:mine" / "a" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert names(open_split(type(tmp_path)("glas:mine"))) == ["1.png"]


def test_prefix_of_an_own_reader():
    with pytest.raises(ValueError, match="a prefix is two or more lower-case letters and digits, got 'C'"):
        register_reader("C")


def test_draw_of_a_class_does_not_depend_on_the_others():
    targets = np.random.default_rng(0).integers(0, 4, 100)
    drawn = draw_per_class(targets, lambda count: count // 3, seed=7)
    for target in range(4):
        members = targets == target
        assert drawn[members].sum() == members.sum() // 3
        alone = draw_per_class(targets[members], lambda count: count // 3, seed=7)
        np.testing.assert_array_equal(drawn[members], alone)
    assert (draw_per_class(targets, lambda count: count // 3, seed=8) != drawn).any()


# Lists in other places


def test_explicit_lists(tmp_path):
    for name in ("a", "b", "c"):
        save(noise(), tmp_path / "images" / f"{name}.png")
    paths = {split: tmp_path / "splits" / f"fold_0_{split}.csv" for split in SPLITS}
    paths["train"].parent.mkdir()
    for path, name in zip(paths.values(), "abc", strict=True):
        path.write_text(f"{name}.png,,class {name}\n")
    for source in (tmp_path / "images", f"lists:{tmp_path / 'images'}"):
        parts = open_all(source, lists=paths)
        assert [names(part) for part in parts.values()] == [["a.png"], ["b.png"], ["c.png"]]
    with pytest.raises(FileNotFoundError, match=r"no list for 'test' is given, only for \['train'\]"):
        open_split(tmp_path / "images", "test", lists={"train": paths["train"]})
    with pytest.raises(FileNotFoundError, match=r"no list .*none\.csv"):
        open_split(tmp_path / "images", lists={"train": tmp_path / "none.csv"})
    with pytest.raises(ValueError, match=r"lists are given for \('train', 'valid', 'test'\), got 'val'"):
        open_split(tmp_path / "images", lists={"val": paths["valid"]})
    with pytest.raises(FileNotFoundError, match=r"has no list train\.csv"):
        open_split(f"lists:{tmp_path / 'images'}")


# Boxes


@pytest.fixture
def boxed(tmp_path):
    """Two images of 48 x 32 (width x height); `write(rows)` makes the list."""
    for name in ("1", "2"):
        save(noise(), tmp_path / "images" / "train" / "a" / f"{name}.jpg")

    def write(*rows, header="image,x0,y0,x1,y1"):
        (tmp_path / "boxes.csv").write_text("\n".join([header, *rows]))
        return tmp_path

    return write


def test_boxes_of_class_folders(boxed):
    root = boxed("train/a/1.jpg,1,2,30.5,32", "", " train/a/1.jpg , 0,0, 48,4 ")
    data = open_split(root)
    assert data[0].boxes == data.boxes(0) == [(1, 2, 30.5, 32), (0, 0, 48, 4)] and data[1].boxes is None
    assert data.with_classes(["b", "a"])[0].boxes == data[0].boxes


@pytest.mark.parametrize(
    ("rows", "header", "error", "message"),
    [
        (["train/a/1.jpg,1,2,30"], None, ValueError, r"boxes\.csv, line 2: a row is image,x0,y0,x1,y1 with x0 < x1"),
        (["train/a/1.jpg,1,2,30,x"], None, ValueError, "line 2: a row is"),
        (["train/a/1.jpg,1,2,30,nan"], None, ValueError, "line 2: a row is"),
        (["", "train/a/1.jpg,30,2,30,4"], None, ValueError, "line 3: a row is"),
        (["train/a/1.jpg,1,5,30,4"], None, ValueError, "line 2: a row is"),
        (["a/1.jpg,1,2,30,4"], None, FileNotFoundError, r"line 2: no image .*images/a/1\.jpg"),
        ([], "image,x,y,w,h", ValueError, "the first line is image,x0,y0,x1,y1, got image,x,y,w,h"),
    ],
)
def test_bad_boxes(boxed, rows, header, error, message):
    root = boxed(*rows, **({} if header is None else dict(header=header)))
    with pytest.raises(error, match=message):
        open_split(root)


def test_box_outside_of_its_image(boxed):
    """One pixel more is a habit of counting; two are another image, or one on its side."""
    assert open_split(boxed("train/a/1.jpg,0,0,49,33"))[0].boxes == [(0, 0, 49, 33)]
    data = open_split(boxed("train/a/1.jpg,0,0,32,48"))
    with pytest.raises(
        BoxError, match=r"a box of .*1\.jpg is \(0, 0, 32, 48\), the image is 48 x 32 \(x, y\)"
    ) as caught:
        data[0]
    assert isinstance(caught.value, DamagedFileError)
    assert data.image(0).size == (WIDTH, HEIGHT)  # training never looks at it


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_image_mask_and_boxes_agree_on_photographs(tmp_path, orientation):
    """A photograph stored on its side: mask and box are those of the image as it is displayed."""
    displayed = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    displayed[8:16, 24:40] = 255
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "images" / "train" / "a" / "1.jpg"
    save(Image.fromarray(np.rot90(displayed, turns)), path, exif=exif, quality=95)
    save(Image.fromarray(displayed[..., 0]), tmp_path / "masks" / "train" / "a" / "1.png")
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\ntrain/a/1.jpg,24,8,40,16\n")
    sample = open_split(tmp_path)[0]
    (x0, y0, x1, y1) = map(int, sample.boxes[0])
    pixels = np.asarray(sample.image)
    assert pixels[sample.mask].min() > 200 and sample.mask[y0:y1, x0:x1].all() and sample.mask.sum() == 8 * 16
    assert image_size(path) == sample.image.size == (WIDTH, HEIGHT)


def test_image_size_of_a_damaged_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DamagedFileError, match=r"a\.jpg can't be read"):
        image_size(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="no file"):
        image_size(tmp_path / "b.jpg")


# Classes of another model or part


def test_with_classes(tmp_path):
    records = [Record(tmp_path / f"{name}.png", None, name) for name in "ab"]
    data = ImageFiles(records)
    other = data.with_classes(["c", "b", "a"])
    assert [other.target(0), other.target(1), data.target(0), data.target(1)] == [2, 1, 0, 1]
    with pytest.raises(ValueError, match=r"class 'b' of .*b\.png is none of the known classes \['a'\]"):
        data.with_classes(["a"])


# Embedded images


def test_shapes():
    parts = open_all("shapes:", length=6, size=32)
    first = [np.asarray(part.image(0)) for part in parts.values()]
    assert all((first[i] != first[j]).mean() > 0.3 for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_array_equal(first[2], np.asarray(SyntheticShapes(6, 32, seed=2).image(0)))
    assert (np.asarray(open_split("shapes:", "train", size=32, length=6, seed=1).image(0)) != first[2]).any()
    assert len(open_split("shapes:", "valid")) == 300 and parts["test"][0].boxes == parts["test"].boxes(0)


def test_shapes_of_some_classes():
    known = open_split("shapes:").class_names
    assert open_split("shapes:", classes=known[:3]).class_names == known[:3]
    with pytest.raises(ValueError, match=r"the classes are \['rows', 'columns'\], in this order; got \['dots'"):
        open_split("shapes:", classes=["dots", "rows"])


def test_shapes_keep_a_limited_number_of_images(monkeypatch):
    monkeypatch.setattr(synthetic, "KEPT_BYTES", 20_000)
    data = SyntheticShapes(30, 32)
    pixels = [np.asarray(data.image(index)) for index in range(30)]
    kept = [index for index in range(30) if data.image(index) is data.image(index)]
    assert 0 < len(kept) < 10 and kept[0] == 0
    assert sum(data.image(index).width ** 2 * 3 + data.instances(index).nbytes for index in kept) <= 20_000
    for index in range(30):
        np.testing.assert_array_equal(np.asarray(data.image(index)), pixels[index])


# What the documentation says


DOCS = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The folders that the snippets name."""
    data = tmp_path / "data"
    make_glas(data / "glas", {"testA": (1, 1), "testB": (1, 1), "train": (5, 6)})
    add_masks(make_cub(data / "cub" / "CUB_200_2011", SPECIES, train=9, test=2), data / "cub" / "segmentations")
    (data / "flowers").mkdir()
    make_flowers(data / "flowers", images=6)
    for name in ("train/cat/1.png", "train/dog/2.png", "train/fox/3.png", "one.png", "two.png"):
        save(noise(), data / "mine" / name)
        save(noise(), data / "pairs" / name)
    (data / "pairs" / "pairs.txt").write_text("one a\ntwo b\n")
    (data / "folds").mkdir()
    for part in ("train", "valid"):
        (data / "folds" / f"{part}_0.csv").write_text("train/cat/1.png,,cat\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources_module, "_READERS", dict(sources_module._READERS))
    return data


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL))
def test_documented_code_runs(documented, monkeypatch, code):
    if "hf:" in code:
        make_parquet(documented / "parquet", monkeypatch)
    names = {}
    exec(code, names)
    parts = [names[name] for name in SPLITS if name in names]
    assert parts or names["sample"].mask.shape == (HEIGHT, WIDTH)
    assert all(len(part) > 0 for part in parts)
    if "pairs" in code:  # recognized by its file, too
        assert [part.image(0).size for part in (*parts, open_split("data/pairs", suffix=".png"))] == [
            (WIDTH, HEIGHT)
        ] * 2


def make_parquet(root, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root.parent / "cache")
    root.mkdir()
    image = {"bytes": (root.parent / "mine" / "one.png").read_bytes(), "path": None}
    features = datasets.Features(
        image=datasets.Image(), mask=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])
    )
    for part in ("train", "test"):
        columns = dict(image=[image] * 20, mask=[image] * 20, label=[0, 1] * 10)
        dataset = datasets.Dataset.from_dict(columns, features=features)
        dataset.to_parquet(root / f"{part}-00000-of-00001.parquet")


def test_documented_figures():
    """The table's numbers of images are those that the tests above count."""
    for name, counts in {"glas": "67 / 18 / 80", "cub": "4794 / 1200 / 5794", "cub5": "120 / 30 / 145"}.items():
        assert re.search(rf"^\| `{name}:FOLDER` .* {counts}", DOCS, re.MULTILINE)
    assert {f"{name}:" for name in list_readers()} == set(re.findall(r"^\| `(\w+:)", DOCS, re.MULTILINE))
    for download in (cub_module.DOWNLOAD, flowers_module.DOWNLOAD, glas_module.DOWNLOAD):
        assert all(text in DOCS for text in (f"*{download.title}*", f"<{download.url}>", *download.files))
