"""The results of operations, and how they become JSON fields and files.

The command line and the service write the same fields and the same files. JSON has no NaN and no
infinity: `to_jsonable` replaces them by null.

The confusion matrix of up to `MAX_MATRIX_CLASSES` classes is a list of rows. That of more classes
is an object, whose triplets are the entries that are not 0, by row and then by column:

    {"num_classes": 1000, "triplets": [[row, column, count], ...]}

`json_chunks` makes JSON in many short calls of `json.dumps`. A long call in a worker thread would
hold Python's global lock, and the event loop of the service would wait for it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import chain
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seg_loss import Evaluation
from seg_loss.metrics import FcnMetrics, fcn_metrics

from .errors import IllPosed, TooLarge
from .formats import npy, png, safetensors
from .images.indexed import indexed_picture
from .images.palettes import NUM_COLOURS, ChosenPalette
from .input_reports import MAX_VALUES, InputReport

MAX_MATRIX_CLASSES = 256
"""Largest number of classes whose confusion matrix is a list of rows in JSON."""

MAX_METADATA_BYTES = 64 * 1024 * 1024
"""Largest JSON object in the metadata of a file of maps. The safetensors library reads headers of
at most 100 MB, and escapes take room."""

_BLOCK_ENTRIES = 16 * 1024
"""Entries of a confusion matrix that are converted in one call."""
_MAX_ENTRY_BYTES = len("[99999, 99999, 9223372036854775807], ")
_MAX_ROW_BYTES = 256
"""Larger than the JSON of one image, that of all lists for one class, or that of a value."""
_MIN_CHUNK_BYTES = 1024 * 1024
_MAX_GREY_CLASSES = 1 << 16

LABEL_MAP_BYTES = 8
"""The most bytes that a pixel of a label map takes while it is counted and becomes a PNG."""

BATCH_FIELDS = (
    "loss",
    "normalization",
    "divisor",
    "valid_pixels",
    "ignored_pixels",
    "uniform_loss",
)
"""Attributes of an `Evaluation` that are one value for the whole batch."""

LOSS_FIELDS = (*BATCH_FIELDS, "per_image", "per_class", "diagnosis")
"""Attributes of an `Evaluation` that are in the JSON object of `loss`."""

EVALUATION_FIELDS = (*LOSS_FIELDS, "confusion", "metrics", "calibration")
"""Attributes of an `Evaluation` that are in the JSON object of `evaluate`."""


@dataclass(frozen=True)
class ImagePixels:
    """The valid pixels of one image of a prediction, which has no loss."""

    loss: None
    valid_pixels: int


@dataclass(frozen=True)
class ClassPixels:
    """The valid pixels of one class of a prediction, which has no loss."""

    pixels: int
    mean_nll: None


@dataclass(frozen=True, eq=False)
class LabelMapEvaluation:
    """The evaluation of a prediction without logits: a `seg_loss.Evaluation` with None for losses.

    Attributes:
        normalization: the option.
        valid_pixels_by_image: the number of valid pixels of each image.
        num_pixels: the number of all pixels.
        confusion: int64 [C,C] over the valid pixels, rows = truth.
        maps: the maps asked for.
    """

    normalization: str
    valid_pixels_by_image: tuple[int, ...]
    num_pixels: int
    confusion: Tensor
    maps: dict[str, Tensor]

    loss: ClassVar[None] = None
    divisor: ClassVar[None] = None
    diagnosis: ClassVar[None] = None
    calibration: ClassVar[None] = None

    @property
    def valid_pixels(self) -> int:
        """The number of valid pixels."""
        return sum(self.valid_pixels_by_image)

    @property
    def ignored_pixels(self) -> int:
        """The number of pixels with an ignored label."""
        return self.num_pixels - self.valid_pixels

    @property
    def uniform_loss(self) -> float:
        """ln C, the loss that a uniform prediction would have."""
        return math.log(len(self.confusion))

    @property
    def per_image(self) -> tuple[ImagePixels, ...]:
        """The valid pixels of each image."""
        return tuple(ImagePixels(None, count) for count in self.valid_pixels_by_image)

    @property
    def per_class(self) -> tuple[ClassPixels, ...]:
        """The valid pixels of each class, by the labels."""
        return tuple(ClassPixels(count, None) for count in self.confusion.sum(dim=1).tolist())


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The result of `loss` and of `evaluate`.

    Attributes:
        evaluation: the return value of `seg_loss.evaluate`, or that of a prediction without logits.
        reports: what was found in each input.
        palette: the colours and names of the classes.
        warnings: sentences about the inputs.
        ignore_index: the option.
        absent: the option of `evaluate`.
    """

    evaluation: Evaluation | LabelMapEvaluation
    reports: Mapping[str, InputReport]
    palette: ChosenPalette
    warnings: tuple[str, ...]
    ignore_index: tuple[int, ...]
    absent: str

    @property
    def is_finite(self) -> bool:
        """Whether the logits of all valid pixels have a softmax."""
        evaluation = self.evaluation
        if isinstance(evaluation, LabelMapEvaluation):
            return True
        return evaluation.non_finite_pixels == 0 and not math.isnan(evaluation.loss)

    @cached_property
    def metrics(self) -> FcnMetrics:
        """The metrics of the confusion matrix; ignored classes are in no mean."""
        return fcn_metrics(
            self.evaluation.confusion, absent=self.absent, ignore_index=self.ignore_index
        )


@dataclass(frozen=True, eq=False)
class GradientResult:
    """The result of `gradient`.

    Attributes:
        gradient: of the loss in the logits, times `loss_weight`; shape, layout and dtype of the
            logits that were sent.
        loss: the loss, without `loss_weight`; Caffe reports the loss of a layer in the same way.
        normalization: the option.
        loss_weight: the option.
        warnings: sentences about the inputs.
    """

    gradient: Tensor
    loss: float
    normalization: str
    loss_weight: float
    warnings: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the logits of all valid pixels have a softmax."""
        return not math.isnan(self.loss)


@dataclass(frozen=True, eq=False)
class PictureResult:
    """The result of `visualize`.

    Attributes:
        png: a PNG file.
        warnings: sentences about the inputs.
        is_finite: whether the logits of all valid pixels have a softmax.
        scale: the values with the first and the last colour of a heat map; None for other kinds.
        unit: the unit of the scale.
    """

    png: bytes
    warnings: tuple[str, ...]
    is_finite: bool
    scale: tuple[float, float] | None = None
    unit: str = ""

    @property
    def scale_text(self) -> str:
        """The scale as the option `scale` reads it, `0,3.0445`; empty if there is none."""
        return ",".join(f"{end:.5g}" for end in self.scale or ())


@dataclass(frozen=True)
class PredictedClass:
    """The pixels of one class in a prediction.

    Attributes:
        index: the class.
        name: its name; None if it has none.
        pixels: the number of pixels that are predicted as this class.
        share: their share of all pixels.
    """

    index: int
    name: str | None
    pixels: int
    share: float


@dataclass(frozen=True, eq=False)
class PredictionResult:
    """The result of `predict`.

    Attributes:
        maps: the maps asked for, and `prediction`, [N,*spatial].
        names: the names of the maps asked for.
        num_classes: C.
        palette: the colours and names of the classes.
        evaluation: the return value of `seg_loss.evaluate` for the labels; None without labels.
        reports: what was found in each input.
        warnings: sentences about the inputs.
        is_finite: whether the logits of all valid pixels have a softmax.
    """

    maps: Mapping[str, Tensor]
    names: tuple[str, ...]
    num_classes: int
    palette: ChosenPalette
    evaluation: Evaluation | None
    reports: Mapping[str, InputReport]
    warnings: tuple[str, ...]
    is_finite: bool

    @cached_property
    def classes(self) -> tuple[PredictedClass, ...]:
        """The classes that some pixel is predicted as."""
        prediction = self.maps["prediction"].flatten()
        counts = torch.bincount(prediction, minlength=self.num_classes).tolist()
        names = dict(enumerate(self.palette.palette.class_names))
        return tuple(
            PredictedClass(index, names.get(index), count, count / len(prediction))
            for index, count in enumerate(counts)
            if count
        )


Result = EvaluationResult | GradientResult | PictureResult | PredictionResult


def copied(result: Result, copy: Callable[[Tensor], Tensor]) -> Result:
    """Returns the result with copies of its gradient or maps, which may be on another device."""
    if isinstance(result, GradientResult):
        return replace(result, gradient=copy(result.gradient))
    if isinstance(result, EvaluationResult) and isinstance(result.evaluation, LabelMapEvaluation):
        return result  # its maps are inputs on the CPU
    if isinstance(result, EvaluationResult) and result.evaluation.maps:
        maps = {name: copy(tensor) for name, tensor in result.evaluation.maps.items()}
        return replace(result, evaluation=replace(result.evaluation, maps=maps))
    if isinstance(result, PredictionResult):
        return replace(result, maps={name: copy(map_) for name, map_ in result.maps.items()})
    return result


def loss_fields(result: EvaluationResult) -> dict[str, object]:
    """Returns the JSON object of `loss`."""
    return _jsonable_fields(_loss_values(result))


def loss_json(result: EvaluationResult) -> list[bytes]:
    """Returns the JSON object of `loss` as bytes, in chunks."""
    return json_chunks(_loss_values(result))


def evaluation_fields(result: EvaluationResult) -> dict[str, object]:
    """Returns the JSON object of `evaluate`: all but the maps."""
    return _jsonable_fields(_evaluation_values(result))


def evaluation_json(result: EvaluationResult) -> list[bytes]:
    """Returns the JSON object of `evaluate` as bytes, in chunks."""
    return json_chunks(_evaluation_values(result))


def prediction_fields(result: PredictionResult) -> dict[str, object]:
    """Returns the JSON object of `predict`: all but the maps."""
    return _jsonable_fields(_prediction_values(result))


def prediction_json(result: PredictionResult) -> list[bytes]:
    """Returns the JSON object of `predict` as bytes, in chunks."""
    return json_chunks(_prediction_values(result))


def prediction_file(result: PredictionResult) -> list[bytes | memoryview]:
    """Returns a safetensors file in chunks: the maps, and the JSON object in the metadata.

    Raises:
        TooLarge: if the JSON object is too large for metadata.
    """
    maps = {name: result.maps[name] for name in result.names}
    return _file_with_json(maps, "prediction", prediction_json(result))


def label_map_png(result: PredictionResult) -> bytes:
    """Returns the prediction of one image as a PNG file, which can be sent as `labels`.

    Up to 256 classes the PNG has mode P and the colours of the palette; with more it is grey with
    16 bits.

    Raises:
        IllPosed: if there are several images, or other axes than [1,H,W], or more classes than 16
            bits can hold.
    """
    prediction = result.maps["prediction"]
    if prediction.ndim != 3 or len(prediction) != 1:
        expected = "[1,C,H,W], whose label map is a PNG"
        got = f"a prediction of shape {tuple(prediction.shape)}"
        raise IllPosed("logits", expected, got, "A safetensors file holds any prediction.")
    indices = prediction[0].numpy()
    if result.num_classes <= NUM_COLOURS:
        return png.encode(indexed_picture(indices, result.palette.palette, "prediction"))
    if result.num_classes > _MAX_GREY_CLASSES:
        expected = f"at most {_MAX_GREY_CLASSES} classes, which a PNG can hold"
        fix = "A safetensors file holds any prediction."
        raise IllPosed("logits", expected, f"{result.num_classes}", fix)
    return png.encode(Image.fromarray(indices.astype(np.uint16)))


def max_json_bytes(num_images: int, num_classes: int, num_pixels: int) -> int:
    """Returns a bound on the size of the JSON object of `evaluate` for a batch of this size."""
    num_entries = num_classes * num_classes
    if num_classes > MAX_MATRIX_CLASSES:
        num_entries = min(num_entries, num_pixels)
    rows = num_images + num_classes + 64  # more for the other fields
    rows += 2 * MAX_VALUES  # those of labels and prediction, and the names of the palette
    return _MAX_ROW_BYTES * rows + _MAX_ENTRY_BYTES * num_entries


def gradient_file(result: GradientResult) -> list[bytes | memoryview]:
    """Returns a safetensors file in chunks: tensor `gradient`, all else as text in the metadata."""
    metadata = {
        "loss": repr(result.loss),
        "normalization": result.normalization,
        "loss_weight": repr(result.loss_weight),
        "warnings": json.dumps(result.warnings),
    }
    return safetensors.encode({"gradient": result.gradient}, metadata)


def gradient_npy(result: GradientResult) -> tuple[bytes, memoryview]:
    """Returns an NPY file in chunks. NPY has no bfloat16: float32 holds the same numbers."""
    gradient = result.gradient
    return npy.encode(gradient if npy.has_dtype(gradient.dtype) else gradient.float())


def maps_file(result: EvaluationResult) -> list[bytes | memoryview]:
    """Returns a safetensors file in chunks: the maps, and the JSON object in the metadata.

    Raises:
        TooLarge: if the JSON object is too large for metadata.
    """
    return _file_with_json(result.evaluation.maps, "evaluation", evaluation_json(result))


def _file_with_json(
    maps: Mapping[str, Tensor], name: str, chunks: list[bytes]
) -> list[bytes | memoryview]:
    num_bytes = sum(map(len, chunks))
    if num_bytes > MAX_METADATA_BYTES:
        expected = f"at most {MAX_METADATA_BYTES} bytes of JSON beside maps"
        fix = "Ask for the JSON alone, or for the maps of fewer classes."
        raise TooLarge("metadata", expected, f"{num_bytes}", fix, limit=MAX_METADATA_BYTES)
    return safetensors.encode(maps, {name: b"".join(chunks).decode()})


def to_jsonable(value: object) -> object:
    """Returns dataclasses, sequences, integer tensors and numbers as `json.dumps` accepts them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return value.tolist()
    if is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_jsonable(entry) for entry in value]
    return value


def json_bytes(value: object) -> bytes:
    """Returns JSON in UTF-8; the value comes from `to_jsonable`."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def json_chunks(values: Mapping[str, object]) -> list[bytes]:
    """Returns a JSON object in UTF-8, in chunks of about `_MIN_CHUNK_BYTES`.

    A member may be a `_Matrix`, a dictionary of members, or a value that `to_jsonable` accepts.
    """
    chunks, chunk = [], bytearray()
    for piece in _json_pieces(values):
        chunk += piece
        if len(chunk) >= _MIN_CHUNK_BYTES:
            chunks.append(bytes(chunk))
            chunk.clear()
    return [*chunks, bytes(chunk)]


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A confusion matrix that is not yet converted to lists.

    Attributes:
        counts: int64 [C, C].
    """

    counts: Tensor

    @property
    def has_rows(self) -> bool:
        """Whether JSON holds rows, and not triplets."""
        return len(self.counts) <= MAX_MATRIX_CLASSES

    def blocks(self) -> Iterator[Tensor]:
        """Yields rows, or triplets, in tensors of bounded size."""
        num_rows = max(1, _BLOCK_ENTRIES // len(self.counts))
        for begin in range(0, len(self.counts), num_rows):
            block = self.counts[begin : begin + num_rows]
            if not self.has_rows:
                rows, columns = block.nonzero(as_tuple=True)
                block = torch.stack((rows + begin, columns, block[rows, columns]), dim=1)
            if len(block):
                yield block

    def to_jsonable(self) -> object:
        """Returns the value in JSON."""
        entries = list(chain.from_iterable(block.tolist() for block in self.blocks()))
        if self.has_rows:
            return entries
        return {"num_classes": len(self.counts), "triplets": entries}

    def json_pieces(self) -> Iterator[bytes]:
        """Yields the JSON of the same value."""
        begin, end = b"[", b"]"
        if not self.has_rows:
            begin, end = b'{"num_classes": %d, "triplets": [' % len(self.counts), b"]}"
        yield begin
        separator = b""
        for block in self.blocks():
            # Several times faster than `json.dumps`, which looks at the type of each number.
            row = f"[{', '.join(['%d'] * block.shape[1])}]"
            text = ", ".join([row] * len(block)) % tuple(block.flatten().tolist())
            yield separator + text.encode()
            separator = b", "
        yield end


def _json_pieces(values: Mapping[str, object]) -> Iterator[bytes]:
    yield b"{"
    separator = b""
    for name, value in values.items():
        yield separator + json_bytes(name) + b": "
        if isinstance(value, _Matrix):
            yield from value.json_pieces()
        elif isinstance(value, dict):
            yield from _json_pieces(value)
        else:
            yield json_bytes(to_jsonable(value))
        separator = b", "
    yield b"}"


def _jsonable_fields(values: Mapping[str, object]) -> dict[str, object]:
    return {name: _jsonable_field(value) for name, value in values.items()}


def _jsonable_field(value: object) -> object:
    if isinstance(value, dict):
        return _jsonable_fields(value)
    return value.to_jsonable() if isinstance(value, _Matrix) else to_jsonable(value)


def _loss_values(result: EvaluationResult) -> dict[str, object]:
    values = {name: getattr(result.evaluation, name) for name in LOSS_FIELDS}
    return {**values, **_input_values(result)}


def _evaluation_values(result: EvaluationResult) -> dict[str, object]:
    values = _values_without_inputs(result.evaluation, result.metrics)
    return {**values, **_input_values(result)}


def _input_values(result: EvaluationResult) -> dict[str, object]:
    num_classes = len(result.evaluation.per_class)
    return {
        "inputs": dict(result.reports),
        "palette": result.palette.fields(num_classes),
        "warnings": result.warnings,
    }


def _values_without_inputs(
    evaluation: Evaluation | LabelMapEvaluation, metrics: FcnMetrics
) -> dict[str, object]:
    replaced = {"confusion": _Matrix(evaluation.confusion), "metrics": metrics}
    return {
        name: replaced[name] if name in replaced else getattr(evaluation, name)
        for name in EVALUATION_FIELDS
    }


def _prediction_values(result: PredictionResult) -> dict[str, object]:
    num_images, *size = result.maps["prediction"].shape
    evaluation = result.evaluation
    return {
        "num_images": num_images,
        "size": tuple(size),
        "num_classes": result.num_classes,
        "classes": result.classes,
        "evaluation": None
        if evaluation is None
        else _values_without_inputs(evaluation, evaluation.metrics),
        "inputs": dict(result.reports),
        "palette": result.palette.fields(result.num_classes),
        "warnings": result.warnings,
    }
