"""Networks in files: weights as safetensors, with the name and the sizes of the network.

The metadata of a file are strings:

    format              "pt"
    network             a key of `NETWORKS`, or "package.module:callable"
    num_classes         "21"
    preprocessing       "caffe" or "imagenet"
    channels            JSON, "[64, 128, 256, 512, 512, 4096]"; absent where it is the default
    class_names         JSON, '["background", "aeroplane", ...]'; absent where there are none

No file is unpickled. A network "package.module:callable" is imported only if the caller names it,
never because a file does. Nor are sizes trusted: a network gets memory when the shapes of all
tensors in the file agree with it.
"""

import contextlib
import importlib
import inspect
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seg_loss import InvalidInput

from . import caffe_weights
from ._numbers import is_positive_int
from .atomic_file import atomic_write
from .fcn import VGG16_CHANNELS
from .networks import NETWORKS
from .wrap import ScoreNetwork

PREPROCESSINGS = ("caffe", "imagenet")
"""Names of how images are prepared: BGR minus Caffe's mean, or torchvision's."""

_CHANNELS_OF = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc6")
_MAX_UNGROUPED_NUMBERS = 2**28  # of a layer, 1 GiB: 256 classes upsampled by 32
_LAYERS_OF = {  # the layers by which a network of NETWORKS is recognized
    "fcn8s-atonce": {"scale_pool3", "scale_pool4", "upscore8"},
    "fcn8s": {"score_pool3", "upscore8"},
    "fcn16s": {"score_pool4", "upscore16"},
    "fcn32s": {"score_fr", "upscore"},
}


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is, apart from its weights.

    Attributes:
        network: a key of `NETWORKS`, or "package.module:callable" of a network of the user's own.
        num_classes: C.
        channels: of a network of `NETWORKS`; None for its default, and for other networks.
        preprocessing: a name in `PREPROCESSINGS`.
        class_names: a name of printable characters for each class, or none.

    Raises:
        InvalidInput: if a value is of another type or range.
    """

    network: str
    num_classes: int
    channels: tuple[int, ...] | None = None
    preprocessing: str = "caffe"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.network not in tuple(NETWORKS) and not _is_import_name(self.network):
            expected = f'one of {", ".join(NETWORKS)}, or "package.module:callable"'
            raise InvalidInput("network", expected, repr(self.network))
        if not is_positive_int(self.num_classes):
            raise InvalidInput("num_classes", "an integer of at least 1", repr(self.num_classes))
        if self.channels is not None:
            sizes = self.channels
            is_six = isinstance(sizes, tuple) and len(sizes) == len(VGG16_CHANNELS)
            if self.network not in NETWORKS or not is_six or not all(map(is_positive_int, sizes)):
                expected = "six positive integers, for a network of models.networks"
                raise InvalidInput("channels", expected, repr(sizes))
        if self.preprocessing not in PREPROCESSINGS:
            expected = f"one of {', '.join(PREPROCESSINGS)}"
            raise InvalidInput("preprocessing", expected, repr(self.preprocessing))
        names = self.class_names
        # Terminals obey control characters, and UTF-8 has no surrogates.
        if not isinstance(names, tuple) or not all(
            isinstance(name, str) and name.isprintable() for name in names
        ):
            raise InvalidInput("class_names", "a tuple of printable strings", ascii(names)[:80])
        if names and len(names) != self.num_classes:
            raise InvalidInput("class_names", f"{self.num_classes} names, or none", f"{len(names)}")


def build(spec: NetworkSpec) -> nn.Module:
    """Returns a new network with `forward`, `scores` and `num_classes`.

    The module of "package.module:callable" is imported, and the callable called with
    `num_classes=`. It returns a torch module, which `ScoreNetwork` wraps if it has no `scores`, and
    which gets the attribute `num_classes` if it has none.

    Raises:
        InvalidInput: if there is no such module or callable, if it takes no `num_classes`, or if it
            returns something else, or a network with `scores` of another number of classes.
    """
    if spec.network in NETWORKS:
        return NETWORKS[spec.network](spec.num_classes, spec.channels or VGG16_CHANNELS)
    module_name, _, attribute = spec.network.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        fix = "The module must be importable: install it, or set PYTHONPATH."
        raise InvalidInput(
            "network", "an importable network", f"{spec.network}: {error}", fix
        ) from error
    if not callable(make):
        got = f"{spec.network}, {type(make).__name__}"
        raise InvalidInput("network", "a callable that returns a network", got)
    try:
        inspect.signature(make).bind(num_classes=spec.num_classes)
    except TypeError as error:
        expected = "a callable that takes num_classes alone"
        raise InvalidInput("network", expected, f"{spec.network}: {error}") from error
    except ValueError:
        pass  # no signature is known
    network = make(num_classes=spec.num_classes)
    if not isinstance(network, nn.Module):
        got = f"{type(network).__name__} from {spec.network}"
        raise InvalidInput("network", "a torch.nn.Module", got)
    if callable(getattr(network, "scores", None)):
        if not hasattr(network, "num_classes"):
            setattr(network, "num_classes", spec.num_classes)  # noqa: B010 - typed as a Tensor
        if network.num_classes != spec.num_classes:
            got = f"{network.num_classes} of {type(network).__name__}"
            raise InvalidInput("network", f"num_classes {spec.num_classes}", got)
        return network
    return ScoreNetwork(network, spec.num_classes)


def save_network(path: str | os.PathLike[str], model: nn.Module, spec: NetworkSpec) -> None:
    """Writes the weights of a network and what it is, as safetensors.

    A file of this name is replaced only when the new one is complete and on the disk.

    Args:
        path: where to write, "....safetensors".
        model: the network that `build(spec)` makes, trained.
        spec: what it is.

    Raises:
        InvalidInput: if the network is not what `spec` says, or has state besides tensors.
        OSError: if the file cannot be written.
    """
    _check_is(model, spec)
    tensors: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InvalidInput("model", "tensors as its state", f"{name}: {type(tensor).__name__}")
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory: tied weights are written twice.
        address = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if address in addresses else tensor
        addresses.add(address)
    metadata = {
        "format": "pt",
        "network": spec.network,
        "num_classes": str(spec.num_classes),
        "preprocessing": spec.preprocessing,
    }
    if spec.channels is not None:
        metadata["channels"] = json.dumps(spec.channels)
    if spec.class_names:
        metadata["class_names"] = json.dumps(spec.class_names)
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{Path(path).name}: {error}") from error


def load_network(
    path: str | os.PathLike[str], *, network: str | None = None
) -> tuple[nn.Module, NetworkSpec]:
    """Reads a network and its weights, ready for predictions.

    Args:
        path: a file of `save_network`, or a .caffemodel of an FCN, which is recognized by the names
            and shapes of its layers.
        network: the network in the file. A file with "package.module:callable" is read only if this
            names the same.

    Returns:
        The network in eval mode, on the CPU; and what it is. A .caffemodel has the preprocessing
        "caffe" and no class names.

    Raises:
        InvalidInput: if the file is no such file, is damaged, is of another network, or holds
            weights that do not fit it.
        OSError: if the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".caffemodel", ".safetensors"):
        fix = "Pickled checkpoints are not read: load them yourself, then use save_network."
        expected = "a .safetensors or .caffemodel file"
        raise InvalidInput("checkpoint", expected, Path(path).name, fix)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder is an OSError
        # Opening a pipe waits for its other end, and a device may never end.
        raise InvalidInput("checkpoint", "a regular file", f"{Path(path).name}, which is none")
    if suffix == ".caffemodel":
        return _load_caffemodel(path, network)
    return _load_safetensors(path, network)


def _load_caffemodel(
    path: str | os.PathLike[str], network: str | None
) -> tuple[nn.Module, NetworkSpec]:
    where = Path(path).name
    layers = caffe_weights.read(path)
    shapes = {name: tuple(blobs[0].shape) for name, blobs in layers.items() if blobs}
    spec = _recognize(shapes, where)
    _check_same(spec.network, network, where)
    model = _build_like(spec, _without_groups(shapes, where), where)
    caffe_weights.copy_into(model, layers, where)
    return model.eval(), spec


def _load_safetensors(
    path: str | os.PathLike[str], network: str | None
) -> tuple[nn.Module, NetworkSpec]:
    where = Path(path).name
    with open(path, "rb"):
        pass  # an OSError that names the file
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            spec = _spec_of(file.metadata() or {}, where)
            _check_same(spec.network, network, where)
            if spec.network in NETWORKS:
                weights = {
                    name.removesuffix(".weight"): shape
                    for name, shape in shapes.items()
                    if name.endswith(".weight")
                }
                found = _recognize(weights, where)
                said = (spec.network, spec.num_classes, spec.channels or VGG16_CHANNELS)
                sizes = (found.network, found.num_classes, found.channels)
                if sizes != said:
                    expected, got = (
                        f"{network} with {num_classes} classes and channels {channels}"
                        for network, num_classes, channels in (said, sizes)
                    )
                    raise InvalidInput(where, f"{expected}, as it says", got)
                model = _build_like(spec, weights, where)
            else:
                # Some layer scores the classes, so that a file bounds what its network takes.
                if not any(
                    spec.num_classes in shape and 0 not in shape for shape in shapes.values()
                ):
                    expected = f"a tensor with {spec.num_classes} classes, as it says"
                    raise InvalidInput(where, expected, "none")
                model = build(spec)
            _copy_state(model, file, shapes, where)
    except SafetensorError as error:
        raise InvalidInput(where, "a safetensors file", f"{error}") from error
    return model.eval(), spec


def _copy_state(
    model: nn.Module, file: safe_open, shapes: Mapping[str, Sequence[int]], where: str
) -> None:
    """Copies the tensors of a file into a network, one at a time."""
    state = model.state_dict()
    missing = [name for name in state if name not in shapes]
    unexpected = [name for name in shapes if name not in state]
    reshaped = [
        f"{name} {shapes[name]} instead of {tuple(state[name].shape)}"
        for name in state
        if name in shapes and shapes[name] != tuple(state[name].shape)
    ]
    differences = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    found = [
        f"{what}: {caffe_weights.listed(names)}" for what, names in differences.items() if names
    ]
    if found:
        got = "tensors " + "; ".join(found)
        raise InvalidInput(where, f"the weights of {type(model).__name__}", got)
    with torch.no_grad():
        for name, target in state.items():
            source = file.get_tensor(name)  # type: ignore[no-untyped-call]
            if source.is_floating_point() != target.is_floating_point():
                expected, got = (str(x.dtype).removeprefix("torch.") for x in (target, source))
                raise InvalidInput(f"{where}: {name}", expected, got)
            target.copy_(source)


def _recognize(shapes: Mapping[str, tuple[int, ...]], where: str) -> NetworkSpec:
    """Returns the network of NETWORKS that weights of these shapes, by layer, belong to."""
    network = next((name for name, layers in _LAYERS_OF.items() if layers <= shapes.keys()), None)
    missing = [name for name in (*_CHANNELS_OF, "score_fr") if len(shapes.get(name, ())) != 4]
    if network is None or missing:
        fix = "VGG16 alone is where a training begins: see models.surgery.load_vgg16."
        got = f"layers {caffe_weights.listed(list(shapes))}"
        raise InvalidInput(where, f"the weights of one of {', '.join(NETWORKS)}", got, fix)
    channels = tuple(shapes[name][0] for name in _CHANNELS_OF)
    with _named(where):
        return NetworkSpec(network, shapes["score_fr"][0], channels)


def _without_groups(
    shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of weights, by layer, with deconvolutions [C,1,k,k] as [C,C,k,k].

    Caffe's `group: C` has the first; `caffe_weights.copy_into` makes the second of it. A small
    file could thereby ask for much memory, which is limited.
    """
    dense = dict(shapes)
    for name, shape in shapes.items():
        if name.startswith("upscore") and len(shape) == 4 and shape[1] == 1:
            dense[name] = (shape[0], shape[0], *shape[2:])
            if math.prod(dense[name]) > _MAX_UNGROUPED_NUMBERS:
                expected = f"at most {_MAX_UNGROUPED_NUMBERS} numbers without groups"
                raise InvalidInput(f"{where}: {name}", expected, str(dense[name]))
    return dense


def _build_like(spec: NetworkSpec, shapes: Mapping[str, tuple[int, ...]], where: str) -> nn.Module:
    """Returns an FCN without values in its weights, if it has weights of these shapes.

    A damaged or malicious file can tell any size in one shape, but not in all of them without the
    numbers that belong there.
    """
    # The deconvolution of C classes to C is the one weight whose size is not that of another.
    for name, shape in shapes.items():
        if name.startswith("upscore") and shape[:2] != (spec.num_classes, spec.num_classes):
            expected = f"{spec.num_classes} classes to {spec.num_classes}"
            raise InvalidInput(f"{where}: {name}", expected, str(shape))
    with torch.device("meta"):
        model = build(spec)
    for name, blob in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and shapes.get(layer) != tuple(blob.shape):
            got = str(shapes.get(layer, "none"))
            raise InvalidInput(f"{where}: {layer}", f"weights {tuple(blob.shape)}", got)
    return model.to_empty(device="cpu")


def _spec_of(metadata: Mapping[str, str], where: str) -> NetworkSpec:
    """Returns what the metadata of a file say, none of which is trusted."""
    for key in ("network", "num_classes", "preprocessing"):
        if key not in metadata:
            fix = "Write it with models.checkpoints.save_network."
            raise InvalidInput(where, f"the metadata {key!r}", f"{sorted(metadata)}"[:200], fix)
    try:
        num_classes = int(metadata["num_classes"])
        channels = metadata.get("channels")
        sizes = None if channels is None else json.loads(channels)
        names = json.loads(metadata.get("class_names", "[]"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(where, "valid metadata", f"{error}"[:200]) from None
    with _named(where):
        return NetworkSpec(
            metadata["network"],
            num_classes,
            tuple(sizes) if isinstance(sizes, list) else sizes,
            metadata["preprocessing"],
            tuple(names) if isinstance(names, list) else names,
        )


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Adds the name of a file to an error about what is in it."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error.where}", error.expected, error.got, error.fix) from None


def _check_is(model: nn.Module, spec: NetworkSpec) -> None:
    """Checks that a network is the one that `build(spec)` makes, as far as can be told."""
    if not callable(getattr(model, "scores", None)):
        fix = "Save the module inside DistributedDataParallel; wrap others in ScoreNetwork."
        raise InvalidInput("model", "a network with scores", type(model).__name__, fix)
    if "_orig_mod" in dict(model.named_children()):
        fix = "Save its _orig_mod, whose tensors have the names that load_network expects."
        raise InvalidInput("model", "the network itself", "a compiled module", fix)
    expected, got = [spec.network, spec.num_classes], [spec.network, spec.num_classes]
    if spec.network in NETWORKS:
        expected.append(spec.channels or VGG16_CHANNELS)
        got = [
            next(
                (name for name, cls in NETWORKS.items() if cls is type(model)), type(model).__name__
            ),
            getattr(model, "num_classes", None),
            getattr(model, "channels", None),
        ]
    elif hasattr(model, "num_classes"):
        got[1] = model.num_classes
    if got != expected:
        raise InvalidInput("model", ", ".join(map(str, expected)), ", ".join(map(str, got)))


def _check_same(found: str, wanted: str | None, where: str) -> None:
    """Checks that the caller wants the network of a file, and names it if it is not ours."""
    if wanted is not None and wanted != found:
        raise InvalidInput(where, f"the network {wanted}", found)
    if wanted is None and found not in NETWORKS:
        fix = f"If you trust that code, name it yourself: network={found!r}."
        raise InvalidInput(where, "a network of this package", found, fix)


def _is_import_name(name: object) -> bool:
    """Returns whether a name has the form "package.module:callable"."""
    if not isinstance(name, str) or len(name) > 256:
        return False
    module, colon, attribute = name.partition(":")
    return (
        bool(colon)
        and attribute.isidentifier()
        and all(part.isidentifier() for part in module.split("."))
    )
