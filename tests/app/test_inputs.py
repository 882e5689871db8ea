"""The three kinds of body, and the shapes and files in them, come to the same `Upload`."""

import gzip
import json
import zlib

import numpy as np
import pytest
import torch
import zstandard
from PIL import Image
from serving import SAFETENSORS, example, label_png, npy_file, packed

from app import inputs
from app.errors import Malformed, RequestError, TooLarge
from app.formats import compression
from app.options import LossOptions, parse
from app.settings import Settings

SETTINGS = Settings()
OPTIONS = LossOptions()
LOGITS, LABELS = example()["logits"], example()["labels"]


def assembled(**sources: inputs.Source) -> inputs.Inputs:
    return inputs.assemble(sources, OPTIONS, SETTINGS)


def memory(content: bytes) -> memoryview:
    return memoryview(bytearray(content))


def multipart(**files: bytes) -> tuple[memoryview, str]:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in files.items()
    ]
    return memory(b"".join(parts) + b"--b--\r\n"), "multipart/form-data; boundary=b"


def test_the_three_kinds_of_body_hold_the_same_tensors():
    lists = {"logits": LOGITS.tolist(), "labels": LABELS.tolist()}
    bodies = [
        (memory(packed(**example())), "application/x-safetensors"),
        (memory(json.dumps(lists).encode()), "application/json; charset=utf-8"),
        multipart(logits=npy_file(LOGITS.numpy()), labels=npy_file(LABELS.numpy())),
        multipart(logits=packed(logits=LOGITS), labels=label_png(LABELS[0].numpy())),
        multipart(labels=label_png(LABELS[0].numpy()), logits=packed(any_name=LOGITS)),
    ]
    for content, content_type in bodies:
        upload = inputs.decode(content, content_type, OPTIONS, SETTINGS)
        assert torch.equal(upload.logits, LOGITS)
        assert torch.equal(upload.labels.to(torch.uint8), LABELS)
        assert upload.names == ("logits", "labels")


def test_the_tensors_of_a_body_are_views_of_it():
    content = memory(packed(**example()))
    upload = inputs.decode(content, "application/x-safetensors", OPTIONS, SETTINGS)
    begin = torch.frombuffer(content, dtype=torch.uint8).data_ptr()
    assert begin <= upload.logits.data_ptr() < begin + len(content)


def test_an_image_without_batch_axis_is_a_batch_of_one():
    upload = assembled(logits=LOGITS[0], labels=LABELS[0], pixel_weight=torch.ones(6, 7))
    assert upload.logits.shape == (1, 5, 6, 7)
    assert upload.labels.shape == upload.pixel_weight.shape == (1, 6, 7)
    assert assembled(labels=LABELS[0]).labels.shape == (1, 6, 7)


def test_maps_with_a_channel_axis_stay_for_the_library_to_judge():
    assert assembled(logits=LOGITS, labels=LABELS[None]).labels.shape == (1, 1, 6, 7)
    two = torch.cat([LOGITS, LOGITS])
    assert assembled(logits=two, labels=LABELS[0]).labels.shape == (6, 7)


@pytest.mark.parametrize("shape", [(6, 7, 3), (3, 6, 7), (1, 6, 7, 3), (1, 3, 6, 7)])
def test_a_photo_may_have_its_channels_first_or_last(shape):
    assert assembled(image=torch.zeros(shape, dtype=torch.uint8)).image.shape == (6, 7, 3)


def test_a_photo_of_another_type_is_refused():
    for image in (torch.zeros(6, 7, 3), torch.zeros(6, 7, dtype=torch.uint8)):
        with pytest.raises(RequestError, match=r"image: expected uint8 \[H,W,3\] or \[3,H,W\]"):
            assembled(image=image)


def test_photo_files_are_png_or_jpeg_or_npy(tmp_path):
    colours = np.full((6, 7, 3), 99, np.uint8)
    for suffix in (".png", ".jpg"):
        Image.fromarray(colours).save(tmp_path / f"a{suffix}")
        upload = assembled(image=memory((tmp_path / f"a{suffix}").read_bytes()))
        assert np.array_equal(upload.image, colours)
    assert np.array_equal(assembled(image=memory(npy_file(colours))).image, colours)


def test_warnings_of_a_label_map_come_along():
    translucent = np.zeros((6, 7, 4), np.uint8)
    target = Image.fromarray(translucent)
    import io

    file = io.BytesIO()
    target.save(file, "PNG")
    options = parse(LossOptions, [("palette", "voc")])
    upload = inputs.assemble({"labels": memory(file.getvalue())}, options, SETTINGS)
    assert upload.warnings == ("labels: transparency was left out (translucent pixels: 42).",)


def test_prediction_files_are_read_as_labels_are():
    upload = assembled(prediction=memory(label_png(LABELS[0].numpy())))
    assert torch.equal(upload.prediction, LABELS)


PACKERS = {
    "gzip": [gzip.compress, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])],
    "deflate": [zlib.compress],
    "zstd": [
        lambda data: zstandard.ZstdCompressor().compress(data),
        lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
        lambda data: (
            zstandard.ZstdCompressor().compress(data[:9])
            + zstandard.ZstdCompressor().compress(data[9:])
        ),
    ],
}
CONTENTS = [b"x", bytes(3 << 20), np.random.default_rng(0).bytes(300_000)]


@pytest.mark.parametrize("coding", compression.DECOMPRESSORS)
def test_a_packed_body_is_unpacked_and_writable(coding):
    for pack in PACKERS[coding]:
        for content in CONTENTS:
            unpacked = compression.decompress(memory(pack(content)), coding, len(content))
            assert unpacked == content
            assert not unpacked.readonly


@pytest.mark.parametrize("coding", compression.DECOMPRESSORS)
def test_a_packed_body_that_is_cut_continued_or_too_long_is_refused(coding):
    content = CONTENTS[2]
    packed = PACKERS[coding][0](content)
    for end in (1, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(Malformed):
            compression.decompress(memory(packed[:end]), coding, len(content))
    with pytest.raises(Malformed):
        compression.decompress(memory(packed + b"x"), coding, len(content))
    with pytest.raises(TooLarge):
        compression.decompress(memory(packed), coding, len(content) - 1)


def test_packed_bodies_are_read_by_the_service(client):
    plain = client.post_tensors("/v1/loss", **example()).json()
    for coding, packers in PACKERS.items():
        headers = {**SAFETENSORS, "Content-Encoding": coding}
        response = client.post("/v1/loss", content=packers[0](packed(**example())), headers=headers)
        assert response.json() == plain


def test_a_body_in_chunks_is_read_by_the_service(client):
    content = packed(**example())

    async def chunks():
        for begin in range(0, len(content), 100):
            yield content[begin : begin + 100]

    headers = {**SAFETENSORS, "Transfer-Encoding": "chunked"}
    response = client.post("/v1/loss", content=chunks(), headers=headers)
    assert response.json() == client.post_tensors("/v1/loss", **example()).json()


def test_options_are_read_from_texts():
    texts = [("ignore_index", "0, 255,-1"), ("temperature", "2e0"), ("label_smoothing", ".5")]
    options = parse(LossOptions, texts)
    assert options.ignore_index == (0, 255, -1)
    assert options.temperature == 2
    assert options.label_smoothing == 0.5
    assert parse(LossOptions, [("ignore_index", "none")]).ignore_index == ()
