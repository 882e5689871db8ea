"""The GPU kernels compile ahead of time, without a device, and spill no registers."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from triton.runtime import JITFunction

from benchmarks import gpu_code
from benchmarks.gpu_code import CHANNELS_LAST, PLANES, Logits, Scores
from seg_loss import Bilinear
from seg_loss._inputs import loss_dtype
from seg_loss.constants import PREDICTION_MAPS
from seg_loss.gpu import (
    backend,
    cross_entropy,
    evaluate,
    labels,
    many_classes,
    predict,
    softmax,
    tiling,
)
from seg_loss.gpu import upsampled as upsampled_kernels
from seg_loss.gpu.arguments import TRITON
from tests.support.cases import ALL_LABEL_DTYPES, FLOATS, NORMALIZATIONS

if not (gpu_code.TOOLS / "cuobjdump").exists():
    pytest.skip("Triton came without NVIDIA's tools", allow_module_level=True)

FLOAT32, BFLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float64
SMOOTHED = {"label_smoothing": 0.1, "temperature": 2.0}


def cases_for(cases_of, *precisions, **options):
    """Returns each case for each architecture, as parameters with readable ids."""
    return [
        pytest.param(case, architecture, id=f"{case.name}, sm_{architecture}")
        for dtype, architectures in precisions
        for case in cases_of(dtype, **options)
        for architecture in architectures
    ]


# The rows and the numbers of classes of data sets; the rows on other devices; and two selections of
# the rows, for kernels that differ from those of the loss.
IN_FULL = (FLOAT32, (80, 90)), (BFLOAT16, (80, 90))
ON_OTHERS = (FLOAT32, (86, 89, 120)), (BFLOAT16, (86,)), (FLOAT64, (80,))
MOST = (FLOAT32, (80, 90)), (BFLOAT16, (90,))
SOME = (FLOAT32, (90,)), (FLOAT64, (80,))
ROWS = {"other_classes": ()}

logits, scores = gpu_code.logits_of_each_row, gpu_code.scores_of_each_row
LOGITS = [*cases_for(logits, *IN_FULL), *cases_for(logits, (FLOAT64, (90,)), **ROWS)]
LOGITS_ON_OTHERS = cases_for(logits, *ON_OTHERS, **ROWS)
MOST_LOGITS, SOME_LOGITS = cases_for(logits, *MOST, **ROWS), cases_for(logits, *SOME, **ROWS)
SCORES = [
    *cases_for(scores, (FLOAT32, (80, 90))),
    *cases_for(scores, (BFLOAT16, (90,)), (FLOAT64, (90,)), **ROWS),
]
SCORES_ON_OTHERS = cases_for(scores, (FLOAT32, (86, 89, 120)), (FLOAT64, (80,)), **ROWS)
MOST_SCORES = cases_for(scores, *MOST, **ROWS)


def those_of_planes(parameters):
    return [parameter for parameter in parameters if parameter.values[0].layout == PLANES]


def compile_without_spills(launch, architecture):
    """Returns the code of a launch, after checks that hold for all kernels."""
    code = gpu_code.compile_launch(launch, architecture)
    assert code.spilled == 0, launch.name
    registers = -(-code.registers // 8) * 8  # as they are allocated
    assert registers * 32 * launch.num_warps <= 1 << 16, "a program does not fit a multiprocessor"
    return code


def compile_all_without_spills(architecture, launch_call):
    with gpu_code.record_launches(architecture) as launches:
        launch_call()
    assert launches
    for launch in launches:
        compile_without_spills(launch, architecture)


def skip_unless_known(architecture):
    if not gpu_code.is_known(architecture):
        pytest.skip(f"this Triton does not know sm_{architecture}")


# -- every row of every table ----------------------------------------------------------------------


def launch_of_loss(case, architecture):
    """Returns the launch of the pass over the logits, and checks all launches of the loss."""
    with gpu_code.record_launches(architecture) as launches:
        gpu_code.launch_loss(case)
    check, tiles, total = launches
    assert (check.name, total.name) == ("check_labels_kernel", "sum_partials_kernel")
    row = case.tile_shape
    if row in (tiling.FLAT, tiling.DOUBLE_FLAT):
        assert tiles.name == "channels_last_kernel"
    else:
        is_many = case.num_classes > tiling.MAX_CLASSES_IN_REGISTERS
        assert tiles.name == ("many_classes_kernel" if is_many else "cross_entropy_kernel")
        assert tiles.constants["BLOCK_C"] == row.classes
    assert (tiles.constants["BLOCK_P"], tiles.num_warps) == (row.pixels, row.num_warps)
    return tiles


@pytest.mark.parametrize(("case", "architecture"), LOGITS)
def test_the_loss_of_each_row_compiles_without_spills(case, architecture):
    compile_without_spills(launch_of_loss(case, architecture), architecture)


@pytest.mark.parametrize(("case", "architecture"), LOGITS_ON_OTHERS)
def test_the_loss_of_each_row_compiles_without_spills_on_other_devices(case, architecture):
    skip_unless_known(architecture)
    compile_without_spills(launch_of_loss(case, architecture), architecture)


@pytest.mark.parametrize(("case", "architecture"), MOST_LOGITS)
def test_the_loss_with_all_options_compiles_without_spills(case, architecture):
    weights = gpu_code.weights_of(case.num_classes, (2, 128, 256))
    compile_all_without_spills(
        architecture, lambda: gpu_code.launch_loss(case, **weights, **SMOOTHED)
    )


@pytest.mark.parametrize(("case", "architecture"), SOME_LOGITS)
def test_the_evaluation_of_each_row_compiles_without_spills(case, architecture):
    compile_all_without_spills(
        architecture, lambda: gpu_code.launch_evaluation(case.tensor(), all_maps=False)
    )


@pytest.mark.parametrize(("case", "architecture"), MOST_LOGITS)
def test_the_evaluation_with_all_maps_compiles_without_spills(case, architecture):
    compile_all_without_spills(architecture, lambda: gpu_code.launch_evaluation(case.tensor()))


@pytest.mark.parametrize(("case", "architecture"), SOME_LOGITS)
def test_the_softmax_of_each_row_compiles_without_spills(case, architecture):
    logits = case.tensor()
    compile_all_without_spills(architecture, lambda: backend.softmax(logits, 1, 1.0))


@pytest.mark.parametrize(("case", "architecture"), SOME_LOGITS)
def test_the_softmax_gradient_of_each_row_compiles_without_spills(case, architecture):
    logits = case.tensor()
    weight = torch.empty_like(logits[:, 0], dtype=loss_dtype(logits))
    arguments = torch.empty_like(logits), logits, weight, 1, 1.0
    compile_all_without_spills(architecture, lambda: backend.softmax_gradient(*arguments))


def launch_of_upsampled_loss(case, architecture):
    """Returns the launch of the pass over the scores, and checks all launches of the loss."""
    with gpu_code.record_launches(architecture) as launches:
        gpu_code.launch_upsampled_loss(case)
    row = case.tile_shape
    names = ["check_labels_kernel"]
    if row.chunk is not None:
        names.append("many_classes_kernel")
    if row.chunk is None or case.with_gradient:
        names.append("upsampled_cross_entropy_kernel")
    names.append("finish_kernel" if case.with_gradient else "sum_partials_kernel")
    assert [launch.name for launch in launches] == names
    tiles = launches[-2]
    if tiles.name == "upsampled_cross_entropy_kernel":
        if TRITON >= (3, 7) and row.chunk is None:
            row = replace(row, num_warps=1)
        constants = tiles.constants
        assert (constants["BLOCK_C"], constants["INTERVALS"]) == (row.classes, row.intervals)
        assert tiles.num_warps == row.num_warps
    return tiles


@pytest.mark.parametrize(("case", "architecture"), SCORES)
def test_the_upsampled_loss_of_each_row_compiles_without_spills(case, architecture):
    compile_without_spills(launch_of_upsampled_loss(case, architecture), architecture)


@pytest.mark.parametrize("num_classes", [2, 12, 19, 21, 40, 80, 150, 256])
def test_no_warp_waits_at_each_pixel(num_classes):
    case = Scores(num_classes, FLOAT32)
    code = gpu_code.compile_launch(launch_of_upsampled_loss(case, 90), 90)
    assert gpu_code.pixel_loop_of(case, code).barriers == 0


@pytest.mark.parametrize(("case", "architecture"), SCORES_ON_OTHERS)
def test_the_upsampled_loss_compiles_without_spills_on_other_devices(case, architecture):
    skip_unless_known(architecture)
    compile_without_spills(launch_of_upsampled_loss(case, architecture), architecture)


@pytest.mark.parametrize(("case", "architecture"), MOST_SCORES)
def test_the_upsampled_loss_with_all_options_compiles_without_spills(case, architecture):
    weights = gpu_code.weights_of(case.num_classes, (2, *case.size))
    compile_all_without_spills(
        architecture, lambda: gpu_code.launch_upsampled_loss(case, **weights, **SMOOTHED)
    )


@pytest.mark.parametrize(("case", "architecture"), those_of_planes(SOME_LOGITS))
def test_the_evaluation_of_upsampled_scores_compiles_without_spills(case, architecture):
    scores = Scores(case.num_classes, case.dtype)
    compile_all_without_spills(
        architecture,
        lambda: gpu_code.launch_evaluation(scores.tensor(), scores.size, all_maps=False),
    )


@pytest.mark.parametrize(("case", "architecture"), those_of_planes(MOST_LOGITS))
def test_all_maps_of_upsampled_scores_compile_without_spills(case, architecture):
    scores = Scores(case.num_classes, case.dtype)
    compile_all_without_spills(
        architecture, lambda: gpu_code.launch_evaluation(scores.tensor(), scores.size)
    )


PREDICTED = [*those_of_planes(cases_for(logits, (FLOAT32, (90,)), **ROWS)), *SOME_LOGITS]
EACH_MAPS = pytest.mark.parametrize(
    "maps", [PREDICTION_MAPS, ("prediction",)], ids=["all maps", "prediction"]
)


@EACH_MAPS
@pytest.mark.parametrize(("case", "architecture"), PREDICTED)
def test_predictions_compile_without_spills(case, architecture, maps):
    compile_all_without_spills(
        architecture, lambda: gpu_code.launch_prediction(case.tensor(), maps=maps)
    )


@EACH_MAPS
@pytest.mark.parametrize(("case", "architecture"), those_of_planes(PREDICTED))
def test_predictions_of_upsampled_scores_compile_without_spills(case, architecture, maps):
    scores = Scores(case.num_classes, case.dtype)
    compile_all_without_spills(
        architecture, lambda: gpu_code.launch_prediction(scores.tensor(), scores.size, maps)
    )


@pytest.mark.skipif(TRITON < (3, 9), reason="some rows are split further")
def test_every_row_of_every_table_has_a_case():
    def rows_in(kind):
        for value in vars(tiling).values():
            yield from (
                row for row in (value if isinstance(value, tuple) else (value,))
                if isinstance(row, kind)
            )  # fmt: skip

    rows = {*rows_in(tiling.TileShape), *rows_in(tiling.UpsampledTileShape)}
    assert len(rows) > 20
    for parameters in ((LOGITS, SCORES), (LOGITS_ON_OTHERS, SCORES_ON_OTHERS)):
        cases = [parameter.values[0] for row in parameters for parameter in row]
        # The rows of `FLAT` for other precisions and for smoothing replace it in other tests.
        of_other_tests = {tiling.DOUBLE_FLAT, tiling.SMOOTHED_FLAT}
        assert rows - of_other_tests <= {case.tile_shape for case in cases}
    assert tiling.DOUBLE_FLAT in {parameter.values[0].tile_shape for parameter in LOGITS}
    assert tiling.FLAT in {parameter.values[0].tile_shape for parameter in MOST_LOGITS}, "smoothed"


# -- instructions and memory accesses --------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "dtype", "limit"), [(19, FLOAT32, 18), (150, BFLOAT16, 20)]
)
@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
def test_loss_and_gradient_take_few_instructions(architecture, num_classes, dtype, limit):
    case = Logits(num_classes, PLANES, dtype)
    code = gpu_code.compile_launch(launch_of_loss(case, architecture), architecture)
    assert code.instructions / case.logits_per_thread <= limit


@pytest.mark.parametrize(
    ("num_classes", "with_gradient", "limit"),
    [(19, True, 24), (21, True, 18), (150, True, 18), (19, False, 13), (150, False, 14)],
)
@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
def test_the_upsampled_loop_takes_few_instructions(architecture, num_classes, with_gradient, limit):
    case = Scores(num_classes, FLOAT32, with_gradient)
    code = gpu_code.compile_launch(launch_of_upsampled_loss(case, architecture), architecture)
    assert gpu_code.pixel_loop_of(case, code).common / case.classes_per_thread <= limit


@pytest.mark.parametrize("num_classes", [1, 2, 3, 19, 21, 32, 59, 64, 150, 160, 256])
def test_the_logits_are_loaded_and_the_gradient_is_stored_once(num_classes):
    case = Logits(num_classes, PLANES, FLOAT32)
    code = gpu_code.compile_launch(launch_of_loss(case, 90), 90)
    row = case.tile_shape
    per_thread = row.classes * row.pixels // (32 * row.num_warps)
    width = 4 * min(4, per_thread)  # bytes of an access
    number = row.num_blocks(num_classes) * per_thread * 4 // width
    others = width == 8  # the divisor and the partial sum
    assert (code.loads[width], code.stores[width]) == (number + others, number + others)


def test_channels_last_is_loaded_in_vectors():
    case = Logits(19, CHANNELS_LAST, FLOAT32)
    code = gpu_code.compile_launch(launch_of_loss(case, 90), 90)
    row = case.tile_shape
    assert code.loads[16] >= 19 * row.pixels // (32 * row.num_warps) // 4


# -- the tables ------------------------------------------------------------------------------------


def is_power_of_two(size):
    return size > 0 and size & (size - 1) == 0


@pytest.mark.parametrize("name", ["PLANES", "HALF_PLANES", "CHANNELS_LAST"])
def test_a_table_for_logits_is_sorted_and_has_powers_of_two(name):
    table = getattr(tiling, name)
    most = [row.max_classes for row in table]
    assert most == sorted(set(most))
    assert most[-1] == tiling.MAX_CLASSES_IN_REGISTERS
    for row in table:
        assert row.reason
        assert all(map(is_power_of_two, (row.classes, row.pixels, row.num_warps)))


@pytest.mark.parametrize("name", ["UPSAMPLED", "UPSAMPLED_FORWARD", "DOUBLE_UPSAMPLED"])
def test_a_table_for_scores_is_sorted_and_has_powers_of_two(name):
    table = getattr(tiling, name)
    most = [row.max_classes for row in table]
    assert most == sorted(set(most))
    for row in table:
        assert row.reason
        assert all(map(is_power_of_two, (row.classes, row.num_warps)))
        assert row.classes <= 32, "the lanes of a pixel belong to one warp"
        assert row.chunk is None or row.chunk % row.classes == 0


def test_smaller_tiles_have_more_warps_and_then_fewer_pixels():
    row = tiling.TileShape(1024, 64, 32, 4, "128 registers with 8 warps")
    assert row.within(256, 1024, itemsize=4) is row
    assert row.within(128, 1024, itemsize=4) == replace(row, num_warps=8, max_registers=255)
    assert row.within(64, 1024, itemsize=4) == replace(
        row, num_warps=8, pixels=16, max_registers=255
    )
    assert row.within(64, 1024, itemsize=8) == replace(
        row, num_warps=8, pixels=8, max_registers=255
    )
    assert row.within(64, 500, itemsize=2) == replace(row, num_warps=8, max_registers=255)


@pytest.mark.parametrize("num_classes", [19, 150, 300])
def test_interval_rows_are_split_among_enough_programs(num_classes):
    row = tiling.upsampled_tile_shape(num_classes, is_double=False)
    by_batch = [row.split(18 * num_images, 128, 8) for num_images in (0, 1, 4, 64)]
    for block_rows, splits in by_batch:
        assert 1 <= block_rows <= tiling.MAX_BLOCK_ROWS
        assert 1 <= splits <= 4, "a program takes at least two rows of pixels"
        assert block_rows == 1 or splits == 1
    assert [rows for rows, _ in by_batch[1:]] == sorted(rows for rows, _ in by_batch[1:])
    assert row.split(1, 1, 1) == (1, 1)
    assert row.split(1, 5, 64)[1] > 1, "few sources, many pixels"


def test_the_counters_of_a_label_check_do_not_overlap():
    # `sum_partials_kernel` counts its programs between the counts and the sums of weights.
    assert labels._INVALID_WEIGHTS.value + 1 < cross_entropy.TICKET.value
    assert cross_entropy.TICKET.value < labels.num_counters(0)
    assert labels.MAX_PROGRAMS >= tiling.MAX_CHECK_PROGRAMS


def test_the_label_report_has_room_for_every_field():
    fields = (
        labels.IS_WRITTEN, labels.INVALID_LABELS, labels.INVALID_PIXEL_WEIGHTS,
        labels.INVALID_CLASS_WEIGHTS,
    )  # fmt: skip
    values = [field.value for field in fields]
    assert values == [0, 1, 4, 7]  # three numbers each, behind the first
    assert values[-1] + 3 <= labels.REPORT_SIZE.value


# -- every path: code that the interpreter runs as Python may still not compile ------------------


def empty(*shape, dtype=FLOAT32):
    return torch.empty(shape, dtype=dtype, device="meta")


def loss(num_classes=5, dtype=FLOAT32, *, x=None, **options):
    """Launches a loss with its gradient."""
    x = empty(2, num_classes, 16, 24, dtype=dtype) if x is None else x
    inputs = gpu_code.inputs_of(x, x.shape[2:], **options)
    backend.cross_entropy(inputs, torch.empty_like(x))


def backward(num_classes=5, *, skip_if_unit_grad, x=None, **options):
    x = empty(2, num_classes, 16, 24) if x is None else x
    inputs = gpu_code.inputs_of(x, (16, 24), torch.int64, **options)
    backend.cross_entropy_gradient(
        inputs,
        empty(2, dtype=torch.float64),
        empty(),
        torch.empty_like(x),
        skip_if_unit_grad=skip_if_unit_grad,
    )


def terms(check_labels, num_classes=5):
    inputs = gpu_code.inputs_of(
        empty(2, num_classes, 16, 24), (16, 24), torch.int32, check_labels=check_labels
    )
    backend.pixel_terms(inputs, empty(2, 16, 24))


def weights(num_classes):
    return gpu_code.weights_of(num_classes, (2, 16, 24))


def evaluation(num_classes, dtype=FLOAT32, **options):
    gpu_code.launch_evaluation(empty(2, num_classes, 16, 24, dtype=dtype), **options)


def upsampled(
    num_classes=5,
    dtype=FLOAT32,
    *,
    sources=(3, 5),
    with_gradient=True,
    upsampling=gpu_code.BILINEAR,
    **options,
):
    case = Scores(num_classes, dtype, with_gradient, upsampling, (16, 24), sources)
    gpu_code.launch_upsampled_loss(case, **options)


def upsampled_evaluation(num_classes, dtype=FLOAT32, **options):
    gpu_code.launch_evaluation(empty(2, num_classes, 3, 5, dtype=dtype), (16, 24), **options)


def scale_in_place(dtype):
    gradient = empty(2, 5, 3, 5, dtype=dtype)
    backend.scale_gradient(gradient, empty(dtype=dtype), gradient)


def channels_last(num_classes):
    return empty(2, num_classes, 16, 24).to(memory_format=torch.channels_last)


PATHS = {
    **{f"upsampled, {dtype}": lambda dtype=dtype: upsampled(dtype=dtype) for dtype in FLOATS},
    **{
        f"upsampled, {dtype} labels": lambda dtype=dtype: upsampled(label_dtype=dtype)
        for dtype in ALL_LABEL_DTYPES
    },
    **{
        f"upsampled, all options, {number} classes": lambda number=number: upsampled(
            number, normalization="weight", **weights(number), **SMOOTHED
        )
        for number in (1, 21, 150, 300)
    },
    "upsampled, equal size": lambda: upsampled(sources=(16, 24)),
    "upsampled, defer": lambda: upsampled(check_labels="defer"),
    "upsampled, raise": lambda: upsampled(check_labels="raise"),
    "upsampled, loss alone": lambda: upsampled(with_gradient=False),
    "upsampled, loss alone, not in registers": lambda: upsampled(5000, with_gradient=False),
    "upsampled, not in registers": lambda: upsampled(5000),
    "upsampled, float64, 300 classes": lambda: upsampled(300, torch.float64),
    "upsampled, aligned corners": lambda: upsampled(upsampling=Bilinear(align_corners=True)),
    "upsampled, max_nll": lambda: upsampled(max_nll=10.0),
    "upsampled, ignored classes": lambda: upsampled(ignore_index=(0, 255)),
    **{
        f"scale gradient to {dtype}": lambda dtype=dtype: backend.scale_gradient(
            empty(2, 5, 3, 5), empty(), empty(2, 5, 3, 5, dtype=dtype)
        )
        for dtype in (FLOAT32, BFLOAT16)
    },
    **{
        f"scale gradient in place, {dtype}": lambda dtype=dtype: scale_in_place(dtype)
        for dtype in (FLOAT32, torch.float64)
    },
    "evaluate, upsampled": lambda: upsampled_evaluation(5),
    "evaluate, upsampled, all options": lambda: upsampled_evaluation(5, **weights(5), **SMOOTHED),
    "evaluate, upsampled, all options, not in registers": lambda: upsampled_evaluation(
        5000, **weights(5000), **SMOOTHED
    ),
    "evaluate, upsampled, bfloat16": lambda: upsampled_evaluation(5, torch.bfloat16),
    "evaluate, upsampled, not in registers": lambda: upsampled_evaluation(5000),
    **{f"{dtype}": lambda dtype=dtype: loss(dtype=dtype) for dtype in FLOATS},
    **{
        f"{dtype} labels": lambda dtype=dtype: loss(label_dtype=dtype) for dtype in ALL_LABEL_DTYPES
    },
    **{
        f"normalization {name}, weighted": lambda name=name: loss(normalization=name, **weights(5))
        for name in NORMALIZATIONS
    },
    "torch mean": lambda: loss(normalization="weight", has_divisor_floor=False),
    "torch mean, weighted": lambda: loss(
        normalization="weight", has_divisor_floor=False, **weights(5)
    ),
    "several ignored": lambda: loss(label_dtype=torch.int64, ignore_index=(255, -1, 1, 1 << 40)),
    "none ignored": lambda: loss(ignore_index=()),
    "two axes": lambda: loss(x=empty(2, 5, 18, 30)[:, :, 1:17, 3:27]),
    "three axes": lambda: loss(x=empty(2, 5, 9, 18, 30)[:, :, :8, 1:17, 3:27]),
    "four axes": lambda: loss(x=empty(2, 5, 4, 9, 18, 30)[:, :, :3, :8, 1:17, 3:27]),
    "rows": lambda: loss(x=empty(2, 5)),
    "odd planes": lambda: loss(x=empty(2, 21, 15, 17)),
    "large images": lambda: loss(x=empty(2, 21, 512, 512)),
    "more than 2^31 elements": lambda: loss(x=empty(2, 21, 12000, 12000)),
    "all options, 1 class": lambda: loss(1, **weights(1), **SMOOTHED),
    "all options, 150 classes": lambda: loss(150, **weights(150), **SMOOTHED),
    "all options, not in registers": lambda: loss(5000, **weights(5000), **SMOOTHED),
    "smoothing without weights": lambda: loss(label_smoothing=0.1),
    "raise": lambda: loss(check_labels="raise"),
    "defer": lambda: loss(check_labels="defer", label_dtype=torch.int64),
    "backward": lambda: backward(skip_if_unit_grad=False),
    "backward unless grad_output is 1": lambda: backward(skip_if_unit_grad=True),
    "backward unless grad_output is 1, not in registers": lambda: backward(
        5000, skip_if_unit_grad=True
    ),
    "backward, channels_last": lambda: backward(skip_if_unit_grad=False, x=channels_last(5)),
    "backward unless grad_output is 1, channels_last": lambda: backward(
        skip_if_unit_grad=True, x=channels_last(5)
    ),
    "backward, all options": lambda: backward(skip_if_unit_grad=True, **weights(5), **SMOOTHED),
    "loss alone": lambda: backend.cross_entropy(
        gpu_code.inputs_of(empty(2, 5, 16, 24), (16, 24)), None
    ),
    "max_nll": lambda: loss(max_nll=10.0),
    "channels_last, all options": lambda: loss(
        x=channels_last(5), max_nll=10.0, **weights(5), **SMOOTHED
    ),
    "channels_last, partial tile": lambda: loss(x=channels_last(5)[:, :, :15, :]),
    "unaligned": lambda: loss(x=empty(2, 5, 16, 25)[..., 1:]),
    "terms": lambda: terms("ignore"),
    "terms, defer": lambda: terms("defer"),
    "terms, not in registers": lambda: terms("ignore", 5000),
    "evaluate, 2 classes": lambda: evaluation(2),
    "evaluate, 1 class": lambda: evaluation(1),
    "evaluate, all options": lambda: evaluation(5, **weights(5), **SMOOTHED),
    "evaluate, all options, not in registers": lambda: evaluation(
        5000, **weights(5000), **SMOOTHED
    ),
    "evaluate, raise": lambda: evaluation(5, check_labels="raise"),
    "evaluate, odd planes": lambda: gpu_code.launch_evaluation(empty(2, 40, 15, 17)),
    "evaluate, float64": lambda: evaluation(5, torch.float64),
    "evaluate, not in registers": lambda: evaluation(5000),
    **{
        f"predict {', '.join(maps)}, {number} classes{', upsampled' if size else ''}, {dtype}": (
            lambda maps=maps, number=number, dtype=dtype, size=size: gpu_code.launch_prediction(
                empty(2, number, 3, 5, dtype=dtype), size, maps
            )
        )
        for maps, number, dtype in (
            (("prediction",), 5000, FLOAT32),
            (("prediction",), 5, BFLOAT16),
            (PREDICTION_MAPS, 5000, FLOAT32),
            (PREDICTION_MAPS, 2, FLOAT64),
            (("prediction", "confidence"), 19, FLOAT32),
        )
        for size in (None, (16, 24))
    },
    "predict, channels_last": lambda: gpu_code.launch_prediction(channels_last(19)),
    "softmax, not in registers": lambda: backend.softmax(empty(2, 5000, 4, 4), 1, 2.0),
    "softmax, float64": lambda: backend.softmax(empty(5, 4, dtype=torch.float64), 1, 2.0),
    "softmax gradient": lambda: backend.softmax_gradient(
        empty(2, 5, 4, 4), empty(2, 5, 4, 4), None, 1, 2.0
    ),
    "softmax gradient, not in registers": lambda: backend.softmax_gradient(
        empty(2, 5000, 4, 4), empty(2, 5000, 4, 4), empty(2, 4, 4), 1, 2.0
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_compiles_without_spills(path):
    with gpu_code.record_launches() as launches:
        PATHS[path]()
    names = [launch.name for launch in launches]
    if path.startswith("evaluate"):
        kernel = "many_classes_kernel" if "not in registers" in path else "evaluate_kernel"
        assert names == [
            "check_labels_kernel", kernel, "count_kernel", "nll_kernel", "sum_kernel",
        ]  # fmt: skip
    assert len(names) == len(set(names)) > 0, "no kernel is launched twice"
    for launch in launches:
        compile_without_spills(launch, 90)


def test_the_paths_launch_every_kernel():
    kernels = {
        name
        for module in (
            cross_entropy,
            evaluate,
            labels,
            many_classes,
            predict,
            softmax,
            upsampled_kernels,
        )
        for name in vars(module)
        if name.endswith("_kernel") and isinstance(getattr(module, name), JITFunction)
    }
    kernels -= {"wait_for_previous_kernel", "let_next_kernel_start"}  # device functions
    with gpu_code.record_launches() as launches:
        for launch_path in PATHS.values():
            launch_path()
        for case in (Scores(300, FLOAT32), Logits(19, CHANNELS_LAST, FLOAT32)):
            (gpu_code.launch_upsampled_loss if isinstance(case, Scores) else gpu_code.launch_loss)(
                case
            )
    assert {launch.name for launch in launches} == kernels
