"""Samples: pairs become tensors, in an order and with changes that depend on nothing but the seed.

Everything random about a sample comes from (seed, epoch, index of the pair). A training therefore
sees the same pixels with any number of worker processes, and after it has been resumed.

    stream of samples   0, 1, 2, ...; sample s is the pair permutation[epoch][s % L] of epoch s // L
    step                samples_per_step in a row: accumulation x processes x batch_size

Epochs follow each other without a gap, as in Caffe, so that no batch is smaller than the others.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import IllPosed, RequestError, safe_repr
from ..preprocessing import PREPROCESSINGS
from .data import LabelFormat, Labels, Pair, Photo, read_photo
from .interrupts import HANG_UP
from .recipes import fits_labels

Key = tuple[int, int]
"""The epoch and the index of a pair."""

_START_METHOD = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
_ORDER, _CHANGES, _STEP = 1, 2, 3
"""What random numbers are for: each has a sequence of its own."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; the defaults change nothing.

    Attributes:
        crop: height and width of the result; smaller images are padded with ignored labels.
        scale: range of the factor of the size, uniform in its logarithm.
        flip: whether half of the images are mirrored.
    """

    crop: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    flip: bool = False

    def __call__(
        self, photo: Photo, labels: Labels, random: np.random.Generator, padding: int
    ) -> tuple[Photo, Labels, npt.NDArray[np.bool_] | None]:
        """Returns the changed photo and labels, and which pixels are padding (None: no pixel).

        Photos are resized with Pillow's bilinear filter, labels to the nearest pixel.
        """
        height, width = photo.shape[:2]
        factor = 1.0
        if self.scale is not None:
            low, high = np.log(self.scale)
            factor = float(np.exp(random.uniform(low, high)))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        crop = self.crop or size
        inner = min(crop[0], size[0]), min(crop[1], size[1])
        top, left = (int(random.integers(size[axis] - inner[axis] + 1)) for axis in (0, 1))
        if size != (height, width):
            # The part of the source that becomes the crop; the rest is not resized.
            rows, columns = height / size[0], width / size[1]
            box = (left * columns, top * rows, (left + inner[1]) * columns, (top + inner[0]) * rows)
            box = (*box[:2], min(box[2], width), min(box[3], height))
            photo = _resized(photo, inner, Image.Resampling.BILINEAR, box)
            labels = _resized(labels, inner, Image.Resampling.NEAREST, box)
        else:
            photo = photo[top : top + inner[0], left : left + inner[1]]
            labels = labels[top : top + inner[0], left : left + inner[1]]
        if self.flip and random.random() < 0.5:
            photo, labels = photo[:, ::-1], labels[:, ::-1]
        if inner == crop:
            return photo, labels, None
        top, left = (int(random.integers(crop[axis] - inner[axis] + 1)) for axis in (0, 1))
        inside = slice(top, top + inner[0]), slice(left, left + inner[1])
        padded_photo = np.zeros((*crop, 3), dtype=photo.dtype)
        padded_labels = np.full(crop, padding, dtype=labels.dtype)
        is_padding = np.ones(crop, dtype=np.bool_)
        padded_photo[inside], padded_labels[inside] = photo, labels
        is_padding[inside] = False
        return padded_photo, padded_labels, is_padding


def _resized(
    array: npt.NDArray[Any],
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float],
) -> npt.NDArray[Any]:
    picture = Image.fromarray(array)  # uint8 [H,W,3] or [H,W], or int32 [H,W]
    return np.array(picture.resize(size[::-1], resampling, box=box))


Sample = tuple[Tensor, Tensor]
"""An image, float32 [3,H,W] or [N,3,H,W], and its labels [H,W] or [N,H,W]."""


class SampleError(IllPosed):
    """A pair that can be read no longer, or that was not checked."""


@dataclass(frozen=True)
class Unreadable:
    """What a worker process returns instead of a sample, since errors lose their parts on the way.

    Attributes:
        name: the name of the pair.
        sentence: what is wrong.
    """

    name: str
    sentence: str


class Samples(Dataset[Sample | Unreadable]):
    """The pairs of a split as tensors, by (epoch, index).

    The labels of a sample are uint8 if C and an ignored value fit in it, else int32. A pair that
    cannot be read is an `Unreadable`, for which `read_batches` raises an error.

    Args:
        pairs: the pairs.
        labels: how label files are read.
        preprocessing: a key of `PREPROCESSINGS`.
        augmentation: the changes; those of validation are none.
        seed: of the changes.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        labels: LabelFormat,
        preprocessing: str,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._pairs = tuple(pairs)
        self._labels = labels
        self._preprocessing = preprocessing
        self._augmentation = augmentation or Augmentation()
        self._seed = seed

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        epoch, index = key
        pair = self._pairs[index]
        try:
            photo, labels = read_pair(pair, self._labels)
        except (RequestError, OSError) as error:
            got = error.detail if isinstance(error, RequestError) else f"{error.strerror or error}"
            return Unreadable(pair.name, got.rstrip("."))
        random = _generator(_CHANGES, self._seed, epoch, index)
        padding = label_dtype(self._labels)[1]
        photo, labels, is_padding = self._augmentation(photo, labels, random, padding)
        image = PREPROCESSINGS[self._preprocessing].to_input(photo)
        if is_padding is not None:
            # The network pads its own layers with 0 too, the mean colour.
            image.masked_fill_(torch.from_numpy(is_padding), 0.0)
        return image, torch.from_numpy(np.ascontiguousarray(labels))

    def photo(self, index: int) -> Photo:
        """Returns the photo of a pair, uint8 [H,W,3], for pictures."""
        return read_photo(self._pairs[index].photo)


def read_pair(pair: Pair, labels: LabelFormat) -> tuple[Photo, Labels]:
    """Returns a photo, uint8 [H,W,3], and its class indices [H,W] in `label_dtype`.

    Raises:
        IllPosed: if they differ in size, or a value is neither a class nor ignored.
        RequestError: if a file is damaged.
        OSError: if it cannot be read.
    """
    photo = read_photo(pair.photo)
    values = labels.read(pair.labels)
    if values.shape != photo.shape[:2]:
        sizes = (f"{height} x {width}" for height, width in (photo.shape[:2], values.shape))
        raise IllPosed("labels", f"{next(sizes)} as the photo", next(sizes))
    invalid = (values < 0) | (values >= labels.num_classes)
    for ignored in labels.ignore_index:
        invalid &= values != ignored
    if invalid.any():  # the file was not checked, or has changed
        raise IllPosed("labels", labels.expected, f"{values[invalid][0]}")
    return photo, values.astype(label_dtype(labels)[0], copy=False)


def label_dtype(labels: LabelFormat) -> tuple[npt.DTypeLike, int]:
    """Returns the dtype of labels and the value of padded pixels, which is ignored if any is."""
    ignored = [value for value in labels.ignore_index if 0 <= value <= 255]
    if labels.num_classes <= 256 and len(ignored) == len(labels.ignore_index) and ignored:
        return np.uint8, ignored[0]
    return np.int32, next(filter(fits_labels, labels.ignore_index), 0)


class Stream(Sampler[list[Key]]):
    """The keys of one process: a list for each micro-batch, for all steps that are left.

    Args:
        num_pairs: L, number of pairs.
        begin: number of samples that have been used, in all processes.
        num_steps: number of steps.
        batch_size, accumulation: as in `recipes.Recipe`.
        rank, world_size: of this process, and number of processes.
        seed: of the order.
    """

    def __init__(
        self,
        num_pairs: int,
        *,
        begin: int,
        num_steps: int,
        batch_size: int,
        accumulation: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self._num_pairs = num_pairs
        self._begin = begin
        self._num_batches = num_steps * accumulation
        self._batch_size = batch_size
        self._rank, self._world_size = rank, world_size
        self._seed = seed

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = -1
        order: list[int] = []
        for batch in range(self._num_batches):
            keys = []
            first = self._begin + (batch * self._world_size + self._rank) * self._batch_size
            for sample in range(first, first + self._batch_size):
                if sample // self._num_pairs != epoch:
                    epoch = sample // self._num_pairs
                    order = (
                        _generator(_ORDER, self._seed, epoch).permutation(self._num_pairs).tolist()
                    )
                keys.append((epoch, order[sample % self._num_pairs]))
            yield keys


def collate(samples: Sequence[Sample], padding: int) -> Sample:
    """Returns a batch: images [N,3,H,W] and labels [N,H,W] of the largest height and width.

    Smaller images are padded at the right and at the bottom, with the mean colour and an ignored
    label.
    """
    height, width = (max(labels.shape[axis] for _, labels in samples) for axis in (0, 1))
    image = torch.zeros(len(samples), 3, height, width)
    labels = torch.full((len(samples), height, width), padding, dtype=samples[0][1].dtype)
    for index, (one_image, one_labels) in enumerate(samples):
        rows, columns = one_labels.shape
        image[index, :, :rows, :columns] = one_image
        labels[index, :rows, :columns] = one_labels
    return image, labels


@dataclass(frozen=True)
class Collate:
    """`collate` with a fixed padding, which a worker process can load."""

    padding: int

    def __call__(self, samples: Sequence[Sample | Unreadable]) -> Sample | Unreadable:
        """Returns the batch of samples, or the first that is unreadable."""
        read: list[Sample] = []
        for sample in samples:
            if isinstance(sample, Unreadable):
                return sample
            read.append(sample)
        return collate(read, self.padding)


def make_loader(
    samples: Samples,
    batches: Sampler[list[Key]],
    labels: LabelFormat,
    workers: int,
    *,
    pin: bool,
    keep_workers: bool = False,
) -> DataLoader[Sample | Unreadable]:
    """Returns the loader of these batches.

    Args:
        samples: the images.
        batches: the keys of each batch.
        labels: how label files are read.
        workers: number of processes that read images; 0 for this one.
        pin: whether batches are in memory that a GPU can copy from.
        keep_workers: whether the processes wait for another pass over the batches.
    """
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(label_dtype(labels)[1]),
        pin_memory=pin,
        persistent_workers=keep_workers and workers > 0,
        worker_init_fn=_leave_signals_to_the_trainer if workers else None,
        # A fork would copy the threads' locks of torch and Numba.
        multiprocessing_context=_START_METHOD if workers else None,
        # The loader draws a number that nothing uses; not from torch's own generator.
        generator=torch.Generator(),
    )


def read_batches(loader: DataLoader[Sample | Unreadable]) -> Iterator[Sample]:
    """Yields the batches of a loader.

    Raises:
        SampleError: if a pair cannot be read.
    """
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise SampleError(f"image {safe_repr(batch.name)}", "files that fit", batch.sentence)
        yield batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Lets a worker go on at signals that a terminal sends to all processes."""
    for number in (signal.SIGINT, *HANG_UP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of torch's random numbers of a step, such as those of dropout."""
    (number,) = np.random.SeedSequence([_STEP, seed, step, rank]).generate_state(1, np.uint64)
    return int(number)


def _generator(purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([purpose, *numbers])
