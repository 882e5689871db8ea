"""A data set of synthetic street scenes: many different ones, the same at each call."""

from pathlib import Path

import numpy as np
import pytest

from app.formats import png
from app.images.palettes import PALETTES
from app.images.scenes import SPLITS, Scene, draw_scene, write_scenes

HEIGHT, WIDTH = 64, 128


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(number, height=HEIGHT, width=WIDTH) for number in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "new" / "folder"
    write_scenes(folder, 3, 2, height=HEIGHT, width=WIDTH)
    return folder


def test_a_scene_is_a_photo_and_labels_of_its_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert (scene.photo.shape, scene.photo.dtype.name) == ((HEIGHT, WIDTH, 3), "uint8")
        assert (scene.labels.shape, scene.labels.dtype.name) == ((HEIGHT, WIDTH), "uint8")


def test_a_number_gives_the_same_scene_each_time(scenes: list[Scene]) -> None:
    again = draw_scene(7, height=HEIGHT, width=WIDTH)
    assert np.array_equal(again.photo, scenes[7].photo)
    assert np.array_equal(again.labels, scenes[7].labels)


def test_all_19_classes_occur(scenes: list[Scene]) -> None:
    labels = np.stack([scene.labels for scene in scenes])
    assert set(np.unique(labels).tolist()) == {*range(19), 255}
    pixels = np.bincount(labels.ravel(), minlength=256)
    assert pixels[:19].min() > 0.001 * labels.size
    assert pixels[:19].max() < 0.3 * labels.size
    assert 0.02 < pixels[255] / labels.size < 0.15


def test_scenes_differ_in_layout_and_light(scenes: list[Scene]) -> None:
    labels = np.stack([scene.labels for scene in scenes])
    for number in range(1, len(labels)):
        agreement = (labels[:number] == labels[number]).mean(axis=(1, 2))
        assert agreement.max() < 0.9  # sky and road are at the same places
    brightness = [scene.photo.mean() for scene in scenes]
    assert max(brightness) > 1.3 * min(brightness)


def test_held_out_scenes_are_none_of_those_to_train_on(scenes: list[Scene]) -> None:
    for number in range(10):
        held_out = draw_scene(number, "val", height=HEIGHT, width=WIDTH)
        assert not any(np.array_equal(held_out.labels, scene.labels) for scene in scenes)


def test_the_same_scene_is_drawn_in_all_sizes() -> None:
    small, large = (draw_scene(3, height=h, width=2 * h).labels for h in (64, 192))
    nearest = large[1::3, 1::3]
    valid = (small != 255) & (nearest != 255)
    assert (small == nearest)[valid].mean() > 0.93


def test_the_data_set_has_the_folders_of_voc(folder: Path) -> None:
    names = [*(f"train_{number:04}" for number in range(3)), "val_0000", "val_0001"]
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(
        [
            *(f"JPEGImages/{name}.jpg" for name in names),
            *(f"SegmentationClass/{name}.png" for name in names),
            *(f"ImageSets/Segmentation/{split}.txt" for split in SPLITS),
            "class_names.txt",
        ]
    )
    for split in SPLITS:
        listed = (folder / f"ImageSets/Segmentation/{split}.txt").read_text().splitlines()
        assert listed == [name for name in names if name.startswith(split)]
    class_names = (folder / "class_names.txt").read_text().splitlines()
    assert tuple(class_names) == PALETTES["cityscapes"].class_names


@pytest.mark.parametrize("split", SPLITS)
def test_the_files_of_a_scene_hold_what_is_drawn(folder: Path, split: str) -> None:
    scene = draw_scene(1, split, height=HEIGHT, width=WIDTH)  # type: ignore[arg-type]
    photo = png.read_photo(
        (folder / f"JPEGImages/{split}_0001.jpg").read_bytes(), where="image", max_pixels=1 << 16
    )
    assert photo.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(photo.astype(int) - scene.photo).mean() < 12  # JPEG is lossy
    labels = png.read_label_map(
        (folder / f"SegmentationClass/{split}_0001.png").read_bytes(),
        where="labels",
        palette=None,
        max_pixels=1 << 16,
    )
    assert labels.mode == "P"
    assert np.array_equal(labels.indices, scene.labels)


def test_more_scenes_leave_the_first_ones_as_they_are(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, 4, 1, height=HEIGHT, width=WIDTH)
    for name in ("JPEGImages/train_0002.jpg", "SegmentationClass/val_0000.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_files_of_other_names_are_not_changed(tmp_path: Path) -> None:
    other = tmp_path / "JPEGImages" / "mine.jpg"
    other.parent.mkdir()
    other.write_text("mine")
    write_scenes(tmp_path, 1, 1, height=32, width=32)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("size", [(33, 71), (64, 32), (40, 200)])
def test_odd_sizes_are_drawn_too(size: tuple[int, int]) -> None:
    scene = draw_scene(0, height=size[0], width=size[1])
    assert scene.photo.shape == (*size, 3)
    assert scene.labels.shape == size


def test_sizes_below_32_pixels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 32 pixels, got 31 x 512"):
        draw_scene(0, height=31)
    with pytest.raises(ValueError, match="at least 32 pixels, got 256 x 8"):
        write_scenes(tmp_path, 1, 1, width=8)


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        write_scenes(tmp_path / "taken", 1, 1, height=32, width=32)
    assert (tmp_path / "taken").read_text() == "mine"
