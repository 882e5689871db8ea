"""Scenes for the viewer, made with NumPy and set in the state of the page."""

import base64
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_SET = """async (given) => {
  const TYPES = {uint8: Uint8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array};
  const decode = (array) => {
    if (array === null) return null;
    const bytes = Uint8Array.from(atob(array.bytes), (c) => c.charCodeAt(0));
    return new TYPES[array.dtype](bytes.buffer);
  };
  const {width, height} = given;
  const rgba = decode(given.photo);
  const photo = rgba && await createImageBitmap(
    new ImageData(new Uint8ClampedArray(rgba.buffer), width, height));
  const predictions = given.predictions.map((each) => ({
    name: each.name,
    classes: decode(each.classes),
    nll: decode(each.nll),
    confidence: decode(each.confidence),
    entropy: decode(each.entropy),
    topClasses: each.topClasses && each.topClasses.map(decode),
    topProbabilities: each.topProbabilities && each.topProbabilities.map(decode),
    answer: {},
  }));
  const scene = {...given, photo, predictions, colours: decode(given.colours),
    truth: decode(given.truth), imageIndex: 0, numImages: 1};
  window.segLoss.store.set({scene});
}"""


@dataclass
class Prediction:
    """One prediction: maps [H,W], the top classes and probabilities [3,H,W]."""

    name: str
    classes: Array
    nll: Array | None = None
    confidence: Array | None = None
    entropy: Array | None = None
    top_classes: Array | None = None
    top_probabilities: Array | None = None


@dataclass
class Scene:
    """What the page shows of one image; truth is -1 where ignored."""

    num_classes: int
    truth: Array | None
    predictions: list[Prediction]
    photo: Array | None = None
    class_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.class_names = self.class_names or [f"class {k}" for k in range(self.num_classes)]
        some = self.truth if self.truth is not None else self.predictions[0].classes
        self.height, self.width = some.shape

    @property
    def colours(self) -> npt.NDArray[np.uint8]:
        """Distinct colours [C,3]."""
        k = np.arange(self.num_classes)
        return np.stack([40 + 31 * k, 200 - 17 * k, 90 + 53 * k], axis=1).astype(np.uint8)

    def show(self, page) -> None:
        """Sets the scene in the page, and waits until it is painted."""
        photo = None
        if self.photo is not None:
            opaque = np.full((self.height, self.width, 1), 255, dtype=np.uint8)
            photo = np.concatenate([self.photo, opaque], axis=2)
        given = {
            "width": self.width,
            "height": self.height,
            "numClasses": self.num_classes,
            "classNames": self.class_names,
            "colours": _encode(self.colours),
            "ignoreColour": [255, 255, 255],
            "photo": _encode(photo),
            "truth": None if self.truth is None else _encode(self.truth.astype(np.int32)),
            "predictions": [
                {
                    "name": each.name,
                    "classes": _encode(each.classes),
                    "nll": _encode(each.nll),
                    "confidence": _encode(each.confidence),
                    "entropy": _encode(each.entropy),
                    "topClasses": _encode_all(each.top_classes),
                    "topProbabilities": _encode_all(each.top_probabilities),
                }
                for each in self.predictions
            ],
        }
        page.evaluate(_SET, given)
        settle(page)


def settle(page) -> None:
    """Waits for two frames: one may have been under way."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def _encode(array: Array | None) -> dict[str, str] | None:
    if array is None:
        return None
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "bytes": data}


def _encode_all(arrays: Array | None) -> list[dict[str, str] | None] | None:
    return None if arrays is None else [_encode(array) for array in arrays]


def made_up_scene(
    height: int = 24,
    width: int = 32,
    num_classes: int = 5,
    predictions: int = 1,
    seed: int = 0,
    has_photo: bool = True,
) -> Scene:
    """Returns a scene with blobs of classes, ignored pixels, and maps of random logits."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (-(-height // 6), -(-width // 6)))
    truth = np.kron(coarse, np.ones((6, 6), dtype=np.int64))[:height, :width].astype(np.int32)
    ignored = rng.random((height, width)) < 0.06
    photo = rng.integers(0, 256, (height, width, 3)).astype(np.uint8) if has_photo else None
    made = [_predict(f"network-{i}.npy", truth, num_classes, rng) for i in range(predictions)]
    for each in made:
        each.nll[ignored] = 0
    truth[ignored] = -1
    return Scene(num_classes, truth, made, photo)


def _predict(name: str, truth: Array, num_classes: int, rng: np.random.Generator) -> Prediction:
    logits = rng.normal(0, 1.5, (num_classes, *truth.shape))
    rows, columns = np.indices(truth.shape)
    logits[truth, rows, columns] += 2
    exponentials = np.exp(logits - logits.max(axis=0))
    probabilities = exponentials / exponentials.sum(axis=0)
    order = np.argsort(-probabilities, axis=0)[:3]
    return Prediction(
        name=name,
        classes=order[0].astype(np.uint8),
        nll=-np.log(probabilities[truth, rows, columns]).astype(np.float32),
        confidence=probabilities.max(axis=0).astype(np.float32),
        entropy=(-(probabilities * np.log(probabilities)).sum(axis=0)).astype(np.float32),
        top_classes=order.astype(np.uint8),
        top_probabilities=np.take_along_axis(probabilities, order, axis=0).astype(np.float32),
    )
