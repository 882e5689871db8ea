"""`predict` on the CPU: against torch and `evaluate`, its arguments, NumPy arrays, compiled programs."""

# ruff: noqa: E501 - messages stay in one piece, so that a search finds them

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput
from seg_loss.constants import PREDICTION_MAPS
from seg_loss.cpu import threads
from tests.support.cases import (
    FLOATS,
    UPSAMPLED_CASES,
    UPSAMPLINGS,
    Case,
    make_logits,
    one_thread,
    same_bits,
    seed_of,
    torch_upsample,
    true_logits,
)

UP = {name: case for name, case in UPSAMPLINGS.items() if case.upsampling is not None}


def smooth_scores(shape):
    """Returns scores like those of a network: objects with blurred edges, and a little noise."""
    source = seed_of("smooth", *shape)
    coarse = torch.randn(*shape[:2], 1 + shape[2] // 6, 1 + shape[3] // 6, generator=source) * 4
    noise = torch.randn(*shape, generator=source) / 20
    return F.interpolate(coarse, shape[2:], mode="bicubic") + noise


def whole_scores(shape):
    """Returns small integers, of which many are equal, also after an interpolation."""
    return torch.randint(0, 3, shape, generator=seed_of("whole", *shape)).float()


def close_scores(shape):
    """Returns scores whose classes differ by some units in the last place of a large number."""
    base = 1000 * torch.randn(shape[0], 1, *shape[2:], generator=seed_of("base", *shape))
    units = torch.randint(-6, 7, shape, generator=seed_of("units", *shape)) * 2.0**-14
    return base + units


def masked_scores(shape):
    """Returns scores in which a class can never win, another one nowhere in the first image."""
    scores = smooth_scores(shape)
    scores[:, -1] = -torch.inf
    scores[0, 0] = -torch.inf
    return scores


def wild_scores(shape):
    """Returns scores with NaN, infinities and huge values in some places."""
    scores = smooth_scores(shape)
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-40, 0.0])
    source = seed_of("wild", *shape)
    chosen = values[torch.randint(0, 7, shape, generator=source)]
    return torch.where(torch.rand(shape, generator=source) < 0.01, chosen, scores)


SCORES = {
    "random": make_logits,
    "smooth": smooth_scores,
    "whole": whole_scores,
    "close": close_scores,
    "masked": masked_scores,
    "wild": wild_scores,
}
EACH_SCORES = pytest.mark.parametrize("make", SCORES.values(), ids=SCORES)


def predict_case(scores, case, **options):
    return seg_loss.predict(scores, size=case.size, upsampling=case.upsampling, **options)


def evaluate_maps(scores, case, labels, names=PREDICTION_MAPS):
    options = {"upsampling": case.upsampling, "ignore_index": -1}
    return seg_loss.evaluate(scores, labels, maps=names, **options).maps


# -- the classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "size", "align"),
    [
        ((16, 24), (128, 192), False),
        ((13, 37), (101, 290), False),
        ((13, 37), (101, 290), True),
        ((9, 18), (27, 54), False),
        ((17, 33), (33, 65), True),
        ((40, 50), (23, 21), False),
    ],
    ids=["stride 8", "odd", "odd, aligned", "stride 3", "aligned, stride 2", "down"],
)
@pytest.mark.parametrize("num_classes", [2, 19, 21, 150, 300])
@one_thread()
def test_classes_are_those_of_interpolate_and_argmax(num_classes, sources, size, align):
    for make in (make_logits, smooth_scores):
        scores = make((1, num_classes, *sources))
        upsampling = Bilinear(align_corners=align)
        got = seg_loss.predict(scores, size=size, upsampling=upsampling)["prediction"]
        logits = torch_upsample(scores.double(), size, upsampling)
        best = logits.topk(2, dim=1).values
        ulp = torch.finfo(torch.float32).eps * logits.abs().amax(1)
        is_sure = best[:, 0] - best[:, 1] > 4 * ulp
        assert is_sure.double().mean() > 0.999
        by_torch = torch_upsample(scores, size, upsampling).argmax(1)
        assert torch.equal(got.long()[is_sure], logits.argmax(1)[is_sure])
        assert torch.equal(got.long()[is_sure], by_torch[is_sure])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@EACH_SCORES
def test_leaving_out_classes_changes_no_prediction(make, dtype):
    # `evaluate` interpolates all classes of all pixels, by the same operations.
    for num_classes, sources, upsampling, size in (
        (19, (9, 40), Bilinear(), (72, 320)),
        (19, (9, 40), Bilinear(align_corners=True), (51, 203)),
        (5, (9, 20), Deconvolution(8, crop=31), (40, 105)),
        (5, (9, 20), Deconvolution(5, 7, (2, 3)), (37, 90)),
        (70, (5, 18), Bilinear(), (45, 150)),
        (300, (4, 18), Bilinear(), (32, 144)),
    ):
        case = Case((2, num_classes, *sources), "", size, upsampling)
        scores = make(case.shape).to(dtype)
        got = predict_case(scores, case)["prediction"]
        labels = torch.zeros_like(got)
        assert torch.equal(got, evaluate_maps(scores, case, labels, ("prediction",))["prediction"])


@pytest.mark.parametrize("case", UPSAMPLED_CASES, ids=lambda case: case.name)
def test_maps_of_upsampled_scores_have_the_bits_of_evaluate(case):
    scores = make_logits(case.shape)
    alone = predict_case(scores, case)["prediction"]
    got = predict_case(scores, case, maps=PREDICTION_MAPS)
    assert torch.equal(alone, got["prediction"])
    # With the predicted classes as labels, evaluate keeps them out of its sum, as predict does.
    expected = evaluate_maps(scores, case, alone)
    for name in PREDICTION_MAPS:
        assert same_bits(got[name], expected[name]), name


@pytest.mark.parametrize("name", PREDICTION_MAPS)
@pytest.mark.parametrize(
    "case", [UPSAMPLINGS["plain"], UPSAMPLINGS["bilinear"]], ids=lambda c: c.name
)
def test_each_map_alone_is_the_same(case, name):
    scores = make_logits(case.shape)
    everything = predict_case(scores, case, maps=PREDICTION_MAPS)
    assert same_bits(predict_case(scores, case, maps=(name,))[name], everything[name])


def test_many_classes_have_wider_integers():
    for num_classes, dtype in ((256, torch.uint8), (257, torch.int16), (33_000, torch.int32)):
        scores = torch.zeros(1, num_classes, 2, 3)
        scores[:, -1, :, 2] = 1
        for size in (None, (4, 6)):
            got = seg_loss.predict(scores, size=size, maps=("prediction", "top_classes"))
            assert got["prediction"].dtype == got["top_classes"].dtype == dtype
            assert got["prediction"][0, 0, -1] == num_classes - 1
            alone = seg_loss.predict(scores, size=size)["prediction"]
            assert torch.equal(alone, got["prediction"])


def test_a_temperature_changes_probabilities_and_no_class():
    case = UPSAMPLINGS["bilinear"]
    scores = make_logits(case.shape)
    cold, warm = (predict_case(scores, case, maps=PREDICTION_MAPS, temperature=t) for t in (1, 50))
    assert torch.equal(cold["prediction"], warm["prediction"])
    assert (warm["confidence"] < cold["confidence"]).all()
    logits = true_logits(scores, cold["prediction"], case.upsampling)
    torch.testing.assert_close(
        warm["confidence"].double(), (logits / 50).softmax(1).amax(1), rtol=1e-6, atol=0
    )


def test_a_small_entropy_keeps_its_digits():
    scores = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    scores[:, 1] = 15
    p = scores.softmax(1)
    truth = -(p * scores.log_softmax(1)).sum(1)
    for size in (None, (4, 4)):
        got = seg_loss.predict(scores.float(), size=size, maps=("entropy",))["entropy"]
        expected = truth if size is None else truth.repeat(1, 2, 2)
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


# -- threads and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("maps", [("prediction",), PREDICTION_MAPS], ids=["prediction", "all"])
@pytest.mark.parametrize("size", [None, (150, 133)])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, size, maps):
    monkeypatch.setattr(threads, "max_threads", lambda: 4)
    scores = make_logits((3, 19, 60, 70))
    results = []
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        results.append(seg_loss.predict(scores, size=size, maps=maps))
    images = [seg_loss.predict(scores[k : k + 1], size=size, maps=maps) for k in range(3)]
    results.append({name: torch.cat([maps_of[name] for maps_of in images]) for name in maps})
    for other in results[1:]:
        assert all(same_bits(other[name], results[0][name]) for name in maps)


# -- sizes -----------------------------------------------------------------------------------------


def test_without_a_size_the_maps_have_the_size_of_the_scores():
    scores = make_logits((2, 5, 3, 4))
    got = seg_loss.predict(scores)["prediction"]
    assert torch.equal(got.long(), scores.argmax(1))


def test_the_default_size_of_a_deconvolution_is_what_its_crop_leaves():
    scores, upsampling = make_logits((1, 5, 4, 6)), Deconvolution(8, crop=(3, 5))
    got = seg_loss.predict(scores, upsampling=upsampling)["prediction"]
    assert got.shape == (1, 3 * 8 + 16 - 3, 5 * 8 + 16 - 5)
    small = seg_loss.predict(scores, size=(7, 9), upsampling=upsampling)["prediction"]
    assert torch.equal(small, got[:, :7, :9])


def test_sizes_may_be_numbers_of_numpy_and_torch():
    scores = make_logits((1, 5, 4, 6))
    expected = seg_loss.predict(scores, size=(8, 9))["prediction"]
    for size in (
        [8, 9],
        (np.int64(8), torch.tensor(9)),
        torch.Size([8, 9]),
        scores.new_empty(8, 9).shape,
    ):
        assert torch.equal(seg_loss.predict(scores, size=size)["prediction"], expected)


def test_no_pixels_and_no_images_give_empty_maps():
    for shape, size, expected in (
        ((0, 5, 4, 6), (8, 9), (0, 8, 9)),
        ((2, 5, 4, 6), (0, 9), (2, 0, 9)),
        ((2, 5, 0, 6), None, (2, 0, 6)),
        ((0, 5), None, (0,)),
    ):
        got = seg_loss.predict(torch.zeros(shape), size=size, maps=PREDICTION_MAPS)
        assert got["prediction"].shape == expected
        assert got["top_classes"].shape == (expected[0], 3, *expected[1:])


def test_maps_come_in_the_order_asked_for_and_once():
    names = ("entropy", "prediction", "entropy")
    assert list(seg_loss.predict(torch.zeros(1, 2, 1, 1), maps=names)) == ["entropy", "prediction"]
    assert seg_loss.predict(torch.zeros(1, 2, 1, 1), maps=()) == {}


# -- errors ----------------------------------------------------------------------------------------

SCORES_4D = torch.zeros(1, 3, 4, 5)
NAMES = "maps: expected names among prediction, confidence, entropy, top_classes, top_probabilities, got "
ERRORS = {
    "nll": (
        lambda: seg_loss.predict(SCORES_4D, maps=("prediction", "nll")),
        NAMES + "('prediction', 'nll'). The nll needs labels: use evaluate.",
    ),
    "a name": (lambda: seg_loss.predict(SCORES_4D, maps=("classes",)), NAMES + "('classes',)."),
    "a string": (lambda: seg_loss.predict(SCORES_4D, maps="prediction"), NAMES + "'prediction'."),
    "no size": (
        lambda: seg_loss.predict(SCORES_4D, upsampling=Bilinear()),
        "size: expected height and width of the maps, got None.",
    ),
    "one number": (
        lambda: seg_loss.predict(SCORES_4D, size=8),
        "size: expected height and width of the maps, integers, got 8.",
    ),
    "three numbers": (
        lambda: seg_loss.predict(SCORES_4D, size=(8, 9, 10)),
        "size: expected height and width of the maps, integers, got (8, 9, 10).",
    ),
    "a negative size": (
        lambda: seg_loss.predict(SCORES_4D, size=(8, -9)),
        "size: expected height and width of the maps, integers, got (8, -9).",
    ),
    "a fraction": (
        lambda: seg_loss.predict(SCORES_4D, size=(8.0, 9)),
        "size: expected height and width of the maps, integers, got (8.0, 9).",
    ),
    "too large": (
        lambda: seg_loss.predict(SCORES_4D, size=(40, 40), upsampling=Deconvolution(8, crop=1)),
        "size: expected at most 39 rows and 47 columns, what upsampling leaves, got 40 and 40.",
    ),
    "three axes": (
        lambda: seg_loss.predict(torch.zeros(1, 3, 4), size=(8, 9)),
        "scores: expected [N, C, h, w] with h and w of at least 1, to be upsampled, got shape (1, 3, 4).",
    ),
    "no source": (
        lambda: seg_loss.predict(torch.zeros(1, 3, 0, 4), size=(8, 9)),
        "scores: expected [N, C, h, w] with h and w of at least 1, to be upsampled, got shape (1, 3, 0, 4).",
    ),
    "an upsampling": (
        lambda: seg_loss.predict(SCORES_4D, size=(8, 9), upsampling="bilinear"),
        "upsampling: expected Bilinear(...) or Deconvolution(...), got 'bilinear'.",
    ),
    "temperature": (
        lambda: seg_loss.predict(SCORES_4D, temperature=0.0),
        "temperature: expected a positive number, 1e-30...1e30, got 0.0.",
    ),
    "integers": (
        lambda: seg_loss.predict(torch.zeros(1, 3, 4, 5, dtype=torch.int64)),
        "scores: expected float32, float16, bfloat16 or float64, got int64.",
    ),
    "one axis": (
        lambda: seg_loss.predict(torch.zeros(3)),
        "scores: expected [N, C, *spatial], got shape (3,). Add the batch and class axes.",
    ),
    "no class": (
        lambda: seg_loss.predict(torch.zeros(1, 0, 2, 2)),
        "scores: expected at least one class, got shape (1, 0, 2, 2).",
    ),
    "a list": (lambda: seg_loss.predict([[0.0]]), "scores: expected a torch.Tensor, got list."),
    "integers of NumPy": (
        lambda: seg_loss.predict(np.zeros((1, 3, 4, 5), np.int64)),
        "scores: expected float32, float16, bfloat16 or float64, got int64.",
    ),
    "text of NumPy": (
        lambda: seg_loss.predict(np.array([["a"]])),
        "scores: expected an array of float32, float16 or float64, got one of <U1.",
    ),
    "a batch of vmap": (
        lambda: torch.func.vmap(lambda x: seg_loss.predict(x)["prediction"])(SCORES_4D[None]),
        "scores: expected a tensor with elements in memory, got one inside of torch.func.vmap. Only the differentiable functions accept such tensors.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_wrong_arguments_raise(error):
    call, message = ERRORS[error]
    with pytest.raises(InvalidInput, match="^" + re.escape(message) + "$") as raised:
        call()
    assert raised.value.__context__ is None or raised.value.__suppress_context__


# -- NumPy -----------------------------------------------------------------------------------------


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _in_records(array):
    """Returns an array whose strides are no multiples of its element size."""
    records = np.zeros(array.shape, [("flag", np.uint8), ("score", array.dtype)])
    records["score"] = array
    return records["score"]


ARRAYS = {
    "contiguous": lambda array: array,
    "other order": np.asfortranarray,
    "reversed": lambda array: np.ascontiguousarray(array[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
    "read-only": _read_only,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "sliced": lambda array: np.repeat(array, 2, axis=3)[..., ::2],
    "records": _in_records,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("layout", ARRAYS)
def test_arrays_give_arrays_with_the_same_values(layout, dtype):
    array = make_logits((2, 5, 4, 6)).numpy().astype(dtype)
    expected = seg_loss.predict(torch.from_numpy(array.copy()), size=(9, 11), maps=PREDICTION_MAPS)
    got = seg_loss.predict(ARRAYS[layout](array), size=(9, 11), maps=PREDICTION_MAPS)
    for name in PREDICTION_MAPS:
        assert isinstance(got[name], np.ndarray)
        np.testing.assert_array_equal(got[name], expected[name].numpy())


# -- torch's programs ------------------------------------------------------------------------------


def predict_up(scores):
    got = seg_loss.predict(scores, size=(18, 22), maps=("prediction", "confidence"))
    return got["prediction"], got["confidence"]


def predict_twice_as_large(scores):
    size = 2 * scores.shape[2], 2 * scores.shape[3]
    return seg_loss.predict(scores, size=size)["prediction"]


def test_it_compiles_into_a_full_graph_with_the_same_bits():
    scores = make_logits((2, 5, 9, 11))
    compiled = torch.compile(predict_up, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(scores), predict_up(scores), strict=True):
        assert same_bits(got, expected)


@pytest.mark.parametrize("encoding", [[], [0], [8, 16, 3, 3]], ids=str)
def test_the_operator_passes_opcheck(encoding):
    scores = make_logits((2, 5, 3, 4))
    size = [9, 11] if encoding else [3, 4]
    arguments = scores, size, encoding, "prediction,entropy,top_classes", 2.0
    opcheck(torch.ops.seg_loss.predict, arguments)


def test_an_exported_program_keeps_its_sizes_dynamic():
    class Module(torch.nn.Module):
        def forward(self, scores):
            return predict_twice_as_large(scores)

    dynamic = {
        0: torch.export.Dim.DYNAMIC,
        2: torch.export.Dim.DYNAMIC,
        3: torch.export.Dim.DYNAMIC,
    }
    program = torch.export.export(
        Module(), (make_logits((2, 5, 9, 11)),), dynamic_shapes={"scores": dynamic}
    ).module()
    for shape in ((2, 5, 9, 11), (3, 5, 6, 13)):
        scores = make_logits(shape)
        assert torch.equal(program(scores), predict_twice_as_large(scores))


@pytest.mark.parametrize("mode", [lambda: torch.device("meta"), FakeTensorMode])
def test_tensors_without_elements_give_maps_without_elements(mode):
    with mode():
        got = seg_loss.predict(torch.zeros(2, 5, 4, 6), size=(9, 11), maps=PREDICTION_MAPS)
    assert {name: (values.shape, values.dtype) for name, values in got.items()} == {
        "prediction": ((2, 9, 11), torch.uint8),
        "confidence": ((2, 9, 11), torch.float32),
        "entropy": ((2, 9, 11), torch.float32),
        "top_classes": ((2, 3, 9, 11), torch.uint8),
        "top_probabilities": ((2, 3, 9, 11), torch.float32),
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_maps_have_no_gradient(dtype):
    scores = make_logits((1, 3, 4, 5), dtype).requires_grad_()
    got = seg_loss.predict(scores, size=(8, 9), maps=PREDICTION_MAPS)
    assert not any(values.requires_grad for values in got.values())


def test_a_negated_view_is_read_as_negated():
    z = torch.complex(torch.zeros(1, 3, 4, 5), make_logits((1, 3, 4, 5)))
    scores = z.conj().imag
    assert scores.is_neg()
    got = seg_loss.predict(scores)["prediction"]
    assert torch.equal(got.long(), scores.clone().argmax(1))
