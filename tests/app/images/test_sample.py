"""The synthetic scene: three valid files, and logits with plausible errors."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from app.formats import png
from app.images.palettes import PALETTES
from app.images.sample import SampleFiles, make_sample


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SampleFiles:
    return make_sample(tmp_path_factory.mktemp("sample") / "new" / "folder")


@pytest.fixture(scope="module")
def labels(files: SampleFiles) -> npt.NDArray[np.int64]:
    label_map = png.read_label_map(
        files.labels.read_bytes(),
        where="labels",
        palette=None,
        max_pixels=256 * 512,
    )
    assert label_map.mode == "P"
    return label_map.indices.astype(np.int64)


@pytest.fixture(scope="module")
def logits(files: SampleFiles) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = np.load(files.logits, allow_pickle=False)
    return array


def test_exactly_three_files_are_written(files: SampleFiles) -> None:
    folder = files.photo.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "labels.png",
        "logits.npy",
        "photo.png",
    ]


def test_the_photo_has_the_size_of_the_labels(files: SampleFiles) -> None:
    photo = png.read_photo(files.photo.read_bytes(), where="image", max_pixels=256 * 512)
    assert photo.shape == (256, 512, 3)
    assert 80 < photo.mean() < 180


def test_all_classes_but_the_train_occur(labels: npt.NDArray[np.int64]) -> None:
    train = PALETTES["cityscapes"].class_names.index("train")
    assert set(np.unique(labels).tolist()) == {*range(19), 255} - {train}


def test_void_borders_and_the_bonnet_are_ignored(labels: npt.NDArray[np.int64]) -> None:
    ignored = labels == 255
    assert 0.05 < ignored.mean() < 0.15
    assert ignored[-1, 20:-20].all()
    assert not ignored[: 256 // 5].any()


def test_the_logits_are_finite_and_float32(logits: npt.NDArray[np.float32]) -> None:
    assert (logits.shape, logits.dtype.name) == ((1, 19, 256, 512), "float32")
    assert np.isfinite(logits).all()


def test_the_network_is_imperfect_and_too_confident(
    labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]
) -> None:
    valid = labels != 255
    scores = logits[0].astype(np.float64)
    highest = scores.max(axis=0)
    log_normalizer = highest + np.log(np.exp(scores - highest).sum(axis=0))
    picked = np.take_along_axis(scores, np.where(valid, labels, 0)[None], axis=0)[0]
    accuracy = (scores.argmax(axis=0) == labels)[valid].mean()
    confidence = np.exp(highest - log_normalizer)[valid].mean()
    assert 0.85 < accuracy < 0.93
    assert 0.3 < (log_normalizer - picked)[valid].mean() < 0.6
    assert accuracy + 0.02 < confidence < accuracy + 0.10


def test_the_same_size_overwrites_with_the_same_files(tmp_path: Path) -> None:
    def digests() -> list[str]:
        files = make_sample(tmp_path, height=64, width=128)
        return [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (files.photo, files.labels, files.logits)
        ]

    assert digests() == digests()


def test_files_of_other_names_are_not_changed(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    make_sample(tmp_path, height=32, width=32)
    assert other.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("size", [(33, 71), (64, 32), (40, 200)])
def test_odd_sizes_are_drawn_too(tmp_path: Path, size: tuple[int, int]) -> None:
    files = make_sample(tmp_path, height=size[0], width=size[1])
    assert np.load(files.logits).shape == (1, 19, *size)
    photo = png.read_photo(files.photo.read_bytes(), where="image", max_pixels=1 << 16)
    assert photo.shape == (*size, 3)


def test_sizes_below_32_pixels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 32 pixels, got 31 x 512"):
        make_sample(tmp_path, height=31)


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError):
        make_sample(tmp_path / "taken", height=32, width=32)
    assert (tmp_path / "taken").read_text() == "mine"
