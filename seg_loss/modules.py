"""The functions as `torch.nn` modules, whose options are fixed when they are made."""

from collections.abc import Sequence

from torch import Tensor, nn

from seg_loss import _distributed
from seg_loss._divisor import ProcessGroup, check_process_group
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
        process_group: as there.
        check_labels: as there.
    """

    class_weight: Tensor | None
    process_group: ProcessGroup | None
    _where = "logits"  # what error messages call the first argument of `forward`

    def __init__(
        self,
        class_weight: Tensor | None = None,
        *,
        ignore_index: int | Sequence[int] = 255,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        normalization: str = "valid",
        process_group: ProcessGroup | None = None,
        check_labels: str = "raise",
    ) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weight)
        self.options = LossOptions(
            ignore_index, label_smoothing, temperature, normalization, check_labels
        )
        if process_group is not None:
            check_process_group(process_group)
        self.process_group = process_group

    def forward(
        self, logits: Tensor, labels: Tensor, *, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Returns the loss of logits [N, C, *spatial] and labels [N, *spatial], a scalar."""
        weights = self.class_weight, pixel_weight
        try:
            inputs = check_inputs(logits, labels, *weights, self.options, where=self._where)
        except Exception:
            if self.process_group is not None:
                _distributed.report_failure(self.process_group)
            raise
        return loss_of(inputs, self.process_group)

    def extra_repr(self) -> str:
        """Returns the options, for `repr`."""
        return _options_text(self.options, self.process_group)


class UpsampledCrossEntropy(SpatialCrossEntropy):
    """`upsampled_cross_entropy` with fixed options; `class_weight` is a buffer.

    Args:
        class_weight: as in `upsampled_cross_entropy`, like the arguments that follow.
        upsampling: as there.
        ignore_index: as there.
        label_smoothing: as there.
        temperature: as there.
        normalization: as there.
        process_group: as there.
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
        process_group: ProcessGroup | None = None,
        check_labels: str = "raise",
    ) -> None:
        super().__init__(class_weight, process_group=process_group)
        check_upsampling(upsampling)
        self.options = LossOptions(
            ignore_index, label_smoothing, temperature, normalization, check_labels, upsampling
        )

    def extra_repr(self) -> str:
        """Returns the options, for `repr`."""
        return f"upsampling={self.options.upsampling}, {super().extra_repr()}"


def _options_text(options: LossOptions, process_group: ProcessGroup | None) -> str:
    values = options.ignored_values
    ignored = values[0] if len(values) == 1 else values
    return (
        f"ignore_index={ignored}, label_smoothing={options.label_smoothing}, "
        f"temperature={options.temperature}, normalization={options.normalization!r}, "
        f"check_labels={options.check_labels!r}"
        + ("" if process_group is None else f", process_group=<size {process_group.size()}>")
    )
