"""Any torch module that scores the pixels of an image, with the interface of the FCNs."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from seg_loss import Bilinear, InvalidInput

_NAMES = ("out", "logits")  # of torchvision, and of transformers


class ScoreNetwork(nn.Module):
    """Wraps a module so that it is trained, evaluated and served like an FCN.

    The module's output may be the scores [N,C,h,w] themselves; a mapping with the key "out"
    (torchvision) or "logits"; an object with the attribute `logits` (transformers); or a tuple or
    list that begins with the scores (models with auxiliary outputs). Scores smaller than the image
    are upsampled bilinearly.

    Args:
        module: is called with an image [N,3,H,W].
        num_classes: C.
        output: the key or attribute of the scores, where it is another one.
        align_corners: how scores are upsampled, as in `torch.nn.functional.interpolate`.
    """

    def __init__(
        self,
        module: nn.Module,
        num_classes: int,
        *,
        output: str | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InvalidInput("module", "a torch.nn.Module", repr(module))
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise InvalidInput("num_classes", "an integer of at least 1", repr(num_classes))
        self.module = module
        self.num_classes = num_classes
        self.output = output
        self.upsampling = Bilinear(align_corners=align_corners)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits of an image [N,3,H,W] at its size: [N,C,H,W].

        Raises:
            InvalidInput: as `scores`.
        """
        scores, upsampling = self.scores(image)
        if upsampling is None:
            return scores
        return F.interpolate(
            scores, image.shape[2:], mode="bilinear", align_corners=upsampling.align_corners
        )

    def scores(self, image: Tensor) -> tuple[Tensor, Bilinear | None]:
        """Returns the scores as the module computes them, and how to upsample them.

        Args:
            image: [N,3,H,W].

        Returns:
            Scores [N,C,h,w]; and `seg_loss.Bilinear`, or None if they have the image's size.

        Raises:
            InvalidInput: if the image has no four axes; or if the module's output has no scores, or
                scores of another number of images or classes, larger than the image, or empty.
        """
        if image.dim() != 4:
            raise InvalidInput("image", "(N, 3, H, W)", str(tuple(image.shape)))
        scores = _find_scores(self.module(image), self.output)
        height, width = image.shape[2:]
        expected = f"({len(image)}, {self.num_classes}, h from 1 to {height}, w from 1 to {width})"
        is_of_image = tuple(scores.shape[:2]) == (len(image), self.num_classes)
        if scores.dim() != 4 or not is_of_image or 0 in scores.shape[2:]:
            raise InvalidInput("output of the network", expected, str(tuple(scores.shape)))
        if scores.shape[2] > height or scores.shape[3] > width:
            fix = "Crop the scores in the module if it pads its images."
            raise InvalidInput("output of the network", expected, str(tuple(scores.shape)), fix)
        return scores, None if scores.shape[2:] == image.shape[2:] else self.upsampling


def _find_scores(output: object, name: str | None) -> Tensor:
    """Returns the scores in the output of a module."""
    names = _NAMES if name is None else (name,)
    found = output
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            found = next((output[key] for key in names if key in output), None)
        elif any(hasattr(output, key) for key in names):
            found = next(getattr(output, key) for key in names if hasattr(output, key))
        elif name is None and isinstance(output, Sequence) and output:
            found = output[0]
    if isinstance(found, Tensor):
        return found
    expected = f"a tensor, or one named {' or '.join(map(repr, names))}"
    got = (
        f"{type(output).__name__} with the keys {list(output)}"
        if isinstance(output, Mapping)
        else type(output).__name__
    )
    raise InvalidInput(
        "output of the network", expected, got, "Name the scores: ScoreNetwork(..., output=...)."
    )
