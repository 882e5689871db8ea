"""How the GPU's work is split: tables of tile shapes, selected by shape and layout alone.

A program processes a tile of `pixels` pixels with all their classes, as blocks [classes, pixels]
that stay in registers, so that the logits are read once. Two limits decide the sizes. A thread must
hold few enough values (classes * pixels / threads, at most 128 registers) that nothing spills; the
tests check this on the compiled kernels. And enough bytes must be in flight to use the memory's
bandwidth: about 64 KiB per multiprocessor, which 12 warps of 64 values per thread give. Padding the
classes to whole blocks wastes instructions, not bytes.

Nothing is tuned at run time. The first call costs one compilation and no search, and the same shape
is split in the same way on every device, so that sums have the same bits.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TileShape:
    """A row of the table for logits.

    Attributes:
        max_classes: the largest number of classes the row is for.
        classes, pixels: size of a block, powers of two.
        num_warps: warps of a program.
        reason: why these.
    """

    max_classes: int
    classes: int
    pixels: int
    num_warps: int
    reason: str

    def num_blocks(self, num_classes: int) -> int:
        """Returns the number of blocks of a tile."""
        return -(-num_classes // self.classes)

    def with_more_warps(self) -> "TileShape":
        """Returns the row with twice the warps, at most 8, if it is for more than 64 classes.

        The maps of the top classes keep all exponentials: Triton 3.6 and 3.7 would spill registers.
        """
        if self.max_classes <= 64:
            return self
        return replace(self, num_warps=min(8, 2 * self.num_warps))


# With more classes a pixel's classes do not fit the registers. Each pass (maximum, sum, gradient)
# loads the blocks again, after the first pass from the second-level cache.
MAX_CLASSES_IN_REGISTERS = 4096

# Class planes, [N, C, H, W] in memory: neighbouring threads hold neighbouring pixels.
PLANES = (
    TileShape(32, 1, 512, 4, "a pixel per thread: no padding, no exchange between threads"),
    TileShape(64, 4, 128, 4, "a pixel per 4 threads: half the registers, no padding to 64"),
    TileShape(160, 8, 64, 4, "ADE20K's 150 padded by 2; 64 pixels are whole sectors in bfloat16"),
    TileShape(256, 16, 64, 8, "16 blocks of 4 values a thread"),
    TileShape(512, 32, 32, 8, "as above with half the pixels"),
    TileShape(1024, 64, 32, 8, "128 values a thread; rows of 128 bytes still"),
    TileShape(2048, 128, 16, 8, "as above; rows of 64 bytes, two sectors"),
    TileShape(4096, 256, 8, 8, "the last that fits; rows of one sector"),
    TileShape(1 << 30, 256, 8, 8, "not in registers: one block at a time"),
)

# Classes side by side, channels_last: neighbouring threads hold neighbouring classes. All threads
# with classes of a pixel compute that pixel's scalars, so they should be few. But the fewer classes
# a warp loads of a pixel at a time, the more cache lines each load touches.
CHANNELS_LAST = (
    TileShape(32, 4, 256, 4, "for 19 classes half the instructions of 8, half the lines of 2"),
    TileShape(64, 8, 128, 4, "64 values a thread"),
    TileShape(160, 8, 64, 4, "76 values a thread for ADE20K's 150"),
    TileShape(1024, 128, 8, 4, "at most 8 blocks of 8 values a thread"),
    TileShape(4096, 512, 4, 8, "at most 8 blocks of 8 values a thread"),
    TileShape(1 << 30, 256, 4, 8, "not in registers"),
)


@dataclass(frozen=True)
class UpsampledTileShape:
    """A row of the table for the gradient of upsampled scores: see `gpu.upsampled`.

    A block is [row_groups, intervals, classes], one value per thread. For each block a thread holds
    about nine values: two sources, their gradients for a pixel row and for an interval row, and the
    logit.

    Attributes:
        max_classes: the largest number of classes the row is for.
        classes: classes of a block; at most a warp, whose lanes then share a pixel.
        intervals: intervals side by side, a power of two; one of them belongs to two tiles.
        row_groups: groups of target rows, at least 2, so that sources are fewer than threads.
        num_warps: warps of a program.
        max_registers: registers of a thread, so that several programs fit; None for no limit.
        reason: why these.
        chunk: classes per program, if one program cannot hold all.
    """

    max_classes: int
    classes: int
    intervals: int
    row_groups: int
    num_warps: int
    max_registers: int | None
    reason: str
    chunk: int | None = None

    def block_rows(self, programs_per_row: int, num_rows: int) -> int:
        """Returns the number of source rows per program, which also computes one more interval row.

        Few rows waste that one, many rows leave multiprocessors idle. The best number has the
        fewest interval rows one after another.
        """
        registers = 32 * self.num_warps * (self.max_registers or 255)
        resident = MULTIPROCESSORS * max(1, REGISTERS // registers)

        def rows_in_sequence(block_rows: int) -> int:
            programs = programs_per_row * -(-num_rows // block_rows)
            return -(-programs // resident) * (block_rows + 1)

        return min(range(1, max(1, min(num_rows, MAX_BLOCK_ROWS)) + 1), key=rows_in_sequence)


# Of a Hopper device. On other devices the blocks are not the best, but results are the same.
MULTIPROCESSORS, REGISTERS = 132, 1 << 16
MAX_BLOCK_ROWS = 64

UPSAMPLED = (
    UpsampledTileShape(6, 2, 32, 2, 4, 168, "3 classes a thread; 1 goes through memory in 3.6"),
    UpsampledTileShape(12, 2, 16, 4, 4, 168, "6 classes a thread: 12 warps a multiprocessor"),
    UpsampledTileShape(24, 4, 16, 2, 4, 168, "the same, or 5 for Cityscapes' 19"),
    UpsampledTileShape(64, 8, 8, 2, 4, None, "8 classes a thread: 8 warps"),
    UpsampledTileShape(160, 16, 8, 2, 8, None, "10 classes a thread for ADE20K's 150"),
    UpsampledTileShape(256, 32, 4, 2, 8, None, "8 classes a thread; 1 interval of 4 is shared"),
    UpsampledTileShape(1 << 30, 4, 16, 2, 4, 128, "4 classes a thread, from planes", chunk=16),
)

# Labels per program of the label check, and its largest number of programs: each program of the
# loss sums their counts, which is cheaper than a separate kernel.
CHECK_PIXELS = 4096
CHECK_WARPS = 8
MAX_CHECK_PROGRAMS = 512

# Pixels of a tile of `evaluate_kernel`, for a block of classes, and pixels per program, unless an
# image had too many programs then.
EVALUATE_PIXELS = 128
EVALUATE_PROGRAM_PIXELS = 4096
MAX_EVALUATE_PROGRAMS = 1024
EVALUATE_CLASSES = 16
EVALUATE_WARPS = 8

# Above this number of programs a program processes several tiles, so that partial sums are few.
MANY_PROGRAMS = 8192
# A backward pass whose gradient exists already only starts and ends its programs.
BACKWARD_PROGRAMS = 2048

# Images with fewer pixels are processed as one: a program for each would be mostly idle.
SMALL_IMAGE = 4096


def tile_shape(num_classes: int, *, channels_last: bool, is_double: bool) -> TileShape:
    """Returns the row for a number of classes.

    float64 takes twice the registers, hence half the pixels.
    """
    table = CHANNELS_LAST if channels_last else PLANES
    row = next(row for row in table if num_classes <= row.max_classes)
    return replace(row, pixels=row.pixels // 2) if is_double else row


def upsampled_tile_shape(num_classes: int, *, is_double: bool) -> UpsampledTileShape:
    """Returns the row for a number of classes; float64 takes twice the threads per pixel."""
    row = next(row for row in UPSAMPLED if num_classes <= row.max_classes)
    if not is_double or row.chunk is not None:
        return row
    return replace(row, classes=2 * row.classes, intervals=row.intervals // 2, max_registers=None)


def interpolated_tile_shape(num_classes: int, *, is_double: bool) -> TileShape:
    """Returns the row for logits interpolated from scores, with half the pixels.

    Addresses and weights of the source pixels take registers as well.
    """
    row = tile_shape(num_classes, channels_last=False, is_double=is_double)
    return replace(row, pixels=row.pixels // 2)
