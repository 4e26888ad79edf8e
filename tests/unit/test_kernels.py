"""The fused layers' mathematics: on a GPU if there is one, else with Triton's interpreter on the CPU."""

import functools

import pytest
import torch
from helpers import small_classifier
from helpers.parameters import manifest_of
from helpers.project import NANO
from helpers.small_classifier import DEVICE, batch, distance, eager, gradients
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, OPTConfig, PhiConfig
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.kernels.errors import StepUnavailable
from stages.runtime.errors import UserError

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
pytestmark = [pytest.mark.gpu] if ON_GPU else []


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """{family: folder of a small model}; all but "phi" have no fused layers."""
    size = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "phi with normed queries": PhiConfig(**size, intermediate_size=128, qk_layernorm=True, resid_pdrop=0.1),
        "llama": LlamaConfig(**size, intermediate_size=128, num_key_value_heads=2),
        "opt": OPTConfig(**size, ffn_dim=128, word_embed_proj_dim=64, dropout=0.1),
        "opt with layerdrop": OPTConfig(**size, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0, layerdrop=0.1),
        "gpt-neox": GPTNeoXConfig(**size, intermediate_size=128, classifier_dropout=0.1),
    }
    folders = {"phi": NANO}
    for family, config in configs.items():
        folders[family] = tmp_path_factory.mktemp("model")
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[family])
    return folders


def classifier(folder=NANO, **changes):
    """In fp32, the head frozen."""
    defaults = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    return small_classifier.classifier(manifest_of(folder), **defaults | changes)


class Fused:
    """Loss and LoRA gradients by the fused layers."""

    def __init__(self, lora):
        from stages.kernels.dropout import Masks
        from stages.kernels.fusion import fuse_for_training, layers_by_input
        from stages.kernels.lora import LoraCopies

        self.model, self.masks, groups = lora, Masks(DEVICE), layers_by_input(lora)
        self.group_sizes = sorted(len(group) for group in groups)
        self.copies = LoraCopies(groups, torch.float32)
        fuse_for_training(lora, groups, self.masks, self.copies, dequantize_once=False)

    def __call__(self, ids, labels, step=0):
        self.masks.set(42, step)
        self.copies.refresh()
        loss = self.model(input_ids=ids, labels=labels).loss
        self.copies.take_grads(torch.autograd.grad(loss, self.copies.copies))
        self.copies.hand_out_grads()
        return loss.item()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(
    ("targets", "group_sizes"),
    [
        ("all-linear", [1, 1, 1, 1, 1, 1, 4, 4, 4]),
        (["q_proj", "v_proj"], [2, 2, 2]),
        (["dense", "fc2"], [1, 1, 1, 1, 1, 1]),
    ],
)
def test_loss_and_gradients_are_pefts(targets, group_sizes, quantization):
    loss, grads = eager(classifier(targets=targets, quantization=quantization), *batch())
    lora = classifier(targets=targets, quantization=quantization)
    fused = Fused(lora)
    assert fused.group_sizes == group_sizes
    assert fused(*batch()) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)  # a GPU may take its products in tf32


@pytest.mark.parametrize("direction", range(3))
def test_gradients_are_those_of_the_dropped_forward(direction):
    """Central differences of the loss, the masks being one step's, along a random direction of all weights."""
    lora = classifier(dropout=0.2)
    fused = Fused(lora)
    fused(*batch(), step=5)
    weights = [p for p in lora.parameters() if p.requires_grad]
    grads = [p.grad.clone() for p in weights]
    generator = torch.Generator().manual_seed(direction)
    moves = [torch.randn(p.shape, generator=generator).to(DEVICE) * p.std() * 0.03 for p in weights]
    losses = []
    for sign in (1, -2):
        for weight, move in zip(weights, moves, strict=True):
            weight.data.add_(move, alpha=sign)
        losses.append(fused(*batch(), step=5))
    slope = sum((grad * move).sum().item() for grad, move in zip(grads, moves, strict=True))
    assert (losses[0] - losses[1]) / 2 == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("family", ["phi", "phi with normed queries", "llama"])
def test_a_layer_computed_again_by_checkpointing_finds_its_masks(families, family):
    grads, forwards = [], []
    for checkpointing in (False, True):
        lora = classifier(dropout=0.2, checkpointing=checkpointing, folder=families[family])
        fused, count = Fused(lora), []
        norm = next(module for name, module in lora.named_modules() if name.endswith("layers.0.input_layernorm"))
        norm.register_forward_hook(lambda *_, count=count: count.append(1))
        fused(*batch(), step=5)
        grads.append(gradients(lora))
        forwards.append(len(count))
    assert forwards == [1, 2]
    assert distance(grads[1], grads[0]) < 1e-6


def llama():
    """Llama's layer as another architecture: two groups that share an input, each with its own norm before it."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

    from stages.kernels.architecture import Architecture

    def shared_inputs(layer):
        attention, mlp = layer.self_attn, layer.mlp
        return [(attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)]

    def forward(layer, project, x, *_, position_embeddings, **__):
        attention, mlp, (qkv, gate_up) = layer.self_attn, layer.mlp, shared_inputs(layer)
        heads = (*x.shape[:-1], -1, attention.head_dim)
        q, k, v = (y.view(heads).transpose(1, 2) for y in project(qkv, layer.input_layernorm(x)))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + attention.o_proj(attended.transpose(1, 2).reshape(x.shape))
        gate, up = project(gate_up, layer.post_attention_layernorm(x))
        return x + mlp.down_proj(mlp.act_fn(gate) * up)

    return Architecture(LlamaDecoderLayer, lambda layer: True, shared_inputs, forward)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_another_architecture_takes_one_registration(families, monkeypatch, checkpointing):
    """Its LoRA layers then compute in its groups, and loss and gradients are PEFT's."""
    from stages.kernels import registry

    how = {"folder": families["llama"], "checkpointing": checkpointing}
    loss, grads = eager(classifier(**how), *batch())
    monkeypatch.setattr(registry, "ARCHITECTURES", (*registry.ARCHITECTURES, llama()))
    lora = classifier(**how)
    fused = Fused(lora)
    assert fused.group_sizes == [1, 1, 1, 1, 2, 2, 3, 3]
    assert fused(*batch()) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_dropouts_that_no_module_carries_are_known(families):
    from stages.training.fast_step import functional_dropouts

    assert functional_dropouts(classifier(dropout=0.05, folder=families["opt"])) == ["dropout"]
    assert functional_dropouts(classifier(dropout=0.05, folder=families["gpt-neox"])) == []
    phi = classifier(dropout=0.1)
    assert functional_dropouts(phi) == []
    phi.get_base_model().config.attention_dropout = 0.1
    assert functional_dropouts(phi) == ["attention_dropout"]


def test_a_model_that_leaves_out_layers_at_random_has_no_fast_step(families):
    from stages.training.fast_step import FastStep

    with pytest.raises(StepUnavailable, match="layerdrop"):
        FastStep(classifier(folder=families["opt with layerdrop"]), 4, 42, 0, dequantize_once=False)


@pytest.fixture
def fast_step(monkeypatch):
    """The fast step of a classifier, its steps run eagerly; without a GPU too."""
    from stages.training.fast_step import FastStep

    if not ON_GPU:
        for name in ("graph_pool_handle", "Stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)

    def make(lora):
        step = FastStep(lora, 4, 42, 0, dequantize_once=False)
        step.capturable = False
        return step

    return make


def test_a_layer_that_the_forward_goes_round_gets_no_gradient(families, fast_step):
    """Zeros in the fast step, where the eager one has none; all other gradients are the eager ones."""
    grads = []
    for fast in (False, True):
        lora = classifier(folder=families["llama"])
        lora.get_base_model().model.layers[1].mlp.forward = lambda x: x
        if fast:
            fast_step(lora)(*batch(), 0)
        else:
            lora(input_ids=batch()[0], labels=batch()[1]).loss.backward()
        grads.append({n: p.grad for n, p in lora.named_parameters() if p.requires_grad})
    unused = {name for name, grad in grads[0].items() if grad is None}
    assert len(unused) == 6 and all("layers.1.mlp" in name for name in unused)
    assert all(not grads[1][name].any() for name in unused)
    used = {name: grad for name, grad in grads[0].items() if name not in unused}
    assert distance(grads[1], used) < (1e-3 if ON_GPU else 1e-5)


def test_a_layer_that_computes_in_pefts_way_beside_the_fast_step_is_an_error(families, fast_step):
    """Its weights would stay as they are without a word."""
    lora = classifier(folder=families["llama"])
    step = fast_step(lora)
    layer = lora.get_base_model().model.layers[1].mlp.up_proj
    layer.forward = functools.partial(type(layer).forward, layer)
    with pytest.raises(RuntimeError, match="PEFT's own forward"):
        step(*batch(), 0)


def test_more_elements_than_the_kernels_count_are_refused():
    from stages.kernels.dropout import dropped
    from stages.kernels.rotary import rotated

    x = torch.empty(1, device=DEVICE).expand(2**18, 128, 64)  # takes no memory
    with pytest.raises(UserError, match="batch_size must be smaller"):
        dropped(x, 1, 0.1, torch.tensor(7, device=DEVICE), 0)
    with pytest.raises(UserError, match="batch_size must be smaller"):
        rotated(x[None], x[:1, :, :32], x[:1, :, :32], sign=1.0)


def test_masks_differ_between_steps():
    fused = Fused(classifier(dropout=0.2))
    first, second, again = (fused(*batch(), step=step) for step in (3, 4, 3))
    assert first == again != second


@pytest.mark.parametrize("tuned", [False, True])
def test_phis_layers_answer_as_transformers_do(tuned):
    """Rows are padded on the right, and read at their last token."""
    from stages.kernels.fusion import fuse_decoder_layers

    plain = classifier().eval() if tuned else classifier().get_base_model().eval()
    ids = batch()[0]
    ids[1, 9:] = plain.config.pad_token_id
    with torch.inference_mode():
        expected = plain(input_ids=ids).logits
        fuse_decoder_layers(plain)
        layers = [module for module in plain.modules() if isinstance(module, PhiDecoderLayer)]
        assert layers and all(type(layer) is not PhiDecoderLayer for layer in layers)
        assert torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-3 if ON_GPU else 1e-5)
