"""The GPU kernels compile ahead of time, without a device, and spill no registers."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from benchmarks import gpu_code
from seg_loss.gpu import backend, labels, tiling
from tests.support.cases import FLOATS, LABEL_DTYPES, NORMALIZATIONS

if not (gpu_code.TOOLS / "cuobjdump").exists():
    pytest.skip("Triton came without NVIDIA's tools", allow_module_level=True)

# bfloat16 never needs more registers than float32, so one architecture is enough.
LOGITS = [
    (case, architecture)
    for dtype, architectures in ((torch.float32, (80, 90)), (torch.bfloat16, (90,)))
    for case in gpu_code.logits_for_each_row(dtype)
    for architecture in architectures
]


def name_of(value):
    return getattr(value, "name", str(value))


@pytest.mark.parametrize(("case", "architecture"), LOGITS, ids=name_of)
def test_each_row_for_logits_compiles_without_spills(case, architecture):
    launches = gpu_code.launches_of_loss(case)
    assert [launch.name for launch in launches] == ["check_labels_kernel", "cross_entropy_kernel"]
    code = gpu_code.compile_launch(launches[-1], architecture)
    assert code.spilled == 0
    threads = 32 * case.tile_shape.num_warps
    assert code.registers * threads <= 1 << 16, "a program does not fit a multiprocessor"


SCORES = [
    (case, architecture)
    for dtype, architectures in ((torch.float32, (80, 90)), (torch.bfloat16, (90,)))
    for case in gpu_code.scores_for_each_row(dtype)
    for architecture in architectures
]


@pytest.mark.parametrize(("case", "architecture"), SCORES, ids=name_of)
def test_each_row_for_upsampled_scores_compiles_without_spills(case, architecture):
    launches = gpu_code.launches_of_upsampled_loss(case)
    has_planes = case.tile_shape.chunk is not None
    assert [launch.name for launch in launches] == [
        "check_labels_kernel", *["cross_entropy_kernel"] * has_planes,
        "upsampled_cross_entropy_kernel",
    ]  # fmt: skip
    code = gpu_code.compile_launch(launches[-1], architecture)
    assert code.spilled == 0
    assert code.registers * 32 * case.tile_shape.num_warps <= 1 << 16
    # Warps that share a pixel would wait for each other at every pixel.
    assert code.barriers[gpu_code.pixel_loop_of(code)] == 0


@pytest.mark.parametrize("num_classes", [19, 150])
@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
def test_upsampled_loss_and_evaluation_compile_without_spills(architecture, num_classes):
    case = gpu_code.Scores(num_classes, torch.float32)
    launches = gpu_code.launches_of_upsampled_loss(case, with_gradient=False)
    with gpu_code.record_launches() as more:
        gpu_code.launch_evaluation(case.tensor(), case.size)
    assert [launch.name for launch in launches] == ["check_labels_kernel", "cross_entropy_kernel"]
    for launch in (*launches, *more):
        assert gpu_code.compile_launch(launch, architecture).spilled == 0, launch.name


@pytest.mark.parametrize("num_classes", [1, 2, 3, 19, 21, 32, 59, 64, 150, 160, 256])
def test_the_logits_are_loaded_and_the_gradient_is_stored_once(num_classes):
    # In class planes every access is a vector of 4 pixels; a tile needs this number of them.
    case = gpu_code.Logits(num_classes, False, torch.float32)
    code = gpu_code.compile_launch(gpu_code.launches_of_loss(case)[-1], 90)
    shape = case.tile_shape
    per_block = shape.classes * shape.pixels // (32 * shape.num_warps) // 4
    assert code.loads[16] == code.stores[16] == shape.num_blocks(num_classes) * per_block


@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
def test_all_options_for_19_classes_compile_without_spills(architecture):
    launches = gpu_code.launches_of_loss(
        gpu_code.Logits(19, False, torch.float32),
        class_weight=torch.empty(19, device="meta"),
        pixel_weight=torch.empty(2, 128, 256, device="meta"),
        label_smoothing=0.1,
        temperature=2.0,
    )
    for launch in launches:
        assert gpu_code.compile_launch(launch, architecture).spilled == 0, launch.name


@pytest.mark.parametrize("num_classes", [19, 150])
@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
def test_softmax_and_evaluation_compile_without_spills(architecture, num_classes):
    for launch in gpu_code.launches_of_others(gpu_code.Logits(num_classes, False, torch.float32)):
        assert gpu_code.compile_launch(launch, architecture).spilled == 0, launch.name


def test_the_tables_are_sorted_and_have_powers_of_two():
    for table in (tiling.PLANES, tiling.CHANNELS_LAST):
        assert [row.max_classes for row in table] == sorted({row.max_classes for row in table})
        assert any(row.max_classes == tiling.MAX_CLASSES_IN_REGISTERS for row in table)
        for row in table:
            assert row.reason
            for size in (row.classes, row.pixels, row.num_warps):
                assert size & (size - 1) == 0
    most = [row.max_classes for row in tiling.UPSAMPLED]
    assert most == sorted(set(most))
    for row in tiling.UPSAMPLED:
        assert row.reason
        assert row.classes <= 32, "the lanes of a pixel belong to one warp"
        assert row.row_groups >= 2, "sources must be fewer than threads"
        assert row.row_groups * row.intervals * row.classes == 32 * row.num_warps


def test_row_blocks_cover_an_image_and_grow_with_the_batch():
    row = tiling.upsampled_tile_shape(19, is_double=False)
    sizes = [row.block_rows(18 * num_images, 128) for num_images in (0, 1, 4, 64)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert sizes[-1] <= tiling.MAX_BLOCK_ROWS
    assert row.block_rows(1, 0) == 1


def test_the_label_report_has_room_for_every_field():
    assert labels.CALL_ID.value == labels.NUM_COUNTS.value
    assert labels.CALL_ID.value + 1 == labels.REPORT_SIZE


# -- every path: code that the interpreter runs as Python may still not compile ------------------


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


OTHER_OPTIONS = {"label_smoothing": 0.1, "temperature": 2.0}


def loss(num_classes=5, dtype=torch.float32, *, x=None, **options):
    """Launches a loss with its gradient."""
    x = empty(2, num_classes, 16, 24, dtype=dtype) if x is None else x
    inputs = gpu_code.inputs_of(x, x.shape[2:], **options)
    backend.cross_entropy(inputs, torch.empty_like(x))


def backward(num_classes=5, *, skip_if_unit_grad):
    x = empty(2, num_classes, 16, 24)
    inputs = gpu_code.inputs_of(x, (16, 24), torch.int64)
    backend.cross_entropy_gradient(
        inputs,
        empty(dtype=torch.float64),
        empty(),
        empty(*x.shape),
        skip_if_unit_grad=skip_if_unit_grad,
    )


def terms(check_labels):
    inputs = gpu_code.inputs_of(
        empty(2, 5, 16, 24), (16, 24), torch.int32, check_labels=check_labels
    )
    backend.pixel_terms(inputs, empty(2, 16, 24))


def weights(num_classes):
    return {"class_weight": empty(num_classes), "pixel_weight": empty(2, 16, 24)}


def evaluation(num_classes, dtype=torch.float32, **options):
    gpu_code.launch_evaluation(empty(2, num_classes, 16, 24, dtype=dtype), **options)


def upsampled(num_classes=5, dtype=torch.float32, *, sources=(3, 5), **options):
    case = gpu_code.Scores(num_classes, dtype, size=(16, 24), sources=sources)
    gpu_code.launch_upsampled_loss(case, **options)


def upsampled_evaluation(num_classes, dtype=torch.float32):
    case = gpu_code.Scores(num_classes, dtype, size=(16, 24), sources=(3, 5))
    gpu_code.launch_evaluation(case.tensor(), case.size)


PATHS = {
    **{f"upsampled, {dtype}": lambda dtype=dtype: upsampled(dtype=dtype) for dtype in FLOATS},
    **{
        f"upsampled, {dtype} labels": lambda dtype=dtype: upsampled(label_dtype=dtype)
        for dtype in LABEL_DTYPES
    },
    **{
        f"upsampled, all options, {number} classes": lambda number=number: upsampled(
            number, normalization="weight", **weights(number), **OTHER_OPTIONS
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
    "evaluate, upsampled": lambda: upsampled_evaluation(5),
    "evaluate, upsampled, bfloat16": lambda: upsampled_evaluation(5, torch.bfloat16),
    "evaluate, upsampled, not in registers": lambda: upsampled_evaluation(5000),
    **{f"{dtype}": lambda dtype=dtype: loss(dtype=dtype) for dtype in FLOATS},
    **{f"{dtype} labels": lambda dtype=dtype: loss(label_dtype=dtype) for dtype in LABEL_DTYPES},
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
    "all options, 1 class": lambda: loss(1, **weights(1), **OTHER_OPTIONS),
    "all options, 150 classes": lambda: loss(150, **weights(150), **OTHER_OPTIONS),
    "all options, not in registers": lambda: loss(5000, **weights(5000), **OTHER_OPTIONS),
    "smoothing without weights": lambda: loss(label_smoothing=0.1),
    "raise": lambda: loss(check_labels="raise"),
    "defer": lambda: loss(check_labels="defer", label_dtype=torch.int64),
    "backward": lambda: backward(skip_if_unit_grad=False),
    "backward unless grad_output is 1": lambda: backward(skip_if_unit_grad=True),
    "backward unless grad_output is 1, not in registers": lambda: backward(
        5000, skip_if_unit_grad=True
    ),
    "terms": lambda: terms("ignore"),
    "terms, defer": lambda: terms("defer"),
    "evaluate, 2 classes": lambda: evaluation(2),
    "evaluate, float64": lambda: evaluation(5, torch.float64),
    "evaluate, not in registers": lambda: evaluation(5000),
    "softmax, not in registers": lambda: backend.softmax(empty(2, 5000, 4, 4), 1, 2.0),
    "softmax, float64": lambda: backend.softmax(empty(5, 4, dtype=torch.float64), 1, 2.0),
    "softmax gradient, not in registers": lambda: backend.softmax_gradient(
        empty(2, 5000, 4, 4), empty(2, 5000, 4, 4), 1, 2.0
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_compiles(path, monkeypatch):
    monkeypatch.setattr(backend._labels, "raise_or_defer", lambda *_: None)
    monkeypatch.setattr(backend, "_label_report", lambda *_: None)
    monkeypatch.setattr(backend._labels, "error_for", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda _: [])
    with gpu_code.record_launches() as launches:
        PATHS[path]()
    assert launches
    assert len(launches) == 3 or not path.startswith("evaluate")
    for launch in launches:
        assert gpu_code.compile_launch(launch, 90).registers > 0
