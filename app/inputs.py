"""A body, or files on disk, to one `Upload`: tensors that are there, decoded and in batch form.

    body -> DECODERS, by media type -> named inputs -> READERS, by name -> Upload

An input is a tensor already (safetensors, JSON) or a file still to be read (multipart, the command
line). What kind of file it is says its first bytes, not its name. `logits` are read first: a label
PNG of another size is refused before its pixels are decoded, unless the logits are upsampled to it;
and an image without batch axis, [C,H,W] logits or [H,W] labels, becomes a batch of one.

Whether a loss can be made of these tensors is left to `seg_loss`, which has the words for it. Here
are only the limits of the settings. Where logits are upsampled, those hold for the labels' size as
well: a small body must not cost without bounds. The way goes on in `app.operations`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import IllPosed, TooLarge, UnsupportedMedia, dtype_name, safe_repr
from .formats import json, multipart, npy, png, safetensors
from .images.palettes import PALETTES
from .options import LossOptions
from .settings import Settings

Input = Tensor | memoryview
"""A tensor, or a file that is still to be read."""

MAX_AXES = 5
"""[N, C, depth, height, width]."""

MAX_UPSAMPLED_SIDE = 1 << 16
"""Rows or columns that logits are upsampled to. Tables of weights have an entry for each, and are
kept for the next requests."""


@dataclass(frozen=True, eq=False)
class Upload:
    """What a request holds; what it does not hold is None.

    Args:
        logits: [N,C,*spatial]; [N,C,h,w] if they are to be upsampled to what [N,H,W] says.
        labels: integers [N,*spatial].
        class_weight: [C].
        pixel_weight: [N,*spatial].
        prediction: class indices [N,*spatial].
        image: the photo, uint8 [H,W,3].
        warnings: sentences about what was read but looks unintended.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    class_weight: Tensor | None = None
    pixel_weight: Tensor | None = None
    prediction: Tensor | None = None
    image: npt.NDArray[np.uint8] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs that are there, for messages."""
        return tuple(name for name in READERS if getattr(self, name) is not None)


def media_type(content_type: str | None) -> str:
    """The row of `DECODERS` that a Content-Type names.

    Raises:
        UnsupportedMedia: there is none.
    """
    name = (content_type or "").partition(";")[0].strip().lower()
    if name in DECODERS:
        return name
    fix = f"Say -H 'Content-Type: {safetensors.MEDIA_TYPE}' (curl)."
    accepted = list(DECODERS)
    raise UnsupportedMedia(
        "Content-Type",
        f"one of {', '.join(accepted)}",
        "another one" if name else "none",
        fix if name == "application/x-www-form-urlencoded" else "",
        headers={"Accept-Post": ", ".join(accepted)},
        accepted=accepted,
    )


def decode(body: memoryview, content_type: str, options: LossOptions, settings: Settings) -> Upload:
    """Read a whole body.

    Raises:
        RequestError: of the codec, the label map, or a limit.
    """
    inputs = DECODERS[media_type(content_type)](body, content_type)
    return assemble(inputs, options, settings)


def assemble(inputs: Mapping[str, Input], options: LossOptions, settings: Settings) -> Upload:
    """Read the inputs by name, logits first.

    Raises:
        RequestError: of a codec, the label map, or a limit.
    """
    for name in inputs:
        if name not in READERS:
            fix = ""
            if name in type(options).model_fields:
                fix = f"Options belong into the query: ?{name}=..."
            expected = f"inputs out of {', '.join(READERS)}"
            raise IllPosed("body", expected, safe_repr(name), fix)
    reading = _Reading(options, settings)
    found = {
        name: reader(reading, name, inputs[name])
        for name, reader in READERS.items()
        if name in inputs
    }
    return Upload(**found, warnings=tuple(reading.warnings))


class _Reading:
    """What reading one input must know of the request and of the others."""

    def __init__(self, options: LossOptions, settings: Settings) -> None:
        self.options = options
        self.settings = settings
        self.is_upsampled = options.upsampling != "none"
        self.is_sized = False
        self.logits: Tensor | None = None
        self.warnings: list[str] = []

    def read_logits(self, name: str, source: Input) -> Tensor:
        logits = _tensor(name, source)
        if logits.ndim == 3:
            logits = logits[None]
        if not 2 <= logits.ndim <= MAX_AXES:
            raise IllPosed(name, "[N,C,H,W], [C,H,W], [N,C] or [N,C,D,H,W]", f"{logits.ndim} axes")
        if self.is_upsampled and logits.ndim != 4:
            raise IllPosed(name, "[N,C,h,w] or [C,h,w], to be upsampled", f"{logits.ndim} axes")
        if not logits.numel():
            raise IllPosed(name, "at least one number", f"shape {tuple(logits.shape)}")
        num_images, num_classes, *spatial = logits.shape
        _check_limit(name, "images", num_images, self.settings.max_images)
        _check_limit(name, "classes", num_classes, self.settings.max_classes)
        _check_limit(name, "pixels per image", prod(spatial), self.settings.max_pixels)
        self.logits = logits
        return logits

    def read_labels(self, name: str, source: Input) -> Tensor:
        labels = self.read_map(name, source)
        self._check_upsampled(name, labels.shape)
        return labels

    def read_map(self, name: str, source: Input) -> Tensor:
        """`labels` and `prediction`: a tensor, or a PNG of indices or colours."""
        if isinstance(source, Tensor) or _kind(source) != "PNG":
            return self._per_pixel(name, _tensor(name, source, " or PNG"))
        palette = self.options.palette
        spatial = () if self.logits is None else tuple(self.logits.shape[2:])
        has_their_size = len(spatial) == 2 and not self.is_upsampled
        found = png.read_label_map(
            source,
            where=name,
            encoding=self.options.label_encoding,
            palette=None if palette is None else PALETTES[palette],
            expected_size=(spatial[0], spatial[1]) if has_their_size else None,
            max_pixels=self.settings.max_pixels,
        )
        self.warnings += found.warnings
        return self._per_pixel(name, torch.from_numpy(found.indices)[None])

    def read_weight(self, name: str, source: Input) -> Tensor:
        """A number per pixel."""
        return self._per_pixel(name, _tensor(name, source))

    def _per_pixel(self, name: str, tensor: Tensor) -> Tensor:
        """[N,*spatial]; alone or with a batch of one, the batch axis may be missing."""
        if not tensor.numel():
            raise IllPosed(name, "at least one number", f"shape {tuple(tensor.shape)}")
        if self.logits is None:
            tensor = tensor[None] if tensor.ndim == 2 else tensor
            _check_limit(name, "pixels per image", prod(tensor.shape[1:]), self.settings.max_pixels)
        elif self.is_upsampled:
            tensor = tensor[None] if tensor.ndim == 2 and len(self.logits) == 1 else tensor
            if tensor.ndim not in (3, 4):
                raise IllPosed(name, "[N,H,W] or [H,W]", f"shape {tuple(tensor.shape)}")
        elif tensor.shape == self.logits.shape[2:] and len(self.logits) == 1:
            tensor = tensor[None]
        return tensor

    def read_tensor(self, name: str, source: Input) -> Tensor:
        return _tensor(name, source)

    def read_photo(self, name: str, source: Input) -> npt.NDArray[np.uint8]:
        photo = self._photo(name, source)
        self._check_upsampled(name, (1, *photo.shape[:2]))
        return photo

    def _photo(self, name: str, source: Input) -> npt.NDArray[np.uint8]:
        if not isinstance(source, Tensor) and _kind(source) not in _TENSOR_FILES:
            max_pixels = self.settings.max_pixels
            return png.read_photo(source, where=name, max_pixels=max_pixels)
        image = _tensor(name, source)
        if image.ndim == 4 and len(image) == 1:
            image = image[0]
        if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
            image = image.permute(1, 2, 0)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{dtype_name(image.dtype)} {tuple(image.shape)}"
            raise IllPosed(name, "uint8 [H,W,3] or [3,H,W]", got)
        _check_limit(name, "pixels", image.shape[0] * image.shape[1], self.settings.max_pixels)
        if not image.numel():
            raise IllPosed(name, "at least one pixel", f"shape {tuple(image.shape)}")
        return image.contiguous().numpy()

    def _check_upsampled(self, name: str, shape: Sequence[int]) -> None:
        """Limits of the images, rows and columns that logits are upsampled to.

        They are those of the first input that says them, as in `app.operations`.
        """
        if self.logits is None or not self.is_upsampled or self.is_sized:
            return
        self.is_sized = True
        num_images, *_, height, width = shape
        settings = self.settings
        _check_limit(name, "rows", height, MAX_UPSAMPLED_SIDE)
        _check_limit(name, "columns", width, MAX_UPSAMPLED_SIDE)
        _check_limit(name, "pixels per image", height * width, settings.max_pixels)
        what = "upsampled logits (images x classes x pixels)"
        # Scores that are made smaller cost as much as what they are made from.
        _, num_classes, least_height, least_width = self.logits.shape
        pixels = max(height, least_height) * max(width, least_width)
        number = num_images * num_classes * pixels
        _check_limit(name, what, number, settings.max_upsampled_logits)


READERS: Mapping[str, Callable[[_Reading, str, Input], Any]] = {
    "logits": _Reading.read_logits,
    "labels": _Reading.read_labels,
    "class_weight": _Reading.read_tensor,
    "pixel_weight": _Reading.read_weight,
    "prediction": _Reading.read_map,
    "image": _Reading.read_photo,
}
"""Every input there is, in the order in which they are read."""


def _from_safetensors(body: memoryview, _: str) -> Mapping[str, Input]:
    return safetensors.decode(body)[0]


def _from_multipart(body: memoryview, content_type: str) -> Mapping[str, Input]:
    return {name: part.data for name, part in multipart.decode(body, content_type).items()}


def _from_json(body: memoryview, _: str) -> Mapping[str, Input]:
    return json.decode(body)


DECODERS: Mapping[str, Callable[[memoryview, str], Mapping[str, Input]]] = {
    safetensors.MEDIA_TYPE: _from_safetensors,
    multipart.MEDIA_TYPE: _from_multipart,
    json.MEDIA_TYPE: _from_json,
}
"""The media types of a body; each row takes the body and the whole Content-Type."""


def _tensor(name: str, source: Input, also: str = "") -> Tensor:
    """A tensor, from a file if it must be; `also` is what else the caller would have read."""
    if isinstance(source, Tensor):
        return source
    kind = _kind(source)
    read = _TENSOR_FILES.get(kind)
    if read is None:
        expected = f"a file of {' or '.join(_TENSOR_FILES)}{also}"
        raise IllPosed(name, expected, kind if source else "an empty file")
    return read(source, name)


def _kind(source: memoryview) -> str:
    """What kind of file this is, by its first bytes."""
    for offset, magic, kind in _MAGIC:
        if bytes(source[offset : offset + len(magic)]) == magic:
            return kind
    return "another format"


def _only_tensor(source: memoryview, name: str) -> Tensor:
    tensors, _ = safetensors.decode(source, name)
    if name in tensors:
        return tensors[name]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise IllPosed(name, f"one tensor, or one called {name}", f"{len(tensors)} others")


_MAGIC = (
    (0, png.PNG_SIGNATURE, "PNG"),
    (0, png.JPEG_SIGNATURE, "JPEG"),
    (0, npy.MAGIC, "NPY"),
    (0, b"PK\x03\x04", "NPZ"),
    (8, b"{", "safetensors"),  # behind the length of the header
)
"""The offset and the bytes that tell a kind of file."""

_TENSOR_FILES: Mapping[str, Callable[[memoryview, str], Tensor]] = {
    "NPY": npy.decode,
    "safetensors": _only_tensor,
}


def _check_limit(name: str, what: str, number: int, limit: int) -> None:
    if number > limit:
        raise TooLarge(name, f"at most {limit} {what}", f"{number}", limit=limit)
