"""How the GPU's work is cut: one table, a row for each regime, chosen by shape and layout alone.

A program works on a tile of `pixels` pixels and all classes, as a handful of blocks [classes,
pixels]; the blocks of a tile stay in registers, so that the logits are read once. Two things decide
the sizes. A thread must hold few enough values (classes * pixels / threads; 128 registers' worth at
most) that nothing spills, which the tests assert from the compiled kernels; and enough bytes must
be under way to fill the memory: about 64 KiB on each multiprocessor, which 12 warps with 64 values
each give. Padding the classes to whole blocks wastes instructions, not bytes.

Nothing here is tuned at run time: the first call costs one compilation and no search, and the same
shape is cut the same way on every device, so that sums come out the same.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Blocks:
    """A row of the table.

    Attributes:
        max_classes: the row is for at most so many classes.
        classes, pixels: of one block, powers of two.
        num_warps: of a program.
        reason: why these.
    """

    max_classes: int
    classes: int
    pixels: int
    num_warps: int
    reason: str

    def num_blocks(self, num_classes: int) -> int:
        """Blocks that make up a tile."""
        return -(-num_classes // self.classes)

    def with_more_warps(self) -> "Blocks":
        """Twice the warps, at most 8, for more than 64 classes.

        The maps of the top classes keep all exponentials: Triton 3.6 and 3.7 would spill registers.
        """
        if self.max_classes <= 64:
            return self
        return replace(self, num_warps=min(8, 2 * self.num_warps))


# Above this many classes a column does not fit the registers: blocks are read once per pass
# (maximum, sum, gradient), the later times from the second-level cache.
MAX_HELD_CLASSES = 4096

# Class planes, [N, C, H, W] in memory: neighbouring threads hold neighbouring pixels.
PLANES = (
    Blocks(32, 1, 512, 4, "a column per thread: no padding, no exchange between threads"),
    Blocks(64, 4, 128, 4, "columns over 4 threads: half the registers, still no padding to 64"),
    Blocks(160, 8, 64, 4, "ADE20K's 150 padded by 2; 64 pixels are whole sectors in bfloat16 too"),
    Blocks(256, 16, 64, 8, "16 blocks of 4 values a thread"),
    Blocks(512, 32, 32, 8, "as above with half the pixels"),
    Blocks(1024, 64, 32, 8, "128 values a thread; rows of 128 bytes still"),
    Blocks(2048, 128, 16, 8, "as above; rows of 64 bytes, two sectors"),
    Blocks(4096, 256, 8, 8, "the last that fits; rows of one sector"),
    Blocks(1 << 30, 256, 8, 8, "not held: one block at a time in registers"),
)

# Classes side by side, channels_last: neighbouring threads hold neighbouring classes. All threads
# with classes of a pixel do that pixel's arithmetic, so they should be few; but the fewer classes a
# warp reads of a pixel at a time, the more cache lines one load of it touches.
CHANNELS_LAST = (
    Blocks(32, 4, 256, 4, "for 19 classes half the instructions of 8, half the lines of 2"),
    Blocks(64, 8, 128, 4, "64 values a thread"),
    Blocks(160, 8, 64, 4, "76 values a thread for ADE20K's 150"),
    Blocks(1024, 128, 8, 4, "at most 8 blocks of 8 values a thread"),
    Blocks(4096, 512, 4, 8, "at most 8 blocks of 8 values a thread"),
    Blocks(1 << 30, 256, 4, 8, "not held"),
)


@dataclass(frozen=True)
class Cells:
    """A row of the table for the gradient of upsampled scores: see `triton_upsampling`.

    A block is [parts, cells, classes], one value a thread. Of each a thread holds about nine: two
    nodes, what they get of a pixel row, what their neighbours get of a cell row, and the logit.

    Attributes:
        max_classes: the row is for at most so many classes.
        classes: of a block; at most a warp, whose lanes then share a pixel.
        cells: side by side, a power of two; one column of them belongs to two tiles.
        parts: of a cell's pixel rows, at least 2, so that nodes are fewer than threads.
        num_warps: of a program.
        max_registers: of a thread, so that several programs fit; None for as many as there are.
        reason: why these.
        chunk: of classes, that a program takes alone, if it cannot hold them all.
    """

    max_classes: int
    classes: int
    cells: int
    parts: int
    num_warps: int
    max_registers: int | None
    reason: str
    chunk: int | None = None

    def band_rows(self, programs_a_row: int, num_rows: int) -> int:
        """How many rows of nodes a program takes, of as many; with one row of cells more.

        Few rows waste that one, many leave multiprocessors idle: the fewest cell rows in turn.
        """
        registers = 32 * self.num_warps * (self.max_registers or 255)
        at_once = MULTIPROCESSORS * max(1, REGISTERS // registers)

        def in_turn(band_rows: int) -> int:
            programs = programs_a_row * -(-num_rows // band_rows)
            return -(-programs // at_once) * (band_rows + 1)

        return min(range(1, max(1, min(num_rows, MAX_BAND_ROWS)) + 1), key=in_turn)


# Of a Hopper device. On others the bands are not the best, but no result depends on them.
MULTIPROCESSORS, REGISTERS = 132, 1 << 16
MAX_BAND_ROWS = 64

CELLS = (
    Cells(6, 2, 32, 2, 4, 168, "3 classes a thread; of 1 Triton 3.6 makes a detour through memory"),
    Cells(12, 2, 16, 4, 4, 168, "6 classes a thread: 12 warps a multiprocessor"),
    Cells(24, 4, 16, 2, 4, 168, "the same, or 5 for Cityscapes' 19"),
    Cells(64, 8, 8, 2, 4, None, "8 classes a thread: 8 warps"),
    Cells(160, 16, 8, 2, 8, None, "10 classes a thread for ADE20K's 150"),
    Cells(256, 32, 4, 2, 8, None, "8 classes a thread; 4 cells, of which 1 is a neighbour's"),
    Cells(1 << 30, 4, 16, 2, 4, 128, "from stored slopes, 4 classes a thread", chunk=16),
)

# Labels read by a program of the survey at a time, and programs of it at most: each program of the
# loss adds up their counts anew, which is cheaper than a kernel of its own for it.
SURVEY_PIXELS = 4096
SURVEY_WARPS = 8
MAX_SURVEY_PROGRAMS = 512

# Pixels of a tile of the tally behind `evaluate`, against a block of classes; pixels a program runs
# over, unless an image had too many programs then.
TALLY_PIXELS = 128
TALLY_RUN = 4096
MAX_TALLY_PROGRAMS = 1024
TALLY_CLASSES = 16
TALLY_WARPS = 8

# Tiles in turn for a program, so that partial sums stay few; beyond this many programs only.
MANY_PROGRAMS = 8192
# A backward pass that finds its gradient ready only starts and ends its programs.
BACKWARD_PROGRAMS = 2048

# Images with fewer pixels than this are worked on as one: a program for each would be mostly idle.
SMALL_IMAGE = 4096


def blocks_for(num_classes: int, *, channels_last: bool, is_double: bool) -> Blocks:
    """The row for so many classes; float64 takes twice the registers, hence half the pixels."""
    table = CHANNELS_LAST if channels_last else PLANES
    row = next(row for row in table if num_classes <= row.max_classes)
    if not is_double:
        return row
    return Blocks(row.max_classes, row.classes, row.pixels // 2, row.num_warps, row.reason)


def cells_for(num_classes: int, *, is_double: bool) -> Cells:
    """The row for so many classes; float64 goes over twice the threads a pixel."""
    row = next(row for row in CELLS if num_classes <= row.max_classes)
    if not is_double or row.chunk is not None:
        return row
    return replace(row, classes=2 * row.classes, cells=row.cells // 2, max_registers=None)


def interpolated_blocks_for(num_classes: int, *, is_double: bool) -> Blocks:
    """The row for logits between nodes, whose addresses and weights take registers as well."""
    row = blocks_for(num_classes, channels_last=False, is_double=is_double)
    return replace(row, pixels=row.pixels // 2)
