"""Registers, spills, instructions and memory accesses of the GPU kernels, without a GPU.

    python -m benchmarks.gpu_code

compiles every row of the tables in `seg_loss.gpu.tiling` ahead of time for sm_80 and sm_90, and
writes results/gpu_code.md. The launches are those of the backend: it is called with tensors on the
meta device, and the kernels that it launches are compiled instead.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seg_loss._inputs import LossInputs, LossOptions
from seg_loss.gpu import (
    backend,
    cross_entropy,
    evaluate,
    labels,
    softmax,
    tiling,
    upsampled,
)
from seg_loss.upsampling import Axes, Bilinear, Upsampling, axes

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RESULT = Path(__file__).parent / "results" / "gpu_code.md"
KERNELS = {
    "check_labels_kernel": labels,
    "cross_entropy_kernel": cross_entropy,
    "evaluate_kernel": evaluate,
    "softmax_kernel": softmax,
    "upsampled_cross_entropy_kernel": upsampled,
}
ARCHITECTURES = (80, 90)
_DTYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
    torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32",
    torch.int64: "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel, and the arguments that the backend launches it with."""

    name: str
    grid: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True)
class CompiledKernel:
    """The machine code of a kernel, in numbers.

    Attributes:
        registers: per thread.
        spilled: bytes per thread that are spilled to memory.
        instructions: number in the program text, where a loop counts once.
        loads, stores: number of accesses to global memory in the text, by their bytes.
        loops: number of instructions of each loop, with the loops inside, in order of their ends.
        barriers: number of barriers of each loop.
    """

    registers: int
    spilled: int
    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]
    loops: tuple[int, ...]
    barriers: tuple[int, ...]


class _Recorder:
    """Replaces a kernel: `kernel[grid](...)` is recorded."""

    def __init__(self, name: str, launches: list[Launch]) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.launches.append(Launch(self.name, grid[0], arguments, constants))

        return launch


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Returns a list of the launches of the backend, which are recorded and not run."""
    launches: list[Launch] = []
    with ExitStack() as fakes:
        for name, module in KERNELS.items():
            fakes.enter_context(mock.patch.object(module, name, _Recorder(name, launches)))
        yield launches


def compile_launch(launch: Launch, architecture: int) -> CompiledKernel:
    """Compiles a launch as Triton does on a device of this architecture."""
    kernel = getattr(KERNELS[launch.name], launch.name)
    constants = dict(launch.constants)
    names = ("num_warps", "enable_fp_fusion", "maxnreg")
    options = {name: constants.pop(name) for name in names if name in constants}
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    arguments = dict(zip(kernel.arg_names, launch.arguments, strict=False))
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], fixed[(index,)] = "constexpr", constants[name]
        else:
            signature[name] = _type_of(
                arguments[name], (index,), fixed, attributes,
                specializes=not kernel.params[index].do_not_specialize,
            )  # fmt: skip
    result = triton.compile(
        ASTSource(kernel, signature, fixed, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    return _read(result.asm["cubin"])


def _type_of(
    value: Any,
    path: tuple[int, ...],
    fixed: dict[tuple[int, ...], Any],
    attributes: dict[tuple[int, ...], Any],
    *,
    specializes: bool,
) -> Any:
    """Returns the type of an argument, and adds to `fixed` and `attributes`, by Triton's rules.

    None and 1 are constants, and multiples of 16 are marked, unless the argument is declared not to
    specialize; members of tuples always do.
    """
    if isinstance(value, tuple):
        return tuple(
            _type_of(item, (*path, index), fixed, attributes, specializes=True)
            for index, item in enumerate(value)
        )
    if value is None or (type(value) is int and value == 1 and specializes):
        fixed[path] = value
        return "constexpr"
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return f"*{_DTYPES[value.dtype]}"
    if value % 16 == 0 and specializes:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _read(cubin: bytes) -> CompiledKernel:
    """Returns the numbers of a kernel from its disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        text = _run("nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    assert registers
    assert stack
    names = re.findall(_INSTRUCTION, text, re.M)
    loops = _loops(text)
    has_spills = any(name.startswith(("LDL", "STL")) for name in names)
    return CompiledKernel(
        int(registers.group(1)),
        int(stack.group(1)) if has_spills else 0,
        len(names),
        _widths(names, "LDG"),
        _widths(names, "STG"),
        tuple(end - start for start, end in loops),
        tuple(sum(name.startswith("BAR") for name in names[slice(*loop)]) for loop in loops),
    )


_INSTRUCTION = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"


def _loops(text: str) -> list[tuple[int, int]]:
    """Returns the first and last instruction of each loop, found by its backward branch."""
    number, labels, loops = 0, {}, []
    for line in text.splitlines():
        if label := re.match(r"^\s*(\.L_\w+):", line):
            labels[label.group(1)] = number
        elif instruction := re.match(_INSTRUCTION, line):
            number += 1
            target = re.search(r"`\((\.L_\w+)\)", line)
            if target and target.group(1) in labels and instruction.group(1).startswith("BRA"):
                loops.append((labels[target.group(1)], number))
    return loops


def _run(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _widths(names: list[str], kind: str) -> dict[int, int]:
    """Returns the number of accesses of this kind, by their bytes."""
    numbers: dict[int, int] = {}
    for name in names:
        if name.partition(".")[0] == kind:
            bits = re.search(r"\.(?:U|S)?(8|16|64|128)\b", name)
            width = int(bits.group(1)) // 8 if bits else 4
            numbers[width] = numbers.get(width, 0) + 1
    return dict(sorted(numbers.items(), reverse=True))


# -- logits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logits:
    """Logits [2, C, 128, 256] on the meta device."""

    num_classes: int
    channels_last: bool
    dtype: torch.dtype

    @property
    def name(self) -> str:
        order = "channels_last" if self.channels_last else "planes"
        return f"{order}, {self.num_classes} classes, {str(self.dtype).removeprefix('torch.')}"

    @property
    def tile_shape(self) -> tiling.TileShape:
        return tiling.tile_shape(
            self.num_classes,
            channels_last=self.channels_last,
            is_double=self.dtype == torch.float64,
        )

    def tensor(self) -> Tensor:
        x = torch.empty(2, self.num_classes, 128, 256, dtype=self.dtype, device="meta")
        return x.to(memory_format=torch.channels_last) if self.channels_last else x


def logits_for_each_row(dtype: torch.dtype) -> list[Logits]:
    """Returns logits for each row of the tables, with the most classes that the row is for.

    The numbers of classes of PASCAL VOC, Cityscapes and ADE20K are included.
    """
    return [
        Logits(num_classes, table is tiling.CHANNELS_LAST, dtype)
        for table in (tiling.PLANES, tiling.CHANNELS_LAST)
        for num_classes in sorted(
            {min(row.max_classes, 2 * tiling.MAX_CLASSES_IN_REGISTERS) for row in table}
            | {19, 21, 150}
        )
    ]


def inputs_of(
    logits: Tensor,
    size: Sequence[int],
    label_dtype: torch.dtype = torch.uint8,
    *,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    **options: Any,
) -> LossInputs:
    """Returns inputs with labels of this size; by default invalid labels are not reported."""
    labels = torch.empty(logits.shape[0], *size, dtype=label_dtype, device="meta")
    options = {"check_labels": "ignore", **options}
    return LossInputs(logits, labels, class_weight, pixel_weight, LossOptions(**options))


def launches_of_loss(case: Logits, **options: Any) -> list[Launch]:
    """Returns the launches of `loss_and_gradient`."""
    logits = case.tensor()
    inputs = inputs_of(logits, logits.shape[2:], **options)
    with record_launches() as launches:
        backend.cross_entropy(inputs, torch.empty_like(logits))
    return launches


BILINEAR = Bilinear()


# -- upsampled scores ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Scores [2, C, *sources] on the meta device, and the size of their labels."""

    num_classes: int
    dtype: torch.dtype
    upsampling: Upsampling = BILINEAR
    size: tuple[int, int] = (128, 256)
    sources: tuple[int, int] = (16, 32)

    @property
    def name(self) -> str:
        ratio = self.size[0] // self.sources[0]
        dtype = str(self.dtype).removeprefix("torch.")
        return f"upsampled {ratio} times, {self.num_classes} classes, {dtype}"

    @property
    def tile_shape(self) -> tiling.UpsampledTileShape:
        return tiling.upsampled_tile_shape(self.num_classes, is_double=self.dtype == torch.float64)

    @property
    def axes(self) -> Axes:
        return axes(self.upsampling, self.sources, self.size)

    def tensor(self) -> Tensor:
        return torch.empty(2, self.num_classes, *self.sources, dtype=self.dtype, device="meta")


def scores_for_each_row(dtype: torch.dtype) -> list[Scores]:
    """Returns scores for each row of the table, with the most classes, and those of data sets."""
    most = {min(row.max_classes, 300) for row in tiling.UPSAMPLED}
    return [Scores(number, dtype) for number in sorted(most | {2, 19, 21, 60, 150})]


def launch_upsampled_loss(case: Scores, *, with_gradient: bool = True, **options: Any) -> None:
    """Launches `loss_and_gradient`, or the loss alone, of upsampled scores."""
    scores = case.tensor()
    gradient = torch.empty_like(scores) if with_gradient else None
    inputs = inputs_of(scores, case.size, upsampling=case.upsampling, **options)
    backend.upsampled_cross_entropy(inputs, gradient)


def launches_of_upsampled_loss(case: Scores, **options: Any) -> list[Launch]:
    """Returns the launches of `launch_upsampled_loss`."""
    with record_launches() as launches:
        launch_upsampled_loss(case, **options)
    return launches


@dataclass(frozen=True)
class Prediction:
    """The time of a loss with its gradient on an H200, by its bytes and by its instructions.

    Attributes:
        instructions: per logit of a thread, without those of the last program alone.
        by_bytes, by_instructions: milliseconds, at the bandwidth of a copy, and at one instruction
            per scheduler and cycle. No kernel is faster than the longer of the two.
    """

    instructions: float
    by_bytes: float
    by_instructions: float


COPY_BANDWIDTH = 4.3e12  # bytes per second, measured for copies on an H200
ISSUE_RATE = 132 * 4 * 32 * 1.755e9  # instructions of threads per second


def predict(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Prediction:
    """Returns a prediction from the machine code of the kernel of the gradient alone."""
    case = Logits(shape[1], False, dtype)
    logits = case.tensor()
    one, count = (torch.empty((), dtype=kind, device="meta") for kind in (dtype, torch.float64))
    with record_launches() as launches:
        backend.cross_entropy_gradient(
            inputs_of(logits, logits.shape[2:]), count, one, torch.empty_like(logits),
            skip_if_unit_grad=False,
        )  # fmt: skip
    per_thread = case.num_classes * case.tile_shape.pixels / (32 * case.tile_shape.num_warps)
    instructions = compile_launch(launches[-1], 90).instructions / per_thread
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    moved = elements * 2 * dtype.itemsize + 2 * elements // shape[1]
    return Prediction(
        instructions, 1e3 * moved / COPY_BANDWIDTH, 1e3 * elements * instructions / ISSUE_RATE
    )


SHAPES = (
    (16, 19, 1024, 2048), (8, 150, 512, 512), (1, 19, 1024, 2048), (16, 21, 512, 512),
)  # fmt: skip


def launch_evaluation(logits: Tensor, size: Sequence[int] | None = None) -> None:
    """Launches `evaluate` with all maps; with a size, of upsampled scores."""
    upsampling = None if size is None else BILINEAR
    size = logits.shape[2:] if size is None else size
    shape = (logits.shape[0], *size)
    depth = min(3, logits.shape[1])
    index = torch.uint8 if logits.shape[1] <= 256 else torch.int16
    maps = {
        name: torch.empty(size, dtype=dtype, device="meta")
        for name, size, dtype in (
            ("prediction", shape, index),
            ("nll", shape, torch.float32),
            ("confidence", shape, torch.float32),
            ("entropy", shape, torch.float32),
            ("top_classes", (shape[0], depth, *shape[1:]), index),
            ("top_probabilities", (shape[0], depth, *shape[1:]), torch.float32),
        )
    }
    # Afterwards the backend reads the counts on the host, which meta tensors do not have.
    with suppress(NotImplementedError, RuntimeError):
        backend.evaluate(inputs_of(logits, size, upsampling=upsampling), maps)


def launches_of_others(case: Logits) -> list[Launch]:
    """Returns the launches of `spatial_softmax`, its gradient, and `evaluate` with all maps."""
    logits = case.tensor()
    with record_launches() as launches:
        backend.softmax(logits, 1, 1.0)
        backend.softmax_gradient(torch.empty_like(logits), logits, 1, 1.0)
        launch_evaluation(logits)
    assert len(launches) == 5
    return launches


def pixel_loop_of(code: CompiledKernel) -> int:
    """Returns the index of the loop over pixels of `upsampled_cross_entropy_kernel`.

    It is the innermost one, which ends first, apart from the short loops over class weights.
    """
    return next(index for index, length in enumerate(code.loops) if length > MIN_PIXEL_LOOP)


MIN_PIXEL_LOOP = 60


def classes_per_thread(case: Scores) -> int:
    """Returns the number of classes of a pixel that a thread computes, padding included."""
    classes = min(case.num_classes, case.tile_shape.chunk or case.num_classes)
    return -(-classes // case.tile_shape.classes)


def predict_upsampled_ms(case: Scores, num_images: int, code: CompiledKernel) -> float:
    """Returns the milliseconds of the loops over pixels on an H200, by their instructions."""
    shape, (rows, columns) = case.tile_shape, case.axes
    tiles = -(-columns.num_sources // (shape.intervals - 1))
    block_rows = shape.block_rows(num_images * tiles, rows.num_sources)
    row_blocks = -(-rows.num_sources // block_rows)
    intervals = row_blocks * (block_rows + 1) * tiles * shape.intervals * num_images
    pixels = intervals * rows.max_targets * columns.max_targets
    return 1e3 * pixels * shape.classes * code.loops[pixel_loop_of(code)] / ISSUE_RATE


def main() -> None:
    """Compiles every row and writes the report."""
    lines = [
        f"Made by `python -m benchmarks.gpu_code`, Triton {triton.__version__}; nothing was run.",
        "",
        "`loss_and_gradient`, uint8 labels. Instructions are those of the program text, per logit",
        "of a thread's tile, including those that do not depend on the number of logits. Loads and",
        "stores are the numbers of accesses to global memory, by their bytes.",
        "",
        "| logits | block | warps | sm | registers | spilled | instructions | loads | stores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for case in logits_for_each_row(dtype):
            launch = launches_of_loss(case)[-1]
            shape = case.tile_shape
            values = case.num_classes * shape.pixels / (32 * shape.num_warps)
            for architecture in ARCHITECTURES:
                code = compile_launch(launch, architecture)
                lines.append(
                    f"| {case.name} | {shape.classes}x{shape.pixels} | {shape.num_warps} "
                    f"| {architecture} | {code.registers} | {code.spilled} "
                    f"| {code.instructions / values:.0f} "
                    f"| {_text(code.loads)} | {_text(code.stores)} |"
                )
                print(lines[-1], flush=True)
    lines += [
        "",
        "Predicted for `loss_and_gradient` on an H200: by the bytes, at the 4.3 TB/s of a copy,",
        "and by the instructions, at one per scheduler and cycle. Neither has been measured.",
        "",
        "| shape | dtype | instructions a logit | ms by bytes | ms by instructions |",
        "|---|---|---|---|---|",
    ]
    for size in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            prediction = predict(size, dtype)
            lines.append(
                f"| {'x'.join(map(str, size))} | {str(dtype).removeprefix('torch.')} "
                f"| {prediction.instructions:.1f} | {prediction.by_bytes:.3f} "
                f"| {prediction.by_instructions:.3f} |"
            )
    print("\n".join(lines[-8:]))
    lines += _upsampled_lines()
    RESULT.write_text("\n".join(lines) + "\n")


UPSAMPLED_SHAPES = (
    (1, 19, (128, 256), (1024, 2048)), (2, 150, (64, 64), (512, 512)),
    (8, 150, (64, 64), (512, 512)),
)  # fmt: skip


def _upsampled_lines() -> list[str]:
    """Returns the part of the report on the kernel of upsampled scores."""
    lines = [
        "",
        "`loss_and_gradient` of upsampled scores. Instructions are those of the loop over target",
        "pixels, per logit of a thread, padding included.",
        "",
        "| scores | block | warps | sm | registers | spilled | instructions |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for case in scores_for_each_row(dtype):
            launch, shape = launches_of_upsampled_loss(case)[-1], case.tile_shape
            for architecture in ARCHITECTURES:
                code = compile_launch(launch, architecture)
                per_logit = code.loops[pixel_loop_of(code)] / classes_per_thread(case)
                lines.append(
                    f"| {case.name} | {shape.row_groups}x{shape.intervals}x{shape.classes} "
                    f"| {shape.num_warps} | {architecture} | {code.registers} | {code.spilled} "
                    f"| {per_logit:.1f} |"
                )
                print(lines[-1], flush=True)
    lines += [
        "",
        "Predicted for an H200 as above, by the instructions of that loop alone, including the",
        "intervals that two programs compute. There are few bytes.",
        "",
        "| scores | labels | dtype | instructions a logit | ms |",
        "|---|---|---|---|---|",
    ]
    for num_images, num_classes, sources, size in UPSAMPLED_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            case = Scores(num_classes, dtype, size=size, sources=sources)
            code = compile_launch(launches_of_upsampled_loss(case)[-1], 90)
            ms = predict_upsampled_ms(case, num_images, code)
            logits = num_images * num_classes * size[0] * size[1]
            lines.append(
                f"| {num_images}x{num_classes}x{sources[0]}x{sources[1]} | {size[0]}x{size[1]} "
                f"| {str(dtype).removeprefix('torch.')} "
                f"| {1e-3 * ms * ISSUE_RATE / logits:.1f} | {ms:.3f} |"
            )
            print(lines[-1], flush=True)
    return lines


def _text(widths: dict[int, int]) -> str:
    return ", ".join(f"{number} of {width}" for width, number in widths.items())


if __name__ == "__main__":
    main()
