"""The report of `seg-loss predict`: the shares of the classes in each file, and in all of them.

With labels, the confusion matrices of the files are summed, as for one batch.
"""

from collections import Counter

from torch import Tensor

from seg_loss.metrics import FcnMetrics, fcn_metrics

from .errors import IllPosed
from .folders import FileTask
from .report import METRICS, Cell, Report, Table
from .results import PredictedClass, PredictionResult, to_jsonable

MAX_COLUMNS = 8
"""Number of classes, the most frequent ones, that have a column in the table of files."""


class Summary:
    """What is kept of the files that have been predicted.

    Attributes:
        files: the JSON object of each file.
        failures: the JSON object of each file that could not be predicted.
    """

    def __init__(self, ignore_index: tuple[int, ...]) -> None:
        self.files: list[dict[str, object]] = []
        self.failures: list[dict[str, object]] = []
        self._ignore_index = ignore_index
        self._shares: list[dict[int, float]] = []
        self._losses: list[tuple[Cell, ...]] = []
        self._pixels: Counter[int] = Counter()
        self._names: dict[int, str | None] = {}
        self._confusion: Tensor | None = None
        self._palette: dict[str, object] | None = None

    def add(self, task: FileTask, result: PredictionResult) -> None:
        """Adds a file.

        Raises:
            IllPosed: if it has another number of classes than the files with labels before it.
        """
        evaluation = result.evaluation
        if evaluation is not None:
            if self._confusion is None:
                self._confusion = evaluation.confusion.clone()
            elif len(self._confusion) != result.num_classes:
                expected = f"{len(self._confusion)} classes, as in the files before"
                raise IllPosed("logits", expected, f"{result.num_classes}")
            else:
                self._confusion += evaluation.confusion
            metrics = evaluation.metrics
            loss = to_jsonable(evaluation.loss)
            self._losses.append((evaluation.loss, metrics.pixel_accuracy, metrics.mean_iu))
        for row in result.classes:
            self._pixels[row.index] += row.pixels
            self._names[row.index] = row.name
        self._shares.append({row.index: row.share for row in result.classes})
        num_images, *size = result.maps["prediction"].shape
        fields: dict[str, object] = {
            "file": f"{task.source}",
            "outputs": [f"{path}" for path in task.outputs.values()],
            "num_images": num_images,
            "size": size,
            "num_classes": result.num_classes,
            "classes": to_jsonable(result.classes),
        }
        fields["inputs"] = {name: to_jsonable(row) for name, row in result.reports.items()}
        self._palette = self._palette or result.palette.fields(result.num_classes)
        if evaluation is not None:
            fields |= {"loss": loss, "metrics": to_jsonable(evaluation.metrics)}
        self.files.append({**fields, "warnings": list(result.warnings)})

    def add_failure(self, task: FileTask, sentence: str) -> None:
        """Adds a file that could not be predicted, with the reason."""
        self.failures.append({"file": f"{task.source}", "error": sentence})

    def metrics(self) -> FcnMetrics | None:
        """Returns the metrics of all files; None without labels."""
        if self._confusion is None:
            return None
        return fcn_metrics(self._confusion, ignore_index=self._ignore_index)

    def metric(self, name: str) -> float | None:
        """Returns one metric of all files; None without pixels that have one."""
        value: float | None = getattr(self.metrics(), name, None)
        return value

    def report(self) -> Report:
        """Returns the report of all files."""
        num_pixels = sum(self._pixels.values())
        metrics = self.metrics()
        rows: list[tuple[str, Cell]] = [
            ("files", len(self.files)),
            ("failures", len(self.failures)),
            ("pixels", num_pixels),
        ]
        if metrics is not None:
            rows += [(name, getattr(metrics, name)) for name in METRICS]
        counts = sorted(self._pixels.items())
        classes = [
            PredictedClass(index, self._names[index], count, count / num_pixels)
            for index, count in counts
        ]
        fields: dict[str, object] = {
            "files": self.files,
            "failures": self.failures,
            "classes": to_jsonable(tuple(classes)),
            "metrics": to_jsonable(metrics),
            "confusion": to_jsonable(self._confusion),
            "palette": self._palette,  # that of the first file
        }
        per_class = Table(
            "class",
            ("class", "name", "pixels", "share"),
            tuple((row.index, row.name or "", row.pixels, row.share) for row in classes),
        )
        batch = Table("batch", ("quantity", "value"), tuple(rows))
        return Report((batch, self._table_of_files(), per_class), fields)

    def _table_of_files(self) -> Table:
        """Returns a row for each file: the shares of the most frequent classes, and metrics."""
        shown = [index for index, _ in self._pixels.most_common(MAX_COLUMNS)]
        has_others = len(self._pixels) > len(shown)
        columns = [self._names[index] or f"class {index}" for index in shown]
        columns += ["other classes"] if has_others else []
        columns += ["loss", "pixel_accuracy", "mean_iu"] if self._losses else []
        rows = []
        for position, (fields, shares) in enumerate(zip(self.files, self._shares, strict=True)):
            cells: list[Cell] = [shares.get(index, 0.0) for index in shown]
            if has_others:
                cells.append(sum(shares[index] for index in shares.keys() - shown))
            if self._losses:
                cells += self._losses[position]
            rows.append((f"{fields['file']}", *cells))
        return Table("file", ("file", *columns), tuple(rows))
