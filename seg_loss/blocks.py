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

from dataclasses import dataclass


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
TALLY_WARPS = 4

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
