"""The networks by the names that checkpoints and the command line use."""

from collections.abc import Mapping

from .fcn import FCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s

NETWORKS: Mapping[str, type[FCN]] = {
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fcn8s-atonce": FCN8sAtOnce,
}
"""Name to class; each takes `num_classes` and `channels`."""
