"""Logits with their classes on the last axis: `layout=nhwc`, and what recognizes them."""

import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import (
    UPSAMPLINGS,
    label_png,
    loss_and_gradient_of,
    make_inputs,
    safetensors_file,
    write_inputs,
)
from serving import SAFETENSORS

from app import inputs
from app.errors import IllPosed
from app.options import LossOptions
from app.settings import Settings

SETTINGS = Settings()


def channels_last(tensors):
    return {**tensors, "logits": tensors["logits"].movedim(1, -1).contiguous()}


def assemble(layout=None, upsampling="none", **sources):
    named = {} if layout is None else {"layout": layout}
    return inputs.assemble(sources, LossOptions(**named, upsampling=upsampling), SETTINGS)


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_both_layouts_have_the_same_loss_and_gradient(client, upsampling, num_images):
    tensors = make_inputs(upsampling, num_images)
    loss, gradient = loss_and_gradient_of(upsampling, tensors)
    query = f"upsampling={upsampling}&layout=nhwc"
    sent = channels_last(tensors)
    answer = client.post_tensors(f"/v1/loss?{query}", **sent).json()
    assert answer["loss"] == pytest.approx(loss, rel=1e-6)
    expected = client.post_tensors(f"/v1/loss?upsampling={upsampling}", **tensors).json()
    for name in ("divisor", "uniform_loss", "diagnosis", "warnings"):
        assert answer[name] == expected[name]
    content = client.post_tensors(f"/v1/gradient?{query}", **sent).content
    received = safetensors.torch.load(content)["gradient"]
    assert received.shape == sent["logits"].shape
    torch.testing.assert_close(received.double(), gradient.movedim(1, -1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (1, 2, 4, 5), (2, 2, 3, 4, 5)])
def test_logits_of_any_number_of_axes_have_two_layouts(client, shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    batch = logits[None] if len(shape) == 3 else logits
    labels = torch.arange(batch[..., 0].numel()).reshape(batch.shape[:-1]) % 5
    expected = client.post_tensors(
        "/v1/loss", logits=batch.movedim(-1, 1).contiguous(), labels=labels
    ).json()
    answer = client.post_tensors("/v1/loss?layout=nhwc", logits=logits, labels=labels).json()
    assert answer["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_the_command_writes_the_gradient_in_the_layout_that_it_reads(run, empty_directory, suffix):
    tensors = make_inputs()
    write_inputs(channels_last(tensors))
    arguments = ("logits.npy", "labels.png", "--layout", "nhwc")
    status, out, err = run("gradient", *arguments, "-o", f"g.{suffix}", "--format", "json")
    loss, gradient = loss_and_gradient_of("none", tensors)
    assert (status, err) == (0, "")
    assert json.loads(out)["loss"] == pytest.approx(loss, rel=1e-6)
    if suffix == "npy":
        written = torch.from_numpy(np.load("g.npy"))
    else:
        written = safetensors.torch.load_file("g.safetensors")["gradient"]
    torch.testing.assert_close(written.double(), gradient.movedim(1, -1), rtol=1e-4, atol=1e-7)


def test_an_npy_gradient_has_the_layout_that_was_sent(client):
    sent = channels_last(make_inputs())
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    content = safetensors_file(**sent)
    response = client.post("/v1/gradient?layout=nhwc", content=content, headers=headers)
    assert np.load(io.BytesIO(response.content)).shape == sent["logits"].shape


@pytest.mark.parametrize("command", ["evaluate --maps nll -o m.safetensors", "visualize -o a.png"])
def test_other_commands_read_both_layouts(run, empty_directory, command):
    name, *options = command.split()
    results = []
    for layout, tensors in (("nchw", make_inputs()), ("nhwc", channels_last(make_inputs()))):
        write_inputs(tensors)
        arguments = ("logits.npy", "labels.png", *options, "--layout", layout)
        status, out, _ = run(name, *arguments)
        assert status == 0
        results.append(out)
    assert results[0] == results[1]


# Recognized by the size of other inputs


@pytest.mark.parametrize(
    ("layout", "upsampling"),
    [(None, "none"), (None, "bilinear"), (None, "fcn"), ("nchw", "none"), ("nhwc", "none")],
)
@pytest.mark.parametrize("kind", ["tensor", "picture"])
def test_logits_in_the_other_layout_are_recognized(upsampling, kind, layout):
    tensors = make_inputs()
    logits, labels = tensors["logits"], tensors["labels"]
    other = "nchw" if layout == "nhwc" else "nhwc"
    if other == "nhwc":
        logits = logits.movedim(1, -1)
    if kind == "picture":
        labels = memoryview(label_png(labels[0].numpy()))
    with pytest.raises(IllPosed) as error:
        assemble(layout, upsampling, logits=logits, labels=labels)
    axis = "the last axis" if layout == "nhwc" else "axis 1"
    assert error.value.detail == (
        f"logits: expected classes on {axis} and size (6, 7), got shape "
        f"{tuple(logits.shape)}, which fits in layout={other} alone. Use layout={other}."
    )
    assemble(other, logits=logits, labels=labels)


@pytest.mark.parametrize("labels", [(6, 7), (1, 6, 7), (1, 1, 6, 7)])
def test_labels_of_every_shape_recognize_the_layout(labels):
    with pytest.raises(IllPosed, match="Use layout=nhwc"):
        assemble(logits=torch.zeros(1, 6, 7, 5), labels=torch.zeros(labels, dtype=torch.uint8))


def test_a_photo_recognizes_the_layout():
    with pytest.raises(IllPosed, match="Use layout=nhwc"):
        assemble(logits=torch.zeros(1, 6, 7, 5), image=torch.zeros(6, 7, 3, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 7, 6, 7), (1, 5, 6, 7), (2, 6, 6, 7)])
def test_logits_that_fit_in_their_own_layout_are_read(shape):
    labels = torch.zeros(shape[0], 6, 7, dtype=torch.uint8)
    assert assemble(logits=torch.zeros(shape), labels=labels).logits.shape == shape


UNEVEN = {
    "half of it": ((1, 16, 24, 19), (32, 48)),
    "an odd size": ((1, 33, 33, 21), (65, 65)),
    "an odd size that is not square": ((1, 9, 17, 21), (65, 129)),
    "classes like the width": ((2, 8, 12, 10), (64, 96)),
}
"""Shapes of logits with the classes on the last axis, and sizes of their labels."""


@pytest.mark.parametrize("case", UNEVEN)
def test_scores_that_are_enlarged_unevenly_are_probably_in_the_other_layout(case):
    shape, size = UNEVEN[case]
    logits = torch.zeros(shape)
    labels = torch.arange(shape[0] * size[0] * size[1]).reshape(shape[0], *size) % 2
    fit = f"shape {shape} fits the size {size} better in layout=nhwc"
    for source in (labels, memoryview(label_png(labels[0].numpy().astype(np.uint8)))):
        assert assemble(upsampling="bilinear", logits=logits, labels=source).warnings == (
            f"logits: {fit}. Use layout=nhwc, or layout=nchw if the classes are axis 1.",
        )
        with pytest.raises(IllPosed) as error:
            assemble(logits=logits, labels=source)
        assert error.value.detail == (
            f"logits: expected classes on axis 1, got {fit.replace(' fits', ', which fits')}. "
            "Scores of lower resolution? Use upsampling=bilinear and layout=nhwc."
        )


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("nchw", (1, 16, 24, 19)), ("nchw", (1, 32, 48, 16)), ("nhwc", (1, 19, 16, 24))],
)
def test_a_layout_that_is_named_is_not_doubted(layout, shape):
    labels = torch.arange(2).repeat(1, 32, 24)
    decoded = assemble(layout, "bilinear", logits=torch.zeros(shape), labels=labels)
    assert decoded.warnings == ()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 21, 65, 129), (513, 1025)),
        ((1, 19, 8, 19), (33, 77)),  # even in neither layout
        ((1, 21, 21, 28), (167, 222)),
        ((1, 4, 8, 8), (3, 6)),  # fewer rows and columns
    ],
)
def test_scores_of_odd_sizes_are_not_doubted(shape, size):
    labels = torch.arange(size[0] * size[1]).reshape(1, *size) % 2
    assert assemble(upsampling="bilinear", logits=torch.zeros(shape), labels=labels).warnings == ()


def test_scores_of_any_upsampling_are_not_warned_of():
    for upsampling in UPSAMPLINGS:
        assert assemble(upsampling=upsampling, **make_inputs(upsampling)).warnings == ()


def test_the_size_is_checked_before_a_picture_is_decoded(run, empty_directory):
    write_inputs(channels_last(make_inputs()))
    status, _, err = run("loss", "logits.npy", "labels.png")
    assert status == 1
    assert err.endswith("Use --layout nhwc.\n")
    np.save("logits.npy", np.zeros((1, 5, 7, 6), np.float32))
    assert "Height and width are exchanged." in run("loss", "logits.npy", "labels.png")[2]
