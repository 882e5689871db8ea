"""Evaluations in TensorBoard, Weights & Biases or MLflow: curves, tables, and the worst images.

`log_evaluation` writes the result of `seg_loss.evaluate`. A writer is recognized by its methods, so
that none of the three packages has to be installed.

| written | TensorBoard | Weights & Biases | MLflow |
|---|---|---|---|
| scalars | scalars | charts | metrics |
| tables | Markdown, under Text | tables | one table for all steps, by `log_table` |
| the confusion matrix | a picture | a picture, and a chart of at most 100 classes | a picture |
| an image | panels side by side | also its masks over the photo | panels side by side |
"""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from seg_loss import Evaluation, FcnMetrics, InvalidInput

from .images.confusion import draw_confusion
from .images.layers import Layers
from .images.palettes import PALETTES, Palette, choose_palette
from .images.panels import HEAT_MAPS, in_columns, pictures_of_layers
from .report import METRICS, Report, Table, render

MAX_SIDE = 1024
"""The longest side of a panel. Of larger images every second, third, … pixel is shown."""

_MAX_CHART_CLASSES = 100  # W&B draws 10,000 rows of a table
_MAX_METRICS = 1000  # of one call of MLflow

Arrays = Tensor | npt.NDArray[Any] | Sequence[Any]


def log_evaluation(
    writer: Any,
    evaluation: Evaluation,
    labels: Arrays | None = None,
    *,
    step: int,
    photos: Arrays | None = None,
    ignore_index: int | Sequence[int] = 255,
    palette: str | Palette | None = None,
    class_names: Sequence[str] | None = None,
    worst: int = 4,
    prefix: str = "val",
) -> None:
    """Writes an evaluation to TensorBoard, Weights & Biases or MLflow.

    Tags begin with the prefix: `val/loss`, `val/mean_iu`, `val_iu/road`, the tables `val/classes`,
    `val/images` and `val/calibration`, the matrix `val/confusion`, and the images `val/worst/1` to
    `val/worst/4`. The panels of an image are the photo, the truth, the prediction, the errors and
    the nll, as far as the evaluation has these maps: `maps=("prediction", "nll")`.

    Args:
        writer: a `SummaryWriter`; a run of W&B, or the module `wandb`; a run of MLflow, or the
            module `mlflow`; or the result of `open_writer`.
        evaluation: the result of `evaluate`.
        labels: the labels that were evaluated, [N,H,W] or [N,1,H,W]. Without them there are no
            panels of the truth and of the errors.
        step: the number of updates or epochs so far.
        photos: uint8 [N,3,H,W] or [N,H,W,3], or a sequence of N photos, also of Pillow.
        ignore_index: as in `evaluate`.
        palette: colours and names of the classes, a name or a `Palette`. By default that whose
            class names are `class_names`, or else that with as many classes; see
            `choose_palette` in `app.images.palettes`.
        class_names: names of the classes, in place of those of the palette.
        worst: the number of images, those with the highest loss first.
        prefix: what tags begin with.

    Raises:
        InvalidInput: if the writer is of another kind, the palette is unknown, or labels or photos
            have another shape or dtype.
    """
    if isinstance(palette, str) and palette not in PALETTES:
        raise InvalidInput("palette", f"one of {', '.join(PALETTES)}", repr(palette))
    if not isinstance(palette, str | Palette | None):
        raise InvalidInput("palette", "the name of a palette, or a Palette", type(palette).__name__)
    colours = choose_palette(
        option=PALETTES[palette] if isinstance(palette, str) else palette,
        network_names=class_names or (),
        num_classes=len(evaluation.confusion),
    ).palette
    log = Log(prefix, evaluation.confusion, evaluation.metrics, colours.class_names)
    for name in ("loss", "valid_pixels", "ignored_pixels"):
        log.scalars[f"{prefix}/{name}"] = getattr(evaluation, name)
    log.scalars[f"{prefix}/ece"] = evaluation.calibration.ece
    log.add_column("mean_nll", [row.mean_nll for row in evaluation.per_class])
    images = evaluation.per_image
    # An image whose loss is NaN is the worst.
    order = sorted(range(len(images)), key=lambda i: -np.nan_to_num(images[i].loss, nan=math.inf))
    log.tables[f"{prefix}/images"] = Table(
        "image",
        ("image", "loss", "valid_pixels"),
        tuple((i, images[i].loss, images[i].valid_pixels) for i in order),
    )
    log.tables[f"{prefix}/calibration"] = Table(
        "bin",
        ("above", "up_to", "pixels", "accuracy", "confidence"),
        tuple(
            (row.lower, row.upper, row.pixels, row.accuracy, row.confidence)
            for row in evaluation.calibration.bins
        ),
    )
    for rank, i in enumerate(order[: max(worst, 0)], start=1):
        layers = _layers(evaluation, i, labels, photos, ignore_index, colours)
        log.add_image(f"{prefix}/worst/{rank}", layers, f"image {i}, loss {images[i].loss:.4g}")
    log.write(writer, step)


def open_writer(folder: str | Path = "runs") -> Any:
    """Returns the active run of W&B or MLflow, or else a `SummaryWriter` of TensorBoard.

    Args:
        folder: the folder of TensorBoard.

    Raises:
        InvalidInput: if no run is active and TensorBoard is not installed.
    """
    wandb, mlflow = (sys.modules.get(name) for name in ("wandb", "mlflow"))
    run = getattr(wandb, "run", None) or (mlflow and mlflow.active_run())
    if run:
        return run
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fix = "pip install tensorboard, or start a run: wandb.init() or mlflow.start_run()."
        expected = "TensorBoard, or an active run of Weights & Biases or MLflow"
        raise InvalidInput("writer", expected, "none", fix) from None
    return SummaryWriter(str(folder))


@dataclass(frozen=True, eq=False)
class LoggedImage:
    """One image.

    Attributes:
        panels: a picture of all panels.
        caption: a line about the image.
        photo: uint8 [H,W,3], or None.
        masks: class indices [H,W] of truth and prediction, or None; C where the truth is ignored.
    """

    panels: Image.Image
    caption: str
    photo: npt.NDArray[np.uint8] | None
    masks: dict[str, npt.NDArray[np.integer] | None]


@dataclass(eq=False)
class Log:
    """What is written for one step: of a confusion matrix at first, and what is added to it.

    Attributes:
        prefix: what tags begin with.
        confusion: int64 [C,C], rows = truth.
        metrics: its metrics.
        class_names: names of the first classes. The others are called by their index.
        scalars, tables, images: by tag. Scalars that are None are not written.
    """

    prefix: str
    confusion: Tensor
    metrics: FcnMetrics
    class_names: Sequence[str] = ()
    scalars: dict[str, float | None] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    images: dict[str, LoggedImage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_classes = len(self.confusion)
        names = [str(name) for name in self.class_names][:num_classes]
        self.class_names = [*names, *map(str, range(len(names), num_classes))]
        for name in METRICS:
            self.scalars[f"{self.prefix}/{name}"] = getattr(self.metrics, name)
        # What all three packages take as the name of a metric.
        tags = [re.sub(r"[^\w-]+", "_", name, flags=re.ASCII) for name in self.class_names]
        if len(set(tags)) < num_classes:
            tags = [f"{index}_{tag}" for index, tag in enumerate(tags)]
        for tag, iu in zip(tags, self.metrics.iu, strict=True):
            self.scalars[f"{self.prefix}_iu/{tag}"] = iu
        pixels = self.confusion.sum(dim=1).tolist()
        rows = zip(self.class_names, pixels, self.metrics.iu, self.metrics.accuracy, strict=True)
        columns = ("class", "pixels", "iu", "accuracy")
        self.tables[f"{self.prefix}/classes"] = Table("class", columns, tuple(rows))

    def add_column(self, name: str, cells: Sequence[float | None]) -> None:
        """Adds a column to the table of the classes."""
        tag = f"{self.prefix}/classes"
        table = self.tables[tag]
        rows = tuple((*row, cell) for row, cell in zip(table.rows, cells, strict=True))
        self.tables[tag] = replace(table, columns=(*table.columns, name), rows=rows)

    def add_image(self, tag: str, layers: Layers, caption: str) -> None:
        """Adds the panels of photo, truth, prediction, errors and maps that there are arrays for.

        Args:
            tag: the tag.
            layers: the arrays, of which every second, third, … pixel is taken if they are large.
            caption: a line about the image.
        """
        arrays = {name: value for name, value in vars(layers).items() if hasattr(value, "shape")}
        every = -(-max((max(value.shape[:2]) for value in arrays.values()), default=1) // MAX_SIDE)
        arrays = {name: array[::every, ::every] for name, array in arrays.items()}
        layers = replace(layers, class_names=tuple(self.class_names), **arrays)
        pictures = pictures_of_layers(layers)
        if pictures:
            truth, prediction = layers.labels, layers.prediction
            if truth is not None and layers.valid is not None:
                truth = np.where(layers.valid, truth, layers.num_classes)
            masks = {"truth": truth, "prediction": prediction}
            self.images[tag] = LoggedImage(in_columns(pictures), caption, layers.photo, masks)

    def write(self, writer: Any, step: int) -> None:
        """Writes all at once.

        Raises:
            InvalidInput: if the writer is of another kind.
        """
        if hasattr(writer, "add_scalar"):
            self._write_tensorboard(writer, step)
        elif hasattr(writer, "log") and hasattr(writer, "summary"):
            self._write_wandb(writer, step)
        elif hasattr(writer, "active_run") or hasattr(getattr(writer, "info", None), "run_id"):
            self._write_mlflow(writer, step)
        else:
            expected = "a SummaryWriter, a run of W&B or MLflow, or the module wandb or mlflow"
            fix = "Of an MlflowClient, pass mlflow.get_run(run_id)."
            raise InvalidInput("writer", expected, type(writer).__name__, fix)

    def _numbers(self) -> dict[str, float]:
        return {tag: float(value) for tag, value in self.scalars.items() if value is not None}

    def _write_tensorboard(self, writer: Any, step: int) -> None:
        for tag, value in self._numbers().items():
            writer.add_scalar(tag, value, step)
        for tag, table in self.tables.items():
            writer.add_text(tag, render(Report((table,), {}), "md"), step)
        for tag, picture in self._pictures().items():
            writer.add_image(tag, np.asarray(picture), step, dataformats="HWC")
        writer.flush()

    def _write_wandb(self, writer: Any, step: int) -> None:
        wandb = sys.modules["wandb"]
        entries: dict[str, Any] = self._numbers()
        labels = dict(enumerate([*self.class_names, "ignored"]))
        for tag, table in self.tables.items():
            entries[tag] = wandb.Table(
                columns=[*table.columns], data=[[*row] for row in table.rows]
            )
        for tag, picture in self._pictures().items():
            caption = self.images[tag].caption if tag in self.images else None
            entries[tag] = wandb.Image(picture, caption=caption)
        if len(self.confusion) <= _MAX_CHART_CLASSES:
            entries[f"{self.prefix}/confusion_chart"] = self._wandb_chart(wandb)
        for tag, image in self.images.items():
            if image.photo is not None and len(labels) <= 256:  # the masks are PNGs of 8 bits
                masks = {
                    name: {"mask_data": mask.astype(np.uint8), "class_labels": labels}
                    for name, mask in image.masks.items()
                    if mask is not None
                }
                overlay = wandb.Image(image.photo, caption=image.caption, masks=masks)
                entries[f"{tag}_masks"] = overlay
        writer.log(entries, step=step)

    def _wandb_chart(self, wandb: Any) -> Any:
        """Returns what `wandb.plot.confusion_matrix` draws, of counts in place of pixels."""
        columns = ["Actual", "Predicted", "nPredictions"]
        rows = [
            [truth, predicted, count]
            for truth, counts in zip(self.class_names, self.confusion.tolist(), strict=True)
            for predicted, count in zip(self.class_names, counts, strict=True)
        ]
        return wandb.plot_table(
            vega_spec_name="wandb/confusion_matrix/v1",
            data_table=wandb.Table(columns=columns, data=rows),
            fields={name: name for name in columns},
            string_fields={"title": f"{self.prefix}: pixels"},
        )

    def _write_mlflow(self, writer: Any, step: int) -> None:
        mlflow = sys.modules["mlflow"]
        if hasattr(writer, "active_run"):  # the module
            writer = writer.active_run() or writer.start_run()
        run_id, client = writer.info.run_id, mlflow.MlflowClient()
        numbers = [*self._numbers().items()]
        for begin in range(0, len(numbers), _MAX_METRICS):
            part = dict(numbers[begin : begin + _MAX_METRICS])
            mlflow.log_metrics(part, step=step, run_id=run_id)
        for tag, table in self.tables.items():
            rows = [(step, *row) for row in table.rows]
            columns = zip(("step", *table.columns), zip(*rows, strict=True), strict=True)
            client.log_table(run_id, {name: [*cells] for name, cells in columns}, f"{tag}.json")
        for tag, picture in self._pictures().items():
            client.log_image(run_id, picture, key=tag, step=step)

    def _pictures(self) -> dict[str, Image.Image]:
        """Returns the confusion matrix and the panels of each image, by tag."""
        confusion = draw_confusion(self.confusion.numpy(), self.class_names)
        panels = {tag: image.panels for tag, image in self.images.items()}
        return {f"{self.prefix}/confusion": confusion, **panels}


def _layers(
    evaluation: Evaluation,
    index: int,
    labels: Arrays | None,
    photos: Arrays | None,
    ignore_index: int | Sequence[int],
    palette: Palette,
) -> Layers:
    """Returns the arrays of one image; none without maps, and of volumes."""
    num_images, num_classes = len(evaluation.per_image), len(evaluation.confusion)
    maps = {name: value for name, value in evaluation.maps.items() if value.ndim == 3}
    layers = Layers(palette, num_classes)
    if not maps:
        return layers
    height, width = next(iter(maps.values())).shape[1:]
    arrays: dict[str, Any] = {
        name: _array(maps[name][index]) for name in ("prediction", *HEAT_MAPS) if name in maps
    }
    if labels is not None:
        of_image = _of_image("labels", labels, index, num_images)
        if of_image.shape not in ((height, width), (1, height, width)):
            raise _wrong("labels", f"{num_images} maps of {height} x {width}", of_image)
        arrays["labels"] = of_image.reshape(height, width)
        arrays["valid"] = ~np.isin(arrays["labels"], ignore_index)
    if photos is not None:
        of_image = _of_image("photos", photos, index, num_images)
        if of_image.shape == (3, height, width):
            of_image = of_image.transpose(1, 2, 0)
        if of_image.shape != (height, width, 3) or of_image.dtype != np.uint8:
            expected = f"{num_images} photos uint8 of {height} x {width}"
            fix = "Undo the normalization: (image * std + mean).mul(255).byte()."
            raise _wrong("photos", expected, of_image, fix)
        arrays["photo"] = of_image
    return replace(layers, **arrays)


def _of_image(where: str, arrays: Arrays, index: int, num_images: int) -> npt.NDArray[Any]:
    if len(arrays) != num_images:
        raise InvalidInput(where, f"one for each of {num_images} images", f"{len(arrays)}")
    return _array(arrays[index])


def _array(value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu()  # NumPy has no bfloat16
    array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _wrong(where: str, expected: str, array: npt.NDArray[Any], fix: str = "") -> InvalidInput:
    return InvalidInput(where, expected, f"{array.dtype} of shape {array.shape}", fix)
