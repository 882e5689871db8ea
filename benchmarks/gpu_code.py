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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seg_loss._inputs import LossInputs, LossOptions
from seg_loss._maps import empty_maps
from seg_loss.constants import MAPS
from seg_loss.gpu import backend, tiling
from seg_loss.gpu.arguments import plans, tile_tensors
from seg_loss.gpu.plan import Launch
from seg_loss.upsampling import Axes, Bilinear, Upsampling, axes

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RESULT = Path(__file__).parent / "results" / "gpu_code.md"
ARCHITECTURES = (80, 90)
HOPPER = 90
_COMPILER_OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl", "enable_fp_fusion")
_DTYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
    torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32",
    torch.int64: "i64", torch.uint16: "u16", torch.uint32: "u32", torch.uint64: "u64",
}  # fmt: skip


# -- launches, recorded and compiled ---------------------------------------------------------------


@dataclass(frozen=True)
class RecordedLaunch:
    """A launch that a call of the backend would have made.

    Attributes:
        launch: the kernel with its grid, scalars and constants.
        arguments: the arguments of the call, which come before the scalars.
    """

    launch: Launch
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        name: str = self.launch.kernel.fn.__name__
        return name

    @property
    def constants(self) -> dict[str, Any]:
        return self.launch.constants

    @property
    def num_warps(self) -> int:
        num_warps: int = self.constants.get("num_warps", 4)
        return num_warps


@contextmanager
def record_launches(architecture: int = HOPPER) -> Iterator[list[RecordedLaunch]]:
    """Yields a list to which each launch of the backend is added instead of being run.

    Plans of earlier calls are forgotten, so that every call plans its launches for a device of this
    architecture.
    """
    launches: list[RecordedLaunch] = []

    def record(launch: Launch, _stream: int, *arguments: Any) -> None:
        launches.append(RecordedLaunch(launch, arguments))

    def capability(_tensor: Tensor) -> tuple[int, int]:
        return divmod(architecture, 10)

    plans.clear()
    with (
        mock.patch.object(Launch, "__call__", record),
        mock.patch("seg_loss.gpu.arguments.capability", capability),
    ):
        yield launches
    plans.clear()


def is_known(architecture: int) -> bool:
    """Returns whether the Triton in use compiles for this architecture."""
    name = "ptxas-blackwell" if (TOOLS / "ptxas-blackwell").exists() else "ptxas"
    return f"sm_{architecture}" in _output_of(name if architecture >= 100 else "ptxas", "--help")


def compile_launch(recorded: RecordedLaunch, architecture: int) -> "CompiledKernel":
    """Compiles a launch as Triton does on a device of this architecture."""
    launch = recorded.launch
    kernel, constants = launch.kernel, dict(launch.constants)
    options = {name: constants.pop(name) for name in _COMPILER_OPTIONS if name in constants}
    arguments = dict(
        zip(kernel.arg_names, (*recorded.arguments, *launch.scalars), strict=False), **constants
    )
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
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
    return CompiledKernel(result.asm["cubin"], result.metadata.shared)


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
        if value.data_ptr() % 16 == 0:  # on the meta device, the offset in the storage
            attributes[path] = [["tt.divisibility", 16]]
        return f"*{_DTYPES[value.dtype]}"
    if value % 16 == 0 and specializes:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


# -- machine code ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A loop of the machine code.

    Attributes:
        instructions: number of instructions, those of loops inside included.
        common: number of instructions on the shortest way through the loop: without what a branch
            skips.
        exponentials, barriers: numbers of these instructions.
    """

    instructions: int
    common: int
    exponentials: int
    barriers: int


class CompiledKernel:
    """The machine code of a kernel, in numbers.

    Attributes:
        registers: per thread.
        spilled: bytes per thread that are spilled to memory.
        shared: bytes of shared memory per program.
        instructions: number in the program text, where a loop counts once.
        loads, stores: number of accesses to global memory in the text, by their bytes.
        loops: in order of their ends.
    """

    def __init__(self, cubin: bytes, shared: int) -> None:
        usage = _run("cuobjdump", cubin, "-res-usage")
        self.registers, self._stack = (
            int(number) for number in re.findall(r"(?:REG|STACK):(\d+)", usage)
        )
        self.shared = shared
        self._cubin = cubin

    @cached_property
    def _code(self) -> "_Code":
        return _Code(_run("nvdisasm", self._cubin, "-c"))

    @property
    def spilled(self) -> int:
        has_spills = self._stack and any(name.startswith(_SPILLS) for name in self._code.names)
        return self._stack if has_spills else 0

    @property
    def instructions(self) -> int:
        return len(self._code.names)

    @property
    def loads(self) -> dict[int, int]:
        return _widths(self._code.names, "LDG")

    @property
    def stores(self) -> dict[int, int]:
        return _widths(self._code.names, "STG")

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(self._code.loops())


_SPILLS = "LDL", "STL"


def _run(tool: str, cubin: bytes, *options: str) -> str:
    """Returns what a tool says about a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _output_of(tool, *options, file.name)


def _output_of(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class _Code:
    """Instructions, without the padding behind the last one, and where branches lead.

    Attributes:
        names: of each instruction.
        branches: by index of a branch, the index that it leads to, and whether it may be not taken.
    """

    def __init__(self, text: str) -> None:
        self.names: list[str] = []
        labels: dict[str, int] = {}
        targets: dict[int, tuple[str, bool]] = {}
        for line in text.splitlines():
            if label := re.match(r"^\s*(\.L_\w+):", line):
                labels[label.group(1)] = len(self.names)
            elif instruction := re.match(_INSTRUCTION, line):
                predicate, name = instruction.groups()
                target = re.search(r"`\((\.L_\w+)\)", line)
                if target and name.startswith("BRA"):
                    may_fall_through = predicate is not None or name != "BRA"
                    targets[len(self.names)] = target.group(1), may_fall_through
                self.names.append(name)
        while self.names and self.names[-1] == "NOP":
            self.names.pop()
        self.branches = {
            index: (labels[label], may_fall_through)
            for index, (label, may_fall_through) in targets.items()
            if label in labels
        }
        last = len(self.names) - 1
        if self.branches.get(last) == (last, False):  # the end of every program
            self.names.pop()

    def loops(self) -> Iterator[Loop]:
        """Returns the loops, found by their backward branches.

        Branches without a condition lead back from code for the threads of a warp that have come
        apart, which lies at the end of the program.
        """
        for end, (start, may_fall_through) in sorted(self.branches.items()):
            if start <= end and may_fall_through:
                names = self.names[start : end + 1]
                yield Loop(
                    instructions=len(names),
                    common=self._shortest(start, end),
                    exponentials=sum(name == "MUFU.EX2" for name in names),
                    barriers=sum(name.startswith("BAR") for name in names),
                )

    def _shortest(self, start: int, end: int) -> int:
        """Returns the least number of instructions from `start` to `end`, both included."""
        reached = {start: 1}
        for index in range(start, end):
            steps = reached.get(index)
            if steps is None:
                continue
            target, may_fall_through = self.branches.get(index, (index + 1, False))
            following = {target, index + 1} if may_fall_through else {target}
            for other in following:
                if index < other <= end:
                    reached[other] = min(steps + 1, reached.get(other, steps + 1))
        return reached[end]


_INSTRUCTION = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)"


def _widths(names: list[str], kind: str) -> dict[int, int]:
    """Returns the number of accesses of this kind, by their bytes."""
    numbers: dict[int, int] = {}
    for name in names:
        if name.partition(".")[0] == kind:
            bits = re.search(r"\.(?:U|S)?(8|16|64|128)\b", name)
            width = int(bits.group(1)) // 8 if bits else 4
            numbers[width] = numbers.get(width, 0) + 1
    return dict(sorted(numbers.items(), reverse=True))


# -- logits ----------------------------------------------------------------------------------------

PLANES, CHANNELS_LAST, CROPPED = "planes", "channels_last", "cropped channels_last"
DATA_SET_CLASSES = 19, 21, 150  # of Cityscapes, PASCAL VOC and ADE20K
BILINEAR = Bilinear()


@dataclass(frozen=True)
class Logits:
    """Logits [2, C, 128, 256] on the meta device.

    Attributes:
        layout: one of PLANES, CHANNELS_LAST, CROPPED; the last has gaps between its rows.
    """

    num_classes: int
    layout: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.layout}, {self.num_classes} classes, {_name_of(self.dtype)}"

    @property
    def tile_shape(self) -> tiling.TileShape:
        """The row of the loss and its gradient."""
        if self.layout == CHANNELS_LAST and self.num_classes <= tiling.MAX_FLAT_CLASSES:
            return tiling.DOUBLE_FLAT if self.dtype == torch.float64 else tiling.FLAT
        tiles = tile_tensors(self.tensor())
        assert tiles is not None
        return tiles.shape

    @property
    def logits_per_thread(self) -> float:
        shape = self.tile_shape
        return self.num_classes * shape.pixels / (32 * shape.num_warps)

    def tensor(self) -> Tensor:
        columns = 272 if self.layout == CROPPED else 256
        x = torch.empty(2, self.num_classes, 128, columns, dtype=self.dtype, device="meta")
        if self.layout != PLANES:
            x = x.to(memory_format=torch.channels_last)
        return x[..., :256]


def logits_of_each_row(
    dtype: torch.dtype, other_classes: Sequence[int] = DATA_SET_CLASSES
) -> list[Logits]:
    """Returns logits for each row of the tables, with the most classes that the row is for.

    Logits with other numbers of classes are added.
    """
    planes = tiling.HALF_PLANES if dtype.itemsize == 2 else tiling.PLANES
    tables = {PLANES: planes, CHANNELS_LAST: (tiling.FLAT, *tiling.CHANNELS_LAST)}
    cases = [
        Logits(num_classes, layout, dtype)
        for layout, table in tables.items()
        for num_classes in sorted(
            {*(row.max_classes for row in table), *other_classes, _MANY_CLASSES}
        )
    ]
    return [*cases, Logits(tiling.MAX_FLAT_CLASSES, CROPPED, dtype)]


_MANY_CLASSES = 2 * tiling.MAX_CLASSES_IN_REGISTERS


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


def weights_of(num_classes: int, shape: Sequence[int]) -> dict[str, Tensor]:
    """Returns weights of the classes, and of pixels in this shape, for `inputs_of`."""
    return {
        "class_weight": torch.empty(num_classes, device="meta"),
        "pixel_weight": torch.empty(*shape, device="meta"),
    }


def launch_loss(case: Logits, **options: Any) -> None:
    """Launches `loss_and_gradient`."""
    logits = case.tensor()
    backend.cross_entropy(inputs_of(logits, logits.shape[2:], **options), torch.empty_like(logits))


def launch_evaluation(
    logits: Tensor, size: Sequence[int] | None = None, *, all_maps: bool = True, **options: Any
) -> None:
    """Launches `evaluate`; with a size, of upsampled scores."""
    if size is None:
        size = logits.shape[2:]
    else:
        options["upsampling"] = BILINEAR
    names = MAPS if all_maps else ()
    maps = empty_maps(names, logits.shape[1], (logits.shape[0], *size), logits.device)
    # Afterwards the backend copies the results to the host, which meta tensors do not allow.
    with suppress(NotImplementedError):
        backend.evaluate(inputs_of(logits, size, **options), maps)


def launch_prediction(
    scores: Tensor, size: Sequence[int] | None = None, maps: Sequence[str] = ("prediction",)
) -> None:
    """Launches `predict`; with a size, of upsampled scores."""
    grid = None if size is None else axes(BILINEAR, scores.shape[2:], size)
    shape = scores.shape[0], *(scores.shape[2:] if size is None else size)
    backend.predict(scores, grid, 1.0, empty_maps(maps, scores.shape[1], shape, scores.device))


# -- upsampled scores ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Scores [2, C, *sources] on the meta device, and the size of their labels.

    Attributes:
        with_gradient: whether the gradient is computed, or the loss alone.
    """

    num_classes: int
    dtype: torch.dtype
    with_gradient: bool = True
    upsampling: Upsampling = BILINEAR
    size: tuple[int, int] = (128, 256)
    sources: tuple[int, int] = (16, 32)

    @property
    def name(self) -> str:
        ratio = self.size[0] // self.sources[0]
        name = f"upsampled {ratio} times, {self.num_classes} classes, {_name_of(self.dtype)}"
        return name if self.with_gradient else f"{name}, loss alone"

    @property
    def tile_shape(self) -> tiling.UpsampledTileShape:
        return tiling.upsampled_tile_shape(
            self.num_classes,
            is_double=self.dtype == torch.float64,
            has_gradient=self.with_gradient,
        )

    @property
    def axes(self) -> Axes:
        return axes(self.upsampling, self.sources, self.size)

    @property
    def classes_per_thread(self) -> int:
        """The number of classes of a pixel that a thread computes, padding included."""
        classes = self.tile_shape.chunk or self.num_classes
        return -(-classes // self.tile_shape.classes)

    def tensor(self) -> Tensor:
        return torch.empty(2, self.num_classes, *self.sources, dtype=self.dtype, device="meta")


def scores_of_each_row(
    dtype: torch.dtype, other_classes: Sequence[int] = (2, *DATA_SET_CLASSES)
) -> list[Scores]:
    """Returns scores for each row of the tables, with the most classes that the row is for.

    Scores with other numbers of classes are added.
    """
    tables = {True: tiling.UPSAMPLED, False: tiling.UPSAMPLED_FORWARD}
    if dtype == torch.float64:
        tables = dict.fromkeys((True, False), tiling.DOUBLE_UPSAMPLED)
    return [
        Scores(num_classes, dtype, with_gradient)
        for with_gradient, table in tables.items()
        for num_classes in sorted({*(min(row.max_classes, 300) for row in table), *other_classes})
    ]


def launch_upsampled_loss(case: Scores, **options: Any) -> None:
    """Launches `loss_and_gradient`, or the loss alone, of upsampled scores."""
    scores = case.tensor()
    gradient = torch.empty_like(scores) if case.with_gradient else None
    inputs = inputs_of(scores, case.size, upsampling=case.upsampling, **options)
    backend.upsampled_cross_entropy(inputs, gradient)


def pixel_loop_of(case: Scores, code: CompiledKernel) -> Loop:
    """Returns the loop over pixels of `upsampled_cross_entropy_kernel`.

    It is the first one to end that has the exponentials of a pixel.
    """
    classes = case.classes_per_thread
    return next(loop for loop in code.loops if loop.exponentials >= classes)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- the report ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """The time of a loss with its gradient on an H200, by its bytes and by its instructions.

    Attributes:
        instructions: per logit of a thread.
        by_bytes, by_instructions: milliseconds, at the bandwidth of a copy, and at one instruction
            per scheduler and cycle. No kernel is faster than the longer of the two.
    """

    instructions: float
    by_bytes: float
    by_instructions: float


COPY_BANDWIDTH = 4.3e12  # bytes per second, measured for copies on an H200
ISSUE_RATE = 132 * 4 * 32 * 1.755e9  # instructions of threads per second
SHAPES = (
    (16, 19, 1024, 2048), (8, 150, 512, 512), (1, 19, 1024, 2048), (16, 21, 512, 512),
)  # fmt: skip
UPSAMPLED_SHAPES = (
    (1, 19, (128, 256), (1024, 2048)), (2, 150, (64, 64), (512, 512)),
    (8, 150, (64, 64), (512, 512)),
)  # fmt: skip


def compile_kernel(name: str, architecture: int, launch: Callable[[], None]) -> CompiledKernel:
    """Compiles the kernel of this name among those that `launch` launches."""
    with record_launches(architecture) as launches:
        launch()
    (recorded,) = (recorded for recorded in launches if recorded.name == name)
    return compile_launch(recorded, architecture)


def compile_loss(case: Logits, architecture: int) -> CompiledKernel:
    """Compiles the pass over the logits, which comes after the label check."""
    with record_launches(architecture) as launches:
        launch_loss(case)
    return compile_launch(launches[1], architecture)


def compile_upsampled_loss(case: Scores, architecture: int) -> CompiledKernel:
    """Compiles the pass over the intervals."""
    return compile_kernel(
        "upsampled_cross_entropy_kernel", architecture, lambda: launch_upsampled_loss(case)
    )


def predict(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Prediction:
    """Returns a prediction from the machine code of the pass over the logits."""
    case = Logits(shape[1], PLANES, dtype)
    instructions = compile_loss(case, HOPPER).instructions / case.logits_per_thread
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    moved = elements * 2 * dtype.itemsize + 2 * elements // shape[1]
    return Prediction(
        instructions, 1e3 * moved / COPY_BANDWIDTH, 1e3 * elements * instructions / ISSUE_RATE
    )


def predict_upsampled_ms(case: Scores, num_images: int, code: CompiledKernel) -> float:
    """Returns the milliseconds of the loops over pixels on an H200, by their instructions."""
    shape, (rows, columns) = case.tile_shape, case.axes
    tiles = tiling.tile_intervals(shape, num_images, case.num_classes, case.axes).tiles
    intervals = num_images * (rows.num_sources + 1) * tiles * shape.intervals
    pixels = intervals * rows.max_targets * columns.max_targets
    return 1e3 * pixels * shape.classes * pixel_loop_of(case, code).common / ISSUE_RATE


def main() -> None:
    """Compiles every row and writes the report."""
    lines = [
        f"Made by `python -m benchmarks.gpu_code`, Triton {triton.__version__}; nothing was run.",
        "",
        *_loss_lines(),
        "",
        *_prediction_lines(),
        "",
        *_upsampled_lines(),
        "",
        *_upsampled_prediction_lines(),
    ]
    RESULT.write_text("\n".join(lines) + "\n")


def _loss_lines() -> Iterator[str]:
    """Returns the part of the report on the pass over the logits."""
    yield "`loss_and_gradient`, uint8 labels. Instructions are those of the program text, per logit"
    yield "of a thread's tile, including those that do not depend on their number. More than"
    yield "4096 classes are processed in loops, whose instructions count once. Loads and stores are"
    yield "the numbers of accesses to global memory, by their bytes."
    yield ""
    yield "| logits | block | warps | sm | registers | spilled | instructions | loads | stores |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for dtype in (torch.float32, torch.bfloat16):
        for case in logits_of_each_row(dtype):
            shape = case.tile_shape
            for architecture in ARCHITECTURES:
                code = compile_loss(case, architecture)
                yield (
                    f"| {case.name} | {shape.classes or 'all '}x{shape.pixels} "
                    f"| {shape.num_warps} | {architecture} | {code.registers} | {code.spilled} "
                    f"| {code.instructions / case.logits_per_thread:.1f} "
                    f"| {_text(code.loads)} | {_text(code.stores)} |"
                )


def _prediction_lines() -> Iterator[str]:
    yield "Predicted for `loss_and_gradient` on an H200: by the bytes, at the 4.3 TB/s of a copy,"
    yield "and by the instructions, at one per scheduler and cycle. Neither has been measured."
    yield ""
    yield "| shape | dtype | instructions a logit | ms by bytes | ms by instructions |"
    yield "|---|---|---|---|---|"
    for size in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            prediction = predict(size, dtype)
            yield (
                f"| {'x'.join(map(str, size))} | {_name_of(dtype)} "
                f"| {prediction.instructions:.1f} | {prediction.by_bytes:.3f} "
                f"| {prediction.by_instructions:.3f} |"
            )


def _upsampled_lines() -> Iterator[str]:
    """Returns the part of the report on the pass over the intervals of upsampled scores."""
    yield "Losses of upsampled scores. Instructions are those of the loop over target pixels, per"
    yield "logit of a thread with padding, without the branch for scores that all lie far below"
    yield "their maximum. Barriers are those of the loop. Without a gradient, more classes than a"
    yield "program can hold take another kernel."
    yield ""
    yield "| scores | block | warps | sm | registers | spilled | instructions | barriers |"
    yield "|---|---|---|---|---|---|---|---|"
    for dtype in (torch.float32, torch.bfloat16):
        for case in scores_of_each_row(dtype):
            shape = case.tile_shape
            if shape.chunk is not None and not case.with_gradient:
                continue
            for architecture in ARCHITECTURES:
                code = compile_upsampled_loss(case, architecture)
                loop = pixel_loop_of(case, code)
                yield (
                    f"| {case.name} | {shape.classes}x{shape.intervals} | {shape.num_warps} "
                    f"| {architecture} | {code.registers} | {code.spilled} "
                    f"| {loop.common / case.classes_per_thread:.1f} | {loop.barriers} |"
                )


def _upsampled_prediction_lines() -> Iterator[str]:
    yield "Predicted for an H200 as above, by the instructions of that loop alone, including the"
    yield "intervals at the edges and those that fill a block. There are few bytes."
    yield ""
    yield "| scores | labels | dtype | instructions a logit | ms |"
    yield "|---|---|---|---|---|"
    for num_images, num_classes, sources, size in UPSAMPLED_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            case = Scores(num_classes, dtype, size=size, sources=sources)
            ms = predict_upsampled_ms(case, num_images, compile_upsampled_loss(case, HOPPER))
            logits = num_images * num_classes * size[0] * size[1]
            yield (
                f"| {num_images}x{num_classes}x{sources[0]}x{sources[1]} | {size[0]}x{size[1]} "
                f"| {_name_of(dtype)} | {1e-3 * ms * ISSUE_RATE / logits:.1f} | {ms:.3f} |"
            )


def _text(widths: dict[int, int]) -> str:
    return ", ".join(f"{number} of {width}" for width, number in widths.items())


if __name__ == "__main__":
    main()
