"""Data sets on disk: their layouts, and the list of everything that is wrong with them."""

import numpy as np
import pytest
from PIL import Image
from training_data import NUM_CLASSES, make_labels, write_pair, write_voc

from app.errors import IllPosed
from app.images.palettes import PALETTES
from app.training.data import MAX_LISTED, LabelFormat, check, find

LABELS = LabelFormat(NUM_CLASSES)


def names(pairs):
    return [pair.name for pair in pairs]


def problems_of(root, labels=LABELS, **options):
    return check(find(root, **options), labels).problems


def test_the_lists_of_voc_name_the_splits(voc):
    data = find(voc)
    assert data.layout == "VOC"
    assert names(data.train) == [f"2007_{index:06d}" for index in range(6)]
    assert names(data.val) == ["2007_000006", "2007_000007"]
    assert data.train[0].photo == voc / "JPEGImages" / "2007_000000.png"
    assert data.train[0].labels == voc / "SegmentationClass" / "2007_000000.png"
    assert check(data, LABELS).problems == ()


def test_a_list_may_have_a_second_column_and_empty_lines(tmp_path):
    root = write_voc(tmp_path / "voc", 2, 0)
    path = root / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("2007_000000  1\r\n\n2007_000001 -1\n")
    assert names(find(root, val_split=None).train) == ["2007_000000", "2007_000001"]


@pytest.mark.parametrize("labels", ["labels", "annotations", "masks"])
@pytest.mark.parametrize("split", ["{split}/{kind}", "{kind}/{split}"])
@pytest.mark.parametrize("names_of_splits", [("train", "val"), ("training", "validation")])
def test_splits_are_folders_inside_or_outside(tmp_path, labels, split, names_of_splits):
    for seed, name in enumerate(names_of_splits):
        photo, label = (
            tmp_path / split.format(split=name, kind=kind) / "a" / f"{seed}.png"
            for kind in ("images", labels)
        )
        write_pair(photo, label, seed)
    data = find(tmp_path)
    assert (names(data.train), names(data.val)) == (["a/0"], ["a/1"])


def test_a_flat_folder_is_divided_by_the_seed(tmp_path):
    for seed in range(10):
        write_pair(tmp_path / f"images/{seed}.png", tmp_path / f"labels/{seed}.png", seed)
    data = find(tmp_path, val_fraction=0.3, seed=4)
    assert (len(data.train), len(data.val)) == (7, 3)
    assert sorted(names(data.train) + names(data.val)) == [f"{index}" for index in range(10)]
    assert find(tmp_path, val_fraction=0.3, seed=4) == data
    assert find(tmp_path, val_fraction=0.3, seed=5) != data
    assert len(find(tmp_path, val_fraction=0.01).val) == 1
    assert find(tmp_path, val_split=None).val == ()


def test_a_flat_folder_may_have_lists(tmp_path):
    for seed in range(3):
        write_pair(tmp_path / f"images/{seed}.png", tmp_path / f"labels/{seed}.png", seed)
    (tmp_path / "train.txt").write_text("2\n0\n")
    (tmp_path / "val.txt").write_text("1\n")
    data = find(tmp_path)
    assert (names(data.train), names(data.val)) == (["2", "0"], ["1"])


def test_cityscapes_has_two_kinds_of_labels(tmp_path):
    for seed, split in enumerate(("train", "val")):
        photo = tmp_path / "leftImg8bit" / split / "ulm" / "ulm_0_leftImg8bit.png"
        labels = tmp_path / "gtFine" / split / "ulm" / "ulm_0_gtFine_labelTrainIds.png"
        write_pair(photo, labels, seed)
        write_pair(photo, labels.with_name("ulm_0_gtFine_labelIds.png"), seed)
        write_pair(photo, labels.with_name("ulm_0_gtFine_color.png"), seed)
    data = find(tmp_path)
    assert data.layout == "Cityscapes"
    assert names(data.train) == names(data.val) == ["ulm/ulm_0"]
    assert data.train[0].labels.name == "ulm_0_gtFine_labelTrainIds.png"
    data = find(tmp_path, label_space="cityscapes_ids")
    assert data.val[0].labels.name == "ulm_0_gtFine_labelIds.png"
    assert data.problems == ()
    with pytest.raises(IllPosed, match=r"the folder leftImg8bit/test, got no such folder"):
        find(tmp_path, val_split="test")


def test_a_folder_of_no_layout_is_an_error_that_names_them(tmp_path):
    with pytest.raises(IllPosed, match=r"data: expected a data set, got .*JPEGImages.*images"):
        find(tmp_path)
    with pytest.raises(IllPosed, match="data: expected a folder, got"):
        find(tmp_path / "missing")


def test_a_split_without_a_list_or_a_folder_is_an_error(voc, tmp_path):
    with pytest.raises(IllPosed, match=r"the list ImageSets/Segmentation/test.txt, got no such"):
        find(voc, val_split="test")
    write_pair(tmp_path / "train/images/0.png", tmp_path / "train/labels/0.png", 0)
    with pytest.raises(IllPosed, match=r"val_split: .* got 'val'. Pass val_split=none"):
        find(tmp_path)
    assert len(find(tmp_path, val_split=None).train) == 1


def test_a_data_set_without_training_images_is_an_error(tmp_path):
    root = write_voc(tmp_path / "voc", 0, 1)
    with pytest.raises(IllPosed, match="at least one training image, got none"):
        find(root)


def test_every_problem_is_in_one_list(tmp_path):
    root = write_voc(tmp_path / "voc", 7, 1)
    photos, labels = root / "JPEGImages", root / "SegmentationClass"
    (photos / "2007_000000.png").unlink()
    (labels / "2007_000001.png").unlink()
    Image.fromarray(make_labels(0, height=21)).save(labels / "2007_000002.png")
    (photos / "2007_000003.png").write_bytes(b"no picture")
    content = (labels / "2007_000004.png").read_bytes()
    (labels / "2007_000004.png").write_bytes(content[:-20])
    values = make_labels(0)
    values[0, :3] = (3, 3, 17)
    Image.fromarray(values).save(labels / "2007_000005.png")
    Image.fromarray(np.full((20, 24, 3), 9, np.uint8)).save(labels / "2007_000006.jpg")
    (labels / "2007_000006.png").unlink()
    with (root / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("../2007_000000\n2007_000001\n")
    problems = {problem.path: (problem.kind, problem.sentence) for problem in problems_of(root)}
    folder = "SegmentationClass/2007_00000"
    assert problems["JPEGImages/2007_000000"][0] == "missing photos"
    assert problems[f"{folder}1"] == (
        "missing label maps",
        "there is no label map of this name.",
    )
    assert problems[f"{folder}2.png"] == (
        "labels of another size",
        "its size is 21 x 24, that of the photo 20 x 24.",
    )
    assert problems["JPEGImages/2007_000003.png"] == (
        "unreadable photos",
        "photo: expected a PNG or JPEG file, got another format.",
    )
    assert problems[f"{folder}4.png"][0] == "invalid label maps"
    assert "damaged" in problems[f"{folder}4.png"][1]
    assert problems[f"{folder}5.png"] == (
        "labels outside the classes",
        "expected 0...2 or 255, got 3 (2 pixels), 17 (1 pixel).",
    )
    assert problems[f"{folder}6"][0] == "missing label maps"
    assert problems["ImageSets/Segmentation/train.txt"][0] in ("invalid names", "repeated names")
    kinds = [problem.kind for problem in problems_of(root)]
    assert {"invalid names", "repeated names"} <= set(kinds)


def turn(path, orientation):
    """Writes an EXIF orientation into a photo, whose pixels stay."""
    with Image.open(path) as photo:
        photo.load()
        exif = photo.getexif()
        exif[0x0112] = orientation
        photo.save(path, exif=exif)


def test_photos_that_exif_turns_are_pointed_out(tmp_path):
    root = write_voc(tmp_path / "voc", 3, 0)
    photos = root / "JPEGImages"
    turn(photos / "2007_000000.png", 6)
    (problem,) = problems_of(root, val_split=None)
    assert problem.sentence == (
        "its size is 20 x 24, that of the photo 24 x 20. "
        "Its EXIF orientation turns the photo upright: turn the labels too."
    )
    turn(photos / "2007_000000.png", 3)  # of the same size
    with Image.open(photos / "2007_000001.png") as photo:
        exif = photo.getexif()
        exif[0x0112] = 2
        (photos / "2007_000001.png").unlink()
        photo.save(photos / "2007_000001.jpg", exif=exif)
    turn(photos / "2007_000002.png", 1)
    report = check(find(root, val_split=None), LABELS)
    assert (report.problems, report.turned) == ((), 2)


def test_a_long_list_ends_with_the_number_of_the_others(tmp_path):
    root = write_voc(tmp_path / "voc", MAX_LISTED + 5, 0)
    for path in (root / "SegmentationClass").iterdir():
        path.unlink()
    report = check(find(root, val_split=None), LABELS)
    lines = list(report.lines())
    assert len(lines) == MAX_LISTED + 1
    assert lines[0] == ("  SegmentationClass/2007_000000: there is no label map of this name.")
    assert lines[-1] == "  ... and 5 more missing label maps"
    error = report.error(25)
    assert f"{error}" == (
        "data: expected 25 images and labels that fit, got missing label maps: 25."
    )


def test_labels_of_another_space_are_recognised(tmp_path):
    root = tmp_path / "ade"
    for seed in range(3):
        write_pair(root / f"train/images/{seed}.png", root / f"train/labels/{seed}.png", seed)
        values = make_labels(seed).astype(np.uint8)
        Image.fromarray(np.where(values == 255, 0, values + 1).astype(np.uint8)).save(
            root / f"train/labels/{seed}.png"
        )
    problems = problems_of(root, val_split=None)
    assert {problem.kind for problem in problems} == {"labels outside the classes"}
    report = check(find(root, val_split=None), LabelFormat(3, label_space="ade_zero"))
    assert report.problems == ()
    assert report.pixels == tuple(
        sum(int((make_labels(seed) == value).sum()) for seed in range(3)) for value in range(3)
    )
    assert report.ignored_pixels == 3 * 24


def test_masks_get_advice_on_their_label_space(tmp_path):
    for seed in range(2):
        write_pair(tmp_path / f"images/{seed}.png", tmp_path / f"labels/{seed}.png", seed)
        mask = np.where(make_labels(seed) == 1, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"labels/{seed}.png")
    (advice,) = check(find(tmp_path), LabelFormat(2)).advice
    assert "label_space=binary_255" in advice


def test_coloured_labels_need_their_palette(tmp_path):
    write_pair(tmp_path / "images/0.png", tmp_path / "labels/0.png", 0)
    road = np.full((20, 24, 3), (128, 64, 128), np.uint8)
    Image.fromarray(road).save(tmp_path / "labels/0.png")
    (problem,) = problems_of(tmp_path)
    assert "Name the palette" in problem.sentence
    report = check(find(tmp_path), LabelFormat(19, palette=PALETTES["cityscapes"]))
    assert report.problems == ()
    assert report.pixels[0] == 20 * 24


def test_threads_find_the_same_in_the_same_order(tmp_path):
    root = write_voc(tmp_path / "voc", 8, 0)
    for path in sorted((root / "JPEGImages").iterdir())[::2]:
        path.write_bytes(b"")
    progress = []
    data = find(root, val_split=None)
    one = check(data, LABELS)
    assert check(data, LABELS, workers=4, progress=lambda *n: progress.append(n)) == one
    assert progress == [(done, 8) for done in range(1, 9)]
    assert len(one.problems) == 4
