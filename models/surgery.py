"""Net surgery: weights from one network to another, and weights to begin a training with.

FCN trains in stages. VGG16's classifier becomes FCN-32s, whose weights FCN-16s continues from, and
from that FCN-8s. What a network shares with the one before has the same names, and what is new
begins at zero (scores) or with the bilinear filter (upsampling), so that each stage begins with the
results of the last.
"""

import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seg_loss import InvalidInput

from .caffe_weights import Layers, copy_into, layers_of
from .fcn import VGG16, BilinearDeconvolution, ConstantScale

_CAFFE_PIXEL_STD = 60.0  # of natural images with values from 0 to 255, about the mean
_VGG16_LAYERS = (
    "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv4_1",
    "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7",
)  # fmt: skip
_TORCHVISION_LAYERS = dict(
    zip(
        (*(f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
         "classifier.0", "classifier.3"),
        _VGG16_LAYERS,
        strict=True,
    )
)  # fmt: skip
_TIMM_LAYERS = {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7"}  # convolutions


def fc_to_conv(weight: Tensor, kernel_size: int) -> Tensor:
    """Returns the weight of a fully connected layer as that of a convolution.

    The layer sees its input [C,k,k] flattened in this order, and so does a convolution of kernel
    size k: the numbers stay where they are.

    Args:
        weight: [out, C*k*k], possibly with leading axes of 1, as in Caffe's V1 format.
        kernel_size: k: 7 for VGG16's fc6 and 1 for its fc7.

    Returns:
        [out,C,k,k], a view where possible.

    Raises:
        InvalidInput: if the shape does not fit.
    """
    area = kernel_size**2
    shape = tuple(weight.shape)
    if len(shape) < 2 or math.prod(shape[:-2]) != 1 or shape[-1] % area:
        raise InvalidInput("weight", f"(outputs, a multiple of {area} inputs)", str(shape))
    return weight.reshape(shape[-2], -1, kernel_size, kernel_size)


def load_vgg16(model: VGG16, layers: Layers) -> None:
    """Copies Caffe's VGG16, trained on ImageNet, into an FCN: conv1_1 to fc7.

    The FCN's other layers stay as they are: zero scores and bilinear filters in a new network. fc8,
    the classifier of ImageNet, has no place in an FCN.

    Args:
        model: a network of `models.fcn`.
        layers: `caffe_weights.read("VGG_ILSVRC_16_layers.caffemodel")`, where fc6 and fc7 are
            fully connected, or FCN's own vgg16fcn.caffemodel, where they are convolutions.

    Raises:
        InvalidInput: if layers are missing, of another shape, or not finite. The network is then
            unchanged.
    """
    _copy_vgg16(model, layers, "VGG16")


def load_torchvision_vgg16(model: VGG16, state: Mapping[str, Tensor]) -> None:
    """Copies torchvision's VGG16 into an FCN, as `load_vgg16` does Caffe's.

    These weights want torchvision's images: RGB from 0 to 1, minus the mean, over the deviation
    (the preprocessing "imagenet").

    Args:
        model: a network of `models.fcn`.
        state: `torchvision.models.vgg16(weights=...).state_dict()`, or timm's of the same network,
            whose fc6 and fc7 are convolutions; not vgg16_bn's.

    Raises:
        InvalidInput: if tensors are missing, of another shape, or not finite, as are those of
            fc6 and fc7 in torchvision's IMAGENET1K_FEATURES. The network is then unchanged.
    """
    where = "torchvision's VGG16"
    if not isinstance(state, Mapping):
        raise InvalidInput("state", "a state dict", type(state).__name__, "Pass its state_dict().")
    if "features.1.weight" in state:
        raise InvalidInput(where, "vgg16", "vgg16_bn, which has batch normalization")
    layers = {
        name: [state[f"{source}.weight"], state[f"{source}.bias"]]
        for source, name in (_TORCHVISION_LAYERS | _TIMM_LAYERS).items()
        if f"{source}.weight" in state and f"{source}.bias" in state
    }
    _copy_vgg16(model, layers, where)


def transplant(source: nn.Module | Layers, model: nn.Module) -> tuple[str, ...]:
    """Copies the layers that two networks share, as each stage of FCN's training begins.

    From FCN-32s to FCN-16s these are conv1_1 to fc7 and score_fr; from FCN-16s to FCN-8s upscore2
    and score_pool4 as well. The other layers of `model` stay as they are, so that a new FCN-16s
    begins with the scores of the FCN-32s.

    Scores of another number of classes are no shared layers: a network for other classes gets
    VGG16's layers alone. Nor are score_pool4 and score_pool3 of FCN-8s-at-once, which scores scaled
    pools, those of the other networks.

    Args:
        source: a network, or layers as `caffe_weights.read` returns them.
        model: the network that is filled.

    Returns:
        The names of the layers copied.

    Raises:
        InvalidInput: if no layer is shared, or if one of VGG16's has another shape.
    """
    layers: Layers = layers_of(source) if isinstance(source, nn.Module) else source
    targets = layers_of(model)
    shared = [
        name
        for name, blobs in targets.items()
        if name in layers
        and (name in _VGG16_LAYERS or _num_outputs(layers[name]) == _num_outputs(blobs))
        and (_scale_of(name) in layers) == (_scale_of(name) in targets)
    ]
    if not shared:
        names = ", ".join(list(targets)[:3])
        raise InvalidInput("source", f"layers of {type(model).__name__} ({names}, ...)", "none")
    copy_into(model, layers, "source", only=shared)
    return tuple(shared)


def initialize(
    model: nn.Module, seed: int | torch.Generator = 0, *, preprocessing: str = "caffe"
) -> None:
    """Writes random weights to train from: He's normal distribution, and biases of 0.

    Weights have the deviation sqrt(2 / fan_in), with which ReLUs keep the scale of their inputs (He
    et al., "Delving Deep into Rectifiers", 2015). Scores are zero and upsampling is bilinear, as
    in FCN.

    Args:
        model: a network of `models.fcn`.
        seed: a seed, or a generator on the device of the weights.
        preprocessing: of the images: "caffe", whose pixels deviate from the mean by about 60, so
            that the weights of conv1_1 are divided by 60; or "imagenet", whose deviate by about 1.

    Raises:
        InvalidInput: if the preprocessing is another one.
    """
    if preprocessing not in ("caffe", "imagenet"):
        raise InvalidInput("preprocessing", '"caffe" or "imagenet"', repr(preprocessing))
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, BilinearDeconvolution | ConstantScale):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                weight, bias = module.weight, module.bias
                if isinstance(seed, torch.Generator):
                    generator = seed
                else:
                    device = weight.device
                    if device not in generators:
                        generators[device] = _seeded(device, seed)
                    generator = generators[device]
                if bias is not None:
                    bias.zero_()
                if name.startswith("score"):
                    weight.zero_()
                    continue
                deviation = math.sqrt(2 / weight[0].numel())
                if name == "conv1_1" and preprocessing == "caffe":
                    deviation /= _CAFFE_PIXEL_STD
                weight.normal_(0, deviation, generator=generator)


def _seeded(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(operator.index(seed))  # NumPy's integers too


def _copy_vgg16(model: VGG16, layers: Layers, where: str) -> None:
    """Copies conv1_1 to fc7, if their numbers are finite."""
    for name in _VGG16_LAYERS:
        if not all(bool(blob.isfinite().all()) for blob in layers.get(name, ())):
            fix = "Take weights with a classifier, such as torchvision's IMAGENET1K_V1."
            raise InvalidInput(f"{where}: {name}", "finite weights", "NaN or infinity", fix)
    copy_into(model, _convolutional(layers), where, only=_VGG16_LAYERS)


def _convolutional(layers: Layers) -> dict[str, list[Tensor]]:
    """Returns the layers with fc6 and fc7 as convolutions."""
    converted = {name: list(blobs) for name, blobs in layers.items()}
    for name, kernel_size in (("fc6", 7), ("fc7", 1)):
        blobs = converted.get(name, [])
        shape = tuple(blobs[0].shape) if blobs else ()
        # A convolution is [out,C,k,k]; a fully connected layer [out,inputs] or [1,1,out,inputs].
        is_convolution = len(shape) == 4 and shape[2:] == (kernel_size, kernel_size)
        if not is_convolution and (len(shape) == 2 or shape[:-2] == (1, 1)):
            blobs[0] = fc_to_conv(blobs[0], kernel_size)
    return converted


def _scale_of(score_layer: str) -> str:
    """Returns the name of the layer that scales the input of a score layer in FCN-8s-at-once."""
    return score_layer.replace("score_", "scale_")


def _num_outputs(blobs: Sequence[Tensor]) -> int:
    return len(blobs[0]) if blobs and blobs[0].dim() else 0
