"""A training's validation: batches of few tokens give each row's logits and the mean loss of all rows."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import small_classifier
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.small_classifier import DEVICE, PAD

from stages.runtime import distributed
from stages.runtime.errors import UserError
from stages.training import trainer as trainer_module
from stages.training.loss import weigh_classes
from stages.training.trainer import make_trainer

LENGTHS = [3, 9, 1, 12, 2, 5, 12, 8, 4]
ROWS = [{"input_ids": np.arange(1, length + 1) * 7 % 90 + 1, "labels": i % 3} for i, length in enumerate(LENGTHS)]


@pytest.fixture
def make(tmp_path, make_params, monkeypatch):
    """Make a trainer whose validation batches have at most 30 tokens and 4 rows."""
    monkeypatch.setattr(trainer_module, "EVALUATION_TOKENS", 30)
    manifest = manifest_of(save_family("llama", tmp_path / "model"))
    p = make_params(train__batch_size=1, tokenize__max_length=12, batches__multiple_of=1, device=DEVICE.type)
    options = {"freeze": False, "precision": "fp32", "quantization": "none", "hidden_act": None}

    def make(**changes):
        model = small_classifier.classifier(manifest, dropout=0.2, **options)
        weigh_classes(model.get_base_model(), torch.tensor([0.5, 1.0, 3.0]))
        params = p.model_copy(update={"batches": p.batches.model_copy(update=changes)})
        return make_trainer(model, ROWS, ROWS, params, PAD, tmp_path / "checkpoints", SimpleNamespace())

    return make


@pytest.fixture
def make_packed(make, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")

    def make_packed():
        trainer = make()
        trainer.captured_step = small_classifier.make_eager_step(monkeypatch, trainer.classifier, longest=12)
        assert trainer.packs_rows
        return trainer

    return make_packed


def compute_one_by_one(trainer):
    """(mean loss, logits [rows, classes]) of the plain model, a row at a time."""
    trainer.classifier.eval()
    losses, logits = [], []
    with torch.no_grad():
        for row in ROWS:
            ids, labels = (torch.tensor(row[name], device=DEVICE)[None] for name in ("input_ids", "labels"))
            output = trainer.classifier(input_ids=ids, labels=labels)
            losses.append(output.loss.item())
            logits.append(output.logits[0].cpu().numpy())
    return np.mean(losses), np.array(logits)


def check(trainer, loss, logits):
    sizes = [len(rows) for rows in trainer.get_eval_dataloader()]
    assert len(set(sizes)) > 1, "batches of unequal size"
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "")
    assert output.metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert np.abs(output.predictions - logits).max() < 1e-5
    assert output.label_ids.tolist() == [row["labels"] for row in ROWS]


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_padded_batches_give_the_logits_and_the_mean_loss_of_single_rows(make, padding):
    trainer = make(padding=padding)
    check(trainer, *compute_one_by_one(trainer))


def test_packed_batches_give_the_logits_and_the_mean_loss_of_single_rows(make, make_packed):
    expected = compute_one_by_one(make())
    check(make_packed(), *expected)


def test_long_rows_are_sorted_and_short_ones_keep_their_order(make):
    trainer = make()
    longest_first = np.argsort(-np.array(LENGTHS), kind="stable")
    assert np.array_equal(np.concatenate(trainer.get_eval_dataloader()), longest_first)
    trainer.validation_tokens = 48  # 4 rows of 12
    assert np.concatenate(trainer.get_eval_dataloader()).tolist() == list(range(len(LENGTHS)))


def test_three_ranks_validate_as_one_byte_for_byte(make, monkeypatch):
    trainer = make()
    expected = trainer._predict_on_all_ranks(trainer.get_eval_dataloader())
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    of_ranks = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", functools.partial(int, rank))
        monkeypatch.setattr(distributed, "all_gather", lambda value: of_ranks.append(value) or [value])
        trainer._predict_on_all_ranks(trainer.get_eval_dataloader())
    monkeypatch.setattr(distributed, "all_gather", lambda value: of_ranks)
    for values, expected_values in zip(trainer._predict_on_all_ranks([]), expected, strict=True):
        assert values.tobytes() == expected_values.tobytes()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_largest_validation_batch_is_tried_and_leaves_no_state(make, request, monkeypatch, packed):
    trainer = request.getfixturevalue("make_packed")() if packed else make()
    trainer.classifier.get_submodule("base_model").eval()  # not all modules have one mode
    modes, random = [module.training for module in trainer.classifier.modules()], torch.get_rng_state()
    tried, plain = [], trainer._predict_validation_batch
    monkeypatch.setattr(trainer, "_predict_validation_batch", lambda rows: tried.append(rows) or plain(rows))
    trainer.try_largest_validation_batch(20)
    sizes = {False: lambda rows: len(rows) * max(LENGTHS[row] for row in rows), True: lambda rows: sum(
        LENGTHS[row] for row in rows)}  # fmt: skip
    largest = max(map(sizes[packed], trainer.get_eval_dataloader()))
    assert [sizes[packed](rows) for rows in tried] == [largest] and largest <= 20
    assert [module.training for module in trainer.classifier.modules()] == modes and len(set(modes)) == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in trainer.classifier.parameters())


def test_a_validation_batch_that_does_not_fit_is_an_error_with_the_keys_that_help(make, monkeypatch):
    def run_out_of_memory(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer = make()
    trainer.args.per_device_eval_batch_size = 8  # as with a training batch of 2 rows
    trainer.classifier.train()
    monkeypatch.setattr(trainer.classifier, "forward", run_out_of_memory)
    with pytest.raises(
        UserError, match=r"a validation batch of 60 tokens does not fit .*batch_size .*max_length$"
    ) as error:
        trainer.try_largest_validation_batch(60)  # 5 rows
    with pytest.raises(UserError, match=r"a validation batch of 27 tokens .* set a smaller tokenize.max_length"):
        trainer.try_largest_validation_batch(30)  # up to 4 rows, as with a training batch of one row
    assert "dequantize_once" not in str(error.value), "no copy of the weights is kept yet"
    assert all(module.training for module in trainer.classifier.modules()), "the next plan would be captured in eval()"


def test_limits_of_a_validation_batch_are_only_those_that_make_it_smaller(make, make_packed):
    """The limit of 3 tokens is left out: a row of 12 is a batch under 7 already."""
    assert make_packed().list_validation_limits() == {30: 26, 15: 13, 7: 12}
    assert make().list_validation_limits() == {30: 27, 15: 15, 7: 12}
