"""On a GPU, the captured step equals the eager one and the recorder reads the right GPU: `pytest -m gpu`."""

import functools
import gc
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pynvml
import pytest
import torch
from helpers import small_classifier
from helpers.families import FAMILIES, quantization_of, save_family
from helpers.parameters import manifest_of
from helpers.processes import TORCHRUN
from helpers.project import ROOT
from helpers.small_classifier import (
    DEVICE,
    PAD,
    PARAMS,
    Tokenizer,
    as_inputs,
    as_rows,
    batch,
    binary_loss,
    distance,
    eager,
    gradients,
)
from helpers.stages import stage_env
from helpers.tables import CLASSES, LABELS
from transformers import AutoModelForSequenceClassification
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.data.batching import pack_rows
from stages.data.labels import MultiLabel
from stages.data.tokenization import load_tokenizer
from stages.model.adapter import add_lora, save_adapter
from stages.model.base import load_base
from stages.model.base_cache import cache_base
from stages.model.classifier import Classifier
from stages.model.head import remove_head, replace_head
from stages.model.verify_saved import AdapterSnapshot, verify_saved_adapter
from stages.runtime import params
from stages.runtime import usage_recorder as recorder_module
from stages.runtime.errors import UserError
from stages.runtime.usage_recorder import Recorder
from stages.training import checkpoints, history
from stages.training.live_losses import LiveLosses
from stages.training.loss import set_loss, weigh_classes
from stages.training.trainer import make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU"),
]
classifier = functools.partial(small_classifier.classifier, freeze=False, precision="bf16", quantization="nf4")


@pytest.fixture(scope="module")
def small_phi(tmp_path_factory):
    """The manifest of a phi with phi-2's head size, four layers and random weights."""
    from transformers import AutoModelForCausalLM, PhiConfig

    folder = tmp_path_factory.mktemp("phi")
    config = PhiConfig(
        vocab_size=1000, hidden_size=320, intermediate_size=1280, num_hidden_layers=4, num_attention_heads=4,
        partial_rotary_factor=0.4, resid_pdrop=0.1, hidden_act="gelu_new",
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return manifest_of(folder)


@pytest.fixture(autouse=True)
def release():
    yield
    gc.collect()
    torch.cuda.empty_cache()


def make_step(lora, rows=16, dequantize_once=False):
    """A captured step that is called with padded ids, labels and the step's number."""
    from stages.training.captured_step import CapturedStep

    class PaddedStep(CapturedStep):
        def __call__(self, ids, labels, number):
            return super().__call__(as_inputs(ids, labels), number)

    step = PaddedStep(lora, rows, 128, 42, PAD)
    step.layers.keep_weights(dequantize_once)
    return step


@pytest.mark.parametrize(
    ("precision", "quantization", "dequantize_once", "tolerance"),
    [("bf16", "nf4", False, 0.03), ("bf16", "nf4", True, 0.03), ("fp16", "nf4", False, 0.01),
     ("fp32", "nf4", False, 1e-3), ("fp32", "none", False, 1e-3)],
)  # fmt: skip
def test_gradients_of_all_parameters_equal_the_eager_ones(
    small_phi, precision, quantization, dequantize_once, tolerance
):
    torch.backends.cuda.matmul.allow_tf32 = False
    reference = classifier(small_phi, dropout=0.0, precision=precision, quantization=quantization)
    batches = [batch(rows, length, seed) for seed, (rows, length) in enumerate([(16, 32), (16, 48), (16, 32), (9, 48)])]
    expected = [eager(reference, *pair) for pair in batches]
    lora = classifier(small_phi, dropout=0.0, precision=precision, quantization=quantization)
    step = make_step(lora, dequantize_once=dequantize_once)
    for number, (pair, (loss, grads)) in enumerate(zip(batches, expected, strict=True)):
        assert step(*pair, number).item() == pytest.approx(loss, rel=tolerance)
        assert distance(gradients(lora), grads) < tolerance
    assert all(step.graphs.values()), "a length ran eagerly"


def test_a_captured_step_weighs_classes_as_an_eager_one(small_phi):
    """The last batch is incomplete: rows that the loss ignores fill it up."""
    batches = [batch(rows, length, seed) for seed, (rows, length) in enumerate([(16, 32), (16, 48), (9, 48)])]
    losses = {}
    for weights in (None, torch.tensor([0.3, 1.0, 4.0])):
        reference, lora = (classifier(small_phi, dropout=0.0, precision="fp32") for _ in range(2))
        if weights is not None:
            for model in (reference, lora):
                weigh_classes(model.get_base_model(), weights)
        step = make_step(lora)
        losses[weights is None] = [step(*pair, number).item() for number, pair in enumerate(batches)]
        for pair, loss in zip(batches, losses[weights is None], strict=True):
            expected, grads = eager(reference, *pair)
            assert loss == pytest.approx(expected, rel=1e-3)
        assert distance(gradients(lora), grads) < 1e-3
        assert all(step.graphs.values()), "a length ran eagerly"
    assert losses[True] != pytest.approx(losses[False], rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_captured_step_of_several_labels_is_the_eager_one(small_phi, packed, checkpointing):
    """The loss is weighted, and the last batch is incomplete."""
    from stages.training.captured_step import CapturedStep

    torch.backends.cuda.matmul.allow_tf32 = False
    options = {"dropout": 0.0, "precision": "fp32", "several": True, "checkpointing": checkpointing}
    batches = [batch(rows, 32, seed, several=True) for seed, rows in enumerate([16, 16, 9])]
    reference = classifier(small_phi, **options)
    expected = [eager(reference, *pair, binary_loss) for pair in batches]
    lora = classifier(small_phi, **options)
    lora.get_base_model().config.resid_pdrop = 0.0  # the modules' dropout is 0 already
    step = CapturedStep(lora, 16, 128, 42, PAD)
    for number, (pair, (loss, grads)) in enumerate(zip(batches, expected, strict=True)):
        (part,) = [pack_rows(as_rows(*pair), PAD, rows=16, tokens=512)] if packed else as_inputs(*pair)
        captured = step([{name: value.to(DEVICE) for name, value in part.items()}], number)
        assert captured.item() == pytest.approx(loss, rel=1e-3)
        assert distance(gradients(lora), grads) < 1e-3
    assert all(step.graphs.values()), "a batch ran eagerly"


def test_losses_of_several_optimizer_steps_follow_the_eager_ones(small_phi):
    losses = []
    for use_graphs in (False, True):
        lora = classifier(small_phi, dropout=0.0)
        step = make_step(lora) if use_graphs else None
        optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-3)
        curve = []
        for number in range(12):
            ids, labels = batch(16, (32, 48)[number % 2], seed=number % 4)
            if step:
                curve.append(step(ids, labels, number).item())
            else:
                loss = lora(input_ids=ids, labels=labels).loss
                loss.backward()
                curve.append(loss.item())
                del loss
            optimizer.step()
            lora.zero_grad()
        losses.append(torch.tensor(curve))
    assert losses[0][-4:].mean() < losses[0][:4].mean(), "the loss did not fall"
    assert (losses[0] - losses[1]).abs().max() < 0.03


def test_masks_differ_between_steps_and_repeat_for_the_same_step(small_phi):
    lora = classifier(small_phi, dropout=0.1)
    step, pair = make_step(lora), batch(16, 32)
    step3, step4, step3_again = (step(*pair, number).item() for number in (3, 4, 3))
    assert step3 == step3_again
    assert step3 != step4


def test_dropout_without_a_module_has_the_same_masks_if_the_shape_was_captured_at_another_step(tmp_path):
    """As in a resumed training. A capture advances PyTorch's generator, which GPT-2's attention dropout reads."""
    from stages.training.captured_step import functional_dropouts

    manifest = manifest_of(save_family("gpt2", tmp_path))
    losses = []
    for numbers in ((3, 4, 5), (4, 5)):
        lora = classifier(manifest, dropout=0.1, quantization=quantization_of("gpt2"), hidden_act=None)
        assert functional_dropouts(lora) == ["attn_pdrop"]
        step = make_step(lora)
        losses.append([step(*batch(16, 32 + 16 * (number % 2)), number).item() for number in numbers])
        assert all(step.graphs.values())
    assert losses[0][1:] == losses[1]
    assert step(*batch(16, 32), 6).item() != losses[1][0], "another step has other masks"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_have_the_gradients_of_padded_rows(small_phi, checkpointing):
    """With rows of one attention block and of several, an incomplete batch, and tokens after the last row."""
    from stages.training.captured_step import CapturedStep

    batches = [batch(rows, length, seed) for seed, (rows, length) in enumerate([(16, 60), (16, 120), (9, 60)])]
    reference = classifier(small_phi, dropout=0.0)
    expected = [eager(reference, *pair) for pair in batches]
    lora = classifier(small_phi, dropout=0.0, checkpointing=checkpointing)
    lora.get_base_model().config.resid_pdrop = 0.0  # the modules' dropout is 0 already
    step = CapturedStep(lora, 16, 128, 42, PAD)
    step.layers.keep_weights(not checkpointing)
    for number, (pair, (loss, grads)) in enumerate(zip(batches, expected, strict=True)):
        packed = pack_rows(as_rows(*pair), PAD, rows=16, tokens=960)
        packed_loss = step([{name: value.to(DEVICE) for name, value in packed.items()}], number)
        assert packed_loss.item() == pytest.approx(loss, rel=0.03)
        assert distance(gradients(lora), grads) < 0.03
    assert len(step.graphs) == 2 and all(step.graphs.values())


def test_dropout_zeroes_its_share_and_scales_the_rest():
    """The masks of two sites, of two steps and of neighbouring elements are independent."""
    from stages.kernels.dropout import apply_dropout

    x, seed = torch.ones(1024, 640, device=DEVICE), torch.tensor(7, device=DEVICE)
    out, other, next_step = (
        apply_dropout([x], 0.05, value, site) for value, site in ((seed, 3), (seed, 4), (seed + 1, 3))
    )
    mask = out != 0
    assert mask.float().mean().item() == pytest.approx(0.95, abs=0.002)
    assert out[mask].unique().tolist() == pytest.approx([1 / 0.95], rel=1e-4)  # p has steps of 2^-16
    for another in (other, next_step):
        assert (~mask & (another == 0)).float().mean().item() == pytest.approx(0.05**2, abs=5e-4), (
            "two masks are correlated"
        )
    assert (mask[:, 1:] == mask[:, :-1]).float().mean().item() == pytest.approx(0.95**2 + 0.05**2, abs=0.002)
    assert (mask[1:] == mask[:-1]).float().mean().item() == pytest.approx(0.95**2 + 0.05**2, abs=0.002)


@pytest.mark.parametrize(("in_features", "n"), [(2560, 4), (10240, 1)])
def test_a_sum_of_splits_has_the_same_bytes_each_time(in_features, n, monkeypatch):
    """The program that happens to finish last adds them up."""
    from stages.kernels import lora_kernels

    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(528, in_features, generator=generator, device=DEVICE, dtype=torch.bfloat16)
    a = torch.randn(n, 16, in_features, generator=generator, device=DEVICE, dtype=torch.bfloat16) / 50
    arguments = x, a, 0.05, torch.tensor(7, device=DEVICE), 3
    first = lora_kernels.down_project(*arguments)
    assert all(torch.equal(lora_kernels.down_project(*arguments), first) for _ in range(300))
    monkeypatch.setitem(lora_kernels.TILES, "down_project", lora_kernels.Tiles(32, 64, programs=1))  # no splits
    torch.testing.assert_close(lora_kernels.down_project(*arguments), first, rtol=0.02, atol=0.02)


def test_checkpointed_layers_replay_their_dropout_masks_and_use_less_memory(small_phi):
    pair, grads, peaks = batch(16, 128), [], []
    for checkpointing in (False, True):
        lora = classifier(small_phi, dropout=0.1, checkpointing=checkpointing)
        step = make_step(lora)
        step(*batch(16, 16), 4)  # cuBLAS allocates its workspaces
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(*pair, 5)
        grads.append(gradients(lora))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del lora, step
        gc.collect()
    assert distance(grads[1], grads[0]) < 1e-6
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("captures", [True, False])
def test_the_second_stream_changes_no_gradient(small_phi, monkeypatch, checkpointing, captures):
    from stages.kernels import side_stream

    grads = []
    for max_tokens in (0, 10**6):
        monkeypatch.setattr(side_stream, "MAX_TOKENS", max_tokens)
        step = make_step(lora := classifier(small_phi, dropout=0.1, checkpointing=checkpointing))
        step.capturable = captures
        for number in range(3):
            step(*batch(16, 48, number), number)
        assert captures == all(step.graphs.values())
        grads.append(gradients(lora))
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_a_last_layer_on_the_second_stream_changes_no_gradient(small_phi, monkeypatch):
    """Its 16 tokens are few enough for it; the 736 of the other layers are not."""
    from stages.kernels import side_stream
    from stages.training.captured_step import CapturedStep

    packed = pack_rows(as_rows(*batch(16, 48)), PAD, rows=16, tokens=736)
    packed, grads = {name: value.to(DEVICE) for name, value in packed.items()}, []
    for max_tokens in (0, 100):
        monkeypatch.setattr(side_stream, "MAX_TOKENS", max_tokens)
        step = CapturedStep(lora := classifier(small_phi, dropout=0.1), 16, 48, 42, PAD)
        for number in range(3):
            step([packed], number)
        assert all(step.graphs.values())
        grads.append(gradients(lora))
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("captures", [True, False])
def test_no_tensor_is_used_again_before_the_second_stream_has_read_it(captures):
    from stages.kernels.side_stream import MAX_RUNNING, SideStream

    numbers, mib = 20, 2**20
    side_stream, sums = SideStream(DEVICE), torch.zeros(numbers, device=DEVICE)

    def run():
        side_stream.start()
        for number in range(numbers):
            x = torch.full((mib,), number, dtype=torch.uint8, device=DEVICE)
            side_stream.run(functools.partial(slow_max, x, sums[number]), tokens=1)
            del x
        side_stream.join()

    def slow_max(x, out):
        torch.cuda._sleep(2_000_000)  # about a millisecond
        out.copy_(x[-1])

    run()
    torch.cuda.synchronize()
    sums.zero_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    if captures:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
    else:
        run()
    assert sums.tolist() == list(range(numbers))
    assert torch.cuda.max_memory_allocated() - before <= (MAX_RUNNING + 2) * mib


def test_a_step_that_cannot_be_captured_runs_eagerly(small_phi, capsys):
    batches = [batch(16, length) for length in (32, 48)]
    reference = classifier(small_phi, dropout=0.0)
    expected = [eager(reference, *pair) for pair in batches]
    lora = classifier(small_phi, dropout=0.0)
    step, stream = make_step(lora), torch.cuda.current_stream()
    norm = lora.get_base_model().model.final_layernorm
    norm.register_forward_hook(lambda _, __, output: output.sum().item() and None)  # waits for the GPU
    for number in range(4):
        loss, grads = expected[number % 2]
        assert step(*batches[number % 2], number).item() == pytest.approx(loss, rel=0.03)
        assert distance(gradients(lora), grads) < 0.03
    assert step.graphs == {(16, 32): None, (16, 48): None}
    assert torch.cuda.current_stream() == stream
    messages = [line for line in capsys.readouterr().out.splitlines() if "eagerly" in line]
    assert len(messages) == 1 and "not permitted when stream is capturing" in messages[0]
    if torch.__version__ < "2.12":  # the allocator is still in the broken capture: pytorch/pytorch#180395
        torch._C._cuda_endAllocateToPool(0, step.pool)
    torch.rand(1, device=DEVICE)
    another = make_step(classifier(small_phi, dropout=0.0))
    assert another(*batches[0], 0).item() == pytest.approx(expected[0][0], rel=0.03)
    assert another.graphs[16, 32] is not None, "PyTorch is still in the broken capture"


@pytest.mark.parametrize("fails_on_second_stream", [True, False])
def test_a_capture_that_runs_out_of_memory_says_so_and_another_one_succeeds(
    small_phi, monkeypatch, fails_on_second_stream
):
    from stages.kernels.fused_linear import FusedLinear

    expected, grads = eager(classifier(small_phi, dropout=0.0), *batch(16, 32))
    step = make_step(lora := classifier(small_phi, dropout=0.0))
    name = "_write_lora_grads" if fails_on_second_stream else "backward"
    original, layers = getattr(FusedLinear, name), []

    def fail(self, *args, **kwargs):
        layers.append(self)
        if torch.cuda.is_current_stream_capturing() and self is not layers[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FusedLinear, name, fail)
        with pytest.raises(torch.OutOfMemoryError):
            step(*batch(16, 32), 0)
    step.forget_graphs()
    assert step.capturable and not torch.cuda.is_current_stream_capturing()
    assert step(*batch(16, 32), 0).item() == pytest.approx(expected, rel=0.03)
    assert distance(gradients(lora), grads) < 0.03
    assert all(step.graphs.values()), "the step ran eagerly"


@pytest.mark.parametrize(("ms", "is_faster"), [((1.0, 0.9), True), ((1.0, 0.96), False)])
def test_zeros_are_added_where_that_is_clearly_faster(ms, is_faster, monkeypatch):
    from stages.kernels import faster_product

    monkeypatch.setattr(faster_product, "do_bench", Mock(side_effect=ms))
    weight, state = torch.randn(512, 256, device=DEVICE, dtype=torch.bfloat16), torch.cuda.get_rng_state()
    zeros = faster_product.find_faster_bias(weight, 48)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert (zeros is not None) == is_faster
    assert zeros is None or torch.equal(zeros, torch.zeros_like(weight[:, 0]))


def test_cublaslt_is_chosen_without_a_warning():
    code = "from stages.training.captured_step import prefer_cublaslt\nwith prefer_cublaslt(): print('in it')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("in it\n", "")


def test_only_the_step_prefers_cublaslt(small_phi, monkeypatch):
    step, used, library = make_step(classifier(small_phi)), set(), torch.backends.cuda.preferred_blas_library
    compute_loss, before = step._compute_loss, library()
    monkeypatch.setattr(step, "_compute_loss", lambda part: used.add(library()) or compute_loss(part))
    try:
        cublas, cublaslt = library("cublas"), torch._C._BlasBackend.Cublaslt
        step(*batch(16, 32), 0)
        assert used == {cublaslt} and library() == cublas
        monkeypatch.setattr(step, "_compute_loss", Mock(side_effect=ValueError))
        with pytest.raises(ValueError):
            step.warm_up({"input_ids": batch(16, 32)[0]})
        assert library() == cublas
    finally:
        library(before)


def test_a_replay_reads_the_current_inputs_and_weights(small_phi):
    lora = classifier(small_phi, dropout=0.1)
    step, pair = make_step(lora), batch(16, 32)
    loss, grads = step(*pair, 1).item(), gradients(lora)
    _, inputs = step.graphs[16, 32]
    inputs["input_ids"].fill_(999)
    inputs["labels"].fill_(2)
    step.lora.buffer.fill_(float("nan"))
    for fused in step.lora.fused_linears:
        b_blocks = [fused.b_block(fused.b, i) for i in range(len(fused.lora_slices))]
        for tensor in (fused.a[:, : fused.r], fused.grads.b, *b_blocks):
            tensor.fill_(float("nan"))
    assert step(*pair, 1).item() == loss
    assert distance(gradients(lora), grads) == 0
    with torch.no_grad():
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert step(*pair, 1).item() != loss, "the weights of an earlier step were used"


def test_a_loss_is_not_overwritten_by_the_next_step(small_phi):
    lora = classifier(small_phi, dropout=0.1)
    step = make_step(lora)
    first = step(*batch(16, 32, 0), 0)
    value = first.item()
    step(*batch(16, 32, 1), 1)
    assert first.item() == value


def test_validation_uses_the_current_weights(small_phi):
    lora = classifier(small_phi, dropout=0.1)
    step, pair = make_step(lora), batch(16, 32)
    step(*pair, 0)
    lora.eval()
    with torch.no_grad():
        before = lora(input_ids=pair[0]).logits
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
        assert not torch.equal(before, lora(input_ids=pair[0]).logits)
        assert torch.equal(lora(input_ids=pair[0]).logits, lora(input_ids=pair[0]).logits), "dropout is on"


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.01), ("fp32", 1e-3)])
def test_probabilities_of_fused_layers_equal_those_of_transformers(small_phi, precision, tolerance):
    lora = classifier(small_phi, dropout=0.1, precision=precision).eval()
    examples = [{"input_ids": torch.randint(1, 1000, (5 + i % 40,)).numpy(), "labels": 0} for i in range(50)]
    p = params.load(PARAMS)
    with torch.inference_mode():
        logits = [lora(input_ids=torch.tensor(e["input_ids"])[None].to(DEVICE)).logits.double() for e in examples]
    fused = Classifier(lora, Tokenizer(), p.batches, 128, LABELS)
    assert all(type(layer) is not PhiDecoderLayer for layer in lora.get_base_model().model.layers)
    probabilities = fused.predict(examples, 16)
    expected = torch.softmax(torch.cat(logits), dim=-1).cpu().numpy()
    assert abs(probabilities - expected).max() < tolerance
    assert abs(probabilities - expected[::-1]).max() > tolerance, "the rows are too similar to test anything"


def test_fused_layers_give_the_last_states_and_the_outputs_of_another_head(small_phi):
    p = params.load(PARAMS)
    base = load_base(small_phi, p.model, LABELS, DEVICE, 42, Tokenizer())
    remove_head(base)
    examples = [{"input_ids": torch.randint(1, 1000, (5 + i % 40,)).numpy(), "labels": 0} for i in range(50)]
    with torch.inference_mode():
        rows = [base(input_ids=torch.tensor(e["input_ids"])[None].to(DEVICE)).logits.double() for e in examples]
    expected = torch.cat(rows).cpu().numpy()
    fused = Classifier(base, Tokenizer(), p.batches, 128, LABELS)
    states = fused.compute_logits(examples, 16)
    assert states.shape == (50, base.config.hidden_size)
    assert abs(states - expected).max() < 0.03 * abs(expected).max()
    assert abs(states - expected[::-1]).max() > 0.3 * abs(expected).max(), "the rows are too similar to test anything"
    weight, bias = torch.randn(7, base.config.hidden_size), torch.randn(7)
    replace_head(base, weight, bias)
    outputs = fused.compute_logits(examples, 16)
    assert abs(outputs - (states @ weight.double().numpy().T + bias.numpy())).max() < 1e-3 * abs(outputs).max()


def train(manifest, folder, cuda_graphs, seed=42, epochs=1, stop_after=None, resume=None, rows=63 * 16, several=False):
    """Train on a learnable task: each class has its own last tokens.

    Args:
        several: whether a row has several labels: those of the last tokens, and the first one of every second row.
        stop_after: stop after so many epochs.
        resume: folder of a checkpoint.

    Returns:
        the model and its trainer.
    """
    p = params.load(PARAMS)
    p = p.model_copy(update={"seed": seed, "train": p.train.model_copy(
        update={"epochs": epochs, "cuda_graphs": cuda_graphs, "learning_rate": 1e-3, "keep": "last"})})  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i in range(rows):
        ids = torch.randint(1, 1000, (20 + i % 29,), generator=generator)
        ids[-3:] = 1 + i % 3
        label = np.array([i % 2 == 0, i % 3 == 0, i % 3 > 0]) if several else i % 3
        examples.append({"input_ids": ids.numpy(), "labels": label})
    labels = MultiLabel(CLASSES) if several else LABELS
    base = load_base(manifest, p.model, labels, DEVICE, 42, Tokenizer())
    set_loss(base, labels, np.array([row["labels"] for row in examples]), balanced=False)
    lora = add_lora(base, p.lora, 42)
    recorder = SimpleNamespace()  # the Trainer only sets its phase
    trainer = make_trainer(lora, examples, examples[:32], p, PAD, folder, recorder)
    if stop_after:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_save(self, args, state, control, **kwargs):
                control.should_training_stop = state.epoch >= stop_after

        trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=resume)
    if cuda_graphs:
        assert trainer.captured_step is not None and all(trainer.captured_step.graphs.values())
        assert trainer.memory_plan
    return lora, trainer


def test_the_loss_curve_differs_from_the_eager_one_by_no_more_than_seeds_do(small_phi, tmp_path):
    def loss_curve(name, **options):
        steps, _ = history.read_curves(train(small_phi, tmp_path / name, **options)[1].state)
        return torch.tensor([step["loss"] for step in steps])

    eager42, eager43 = (loss_curve(f"eager{seed}", cuda_graphs=False, seed=seed) for seed in (42, 43))
    captured = loss_curve("captured", cuda_graphs=True)
    assert len(captured) == 63

    def smooth(values):
        return values.unfold(0, 9, 9).mean(dim=1)

    noise = (smooth(eager42) - smooth(eager43)).abs().max()
    assert (smooth(captured) - smooth(eager42)).abs().max() <= max(2 * noise, torch.tensor(0.05))


def test_two_trainings_are_byte_equal(small_phi, tmp_path):
    first, second = (train(small_phi, tmp_path / name, True, rows=320)[0] for name in ("a", "b"))
    pairs = zip(first.named_parameters(), second.parameters(), strict=True)
    assert [name for (name, weight), other in pairs if not torch.equal(weight, other)] == []


@pytest.mark.parametrize("several", [False, True])
def test_a_resumed_training_equals_an_uninterrupted_one(small_phi, tmp_path, several):
    options = {"epochs": 2, "rows": 160, "several": several}
    whole, _ = train(small_phi, tmp_path / "whole", True, **options)
    train(small_phi, tmp_path / "cut", True, **options, stop_after=1)
    resume = checkpoints.checkpoint_to_resume(tmp_path / "cut")
    assert resume.name == "checkpoint-10"
    resumed, trainer = train(small_phi, tmp_path / "cut", True, **options, resume=str(resume))
    assert trainer.state.global_step == 20
    expected, weights = (
        {n: p.detach().float() for n, p in model.named_parameters() if p.requires_grad} for model in (whole, resumed)
    )
    assert distance(weights, expected) < 0.01  # a GPU may sum in another order; rows and masks are the same


def test_live_losses_are_those_of_the_history_and_no_step_waits_for_them(small_phi, tmp_path, monkeypatch):
    """Within these two callbacks a synchronisation with the GPU is an error."""
    points = []

    def without_synchronisation(plain):
        def callback(self, *arguments, **named):
            self.receivers = [points.append]
            torch.cuda.set_sync_debug_mode("error")
            try:
                plain(self, *arguments, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return callback

    for name in ("on_step_begin", "on_step_end"):
        monkeypatch.setattr(LiveLosses, name, without_synchronisation(getattr(LiveLosses, name)))
    _, trainer = train(small_phi, tmp_path, True)
    losses = torch.tensor([step["loss"] for step in history.read_curves(trainer.state)[0]])
    assert [point.step for point in points] == [11, 21, 32, 42, 53, 63]
    begins = [0, *(point.step for point in points[:-1])]
    for begin, point in zip(begins, points, strict=True):
        assert point.loss == pytest.approx(losses[begin : point.step].mean().item(), rel=1e-5)
        assert point.rows_per_second > 0
    with pytest.raises(RuntimeError, match="synchronizing"):  # the mode that the test relies on
        without_synchronisation(lambda _: torch.ones(1, device=DEVICE).item())(SimpleNamespace())


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "falcon"])  # it has no captured step
def test_the_captured_step_of_each_family_is_the_eager_one(family, several, tmp_path, capsys):
    torch.backends.cuda.matmul.allow_tf32 = False
    manifest = manifest_of(save_family(family, tmp_path))
    options = {"precision": "fp32", "quantization": quantization_of(family), "hidden_act": None, "several": several}
    shapes = enumerate([(8, 16), (8, 32), (8, 16), (5, 32)])
    batches = [batch(rows, length, seed, several) for seed, (rows, length) in shapes]
    reference = classifier(manifest, dropout=0.0, **options)
    expected = [eager(reference, *pair, binary_loss if several else None) for pair in batches]
    lora = classifier(manifest, dropout=0.0, **options)
    step = make_step(lora, rows=8)
    for number, (pair, (loss, grads)) in enumerate(zip(batches, expected, strict=True)):
        assert step(*pair, number).item() == pytest.approx(loss, rel=1e-3)
        assert distance(gradients(lora), grads) < 1e-3
    output = capsys.readouterr().out
    assert all(step.graphs.values()) or "steps run eagerly" in output, "a length ran eagerly, and no message said so"


@pytest.mark.parametrize("family", ["phi", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"])
def test_a_captured_step_of_packed_rows_is_the_eager_one(family, tmp_path):
    """The last layer computes the classified tokens only. The last batch is incomplete."""
    from stages.training.captured_step import CapturedStep

    torch.backends.cuda.matmul.allow_tf32 = False
    manifest = manifest_of(save_family(family, tmp_path))
    options = {"dropout": 0.0, "precision": "fp32", "hidden_act": None}
    batches = [batch(rows, length, seed) for seed, (rows, length) in enumerate([(8, 32), (8, 70), (8, 32), (5, 32)])]
    reference = classifier(manifest, **options)
    expected = [eager(reference, *pair) for pair in batches]
    lora = classifier(manifest, **options)
    step = CapturedStep(lora, 8, 70, 42, PAD)
    for number, (pair, (loss, grads)) in enumerate(zip(batches, expected, strict=True)):
        packed = pack_rows(as_rows(*pair), PAD, rows=8, tokens=256)
        packed_loss = step([{name: value.to(DEVICE) for name, value in packed.items()}], number)
        assert packed_loss.item() == pytest.approx(loss, rel=1e-3)
        assert distance(gradients(lora), grads) < 1e-3
    assert len(step.graphs) == 2 and all(step.graphs.values())


def test_a_saved_adapter_of_the_captured_step_is_verified(tmp_path, monkeypatch):
    """Fused bf16 layers and plain transformers with PEFT agree on its logits. A changed alpha is found.

    The cached base is still as it was loaded, so it is not loaded again.
    """
    manifest = manifest_of(save_family("phi", tmp_path / "phi"))
    with cache_base() as cache:
        lora, trainer = train(manifest, tmp_path / "checkpoints", True, rows=160)
    examples = [{"input_ids": torch.randint(1, 900, (5 + 4 * i,)).tolist()} for i in range(10)]
    expected, folder = AdapterSnapshot.take(lora, examples), tmp_path / "adapter"
    save_adapter(lora, load_tokenizer(manifest), manifest, {}, folder)
    del lora, trainer
    gc.collect()
    verify_saved_adapter(folder, expected, manifest, params.load(PARAMS).model, DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
        verify_saved_adapter(folder, expected, manifest, params.load(PARAMS).model, DEVICE, cache)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 4 * config["lora_alpha"]}))
    for base in (None, cache):
        with pytest.raises(UserError, match="predicts otherwise"):
            verify_saved_adapter(folder, expected, manifest, params.load(PARAMS).model, DEVICE, base)


def test_validation_of_packed_rows_equals_that_of_padded_ones(small_phi, tmp_path):
    """Also in batches of few tokens, of unequal size."""
    _, trainer = train(small_phi, tmp_path / "checkpoints", True, rows=160)
    assert trainer.packs_rows
    packed = [trainer.evaluation_loop(trainer.get_eval_dataloader(), "")]
    trainer.validation_tokens = 200
    packed.append(trainer.evaluation_loop(trainer.get_eval_dataloader(), ""))
    trainer.batches = trainer.batches.model_copy(update={"padding": "longest"})
    padded = trainer.evaluation_loop(trainer.get_eval_dataloader(), "")
    for output in packed:
        assert abs(output.predictions - padded.predictions).max() < 0.05 * abs(padded.predictions).max()
        assert output.metrics["eval_loss"] == pytest.approx(padded.metrics["eval_loss"], rel=0.02)


def test_recorder_reads_this_gpu(tmp_path):
    torch.zeros(1, device=DEVICE)  # CUDA allocates its own memory with the first tensor
    with Recorder(DEVICE, interval=0.05) as recorder:
        recorder.mark("before")
        block = torch.ones(2**30, dtype=torch.uint8, device=DEVICE)
        torch.cuda.synchronize()
        recorder.mark("after")
    used = recorder.summary()
    assert used["after"] - used["before"] == pytest.approx(1.07, abs=0.1)
    assert used["peak_allocated"] >= 1.07
    assert used["name"] == torch.cuda.get_device_name(DEVICE)
    assert recorder.samples[0]["power_w"] > 0
    del block
    recorder.save(tmp_path / "run", {})
    assert len((tmp_path / "run/usage.csv").read_text().splitlines()) == len(recorder.samples) + 1


def test_recorder_works_without_nvml(monkeypatch):
    monkeypatch.setattr(recorder_module, "_nvml_handle", lambda device: None)
    with Recorder(DEVICE) as recorder:
        recorder.mark("now")
    assert recorder.marks["now"]["memory_gb"] > 0
    assert recorder.marks["now"]["power_w"] is None


def test_recorder_without_nvml_does_not_break_a_capture(small_phi, monkeypatch):
    """It then reads CUDA from its own thread, even while a graph is captured."""
    monkeypatch.setattr(recorder_module, "_nvml_handle", lambda device: None)
    step = make_step(classifier(small_phi, dropout=0.1))
    with Recorder(DEVICE, interval=1e-4) as recorder:
        for number, length in enumerate((16, 32, 48, 64)):
            step(*batch(16, length), number)
    assert len(recorder.samples) > 100
    assert all(step.graphs.values()), "a length ran eagerly"


def test_recorder_finds_the_visible_gpu_by_uuid():
    pynvml.nvmlInit()
    handle = recorder_module._nvml_handle(DEVICE)
    assert pynvml.nvmlDeviceGetUUID(handle).endswith(str(torch.cuda.get_device_properties(DEVICE).uuid))


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees fewer than two GPUs")

ONLY_SECOND_GPU = """
import json, pynvml, torch
from stages.runtime.usage_recorder import Recorder
device = torch.device("cuda", 0)
torch.zeros(1, device=device)  # CUDA allocates its own memory with the first tensor
with Recorder(device) as recorder:
    recorder.mark("before")
    block = torch.ones(4 * 2**30, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    recorder.mark("after")
print(json.dumps(recorder.summary() | {"uuid": pynvml.nvmlDeviceGetUUID(recorder._handle)}))
"""


@two_gpus
def test_recorder_reads_the_one_gpu_of_two_that_the_process_sees():
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    command = [sys.executable, "-c", ONLY_SECOND_GPU]
    seen = json.loads(subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    pynvml.nvmlInit()
    assert seen["uuid"] == pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(1))
    assert seen["after"] - seen["before"] == pytest.approx(4.29, abs=0.2)


ONE_GPU_EACH = """
import pynvml, sys, torch
from pathlib import Path
from stages.runtime import distributed
from stages.runtime.usage_recorder import Recorder
torch.cuda.set_device(distributed.local_rank())
device = torch.device("cuda", torch.cuda.current_device())
distributed.init_process_group(device)
folder = Path(sys.argv[1])
torch.zeros(1, device=device)  # CUDA allocates its own memory with the first tensor
with Recorder(device, interval=0.05) as recorder:
    recorder.mark("before")
    block = torch.ones((1 + distributed.rank()) * 2**31, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    recorder.mark("after")
(folder / str(distributed.rank())).write_text(pynvml.nvmlDeviceGetUUID(recorder._handle))
recorder.save(folder / "run", {})
distributed.shut_down()
"""


@two_gpus
def test_recorder_of_two_ranks_reads_both_gpus(tmp_path):
    """The first rank allocates 2 GiB, the second 4."""
    (tmp_path / "each.py").write_text(ONE_GPU_EACH)
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]
    env = stage_env()
    done = subprocess.run([*command, tmp_path / "each.py", tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uuids = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert [uuid.removeprefix("GPU-") for uuid in uuids] == [
        str(torch.cuda.get_device_properties(gpu).uuid) for gpu in (0, 1)
    ]
    usage = pd.read_csv(tmp_path / "run/usage.csv")
    ends = usage.groupby("gpu")["memory_gb"].agg(["first", "last"])
    assert list(ends["last"] - ends["first"]) == pytest.approx([2.15, 4.29], abs=0.2)
    used = json.loads((tmp_path / "run/run.json").read_text())["gpu"]
    assert used["name"] == ", ".join(dict.fromkeys(map(torch.cuda.get_device_name, (0, 1)))) and used["count"] == 2
    assert used["after"] <= used["peak"] == usage["memory_gb"].max()
    assert 4.29 <= used["peak_allocated"] < 4.5
    assert used["peak_sum"] == pytest.approx(sum(usage.groupby("gpu")["memory_gb"].max()), abs=0.2)


@two_gpus
def test_training_uses_one_gpu_of_two(small_phi, tmp_path):
    _, trainer = train(small_phi, tmp_path, True, rows=160)
    assert trainer.state.global_step == 10
    assert torch.cuda.max_memory_allocated(1) == 0
