"""Samples: what is read, the changes of images, and the order in which processes see them."""

import numpy as np
import pytest
import torch
from training_data import COLOURS, NUM_CLASSES, make_labels, photo_of

from app.preprocessing import PREPROCESSINGS
from app.training.data import LabelFormat, Pair, find
from app.training.samples import (
    Augmentation,
    SampleError,
    Samples,
    Stream,
    Unreadable,
    collate,
    label_dtype,
    make_loader,
    read_batches,
    step_seed,
)

LABELS = LabelFormat(NUM_CLASSES)
CHANGES = Augmentation(crop=(16, 20), scale=(0.5, 2.0), flip=True)


@pytest.fixture
def pairs(voc):
    return find(voc).train


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_a_sample_is_the_input_of_the_network_and_its_labels(pairs, preprocessing):
    image, labels = Samples(pairs, LABELS, preprocessing)[0, 3]
    assert labels.dtype == torch.uint8
    assert np.array_equal(labels.numpy(), make_labels(3))
    expected = PREPROCESSINGS[preprocessing].to_input(photo_of(make_labels(3)))
    assert torch.equal(image, expected)


def test_a_sample_depends_on_seed_epoch_and_index_alone(pairs):
    samples = Samples(pairs, LABELS, "caffe", CHANGES, seed=7)
    first = samples[2, 1]
    assert all(map(torch.equal, first, samples[2, 1]))
    assert all(map(torch.equal, first, Samples(pairs, LABELS, "caffe", CHANGES, seed=7)[2, 1]))
    for other in (
        samples[3, 1],
        samples[2, 2],
        Samples(pairs, LABELS, "caffe", CHANGES, seed=8)[2, 1],
    ):
        assert not torch.equal(first[0], other[0])


def test_worker_processes_change_nothing(pairs):
    samples = Samples(pairs, LABELS, "caffe", CHANGES, seed=7)
    batches = [
        list(make_loader(samples, stream_of(6, num_steps=4), LABELS, workers, pin=False))
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert all(map(torch.equal, one, other))


def test_photo_and_labels_change_together():
    labels = np.kron(np.arange(6).reshape(2, 3) % 3, np.ones((12, 12))).astype(np.uint8)
    change = Augmentation(crop=(20, 30), scale=(0.6, 1.7), flip=True)
    flips = sizes = 0
    for seed in range(30):
        photo, changed, is_padding = change(
            photo_of(labels), labels, np.random.default_rng(seed), 255
        )
        assert photo.shape == (20, 30, 3)
        assert changed.shape == (20, 30)
        padding = np.zeros(changed.shape, bool) if is_padding is None else is_padding
        assert np.array_equal(changed == 255, padding)
        assert not photo[padding].any()
        assert set(np.unique(changed[~padding])) <= {0, 1, 2}
        # Away from borders, the colour of a pixel is that of its class.
        distance = np.abs(photo.astype(int) - COLOURS[np.where(padding, 0, changed)]).max(axis=2)
        assert (distance[~padding] < 60).mean() > 0.85
        flips += changed[10, 2] != changed[10, -3]
        sizes += is_padding is not None
    assert 0 < flips < 30
    assert 0 < sizes < 30


def test_without_changes_an_image_stays_whole():
    labels = make_labels(0)
    photo, same, is_padding = Augmentation()(
        photo_of(labels), labels, np.random.default_rng(0), 255
    )
    assert np.array_equal(photo, photo_of(labels))
    assert np.array_equal(same, labels)
    assert is_padding is None


def test_half_of_the_images_are_mirrored():
    labels = make_labels(1)
    mirrored = 0
    for seed in range(100):
        _, changed, _ = Augmentation(flip=True)(
            photo_of(labels), labels, np.random.default_rng(seed), 255
        )
        mirrored += np.array_equal(changed, labels[:, ::-1])
    assert 30 < mirrored < 70


def test_padded_pixels_are_the_mean_colour_and_ignored(pairs):
    samples = Samples(pairs, LABELS, "caffe", Augmentation(crop=(40, 40)), seed=0)
    image, labels = samples[0, 0]
    is_padding = torch.ones(40, 40, dtype=torch.bool)
    rows, columns = (torch.nonzero((image != 0).any(0).any(axis)).flatten() for axis in (1, 0))
    assert (len(rows), len(columns)) == (20, 24)
    is_padding[rows[:, None], columns] = False
    assert (image[:, is_padding] == 0).all()
    assert (labels[is_padding] == 255).all()


@pytest.mark.parametrize(
    ("labels", "dtype", "padding"),
    [
        (LabelFormat(21), np.uint8, 255),
        (LabelFormat(21, ignore_index=(0, 255)), np.uint8, 0),
        (LabelFormat(21, ignore_index=(-1,)), np.int32, -1),
        (LabelFormat(300), np.int32, 255),
        (LabelFormat(21, ignore_index=(2**32 - 1, 65535)), np.int32, 65535),
        (LabelFormat(21, ignore_index=()), np.int32, 0),
    ],
)
def test_labels_have_a_dtype_that_holds_classes_and_padding(labels, dtype, padding):
    assert label_dtype(labels) == (dtype, padding)


def test_a_pair_of_different_sizes_is_an_error_without_a_check_too(voc, tmp_path):
    from PIL import Image

    path = tmp_path / "labels.png"
    Image.fromarray(make_labels(0, height=10)).save(path)
    pair = Pair("a", find(voc).train[0].photo, path)
    for workers in (0, 1):
        loader = make_loader(
            Samples([pair], LABELS, "caffe"), [[(0, 0)]], LABELS, workers, pin=False
        )
        with pytest.raises(
            SampleError,
            match=r"image 'a': .* got labels: expected 20 x 24 as the photo, got 10 x 24\.$",
        ):
            list(read_batches(loader))
    Image.fromarray(np.full((20, 24), 300, np.int32)).save(tmp_path / "wide.tif")
    pair = Pair("b", find(voc).train[0].photo, tmp_path / "wide.tif")
    sample = Samples([pair], LABELS, "caffe")[0, 0]
    assert sample == Unreadable("b", "labels: expected 0...2 or 255, got 300")
    pair = Pair("c", pair.photo, tmp_path / "missing.png")
    sample = Samples([pair], LABELS, "caffe")[0, 0]
    assert sample == Unreadable("c", "No such file or directory")


def stream_of(num_pairs, begin=0, num_steps=10, batch_size=2, accumulation=1, **options):
    return Stream(
        num_pairs,
        begin=begin,
        num_steps=num_steps,
        batch_size=batch_size,
        accumulation=accumulation,
        **options,
    )


def keys_of(stream):
    return [key for batch in stream for key in batch]


def test_every_epoch_has_every_image_once_in_another_order():
    keys = keys_of(stream_of(5))
    epochs = [keys[:5], keys[5:10], keys[10:15], keys[15:]]
    for epoch, part in enumerate(epochs):
        assert [key[0] for key in part] == [epoch] * 5
        assert sorted(key[1] for key in part) == [0, 1, 2, 3, 4]
    assert len({tuple(key[1] for key in part) for part in epochs}) > 1
    assert keys_of(stream_of(5, seed=1)) != keys


def test_a_stream_that_begins_later_is_the_rest():
    keys = keys_of(stream_of(5, num_steps=10))
    assert keys_of(stream_of(5, begin=6, num_steps=7)) == keys[6:]


def test_processes_share_the_joined_batch():
    joined = list(stream_of(7, batch_size=6, num_steps=4))
    ranks = [
        list(stream_of(7, batch_size=3, num_steps=4, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    assert [one + other for one, other in zip(*ranks, strict=True)] == joined


def test_micro_batches_divide_the_joined_batch():
    joined = list(stream_of(7, batch_size=6, num_steps=4))
    parts = list(stream_of(7, batch_size=2, accumulation=3, num_steps=4))
    assert [[*a, *b, *c] for a, b, c in zip(*[iter(parts)] * 3, strict=True)] == joined


def test_a_batch_is_as_large_as_its_largest_image():
    small = torch.ones(3, 2, 5), torch.zeros(2, 5, dtype=torch.uint8)
    tall = torch.ones(3, 4, 3), torch.zeros(4, 3, dtype=torch.uint8)
    image, labels = collate([small, tall], 255)
    assert image.shape == (2, 3, 4, 5)
    assert (labels[0] == 255).sum() == 10
    assert image[0].sum() == 30
    assert image[1, :, :, :3].sum() == 36
    assert (labels[1, :, 3:] == 255).all()


def test_each_step_and_process_has_a_seed_of_its_own():
    seeds = {step_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 1 << 64 for seed in seeds)
