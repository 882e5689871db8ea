"""The weights that a training begins with: the option `init`."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import IllPosed, Malformed, safe_repr
from ..models_import import import_models
from .checkpoints import load_weights
from .networks import NetworkSpec, load_network

RANDOM = "random"
SUFFIXES = (".caffemodel", ".safetensors")


def initialize(model: nn.Module, spec: NetworkSpec, init: str, seed: int) -> str:
    """Writes the first weights of a network, and returns a sentence about them.

    | init | weights |
    |---|---|
    | random | random; scores are zero, so that the first loss is ln C |
    | VGG16 .caffemodel | conv1_1 to fc7 |
    | FCN .caffemodel, or a checkpoint | the layers that both networks share: surgery |
    | torchvision's VGG16 state, .safetensors | conv1_1 to fc7 |

    A network of the user has initialised itself, and is filled from its own checkpoints alone.

    Args:
        model: the network.
        spec: its description.
        init: random, or the path of a file.
        seed: of random weights.

    Raises:
        IllPosed, Malformed, InvalidInput: if the file is another one, or fits no layer.
        OSError: if it cannot be read.
    """
    surgery = import_models("surgery")
    is_fcn = spec.network in import_models("networks").NETWORKS
    if is_fcn:
        surgery.initialize(model, seed, preprocessing=spec.preprocessing)
    if init == RANDOM:
        return f"weights: random, seed {seed}" if is_fcn else f"weights: those of {spec.network}"
    path = Path(init)
    if path.suffix not in SUFFIXES:
        fix = "Other files, such as .pth, are pickles: load them in Python and save safetensors."
        raise IllPosed("init", f"random, or a file {' or '.join(SUFFIXES)}", safe_repr(init), fix)
    if not is_fcn:
        load_weights(path, model, spec, "Such a network begins with weights of the same sizes.")
        return f"weights: {path}"
    if path.suffix == ".caffemodel":
        layers = import_models("caffe_weights").read(path)
        if "score_fr" not in layers:
            surgery.load_vgg16(model, layers)
            return f"weights: VGG16 of {path}, scores zero"
        copied = surgery.transplant(layers, model)
    else:
        state = _torchvision_state(path)
        if state is not None:
            surgery.load_torchvision_vgg16(model, state)
            return f"weights: torchvision's VGG16 of {path}, scores zero"
        loaded, _ = load_network(path)
        copied = surgery.transplant(loaded, model)
    return f"weights: {len(copied)} layers of {path}, from {copied[0]} to {copied[-1]}"


def _torchvision_state(path: Path) -> dict[str, object] | None:
    """Returns the tensors of a file that has torchvision's names, or None."""
    with path.open("rb"):
        pass  # an OSError that names the file
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if "features.0.weight" not in names:
                return None
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        got = f"the error {safe_repr(f'{error}')}"
        raise Malformed(f"{path}", "a safetensors file", got) from None
