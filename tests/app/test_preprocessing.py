"""Photos as the input of a network: order of the channels, mean and scale."""

import numpy as np
import pytest
import torch

from app.preprocessing import PREPROCESSINGS

PHOTO = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_caffes_input_is_bgr_without_the_mean():
    # The transformations of infer.py of FCN.
    expected = np.array(PHOTO, dtype=np.float32)[:, :, ::-1]
    expected = expected - np.array((104.00699, 116.66877, 122.67892), np.float32)
    expected = expected.transpose((2, 0, 1))
    image = PREPROCESSINGS["caffe"].to_input(PHOTO)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-6, atol=1e-5)


def test_the_input_of_torchvision_is_rgb_scaled_and_normalized():
    # ToTensor, then Normalize.
    scaled = PHOTO.transpose((2, 0, 1)).astype(np.float64) / 255
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (scaled - mean[:, None, None]) / deviation[:, None, None]
    image = PREPROCESSINGS["imagenet"].to_input(PHOTO)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_a_part_of_a_photo_has_the_input_of_that_part(name):
    to_input = PREPROCESSINGS[name].to_input
    part = to_input(PHOTO[1:4, 2:])
    assert torch.equal(part, to_input(PHOTO)[:, 1:4, 2:])


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_a_read_only_photo_is_prepared_without_a_warning(name):
    photo = PHOTO.copy()
    photo.flags.writeable = False  # as np.asarray(Image)
    to_input = PREPROCESSINGS[name].to_input
    assert torch.equal(to_input(photo), to_input(PHOTO))
