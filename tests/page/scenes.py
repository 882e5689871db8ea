"""Scenes of small files, put into the page's store without its inputs."""

import json
import struct
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from examples import safetensors_file  # conftest.py has put tests/app on the path
from page_actions import wait_until
from PIL import Image

from app.images.palettes import PALETTES
from app.images.sample import make_sample

IGNORED = 255
MAPS = "prediction,nll,confidence,entropy,top_classes,top_probabilities"

# Types of the arrays in types.js.
SHOW = """
(scene) => {
  for (const prediction of scene.predictions) {
    prediction.classes = Int32Array.from(prediction.classes);
    for (const name of ["nll", "confidence", "entropy"]) {
      prediction[name] &&= Float32Array.from(prediction[name]);
    }
    prediction.topClasses &&= prediction.topClasses.map((map) => Int32Array.from(map));
    const probabilities = prediction.topProbabilities;
    prediction.topProbabilities &&= probabilities.map((map) => Float32Array.from(map));
  }
  scene.colours = Uint8Array.from(scene.colours);
  scene.truth &&= Int32Array.from(scene.truth);
  window.segLoss.store.set({ scene, shown: 0 });
}
"""


@dataclass(frozen=True, eq=False)
class Sample:
    """The arrays of `seg-loss sample`: logits [1,19,H,W] and labels [1,H,W]."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]


def read_sample(directory: Path, height: int = 48, width: int = 96) -> Sample:
    files = make_sample(directory, height=height, width=width)
    return Sample(np.load(files.logits), np.array(Image.open(files.labels))[None])


def other_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits of a worse network: the same, with noise."""
    noise = np.random.default_rng(1).normal(scale=2.5, size=logits.shape)
    return (logits + noise).astype(np.float32)


def prediction_of(
    url: str,
    name: str,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    **options: str,
) -> dict[str, object]:
    """A `Prediction` of types.js, of the first image, from the answer of the service."""
    body = safetensors_file(labels=torch.from_numpy(labels), logits=torch.from_numpy(logits))
    query = urllib.parse.urlencode({"maps": MAPS, **options})
    headers = {
        "Content-Type": "application/x-safetensors",
        "Accept": "application/x-safetensors",
    }
    request = urllib.request.Request(f"{url}/v1/evaluate?{query}", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        content = response.read()
    (length,) = struct.unpack_from("<Q", content)
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    maps = {
        name: np.reshape(array[0], (*array.shape[1:-2], -1)).tolist()
        for name, array in safetensors.numpy.load(content).items()
    }
    return {
        "name": name,
        "classes": maps["prediction"],
        "nll": maps["nll"],
        "confidence": maps["confidence"],
        "entropy": maps["entropy"],
        "topClasses": maps["top_classes"],
        "topProbabilities": maps["top_probabilities"],
        "answer": json.loads(metadata["evaluation"]),
    }


def scene_of(labels: npt.NDArray[np.uint8], *predictions: dict[str, object], num_classes: int = 19):
    """A `Scene` of types.js, as JSON."""
    num_images, height, width = labels.shape
    palette = PALETTES["cityscapes"]
    names = [*palette.class_names, *(f"class {index}" for index in range(19, num_classes))]
    truth = labels[0].astype(int).ravel()
    return {
        "width": width,
        "height": height,
        "numClasses": num_classes,
        "classNames": names[:num_classes],
        "colours": np.resize(palette.colours, (num_classes, 3)).ravel().tolist(),
        "ignoreColour": [224, 224, 192],
        "photo": None,
        "truth": np.where(truth == IGNORED, -1, truth).tolist(),
        "predictions": list(predictions),
        "imageIndex": 0,
        "numImages": num_images,
    }


def show(page, scene: dict[str, object]) -> None:
    wait_until(page, "window.segLoss !== undefined")
    page.evaluate(SHOW, scene)
