"""Files, options and requests of the page: what is dropped, what is sent, and what is refused."""

import numpy as np
import pytest
from conftest import (
    answer,
    drop,
    drop_and_wait,
    npy_file,
    png_file,
    wait_until,
    wait_until_settled,
)

import seg_loss
import torch

pytestmark = pytest.mark.page

SIZE = (24, 36)
NUM_CLASSES = 5


def make_arrays(num_images: int = 1, seed: int = 0):
    """Logits float16 [N,5,24,36], and labels uint8 [N,24,36] with some ignored pixels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_images, NUM_CLASSES, *SIZE)).astype(np.float16)
    labels = random.integers(0, NUM_CLASSES, (num_images, *SIZE)).astype(np.uint8)
    labels[:, 0, :3] = 255
    return logits, labels


def files_of(logits, labels) -> dict[str, bytes]:
    return {"net.npy": npy_file(logits), "gt.npy": npy_file(labels)}


def loss_of(logits, labels, **options) -> float:
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    return float(seg_loss.spatial_cross_entropy(*tensors, **options))


def state(page, expression: str):
    return page.evaluate(f"segLoss.store.state.{expression}")


def test_dropped_logits_and_labels_become_a_scene(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    scene = page.evaluate(
        """() => {
          const { width, height, numClasses, predictions: [prediction] } = segLoss.store.state.scene;
          const { classes, nll, answer } = prediction;
          return { width, height, numClasses, name: prediction.name, loss: answer.loss,
            classes: [...classes], nll: [...nll] };
        }"""
    )
    evaluation = seg_loss.evaluate(
        torch.from_numpy(logits), torch.from_numpy(labels), maps=("prediction", "nll")
    )
    assert (scene["height"], scene["width"]) == SIZE
    assert (scene["numClasses"], scene["name"]) == (NUM_CLASSES, "net.npy")
    assert scene["loss"] == evaluation.loss
    assert scene["classes"] == evaluation.maps["prediction"].flatten().tolist()
    assert scene["nll"] == evaluation.maps["nll"].flatten().tolist()
