"""What the GPU kernels compile to, without a GPU: registers, spills, instructions and traffic.

    python -m benchmarks.gpu_code

compiles every row of the block table ahead of time for sm_80 and sm_90 and writes
results/gpu_code.md. The launches are those of the backend itself: it is called with tensors that
have no memory, and what it would have launched is compiled instead.
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
    """A kernel with the arguments that the backend gave it."""

    name: str
    grid: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True)
class Code:
    """A compiled kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's registers that lie in memory for want of room.
        instructions: in the whole program text; its loops are counted once.
        loads, stores: of global memory, by bytes of one access: how many in the text.
        loops: how many instructions each loop has, with those in it, in the order of their ends.
        barriers: in the text of each loop.
    """

    registers: int
    spilled: int
    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]
    loops: tuple[int, ...]
    barriers: tuple[int, ...]


class _Recorder:
    """Stands for a kernel: `kernel[grid](...)` is written down."""

    def __init__(self, name: str, launches: list[Launch]) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.launches.append(Launch(self.name, grid[0], arguments, constants))

        return launch


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches of the backend within, none of which takes place."""
    launches: list[Launch] = []
    with ExitStack() as fakes:
        for name, module in KERNELS.items():
            fakes.enter_context(mock.patch.object(module, name, _Recorder(name, launches)))
        yield launches


def compiled(launch: Launch, architecture: int) -> Code:
    """Compile a launch as Triton would on a device of this architecture."""
    kernel = getattr(KERNELS[launch.name], launch.name)
    constants = dict(launch.constants)
    names = ("num_warps", "enable_fp_fusion", "maxnreg")
    options = {name: constants.pop(name) for name in names if name in constants}
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    given = dict(zip(kernel.arg_names, launch.arguments, strict=False))
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], fixed[(place,)] = "constexpr", constants[name]
        else:
            signature[name] = _type_of(
                given[name], (place,), fixed, attributes,
                specializes=not kernel.params[place].do_not_specialize,
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
    """Triton's own rules: None and 1 are constants, multiples of 16 are known to be; but for
    arguments that do not specialize, which tuples always do.
    """
    if isinstance(value, tuple):
        return tuple(
            _type_of(item, (*path, place), fixed, attributes, specializes=True)
            for place, item in enumerate(value)
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


def _read(cubin: bytes) -> Code:
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
    return Code(
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
    """First and last instruction of each loop: where something branches back."""
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
    found: dict[int, int] = {}
    for name in names:
        if name.partition(".")[0] == kind:
            bits = re.search(r"\.(?:U|S)?(8|16|64|128)\b", name)
            width = int(bits.group(1)) // 8 if bits else 4
            found[width] = found.get(width, 0) + 1
    return dict(sorted(found.items(), reverse=True))


# -- the rows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the block table with as many classes as it takes, or as data sets have."""

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

    def logits(self) -> Tensor:
        x = torch.empty(2, self.num_classes, 128, 256, dtype=self.dtype, device="meta")
        return x.to(memory_format=torch.channels_last) if self.channels_last else x


def rows(dtype: torch.dtype) -> list[Row]:
    """All rows of the table, at the most classes each holds, and FCN's, Cityscapes', ADE20K's."""
    return [
        Row(num_classes, table is tiling.CHANNELS_LAST, dtype)
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
    """Returns logits with labels of this size; by default the labels are not reported."""
    labels = torch.empty(logits.shape[0], *size, dtype=label_dtype, device="meta")
    options = {"check_labels": "ignore", **options}
    return LossInputs(logits, labels, class_weight, pixel_weight, LossOptions(**options))


def launches_of(row: Row, **options: Any) -> list[Launch]:
    """What `loss_and_gradient` launches for a row."""
    logits = row.logits()
    inputs = inputs_of(logits, logits.shape[2:], **options)
    with recorded() as launches:
        backend.cross_entropy(inputs, torch.empty_like(logits))
    return launches


BILINEAR = Bilinear()


@dataclass(frozen=True)
class UpsampledRow:
    """As many classes as a row of the table for upsampled scores takes, or as data sets have."""

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

    def scores(self) -> Tensor:
        return torch.empty(2, self.num_classes, *self.sources, dtype=self.dtype, device="meta")


def upsampled_rows(dtype: torch.dtype) -> list[UpsampledRow]:
    """All rows of the table at the most classes, and FCN's, Cityscapes' and ADE20K's."""
    most = {min(row.max_classes, 300) for row in tiling.UPSAMPLED}
    return [UpsampledRow(number, dtype) for number in sorted(most | {2, 19, 21, 60, 150})]


def upsampled_loss(row: UpsampledRow, *, with_gradient: bool = True, **options: Any) -> None:
    """Let the backend launch `loss_and_gradient`, or the loss alone, of upsampled scores."""
    scores = row.scores()
    gradient = torch.empty_like(scores) if with_gradient else None
    inputs = inputs_of(scores, row.size, upsampling=row.upsampling, **options)
    backend.upsampled_cross_entropy(inputs, gradient)


def upsampled_launches_of(row: UpsampledRow, **options: Any) -> list[Launch]:
    """What `upsampled_loss` launches for a row."""
    with recorded() as launches:
        upsampled_loss(row, **options)
    return launches


@dataclass(frozen=True)
class Prediction:
    """What a loss with its gradient should take of an H200, by its bytes and by its instructions.

    Attributes:
        instructions: of a thread, per logit it holds, without what the last program alone does.
        by_bytes, by_instructions: milliseconds, at the rate of a copy and at one instruction of
            each of a multiprocessor's four schedulers a cycle; no kernel is faster than the longer.
    """

    instructions: float
    by_bytes: float
    by_instructions: float


COPY_BANDWIDTH = 4.3e12  # bytes a second, as copies on an H200 were seen to move
ISSUE_RATE = 132 * 4 * 32 * 1.755e9  # instructions of threads a second


def predicted(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Prediction:
    """From the code of the gradient's kernel alone."""
    row = Row(shape[1], False, dtype)
    logits = row.logits()
    one, count = (torch.empty((), dtype=kind, device="meta") for kind in (dtype, torch.float64))
    with recorded() as launches:
        backend.cross_entropy_gradient(
            inputs_of(logits, logits.shape[2:]), count, one, torch.empty_like(logits),
            skip_if_unit_grad=False,
        )  # fmt: skip
    held = row.num_classes * row.tile_shape.pixels / (32 * row.tile_shape.num_warps)
    instructions = compiled(launches[-1], 90).instructions / held
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    moved = elements * 2 * dtype.itemsize + 2 * elements // shape[1]
    return Prediction(
        instructions, 1e3 * moved / COPY_BANDWIDTH, 1e3 * elements * instructions / ISSUE_RATE
    )


SHAPES = (
    (16, 19, 1024, 2048), (8, 150, 512, 512), (1, 19, 1024, 2048), (16, 21, 512, 512),
)  # fmt: skip


def evaluate_all(logits: Tensor, size: Sequence[int] | None = None) -> None:
    """Let the backend launch `evaluate` with all maps; with a size, of upsampled scores."""
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
    # Its counts are not on the host, where they would be read: it ends there.
    with suppress(NotImplementedError, RuntimeError):
        backend.evaluate(inputs_of(logits, size, upsampling=upsampling), maps)


def launches_of_the_rest(row: Row) -> list[Launch]:
    """What `spatial_softmax`, its gradient, and `evaluate` with all maps launch for a row."""
    logits = row.logits()
    with recorded() as launches:
        backend.softmax(logits, 1, 1.0)
        backend.softmax_gradient(torch.empty_like(logits), logits, 1, 1.0)
        evaluate_all(logits)
    assert len(launches) == 5
    return launches


def pixel_loop(code: Code) -> int:
    """The loop over pixels of `upsampled_cross_entropy_kernel`: the innermost, which ends first;
    shorter ones are those over class weights.
    """
    return next(place for place, length in enumerate(code.loops) if length > MIN_PIXEL_LOOP)


MIN_PIXEL_LOOP = 60


def classes_of_thread(row: UpsampledRow) -> int:
    """Of a pixel, padding included."""
    return -(
        -min(row.num_classes, row.tile_shape.chunk or row.num_classes) // row.tile_shape.classes
    )


def upsampled_ms(row: UpsampledRow, num_images: int, code: Code) -> float:
    """What the loop over pixels of all cells should take of an H200, by its instructions."""
    shape, (rows, columns) = row.tile_shape, row.axes
    tiles = -(-columns.num_sources // (shape.intervals - 1))
    block_rows = shape.block_rows(num_images * tiles, rows.num_sources)
    bands = -(-rows.num_sources // block_rows)
    cells = bands * (block_rows + 1) * tiles * shape.intervals * num_images
    pixels = cells * rows.max_targets * columns.max_targets
    return 1e3 * pixels * shape.classes * code.loops[pixel_loop(code)] / ISSUE_RATE


def main() -> None:
    """Compile every row, and write what came of it."""
    lines = [
        f"Made by `python -m benchmarks.gpu_code`, Triton {triton.__version__}; nothing was run.",
        "",
        "`loss_and_gradient`, uint8 labels. Instructions are of the program text, per logit of a",
        "thread's tile, the fixed part included. Widths are the bytes of one access to global",
        "memory, with how many there are: those of a tile's logits and gradient.",
        "",
        "| row | block | warps | sm | registers | spilled | instructions | loads | stores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for row in rows(dtype):
            launch = launches_of(row)[-1]
            shape = row.tile_shape
            values = row.num_classes * shape.pixels / (32 * shape.num_warps)
            for architecture in ARCHITECTURES:
                code = compiled(launch, architecture)
                lines.append(
                    f"| {row.name} | {shape.classes}x{shape.pixels} | {shape.num_warps} "
                    f"| {architecture} | {code.registers} | {code.spilled} "
                    f"| {code.instructions / values:.0f} "
                    f"| {_text(code.loads)} | {_text(code.stores)} |"
                )
                print(lines[-1], flush=True)
    lines += [
        "",
        "Predicted for an H200, `loss_and_gradient`: the bytes at 4.3 TB/s, as copies move there,",
        "and the instructions at one per scheduler and cycle. Neither has been measured.",
        "",
        "| shape | dtype | instructions a logit | ms by bytes | ms by instructions |",
        "|---|---|---|---|---|",
    ]
    for size in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            prediction = predicted(size, dtype)
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
    """What the kernel of upsampled scores compiles to, and the time it should take."""
    lines = [
        "",
        "`loss_and_gradient` of upsampled scores. Instructions are those of the loop over pixels,",
        "per logit of a thread, padding included: of logits as many as the labels have places.",
        "",
        "| row | block | warps | sm | registers | spilled | instructions |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for row in upsampled_rows(dtype):
            launch, shape = upsampled_launches_of(row)[-1], row.tile_shape
            for architecture in ARCHITECTURES:
                code = compiled(launch, architecture)
                a_logit = code.loops[pixel_loop(code)] / classes_of_thread(row)
                lines.append(
                    f"| {row.name} | {shape.row_groups}x{shape.intervals}x{shape.classes} "
                    f"| {shape.num_warps} | {architecture} | {code.registers} "
                    f"| {code.spilled} | {a_logit:.1f} |"
                )
                print(lines[-1], flush=True)
    lines += [
        "",
        "Predicted for an H200 as above, by instructions: those of that loop, with the cells that",
        "two programs compute. The bytes are next to none.",
        "",
        "| scores | labels | dtype | instructions a logit | ms |",
        "|---|---|---|---|---|",
    ]
    for num_images, num_classes, sources, size in UPSAMPLED_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            row = UpsampledRow(num_classes, dtype, size=size, sources=sources)
            code = compiled(upsampled_launches_of(row)[-1], 90)
            ms = upsampled_ms(row, num_images, code)
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
