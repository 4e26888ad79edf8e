"""The fused layers' mathematics: on a GPU if there is one, else with Triton's interpreter on the CPU."""

import functools
import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import small_classifier
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.small_classifier import DEVICE, PAD, as_inputs, as_rows, batch, distance, eager, gradients
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Olmo2Config, OPTConfig, PhiConfig
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.data.batching import pack_rows
from stages.kernels.errors import StepUnavailable
from stages.runtime import distributed
from stages.runtime.errors import UserError

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
    """{family: folder of a small model}; all but "phi" and "llama" have no fused layers."""
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
    """In fp32, the head frozen."""
    defaults = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    return small_classifier.classifier(manifest_of(folder or small_phi()), **defaults | changes)


class Fused:
    """Loss and LoRA gradients by the fused layers."""

    def __init__(self, lora, keep=False):
        from stages.kernels.dropout import Masks
        from stages.kernels.fusion import fuse_for_training

        self.model, self.masks = lora, Masks(DEVICE)
        self.gradients = fuse_for_training(lora, self.masks, keep)

    def __call__(self, ids, labels, step=0):
        self.masks.set(42, step)
        self.gradients.begin()
        loss = self.model(input_ids=ids, labels=labels).loss
        torch.autograd.grad(loss, self.gradients.anchor, allow_unused=True)
        self.gradients.finish()
        self.gradients.hand_out()
        return loss.item()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["dense", "fc2"]])
def test_loss_and_gradients_are_pefts(targets, keep, quantization):
    loss, grads = eager(classifier(targets=targets, quantization=quantization), *batch())
    lora = classifier(targets=targets, quantization=quantization)
    assert Fused(lora, keep)(*batch()) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)  # a GPU may take its products in tf32


@pytest.mark.parametrize("direction", range(2))
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


@pytest.mark.parametrize("family", ["phi", "phi with normed queries", "olmo2"])
def test_a_layer_computed_again_by_checkpointing_finds_its_masks(families, family):
    grads, forwards = [], []
    for checkpointing in (False, True):
        lora = classifier(dropout=0.2, checkpointing=checkpointing, folder=families[family])
        fused, count = Fused(lora), []
        first = lora.get_base_model().base_model.layers[0]
        norm = next(module for name, module in first.named_modules() if name.endswith("layernorm"))
        norm.register_forward_hook(lambda *_, count=count: count.append(1))
        fused(*batch(), step=5)
        grads.append(gradients(lora))
        forwards.append(len(count))
    assert forwards == [1, 2]
    assert distance(grads[1], grads[0]) < 1e-6


def llama():
    """Llama's layer with no kernels but those of the products, as the whole of an architecture's file."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

    from stages.kernels.architecture import Architecture

    def shared_inputs(layer):
        attention, mlp = layer.self_attn, layer.mlp
        qkv, gate_up = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)
        return [qkv, (attention.o_proj,), gate_up, (mlp.down_proj,)]

    def forward(layer, project, x, rows):
        attention, mlp, (qkv, o, gate_up, down) = layer.self_attn, layer.mlp, shared_inputs(layer)
        heads = (
            attention.config.num_attention_heads,
            attention.config.num_key_value_heads,
            attention.config.num_key_value_heads,
        )
        parts = project(qkv, layer.input_layernorm(x)).unflatten(-1, (-1, attention.head_dim)).split(heads, dim=-2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        q, k = apply_rotary_pos_emb(q, k, rows.cos[None], rows.sin[None])
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + project(o, attended.transpose(1, 2).reshape(x.shape))
        gate, up = project(gate_up, layer.post_attention_layernorm(x)).chunk(2, dim=-1)
        return x + project(down, mlp.act_fn(gate) * up)

    return Architecture(LlamaDecoderLayer, lambda layer: True, shared_inputs, forward)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_another_architecture_takes_one_registration(families, monkeypatch, checkpointing):
    """Its LoRA layers then compute in its groups, and loss and gradients are PEFT's."""
    from stages.kernels import registry

    how = {"folder": families["llama"], "checkpointing": checkpointing}
    loss, grads = eager(classifier(**how), *batch())
    monkeypatch.setattr(registry, "ARCHITECTURES", (llama(),))
    lora = classifier(**how)
    fused = Fused(lora)
    assert fused(*batch()) == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_dropouts_that_no_module_carries_are_known(families):
    from stages.training.captured_step import functional_dropouts

    assert functional_dropouts(classifier(dropout=0.05, folder=families["opt"])) == ["dropout"]
    assert functional_dropouts(classifier(dropout=0.05, folder=families["gpt-neox"])) == []
    phi = classifier(dropout=0.1)
    assert functional_dropouts(phi) == []
    phi.get_base_model().config.attention_dropout = 0.1
    assert functional_dropouts(phi) == ["attention_dropout"]


def test_a_model_that_leaves_out_layers_at_random_has_no_fast_step(families):
    from stages.training.captured_step import CapturedStep

    with pytest.raises(StepUnavailable, match="layerdrop"):
        CapturedStep(classifier(folder=families["opt with layerdrop"]), 4, 16, 42, 0, dequantize_once=False)


@pytest.fixture
def fast_step(monkeypatch):
    return functools.partial(small_classifier.eager_fast_step, monkeypatch, longest=16)


def test_a_layer_that_the_forward_goes_round_gets_no_gradient(families, fast_step):
    """Zeros in the fast step, where the eager one has none; all other gradients are the eager ones."""
    grads = []
    for fast in (False, True):
        lora = classifier(folder=families["olmo2"])
        lora.get_base_model().model.layers[1].mlp.forward = lambda x: x
        if fast:
            fast_step(lora)(as_inputs(*batch()), 0)
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
    lora = classifier(folder=families["olmo2"])
    step = fast_step(lora)
    layer = lora.get_base_model().model.layers[1].mlp.up_proj
    layer.forward = functools.partial(type(layer).forward, layer)
    with pytest.raises(RuntimeError, match="PEFT's own forward"):
        step(as_inputs(*batch()), 0)


@pytest.mark.parametrize("rows", [3, 4])
def test_rows_end_to_end_have_the_loss_and_gradients_of_padded_ones(fast_step, rows):
    """A batch that is not whole, and one whose last tokens belong to no row."""
    ids, labels = batch(rows)
    loss, grads = eager(classifier(freeze=False), ids, labels)
    lora = classifier(freeze=False)
    step, laid = fast_step(lora), pack_rows(as_rows(ids, labels), PAD, rows=4, tokens=60)
    assert step.takes_packed_rows and laid["input_ids"].shape == (64,)
    assert step({name: value.to(DEVICE) for name, value in laid.items()}, 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_a_part_of_a_batch_counts_by_its_share_of_the_rows(fast_step):
    """Of three rows on two ranks; what the ranks' buffers add up to is the batch's loss and gradients."""
    ids, labels = batch(3)
    loss, grads = eager(classifier(freeze=False), ids, labels)
    step, total = fast_step(lora := classifier(freeze=False)), 0
    for part in (slice(0, 2), slice(2, 3)):
        weight = torch.tensor(len(labels[part]) / 3, device=DEVICE)
        step(as_inputs(ids[part], labels[part]) | {"weight": weight}, 0)
        total = total + step.lora.buffer.clone()
    step.lora.buffer.copy_(total)
    assert step.lora.loss.item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)


def test_ranks_have_masks_of_their_own(fast_step, monkeypatch):
    def seed_of(rank):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        step = fast_step(classifier())
        step.masks.set(step.seed, 3)
        return step.masks.seed.item()

    assert len({seed_of(rank) for rank in range(8)}) == 8


def test_weights_that_are_loaded_into_a_fused_model_are_used(fast_step, tmp_path):
    """The Trainer loads the best epoch so: into the weights' own memory, where copies and optimizer read them."""
    lora = classifier()
    step, ids = fast_step(lora), batch()[0]
    places = [weight.data_ptr() for weight in step.lora.weights]
    lora.eval().save_pretrained(tmp_path)
    expected = lora(input_ids=ids).logits
    with torch.no_grad():
        step.lora.flat.mul_(2)
    assert not torch.allclose(lora(input_ids=ids).logits, expected)
    lora.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(lora.eval()(input_ids=ids).logits, expected)
    assert [weight.data_ptr() for weight in step.lora.weights] == places


def test_rows_end_to_end_are_for_known_layers_alone(families):
    from stages.kernels.fusion import takes_packed_rows

    assert takes_packed_rows(classifier())
    assert not takes_packed_rows(classifier(folder=families["phi with normed queries"]))
    assert not takes_packed_rows(classifier(folder=families["opt"]))


@pytest.mark.parametrize(("longest", "window"), [(60, None), (70, None), (130, None), (60, 5), (130, 1), (130, 100)])
@pytest.mark.parametrize(
    ("queries", "keys", "size", "rotated"), [(2, 2, 80, 32), (4, 1, 32, 32), (4, 2, 16, 6), (2, 1, 160, 160)]
)
def test_attention_and_its_gradient_are_pytorchs(queries, keys, size, rotated, longest, window):
    """Rows of one block and of several, one token, none; tokens behind the last row; other columns are left alone."""
    from stages.kernels.attention import Heads, Rows, attend, write_grads

    lengths, behind, generator = [longest, 1, 0, 17], 40, torch.Generator().manual_seed(0)
    heads, tokens = Heads(queries, keys, size, size**-0.5, window), sum(lengths) + behind
    angles = torch.rand(tokens, rotated // 2, generator=generator).repeat(1, 2).to(DEVICE)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE)
    rows = Rows(starts, longest, angles.cos(), angles.sin())
    qkv = torch.randn(tokens, sum(heads.widths) + 24, generator=generator).to(DEVICE).requires_grad_()
    dout = torch.randn(tokens, queries * size, generator=generator).to(DEVICE)
    expected = plain_attention(qkv, heads, rows)
    (wanted,) = torch.autograd.grad(expected, qkv, dout)
    out, lse = attend(qkv.detach(), heads, rows)
    found = torch.full_like(qkv, 7)
    write_grads(qkv.detach(), out, lse, dout, found, heads, rows)
    columns, close = sum(heads.widths), 1e-5 if not ON_GPU else 1e-3
    assert (out - expected).abs().max() < close
    assert (found[:, :columns] - wanted[:, :columns]).abs().max() < close
    assert (found[:, columns:] == 7).all()


def plain_attention(qkv, heads, rows):
    """The same by PyTorch, row by row."""
    half, outputs = rows.cos.shape[1] // 2, []

    def turned(x, cos, sin):
        turning, rest = x[..., : 2 * half], x[..., 2 * half :]
        other = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
        return torch.cat((turning * cos[:, None] + other * sin[:, None], rest), dim=-1)

    for start, end in itertools.pairwise(rows.starts.tolist()):
        q, k, v = (part.unflatten(1, (-1, heads.size)) for part in qkv[start:end, : sum(heads.widths)].split(
            heads.widths, dim=1))  # fmt: skip
        q, k = (turned(x, rows.cos[start:end], rows.sin[start:end]) for x in (q, k))
        seen = torch.ones(end - start, end - start, dtype=torch.bool, device=qkv.device).tril()
        seen &= ~seen.tril(-(heads.window or len(seen)))
        attended = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (q, k, v)), seen, scale=heads.scale, enable_gqa=True
        )
        outputs.append(attended.transpose(0, 1).flatten(1))
    return torch.cat([*outputs, torch.zeros(len(qkv) - end, heads.widths[0], device=qkv.device)])


def test_more_elements_than_the_kernels_count_are_refused():
    from stages.kernels.dropout import dropped
    from stages.kernels.lora import down

    x = torch.empty(1, device=DEVICE).expand(2**18, 128 * 64)  # takes no memory
    seed = torch.tensor(7, device=DEVICE)
    with pytest.raises(UserError, match="batch_size must be smaller"):
        dropped([x], 0.1, seed, 0)
    with pytest.raises(UserError, match="batch_size must be smaller"):
        down(x, x[None, :16], 0.1, seed, 0)


@pytest.mark.parametrize(("p", "values"), [(0.999995, {0.0, 2.0**16}), (1.0, {0.0})])  # a share in steps of 2^-16
def test_a_dropout_that_keeps_next_to_nothing_or_nothing_is_computed(p, values):
    from stages.kernels.dropout import dropped, dropped_twice

    ones, seed = torch.ones(512, 512, device=DEVICE), torch.tensor(7, device=DEVICE)
    for out in (dropped([ones], p, seed, 0), *dropped_twice(ones, p, seed, 0)):
        assert set(out.unique().tolist()) == values


@pytest.mark.parametrize(("tokens", "columns", "n", "r"), [(70, 640, 3, 8), (20, 100, 1, 130), (5, 2048, 2, 16)])
def test_the_kernels_of_lora_are_their_formulas(tokens, columns, n, r):
    """With masks; sums that are split among programs, ranks that fill no tile, tokens and columns neither."""
    from stages.kernels import lora
    from stages.kernels.dropout import dropped

    generator, p, site = torch.Generator().manual_seed(0), 0.3, 5
    ranks, seed = lora.rank(r), torch.tensor(7, device=DEVICE)
    x = torch.randn(tokens, columns, generator=generator).to(DEVICE)
    a = torch.zeros(n, ranks, columns)
    a[:, :r] = torch.randn(n, r, columns, generator=generator) / columns**0.5
    a = a.to(DEVICE)
    masks = [dropped([torch.ones_like(x)], p, seed, site + i) for i in range(n)]
    xu = lora.down(x, a, p, seed, site)
    u = torch.cat([(x * mask) @ a_i.t() for mask, a_i in zip(masks, a, strict=True)], dim=1)
    close = {"rtol": 1e-2, "atol": 1e-2} if ON_GPU else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(xu, torch.cat([x, u], dim=1), **close)

    dxu = torch.randn(xu.shape, generator=generator).to(DEVICE)
    dx, du = dxu[:, :columns], dxu[:, columns:].unflatten(1, (n, ranks))
    expected = dx + sum(mask * (du[:, i] @ a[i]) for i, mask in enumerate(masks))
    torch.testing.assert_close(lora.input_grad(dxu, a, p, seed, site), expected, **close)

    grads = torch.ones(n * r * columns + 3, device=DEVICE)
    offsets = torch.arange(n, device=DEVICE) * r * columns + 3
    expected = torch.cat([(du[:, i, :r].t() @ (x * mask)).flatten() for i, mask in enumerate(masks)])
    for add, factor in ((False, 1), (True, 2)):
        lora.write_a_grads(grads, offsets, r, dxu[:, columns:], x, p, seed, site, add)
        torch.testing.assert_close(grads[3:], factor * expected, **close)
    assert (grads[:3] == 1).all()


def test_what_keeping_takes_grows_with_weights_and_batch():
    """The model's linear modules by hand, in fp32."""
    from stages.kernels.fusion import SLACK, bytes_to_keep

    lora = classifier(quantization="nf4")
    config = lora.get_base_model().config
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner)
    ends = config.num_hidden_layers * (4 * 2 * hidden + 2 * (hidden + inner))
    assert bytes_to_keep(lora, 0) == 4 * weights + SLACK
    assert bytes_to_keep(lora, 100) == 4 * weights + SLACK + 4 * 2 * 100 * ends


def test_a_model_that_can_not_be_fused_stays_as_it_is(families):
    from stages.kernels.fusion import fuse_for_evaluation

    lora = classifier().eval()
    layer = next(module for module in lora.modules() if isinstance(module, LoraLayer))
    ids, before = batch()[0], [type(module) for module in lora.modules()]
    expected = lora(input_ids=ids).logits
    layer.lora_variant["default"] = object()  # DoRA, say
    assert not fuse_for_evaluation(lora, keep=False)
    assert [type(module) for module in lora.modules()] == before
    layer.lora_variant.pop("default")
    assert torch.equal(lora(input_ids=ids).logits, expected)


def test_masks_differ_between_steps():
    fused = Fused(classifier(dropout=0.2))
    first, second, again = (fused(*batch(), step=step) for step in (3, 4, 3))
    assert first == again != second


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("tuned", [False, True])
def test_phis_layers_answer_as_transformers_do(tuned, keep):
    """Rows are padded on the right, and read at their last token."""
    from stages.kernels.fusion import fuse_for_evaluation

    plain = classifier().eval() if tuned else classifier().get_base_model().eval()
    ids = batch()[0]
    ids[1, 9:] = plain.config.pad_token_id
    with torch.inference_mode():
        expected = plain(input_ids=ids).logits
        fuse_for_evaluation(plain, keep)
        layers = [module for module in plain.modules() if isinstance(module, PhiDecoderLayer)]
        assert layers and all(type(layer) is not PhiDecoderLayer for layer in layers)
        assert torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-3 if ON_GPU else 1e-5)
