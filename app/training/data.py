"""Data sets on disk: which photo belongs to which labels, and whether training can use them.

| layout | photos | labels | splits |
|---|---|---|---|
| VOC | JPEGImages/NAME.jpg | SegmentationClass/NAME.png | names in \
ImageSets/Segmentation/{train,val}.txt |
| folders of splits | train/images, val/images | train/labels, val/labels | the folders |
| splits in folders | images/train, images/val | labels/train, labels/val | the folders |
| flat | images | labels | names in train.txt and val.txt, or a share chosen by the seed |
| Cityscapes | leftImg8bit/train/CITY/NAME_leftImg8bit.png | \
gtFine/train/CITY/NAME_gtFine_labelTrainIds.png, or _labelIds for label_space=cityscapes_ids | the \
folders |

`annotations` and `masks` may stand for `labels`, and `training` and `validation` for `train` and
`val`, as in ADE20K. In folders a photo and a label map are a pair if their paths differ in the
suffix alone. Photos are PNG or JPEG, label maps PNG, TIFF or BMP.

`check` reads every file before the first step, so that a training does not end at its last image.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import IllPosed, RequestError, safe_repr
from ..formats import LABEL_MAP_SUFFIXES, PHOTO_SUFFIXES, png
from ..formats.rasters import Encoding, UnknownColours
from ..images.palettes import Palette, find_class
from ..label_spaces import advice_for, to_classes
from ..terminal import printable

LABEL_FOLDERS = ("labels", "annotations", "masks")
SPLIT_ALIASES: Mapping[str, str] = {"train": "training", "val": "validation"}

MAX_LISTED = 20
"""Largest number of problems that are listed one by one."""
MAX_PIXELS = 1 << 28
"""Most pixels of an image, so that a damaged header does not exhaust the memory."""
_MAX_LIST_BYTES = 1 << 28

Labels = npt.NDArray[np.integer]
Photo = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """A photo and its labels.

    Attributes:
        name: the name of the image in its data set.
        photo, labels: the files.
    """

    name: str
    photo: Path
    labels: Path


@dataclass(frozen=True)
class LabelFormat:
    """How label files become class indices: the options of that names.

    Attributes:
        num_classes: C.
        ignore_index: labels of pixels that do not count.
        label_space, label_encoding, colour_classes, unknown_colours: as in
            `options.LabelOptions`.
        palette: the palette that colours are looked up in, or None.
    """

    num_classes: int
    ignore_index: tuple[int, ...] = (255,)
    label_space: str = "raw"
    label_encoding: Encoding = "auto"
    palette: Palette | None = None
    colour_classes: tuple[str, ...] = ()
    unknown_colours: UnknownColours = "error"

    @property
    def expected(self) -> str:
        """The values of labels, for messages."""
        ignored = ", ".join(map(str, self.ignore_index))
        return f"0...{self.num_classes - 1}" + (f" or {ignored}" if ignored else "")

    def read(self, path: Path, check_size: Callable[[int, int], None] | None = None) -> Labels:
        """Returns the class indices [H,W] of a file, uint8 or int32.

        Args:
            path: the file.
            check_size: raises if the labels must not have this height and width.

        Raises:
            RequestError: if the file is no label map, or a value is not in the label space.
            OSError: if it cannot be read.
        """
        palette = self.palette
        colour_classes = (
            ()
            if palette is None
            else [find_class(palette, text, "colour_classes") for text in self.colour_classes]
        )
        label_map = png.read_label_map(
            path.read_bytes(),
            where="labels",
            encoding=self.label_encoding,
            palette=palette,
            colour_classes=colour_classes,
            unknown_colours=self.unknown_colours,
            check_size=check_size or (lambda height, width: None),
            max_pixels=MAX_PIXELS,
        )
        space = "raw" if label_map.is_coloured else self.label_space
        return to_classes(label_map.indices, space, self.ignore_index, "labels")


@dataclass(frozen=True)
class Problem:
    """A file or a pair that cannot be used.

    Attributes:
        kind: what the problems of a kind have in common, in the plural.
        path: the file, within the data set.
        sentence: what is wrong.
    """

    kind: str
    path: str
    sentence: str

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.sentence}")


@dataclass(frozen=True)
class DataSet:
    """The pairs of a data set.

    Attributes:
        root: its folder.
        layout: the name of the layout.
        train, val: the pairs of the two splits; `val` may be empty.
        problems: names without a photo or without labels.
    """

    root: Path
    layout: str
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class DataReport:
    """What `check` has found.

    Attributes:
        problems: all problems.
        pixels: number of pixels of each class in the training labels.
        ignored_pixels: number of ignored pixels there.
        advice: sentences about labels that look like those of another label space.
        turned: number of photos that their EXIF orientation turns upright.
    """

    problems: tuple[Problem, ...]
    pixels: tuple[int, ...] = ()
    ignored_pixels: int = 0
    advice: tuple[str, ...] = field(default=())
    turned: int = 0

    def lines(self) -> Iterator[str]:
        """Yields the problems, one in a line, and how many more there are of each kind."""
        for problem in self.problems[:MAX_LISTED]:
            yield f"  {problem}"
        rest = Counter(problem.kind for problem in self.problems[MAX_LISTED:])
        for kind, count in rest.items():
            yield f"  ... and {count} more {kind}"

    def error(self, num_pairs: int) -> IllPosed:
        """Returns the error that counts the problems of each kind."""
        counts = Counter(problem.kind for problem in self.problems)
        got = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
        return IllPosed("data", f"{num_pairs} images and labels that fit", got)


def find(
    root: Path,
    *,
    train_split: str = "train",
    val_split: str | None = "val",
    val_fraction: float = 0.1,
    label_space: str = "raw",
    seed: int = 0,
) -> DataSet:
    """Returns the pairs in a folder of one of the layouts.

    Args:
        root: the folder.
        train_split, val_split: names of the splits; None for no validation.
        val_fraction: share of the pairs of a flat layout without lists that validate.
        label_space: chooses one of the label files that Cityscapes has for each photo.
        seed: chooses them.

    Raises:
        IllPosed: if the folder has no layout that is known, or no training image.
        OSError: if a folder or a list cannot be read.
    """
    if not root.is_dir():
        raise IllPosed("data", "a folder", f"{safe_repr(f'{root}')}, which is none")
    photos, labels = root / "JPEGImages", root / "SegmentationClass"
    lists = root / "ImageSets" / "Segmentation"
    problems: list[Problem] = []
    if photos.is_dir() and labels.is_dir() and lists.is_dir():
        layout = "VOC"
        train, val = (
            _listed(root, lists / f"{split}.txt", photos, labels, problems) if split else ()
            for split in (train_split, val_split)
        )
    elif (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        layout = "Cityscapes"
        train, val = (
            _of_cityscapes(root, split, label_space, problems) if split else ()
            for split in (train_split, val_split)
        )
    elif (folders := _folders_of(root, train_split)) is not None:
        layout = "folders"
        train = _in_folders(root, *folders, problems)
        val_folders = _folders_of(root, val_split) if val_split else None
        val = _in_folders(root, *val_folders, problems) if val_folders else ()
        if val_split and val_folders is None:
            raise IllPosed("val_split", "a folder of the data set", safe_repr(val_split), _NO_SPLIT)
    elif (folders := _label_folder_of(root)) is not None:
        layout = "flat"
        if (root / f"{train_split}.txt").is_file():
            train, val = (
                _listed(root, root / f"{split}.txt", *folders, problems) if split else ()
                for split in (train_split, val_split)
            )
        else:
            pairs = _in_folders(root, *folders, problems)
            train, val = _divide(pairs, val_fraction if val_split else 0.0, seed)
    else:
        fix = (
            "Known are JPEGImages, SegmentationClass and ImageSets/Segmentation of VOC, "
            "leftImg8bit and gtFine of Cityscapes, and images and labels, with splits inside or "
            "around them."
        )
        raise IllPosed("data", "a data set", f"the folder {safe_repr(f'{root}')}", fix)
    if not train and not problems:
        raise IllPosed("data", "at least one training image", f"none in {safe_repr(f'{root}')}")
    return DataSet(root, layout, tuple(train), tuple(val), tuple(problems))


_NO_SPLIT = "Pass val_split=none to train without validation."


def _listed(
    root: Path, names: Path, photos: Path, labels: Path, problems: list[Problem]
) -> tuple[Pair, ...]:
    """Returns the pairs whose names are in a text file, one in a line."""
    if not names.is_file():
        fix = _NO_SPLIT if names.stem != "train" else ""
        raise IllPosed("data", f"the list {names.relative_to(root)}", "no such file", fix)
    with names.open("rb") as file:
        content = file.read(_MAX_LIST_BYTES)
    pairs = []
    # Some lists of VOC have a second column, 1 or -1.
    lines = content.decode("utf-8", "surrogateescape").splitlines()
    listed = [line.split()[0] for line in lines if line.strip()]
    for name in dict.fromkeys(listed):
        if ".." in Path(name).parts or Path(name).is_absolute():
            where = f"{names.relative_to(root)}"
            problems.append(Problem("invalid names", where, f"{safe_repr(name)} is no name."))
            continue
        photo = _with_suffix(photos, name, PHOTO_SUFFIXES)
        label = _with_suffix(labels, name, LABEL_MAP_SUFFIXES)
        if photo is None:
            problems.append(_missing("photo", photos.relative_to(root), name))
        if label is None:
            problems.append(_missing("label map", labels.relative_to(root), name))
        if photo is not None and label is not None:
            pairs.append(Pair(name, photo, label))
    for name, count in Counter(listed).items():
        if count > 1:
            where = f"{names.relative_to(root)}"
            problems.append(
                Problem("repeated names", where, f"{safe_repr(name)} is in {count} lines.")
            )
    return tuple(pairs)


def _missing(what: str, folder: Path, name: str) -> Problem:
    return Problem(f"missing {what}s", f"{folder / name}", f"there is no {what} of this name.")


def _with_suffix(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    for suffix in (*suffixes, *map(str.upper, suffixes)):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    return None


def _folders_of(root: Path, split: str | None) -> tuple[Path, Path] | None:
    """Returns the folders of photos and labels of a split, or None if it has none."""
    for name in filter(None, (split, SPLIT_ALIASES.get(split or ""))):
        inside = root / name
        folders = _label_folder_of(inside)
        if folders is not None:
            return folders
        photos = root / "images" / name
        for labels in LABEL_FOLDERS:
            if photos.is_dir() and (root / labels / name).is_dir():
                return photos, root / labels / name
    return None


def _label_folder_of(folder: Path) -> tuple[Path, Path] | None:
    photos = folder / "images"
    for name in LABEL_FOLDERS:
        if photos.is_dir() and (folder / name).is_dir():
            return photos, folder / name
    return None


def _of_cityscapes(
    root: Path, split: str, label_space: str, problems: list[Problem]
) -> tuple[Pair, ...]:
    kind = "labelIds" if label_space == "cityscapes_ids" else "labelTrainIds"
    folders = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in folders:
        if not folder.is_dir():
            fix = _NO_SPLIT if split != "train" else ""
            raise IllPosed("data", f"the folder {folder.relative_to(root)}", "no such folder", fix)
    return _in_folders(root, *folders, problems, "_leftImg8bit", f"_gtFine_{kind}")


def _in_folders(
    root: Path,
    photos: Path,
    labels: Path,
    problems: list[Problem],
    photo_ending: str = "",
    label_ending: str = "",
) -> tuple[Pair, ...]:
    """Returns the pairs of the files in two folders, by their paths without ending and suffix."""
    photo_of = _files_by_name(root, photos, PHOTO_SUFFIXES, problems, photo_ending)
    label_of = _files_by_name(root, labels, LABEL_MAP_SUFFIXES, problems, label_ending)
    for what, folder, lacking in (
        ("label map", labels, photo_of.keys() - label_of.keys()),
        ("photo", photos, label_of.keys() - photo_of.keys()),
    ):
        problems.extend(_missing(what, folder.relative_to(root), name) for name in sorted(lacking))
    names = sorted(photo_of.keys() & label_of.keys())
    return tuple(Pair(name, photo_of[name], label_of[name]) for name in names)


def _files_by_name(
    root: Path, folder: Path, suffixes: Sequence[str], problems: list[Problem], ending: str
) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if not path.stem.endswith(ending):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if name in files:
            where = f"{path.relative_to(root)}"
            problems.append(Problem("repeated names", where, "another file has the same name."))
        files[name] = path
    return files


def _divide(
    pairs: tuple[Pair, ...], fraction: float, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Returns the pairs to train and to validate on, in their order."""
    num_val = min(round(fraction * len(pairs)), len(pairs) - 1)
    if fraction and len(pairs) > 1:
        num_val = max(num_val, 1)
    chosen = set(np.random.default_rng(seed).permutation(len(pairs))[: max(num_val, 0)].tolist())
    train = tuple(pair for index, pair in enumerate(pairs) if index not in chosen)
    return train, tuple(pair for index, pair in enumerate(pairs) if index in chosen)


@dataclass(frozen=True)
class _Checked:
    """What one pair holds: its problem, or the pixels of each class, advice, and orientation."""

    problem: Problem | None
    pixels: npt.NDArray[np.int64] | None = None
    num_pixels: int = 0
    advice: str = ""
    is_turned: bool = False


def check(
    data: DataSet,
    labels: LabelFormat,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Reads all files of a data set and returns what is wrong with them.

    Args:
        data: the data set.
        labels: what the label files must hold.
        workers: number of threads.
        progress: is called with the number of pairs that are checked, and of all.
    """
    # An image may be in both splits.
    pairs = list(dict.fromkeys((*data.train, *data.val)))
    training = set(data.train)
    problems = list(data.problems)
    pixels = np.zeros(labels.num_classes, dtype=np.int64)
    ignored_pixels = 0
    advice: Counter[str] = Counter()
    turned = 0
    for done, (pair, checked) in enumerate(_checked(data.root, pairs, labels, workers), 1):
        if checked.problem is not None:
            problems.append(checked.problem)
        if checked.advice:
            advice[checked.advice] += 1
        turned += checked.is_turned
        if checked.pixels is not None and pair in training:
            pixels += checked.pixels
            ignored_pixels += checked.num_pixels - int(checked.pixels.sum())
        progress(done, len(pairs))
    frequent = tuple(sentence for sentence, count in advice.items() if 2 * count > len(pairs))
    return DataReport(tuple(problems), tuple(pixels.tolist()), ignored_pixels, frequent, turned)


def _checked(
    root: Path, pairs: Iterable[Pair], labels: LabelFormat, workers: int
) -> Iterator[tuple[Pair, _Checked]]:
    pairs = list(pairs)
    # Decoding and checksums release the interpreter, so that threads use several cores.
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            results = pool.map(lambda pair: _check_pair(root, pair, labels), pairs)
            yield from zip(pairs, results, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _check_pair(root: Path, pair: Pair, labels: LabelFormat) -> _Checked:
    photo_name, label_name = (f"{path.relative_to(root)}" for path in (pair.photo, pair.labels))
    try:
        content = pair.photo.read_bytes()
        size = png.read_photo(content, where="photo", max_pixels=MAX_PIXELS).shape[:2]
        is_turned = png.photo_orientation(content) != 1
    except (RequestError, OSError) as error:
        return _Checked(Problem("unreadable photos", photo_name, _sentence_of(error)))
    other: list[tuple[int, int]] = []

    def check_size(height: int, width: int) -> None:
        if (height, width) != size:
            other.append((height, width))
            raise IllPosed("labels", _size_text(*size), _size_text(height, width))

    try:
        values = labels.read(pair.labels, check_size)
    except (RequestError, OSError) as error:
        if other:
            sentence = (
                f"its size is {_size_text(*other[0])}, that of the photo {_size_text(*size)}."
            )
            if is_turned and other[0] == size[::-1]:
                sentence += f" {_TURNED}"
            return _Checked(Problem("labels of another size", label_name, sentence))
        kind = "unreadable label maps" if isinstance(error, OSError) else "invalid label maps"
        return _Checked(Problem(kind, label_name, _sentence_of(error)))
    return replace(_check_values(values, labels, label_name), is_turned=is_turned)


def _check_values(values: Labels, labels: LabelFormat, name: str) -> _Checked:
    num_classes = labels.num_classes
    space = "" if labels.label_space == "raw" else labels.label_space
    try:
        sentences = advice_for(values, num_classes, labels.ignore_index, space)
    except RequestError as error:
        return _Checked(Problem("labels outside the classes", name, _sentence_of(error)))
    present, counts = np.unique(values, return_counts=True)
    pixels = np.zeros(num_classes, dtype=np.int64)
    invalid = []
    for value, count in zip(present.tolist(), counts.tolist(), strict=True):
        if value in labels.ignore_index:
            continue
        if 0 <= value < num_classes:
            pixels[value] = count
        else:
            invalid.append(f"{value} ({count} pixel{'s' if count > 1 else ''})")
    if invalid:
        more = f" and {len(invalid) - 5} more values" if len(invalid) > 5 else ""
        sentence = f"expected {labels.expected}, got {', '.join(invalid[:5])}{more}."
        return _Checked(Problem("labels outside the classes", name, sentence))
    advice = next((text for text in sentences if "label_space=" in text), "")
    return _Checked(None, pixels, values.size, advice)


_TURNED = "Its EXIF orientation turns the photo upright: turn the labels too."


def _size_text(height: int, width: int) -> str:
    return f"{height} x {width}"


def _sentence_of(error: RequestError | OSError) -> str:
    return error.detail if isinstance(error, RequestError) else f"{error.strerror or error}."


def read_photo(path: Path) -> Photo:
    """Returns the colours of a photo, uint8 [H,W,3], upright.

    Raises:
        RequestError: if the file is neither PNG nor JPEG, or is damaged.
        OSError: if it cannot be read.
    """
    return png.read_photo(path.read_bytes(), where="photo", max_pixels=MAX_PIXELS)
