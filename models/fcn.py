"""FCN-32s, FCN-16s, FCN-8s and FCN-8s-at-once: VGG16 as a fully convolutional network.

Each network follows FCN's `net.py` and its prototxts layer by layer. Layers with weights are
submodules of the same names, so that the published weights fit. Layers without weights, such as
`fuse_pool4`, are local variables.

conv1_1 pads 100 pixels. An image of any size then has scores that cover it, and the last layer, a
Crop, cuts the upsampled scores to the image. The crop offsets follow from the positions of the
layers' pixels in the image, as Caffe's `coord_map.py` computes them.

Shelhamer, Long and Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2016.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from seg_loss import Deconvolution, InvalidInput
from seg_loss.constants import FCN_CROPS

from ._numbers import is_positive_int
from .bilinear import bilinear_kernel

VGG16_CHANNELS = (64, 128, 256, 512, 512, 4096)
"""Channels of VGG16: those of its five blocks of convolutions, and those of fc6 and fc7."""

_FILTER_TOLERANCE = 1e-6  # Caffe's filler differs from FCN's filter by up to 6e-8


class VGG16(nn.Module):
    """VGG16 up to fc7, with convolutions in place of its fully connected layers.

    Args:
        channels: six numbers, the channels of the five blocks, and of fc6 and fc7.

    Raises:
        InvalidInput: if `channels` are not six positive integers.
    """

    def __init__(self, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__()
        _check_channels(channels)
        self.channels = tuple(channels)
        c1, c2, c3, c4, c5, fc = channels
        self.conv1_1 = nn.Conv2d(3, c1, 3, padding=100)
        self.conv1_2 = nn.Conv2d(c1, c1, 3, padding=1)
        self.conv2_1 = nn.Conv2d(c1, c2, 3, padding=1)
        self.conv2_2 = nn.Conv2d(c2, c2, 3, padding=1)
        self.conv3_1 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv3_2 = nn.Conv2d(c3, c3, 3, padding=1)
        self.conv3_3 = nn.Conv2d(c3, c3, 3, padding=1)
        self.conv4_1 = nn.Conv2d(c3, c4, 3, padding=1)
        self.conv4_2 = nn.Conv2d(c4, c4, 3, padding=1)
        self.conv4_3 = nn.Conv2d(c4, c4, 3, padding=1)
        self.conv5_1 = nn.Conv2d(c4, c5, 3, padding=1)
        self.conv5_2 = nn.Conv2d(c5, c5, 3, padding=1)
        self.conv5_3 = nn.Conv2d(c5, c5, 3, padding=1)
        self.fc6 = nn.Conv2d(c5, fc, 7)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        self.drop7 = nn.Dropout(0.5)

    def pools_and_fc7(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns pool3, pool4 and fc7 after its dropout, at strides 8, 16 and 32.

        Raises:
            InvalidInput: if the image is not [N,3,H,W] with pixels.
        """
        _check_image(image)
        # One name for all: in inference, torch frees the memory of each layer after the next one.
        x = _relu(self.conv1_1(image))
        x = _relu(self.conv1_2(x))
        x = _max_pool(x)
        x = _relu(self.conv2_1(x))
        x = _relu(self.conv2_2(x))
        x = _max_pool(x)
        x = _relu(self.conv3_1(x))
        x = _relu(self.conv3_2(x))
        x = _relu(self.conv3_3(x))
        pool3 = _max_pool(x)
        x = _relu(self.conv4_1(pool3))
        x = _relu(self.conv4_2(x))
        x = _relu(self.conv4_3(x))
        pool4 = _max_pool(x)
        x = _relu(self.conv5_1(pool4))
        x = _relu(self.conv5_2(x))
        x = _relu(self.conv5_3(x))
        x = _max_pool(x)
        x = self.drop6(_relu(self.fc6(x)))
        x = self.drop7(_relu(self.fc7(x)))
        return pool3, pool4, x


class FCN(VGG16, ABC):
    """The interface of the four networks: `forward` and `scores`.

    Args:
        num_classes: C, at least 1.
        channels: six numbers, the channels of VGG16's five blocks, and of fc6 and fc7.

    Raises:
        InvalidInput: if a number is not a positive integer, or `channels` are not six.
    """

    stride: ClassVar[int]
    """Stride of the last deconvolution."""
    last_layer: ClassVar[str]
    """Name of the last deconvolution."""

    def __init__(self, num_classes: int = 21, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__(channels)
        if not is_positive_int(num_classes):
            raise InvalidInput("num_classes", "an integer of at least 1", repr(num_classes))
        self.num_classes = num_classes

    @abstractmethod
    def _low_resolution_scores(self, image: Tensor) -> Tensor:
        """Returns the input of the last deconvolution, [N,C,h,w]."""

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits of an image, FCN's blob `score`.

        Args:
            image: [N,3,H,W] of any height and width; BGR, mean subtracted, for published weights.

        Returns:
            [N,C,H,W].

        Raises:
            InvalidInput: if the image has another shape or no pixels.
        """
        deconvolution = self.get_submodule(self.last_layer)
        upscore = deconvolution(self._low_resolution_scores(image))
        return _crop(upscore, image, FCN_CROPS[self.stride])

    def scores(self, image: Tensor) -> tuple[Tensor, Deconvolution]:
        """Returns scores of low resolution, and the upsampling that turns them into the logits.

        `upsampled_cross_entropy(scores, labels, upsampling=upsampling)` is then the loss of
        `forward(image)`, without the memory for logits of the image's size.

        Args:
            image: [N,3,H,W], as for `forward`.

        Returns:
            Scores [N,C,h,w], and `seg_loss.Deconvolution`.

        Raises:
            InvalidInput: if the image has another shape, or if the weights of the last
                deconvolution learn, or are not the bilinear filter that `Deconvolution` has.
        """
        deconvolution = self.get_submodule(self.last_layer)
        assert isinstance(deconvolution, BilinearDeconvolution)
        learns = deconvolution.weight.requires_grad and torch.is_grad_enabled()
        if learns or not deconvolution.is_bilinear():
            raise InvalidInput(
                f"{self.last_layer}.weight",
                "the bilinear filter on its diagonal, and zeros elsewhere",
                "weights that learn" if learns else "other weights",
                "Take the loss of the logits that forward returns.",
            )
        upsampling = Deconvolution(self.stride, crop=FCN_CROPS[self.stride])
        return self._low_resolution_scores(image), upsampling


class FCN32s(FCN):
    """FCN-32s: the scores of fc7, upsampled by 32.

    Args:
        num_classes: C, at least 1.
        channels: six numbers, the channels of VGG16's five blocks, and of fc6 and fc7.
    """

    stride = 32
    last_layer = "upscore"

    def __init__(self, num_classes: int = 21, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__(num_classes, channels)
        *_, fc = channels
        self.score_fr = _score_layer(fc, num_classes)
        self.upscore = BilinearDeconvolution(num_classes, kernel_size=64, stride=32)

    def _low_resolution_scores(self, image: Tensor) -> Tensor:
        _, _, fc7 = self.pools_and_fc7(image)
        return cast(Tensor, self.score_fr(fc7))


class FCN16s(FCN):
    """FCN-16s: the scores of fc7, upsampled by 2, plus those of pool4; then upsampled by 16.

    Args:
        num_classes: C, at least 1.
        channels: six numbers, the channels of VGG16's five blocks, and of fc6 and fc7.
    """

    stride = 16
    last_layer = "upscore16"

    def __init__(self, num_classes: int = 21, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__(num_classes, channels)
        *_, c4, _, fc = channels
        self.score_fr = _score_layer(fc, num_classes)
        self.upscore2 = BilinearDeconvolution(num_classes, kernel_size=4, stride=2)
        self.score_pool4 = _score_layer(c4, num_classes)
        self.upscore16 = BilinearDeconvolution(num_classes, kernel_size=32, stride=16)

    def _low_resolution_scores(self, image: Tensor) -> Tensor:
        _, pool4, fc7 = self.pools_and_fc7(image)
        score_fr = self.score_fr(fc7)
        upscore2 = self.upscore2(score_fr)
        score_pool4 = self.score_pool4(pool4)
        score_pool4c = _crop(score_pool4, upscore2, 5)
        fuse_pool4 = upscore2 + score_pool4c
        return cast(Tensor, fuse_pool4)


class FCN8s(FCN):
    """FCN-8s: FCN-16s' sum, upsampled by 2, plus the scores of pool3; then upsampled by 8.

    Args:
        num_classes: C, at least 1.
        channels: six numbers, the channels of VGG16's five blocks, and of fc6 and fc7.
    """

    stride = 8
    last_layer = "upscore8"

    def __init__(self, num_classes: int = 21, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__(num_classes, channels)
        _, _, c3, c4, _, fc = channels
        self.score_fr = _score_layer(fc, num_classes)
        self.upscore2 = BilinearDeconvolution(num_classes, kernel_size=4, stride=2)
        self.score_pool4 = _score_layer(c4, num_classes)
        self.upscore_pool4 = BilinearDeconvolution(num_classes, kernel_size=4, stride=2)
        self.score_pool3 = _score_layer(c3, num_classes)
        self.upscore8 = BilinearDeconvolution(num_classes, kernel_size=16, stride=8)

    def _low_resolution_scores(self, image: Tensor) -> Tensor:
        pool3, pool4, fc7 = self.pools_and_fc7(image)
        return self._fuse(pool3, pool4, fc7)

    def _fuse(self, pool3: Tensor, pool4: Tensor, fc7: Tensor) -> Tensor:
        score_fr = self.score_fr(fc7)
        upscore2 = self.upscore2(score_fr)
        score_pool4 = self.score_pool4(pool4)
        score_pool4c = _crop(score_pool4, upscore2, 5)
        fuse_pool4 = upscore2 + score_pool4c
        upscore_pool4 = self.upscore_pool4(fuse_pool4)
        score_pool3 = self.score_pool3(pool3)
        score_pool3c = _crop(score_pool3, upscore_pool4, 9)
        fuse_pool3 = upscore_pool4 + score_pool3c
        return cast(Tensor, fuse_pool3)


class FCN8sAtOnce(FCN8s):
    """FCN-8s trained in one stage: pool4 and pool3 are scaled before they are scored.

    The constant scales 0.01 and 0.0001 keep the gradients of all three strides alike. FCN-8s
    itself needs none, as it continues from FCN-16s, and that from FCN-32s.

    Args:
        num_classes: C, at least 1.
        channels: six numbers, the channels of VGG16's five blocks, and of fc6 and fc7.
    """

    def __init__(self, num_classes: int = 21, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__(num_classes, channels)
        _, _, c3, c4, _, _ = channels
        self.scale_pool4 = ConstantScale(c4, 0.01)
        self.scale_pool3 = ConstantScale(c3, 0.0001)

    def _low_resolution_scores(self, image: Tensor) -> Tensor:
        pool3, pool4, fc7 = self.pools_and_fc7(image)
        return self._fuse(self.scale_pool3(pool3), self.scale_pool4(pool4), fc7)


class BilinearDeconvolution(nn.ConvTranspose2d):
    """Caffe's Deconvolution without bias, from C to C classes, with weights that do not learn.

    `weight` is [C,C,k,k], as in FCN's prototxts, which give no group: the bilinear filter on the
    diagonal, and zeros elsewhere. It does not require gradients (Caffe's `lr_mult: 0`). With other
    weights, and with `weight.requires_grad_()`, the layer is an ordinary deconvolution.
    """

    def __init__(self, num_classes: int, kernel_size: int, stride: int) -> None:
        # (address, version) of the weights looked at last, and whether they are the filter.
        self._checked: tuple[tuple[int, int], bool] | None = None
        super().__init__(num_classes, num_classes, kernel_size, stride, bias=False)
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Writes the bilinear filter, as FCN's `surgery.interp` does."""
        with torch.no_grad():
            self.weight.zero_()
            _diagonal_of(self.weight).copy_(bilinear_kernel(self.kernel_size[0]))

    @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
    def is_bilinear(self) -> bool:
        """Returns whether the weights are the bilinear filter, up to float32 rounding.

        The answer is kept until torch counts a change of the weights. It counts no changes made
        through `.data`.
        """
        weight = self.weight
        if weight.is_meta:
            return True
        state = None if weight.is_inference() else (weight.data_ptr(), weight._version)
        if self._checked is None or state is None or self._checked[0] != state:
            is_bilinear = _is_bilinear(weight.detach())
            self._checked = None if state is None else (state, is_bilinear)
            return is_bilinear
        return self._checked[1]

    def forward(self, scores: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Returns the upsampled scores, [N,C,(h-1)*stride+k,(w-1)*stride+k]."""
        can_be_grouped = not torch.compiler.is_compiling() and not self.weight.requires_grad
        if output_size is None and can_be_grouped and self.is_bilinear():
            # C filters instead of C * C, all others of which are zero.
            diagonal = _diagonal_of(self.weight).unsqueeze(1)
            return F.conv_transpose2d(scores, diagonal, stride=self.stride, groups=len(diagonal))
        return super().forward(scores, output_size)


class ConstantScale(nn.Module):
    """Caffe's Scale without bias: one factor for each channel, which does not learn."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.full((channels,), value), requires_grad=False)

    def reset_parameters(self) -> None:
        """Writes the constant that the layer was made with."""
        nn.init.constant_(self.weight, self.value)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [N,channels,H,W] times the factors."""
        return x * self.weight.view(1, -1, 1, 1)


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)  # as Caffe: a convolution's gradient does not need its output


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)  # Caffe rounds sizes up


def _crop(x: Tensor, reference: Tensor, offset: int) -> Tensor:
    """Returns Caffe's Crop of the axes 2 and 3: the height and width of `reference`."""
    height, width = reference.shape[2:]
    return x[:, :, offset : offset + height, offset : offset + width]


def _score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """Returns a 1x1 convolution that is zero: FCN's prototxts name no filler for it."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _diagonal_of(weight: Tensor) -> Tensor:
    """Returns the filters [C,k,k] from each class to itself, as a view of a weight [C,C,k,k]."""
    return weight.diagonal().permute(2, 0, 1)


def _is_bilinear(weight: Tensor) -> bool:
    diagonal = _diagonal_of(weight)
    kernel = bilinear_kernel(weight.shape[-1]).to(weight)
    if not bool(((diagonal - kernel).abs() <= _FILTER_TOLERANCE).all()):
        return False
    return int(weight.count_nonzero()) == int(diagonal.count_nonzero())


def _check_channels(channels: Sequence[int]) -> None:
    if (
        not isinstance(channels, list | tuple)
        or len(channels) != len(VGG16_CHANNELS)
        or not all(map(is_positive_int, channels))
    ):
        expected = "six positive integers, of the five blocks and of fc6 and fc7"
        raise InvalidInput("channels", expected, repr(channels))


def _check_image(image: Tensor) -> None:
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
        raise InvalidInput("image", "(N, 3, H, W) with at least one pixel", str(shape))
    if not image.is_floating_point():
        dtype = str(image.dtype).removeprefix("torch.")
        raise InvalidInput("image", "a floating point dtype", dtype, "Preprocess the photo first.")
