"""Names and numbers that the library, its kernels and its users share.

This module imports nothing, and importing it does not load torch: a command line can list the
options of a loss at once.
"""

NORMALIZATIONS = ("valid", "full", "batch", "none", "weight")
"""Values of `normalization`: what the sum of the terms is divided by."""

CHECK_LABELS = ("raise", "defer", "ignore")
"""Values of `check_labels`: when invalid labels and weights are reported."""

MAPS = ("prediction", "nll", "confidence", "entropy", "top_classes", "top_probabilities")
"""Names of the per-pixel maps that `evaluate` can return."""

PREDICTION_MAPS = ("prediction", "confidence", "entropy", "top_classes", "top_probabilities")
"""Names of the per-pixel maps that `predict` can return: those that need no labels."""

SCORES = ("logits", "probabilities")
"""Values of `scores`: whether scores are logits, or probabilities after the softmax."""

ABSENT = ("skip", "gt_only", "zero", "one")
"""Values of `absent`: how mean IU treats classes that do not occur."""

FLOAT_DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Names of the torch dtypes that logits and weights may have."""

LABEL_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
"""Names of the torch dtypes that labels may have."""

USUAL_VOIDS = (254, 255, *(2**bits - 1 for bits in (15, 16, 31, 32)))
"""Labels that often mark void pixels, beside negative ones: the largest of a dtype, and 254."""

NUM_TOP_CLASSES = 3
"""Number of classes in the maps `top_classes` and `top_probabilities`."""

NUM_CONFIDENCE_BINS = 15
"""Number of bins of the calibration: (0, 1/15], (1/15, 2/15], ..., (14/15, 1]."""

SATURATED_NLL = 103.97207708399179
"""150 ln 2. Above this nll the target class has probability 0 in float32, subnormals included."""

FCN_CROPS = {8: 31, 16: 27, 32: 19}
"""Crop offset of the last layer of FCN-8s, FCN-16s and FCN-32s, by its stride."""
