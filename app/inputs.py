"""Decodes a body, or files on disk, into one `Inputs`: tensors in batch form.

    body -> DECODERS, by media type -> sources by name -> READERS, by name -> Inputs

A source is a tensor (safetensors, JSON) or a file (multipart, the command line). The file type is
detected from its first bytes. An array in an NPZ file is read like the NPY file that it is.
`logits` are read before labels, so that a label PNG of another size is rejected before its pixels
are decoded. An image without batch axis, [C,H,W] logits or [H,W] labels, becomes a batch of one.

This module checks names, file types, numbers of axes and the limits of the settings; `seg_loss`
checks whether a loss is defined for the tensors. If logits are upsampled, the limits hold for the
size of the labels too, so that a small body cannot cost unlimited time and memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seg_loss.constants import LABEL_DTYPES
from seg_loss.upsampling import Upsampling

from . import input_reports, label_spaces
from .errors import (
    IllPosed,
    RequestError,
    TooLarge,
    UnsupportedMedia,
    did_you_mean,
    dtype_name,
    safe_repr,
)
from .formats import json, multipart, npy, npz, palette_files, png, rasters, safetensors
from .images.palettes import NUM_COLOURS, PALETTES, Colours, Palette, find_class, own_palette
from .input_reports import ImageReport, InputReport, LogitsReport, WeightReport
from .options import (
    LAYOUTS,
    EvaluateOptions,
    GradientOptions,
    LossOptions,
    PredictionOptions,
    PredictOptions,
)
from .settings import PREFIX, Settings

Source = Tensor | memoryview
"""A tensor, or the bytes of a file."""

Grow = Callable[[int], None]
"""Reserves memory for a number of bytes beside the body, and raises if there is none. A negative
number gives memory back."""

MAX_AXES = 5
"""Number of axes of [N, C, depth, height, width]."""

MAX_UPSAMPLED_SIDE = 1 << 16
"""Largest height and width that logits are upsampled to. An upsampling has tables with an entry for
each row and column, which stay in a cache."""

_LIMITS: Mapping[str, str] = {
    "images": "max_images",
    "classes": "max_classes",
    "pixels": "max_pixels",
    "pixels per image": "max_pixels",
    "upsampled logits (images x classes x pixels)": "max_upsampled_logits",
}
"""The settings that limit what a request has, by the words of messages."""

_BLOCK_PIXELS = 1 << 14
"""Pixels whose largest class is looked for together. They stay in the cache of a processor, and are
too few for torch to share the work among threads."""

_MAPPING_BYTES = 24
"""The most bytes that a label takes while it is mapped to a class, as an index of a table too."""


@dataclass(frozen=True)
class NetworkOutput:
    """What is known of logits that a network has computed from a photo.

    Attributes:
        upsampling: makes them as large as the photo; None if they are.
        class_names: the names of the classes; none if the checkpoint has none.
    """

    upsampling: Upsampling | None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors of one request or command; None for those that it does not have.

    They are decoded on the CPU.

    Attributes:
        logits: [N,C,*spatial]; [N,C,h,w] if they are upsampled to the [N,H,W] of the labels.
        labels: [N,*spatial].
        class_weight: [C].
        pixel_weight: [N,*spatial].
        prediction: class indices [N,*spatial].
        image: the photo, uint8 [H,W,3].
        num_classes: C of a prediction that is evaluated in place of logits; else None.
        network: describes logits that a network has computed; None for those of the request.
        palette: the palette that was sent.
        reports: what was found in each input.
        file_palettes: for each label map whose file has colours, those of its classes, and the
            classes that occur.
        largest_class: the largest class of labels and prediction that is not ignored.
        warnings: sentences about content that is probably unintended.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    class_weight: Tensor | None = None
    pixel_weight: Tensor | None = None
    prediction: Tensor | None = None
    image: npt.NDArray[np.uint8] | None = None
    num_classes: int | None = None
    network: NetworkOutput | None = None
    palette: Palette | None = None
    reports: Mapping[str, InputReport] = field(default_factory=dict)
    file_palettes: tuple[tuple[Colours, tuple[int, ...]], ...] = ()
    largest_class: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that are not None."""
        return tuple(name for name in READERS if getattr(self, name) is not None)

    @property
    def tensors_of_loss(self) -> dict[str, Tensor]:
        """The tensors that `seg_loss` computes with, by name; none without logits."""
        names = ("logits", "labels", "class_weight", "pixel_weight")
        if self.logits is None:
            return {}
        return {name: getattr(self, name) for name in names if name in self.names}

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "Inputs":
        """Returns the inputs with copies of these tensors, which may be on another device."""
        copies = {name: copy(tensor) for name, tensor in self.tensors_of_loss.items()}
        return replace(self, **copies)  # type: ignore[arg-type]


def media_type(content_type: str | None) -> str:
    """Returns the key of `DECODERS` that a Content-Type names.

    Raises:
        UnsupportedMedia: if it names none.
    """
    name = (content_type or "").partition(";")[0].strip().lower()
    if name in DECODERS:
        return name
    accepted = list(DECODERS)
    # Whole names are alike if they only begin with application/.
    subtype = name.rpartition("/")[2]
    like = [known for known in accepted if did_you_mean(subtype, [known.rpartition("/")[2]])]
    fix = f"Send files as {multipart.MEDIA_TYPE}: curl -F logits=@FILE -F labels=@FILE."
    if like:
        fix = f"Did you mean {like[0]}?"
    if name == "application/x-www-form-urlencoded":  # the default of curl
        fix = f"With curl, add -H 'Content-Type: {safetensors.MEDIA_TYPE}'."
    raise UnsupportedMedia(
        "Content-Type",
        f"one of {', '.join(accepted)}",
        safe_repr(name),
        fix,
        headers={"Accept-Post": ", ".join(accepted)},
        accepted=accepted,
    )


def decode(
    body: memoryview,
    content_type: str,
    options: LossOptions,
    settings: Settings,
    grow: Grow = lambda _: None,
) -> Inputs:
    """Returns the inputs in an uncompressed body.

    Raises:
        RequestError: if the body or a file in it is invalid or too large.
    """
    fix_for = partial(_fix_for_option, options)
    sources = DECODERS[media_type(content_type)](body, content_type, fix_for)
    return assemble(sources, options, settings, grow)


def assemble(
    sources: Mapping[str, Source],
    options: LossOptions,
    settings: Settings,
    grow: Grow = lambda _: None,
) -> Inputs:
    """Returns the inputs that are read from tensors and files by name.

    Raises:
        RequestError: if a name is unknown, or a file is invalid or too large.
    """
    for name in sources:
        if name not in READERS:
            fix = _fix_for_option(options, name) or did_you_mean(name, READERS)
            raise IllPosed("body", f"inputs among {', '.join(READERS)}", safe_repr(name), fix)
    files = {
        name: "tensor" if isinstance(source, Tensor) else _file_type(source)
        for name, source in sources.items()
    }
    reader = _Reader(options, settings, grow, files)
    unpack = _Unpacker(settings.max_body_bytes, grow)
    tensors = {
        name: read(reader, name, unpack(name, sources[name]))
        for name, read in READERS.items()
        if name in sources
    }
    # Each once: the layout is checked with every input, and before a picture is decoded.
    return Inputs(
        **tensors,
        num_classes=reader.num_classes,
        reports=reader.reports,
        file_palettes=tuple(reader.file_palettes),
        largest_class=reader.largest_class,
        warnings=tuple(dict.fromkeys(reader.warnings)),
    )


def is_label_map(source: Source) -> bool:
    """Returns whether a file holds class indices: a picture, or a tensor of integers."""
    if isinstance(source, memoryview) and _file_type(source) not in _TENSOR_FILES:
        return _file_type(source) in _PICTURES
    try:
        return not _tensor("logits", source).dtype.is_floating_point
    except RequestError:
        return False  # the function that reads the file raises the error


def class_indices(where: str, tensor: Tensor) -> Tensor:
    """Returns class indices [N,*spatial] from the same or [N,1,*spatial].

    Raises:
        IllPosed: if they are no integers, or have no axes.
    """
    if dtype_name(tensor.dtype) not in LABEL_DTYPES:
        raise IllPosed(where, "class indices, which are integers", dtype_name(tensor.dtype))
    if not tensor.ndim:
        raise IllPosed(where, "[N,H,W] or [H,W]", "no axes")
    return tensor[:, 0] if tensor.ndim > 3 and tensor.shape[1] == 1 else tensor


def _fix_for_option(options: LossOptions, name: str) -> str:
    """Returns the fix for an input that has the name of an option; "" for any other name."""
    is_option = name in type(options).model_fields
    return f"Options belong in the query: ?{name}=..." if is_option else ""


class _Unpacker:
    """Takes arrays out of the NPZ files of one request, which may have `max_bytes` together."""

    def __init__(self, max_bytes: int, grow: Grow) -> None:
        self._max_bytes = max_bytes
        self._grow = grow

    def __call__(self, where: str, source: Source) -> Source:
        """Returns the NPY file in an NPZ file; any other source as it is."""
        if isinstance(source, Tensor) or _file_type(source) != "NPZ":
            return source
        array = npz.read(source, where, self._max_bytes, self._grow)
        self._max_bytes -= len(array)
        return array


class _Reader:
    """Reads the inputs of one request, in the order of `READERS`.

    It holds what one input must know of the options and of the inputs before it.
    """

    def __init__(
        self, options: LossOptions, settings: Settings, grow: Grow, files: Mapping[str, str]
    ) -> None:
        self.options = options
        self.files = files
        self.settings = settings
        self.grow = grow
        self.size = options.size if isinstance(options, PredictOptions) else None
        self.is_upsampled = options.upsampling != "none" or self.size is not None
        self.has_upsampled_size = False
        self.logits: Tensor | None = None
        self.labels: Tensor | None = None
        self.num_classes: int | None = None
        self.palette = None if options.palette is None else PALETTES[options.palette]
        self.reports: dict[str, InputReport] = {}
        self.file_palettes: list[tuple[Colours, tuple[int, ...]]] = []
        self.largest_class: int | None = None
        self.warnings: list[str] = []

    def read_palette(self, where: str, source: Source) -> Palette:
        if self.palette is not None:
            raise IllPosed(where, "the option or the input", "both")
        # JSON may have the byte by which safetensors are detected, but no byte of 0 before it.
        is_text = not isinstance(source, Tensor) and 0 not in bytes(source[:8])
        if isinstance(source, Tensor) or (_file_type(source) in _TENSOR_FILES and not is_text):
            colours = _tensor(where, source)
            if colours.dtype != torch.uint8 or colours.ndim != 2 or colours.shape[1] != 3:
                got = f"{dtype_name(colours.dtype)} {tuple(colours.shape)}"
                raise IllPosed(where, "uint8 [n,3], a colour for each class", got)
            if not 0 < len(colours) <= NUM_COLOURS:
                raise IllPosed(where, f"1...{NUM_COLOURS} colours", f"{len(colours)}")
            self.palette = own_palette(colours.numpy())
        else:
            self.palette = palette_files.decode(source, where)
        return self.palette

    def read_logits(self, where: str, source: Source) -> Tensor:
        logits = _tensor(where, source)
        self.reports[where] = LogitsReport(
            self.files[where],
            dtype_name(logits.dtype),
            tuple(logits.shape),
            self.options.layout,
        )
        if logits.ndim == 3:
            logits = logits[None]
        if not 2 <= logits.ndim <= MAX_AXES:
            expected = "[N,C,H,W], [C,H,W], [N,C] or [N,C,D,H,W]"
            raise IllPosed(where, expected, f"{logits.ndim} axes")
        if self.is_upsampled and logits.ndim != 4:
            expected = "[N,C,h,w] or [C,h,w], to be upsampled"
            raise IllPosed(where, expected, f"{logits.ndim} axes")
        if not logits.numel():
            raise IllPosed(where, "at least one number", f"shape {tuple(logits.shape)}")
        logits = logits.movedim(LAYOUTS[self.options.layout], 1)
        num_images, num_classes, *spatial = logits.shape
        self._check_limit(where, num_images, "images")
        self._check_limit(where, num_classes, "classes")
        self._check_limit(where, prod(spatial), "pixels per image")
        self.logits = logits
        if self.size is not None:
            self._check_upsampled_size("size", (num_images, *self.size))
        return logits

    def read_labels(self, where: str, source: Source) -> Tensor:
        labels = self._read_indices(where, source, self.options.label_space)
        self._check_are_logits(labels.shape)
        self._check_layout(labels.shape)
        self._check_upsampled_size(where, labels.shape)
        self._add_advice(labels)
        self.labels = labels
        return labels

    def read_prediction(self, where: str, source: Source) -> Tensor:
        options = self.options
        space = options.prediction_space if isinstance(options, PredictionOptions) else "raw"
        prediction = self._read_indices(where, source, space)
        if isinstance(options, EvaluateOptions) and self.logits is None:
            self._count_classes(options, prediction)
        return prediction

    def read_class_weight(self, where: str, source: Source) -> Tensor:
        return self._weight(where, source)

    def read_pixel_weight(self, where: str, source: Source) -> Tensor:
        return self._with_batch_axis(where, self._weight(where, source))

    def _weight(self, where: str, source: Source) -> Tensor:
        weight = _tensor(where, source)
        shape = tuple(weight.shape)
        self.reports[where] = WeightReport(self.files[where], dtype_name(weight.dtype), shape)
        return weight

    def read_image(self, where: str, source: Source) -> npt.NDArray[np.uint8]:
        mode = None
        if isinstance(source, Tensor) or _file_type(source) in _TENSOR_FILES:
            photo = self._photo_of_tensor(where, _tensor(where, source))
            self._check_photo_size(where, *photo.shape[:2])
        else:
            photo = png.read_photo(
                source,
                where=where,
                check_size=partial(self._check_photo_size, where),
                max_pixels=self.settings.max_pixels,
                grow=self.grow,
            )
            self.grow(len(source))  # Pillow reads a copy
            mode = png.photo_mode(source)
            self.grow(-len(source))
        self.reports[where] = ImageReport(self.files[where], mode, tuple(photo.shape))
        return photo

    def _read_indices(self, where: str, source: Source, space: str) -> Tensor:
        """Returns class indices [N,*spatial], from a tensor or a picture of indices or colours."""
        label_map = None
        if isinstance(source, Tensor) or _file_type(source) not in _PICTURES:
            indices = self._with_batch_axis(where, _tensor(where, source, *_LABEL_PICTURES))
            if dtype_name(indices.dtype) not in LABEL_DTYPES:
                return indices  # an error of `seg_loss`
        else:
            label_map = self._read_label_map(where, source)
            indices = self._with_batch_axis(where, torch.from_numpy(label_map.indices)[None])
            if label_map.is_coloured and space != "raw":
                expected = f"indices, which {label_spaces.SPACE_OPTIONS[where]}={space} maps"
                raise IllPosed(where, expected, f"colours (mode {label_map.mode})")
        classes = self._to_classes(where, indices, space)
        self._add_report(where, indices, space, label_map)
        return classes

    def _read_label_map(self, where: str, source: memoryview) -> png.LabelMap:
        options, palette = self.options, self.palette
        colour_classes = (
            []
            if palette is None
            else [find_class(palette, text, "colour_classes") for text in options.colour_classes]
        )
        label_map = png.read_label_map(
            source,
            where=where,
            encoding=options.label_encoding,
            palette=palette,
            colour_classes=colour_classes,
            unknown_colours=options.unknown_colours,
            check_size=partial(self._check_picture_size, where),
            max_pixels=self.settings.max_pixels,
            grow=self.grow,
        )
        self.warnings += label_map.warnings
        return label_map

    def _to_classes(self, where: str, indices: Tensor, space: str) -> Tensor:
        if space == "raw":
            return indices
        mapping_bytes = _MAPPING_BYTES * indices.numel()
        self.grow(mapping_bytes)
        classes = label_spaces.to_classes(indices.numpy(), space, self.options.ignore_index, where)
        self.grow(classes.nbytes - mapping_bytes)
        return torch.from_numpy(classes)

    def _add_report(
        self, where: str, indices: Tensor, space: str, label_map: png.LabelMap | None
    ) -> None:
        """Counts the values of a label map, for answers in JSON and for the palette of pictures."""
        if isinstance(self.options, GradientOptions):
            return  # whose answer is neither
        sorting_bytes = input_reports.sorting_bytes(indices)
        self.grow(sorting_bytes)
        values = input_reports.count_values(indices, space, self.options.ignore_index, where)
        mode = None if label_map is None else label_map.mode
        is_coloured = label_map is not None and label_map.is_coloured
        read_as = "colours" if is_coloured else "indices"
        report = values.report(self.files[where], mode, indices, read_as, space)
        self.reports[where] = report
        classes = values.present_classes
        self.grow(-sorting_bytes)
        if classes:
            self.largest_class = max(classes[-1], self.largest_class or 0)
        if label_map is not None and len(label_map.colours):
            values_of = label_spaces.values_of_classes(space, len(label_map.colours))
            self.file_palettes.append((label_map.colours[values_of], classes))

    def _check_picture_size(self, where: str, height: int, width: int) -> None:
        """Checks the size of a picture of labels, before its pixels are decoded."""
        self._check_layout((height, width))
        if where == "labels":
            self._check_upsampled_size(where, (1, height, width))
        if self.logits is None or self.logits.ndim != 4 or self.is_upsampled:
            return
        rows, columns = self.logits.shape[2:]
        if (height, width) == (rows, columns):
            return
        fix = ""
        if (width, height) == (rows, columns):
            fix = "Height and width are exchanged."
        elif height >= rows and width >= columns:
            fix = "Scores of lower resolution? Use upsampling=bilinear."
        expected = f"{rows} x {columns} (height x width) to match the logits"
        raise IllPosed(where, expected, f"{height} x {width}", fix)

    def _check_photo_size(self, where: str, height: int, width: int) -> None:
        """Checks the size of a photo, before its pixels are decoded."""
        self._check_layout((height, width))
        self._check_upsampled_size(where, (1, height, width))

    def _check_layout(self, shape: Sequence[int]) -> None:
        """Checks that logits do not have the size of an input in the other layout alone.

        Args:
            shape: that of the input, which ends with the spatial axes.
        """
        if self.logits is None or self.logits.ndim < 3:
            return
        layout = self.options.layout
        if self.is_upsampled and "layout" in self.options.model_fields_set:
            return  # a request that names the layout needs no guess
        sent = tuple(self.logits.movedim(1, LAYOUTS[layout]).shape)
        size, spatial = (tuple(axes[2 - len(sent) :]) for axes in (shape, self.logits.shape))
        other, spatial_of_other = ("nhwc", sent[1:-1]) if layout == "nchw" else ("nchw", sent[2:])
        axis = "axis 1" if layout == "nchw" else "the last axis"
        expected, got = f"classes on {axis}", f"shape {sent}"
        if size == spatial_of_other != spatial:
            raise IllPosed(
                "logits",
                f"{expected} and size {size}",
                f"{got}, which fits in layout={other} alone",
                f"Use layout={other}.",
            )
        if (
            not len(size) == len(spatial) == 2
            or any(wanted < given for wanted, given in zip(size, spatial_of_other, strict=True))
            or _distortion(size, spatial_of_other) > 1.05
            or _distortion(size, spatial) < 1.1
        ):
            return
        fit = f"fits the size {size} better in layout={other}"
        if not self.is_upsampled:
            fix = f"Scores of lower resolution? Use upsampling=bilinear and layout={other}."
            raise IllPosed("logits", expected, f"{got}, which {fit}", fix)
        choice = f"Use layout={other}, or layout={layout} if the classes are {axis}."
        self.warnings.append(f"logits: {got} {fit}. {choice}")

    def _check_are_logits(self, shape: Sequence[int]) -> None:
        """Checks that the logits are not a label map in floating point, which would be rows [N,C].

        Raises:
            IllPosed: if they have height and width of the labels, and no other axes.
        """
        logits = self.logits
        if logits is None or logits.ndim != 2 or 1 in logits.shape:
            return  # rows of one class have labels [N,1]
        if tuple(shape) in (tuple(logits.shape), (1, *logits.shape)):
            got = f"{dtype_name(logits.dtype)} {tuple(logits.shape)}, as the labels"
            fix = "Save class indices as integers: array.astype('uint8')."
            raise IllPosed("logits", "[N,C,H,W] or [C,H,W]", got, fix)

    def _add_advice(self, labels: Tensor) -> None:
        """Adds warnings about labels that have one entry per pixel."""
        logits, options = self.logits, self.options
        if logits is None or labels.dtype.is_floating_point:
            return
        if labels.ndim == 0 or len(labels) != len(logits):
            return  # an error of `seg_loss`
        size = labels.shape[labels.ndim - (logits.ndim - 2) :]
        if size != logits.shape[2:] and not self.is_upsampled:
            return
        space = options.label_space if "label_space" in options.model_fields_set else ""
        self.warnings += label_spaces.advice_for(
            labels.numpy(), logits.shape[1], options.ignore_index, space
        )

    def _count_classes(self, options: EvaluateOptions, prediction: Tensor) -> None:
        """Sets the number of classes of a prediction, and adds advice about its labels.

        Raises:
            TooLarge: if the number exceeds the limit of the settings.
        """
        if self.labels is None:
            return  # an error of `operations`
        labels = class_indices("labels", self.labels)
        num_classes = options.num_classes
        if num_classes is None and self.palette is not None:
            num_classes = self.palette.num_classes
        if num_classes is None:
            prediction = class_indices("prediction", prediction)
            largest = _largest_class(prediction, labels, options.ignore_index)
            # A larger class is invalid then: the error says where it is.
            num_classes = min(largest + 1, self.settings.max_classes)
        self._check_limit("num_classes", num_classes, "classes")
        self.num_classes = num_classes
        space = options.label_space if "label_space" in options.model_fields_set else ""
        self.warnings += label_spaces.advice_for(
            labels.numpy(), num_classes, options.ignore_index, space
        )

    def _with_batch_axis(self, where: str, tensor: Tensor) -> Tensor:
        """Returns [*spatial] of a batch of one as [1,*spatial]; any other shape as it is."""
        if not tensor.numel():
            raise IllPosed(where, "at least one number", f"shape {tuple(tensor.shape)}")
        if self.logits is None:
            tensor = tensor[None] if tensor.ndim == 2 else tensor
            self._check_limit(where, len(tensor) if tensor.ndim else 1, "images")
            num_pixels = prod(tensor.shape[1:])
            self._check_limit(where, num_pixels, "pixels per image")
        elif self.is_upsampled:
            tensor = tensor[None] if tensor.ndim == 2 and len(self.logits) == 1 else tensor
            if tensor.ndim not in (3, 4):
                raise IllPosed(where, "[N,H,W] or [H,W]", f"shape {tuple(tensor.shape)}")
        elif tensor.shape == self.logits.shape[2:] and len(self.logits) == 1:
            tensor = tensor[None]
        return tensor

    def _photo_of_tensor(self, where: str, image: Tensor) -> npt.NDArray[np.uint8]:
        """Returns a photo, uint8 [H,W,3], from one whose channels are first or last."""
        if image.ndim == 4 and len(image) == 1:
            image = image[0]
        if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
            image = image.permute(1, 2, 0)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{dtype_name(image.dtype)} {tuple(image.shape)}"
            raise IllPosed(where, "uint8 [H,W,3] or [3,H,W]", got)
        num_pixels = image.shape[0] * image.shape[1]
        self._check_limit(where, num_pixels, "pixels")
        if not image.numel():
            raise IllPosed(where, "at least one pixel", f"shape {tuple(image.shape)}")
        return image.contiguous().numpy()

    def _check_upsampled_size(self, where: str, shape: Sequence[int]) -> None:
        """Checks the limits of the images, rows and columns that logits are upsampled to.

        The first input with a size decides it, as in `operations`; later ones are not checked.
        """
        if self.logits is None or not self.is_upsampled or self.has_upsampled_size:
            return
        self.has_upsampled_size = True
        num_images, *_, height, width = shape
        for count, unit in ((height, "rows"), (width, "columns")):
            if count > MAX_UPSAMPLED_SIDE:
                expected = f"at most {MAX_UPSAMPLED_SIDE} {unit}"
                raise TooLarge(where, expected, f"{count}", limit=MAX_UPSAMPLED_SIDE)
        self._check_limit(where, height * width, "pixels per image")
        # Scores that are downsampled cost as much as if they kept their size.
        _, num_classes, min_height, min_width = self.logits.shape
        num_pixels = max(height, min_height) * max(width, min_width)
        self._check_limit(
            where,
            num_images * num_classes * num_pixels,
            "upsampled logits (images x classes x pixels)",
        )

    def _check_limit(self, where: str, count: int, unit: str) -> None:
        """Checks a number of what `_LIMITS` names, against the limit of the settings.

        Raises:
            TooLarge: if it is exceeded.
        """
        setting = _LIMITS[unit]
        limit = getattr(self.settings, setting)
        if count > limit:
            fix = f"The limit is {PREFIX}{setting.upper()}."
            raise TooLarge(where, f"at most {limit} {unit}", f"{count}", fix, limit=limit)


READERS: Mapping[str, Callable[[_Reader, str, Source], Any]] = {
    "palette": _Reader.read_palette,
    "logits": _Reader.read_logits,
    "labels": _Reader.read_labels,
    "class_weight": _Reader.read_class_weight,
    "pixel_weight": _Reader.read_pixel_weight,
    "prediction": _Reader.read_prediction,
    "image": _Reader.read_image,
}
"""The names of all inputs, in the order in which they are read."""


_FixFor = Callable[[str], str]


def _decode_safetensors(body: memoryview, *_: object) -> Mapping[str, Source]:
    return safetensors.decode(body)[0]


def _decode_multipart(body: memoryview, content_type: str, _: object) -> Mapping[str, Source]:
    return {name: part.data for name, part in multipart.decode(body, content_type).items()}


def _decode_json(body: memoryview, _: str, fix_for: _FixFor) -> Mapping[str, Source]:
    return json.decode(body, fix_for)


DECODERS: Mapping[str, Callable[[memoryview, str, _FixFor], Mapping[str, Source]]] = {
    safetensors.MEDIA_TYPE: _decode_safetensors,
    multipart.MEDIA_TYPE: _decode_multipart,
    json.MEDIA_TYPE: _decode_json,
}
"""The media types of a body, with functions of the body, the whole Content-Type, and a function
that returns the fix for an input with the name of an option."""


def _tensor(where: str, source: Source, *other_types: str) -> Tensor:
    """Returns a tensor, read from a file if necessary.

    Args:
        other_types: file types, for the message, that the caller reads itself.
    """
    if isinstance(source, Tensor):
        return source
    file_type = _file_type(source)
    read = _TENSOR_FILES.get(file_type)
    if read is None:
        *most, last = ["NPY", "NPZ", "safetensors", *other_types]
        expected = f"an {', '.join(most)} or {last} file"
        fix = "Decompress the file first." if file_type == "gzip" else ""
        raise IllPosed(where, expected, file_type if source else "an empty file", fix)
    return read(source, where)


def _file_type(source: memoryview) -> str:
    for offset, magic, file_type in _MAGIC:
        if bytes(source[offset : offset + len(magic)]) == magic:
            return file_type
    return "another format"


def _tensor_from_safetensors(source: memoryview, where: str) -> Tensor:
    """Returns the tensor of that name, or the only one in the file."""
    tensors, _ = safetensors.decode(source, where)
    if where in tensors:
        return tensors[where]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise IllPosed(where, f"one tensor, or one named {where}", f"{len(tensors)} of other names")


_MAGIC = (
    (0, png.PNG_SIGNATURE, "PNG"),
    (0, png.JPEG_SIGNATURE, "JPEG"),
    (0, npy.MAGIC, "NPY"),
    (0, npz.MAGIC, "NPZ"),
    (0, npz.EMPTY_MAGIC, "NPZ"),
    (8, b"{", "safetensors"),  # the first 8 bytes are the length of the header
    *((0, signature, "TIFF") for signature in rasters.TIFF_SIGNATURES),
    (0, rasters.BMP_SIGNATURE, "BMP"),
    (8, png.WEBP_SIGNATURE, "WebP"),
    (0, b"\x1f\x8b", "gzip"),
)
"""Offsets and bytes by which the type of a file is detected."""

_LABEL_PICTURES = ("PNG", "TIFF", "BMP")
_PICTURES = (*_LABEL_PICTURES, "JPEG", "WebP")

_TENSOR_FILES: Mapping[str, Callable[[memoryview, str], Tensor]] = {
    "NPY": npy.decode,
    "safetensors": _tensor_from_safetensors,
}


def _distortion(size: Sequence[int], spatial: Sequence[int]) -> float:
    """Returns by how much more an upsampling enlarges one axis than the other; 1 if equally.

    Scores of 9 rows for 65 keep the pixels of the corners: 8 intervals become 64.
    """
    distortions = []
    for corner in (0, 1):
        if min(*size, *spatial) > corner:
            scales = [(s - corner) / (g - corner) for s, g in zip(size, spatial, strict=True)]
            distortions.append(max(scales) / min(scales))
    return min(distortions)


def _largest_class(prediction: Tensor, labels: Tensor, ignored: Sequence[int]) -> int:
    """Returns the largest value at pixels that count; 0 if there is none.

    An ignored value in the prediction is no class, since it would be the largest one.
    """
    largest = 0
    have_same_shape = prediction.shape == labels.shape  # else an error of `seg_loss`
    flat_labels, flat_prediction = labels.flatten(), prediction.flatten()
    for begin in range(0, labels.numel(), _BLOCK_PIXELS):
        block = flat_labels[begin : begin + _BLOCK_PIXELS]
        valid = torch.ones_like(block, dtype=torch.bool)
        for value in representable(ignored, labels.dtype):
            valid &= block != value
        largest = max(largest, int(torch.where(valid, block.long(), 0).max()))
        if have_same_shape:
            block = flat_prediction[begin : begin + _BLOCK_PIXELS]
            for value in representable(ignored, prediction.dtype):
                valid &= block != value
            largest = max(largest, int(torch.where(valid, block.long(), 0).max()))
    return largest


def representable(values: Sequence[int], dtype: torch.dtype) -> list[int]:
    """Returns the values that the dtype can hold; no label has any other value."""
    limits = torch.iinfo(dtype)
    return [value for value in values if limits.min <= value <= limits.max]
