"""Training on a GPU: mixed precision, and a checkpoint that a CPU reads."""

import dataclasses

import pytest
import torch
from training_data import TINY
from training_runs import TINY_RECIPE, make_trainer, run

from app.training.checkpoints import Run
from app.training.distributed import Ranks
from models.checkpoints import load_network


@pytest.mark.parametrize("amp", ["none", "auto", "float16"])
def test_a_gpu_trains_and_resumes(cuda, voc, tmp_path, amp):
    ranks = Ranks(0, 1, torch.device("cuda", 0))
    recipe = dataclasses.replace(TINY_RECIPE, amp=amp, clip_grad_norm=1.0)

    def trainer(recipe):
        made = make_trainer(voc, tmp_path, recipe, ranks=ranks)
        made._model.to(ranks.device)
        return made

    outcome = run(trainer(recipe))
    assert outcome.is_saved
    longer = trainer(dataclasses.replace(recipe, steps=12))
    assert longer.load()
    assert longer._objective.scaler.is_enabled() == (amp == "float16")
    assert run(longer).progress.step == 12
    model, _ = load_network(Run(tmp_path).checkpoints()[-1] / "weights.safetensors", network=TINY)
    assert all(bool(p.isfinite().all()) and not p.is_cuda for p in model.parameters())
