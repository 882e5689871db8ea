"""The examples of docs/weights.md for the published files, run with thin ones of the same names."""

import numpy as np
from PIL import Image

from models import caffe_weights
from tests.documents import ROOT, blocks
from tests.models.thin import CHANNELS, NUM_CLASSES, caffemodel

PAGE = ROOT / "docs" / "weights.md"


def test_the_examples_run_with_files_of_the_published_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fcn8s-heavy-pascal.caffemodel").write_bytes(caffemodel("fcn8s"))
    layers = caffe_weights.read("fcn8s-heavy-pascal.caffemodel")
    vgg16 = {
        name: [blobs[0].flatten(1) if name.startswith("fc") else blobs[0], blobs[1]]
        for name, blobs in layers.items()
        if name.startswith(("conv", "fc"))
    }
    caffe_weights.write("VGG_ILSVRC_16_layers.caffemodel", vgg16)
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
