"""Every refusal: its status, its sentence, and a service that is well afterwards."""

import asyncio
import gzip
import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import (
    SAFETENSORS,
    Client,
    assert_problem,
    assert_well,
    bomb,
    example,
    npy_file,
    packed,
    served,
)

from app import inputs
from app.http.v1 import OPERATIONS
from app.images.palettes import PALETTES
from app.images.render import KINDS
from app.options import UPSAMPLINGS

LOGITS, LABELS = example()["logits"], example()["labels"]


@pytest.fixture(autouse=True)
def _is_well_afterwards(client):
    yield
    assert_well(client)


def png_file(array: np.ndarray, mode: str | None = None) -> bytes:
    target = io.BytesIO()
    Image.fromarray(array, mode).save(target, "PNG")
    return target.getvalue()


def upload(client: Client, labels: bytes, *, logits: bytes | None = None, path: str = "/v1/loss"):
    files = {
        "logits": ("logits", npy_file(LOGITS.numpy()) if logits is None else logits),
        "labels": ("labels", labels),
    }
    return client.post(path, files=files)


def with_label(value: int, *places: tuple[int, int]) -> torch.Tensor:
    labels = LABELS.to(torch.int64)
    for row, column in places:
        labels[0, row, column] = value
    return labels


def with_logit(value: float, *place: int) -> torch.Tensor:
    logits = LOGITS.clone()
    logits[place] = value
    return logits


ILL_POSED = {
    "labels of another shape": (
        {"labels": LABELS[:, :5]},
        "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape (1, 5, 7).",
    ),
    "height and width exchanged": (
        {"labels": LABELS.mT},
        (
            "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape (1, 7, 6). "
            "Height and width are exchanged."
        ),
    ),
    "one-hot labels": (
        {"labels": torch.zeros(1, 5, 6, 7, dtype=torch.uint8)},
        "One-hot? Take argmax over axis 1.",
    ),
    "logits of one axis": (
        {"logits": torch.zeros(5)},
        "logits: expected [N,C,H,W], [C,H,W], [N,C] or [N,C,D,H,W], got 1 axes.",
    ),
    "logits of six axes": ({"logits": torch.zeros(1, 1, 1, 1, 1, 1)}, "got 6 axes."),
    "logits without pixels": (
        {"logits": torch.zeros(1, 5, 0, 7)},
        "logits: expected at least one number, got shape (1, 5, 0, 7).",
    ),
    "labels without pixels": (
        {"labels": LABELS[:, :0]},
        "labels: expected at least one number, got shape (1, 0, 7).",
    ),
    "logits that are integers": (
        {"logits": LOGITS.to(torch.int32)},
        "logits: expected float32, float16, bfloat16 or float64, got int32.",
    ),
    "labels that are not": (
        {"labels": LABELS.float()},
        (
            "labels: expected uint8, int8, int16, int32 or int64, got float32. "
            "Class indices are integers."
        ),
    ),
    "a label out of range": (
        {"labels": with_label(31, (2, 3), (4, 4), (5, 6))},
        "labels: expected 0...4 or 255 (ignored), got 31 at (0, 2, 3) and 2 more pixels.",
    ),
    "a label that may be void": (
        {"labels": with_label(-1, (2, 3))},
        (
            "labels: expected 0...4 or 255 (ignored), got -1 at (0, 2, 3). "
            "If -1 marks void pixels, add it to ignore_index."
        ),
    ),
    "NaN": (
        {"logits": with_logit(float("nan"), 0, 1, 2, 3)},
        (
            "logits: expected finite numbers (or -inf in some classes) at valid pixels, "
            "got nan at (0, 1, 2, 3). The network has diverged, or the file is damaged."
        ),
    ),
    "infinity": ({"logits": with_logit(float("inf"), 0, 4, 5, 6)}, "got inf at (0, 4, 5, 6)."),
    "a class weight too few": (
        {"class_weight": torch.ones(4)},
        "class_weight: expected shape (5,), one per class, got shape (4,).",
    ),
    "a negative class weight": ({"class_weight": -torch.ones(5)}, "got -1.0 for class 0."),
    "a negative pixel weight": ({"pixel_weight": -torch.ones(1, 6, 7)}, "got -1.0 at (0, "),
}


@pytest.mark.parametrize("case", ILL_POSED)
@pytest.mark.parametrize("operation", ["loss", "gradient", "evaluate"])
def test_an_ill_posed_loss_is_refused_with_a_sentence_that_ends_the_search(client, case, operation):
    tensors, sentence = ILL_POSED[case]
    response = client.post_tensors(f"/v1/{operation}", **{**example(), **tensors})
    problem = assert_problem(response, 422, "ill_posed")
    assert sentence in problem["detail"]
    parts = f"{problem['where']}: expected {problem['expected']}, got {problem['got']}."
    assert problem["detail"] == f"{parts} {problem.get('fix', '')}".rstrip()


def test_non_finite_logits_of_ignored_pixels_do_not_matter(client):
    logits = with_logit(float("nan"), 0, 1, 0, 0)
    response = client.post_tensors("/v1/loss", logits=logits, labels=LABELS)
    assert response.json()["loss"] == client.post_tensors("/v1/loss", **example()).json()["loss"]


def test_a_true_class_of_probability_zero_is_an_infinite_loss_which_json_calls_null(client):
    labels = with_label(2, (3, 3))
    logits = with_logit(-float("inf"), 0, 2, 3, 3)
    response = client.post_tensors("/v1/loss", logits=logits, labels=labels)
    assert response.status_code == 200
    assert response.json()["loss"] is None
    assert response.json()["diagnosis"]["state"] == "saturated"


PNG = png_file(LABELS[0].numpy())


def lying_npy() -> bytes:
    return npy_file(np.zeros((1, 5, 6, 7), np.float32)).replace(b"(1, 5, 6, 7)", b"(9, 5, 6, 7)")


def pickled_npy() -> bytes:
    target = io.BytesIO()
    np.save(target, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return target.getvalue()


FILES = {
    "an RGB label map without a palette": (
        {"labels": png_file(np.zeros((6, 7, 3), np.uint8))},
        422,
        (
            "labels: expected indices (PNG of mode P or L), or colours of a named palette, "
            "got mode RGB and no palette. Name the palette (palette=voc, palette=cityscapes), "
            "or save the map as mode P or L."
        ),
    ),
    "a PNG of another size": (
        {"labels": png_file(np.zeros((7, 6), np.uint8))},
        422,
        "labels: expected 6 x 7 (height x width) to match the logits, got 7 x 6.",
    ),
    "a truncated PNG": (
        {"labels": PNG[:-20]},
        422,
        "labels: expected a complete file, got a damaged file: it ends too early.",
    ),
    "a decompression bomb": (
        {"labels": bomb()},
        413,
        "labels: expected at most 16384 pixels, got 50000 x 50000 = 2500000000.",
    ),
    "a pickled npy": (
        {"labels": pickled_npy()},
        400,
        "Pickled objects are never read: save numbers, array.astype('<f4').",
    ),
    "an npy header that claims more than is there": (
        {"logits": lying_npy()},
        400,
        "logits: expected 7560 bytes for float32 (9, 5, 6, 7), got 840.",
    ),
    "a JPEG as labels": (
        {"labels": b"\xff\xd8\xff\xe0" + bytes(100)},
        422,
        "labels: expected an NPY, safetensors or PNG file, got JPEG.",
    ),
    "a PNG as logits": (
        {"logits": PNG},
        422,
        "logits: expected an NPY or safetensors file, got PNG.",
    ),
    "an empty file": (
        {"labels": b""},
        422,
        "labels: expected an NPY, safetensors or PNG file, got an empty file.",
    ),
    "text": (
        {"labels": b"0 0 0 1 1 1\n" * 7},
        422,
        "labels: expected an NPY, safetensors or PNG file, got another format.",
    ),
    "a safetensors file of several": (
        {"logits": packed(a=LOGITS, b=LOGITS)},
        422,
        "logits: expected one tensor, or one named logits, got 2 of other names.",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used_is_refused(client, case):
    files, status, sentence = FILES[case]
    response = upload(client, **{"labels": PNG, **files})
    problem = assert_problem(
        response, status, {400: "malformed", 413: "too_large", 422: "ill_posed"}[status]
    )
    assert sentence in problem["detail"]
    if status == 413:
        assert problem["limit"] == 1 << 14


def test_colours_are_read_when_the_palette_is_named(client):
    colours = PALETTES["voc"].paint(LABELS[0].numpy())
    response = upload(client, png_file(colours), path="/v1/loss?palette=voc")
    assert response.json()["loss"] == client.post_tensors("/v1/loss", **example()).json()["loss"]


def lying_safetensors(begin: int, end: int) -> bytes:
    header = {"logits": {"dtype": "F32", "shape": [1, 5, 6, 7], "data_offsets": [begin, end]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(840)


@pytest.mark.parametrize("offsets", [(0, 10**12), (100, 940), (0, 4), (-1, 839), (840, 0)])
def test_safetensors_with_lying_offsets_are_malformed(client, offsets):
    response = client.post("/v1/loss", content=lying_safetensors(*offsets), headers=SAFETENSORS)
    assert_problem(response, 400, "malformed")


def test_safetensors_with_a_header_longer_than_the_file_are_malformed(client):
    response = client.post("/v1/loss", content=b"\xff" * 8 + b"{}", headers=SAFETENSORS)
    assert_problem(response, 400, "malformed")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_empty_body_is_malformed(client, operation):
    response = client.post(f"/v1/{operation.name}", content=b"", headers=SAFETENSORS)
    problem = assert_problem(response, 400, "malformed")
    assert problem["detail"] == "body: expected tensors, got 0 bytes."


def test_a_missing_input_is_named_with_what_was_there(client):
    response = client.post_tensors("/v1/loss", labels=LABELS)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == "body: expected logits and labels, got labels."
    response = client.post_tensors("/v1/gradient", logits=LOGITS)
    assert response.json()["detail"] == "body: expected logits and labels, got logits."


def test_an_unknown_input_is_refused_with_the_names_there_are(client):
    response = client.post_tensors("/v1/loss", **example(), target=LABELS)
    problem = assert_problem(response, 422, "ill_posed")
    known = "logits, labels, class_weight, pixel_weight, prediction, image"
    assert problem["detail"] == f"body: expected inputs among {known}, got 'target'."


def test_an_option_sent_as_a_form_field_is_sent_to_the_query(client):
    files = {"logits": npy_file(LOGITS.numpy()), "labels": PNG, "ignore_index": b"0"}
    problem = assert_problem(client.post("/v1/loss", files=files), 422, "ill_posed")
    assert problem["fix"] == "Options belong in the query: ?ignore_index=..."


OPTIONS = {
    "unknown=1": "options: expected names among ignore_index, label_smoothing, temperature, "
    "normalization, upsampling, label_encoding, palette, got 'unknown'.",
    "kind=error": "got 'kind'.",
    "label_smoothing=1.5": "label_smoothing: expected a number from 0 to 1, got '1.5'.",
    "label_smoothing=nan": "label_smoothing: expected a number from 0 to 1, got 'nan'.",
    "label_smoothing=1_0": "label_smoothing: expected a number from 0 to 1, got '1_0'.",
    "temperature=0": "temperature: expected a positive number, 1e-30...1e30, got '0'.",
    "temperature=-1": "temperature: expected a positive number, 1e-30...1e30, got '-1'.",
    "temperature=inf": "temperature: expected a positive number, 1e-30...1e30, got 'inf'.",
    "temperature=1e999": "temperature: expected a positive number, 1e-30...1e30, got '1e999'.",
    "temperature=": "temperature: expected a positive number, 1e-30...1e30, got nothing.",
    "normalization=mean": "normalization: expected one of valid, full, batch, none, weight, "
    "got 'mean'.",
    "ignore_index=a": "ignore_index: expected an integer, several with commas between them, or "
    "none, got 'a'.",
    "ignore_index=1,,2": "got '1,,2'.",
    "ignore_index=1.5": "got '1.5'.",
    "ignore_index=" + "9" * 30: "got '999999999999999999999999999999'.",
    "ignore_index=" + "9" * 4000: "got something else.",
    "ignore_index=%00": "got something else.",
    "ignore_index=%ED%A0%80": "got something else.",
    "palette=<script>": "palette: expected one of voc, cityscapes, got something else.",
    "upsampling=": "one of none, bilinear, bilinear_aligned, fcn, got nothing.",
    "upsampling=FCN": "upsampling: expected one of none, bilinear, bilinear_aligned, fcn, "
    "got 'FCN'.",
    "label_encoding=rgba": "label_encoding: expected one of auto, index, rgb, got 'rgba'.",
    "temperature=1&temperature=2": "temperature: expected one value, got several.",
}


@pytest.mark.parametrize("query", OPTIONS)
def test_an_option_that_is_unknown_or_out_of_range_is_refused(client, query):
    response = client.post(f"/v1/loss?{query}", content=packed(**example()), headers=SAFETENSORS)
    assert OPTIONS[query] in assert_problem(response, 422, "ill_posed")["detail"]


def test_what_came_in_is_never_repeated_unless_it_is_a_plain_short_word(client):
    for query in ("<script>=1", "palette=<script>", "ignore_index=%0d%0aSet-Cookie:a"):
        response = client.post(f"/v1/loss?{query}", content=b"x", headers=SAFETENSORS)
        assert "script" not in response.text.replace("urn", "")
        assert "Cookie" not in response.text


def test_a_body_over_the_limit_is_refused_by_its_header_and_by_its_chunks(client):
    limit = 1 << 20
    response = client.post("/v1/loss", content=bytes(limit + 1), headers=SAFETENSORS)
    problem = assert_problem(response, 413, "too_large")
    assert problem["detail"] == f"body: expected at most {limit} bytes, got {limit + 1}."
    assert problem["limit"] == limit
    assert "Connection" not in response.headers

    async def chunks():
        for _ in range(limit // 1000 + 1):
            yield bytes(1000)

    headers = {**SAFETENSORS, "Transfer-Encoding": "chunked"}
    response = client.post("/v1/loss", content=chunks(), headers=headers)
    assert assert_problem(response, 413, "too_large")["got"] == "more"


def test_json_has_a_limit_of_its_own(client):
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/loss", content=b" " * (1 << 17), headers=headers)
    assert assert_problem(response, 413, "too_large")["limit"] == 1 << 16


def test_a_small_body_that_unpacks_to_too_much_is_refused(client):
    for coding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        content = pack(bytes(1 << 24))
        assert len(content) < 1 << 20
        response = client.post(
            "/v1/loss", content=content, headers={**SAFETENSORS, "Content-Encoding": coding}
        )
        assert assert_problem(response, 413, "too_large")["limit"] == 1 << 20


def test_pixels_classes_and_images_have_limits(client):
    many = torch.zeros(1, 2, 129, 128, dtype=torch.float16)
    problem = assert_problem(client.post_tensors("/v1/loss", logits=many), 413, "too_large")
    assert problem["detail"] == "logits: expected at most 16384 pixels per image, got 16512."
    response = client.post_tensors("/v1/loss", logits=torch.zeros(1, 65, 2, 2))
    assert response.json()["detail"] == "logits: expected at most 64 classes, got 65."
    response = client.post_tensors("/v1/loss", logits=torch.zeros(65, 2, 2, 2))
    assert response.json()["detail"] == "logits: expected at most 64 images, got 65."


def test_another_media_type_is_refused_with_those_there_are(client):
    for content_type in ("application/octet-stream", "text/plain; charset=utf-8", "\xff", ""):
        response = client.post(
            "/v1/loss", content=b"x", headers=[(b"Content-Type", content_type.encode("latin-1"))]
        )
        problem = assert_problem(response, 415, "unsupported_media")
        accepted = ["application/x-safetensors", "multipart/form-data", "application/json"]
        assert problem["accepted"] == accepted
        assert response.headers["Accept-Post"] == ", ".join(accepted)


def test_the_media_type_that_curl_invents_is_answered_with_the_flag_to_add(client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    problem = assert_problem(
        client.post("/v1/loss", content=b"x", headers=headers), 415, "unsupported_media"
    )
    assert problem["fix"] == "With curl, add -H 'Content-Type: application/x-safetensors'."


def test_another_content_coding_is_refused_with_those_there_are(client):
    for coding in ("br", "gzip, gzip", "GZIPX"):
        response = client.post(
            "/v1/loss", content=b"x", headers={**SAFETENSORS, "Content-Encoding": coding}
        )
        assert_problem(response, 415, "unsupported_media")
        assert response.headers["Accept-Encoding"] == "gzip, deflate, zstd"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_body_that_is_not_in_its_coding_is_malformed(client, coding):
    for content in (b"x", b"x" * 1000):
        response = client.post(
            "/v1/loss", content=content, headers={**SAFETENSORS, "Content-Encoding": coding}
        )
        assert_problem(response, 400, "malformed")


def test_an_answer_that_accept_excludes_is_refused_with_what_is_offered(client):
    for path, offered in (
        ("loss", ["application/json"]),
        ("gradient", ["application/x-safetensors", "application/x-npy"]),
        ("visualize", ["image/png"]),
    ):
        response = client.post(
            f"/v1/{path}",
            content=packed(**example()),
            headers={**SAFETENSORS, "Accept": "text/html"},
        )
        assert assert_problem(response, 406, "not_acceptable")["offered"] == offered


def test_maps_need_an_answer_that_can_hold_them(client):
    response = client.post_tensors("/v1/evaluate?maps=nll", **example())
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["fix"] == "Send Accept: application/x-safetensors to get them."


def test_unknown_paths_and_verbs_are_problems_too(client):
    assert_problem(client.get("/nothing"), 404, "not_found")
    assert_problem(client.get("/v1/loss/"), 404, "not_found")
    assert_problem(client.get("/v1/palettes/%00"), 404, "not_found")
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
        response = client.request(method, "/v1/loss")
        assert response.status_code == 405
        assert response.headers["Allow"] == "POST"
    assert_problem(client.post("/livez"), 405, "method_not_allowed")


def test_an_error_of_ours_says_nothing_but_its_id(client, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(inputs, "decode", broken)
    problem = assert_problem(client.post_tensors("/v1/loss", **example()), 500, "internal")
    assert problem["detail"] == "An error of the service, not of the request."
    assert problem["request_id"] in caplog.text
    assert "a secret path" in caplog.text
    monkeypatch.undo()


def test_a_slow_body_is_given_up():
    with served(body_timeout_seconds=0.05, min_body_bytes_per_second=10**9) as client:

        async def slow():
            yield b"x"
            await asyncio.sleep(1)
            yield b"y"

        response = client.post(
            "/v1/loss", content=slow(), headers={**SAFETENSORS, "Transfer-Encoding": "chunked"}
        )
        assert_problem(response, 408, "too_slow")
        assert response.headers["Connection"] == "close"


def test_a_slow_computation_is_answered_and_holds_its_place_until_it_ends(monkeypatch):
    decode = inputs.decode

    def slow(*arguments: object) -> object:
        time.sleep(0.3)
        return decode(*arguments)

    with served(compute_timeout_seconds=0.05, max_concurrent_requests=1) as client:
        client.wait_until_warm()
        monkeypatch.setattr(inputs, "decode", slow)
        response = client.post_tensors("/v1/loss", **example())
        problem = assert_problem(response, 503, "unavailable")
        assert "not ready within 0.05 s" in problem["detail"]
        assert response.headers["Retry-After"] == "1"
        monkeypatch.undo()
        problem = assert_problem(client.post_tensors("/v1/loss", **example()), 503, "unavailable")
        assert problem["detail"] == "1 requests are being served. Try again in 1 s."
        time.sleep(0.4)
        assert_well(client)
        assert client.app.state.service.workers.requests_in_flight == 0
        assert client.app.state.service.workers.bytes_in_flight == 0


def test_bodies_together_have_a_limit():
    with served(max_body_bytes=4000, max_bytes_in_flight=4000) as client:
        service = client.app.state.service
        with service.workers.reserve(3999):
            response = client.post_tensors("/v1/loss", **example())
            problem = assert_problem(response, 503, "unavailable")
            assert problem["retry_after_seconds"] == 1
        assert_well(client)


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=300),
    content_type=st.sampled_from(
        ["application/x-safetensors", "application/json", "multipart/form-data; boundary=a"]
    ),
    coding=st.sampled_from(["identity", "identity", "gzip", "zstd"]),
    operation=st.sampled_from([operation.name for operation in OPERATIONS]),
)
def test_no_body_is_an_error_of_ours(client, body, content_type, coding, operation):
    headers = {"Content-Type": content_type, "Content-Encoding": coding}
    response = client.post(f"/v1/{operation}", content=body, headers=headers)
    assert 400 <= response.status_code < 500, response.text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_good_body_is_an_error_of_ours(client, data):
    body = bytearray(packed(**example()))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(1, len(body))) :]
    operation = data.draw(st.sampled_from(OPERATIONS)).name
    response = client.post(f"/v1/{operation}", content=bytes(body), headers=SAFETENSORS)
    assert response.status_code in (200, 400, 413, 422), response.text


@settings(max_examples=100, deadline=None)
@given(
    query=st.binary(max_size=60),
    name=st.sampled_from(
        ["", "ignore_index=", "temperature=", "upsampling=", "palette=", "kind=", "maps="]
    ),
    operation=st.sampled_from([operation.name for operation in OPERATIONS]),
)
def test_no_query_is_an_error_of_ours(client, query, name, operation):
    raw = name.encode() + query
    status = client.post_raw_query(f"/v1/{operation}", raw, packed(**example()))
    assert status in (200, 400, 422)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.fixed_dictionaries(
        {},
        optional={
            name: st.tuples(
                st.lists(st.integers(0, 3), max_size=6),
                st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
            )
            for name in ("logits", "labels", "class_weight", "pixel_weight", "prediction", "image")
        },
    ),
    operation=st.sampled_from(
        ["loss?", "gradient?", "evaluate?", *(f"visualize?kind={kind}&" for kind in KINDS)]
    ),
    upsampling=st.sampled_from([*UPSAMPLINGS]),
)
def test_no_tensors_are_an_error_of_ours(client, shapes, operation, upsampling):
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    response = client.post_tensors(f"/v1/{operation}upsampling={upsampling}", **tensors)
    assert response.status_code in (200, 413, 422), response.text
