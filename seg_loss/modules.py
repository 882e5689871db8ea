"""The functions as `torch.nn` modules, with their options fixed when they are made."""

from collections.abc import Sequence

from torch import Tensor, nn

from seg_loss.functional import spatial_cross_entropy, spatial_softmax, upsampled_cross_entropy
from seg_loss.upsampling import Bilinear, Upsampling


class SpatialSoftmax(nn.Module):
    """`spatial_softmax` with a fixed axis and temperature."""

    def __init__(self, *, axis: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        self.axis = axis
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        return spatial_softmax(logits, axis=self.axis, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, temperature={self.temperature}"


class SpatialCrossEntropy(nn.Module):
    """`spatial_cross_entropy` with fixed options; `class_weight` is a buffer."""

    class_weight: Tensor | None

    def __init__(
        self,
        class_weight: Tensor | None = None,
        *,
        ignore_index: int | Sequence[int] = 255,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        normalization: str = "valid",
        check_labels: str = "raise",
    ) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self.normalization = normalization
        self.check_labels = check_labels

    def forward(
        self, logits: Tensor, labels: Tensor, *, pixel_weight: Tensor | None = None
    ) -> Tensor:
        return spatial_cross_entropy(
            logits,
            labels,
            self.class_weight,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            temperature=self.temperature,
            normalization=self.normalization,
            check_labels=self.check_labels,
        )

    def extra_repr(self) -> str:
        return (
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"temperature={self.temperature}, normalization={self.normalization!r}, "
            f"check_labels={self.check_labels!r}"
        )


class UpsampledCrossEntropy(SpatialCrossEntropy):
    """`upsampled_cross_entropy` with fixed options; `class_weight` is a buffer."""

    def __init__(
        self,
        class_weight: Tensor | None = None,
        *,
        upsampling: Upsampling = Bilinear(),  # noqa: B008 - it is frozen
        ignore_index: int | Sequence[int] = 255,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        normalization: str = "valid",
        check_labels: str = "raise",
    ) -> None:
        super().__init__(
            class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            temperature=temperature,
            normalization=normalization,
            check_labels=check_labels,
        )
        self.upsampling = upsampling

    def forward(
        self, scores: Tensor, labels: Tensor, *, pixel_weight: Tensor | None = None
    ) -> Tensor:
        return upsampled_cross_entropy(
            scores,
            labels,
            self.class_weight,
            upsampling=self.upsampling,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            temperature=self.temperature,
            normalization=self.normalization,
            check_labels=self.check_labels,
        )

    def extra_repr(self) -> str:
        return f"upsampling={self.upsampling}, {super().extra_repr()}"
