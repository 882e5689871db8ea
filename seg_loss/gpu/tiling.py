"""How the GPU's work is split: tables of tile shapes, selected by shape and layout alone.

A program processes a tile of `pixels` pixels with all their classes, as blocks [classes, pixels]
that stay in registers, so that the logits are read once. Two limits decide the sizes. A thread must
hold few enough values (classes * pixels / threads, at most 128 registers) that nothing spills; the
tests check this on the compiled kernels. And enough bytes must be in flight to use the memory's
bandwidth: about 64 KiB per multiprocessor, which 12 warps of 64 values per thread give. Padding the
classes to whole blocks wastes instructions, not bytes.

`tile` merges the spatial axes of tensors and selects the row of a table.

Nothing is tuned at run time. The first call costs one compilation and no search, and the same shape
is split in the same way on every device, so that sums have the same bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from seg_loss.upsampling import Axes


@dataclass(frozen=True)
class TileShape:
    """A row of the table for logits.

    Attributes:
        max_classes: the largest number of classes the row is for.
        classes, pixels: size of a block, powers of two.
        num_warps: warps of a program.
        reason: why these.
        max_registers: registers of a thread, so that more programs fit; None for no limit.
    """

    max_classes: int
    classes: int
    pixels: int
    num_warps: int
    reason: str
    max_registers: int | None = None

    def num_blocks(self, num_classes: int) -> int:
        """Returns the number of blocks of a tile."""
        return -(-num_classes // self.classes)

    def within(self, registers: int, num_classes: int, itemsize: int) -> "TileShape":
        """Returns the row with more warps, then fewer pixels, until a tile fits these registers.

        The registers are those of a thread that hold the logits. Kernels that keep more values of
        each pixel have room for fewer.
        """
        threads = 32 * self.num_warps
        values = self.num_blocks(num_classes) * max(1, self.classes * self.pixels // threads)
        if values * max(1, itemsize // 4) <= registers:
            return self
        has_more_warps = self.num_warps < MAX_WARPS
        row = replace(
            self,
            # Each thread has a value of a block, at least.
            classes=self.classes * (2 if self.classes * self.pixels <= threads else 1),
            pixels=self.pixels if has_more_warps else self.pixels // 2,
            num_warps=2 * self.num_warps if has_more_warps else self.num_warps,
            max_registers=MAX_REGISTERS,
        )
        return row.within(registers, num_classes, itemsize)


MAX_WARPS = 8
MAX_REGISTERS = 255
# Registers of a thread for the logits: in kernels for float64 and with older Tritons, for label
# smoothing, for that where each thread has whole pixels, for all maps of `evaluate`, and for the
# gradient of the softmax.
FEWER_REGISTERS = 80
SMOOTHED_REGISTERS = 64
SMOOTHED_REGISTERS_OF_WHOLE_PIXELS = 88
MAPS_REGISTERS = 48
SOFTMAX_GRADIENT_REGISTERS = 64

# With more classes a pixel's classes do not fit the registers: see `gpu.many_classes`.
MAX_CLASSES_IN_REGISTERS = 4096
MANY_CLASSES = TileShape(1 << 30, 256, 8, 8, "one block at a time")

# Class planes, [N, C, H, W] in memory: neighbouring threads hold neighbouring pixels.
PLANES = (
    TileShape(32, 1, 256, 4, "2 pixels a thread: no padding, no exchange between threads"),
    TileShape(64, 4, 128, 4, "a pixel per 4 threads: half the registers, no padding to 64"),
    TileShape(150, 8, 64, 4, "ADE20K's 150 padded by 2; rows of 256 bytes", 168),
    TileShape(160, 8, 64, 4, "as above, where 168 registers are too few"),
    TileShape(256, 16, 64, 8, "16 blocks of 4 values a thread"),
    TileShape(512, 32, 32, 8, "as above with half the pixels"),
    TileShape(1024, 64, 32, 8, "128 values a thread; rows of 128 bytes still"),
    TileShape(2048, 128, 16, 8, "as above; rows of 64 bytes, two sectors"),
    TileShape(4096, 256, 8, 8, "the last that fits; rows of one sector"),
)
# The same for logits of 16 bits: two of them are loaded and compared by one instruction.
HALF_PLANES = (
    TileShape(32, 1, 256, 2, "4 pixels a thread, 8 bytes a load"),
    PLANES[1],
    TileShape(160, 4, 64, 4, "2 pixels a thread"),
    *PLANES[4:],
)

# Classes side by side, channels_last: neighbouring threads hold neighbouring classes. All threads
# with classes of a pixel compute that pixel's scalars, so they should be few. But the fewer classes
# a warp loads of a pixel at a time, the more cache lines each load touches.
CHANNELS_LAST = (
    TileShape(32, 4, 256, 4, "for 19 classes half the instructions of 8, half the lines of 2"),
    TileShape(64, 8, 128, 4, "64 values a thread"),
    TileShape(160, 32, 16, 8, "10 values a thread for ADE20K's 150, half a line of 128 bytes"),
    TileShape(1024, 128, 8, 4, "at most 8 blocks of 8 values a thread"),
    TileShape(4096, 512, 4, 8, "at most 8 blocks of 8 values a thread"),
)


@dataclass(frozen=True)
class UpsampledTileShape:
    """A row of the table for upsampled scores: see `gpu.upsampled`.

    A block is [classes, intervals], one value per thread. For each block a thread holds about nine
    values: left and right source, their gradients for a pixel row and for two source rows, and the
    exponential.

    Attributes:
        max_classes: the largest number of classes the row is for.
        classes: classes of a block, at most a warp, whose lanes then share a pixel.
        num_warps: warps of a program.
        reason: why these.
        max_registers: registers of a thread, so that more programs fit; None for no limit.
        chunk: classes per program, if one program cannot hold all; a multiple of `classes`.
    """

    max_classes: int
    classes: int
    num_warps: int
    reason: str
    max_registers: int | None = None
    chunk: int | None = None

    @property
    def intervals(self) -> int:
        """Intervals of a block."""
        return 32 * self.num_warps // self.classes

    def for_smoothing(self, num_classes: int) -> "UpsampledTileShape":
        """Returns the row for kernels with label smoothing: at most 10 classes a thread."""
        if self.chunk is not None or num_classes <= 10 * self.classes:
            return self
        return replace(self, classes=2 * self.classes)

    @property
    def resident_programs(self) -> int:
        """Programs that a device runs at a time.

        A multiprocessor has four parts with registers of their own, allocated by 8 for each thread.
        """
        registers = 32 * -(-(self.max_registers or 255) // 8) * 8
        warps = 4 * (REGISTERS // 4 // registers)
        return MULTIPROCESSORS * min(32, warps // self.num_warps)

    def split(self, programs_per_row: int, num_rows: int, pixel_rows: int) -> tuple[int, int]:
        """Returns the interval rows of a program, and among how many programs they are split.

        A program of many rows stores fewer parts of the gradient, but few programs leave
        multiprocessors idle. The choice has the fewest rows of pixels one after another, or hardly
        more, where loading and storing an interval row counts as one more.

        Args:
            programs_per_row: programs that one interval row takes.
            num_rows: number of interval rows of an image.
            pixel_rows: rows of pixels of an interval row.
        """

        def rows_in_sequence(block_rows: int, splits: int) -> int:
            programs = programs_per_row * -(-num_rows // block_rows) * splits
            rows = block_rows * (-(-pixel_rows // splits) + 1)
            return -(-programs // self.resident_programs) * rows

        # Those that store the fewest parts come last.
        choices = [(1, splits) for splits in range(pixel_rows // 2, 1, -1)]
        choices += [(rows, 1) for rows in range(1, max(1, min(num_rows, MAX_BLOCK_ROWS)) + 1)]
        fewest = min(rows_in_sequence(*choice) for choice in choices)
        good = [choice for choice in choices if rows_in_sequence(*choice) <= 1.05 * fewest]
        return good[-1]


# Of a Hopper device. On other devices the split is not the best, but results are the same.
MULTIPROCESSORS, REGISTERS = 132, 1 << 16
MAX_BLOCK_ROWS = 16
HALO_BLOCK = 1024

# With 168 registers, each of the four parts of a multiprocessor runs three warps instead of two.
UPSAMPLED = (
    UpsampledTileShape(12, 2, 1, "6 classes a thread", 168),
    UpsampledTileShape(20, 4, 1, "5 classes a thread for Cityscapes' 19", 168),
    UpsampledTileShape(22, 2, 1, "11 classes a thread for VOC's 21", 255),
    UpsampledTileShape(24, 4, 1, "6 classes a thread: 12 spill on sm_120", 200),
    UpsampledTileShape(40, 8, 1, "5 classes a thread", 168),
    UpsampledTileShape(80, 16, 1, "5 classes a thread", 168),
    UpsampledTileShape(160, 16, 4, "10 classes a thread for ADE20K's 150", 255),
    UpsampledTileShape(256, 32, 4, "8 classes a thread", 255),
    UpsampledTileShape(1 << 30, 4, 2, "8 classes a thread, from planes", 255, 32),
)
# Without a gradient, which saves two thirds of the values of a class.
UPSAMPLED_FORWARD = (
    UpsampledTileShape(22, 2, 1, "11 classes a thread for 21", 168),
    UpsampledTileShape(24, 4, 1, "6 classes a thread: 12 spill on sm_120", 168),
    UpsampledTileShape(40, 4, 1, "10 classes a thread", 168),
    UpsampledTileShape(80, 8, 1, "10 classes a thread", 168),
    UpsampledTileShape(160, 16, 4, "10 classes a thread for 150", 168),
    *UPSAMPLED[-2:],
)
# The same for float64, whose values take two registers.
DOUBLE_UPSAMPLED = (
    UpsampledTileShape(12, 4, 1, "3 classes a thread", 255),
    UpsampledTileShape(24, 8, 1, "3 classes a thread", 255),
    UpsampledTileShape(48, 16, 1, "3 classes a thread", 255),
    UpsampledTileShape(128, 32, 2, "4 classes a thread", 255),
    UpsampledTileShape(1 << 30, 16, 2, "2 classes a thread, from planes", 255, 32),
)

# Few classes side by side, as one piece of memory: see `channels_last_kernel`. A block has all
# classes, rounded up.
MAX_FLAT_CLASSES = 32
FLAT = TileShape(MAX_FLAT_CLASSES, 0, 128, 4, "a pixel a thread, 10 KB of shared memory for 19")
SMOOTHED_FLAT = replace(FLAT, max_registers=128)
DOUBLE_FLAT = replace(FLAT, max_registers=MAX_REGISTERS)

# Labels per block and per program of the label check, unless there were too many programs then. Few
# threads and registers leave room for the first programs of the next kernel, which start early.
CHECK_BLOCK = 2048
CHECK_WEIGHTS_BLOCK = 512
CHECK_PIXELS = 8192
CHECK_WARPS = 4
# Of a thread. Without a limit, Triton 3.6 spills 8 bytes for more programs.
CHECK_WEIGHTS_REGISTERS = 64
MAX_CHECK_PROGRAMS = 8 * 132

# Partial losses per block of their sum, and its largest number of programs.
SUM_BLOCK = 2048
SUM_WARPS = 8
MAX_SUM_PROGRAMS = 64

# Programs of `count_kernel` and `nll_kernel`, unless they had more pixels than this; a lane counts
# to 2**10. The pixels of a program are a multiple of COUNT_STEP, the size of a histogram.
COUNT_PROGRAMS = 4 * 132
MAX_COUNT_PIXELS = 8192
COUNT_BLOCK = 128
COUNT_STEP = 1024
COUNT_WARPS = 4
# The same for `count_kernel` without a histogram.
COUNT_REGISTERS = 96
# A histogram takes instructions for each pair of classes: with more than 32 classes, too many.
MAX_HISTOGRAM_PAIRS = 32**2
EVALUATION_SUM_BLOCK = 4096
EVALUATION_SUM_WARPS = 8

# A backward pass whose gradient exists already only starts and ends its programs.
BACKWARD_PROGRAMS = 2048

# Images with fewer pixels are processed as one: a program for each would be mostly idle.
SMALL_IMAGE = 4096
USE_PDL = True


def tile_shape(num_classes: int, *, channels_last: bool, itemsize: int) -> TileShape:
    """Returns the row for a number of classes and the bytes of a logit.

    float64 takes twice the registers, hence half the pixels, or fewer.
    """
    table: tuple[TileShape, ...] = HALF_PLANES if itemsize == 2 else PLANES
    if channels_last:
        table = CHANNELS_LAST
    row = next((row for row in table if num_classes <= row.max_classes), MANY_CLASSES)
    if itemsize == 8:
        row = replace(row, pixels=row.pixels // 2, max_registers=MAX_REGISTERS)
        if num_classes <= MAX_CLASSES_IN_REGISTERS:
            row = row.within(FEWER_REGISTERS, num_classes, itemsize)
    return row


def upsampled_tile_shape(
    num_classes: int, *, is_double: bool, has_gradient: bool = True
) -> UpsampledTileShape:
    """Returns the row for a number of classes."""
    table: tuple[UpsampledTileShape, ...] = UPSAMPLED
    if not has_gradient:
        table = UPSAMPLED_FORWARD
    if is_double:
        table = DOUBLE_UPSAMPLED
    return next(row for row in table if num_classes <= row.max_classes)


@dataclass(frozen=True)
class IntervalTiling:
    """How the intervals between the sources of all images are split among programs.

    Attributes:
        shape: row of the table.
        chunks: programs that share the classes.
        tiles: tiles of intervals of a row.
        row_blocks: blocks of interval rows of an image.
        block_rows: interval rows of a block.
        splits: programs that share the rows of pixels of a block.
        parts: blocks of all images, times splits.
    """

    shape: UpsampledTileShape
    chunks: int
    tiles: int
    row_blocks: int
    block_rows: int
    splits: int
    parts: int

    @property
    def programs(self) -> int:
        """Number of programs."""
        return self.parts * self.tiles * self.chunks


def tile_intervals(
    shape: UpsampledTileShape, num_images: int, num_classes: int, axes: Axes
) -> IntervalTiling:
    """Tiles the intervals between the sources of images, with the rows and columns of `axes`."""
    rows, columns = axes
    chunks = -(-num_classes // (shape.chunk or num_classes))
    tiles = -(-(columns.num_sources + 1) // shape.intervals)
    interval_rows = rows.num_sources + 1
    block_rows, splits = shape.split(
        max(1, num_images) * tiles * chunks, interval_rows, rows.max_targets
    )
    row_blocks = -(-interval_rows // block_rows)
    parts = num_images * row_blocks * splits
    return IntervalTiling(shape, chunks, tiles, row_blocks, block_rows, splits, parts)


def interpolated_tile_shape(num_classes: int, *, is_double: bool) -> TileShape:
    """Returns the row for logits interpolated from scores, with half the pixels.

    Addresses and weights of the source pixels take registers as well.
    """
    row = tile_shape(num_classes, channels_last=False, itemsize=8 if is_double else 4)
    # Without a limit, Triton 3.6 spills some registers in the kernel for more classes.
    max_registers = None if num_classes <= MAX_CLASSES_IN_REGISTERS else MAX_REGISTERS
    return replace(row, pixels=row.pixels // 2, max_registers=max_registers)


class Strides(NamedTuple):
    """Strides of [N, C, *spatial] in elements, the spatial axes merged to at most three."""

    image: int
    class_: int
    slice_: int
    row: int
    column: int


@dataclass(frozen=True)
class Tiling:
    """Logits and tensors like them as the kernels process them: images of `pixels`, in tiles.

    Attributes:
        num_images, num_classes, pixels: sizes.
        rows, columns: sizes of the last two merged spatial axes.
        axes: number of merged spatial axes; 0 for one whose pixels are adjacent in all tensors.
        shape: row of the table.
        strides: of each tensor.
        is_wide: whether offsets within an image need 64 bits.
    """

    num_images: int
    num_classes: int
    pixels: int
    rows: int
    columns: int
    axes: int
    shape: TileShape
    strides: tuple[Strides, ...]
    is_wide: bool

    @property
    def tiles(self) -> int:
        """Tiles of an image."""
        return -(-self.pixels // self.shape.pixels)

    def within(self, registers: int, itemsize: int) -> "Tiling":
        """Returns tiles for kernels with these registers for logits, and no fewer tiles in all."""
        shape = self.shape
        if self.num_classes <= MAX_CLASSES_IN_REGISTERS:
            shape = shape.within(registers, self.num_classes, itemsize)
        return replace(
            self, shape=replace(shape, max_registers=shape.max_registers or MAX_REGISTERS)
        )

    def for_smoothing(self, itemsize: int) -> "Tiling":
        """Returns these tiles, or smaller ones, for kernels with label smoothing."""
        has_whole_pixels = self.shape.classes == 1 and itemsize < 8
        return self.within(
            SMOOTHED_REGISTERS_OF_WHOLE_PIXELS if has_whole_pixels else SMOOTHED_REGISTERS, itemsize
        )

    @property
    def is_dense_channels_last(self) -> bool:
        """Whether all tensors are [N, *spatial, C] in memory, without gaps."""
        return self.axes == 1 and all(
            tensor.class_ == 1
            and tensor.column == self.num_classes
            and (self.num_images == 1 or tensor.image == self.num_classes * self.pixels)
            for tensor in self.strides
        )


def tile(shape: Sequence[int], strides: Sequence[Sequence[int]], itemsize: int) -> Tiling | None:
    """Tiles tensors [N, C, *spatial] of one shape, with the strides of each, in elements.

    Returns None if the spatial axes cannot be merged to three.
    """
    axes: list[tuple[int, list[int]]] = []  # size, and the stride in each tensor
    for axis in range(2, len(shape)):
        if shape[axis] == 1:
            continue
        inner = [tensor[axis] for tensor in strides]
        if axes and all(
            outer == stride * shape[axis] for outer, stride in zip(axes[-1][1], inner, strict=True)
        ):
            axes[-1] = axes[-1][0] * shape[axis], inner
        else:
            axes.append((shape[axis], inner))
    if len(axes) > 3:
        return None
    padded = [(1, [1] * len(strides))] * (3 - len(axes)) + axes
    is_dense = len(axes) <= 1 and all(stride == 1 for stride in padded[2][1])
    extents = [
        sum((size - 1) * stride for size, stride in zip(shape[1:], tensor[1:], strict=True))
        for tensor in strides
    ]
    return Tiling(
        num_images=shape[0],
        num_classes=shape[1],
        pixels=math.prod(shape[2:]),
        rows=padded[1][0],
        columns=padded[2][0],
        axes=0 if is_dense else max(1, len(axes)),
        shape=tile_shape(
            shape[1],
            channels_last=strides[0][1] == 1 and padded[2][1][0] != 1,
            itemsize=itemsize,
        ),
        strides=tuple(
            Strides(tensor[0], tensor[1], *(axis[1][k] for axis in padded))
            for k, tensor in enumerate(strides)
        ),
        is_wide=max(extents) >= 1 << 31,
    )
