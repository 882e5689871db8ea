"""Evaluations in TensorBoard, W&B and MLflow: TensorBoard's files are read back.

W&B and MLflow are doubles that record calls, whose signatures are those of wandb 0.31.0 and MLflow
3.17.2. Where these are installed, they are run too.
"""

import inspect
import io
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from app.images.confusion import draw_confusion
from app.images.layers import Layers
from app.images.palettes import PALETTES
from app.images.render import draw
from app.images.style import Style
from app.loggers import MAX_SIDE, Log, log_evaluation, open_writer
from seg_loss import InvalidInput, evaluate
from seg_loss.metrics import fcn_metrics

SHAPE = N, C, H, W = 3, 3, 12, 20
NAMES = ("traffic light", "road/path", "sky")


@pytest.fixture(scope="module")
def batch():
    """An evaluation of three images, of which the second is the worst, labels and photos."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, C, (N, H, W), generator=generator, dtype=torch.uint8)
    labels[:, :4] = 255
    truth = torch.nn.functional.one_hot(labels.clamp(max=C - 1).long(), C).permute(0, 3, 1, 2)
    scale = torch.tensor([4.0, -1.0, 1.0]).reshape(N, 1, 1, 1)
    logits = truth * scale + torch.randn(SHAPE, generator=generator)
    photos = torch.randint(0, 256, (N, 3, H, W), generator=generator, dtype=torch.uint8)
    evaluation = evaluate(logits, labels, maps=("prediction", "nll"))
    return evaluation, labels, photos


VOC = PALETTES["voc"]


def layers_of(batch, index):
    """The arrays of one image of the batch."""
    evaluation, labels, photos = batch
    return Layers(
        VOC,
        C,
        labels=labels[index].numpy(),
        prediction=evaluation.maps["prediction"][index].numpy(),
        nll=evaluation.maps["nll"][index].numpy(),
        photo=photos[index].permute(1, 2, 0).numpy(),
        valid=labels[index].numpy() != 255,
        class_names=NAMES,
    )


def events_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def image_in(events, tag):
    (event,) = events.Images(tag)
    assert event.step == 7
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def table_in(events, tag):
    (event,) = events.Tensors(f"{tag}/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if "---" not in line]


@pytest.fixture(scope="module")
def events(batch, tmp_path_factory):
    """What TensorBoard reads of an evaluation."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("events")
    evaluation, labels, photos = batch
    with SummaryWriter(str(folder)) as writer:
        options = {"step": 7, "photos": photos, "class_names": NAMES, "worst": 2}
        log_evaluation(writer, evaluation, labels, **options)
    return events_in(folder)


def test_tensorboard_gets_the_loss_and_the_metrics(batch, events):
    evaluation, *_ = batch
    metrics = evaluation.metrics
    expected = {
        "val/loss": evaluation.loss,
        "val/ece": evaluation.calibration.ece,
        "val/valid_pixels": evaluation.valid_pixels,
        "val/ignored_pixels": N * 4 * W,
        "val/pixel_accuracy": metrics.pixel_accuracy,
        "val/mean_accuracy": metrics.mean_accuracy,
        "val/mean_iu": metrics.mean_iu,
        "val/frequency_weighted_iu": metrics.frequency_weighted_iu,
        "val_iu/traffic_light": metrics.iu[0],
        "val_iu/road_path": metrics.iu[1],
        "val_iu/sky": metrics.iu[2],
    }
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, value in expected.items():
        (event,) = events.Scalars(tag)
        assert (event.step, event.value) == (7, np.float32(value))


def test_tensorboard_gets_the_tables(batch, events):
    evaluation, *_ = batch
    header, *rows = table_in(events, "val/classes")
    assert header == ["class", "pixels", "iu", "accuracy", "mean_nll"]
    assert [row[0] for row in rows] == list(NAMES)
    assert [int(row[1]) for row in rows] == evaluation.confusion.sum(dim=1).tolist()
    assert [row[4] for row in rows] == [f"{row.mean_nll:.6g}" for row in evaluation.per_class]
    _, *rows = table_in(events, "val/images")
    assert [row[0] for row in rows] == ["1", "2", "0"]
    assert rows[0][1] == f"{evaluation.per_image[1].loss:.6g}"
    _, *rows = table_in(events, "val/calibration")
    assert sum(int(row[2]) for row in rows) == evaluation.valid_pixels


def is_in(picture, other):
    """Whether an RGB picture is a part of another one, both uint8 [H,W,3]."""
    picture = np.asarray(picture)
    height, width, _ = picture.shape
    first = picture[0].tobytes()
    for y in range(len(other) - height + 1):
        row = other[y].tobytes()
        x = row.find(first)
        while x >= 0:
            part = other[y : y + height, x // 3 : x // 3 + width]
            if x % 3 == 0 and (part == picture).all():
                return True
            x = row.find(first, x + 1)
    return False


def picture_of(kind, layers):
    return draw(kind, layers, Style(legend="strip")).image.convert("RGB")


def test_tensorboard_gets_the_worst_images_with_their_maps(batch, events):
    tags = [tag for tag in events.Tags()["images"] if "worst" in tag]
    assert tags == ["val/worst/1", "val/worst/2"]
    for tag, index in zip(tags, (1, 2), strict=True):
        panels = image_in(events, tag)
        layers = layers_of(batch, index)
        assert is_in(picture_of("compare", layers), panels)
        assert is_in(picture_of("nll", layers), panels)
        photo, truth, prediction = layers.photo, layers.labels, layers.prediction
        for colours in (photo, VOC.paint(truth), VOC.paint(prediction)):
            assert is_in(colours, panels)


def test_tensorboard_gets_the_confusion_matrix(batch, events):
    evaluation, *_ = batch
    expected = draw_confusion(evaluation.confusion.numpy(), NAMES)
    assert (image_in(events, "val/confusion") == np.asarray(expected)).all()


class Writer:
    """A `SummaryWriter` that records."""

    def __init__(self):
        self.scalars, self.texts, self.images = {}, {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag] = value

    def add_text(self, tag, text, step):
        self.texts[tag] = text

    def add_image(self, tag, picture, step, dataformats):
        assert dataformats == "HWC"
        self.images[tag] = picture

    def flush(self):
        pass


def written(evaluation, labels=None, **options):
    """What a `SummaryWriter` gets."""
    writer = Writer()
    log_evaluation(writer, evaluation, labels, step=0, **options)
    return writer


def test_an_evaluation_without_maps_has_no_images(batch):
    evaluation, labels, photos = batch
    writer = written(replace(evaluation, maps={}), labels, photos=photos)
    assert list(writer.images) == ["val/confusion"]
    assert writer.scalars["val/loss"] == evaluation.loss


def test_an_evaluation_without_labels_shows_its_maps(batch):
    evaluation, *_ = batch
    panels = written(evaluation).images["val/worst/1"]
    layers = replace(layers_of(batch, 1), labels=None, photo=None, valid=None, class_names="012")
    assert is_in(picture_of("prediction", layers), panels)
    assert is_in(picture_of("nll", layers), panels)


def test_maps_without_a_prediction_are_shown_beside_the_photo(batch):
    evaluation, _, photos = batch
    nll = replace(evaluation, maps={"nll": evaluation.maps["nll"]})
    panels = written(nll, photos=photos).images["val/worst/1"]
    layers = replace(layers_of(batch, 1), valid=None)
    assert is_in(layers.photo, panels)
    assert is_in(picture_of("nll", layers), panels)


def test_colours_repeat_where_there_are_more_than_a_palette_has():
    confusion = torch.eye(300, dtype=torch.int64)
    log = Log("val", confusion, fcn_metrics(confusion))
    labels = np.arange(300, dtype=np.int16).reshape(20, 15)
    prediction = labels[::-1].copy()
    log.add_image("val/0", Layers(VOC, 300, labels=labels, prediction=prediction), "")
    for indices in (labels, prediction):
        assert is_in(VOC.paint(indices), np.asarray(log.images["val/0"].panels))


def test_volumes_have_no_images():
    labels = torch.zeros(1, 2, 3, 4, dtype=torch.uint8)
    evaluation = evaluate(torch.zeros(1, C, 2, 3, 4), labels, maps=("prediction",))
    assert list(written(evaluation, labels).images) == ["val/confusion"]


def test_an_image_whose_loss_is_nan_is_the_worst(batch):
    _, labels, _ = batch
    logits = torch.zeros(N, C, H, W)
    logits[2, 0, 8, 8] = torch.nan
    table = written(evaluate(logits, labels)).texts["val/images"]
    assert table.splitlines()[2].startswith("| 2 | nan |")


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("convert", [lambda x: x, np.asarray, list], ids=["torch", "numpy", "list"])
def test_photos_and_labels_of_any_kind(batch, layout, convert):
    evaluation, labels, photos = batch
    inputs = {"labels": convert(labels[:, None]), "photos": convert(photos.permute(layout))}
    images = written(evaluation, **inputs).images
    expected = written(evaluation, labels, photos=photos).images
    assert (images["val/worst/1"] == expected["val/worst/1"]).all()


def test_photos_may_be_those_of_pillow(batch):
    evaluation, _, photos = batch
    pictures = [Image.fromarray(photo.permute(1, 2, 0).numpy()) for photo in photos]
    images = written(evaluation, photos=pictures).images
    expected = written(evaluation, photos=photos).images
    assert (images["val/worst/1"] == expected["val/worst/1"]).all()


@pytest.mark.parametrize("ignored", [-1, (-100, 2), 0])
def test_ignored_labels_have_the_ignored_colour_and_no_error(ignored):
    values = (ignored,) if isinstance(ignored, int) else ignored
    labels = torch.tensor([[[*values, *[1] * 4]]])
    logits = torch.zeros(1, C, *labels.shape[1:])
    evaluation = evaluate(logits, labels, ignore_index=ignored, maps=("prediction",))
    panels = written(evaluation, labels, ignore_index=ignored).images["val/worst/1"]
    layers = Layers(
        VOC,
        C,
        labels=labels[0].numpy(),
        prediction=np.zeros(labels.shape[1:], np.uint8),
        valid=np.isin(labels[0], values, invert=True),
        class_names="012",
    )
    assert is_in(picture_of("compare", layers), panels)


def test_large_images_are_shown_smaller():
    shape = (1, 1, 2 * MAX_SIDE + 1)
    labels = torch.zeros(shape, dtype=torch.uint8)
    evaluation = evaluate(torch.zeros(1, C, *shape[1:]), labels, maps=("prediction", "nll"))
    panels = written(evaluation, labels).images["val/worst/1"]
    truth = np.zeros((1, -(-shape[2] // 3), 3), np.uint8)  # every third pixel, of class 0
    assert truth.shape[1] <= MAX_SIDE
    assert is_in(truth, panels)
    assert panels.shape[1] < 3 * MAX_SIDE


def test_names_and_colours_are_those_of_a_palette(batch):
    evaluation, labels, _ = batch
    writer = written(evaluation, labels, palette="cityscapes", prefix="test")
    assert "test_iu/sidewalk" in writer.scalars
    truth = PALETTES["cityscapes"].paint(labels[1].numpy())
    assert is_in(truth, writer.images["test/worst/1"])
    again = written(evaluation, labels, palette=PALETTES["cityscapes"], prefix="test")
    assert (again.images["test/worst/1"] == writer.images["test/worst/1"]).all()


def evaluation_of(num_classes):
    """An evaluation of one image, each of whose pixels has another class; and its labels."""
    labels = torch.arange(num_classes, dtype=torch.uint8).reshape(1, 1, num_classes)
    logits = torch.zeros(1, num_classes, 1, num_classes)
    return evaluate(logits, labels, maps=("prediction",)), labels


def test_the_palette_is_chosen_as_in_pictures_of_the_service():
    evaluation, labels = evaluation_of(19)
    writer = written(evaluation, labels)
    assert "val_iu/sidewalk" in writer.scalars
    truth = PALETTES["cityscapes"].paint(labels[0].numpy())
    assert is_in(truth, writer.images["val/worst/1"])


def test_names_of_classes_choose_the_palette_that_has_them():
    evaluation, labels = evaluation_of(8)
    palette = PALETTES["okabe_ito"]
    writer = written(evaluation, labels, class_names=[name.upper() for name in palette.class_names])
    assert f"val_iu/{palette.class_names[0].upper()}" in writer.scalars
    truth = palette.paint(labels[0].numpy())
    assert is_in(truth, writer.images["val/worst/1"])


def test_classes_without_a_name_are_called_by_their_index(batch):
    evaluation, *_ = batch
    tags = [tag for tag in written(evaluation).scalars if "val_iu" in tag]
    assert tags == ["val_iu/0", "val_iu/1", "val_iu/2"]
    tags = [tag for tag in written(evaluation, class_names=("a b", "a/b")).scalars if "_iu/" in tag]
    assert tags == ["val_iu/0_a_b", "val_iu/1_a_b", "val_iu/2_2"]


def test_absent_classes_have_no_curve(batch):
    _, labels, _ = batch
    without_sky = torch.where(labels == 2, 1, labels)
    evaluation = evaluate(torch.zeros(N, C, H, W), without_sky)
    assert "val_iu/1" in written(evaluation).scalars
    assert "val_iu/2" not in written(evaluation).scalars


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"palette": "vox"}, r"palette: expected one of voc, .*, got 'vox'\."),
        ({"palette": [[0, 0, 0]]}, r"palette: expected the name of a palette, .*, got list\."),
        ({"labels": torch.zeros(N, H, W + 1)}, r"labels: expected 3 maps of 12 x 20, got float32 "),
        ({"labels": torch.zeros(2, H, W)}, r"labels: expected one for each of 3 images, got 2\."),
        (
            {"photos": torch.zeros(N, 3, H, W, dtype=torch.bfloat16)},
            r"photos: expected 3 photos uint8 of 12 x 20, got float32 .* Undo the normalization",
        ),
        ({"photos": np.zeros((N, H, W), np.uint8)}, r"photos: .* got uint8 of shape \(12, 20\)\."),
    ],
)
def test_arguments_that_do_not_fit_are_refused(batch, options, message):
    evaluation, *_ = batch
    with pytest.raises(InvalidInput, match=message):
        written(evaluation, **options)


def test_another_writer_is_refused(batch):
    evaluation, *_ = batch
    with pytest.raises(InvalidInput, match=r"writer: expected a SummaryWriter, .*, got dict\."):
        log_evaluation({}, evaluation, step=0)


def wandb_double():
    """The module `wandb` and a run, with what `log_evaluation` needs."""
    module = types.ModuleType("wandb")
    module.run = module.summary = None

    def table(columns=None, data=None):
        assert all(type(row) is list for row in data)
        return columns, data

    def image(data_or_path, *, caption=None, masks=None):
        return np.asarray(data_or_path), caption, masks

    def plot_table(*, data_table, vega_spec_name, fields, string_fields=None):
        return vega_spec_name, data_table, fields

    class Run:
        summary, entries = {}, {}

        def log(self, data, step=None):
            assert step == 7
            self.entries |= data

    module.Table, module.Image, module.plot_table = table, image, plot_table
    module.run = Run()
    return module


def test_wandb_gets_numbers_tables_images_and_masks(batch, monkeypatch):
    evaluation, labels, photos = batch
    wandb = wandb_double()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    options = {"step": 7, "photos": photos, "class_names": NAMES, "worst": 1}
    log_evaluation(open_writer(), evaluation, labels, **options)
    entries = wandb.run.entries
    assert entries["val/loss"] == evaluation.loss
    columns, rows = entries["val/classes"]
    assert columns == ["class", "pixels", "iu", "accuracy", "mean_nll"]
    assert [row[0] for row in rows] == list(NAMES)
    spec, (columns, rows), fields = entries["val/confusion_chart"]
    assert spec == "wandb/confusion_matrix/v1"
    assert fields == {name: name for name in columns}
    assert rows[1] == [NAMES[0], NAMES[1], int(evaluation.confusion[0, 1])]
    panels, caption, _ = entries["val/worst/1"]
    assert is_in(picture_of("compare", layers_of(batch, 1)), panels)
    assert caption == f"image 1, loss {evaluation.per_image[1].loss:.4g}"
    photo, _, masks = entries["val/worst/1_masks"]
    assert (photo == photos[1].permute(1, 2, 0).numpy()).all()
    truth, prediction = (masks[name] for name in ("truth", "prediction"))
    named = {0: NAMES[0], 1: NAMES[1], 2: NAMES[2], 3: "ignored"}
    assert truth["class_labels"] == prediction["class_labels"] == named
    expected = labels[1].numpy().copy()
    expected[expected == 255] = 3
    assert (truth["mask_data"] == expected).all()
    assert (prediction["mask_data"] == evaluation.maps["prediction"][1].numpy()).all()


def mlflow_double():
    """The module `mlflow`, whose run has to be started, with what `log_evaluation` needs."""
    module = types.ModuleType("mlflow")
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r"))
    module.runs, module.metrics, module.tables, module.images = [], {}, {}, {}

    class MlflowClient:
        def log_table(self, run_id, data, artifact_file):
            assert run_id == "r"
            module.tables[artifact_file] = data

        def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
            assert (run_id, artifact_file, step) == ("r", None, 7)
            module.images[key] = np.asarray(image)

    def log_metrics(metrics, step=None, run_id=None):
        assert len(metrics) <= 1000
        assert (run_id, step) == ("r", 7)
        module.metrics |= metrics

    def start_run():
        module.runs.append(run)
        return run

    module.MlflowClient, module.log_metrics, module.start_run = MlflowClient, log_metrics, start_run
    module.active_run = lambda: module.runs[-1] if module.runs else None
    return module


@pytest.mark.parametrize("writer", ["module", "run"])
def test_mlflow_gets_metrics_tables_and_images(batch, monkeypatch, writer):
    evaluation, labels, photos = batch
    mlflow = mlflow_double()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    if writer == "run":
        mlflow.start_run()
    options = {"step": 7, "photos": photos, "class_names": NAMES, "worst": 1}
    target = mlflow if writer == "module" else open_writer()
    log_evaluation(target, evaluation, labels, **options)
    assert len(mlflow.runs) == 1
    assert mlflow.metrics["val_iu/road_path"] == evaluation.metrics.iu[1]
    assert set(mlflow.tables) == {"val/classes.json", "val/images.json", "val/calibration.json"}
    table = mlflow.tables["val/classes.json"]
    assert table["step"] == [7] * C
    assert table["class"] == list(NAMES)
    assert is_in(picture_of("compare", layers_of(batch, 1)), mlflow.images["val/worst/1"])
    assert "val/confusion" in mlflow.images


def test_mlflow_gets_the_curves_of_many_classes_in_parts(monkeypatch):
    mlflow = mlflow_double()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    confusion = torch.eye(1100, dtype=torch.int64)
    Log("val", confusion, fcn_metrics(confusion)).write(mlflow, 7)
    assert len(mlflow.metrics) == 1100 + 4


def test_the_writer_is_tensorboards_where_no_run_is_active(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", mlflow_double())
    writer = open_writer(tmp_path / "runs")
    writer.close()
    assert type(writer).__name__ == "SummaryWriter"
    assert list((tmp_path / "runs").iterdir())


def test_no_run_and_no_tensorboard_is_an_error_with_a_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InvalidInput, match=r"writer: .* got none\. pip install tensorboard, or"):
        open_writer()


# Packages of others may warn.
@pytest.mark.filterwarnings("default")
def test_the_installed_wandb_takes_all(batch, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    evaluation, labels, photos = batch
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    with wandb.init(project="seg-loss", dir=str(tmp_path)) as run:
        log_evaluation(open_writer(), evaluation, labels, step=7, photos=photos)
        run.log({}, step=8)  # step 7 is complete
        assert run.summary["val/mean_iu"] == evaluation.metrics.mean_iu
        assert run.summary["val/worst/1_masks"]["_type"] == "image-file"
    (mask,) = (
        np.asarray(Image.open(path))
        for path in tmp_path.rglob("*.mask.png")
        if "1_masks" in path.name and 3 in np.asarray(Image.open(path))
    )
    assert ((mask == 3) == (labels[1].numpy() == 255)).all()


@pytest.mark.filterwarnings("default")
def test_the_installed_mlflow_takes_all(batch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    evaluation, labels, photos = batch
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("seg-loss", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("seg-loss")
    with mlflow.start_run() as run:
        for step in (7, 8):
            log_evaluation(open_writer(), evaluation, labels, step=step, photos=photos)
        run_id = run.info.run_id
        client = mlflow.MlflowClient()
        history = client.get_metric_history(run_id, "val/mean_iu")
        assert [(entry.step, entry.value) for entry in history] == [
            (step, evaluation.metrics.mean_iu) for step in (7, 8)
        ]
        table = mlflow.load_table("val/classes.json", run_ids=[run_id])
        assert table["step"].tolist() == [7] * C + [8] * C
    assert len(list((tmp_path / "artifacts").rglob("val~worst~1+step+8*.png"))) == 1


def test_a_cell_of_the_confusion_matrix_has_the_colour_of_its_share():
    from app.images.colormaps import VIRIDIS

    confusion = np.array([[3, 1], [0, 0]])
    picture = np.asarray(draw_confusion(confusion, ("a", "a longer name")))
    height, width, _ = picture.shape
    assert height == width > 48
    matrix = picture[-48:, -48:]
    share = np.array([[0.75, 0.25], [0, 0]])
    expected = VIRIDIS[np.rint(share * 255).astype(int)].repeat(24, axis=0).repeat(24, axis=1)
    assert (matrix == expected).all()
    row, column = picture[-48:-24, :-48], picture[:-48, -48:-24]
    for strip in (row, column):
        assert (strip < 64).all(axis=-1).any()  # a name


def test_the_confusion_matrix_of_many_classes_has_no_names():
    picture = draw_confusion(np.eye(300, dtype=np.int64), [str(k) for k in range(300)])
    assert picture.size == (900, 900)


def test_a_log_can_be_written_without_images(batch):
    evaluation, *_ = batch
    writer = Writer()
    Log("train", evaluation.confusion, evaluation.metrics).write(writer, 0)
    assert set(writer.texts) == {"train/classes"}


def test_the_doubles_have_the_signatures_of_the_installed_packages():
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    doubles = wandb_double(), mlflow_double()
    pairs = [
        (doubles[0].Table, wandb.Table),
        (doubles[0].Image, wandb.Image),
        (doubles[0].plot_table, wandb.plot_table),
        (type(doubles[0].run).log, wandb.Run.log),
        (doubles[1].log_metrics, mlflow.log_metrics),
        (doubles[1].MlflowClient.log_table, mlflow.MlflowClient.log_table),
        (doubles[1].MlflowClient.log_image, mlflow.MlflowClient.log_image),
    ]
    for double, real in pairs:
        assert set(inspect.signature(double).parameters) <= set(inspect.signature(real).parameters)
