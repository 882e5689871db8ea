"""Results as JSON and files: the confusion matrix of few and of many classes, and their sizes."""

import json
from dataclasses import replace

import pytest
import torch

from app import operations, results
from app.errors import TooLarge
from app.inputs import Inputs
from app.options import EvaluateOptions
from app.results import EvaluationResult


def evaluation_of(num_classes: int, num_pixels: int, **options: object) -> EvaluationResult:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, num_classes, 1, num_pixels, generator=random)
    labels = torch.randint(0, num_classes, (1, 1, num_pixels), generator=random)
    labels[..., ::7] = -1
    options = EvaluateOptions(ignore_index=(-1,), **options)
    return operations.evaluate(Inputs(logits=logits, labels=labels), options)


@pytest.mark.parametrize("num_classes", [1, 2, 255, 256, 257, 1000])
@pytest.mark.parametrize("num_pixels", [1, 2, 500])
def test_the_confusion_matrix_is_rows_or_triplets(num_classes, num_pixels):
    result = evaluation_of(num_classes, num_pixels)
    expected = result.evaluation.confusion
    content = b"".join(results.evaluation_json(result))
    assert len(content) <= results.max_json_bytes(1, num_classes, num_pixels)
    fields = json.loads(content)
    assert json.loads(json.dumps(results.evaluation_fields(result))) == fields
    confusion = fields["confusion"]
    if num_classes <= 256:
        assert confusion == expected.tolist()
        return
    assert confusion.keys() == {"num_classes", "triplets"}
    assert confusion["num_classes"] == num_classes
    rows, columns = expected.nonzero(as_tuple=True)
    triplets = torch.stack((rows, columns, expected[rows, columns]), dim=1)
    assert confusion["triplets"] == triplets.tolist()


def test_metadata_of_maps_hold_the_same_json():
    result = evaluation_of(300, 500, maps=("nll",))
    header = json.loads(bytes(results.maps_file(result)[0][8:]))
    text = b"".join(results.evaluation_json(result)).decode()
    assert header["__metadata__"] == {"evaluation": text}


def test_large_json_is_made_in_short_calls():
    """A long call holds Python's global lock, and the event loop would wait for it."""
    result = evaluation_of(512, 1)
    counts = torch.ones(512, 512, dtype=torch.int64) * 10**12
    full = replace(result, evaluation=replace(result.evaluation, confusion=counts))
    chunks = results.evaluation_json(full)
    assert sum(map(len, chunks)) > 5_000_000
    assert max(map(len, chunks)) < 2_000_000
    assert len(json.loads(b"".join(chunks))["confusion"]["triplets"]) == 512 * 512


def test_json_that_is_too_large_for_metadata_is_an_error(monkeypatch):
    result = evaluation_of(300, 500, maps=("nll",))
    monkeypatch.setattr(results, "MAX_METADATA_BYTES", 1000)
    with pytest.raises(TooLarge, match=r"metadata: expected at most 1000 bytes of JSON"):
        results.maps_file(result)
