"""The examples of docs/weights.md for the published files, run with thin ones of the same names."""

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from models import caffe_weights
from models.checkpoints import load_network
from tests.documents import ROOT, blocks
from tests.models.test_caffe_weights import legacy, v1_layer
from tests.models.thin import CHANNELS, NUM_CLASSES, caffemodel, torchvision_state

PAGE = ROOT / "docs" / "weights.md"


def in_v1_format(layers):
    """The bytes of a file of 2014, in which each blob has four axes."""
    return b"".join(
        v1_layer(
            name.encode(),
            *(
                legacy(*(1,) * (4 - blob.dim()), *blob.shape, values=blob.flatten().tolist())
                for blob in blobs
            ),
        )
        for name, blobs in layers.items()
    )


def test_the_examples_run_with_files_of_the_published_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fcn8s-heavy-pascal.caffemodel").write_bytes(caffemodel("fcn8s"))
    layers = caffe_weights.read("fcn8s-heavy-pascal.caffemodel")
    vgg16 = {
        name: [blobs[0].flatten(1) if name.startswith("fc") else blobs[0], blobs[1]]
        for name, blobs in layers.items()
        if name.startswith(("conv", "fc"))
    }
    (tmp_path / "VGG_ILSVRC_16_layers.caffemodel").write_bytes(in_v1_format(vgg16))
    state = torchvision_state(vgg16)
    torch.save(state, "vgg16-397923af.pth")
    for old, new, layer in (("0", "fc1", "fc6"), ("3", "fc2", "fc7")):
        state[f"pre_logits.{new}.weight"] = layers[layer][0]
        state[f"pre_logits.{new}.bias"] = state.pop(f"classifier.{old}.bias")
        del state[f"classifier.{old}.weight"]
    save_file(state, "model.safetensors")
    photo = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.jpg")
    names = {}
    for block in blocks(PAGE, "py"):
        exec(compile(block, "docs/weights.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("fcn8s (1, 45, 60) [")
    spec = names["spec"]
    assert (spec.num_classes, spec.channels) == (NUM_CLASSES, CHANNELS)
    copy = caffe_weights.read("copy.caffemodel")
    assert all(
        (a == b).all() for name in layers for a, b in zip(layers[name], copy[name], strict=True)
    )
    assert names["network"].fc6.weight.flatten().equal(layers["fc6"][0].flatten())
    begin, spec = load_network("begin.safetensors")
    assert spec.preprocessing == "imagenet"
    assert begin.fc7.weight.equal(layers["fc7"][0])
