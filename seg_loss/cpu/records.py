"""The memory that a call shares with its kernels: NumPy dtypes, needing neither torch nor Numba.

`plan` fills a `JOB` and passes its address. A kernel reads fields as `job.logits.class_stride`.
Integers are int64 and addresses are integers; a missing tensor has the address 0.
"""

import numpy as np

from seg_loss.constants import NUM_CONFIDENCE_BINS, NUM_TOP_CLASSES

DTYPES = (
    "float32", "float64", "float16", "bfloat16",
    "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64",
)  # fmt: skip
ITEMSIZES = 4, 8, 2, 2, 1, 1, 2, 4, 8, 2, 4, 8
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
UINT8, INT8, INT16, INT32, INT64, UINT16, UINT32, UINT64 = range(4, 12)
NUM_BINS, TOP = NUM_CONFIDENCE_BINS, NUM_TOP_CLASSES
# Where the divisor comes from: known before the call, the number of valid pixels, their weight.
KNOWN, VALID, WEIGHT = range(3)

LANES = 16  # pixels of a vector: a cache line of float32
# Sizes of scratch memory, which plans reserve and kernels divide: rows of a tile beside those of
# the classes (`tiles`), pixels of a tile (`many_classes`), copies of the tables (`evaluate`),
# blocks of source rows and corners of an interval (`upsampled`), vectors of a phase
# (`interval_columns`), target pixels that are packed into a word (`best_class`).
NUM_EXTRA_ROWS = 10
MANY_CLASSES_TILE = 128
NUM_TABLE_COPIES = 4
NUM_SOURCE_BLOCKS, NUM_CORNERS = 4, 4
NUM_PHASE_VECTORS = 6
PACKED_PIXELS = 4


def _integers(names: str) -> list[tuple[str, type]]:
    return [(name, np.int64) for name in names.split()]


# A tensor [N, C, *spatial]. The spatial axes are merged to at most three: slices of `num_rows` rows
# of `num_columns` columns. Strides are in elements. Labels and maps have one class.
VIEW = np.dtype(
    _integers(
        "address dtype_code num_classes image_stride class_stride"
        " num_rows num_columns slice_stride row_stride column_stride"
    )
)

# Addresses of the maps to write, contiguous [N, pixels] or [N, k, pixels].
MAPS = np.dtype(
    _integers("prediction prediction_dtype nll confidence entropy top_classes top_probabilities")
)

# The partial sums of a chunk. The label check writes all but the last four.
CHUNK = np.dtype(
    [
        ("weight", np.float64),
        *_integers("valid invalid_labels first_invalid_label invalid_weights first_invalid_weight"),
        ("loss", np.float64),
        ("compensation", np.float64),
        *_integers("non_finite saturated"),
    ]
)

# The sums of an image.
IMAGE = np.dtype([("loss", np.float64), ("weight", np.float64), ("valid", np.int64)])

# The sizes of an upsampling, and the addresses of its tables. A tile is at most `tile_intervals` by
# `tile_phases`. `source_stride` and `phase_stride` are the elements from one class's sources, and
# from one phase's weights, to the next.
GRID = np.dtype(
    _integers(
        "num_rows num_columns source_rows source_columns num_phases tile_intervals tile_phases"
        " source_stride phase_stride has_zero_weights"
        " row_starts row_weights column_starts column_weights halo_rows"
        " pixel_classes pixel_weights sources corners"
        " edges exponentials phase_vectors exponent_weights weight_steps"
        " has_candidates distances tops highest candidates strip_pixels"
    )
)

JOB = np.dtype(
    [
        *((name, VIEW) for name in ("logits", "labels", "pixel_weight", "terms", "gradient")),
        ("grad_output_view", VIEW),
        ("maps", MAPS),
        # Addresses: of int64 [num_ignored], of float64 [C + 2] or 0, of the chunks and the images,
        # of the scratch memory of the first thread.
        *_integers("ignored num_ignored class_weight chunks images scratch scratch_bytes"),
        # Of the results: the loss, and float64 [2] for the divisor and 1 / (divisor temperature).
        *_integers("loss divisor"),
        # Of float64 [chunks, C + NUM_BINS], which `evaluate` sums by chunk.
        *_integers("chunk_tables"),
        # Chunk k of an image begins at unit `k * chunk_units` of `image_units`: pixels or rows.
        *_integers("num_images image_units chunk_units chunks_per_image pixels"),
        # The label check has chunks of its own where units are no pixels.
        *_integers("label_chunk_pixels label_chunks_per_image"),
        *_integers("checks_labels stops_if_invalid divisor_source has_floor"),
        ("known_divisor", np.float64),
        ("grad_output", np.float64),
        ("inverse_temperature", np.float64),
        ("label_smoothing", np.float64),
        ("max_nll", np.float64),
        ("sum_of_class_weights", np.float64),
        # Where the parts of a thread's scratch memory begin.
        *_integers("tile row_stride is_dense is_weighted"),
        *_integers("rows classes factors extra predicted offsets tables"),
        ("grid", GRID),
        # Written by kernels: the numbers of chunks taken and done, in cache lines of their own.
        ("padding", np.int64, 8),
        ("next_thread", np.int64), ("padding1", np.int64, 7),
        ("next_label_chunk", np.int64), ("padding2", np.int64, 7),
        ("label_chunks_done", np.int64), ("padding3", np.int64, 7),
        ("next_chunk", np.int64), ("padding4", np.int64, 7),
        ("chunks_done", np.int64), ("padding5", np.int64, 7),
        *_integers("num_valid num_invalid"),
        ("weight_sum", np.float64),
    ]
)  # fmt: skip
