"""`train.micro_batch` without the captured step: a batch in parts trains like a batch at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import small_classifier
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.small_classifier import PAD

from stages.training.loss import weigh_classes
from stages.training.trainer import make_trainer

LENGTHS = [3, 9, 1, 12, 2, 5, 12, 8, 4, 0, 7]
ROWS = [{"input_ids": np.arange(1, length + 1) * 7 % 90 + 1, "labels": i % 3} for i, length in enumerate(LENGTHS)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the parts of the captured step have their own tests")
def test_parts_of_a_batch_train_like_the_batch(tmp_path, make_params):
    """With class weights, a short last batch, an empty row, and more rows a part than the batch has."""
    manifest, results = manifest_of(save_family("llama", tmp_path / "model")), []
    for micro_batch in ("auto", 1, 3, 100):
        p = make_params(
            train__batch_size=4, train__micro_batch=micro_batch, train__epochs=2, tokenize__max_length=12, device="cpu"
        )
        options = {"freeze": False, "precision": "fp32", "quantization": "none", "hidden_act": None}
        model = small_classifier.classifier(manifest, **options)
        weigh_classes(model.get_base_model(), torch.tensor([0.5, 1.0, 3.0]))
        trainer = make_trainer(model, ROWS, ROWS, p, PAD, tmp_path / str(micro_batch), SimpleNamespace())
        trainer.train()
        losses = [entry["step_loss"] for entry in trainer.state.log_history if "step_loss" in entry]
        results.append((losses, torch.cat([w.detach().flatten() for w in model.parameters() if w.requires_grad])))
    (losses, weights), *others = results
    for other_losses, other_weights in others:
        assert other_losses == pytest.approx(losses, rel=1e-4)
        assert (other_weights - weights).norm() < 1e-3 * weights.norm()
