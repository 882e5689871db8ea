"""The functions as `torch.nn` modules, whose options are fixed when they are made."""

from collections.abc import Sequence

from torch import Tensor, nn

from seg_loss._inputs import LossOptions, check_inputs
from seg_loss.functional import loss_of, spatial_softmax
from seg_loss.upsampling import Bilinear, Upsampling, check_upsampling


class SpatialSoftmax(nn.Module):
    """`spatial_softmax` with a fixed axis and temperature.

    Args:
        axis: axis of the classes.
        temperature: divides the logits.
    """

    def __init__(self, *, axis: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        self.axis = axis
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """Returns the probabilities of logits, as `spatial_softmax` does."""
        return spatial_softmax(logits, axis=self.axis, temperature=self.temperature)

    def extra_repr(self) -> str:
        """Returns the options, for `repr`."""
        return f"axis={self.axis}, temperature={self.temperature}"


class SpatialCrossEntropy(nn.Module):
    """`spatial_cross_entropy` with fixed options; `class_weight` is a buffer.

    Args:
        class_weight: as in `spatial_cross_entropy`, like the arguments that follow.
        ignore_index: as there.
        label_smoothing: as there.
        temperature: as there.
        normalization: as there.
        check_labels: as there.
    """

    class_weight: Tensor | None
    _where = "logits"  # what error messages call the first argument of `forward`

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
        self.options = LossOptions(
            ignore_index, label_smoothing, temperature, normalization, check_labels
        )

    def forward(
        self, logits: Tensor, labels: Tensor, *, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Returns the loss of logits [N, C, *spatial] and labels [N, *spatial], a scalar."""
        weights = self.class_weight, pixel_weight
        return loss_of(check_inputs(logits, labels, *weights, self.options, where=self._where))

    def extra_repr(self) -> str:
        """Returns the options, for `repr`."""
        return _options_text(self.options)


class UpsampledCrossEntropy(SpatialCrossEntropy):
    """`upsampled_cross_entropy` with fixed options; `class_weight` is a buffer.

    Args:
        class_weight: as in `upsampled_cross_entropy`, like the arguments that follow.
        upsampling: as there.
        ignore_index: as there.
        label_smoothing: as there.
        temperature: as there.
        normalization: as there.
        check_labels: as there.
    """

    _where = "scores"

    def __init__(
        self,
        class_weight: Tensor | None = None,
        *,
        upsampling: Upsampling = Bilinear(),  # noqa: B008 - it is immutable
        ignore_index: int | Sequence[int] = 255,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        normalization: str = "valid",
        check_labels: str = "raise",
    ) -> None:
        super().__init__(class_weight)
        check_upsampling(upsampling)
        self.options = LossOptions(
            ignore_index, label_smoothing, temperature, normalization, check_labels, upsampling
        )

    def extra_repr(self) -> str:
        """Returns the options, for `repr`."""
        return f"upsampling={self.options.upsampling}, {_options_text(self.options)}"


def _options_text(options: LossOptions) -> str:
    values = options.ignored_values
    ignored = values[0] if len(values) == 1 else values
    return (
        f"ignore_index={ignored}, label_smoothing={options.label_smoothing}, "
        f"temperature={options.temperature}, normalization={options.normalization!r}, "
        f"check_labels={options.check_labels!r}"
    )
