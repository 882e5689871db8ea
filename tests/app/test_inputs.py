"""The three media types, and the shapes and files in them, give the same `Inputs`."""

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
import torch
from examples import label_png, make_inputs, npy_file, safetensors_file
from PIL import Image, ImageFile

from app import inputs
from app.errors import RequestError, TooLarge
from app.formats import png
from app.images.palettes import PALETTES
from app.options import LossOptions, VisualizeOptions, parse
from app.settings import Settings

SETTINGS = Settings()
OPTIONS = LossOptions()
LOGITS, LABELS = make_inputs()["logits"], make_inputs()["labels"]


def assemble(**sources: inputs.Source) -> inputs.Inputs:
    return inputs.assemble(sources, OPTIONS, SETTINGS)


def memory(content: bytes) -> memoryview:
    return memoryview(bytearray(content))


def picture(pixels: np.ndarray, file_format: str, **options: object) -> memoryview:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return memory(file.getvalue())


def multipart_body(**files: bytes) -> tuple[memoryview, str]:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in files.items()
    ]
    return memory(b"".join(parts) + b"--b--\r\n"), "multipart/form-data; boundary=b"


def test_the_three_media_types_give_the_same_tensors():
    lists = {"logits": LOGITS.tolist(), "labels": LABELS.tolist()}
    bodies = [
        (memory(safetensors_file(**make_inputs())), "application/x-safetensors"),
        (memory(json.dumps(lists).encode()), "application/json; charset=utf-8"),
        multipart_body(logits=npy_file(LOGITS.numpy()), labels=npy_file(LABELS.numpy())),
        multipart_body(logits=safetensors_file(logits=LOGITS), labels=label_png(LABELS[0].numpy())),
        multipart_body(
            labels=label_png(LABELS[0].numpy()), logits=safetensors_file(any_name=LOGITS)
        ),
    ]
    for content, content_type in bodies:
        decoded = inputs.decode(content, content_type, OPTIONS, SETTINGS)
        assert torch.equal(decoded.logits, LOGITS)
        assert torch.equal(decoded.labels.to(torch.uint8), LABELS)
        assert decoded.names == ("logits", "labels")


def npz_file(**arrays: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    return target.getvalue()


def test_npz_files_are_read_in_a_body_as_on_the_command_line():
    logits = npz_file(other=np.zeros(3), logits=LOGITS.numpy())
    labels = npz_file(any_name=LABELS.numpy())
    photo = np.full((6, 7, 3), 99, np.uint8)
    content, content_type = multipart_body(logits=logits, labels=labels, image=npz_file(a=photo))
    decoded = inputs.decode(content, content_type, OPTIONS, SETTINGS)
    assert torch.equal(decoded.logits, LOGITS)
    assert torch.equal(decoded.labels, LABELS)
    assert np.array_equal(decoded.image, photo)


def test_arrays_in_npz_files_are_reserved_before_they_are_read():
    grown = []
    sources = {"labels": memory(npz_file(labels=LABELS.numpy())), "logits": LOGITS}
    inputs.assemble(sources, OPTIONS, SETTINGS, grown.append)
    assert sum(grown) == len(npy_file(LABELS.numpy()))


def test_an_npz_file_never_unpickles():
    content = npz_file(labels=np.array([{}], dtype=object))
    with pytest.raises(RequestError, match="Pickled objects are never read"):
        assemble(labels=memory(content))


def test_the_tensors_of_a_body_share_its_memory():
    content = memory(safetensors_file(**make_inputs()))
    decoded = inputs.decode(content, "application/x-safetensors", OPTIONS, SETTINGS)
    begin = torch.frombuffer(content, dtype=torch.uint8).data_ptr()
    assert begin <= decoded.logits.data_ptr() < begin + len(content)


def test_the_batch_axis_of_one_image_may_be_missing():
    decoded = assemble(logits=LOGITS[0], labels=LABELS[0], pixel_weight=torch.ones(6, 7))
    assert decoded.logits.shape == (1, 5, 6, 7)
    assert decoded.labels.shape == decoded.pixel_weight.shape == (1, 6, 7)
    assert assemble(labels=LABELS[0]).labels.shape == (1, 6, 7)


def test_labels_of_any_other_shape_are_left_to_the_library():
    assert assemble(logits=LOGITS, labels=LABELS[None]).labels.shape == (1, 1, 6, 7)
    two = torch.cat([LOGITS, LOGITS])
    assert assemble(logits=two, labels=LABELS[0]).labels.shape == (6, 7)


@pytest.mark.parametrize("shape", [(6, 7, 3), (3, 6, 7), (1, 6, 7, 3), (1, 3, 6, 7)])
def test_a_photo_may_have_its_channels_first_or_last(shape):
    assert assemble(image=torch.zeros(shape, dtype=torch.uint8)).image.shape == (6, 7, 3)


def test_a_photo_of_another_dtype_or_shape_is_an_error():
    for image in (torch.zeros(6, 7, 3), torch.zeros(6, 7, dtype=torch.uint8)):
        with pytest.raises(RequestError, match=r"image: expected uint8 \[H,W,3\] or \[3,H,W\]"):
            assemble(image=image)


def test_photo_files_are_png_or_jpeg_or_npy(tmp_path):
    colours = np.full((6, 7, 3), 99, np.uint8)
    for suffix in (".png", ".jpg"):
        Image.fromarray(colours).save(tmp_path / f"a{suffix}")
        decoded = assemble(image=memory((tmp_path / f"a{suffix}").read_bytes()))
        assert np.array_equal(decoded.image, colours)
    assert np.array_equal(assemble(image=memory(npy_file(colours))).image, colours)


def test_warnings_of_a_label_map_are_kept():
    translucent = np.zeros((6, 7, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(translucent).save(file, "PNG")
    options = parse(LossOptions, [("palette", "voc")])
    decoded = inputs.assemble({"labels": memory(file.getvalue())}, options, SETTINGS)
    assert decoded.warnings == ("labels: transparency was dropped (translucent pixels: 42).",)


def test_a_warning_about_several_inputs_is_given_once():
    options = parse(VisualizeOptions, [("upsampling", "bilinear")])
    large = np.zeros((32, 32, 3), np.uint8)
    sources = {
        "logits": torch.zeros(1, 16, 16, 4),
        "labels": picture(large[:, :, 0], "PNG"),
        "image": picture(large, "PNG"),
    }
    first, *others = inputs.assemble(sources, options, SETTINGS).warnings
    assert "layout=nhwc" in first
    assert first not in others


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_label_pictures_are_of_every_lossless_format(file_format):
    file = io.BytesIO()
    Image.fromarray(LABELS[0].numpy()).save(file, file_format)
    decoded = assemble(logits=LOGITS, labels=memory(file.getvalue()))
    assert torch.equal(decoded.labels, LABELS)
    with pytest.raises(RequestError, match="logits: expected an NPY, NPZ or safetensors file, got"):
        assemble(logits=memory(file.getvalue()))


def test_files_of_other_types_are_named_with_those_that_are_read():
    with pytest.raises(RequestError) as error:
        assemble(labels=memory(b"P5 2 2 255 ...."))
    assert error.value.expected == "an NPY, NPZ, safetensors, PNG, TIFF or BMP file"
    with pytest.raises(RequestError) as error:
        assemble(logits=memory(gzip.compress(npy_file(LOGITS.numpy()))))
    assert (error.value.got, error.value.fix) == ("gzip", "Decompress the file first.")


@pytest.mark.parametrize(
    "name", ["application/x-npy", "Application/Octet-Stream", "image/png", "application/zip"]
)
def test_the_media_type_of_a_file_gets_the_fix_to_send_a_form(name):
    with pytest.raises(RequestError) as error:
        inputs.media_type(f"{name}; a=b")
    fix = "Send files as multipart/form-data: curl -F logits=@FILE -F labels=@FILE."
    assert error.value.fix == fix


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_label_pictures_are_an_error(file_format):
    file = io.BytesIO()
    Image.fromarray(LABELS[0].numpy()).save(file, file_format)
    with pytest.raises(RequestError, match="which is lossy and changes class indices"):
        assemble(labels=memory(file.getvalue()))


def test_prediction_files_are_read_like_label_files():
    decoded = assemble(prediction=memory(label_png(LABELS[0].numpy())))
    assert torch.equal(decoded.prediction, LABELS)


INDICES = np.tile(np.arange(20, dtype=np.uint8), (300, 20))
COLOURS = PALETTES["voc"].paint(INDICES)
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
PICTURES = {
    "labels in grey": ("labels", "", 1, picture(INDICES, "PNG")),
    "labels of 16 bits": ("labels", "", 2, picture(INDICES.astype(np.uint16), "PNG")),
    "labels in colour": ("labels", "palette=voc", 4, picture(COLOURS, "PNG")),
    "labels in a palette": (
        "labels",
        "palette=voc&label_encoding=rgb",
        1,
        memory(label_png(INDICES)),
    ),
    "labels of a space": ("labels", "label_space=ade_zero", 1, memory(label_png(INDICES))),
    "labels in a TIFF": ("labels", "", 1, picture(INDICES, "TIFF", compression="tiff_lzw")),
    "labels in a BMP": ("labels", "palette=voc", 4, picture(COLOURS, "BMP")),
    "a prediction": ("prediction", "", 1, picture(INDICES, "PNG")),
    "a photo in a PNG": ("image", "", 4, picture(COLOURS, "PNG")),
    "a photo in a JPEG": ("image", "", 4, picture(COLOURS, "JPEG", exif=SIDEWAYS)),
}
"""An input, its options, the bytes of a pixel in Pillow's memory, and its file."""


def read_picture(case: str, grow: Callable[[int], None]) -> torch.Tensor | np.ndarray:
    name, query, _, file = PICTURES[case]
    pairs = [tuple(pair.split("=")) for pair in query.split("&") if pair]
    options = parse(VisualizeOptions, pairs)
    return getattr(inputs.assemble({name: file}, options, SETTINGS, grow), name)


def never(*_: object) -> None:
    raise AssertionError("the pixels were decoded")


@pytest.mark.parametrize("case", PICTURES)
def test_the_memory_of_a_picture_is_reserved_before_it_is_decoded(case, monkeypatch):
    _, _, pixel_bytes, file = PICTURES[case]

    def grow(num_bytes: int) -> None:
        if num_bytes != len(file):
            assert num_bytes >= 3 * pixel_bytes * INDICES.size
            raise TooLarge("memory", "less", f"{num_bytes}")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    with pytest.raises(TooLarge):
        read_picture(case, grow)


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_takes_no_more_memory_than_is_reserved(case, monkeypatch):
    monkeypatch.setattr(png, "_BLOCK_PIXELS", 1 << 10)
    grown: list[int] = []
    read_picture(case, grown.append)  # imports the codec
    grown.clear()
    tracemalloc.start()
    try:
        pixels = read_picture(case, grown.append)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= max(accumulate(grown)) + (1 << 17)  # a block, and objects of Python
    assert pixels.nbytes <= sum(grown) <= 2 * pixels.nbytes  # with the values of a space


@pytest.mark.parametrize("name", ["labels", "image"])
def test_the_size_of_upsampled_logits_is_checked_before_a_picture_is_decoded(name, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    limit = 5 * INDICES.size - 1
    options = parse(VisualizeOptions, [("upsampling", "bilinear")])
    file = picture(INDICES if name == "labels" else COLOURS, "PNG")
    settings = Settings(max_upsampled_logits=limit)
    with pytest.raises(TooLarge, match=f"{name}: expected at most {limit} upsampled logits"):
        inputs.assemble({"logits": LOGITS, name: file}, options, settings)
