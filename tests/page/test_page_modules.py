"""The modules of the page that have no elements: formats, fixes and links, in the browser."""

import base64

import numpy as np
import pytest
import safetensors.numpy
from page_actions import npy_file, png_file

pytestmark = pytest.mark.page

BYTES = "const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));"
"""Defines a function that decodes base64."""

FIXES = {
    "Use label_space=ade_zero.": ["label_space=ade_zero"],
    "Use upsampling=bilinear and layout=nhwc.": ["upsampling=bilinear", "layout=nhwc"],
    "Name the palette (palette=voc, or cityscapes).": ["palette=voc"],
    "Pass ignore_index=-1.": ["ignore_index=-1"],
    "If -1 marks void pixels, add it to ignore_index.": ["ignore_index=255,-1"],
    "Use ignore_index=0,255.": ["ignore_index=0,255"],
    "Use layout=nhwc, or layout=nchw if the classes are axis 1.": ["layout=nhwc", "layout=nchw"],
    "It is an option of evaluate: color=red.": [],
    "The file 'layout=nhwc.npy' and a/layout=nhwc are no options.": [],
    "": [],
}
NAMES = {
    "gt.png": "truth",
    "aachen_000000_gtFine_labelTrainIds.png": "truth",
    "2007_label.png": "truth",
    "masks.png": "truth",
    "pred.png": "prediction",
    "pred_labels.png": "prediction",
    "output.png": "prediction",
    "modelOutput.png": "prediction",
    "pred_vs_gt.png": None,
    "predicate.png": None,
    "ADE_val_00000001.png": None,
}


@pytest.fixture(scope="module")
def modules(browser, url):
    """A page whose modules the tests import."""
    page = browser.new_page()
    page.goto(url)
    yield page
    page.close()


def run(page, code: str, argument):
    """What JavaScript returns that has an argument and the function `bytes`."""
    return page.evaluate(f"async (argument) => {{ {BYTES} {code} }}", argument)


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_fixes_are_the_options_that_a_sentence_names(modules):
    got = modules.evaluate(
        """async (sentences) => {
          const { fixesIn } = await import("/static/fixes.js");
          const names = ["label_space", "upsampling", "layout", "palette", "ignore_index"];
          return sentences.map((sentence) =>
            fixesIn(sentence, names, "255").map(({ option, value }) => `${option}=${value}`));
        }""",
        list(FIXES),
    )
    assert dict(zip(FIXES, got, strict=True)) == FIXES


def test_the_name_of_a_label_map_tells_its_role(modules):
    got = run(
        modules,
        """const { names, content } = argument;
          const { sourcesOf } = await import("/static/inputs/sources.js");
          const sources = names.map((name) => sourcesOf(new File([bytes(content)], name)));
          return (await Promise.all(sources)).map(([{ role }]) => role);""",
        {"names": list(NAMES), "content": text_of(png_file(np.zeros((2, 3), np.uint8)))},
    )
    assert dict(zip(NAMES, got, strict=True)) == NAMES


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "u1", "i1", "<u2", "<i4", "<i8"])
def test_an_npy_file_is_sent_as_the_tensor_that_it_holds(modules, dtype):
    array = np.arange(24).reshape(1, 2, 3, 4).astype(dtype)
    got = run(
        modules,
        """const content = argument;
          const { readTensor } = await import("/static/formats/npy.js");
          const { encode } = await import("/static/formats/safetensors.js");
          const file = encode({ x: await readTensor(new Blob([bytes(content)])) });
          return [...new Uint8Array(await file.arrayBuffer())];""",
        text_of(npy_file(array)),
    )
    (name, tensor), *others = safetensors.numpy.load(bytes(got)).items()
    assert (name, others, tensor.dtype) == ("x", [], array.dtype)
    assert np.array_equal(tensor, array)


def test_other_npy_files_are_left_to_the_service(modules):
    array = np.ones((3, 4), np.float32)
    good = npy_file(array)
    files = {
        "good": good,
        "Fortran order": npy_file(np.asfortranarray(array)),
        "big-endian": npy_file(array.astype(">f4")),
        "booleans": npy_file(array > 0),
        "complex": npy_file(array.astype(np.complex64)),
        "truncated": good[:-1],
        "longer": good + b"x",
        "another magic": b"x" + good[1:],
        "an endless header": good[:8] + b"\xff\xff" + good[10:],
        "empty": b"",
        "another shape": good.replace(b"(3, 4)", b"(9, 4)"),
        "a nested header": good.replace(b"(3, 4)", b"[3, 4]"),
    }
    got = run(
        modules,
        """const contents = argument;
          const { readTensor } = await import("/static/formats/npy.js");
          const tensors = contents.map((content) => readTensor(new Blob([bytes(content)])));
          return (await Promise.all(tensors)).map((tensor) => tensor !== null);""",
        [text_of(content) for content in files.values()],
    )
    assert [name for name, is_tensor in zip(files, got, strict=True) if is_tensor] == ["good"]


def test_answers_are_decoded_without_copies_where_they_are_aligned(modules):
    tensors = {
        "a": np.arange(5, dtype=np.uint8),
        "b": np.array([[1.5, -2]], np.float32),
        "c": np.array([2**40], np.int64),
    }
    aligned = safetensors.numpy.save(tensors, {"note": "ä"})
    length = int.from_bytes(aligned[:8], "little")
    # One more space in the header moves all elements by one byte.
    moved = (length + 1).to_bytes(8, "little") + aligned[8 : 8 + length] + b" "
    files = [aligned, moved + aligned[8 + length :]]
    got = run(
        modules,
        """const contents = argument;
          const { decode } = await import("/static/formats/safetensors.js");
          return contents.map((content) => {
            const { buffer } = bytes(content);
            const { tensors, metadata } = decode(buffer);
            const { a, b, c } = tensors;
            return { a: [...a.data], b: [...b.data], c: c.data.map(String).join(), shape: b.shape,
              note: metadata.note, areViews: [a, b, c].map(({ data }) => data.buffer === buffer) };
          });""",
        [text_of(file) for file in files],
    )
    same = {"a": [0, 1, 2, 3, 4], "b": [1.5, -2], "shape": [1, 2], "note": "ä"}
    for decoded in got:
        assert {name: decoded[name] for name in same} == same
    assert got[0]["areViews"] == [True, True, True]
    assert got[1]["areViews"] == [True, False, False]


def test_damaged_answers_are_refused(modules):
    good = safetensors.numpy.save({"a": np.arange(5, dtype=np.uint8)})
    files = [
        b"",
        good[:20],
        good[:-1],
        b"\xff" * 8 + good[8:],
        good.replace(b"U8", b"F9"),
        good.replace(b"[0,5]", b"[0,9]"),
        good.replace(b"[5]", b"[7]"),
        good.replace(b'"shape"', b'"shave"'),
        (4).to_bytes(8, "little") + b"null",
    ]
    got = run(
        modules,
        """const contents = argument;
          const { decode, readTensors } = await import("/static/formats/safetensors.js");
          return Promise.all(contents.map(async (content) => {
            const found = await readTensors(new Blob([bytes(content)]));
            try { decode(bytes(content).buffer); } catch (error) { return [found, error.name]; }
            return [found, "none"];
          }));""",
        [text_of(file) for file in files],
    )
    assert got == [[None, "RangeError"]] * len(files)


def test_labels_become_a_truth_with_ignored_pixels(modules):
    """Of every integer dtype, with a class in the middle that does not count."""
    labels = np.array([[[0, 1, 2], [255, 7, 1]]])
    files = []
    for dtype in (np.uint8, np.int16, np.int64):
        tensors = {"labels": labels.astype(dtype), "prediction": np.zeros((1, 2, 3), np.uint8)}
        files.append(safetensors.numpy.save(tensors, {"evaluation": '{"confusion": [[],[],[]]}'}))
    got = run(
        modules,
        """const contents = argument;
          const { answerOf, sceneOf } = await import("/static/evaluation.js");
          return contents.map((content) => {
            const answer = answerOf(bytes(content).buffer, "x");
            const options = { imageIndex: 0, photo: null, ignored: [255, 1] };
            return [...sceneOf([answer], options).truth];
          });""",
        [text_of(file) for file in files],
    )
    assert got == [[0, -1, 2, -1, -1, -1]] * 3


def test_a_link_restores_what_it_was_made_of(modules):
    state = {
        "options": {"label_space": "ade_zero", "ignore_index": "0,255", "temperature": "1e-3"},
        "camera": {"scale": 2.5, "x": 100.25, "y": 0},
        "panes": ["truth", "nll"],
        "opacity": 0.75,
        "minNll": 1.5,
        "maxConfidence": 0.5,
        "errorColours": "kinds",
        "borderPx": 5,
        "nllScale": "auto",
        "slider": {"left": "photo", "right": "error", "at": 0.25},
        "shown": 1,
    }
    names = ["a b.png", "ä&=#.npy"]
    restored = modules.evaluate(
        """async ([state, names]) => {
          const { hashOf, parseHash } = await import("/static/link.js");
          return parseHash(hashOf(state, names));
        }""",
        [state, names],
    )
    assert restored == {"state": state, "fileNames": names}
