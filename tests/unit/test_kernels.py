"""The fused layers compute what PEFT and PyTorch do: on a GPU if there is one, else in Triton's CPU interpreter."""

import contextlib
import functools
import itertools
import tempfile
from pathlib import Path
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from helpers import small_classifier
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.reference_attention import attend_by_row
from helpers.small_classifier import (
    DEVICE,
    PAD,
    PARAMS,
    as_inputs,
    as_rows,
    batch,
    binary_loss,
    distance,
    eager,
    gradients,
)
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Olmo2Config, OPTConfig, PhiConfig
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.data.batching import pack_rows
from stages.kernels.errors import StepUnavailable
from stages.runtime import params
from stages.runtime.errors import UserError
from stages.training.part_collator import PartCollator

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
pytestmark = [pytest.mark.gpu] if ON_GPU else []


@functools.cache
def small_phi():
    """The folder of a Phi with random weights: Triton's interpreter needs a third of the nano model's time."""
    folder = tempfile.TemporaryDirectory()
    small_phi.folder = folder  # it is removed with this object
    return save_family("phi", Path(folder.name))


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """{family: folder of a small model}; only "phi" and "llama" have fused layers."""
    size = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "phi with normed queries": PhiConfig(**size, intermediate_size=128, qk_layernorm=True, resid_pdrop=0.1),
        "llama": LlamaConfig(**size, intermediate_size=128, num_key_value_heads=2),
        "olmo2": Olmo2Config(**size, intermediate_size=128),
        "opt": OPTConfig(**size, ffn_dim=128, word_embed_proj_dim=64, dropout=0.1),
        "opt with layerdrop": OPTConfig(**size, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0, layerdrop=0.1),
        "gpt-neox": GPTNeoXConfig(**size, intermediate_size=128, classifier_dropout=0.1),
    }
    folders = {"phi": small_phi()}
    for family, config in configs.items():
        folders[family] = tmp_path_factory.mktemp("model")
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[family])
    return folders


def classifier(folder=None, **changes):
    """A LoRA classifier in fp32 with a frozen head."""
    defaults = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    return small_classifier.classifier(manifest_of(folder or small_phi()), **defaults | changes)


class FusedStep:
    """Computes the loss and LoRA's gradients by the fused layers."""

    def __init__(self, lora, dequantize_once=False):
        from stages.kernels.dropout import DropoutMasks
        from stages.kernels.fusion import FusedTraining

        self.model, self.masks = lora, DropoutMasks(DEVICE)
        self.layers = FusedTraining(lora, self.masks)
        self.layers.keep_weights(dequantize_once)
        self.gradients = self.layers.gradients

    def loss(self, ids, labels, step=0):
        """The forward alone, which takes a third of the time."""
        self.masks.set_step(42, step)
        self.gradients.start_step()
        return self.model(input_ids=ids, labels=labels).loss

    def __call__(self, ids, labels, step=0):
        loss = self.loss(ids, labels, step)
        torch.autograd.grad(loss, self.gradients.dummy_input, allow_unused=True)
        self.gradients.finish_backward()
        self.gradients.assign_grads()
        return loss.item()


@pytest.mark.parametrize(
    ("targets", "dequantize_once", "quantization"),
    [
        *itertools.product(["all-linear"], [False, True], ["none", "nf4"]),
        (["q_proj", "v_proj"], False, "nf4"),
        (["q_proj", "v_proj"], True, "none"),
        (["dense", "fc2"], False, "none"),
        (["dense", "fc2"], True, "nf4"),
    ],
)
def test_loss_and_gradients_equal_those_of_peft(targets, dequantize_once, quantization):
    loss, grads = eager(classifier(targets=targets, quantization=quantization), *batch())
    lora = classifier(targets=targets, quantization=quantization)
    assert FusedStep(lora, dequantize_once)(*batch()) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)  # a GPU may multiply in tf32


def test_for_many_tokens_the_gradients_of_loras_columns_are_a_product_of_their_own(monkeypatch):
    """If they begin another tile; here tiles have a column."""
    from stages.kernels import fused_linear

    monkeypatch.setattr(fused_linear, "MANY_TOKENS", 1)
    loss, grads = eager(classifier(), *batch(rows=2))
    products = []
    for tile in (1, 1024):
        monkeypatch.setattr(fused_linear, "TILE", tile)
        fused = FusedStep(lora := classifier(), dequantize_once=True)
        run = Mock(side_effect=fused.gradients.side_stream.run)
        monkeypatch.setattr(fused.gradients.side_stream, "run", run)
        assert fused(*batch(rows=2)) == pytest.approx(loss, rel=1e-5)
        assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)
        products.append(run.call_count)
    assert products[0] > products[1]


def test_products_with_zeros_added_are_the_same(families, monkeypatch):
    from stages.kernels import fusion

    monkeypatch.setattr(fusion, "find_faster_bias", lambda weight, tokens: weight.new_zeros(len(weight)))
    inputs = batch(rows=2)
    loss, grads = eager(classifier(folder=families["llama"]), *inputs)
    fused = FusedStep(lora := classifier(folder=families["llama"]), dequantize_once=True)
    fused.layers.choose_products(inputs[0].numel())
    assert all(list(linear.zeros) == [inputs[0].numel()] for linear in fused.layers.linears)
    assert fused(*inputs) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_products_with_a_bias_get_no_zeros(monkeypatch):
    from stages.kernels import fusion

    monkeypatch.setattr(fusion, "find_faster_bias", lambda weight, tokens: weight.new_zeros(len(weight)))
    fused = FusedStep(classifier(), dequantize_once=True)
    fused.layers.choose_products(64)
    assert not any(linear.zeros for linear in fused.layers.linears)


def test_a_copy_of_the_weights_may_be_kept_and_released():
    loss, grads = eager(classifier(quantization="nf4"), *batch(rows=2))
    fused = FusedStep(lora := classifier(quantization="nf4"))
    for keep in (True, False, True):
        fused.layers.keep_weights(keep)
        assert fused(*batch(rows=2)) == pytest.approx(loss, rel=1e-5)
        assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)
        assert all((linear.weight is not None) == keep for linear in fused.layers.linears)


def test_gradients_include_the_dropout_masks_of_the_forward():
    """Compared with central differences of the loss, along two random directions of all weights, with fixed masks."""
    lora = classifier(dropout=0.2)
    fused, inputs = FusedStep(lora), batch(rows=2)
    fused(*inputs, step=5)
    weights = [p for p in lora.parameters() if p.requires_grad]
    grads, start = [p.grad.clone() for p in weights], [p.detach().clone() for p in weights]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        shifts = [torch.randn(p.shape, generator=generator).to(DEVICE) * p.std() * 0.03 for p in start]
        losses = []
        for sign in (1, -1):
            for weight, first, shift in zip(weights, start, shifts, strict=True):
                weight.data.copy_(first + sign * shift)
            losses.append(fused.loss(*inputs, step=5).item())
        slope = sum((grad * shift).sum().item() for grad, shift in zip(grads, shifts, strict=True))
        assert (losses[0] - losses[1]) / 2 == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("family", ["phi", "phi with normed queries", "olmo2"])
def test_a_layer_recomputed_by_checkpointing_has_the_same_dropout_masks(families, family, monkeypatch):
    grads, forward_counts = [], []
    for checkpointing in (False, True):
        lora = classifier(dropout=0.2, checkpointing=checkpointing, folder=families[family])
        fused = FusedStep(lora)
        start_layer = Mock(side_effect=fused.masks.start_layer)
        monkeypatch.setattr(fused.masks, "start_layer", start_layer)
        fused(*batch(rows=2), step=5)
        grads.append(gradients(lora))
        forward_counts.append(start_layer.mock_calls.count(call(1)))
    assert forward_counts == [1, 2]
    assert distance(grads[1], grads[0]) < 1e-6


def llama():
    """An architecture as a newcomer would write it: Llama's layer, in which only the linear modules are fused."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

    from stages.kernels.architecture import Architecture

    def linears_by_input(layer):
        attention, mlp = layer.self_attn, layer.mlp
        qkv, gate_up = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)
        return [qkv, (attention.o_proj,), gate_up, (mlp.down_proj,)]

    def forward(layer, project, x, layout):
        attention, mlp, (qkv, o, gate_up, down) = layer.self_attn, layer.mlp, linears_by_input(layer)
        heads = (
            attention.config.num_attention_heads,
            attention.config.num_key_value_heads,
            attention.config.num_key_value_heads,
        )
        parts = project(qkv, layer.input_layernorm(x)).unflatten(-1, (-1, attention.head_dim)).split(heads, dim=-2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        q, k = apply_rotary_pos_emb(q, k, layout.cos[None], layout.sin[None])
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + project(o, attended.transpose(1, 2).reshape(x.shape))
        gate, up = project(gate_up, layer.post_attention_layernorm(x)).chunk(2, dim=-1)
        return x + project(down, mlp.act_fn(gate) * up)

    return Architecture(LlamaDecoderLayer, lambda layer: True, linears_by_input, forward)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_new_architecture_needs_only_its_registration(families, monkeypatch, checkpointing):
    """Its linear modules are then fused, and loss and gradients equal PEFT's."""
    from stages.kernels import registry

    options = {"folder": families["llama"], "checkpointing": checkpointing}
    loss, grads = eager(classifier(**options), *batch())
    monkeypatch.setattr(registry, "ARCHITECTURES", (llama(),))
    lora = classifier(**options)
    fused = FusedStep(lora)
    assert fused(*batch()) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_dropouts_without_a_module_are_found_in_the_config(families):
    from stages.training.captured_step import functional_dropouts

    assert functional_dropouts(classifier(dropout=0.05, folder=families["opt"])) == ["dropout"]
    assert functional_dropouts(classifier(dropout=0.05, folder=families["gpt-neox"])) == []
    phi = classifier(dropout=0.1)
    assert functional_dropouts(phi) == []
    phi.get_base_model().config.attention_dropout = 0.1
    assert functional_dropouts(phi) == ["attention_dropout"]


def test_a_model_with_layerdrop_has_no_captured_step(families):
    from stages.training.captured_step import CapturedStep

    with pytest.raises(StepUnavailable, match="layerdrop"):
        CapturedStep(classifier(folder=families["opt with layerdrop"]), 4, 16, 42, 0)


@pytest.fixture
def make_step(monkeypatch):
    return functools.partial(small_classifier.make_eager_step, monkeypatch, longest=16)


def test_a_layer_that_the_forward_skips_gets_zero_gradients(families, make_step):
    """The eager step leaves them at None. All other gradients equal the eager ones."""
    grads = []
    for is_fused in (False, True):
        lora = classifier(folder=families["olmo2"])
        lora.get_base_model().model.layers[1].mlp.forward = lambda x: x
        if is_fused:
            make_step(lora)(as_inputs(*batch()), 0)
        else:
            lora(input_ids=batch()[0], labels=batch()[1]).loss.backward()
        grads.append({n: p.grad for n, p in lora.named_parameters() if p.requires_grad})
    unused = {name for name, grad in grads[0].items() if grad is None}
    assert len(unused) == 6 and all("layers.1.mlp" in name for name in unused)
    assert all(not grads[1][name].any() for name in unused)
    used = {name: grad for name, grad in grads[0].items() if name not in unused}
    assert distance(grads[1], used) < (1e-3 if ON_GPU else 1e-5)


def test_a_layer_that_bypasses_the_fused_forward_is_an_error(families, make_step):
    """Its weights would silently not be trained."""
    lora = classifier(folder=families["olmo2"])
    step = make_step(lora)
    layer = lora.get_base_model().model.layers[1].mlp.up_proj
    layer.forward = functools.partial(type(layer).forward, layer)
    with pytest.raises(RuntimeError, match="PEFT's own forward"):
        step(as_inputs(*batch()), 0)


@pytest.mark.parametrize("rows", [3, 4])
def test_packed_rows_have_the_loss_and_gradients_of_padded_rows(make_step, rows):
    """Also in an incomplete batch, and in a batch with last tokens that belong to no row."""
    ids, labels = batch(rows)
    loss, grads = eager(classifier(freeze=False), ids, labels)
    lora = classifier(freeze=False)
    step, packed = make_step(lora), pack_rows(as_rows(ids, labels), PAD, rows=4, tokens=64)
    assert step.takes_packed_rows and packed["input_ids"].shape == (64,)
    packed = {name: value.to(DEVICE) for name, value in packed.items()}
    assert step([packed], 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_each_rank_weighs_its_loss_by_its_share_of_the_rows(make_step):
    """Two ranks share three rows. The sum of their buffers has the loss and gradients of the whole batch."""
    ids, labels = batch(3)
    loss, grads = eager(classifier(freeze=False), ids, labels)
    step, total = make_step(lora := classifier(freeze=False)), 0
    for part in (slice(0, 2), slice(2, 3)):
        weight = torch.tensor(len(labels[part]) / 3, device=DEVICE)
        step(as_inputs(ids[part], labels[part], weight=weight), 0)
        total = total + step.lora.buffer.clone()
    step.lora.buffer.copy_(total)
    assert step.lora.loss.item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_a_validation_batch_may_have_more_tokens_than_the_last_training_batch(make_step):
    from stages.kernels.packed_rows import compute_logits

    step = make_step(lora := classifier(), longest=16)
    rows = as_rows(*batch(4))
    small, large = (pack_rows(some, PAD, offsets=[0] * len(some)) for some in (rows[:1], rows))
    step([{name: value.to(DEVICE) for name, value in small.items()}], 0)
    with torch.inference_mode():
        logits = compute_logits(lora.eval(), {name: value.to(DEVICE) for name, value in large.items()}, 16)
    assert logits.isfinite().all()


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_batch(make_step, packed):
    """With dropout: the masks depend on a token's position in the batch. The parts have other rows as neighbours."""
    ids, labels = batch(3, length=12)
    rows, lengths = as_rows(ids, labels), [len(row["input_ids"]) for row in as_rows(ids, labels)]
    offsets = np.cumsum(lengths) - lengths
    batches = params.load(PARAMS).batches.model_copy(update={"multiple_of": 4})

    def collate(indices):
        chosen = [rows[i] for i in indices]
        collator = PartCollator(packed, PAD, batches, 128)
        part = collator.fill_up_to(48 if packed else 12, chosen, offsets[indices])
        part["weight"] = torch.tensor(len(indices) / len(rows))
        return {name: value.to(DEVICE) for name, value in part.items()}

    losses, grads = [], []
    for division in ([[0, 1, 2]], [[2, 0], [1]]):
        step = make_step(lora := classifier(freeze=False, dropout=0.3), longest=12)
        step.rows = len(division[0])
        losses.append(step([collate(np.array(part)) for part in division], 7).item())
        grads.append(gradients(lora))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert distance(grads[1], grads[0]) < (1e-3 if ON_GPU else 1e-5)


@pytest.mark.parametrize(("family", "packed", "checkpointing"), [("phi", True, False), ("olmo2", False, True)])
def test_several_labels_have_pytorch_s_weighted_loss_and_its_gradients_also_in_parts(
    families, make_step, family, packed, checkpointing
):
    """The second part has one row less, and is filled up."""
    ids, labels = batch(3, length=12, several=True)
    options = {"folder": families[family], "freeze": False, "several": True, "checkpointing": checkpointing}
    loss, grads = eager(classifier(**options), ids, labels, binary_loss)
    step = make_step(lora := classifier(**options), longest=12)
    assert step.takes_packed_rows == packed
    step.rows = 2
    collator = PartCollator(packed, PAD, params.load(PARAMS).batches.model_copy(update={"multiple_of": 4}), 128)
    collator.rows = 2
    parts = []
    for rows in ([2, 0], [1]):
        part = collator.fill_up_to(
            28 if packed else 12, as_rows(ids[rows], labels[rows]), np.array([0, 12])[: len(rows)]
        )
        part["weight"] = torch.tensor(len(rows) / 3)
        parts.append({name: value.to(DEVICE) for name, value in part.items()})
    assert step(parts, 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


@pytest.mark.skipif(ON_GPU, reason="test_gpu tests a real capture")
def test_memory_that_runs_out_in_a_capture_is_no_reason_to_run_eagerly(make_step, monkeypatch):
    """The capture's end raises another error if the second stream is still part of it."""
    step, main = make_step(classifier()), FakeStream()
    side_stream = step.lora.side_stream
    side_stream.stream = FakeStream()

    @contextlib.contextmanager
    def capture(*_, **__):
        try:
            yield
        finally:
            if side_stream.stream not in main.joined:
                raise RuntimeError("capture has unjoined work")

    def fail():
        raise torch.OutOfMemoryError

    for name, value in {
        "graph": capture, "CUDAGraph": object, "Event": object, "current_stream": lambda: main,
        "stream": contextlib.nullcontext,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(step, "run", lambda _: side_stream.run(fail, tokens=1))
    with pytest.raises(torch.OutOfMemoryError):
        step._capture({})


class FakeStream:
    def __init__(self):
        self.joined = []

    def wait_stream(self, other):
        self.joined.append(other)


def test_parts_of_one_size_are_captured_once(make_step, monkeypatch):
    from stages.training.captured_step import CapturedStep

    step, captured, original = make_step(classifier()), [], CapturedStep.capture
    monkeypatch.setattr(step, "capture", lambda parts: captured.append(len(parts)) or original(step, parts))
    small = [as_inputs(*batch(rows=1, length=length, seed=seed))[0] for length, seed in ((4, 1), (4, 2), (6, 1))]
    step.rows = 1
    step(small, 0)
    assert captured == [2]


def test_a_fused_model_uses_weights_that_are_loaded_into_it(make_step, tmp_path):
    """The Trainer loads the best epoch so. Weights keep their addresses, which copies and optimizer read."""
    lora = classifier()
    step, ids = make_step(lora), batch()[0]
    addresses = [weight.data_ptr() for weight in step.lora.lora_weights]
    lora.eval().save_pretrained(tmp_path)
    expected = lora(input_ids=ids).logits
    with torch.no_grad():
        step.lora.flat_param.mul_(2)
    assert not torch.allclose(lora(input_ids=ids).logits, expected)
    lora.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(lora.eval()(input_ids=ids).logits, expected)
    assert [weight.data_ptr() for weight in step.lora.lora_weights] == addresses


def test_only_models_of_fused_layers_take_packed_rows(families):
    from stages.kernels.fusion import takes_packed_rows

    assert takes_packed_rows(classifier())
    assert not takes_packed_rows(classifier(folder=families["phi with normed queries"]))
    assert not takes_packed_rows(classifier(folder=families["opt"]))


@pytest.mark.parametrize(
    ("longest", "window"),
    [(30, None), (40, None), (70, None), (30, 5), (70, 1), (70, 50), (70, 2), (70, 34)],  # 2 and 34 cross a block
)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary"),
    [(2, 2, 80, 32), (4, 1, 32, 32), (4, 2, 16, 6), (2, 1, 160, 160)],
)
def test_attention_and_its_gradient_equal_those_of_pytorch(num_heads, num_kv_heads, head_dim, rotary, longest, window):
    """Rows of one block and of several, of one token and of none, then tokens after the last row. fp32: a block has 32.

    Columns after queries, keys and values are not written.
    """
    from stages.kernels.attention import AttentionConfig, RowLayout, attention_backward, attention_forward

    lengths, extra_tokens, generator = [longest, 1, 0, 17], 40, torch.Generator().manual_seed(0)
    config = AttentionConfig(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window)
    tokens = sum(lengths) + extra_tokens
    angles = torch.rand(tokens, rotary // 2, generator=generator).repeat(1, 2).to(DEVICE)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    layout = RowLayout(cu_seqlens, longest, angles.cos(), angles.sin())
    qkv = torch.randn(tokens, sum(config.qkv_widths) + 24, generator=generator).to(DEVICE).requires_grad_()
    dout = torch.randn(tokens, num_heads * head_dim, generator=generator).to(DEVICE)
    expected = attend_by_row(qkv, config, layout)
    (expected_grad,) = torch.autograd.grad(expected, qkv, dout)
    out, lse = attention_forward(qkv.detach(), config, layout)
    dqkv = torch.full_like(qkv, 7)
    attention_backward(qkv.detach(), out, lse, dout, dqkv, config, layout)
    columns, tolerance = sum(config.qkv_widths), 1e-5 if not ON_GPU else 1e-3
    assert (out - expected).abs().max() < tolerance
    assert (dqkv[:, :columns] - expected_grad[:, :columns]).abs().max() < tolerance
    assert (dqkv[:, columns:] == 7).all()


@pytest.mark.parametrize(("longest", "window"), [(30, None), (70, None), (70, 1), (70, 50)])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary"),
    [(2, 2, 80, 32), (4, 1, 32, 32), (4, 2, 16, 6), (2, 1, 160, 160)],
)
def test_attention_of_last_tokens_and_its_gradient_equal_those_of_pytorch(
    num_heads, num_kv_heads, head_dim, rotary, longest, window
):
    """Classified tokens before a row's end and at it, a row of one token and of none, then tokens after the last row.

    Columns after the queries are not written.
    """
    from stages.kernels.attention import AttentionConfig, RowLayout
    from stages.kernels.last_token_attention import last_token_backward, last_token_forward

    lengths, extra_tokens, generator = [longest, 1, 0, 17], 40, torch.Generator().manual_seed(0)
    config = AttentionConfig(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window)
    tokens, q_width = sum(lengths) + extra_tokens, num_heads * head_dim
    angles = torch.rand(tokens, rotary // 2, generator=generator).repeat(1, 2).to(DEVICE)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    last = torch.tensor([longest - 4, longest, 0, longest + 17], device=DEVICE)
    layout = RowLayout(cu_seqlens, longest, angles.cos(), angles.sin(), last)
    qkv = torch.randn(tokens, sum(config.qkv_widths), generator=generator).to(DEVICE).requires_grad_()
    dout = torch.randn(4, q_width, generator=generator).to(DEVICE)
    has_tokens = torch.tensor([[1.0], [1], [0], [1]], device=DEVICE)
    expected = attend_by_row(qkv, config, layout)[last] * has_tokens
    (expected_grad,) = torch.autograd.grad(expected, qkv, dout)
    q, kv = qkv.detach()[last], qkv.detach()[:, q_width:].contiguous()
    out, lse = last_token_forward(q, kv, config, layout)
    dq = torch.full_like(q, 7)
    dkv = last_token_backward(q, kv, out, lse, dout, dq, config, layout)
    tolerance = 1e-5 if not ON_GPU else 1e-3
    assert (out - expected).abs().max() < tolerance
    assert (dq[:, :q_width] - expected_grad[last, :q_width] * has_tokens).abs().max() < tolerance
    assert (dkv - expected_grad[:, q_width:]).abs().max() < tolerance
    assert (dq[:, q_width:] == 7).all()


def test_tensors_beyond_32_bit_indices_are_rejected():
    from stages.kernels.dropout import apply_dropout
    from stages.kernels.lora_kernels import down_project

    x = torch.empty(1, device=DEVICE).expand(2**18, 128 * 64)  # uses no memory
    seed = torch.tensor(7, device=DEVICE)
    with pytest.raises(UserError, match="batch_size must be smaller"):
        apply_dropout([x], 0.1, seed, 0)
    with pytest.raises(UserError, match="batch_size must be smaller"):
        down_project(x, x[None, :16], 0.1, seed, 0)


@pytest.mark.parametrize(
    ("p", "rows", "values"),
    [(0.999995, 256, {0.0, 2.0**16}), (1.0, 8, {0.0})],  # p has steps of 2^-16
)
def test_dropout_of_nearly_all_or_all_elements(p, rows, values):
    from stages.kernels.dropout import apply_dropout, apply_two_masks

    ones, seed = torch.ones(rows, 512, device=DEVICE), torch.tensor(7, device=DEVICE)
    for out in (apply_dropout([ones], p, seed, 0), *apply_two_masks(ones, p, seed, 0)):
        assert set(out.unique().tolist()) == values


@pytest.mark.parametrize(
    ("tokens", "in_features", "n", "r"), [(70, 520, 3, 8), (20, 100, 1, 130), (5, 1024, 2, 16), (600, 40, 2, 8)]
)
def test_the_lora_kernels_equal_their_formulas(tokens, in_features, n, r):
    """With dropout, sums that are split among programs, and sizes that are no multiples of a tile."""
    from stages.kernels import lora_kernels
    from stages.kernels.dropout import apply_dropout

    generator, p, site = torch.Generator().manual_seed(0), 0.3, 5
    lora_rank, seed = lora_kernels.padded_rank(r), torch.tensor(7, device=DEVICE)
    x = torch.randn(tokens, in_features, generator=generator).to(DEVICE)
    a = torch.zeros(n, lora_rank, in_features)
    a[:, :r] = torch.randn(n, r, in_features, generator=generator) / in_features**0.5
    a = a.to(DEVICE)
    positions = torch.randperm(2 * tokens, generator=generator)[:tokens].int().to(DEVICE)
    masks = [apply_dropout([torch.ones_like(x)], p, seed, site + i, positions) for i in range(n)]
    xu = lora_kernels.down_project(x, a, p, seed, site, positions)
    u = torch.cat([(x * mask) @ a_i.t() for mask, a_i in zip(masks, a, strict=True)], dim=1)
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if ON_GPU else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(xu, torch.cat([x, u], dim=1), **tolerances)

    dxu = (torch.randn(xu.shape, generator=generator) / tokens**0.5).to(DEVICE)  # so that sums over tokens are near 1
    dx, du = dxu[:, :in_features], dxu[:, in_features:].unflatten(1, (n, lora_rank))
    expected = dx + sum(mask * (du[:, i] @ a[i]) for i, mask in enumerate(masks))
    torch.testing.assert_close(
        lora_kernels.compute_input_grad(dxu, a, p, seed, site, positions), expected, **tolerances
    )

    grads = torch.ones(n * r * in_features + 3, device=DEVICE)
    offsets = torch.arange(n, device=DEVICE) * r * in_features + 3
    expected = torch.cat([(du[:, i, :r].t() @ (x * mask)).flatten() for i, mask in enumerate(masks)])
    for add, factor in ((False, 1), (True, 2)):
        lora_kernels.write_a_grads(grads, offsets, r, dxu[:, in_features:], x, p, seed, site, positions, add)
        torch.testing.assert_close(grads[3:], factor * expected, **tolerances)
    assert (grads[:3] == 1).all()


def test_the_down_projection_reads_a_transposed_input():
    """A view of one row of Jamba's mixer, whose columns are not adjacent."""
    from stages.kernels import lora_kernels

    generator = torch.Generator().manual_seed(0)
    x, a = (
        torch.randn(40, 6, generator=generator).to(DEVICE).t(),
        torch.randn(1, 16, 40, generator=generator).to(DEVICE),
    )
    xu = lora_kernels.down_project(x, a, 0.0, torch.tensor(7, device=DEVICE), 0)
    torch.testing.assert_close(xu, torch.cat([x, x @ a[0].t()], dim=1), rtol=1e-2, atol=1e-2)


def test_the_lora_kernels_compute_the_same_for_many_tokens(monkeypatch):
    """They have other tiles, and A's gradients are sums of several programs."""
    from stages.kernels import lora_kernels

    generator, tokens, in_features, n, r = torch.Generator().manual_seed(0), 400, 72, 2, 8
    x, a, dxu = (
        torch.randn(*shape, generator=generator).to(DEVICE, torch.bfloat16)
        for shape in ((tokens, in_features), (n, 16, in_features), (tokens, in_features + n * 16))
    )
    seed, offsets = torch.tensor(7, device=DEVICE), torch.arange(n, device=DEVICE) * r * in_features
    results = []
    for many_tokens in (tokens + 1, tokens):
        monkeypatch.setattr(lora_kernels, "MANY_TOKENS", many_tokens)
        grads = torch.ones(n * r * in_features, device=DEVICE)
        lora_kernels.write_a_grads(grads, offsets, r, dxu[:, in_features:], x, 0.1, seed, 3, None, add=True)
        dx = lora_kernels.compute_input_grad(dxu, a, 0.1, seed, 3, None, True, x)
        results.append((lora_kernels.down_project(x, a, 0.1, seed, 3, gelu=True), dx, grads))
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(many, few, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("columns", [512, 7])
def test_dropout_masks_depend_on_the_position_in_the_batch_only(columns):
    from stages.kernels.dropout import apply_dropout, apply_two_masks

    ones, seed = torch.ones(20, columns, device=DEVICE), torch.tensor(7, device=DEVICE)
    positions = torch.tensor([11, 3, 19, 0], dtype=torch.int32, device=DEVICE)
    part = torch.ones(4, columns, device=DEVICE)
    whole = apply_dropout([ones], 0.3, seed, 2)
    assert torch.equal(apply_dropout([part], 0.3, seed, 2, positions), whole[positions])
    assert torch.equal(apply_two_masks(part, 0.3, seed, 1, positions)[1], whole[positions])
    assert 0.5 < (whole > 0).float().mean() < 0.9


def test_a_model_that_cannot_be_fused_is_unchanged(families):
    from stages.kernels.fusion import fuse_for_evaluation

    lora = classifier().eval()
    layer = next(module for module in lora.modules() if isinstance(module, LoraLayer))
    ids, classes = batch()[0], [type(module) for module in lora.modules()]
    expected = lora(input_ids=ids).logits
    layer.lora_variant["default"] = object()  # such as DoRA
    assert not fuse_for_evaluation(lora, dequantize_once=False)
    assert [type(module) for module in lora.modules()] == classes
    layer.lora_variant.pop("default")
    assert torch.equal(lora(input_ids=ids).logits, expected)


def test_dropout_masks_differ_between_steps():
    fused = FusedStep(classifier(dropout=0.2))
    step3, step4, step3_again = (fused.loss(*batch(rows=2), step=step).item() for step in (3, 4, 3))
    assert step3 == step3_again != step4


@pytest.mark.parametrize("dequantize_once", [False, True])
@pytest.mark.parametrize("with_lora", [False, True])
def test_logits_of_fused_phi_layers_equal_those_of_transformers(with_lora, dequantize_once):
    """For rows that are padded on the right."""
    from stages.kernels.fusion import fuse_for_evaluation

    model = classifier().eval() if with_lora else classifier().get_base_model().eval()
    ids = batch()[0]
    ids[1, 9:] = model.config.pad_token_id
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        fuse_for_evaluation(model, dequantize_once)
        layers = [module for module in model.modules() if isinstance(module, PhiDecoderLayer)]
        assert layers and all(type(layer) is not PhiDecoderLayer for layer in layers)
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3 if ON_GPU else 1e-5)


def test_dropout_without_a_module_has_the_same_masks_at_the_same_step(families, make_step):
    """Other random numbers may have been drawn before, as in a resumed training."""
    step = make_step(classifier(dropout=0.05, folder=families["opt"]))
    losses = []
    for number in (3, 4, 3):
        losses.append(step(small_classifier.as_inputs(*batch()), number).item())
        torch.rand(7)
    assert losses[0] == losses[2] != losses[1]
