"""The quantised base, its head and its adapter, with bitsandbytes and PEFT themselves."""

import json
from types import SimpleNamespace

import bitsandbytes as bnb
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from helpers.parameters import manifest_of, use
from helpers.project import COMMITTED, CPU, DEMO, NANO
from helpers.stages import error_line, run_stage, written
from helpers.tables import CLASSES, LABELS
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PhiConfig,
)
from transformers.activations import ACT2FN

from stages import download
from stages.data.tokenization import load_tokenizer
from stages.model import classifier as classifier_module
from stages.model.adapter import add_lora, count_parameters, load_adapter, save_adapter
from stages.model.base import TANH_GELUS, replace_activation
from stages.model.classifier import Classifier
from stages.model.devices import pick_device, pick_precision
from stages.model.head import freeze_head
from stages.runtime import gpu_selection, params
from stages.runtime.errors import UserError
from stages.sources.fetch import find_model_folder

ROWS = [[11, 12, 13, 14, 15], [21, 22], [31, 32, 33]]


def logits_of(classifier, *rows, pad_id=0):
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        return classifier(input_ids=ids).logits


def head_of(classifier):
    return next(p for name, p in classifier.named_parameters() if "score" in name and "original" not in name)


def train_a_step(classifier):
    """Two optimiser steps on three rows, large enough to change the logits."""
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    ids = torch.tensor([row[:2] for row in ROWS])
    for _ in range(2):  # LoRA's A has no gradient while B is zero
        optimizer.zero_grad()
        classifier.train()(input_ids=ids, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    return classifier.eval()


@pytest.fixture
def lora(make_params):
    return make_params().lora


@pytest.fixture
def trained(load_nano, lora):
    """A nano model with trained LoRA and head -> (classifier, tokenizer, manifest)."""
    base, tokenizer, manifest = load_nano()
    return train_a_step(add_lora(base, lora, 42)), tokenizer, manifest


# --- the base and its head ---


def test_the_base_is_quantised_and_frozen_and_the_head_is_in_full_precision(load_nano):
    base, _, _ = load_nano()
    linears = [m for m in base.modules() if isinstance(m, torch.nn.Linear)]
    quantised = [m for m in linears if isinstance(m, bnb.nn.Linear4bit)]
    assert linears == [*quantised, base.score]
    assert all(m.quant_state is not None or m.weight.quant_state is not None for m in quantised)
    assert {m.weight.quant_state.quant_type for m in quantised} == {"nf4"}
    assert base.score.weight.dtype == torch.float32
    assert base.score.weight.shape == (3, base.config.hidden_size)
    assert not any(p.requires_grad for p in base.parameters())
    assert not base.training
    assert base.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_the_seeded_head_is_the_same_at_each_load_and_for_base_and_tuned(load_nano, lora):
    first, second = load_nano()[0], load_nano()[0]
    assert torch.equal(first.score.weight, second.score.weight)
    torch.manual_seed(7)
    tuned = add_lora(second, lora, 42)
    assert torch.equal(head_of(tuned), first.score.weight)
    assert not torch.equal(load_nano(seed=43)[0].score.weight, first.score.weight)
    assert torch.equal(load_nano(quantization="none")[0].score.weight, first.score.weight)


def test_the_random_head_of_the_notebook_differs_at_each_load(load_nano):
    torch.manual_seed(0)
    first = load_nano(head_init="random")[0].score.weight
    torch.manual_seed(0)
    assert not torch.equal(load_nano(head_init="random")[0].score.weight, first)


def test_bfloat16_products_leave_the_head_in_full_precision(load_nano):
    base, _, _ = load_nano(precision="bf16")
    assert base.score.weight.dtype == torch.float32
    assert logits_of(base, *ROWS).dtype == torch.float32


def test_the_unquantised_base_loads_too(load_nano):
    base, _, _ = load_nano(quantization="none")
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in base.modules())
    exact, quantised = logits_of(base, *ROWS), logits_of(load_nano()[0], *ROWS)
    assert 0 < (exact - quantised).abs().max() < 0.5, "quantisation changes the logits a little"


def test_the_new_activation_is_the_notebooks_function_in_another_kernel(load_nano):
    original, faster = load_nano(hidden_act="gelu_new")[0], load_nano(hidden_act="gelu_pytorch_tanh")[0]
    assert type(original.model.layers[0].mlp.activation_fn) is not type(faster.model.layers[0].mlp.activation_fn)
    assert torch.allclose(logits_of(original, *ROWS), logits_of(faster, *ROWS), atol=1e-5)


@pytest.mark.parametrize("tuned", [False, True], ids=["base", "tuned"])
def test_a_row_has_the_same_logits_alone_and_in_a_padded_batch(load_nano, trained, tuned):
    classifier, tokenizer, _ = trained if tuned else load_nano()
    together = logits_of(classifier, *ROWS, pad_id=tokenizer.pad_token_id)
    for i, row in enumerate(ROWS):
        alone = logits_of(classifier, row, pad_id=tokenizer.pad_token_id)[0]
        assert torch.allclose(together[i], alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3), "the rows differ"


def test_predictions_are_in_the_order_of_the_rows_for_any_batches(load_nano, make_params):
    base, tokenizer, _ = load_nano()
    examples = [{"input_ids": row, "labels": 0} for row in ROWS * 5]
    one = make_params(batches__order="random", batches__multiple_of=1).batches
    many = make_params().batches
    singly = Classifier(base, tokenizer, one, 128, LABELS).predict(examples, 1)
    batched = Classifier(base, tokenizer, many, 128, LABELS).predict(examples, 4)
    assert singly.shape == (15, 3)
    assert abs(singly.sum(axis=1) - 1).max() < 1e-9
    assert abs(singly - batched).max() < 1e-5
    assert abs(singly[0] - singly[1]).max() > 1e-4, "the rows differ"


@pytest.mark.parametrize("changes", [{}, {"batches__order": "random"}, {"batches__padding": "max_length"}], ids=str)
def test_batches_of_few_tokens_predict_as_one_row_at_a_time(load_nano, make_params, monkeypatch, changes):
    monkeypatch.setattr(classifier_module, "EVALUATION_TOKENS", 40)
    base, tokenizer, _ = load_nano()
    lengths = np.random.default_rng(0).integers(1, 60, 30)
    examples = [{"input_ids": list(range(10, 10 + length)), "labels": 0} for length in lengths]
    classifier = Classifier(base, tokenizer, make_params(**changes).batches, 60, LABELS)
    batches = classifier.split_batches(examples, 8)
    sizes = [lengths[rows].max() * len(rows) for rows in batches]
    assert all(size <= 40 or len(rows) == 1 for size, rows in zip(sizes, batches, strict=True)) and max(sizes) > 40
    singly = Classifier(base, tokenizer, make_params(batches__padding="longest").batches, 60, LABELS).compute_logits(
        examples, 1
    )
    assert abs(classifier.compute_logits(examples, 8) - singly).max() < 1e-5
    assert [rows.tolist() for rows in classifier.split_batches(examples, 8, sum(map(len, batches[:3])))] == [
        rows.tolist() for rows in batches[3:]
    ]


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_batch_that_does_not_fit_the_memory_is_computed_in_parts(
    load_nano, make_params, monkeypatch, capsys, padding
):
    """From the first batch that does not fit, no batch with so many tokens is tried again."""
    base, tokenizer, _ = load_nano()
    examples = [{"input_ids": list(range(10, 10 + length)), "labels": 0} for length in (20, 20, 20, 20, 18, 16, 16, 2)]
    classifier = Classifier(base, tokenizer, make_params(batches__padding=padding).batches, 20, LABELS)
    expected = classifier.compute_logits(examples, 4)
    compute, tried = classifier._compute_logits, []

    def compute_if_it_fits(rows):
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(rows)

    monkeypatch.setattr(classifier, "_compute_logits", compute_if_it_fits)
    assert abs(classifier.compute_logits(examples, 4) - expected).max() < 1e-5
    assert tried == [4, 2, 2, 2, 2]
    assert capsys.readouterr().err == "GPU memory: batches of up to 40 tokens\n"


@pytest.mark.parametrize("lengths", [(3, 3, 3, 3, 3), (50, 5, 5, 5, 5), (5, 5, 50, 5)], ids=str)
def test_a_row_that_does_not_fit_the_memory_is_an_error(load_nano, make_params, monkeypatch, lengths):
    """Also if it is longer than the limit, so that it is a part of its own which no smaller limit divides."""
    base, tokenizer, _ = load_nano()
    classifier = Classifier(base, tokenizer, make_params().batches, 60, LABELS)
    compute, tried = classifier._compute_logits, []

    def compute_if_it_fits(rows):
        tried.append(len(rows))
        assert len(tried) < 20, "the search does not end"
        if any(len(row["input_ids"]) == max(lengths) for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(rows)

    monkeypatch.setattr(classifier, "_compute_logits", compute_if_it_fits)
    with pytest.raises(torch.OutOfMemoryError):
        classifier.compute_logits([{"input_ids": [5] * length, "labels": 0} for length in lengths], 4)
    assert tried[0] == 4 and tried[-1] == 1


def test_training_works_after_an_evaluation(load_nano, lora):
    """On some CPUs bitsandbytes repacks 4-bit weights at the first evaluation, and training then fails."""
    base, _, _ = load_nano()
    logits_of(base, *ROWS)
    classifier = add_lora(base, lora, 42)
    logits_of(classifier, *ROWS)
    before = head_of(classifier).clone()
    train_a_step(classifier)
    assert not torch.equal(head_of(classifier), before)
    assert all(not m.support_avx512bf16_for_cpu for m in classifier.modules() if isinstance(m, bnb.nn.Linear4bit))


# --- trained parameters and their number ---


def test_a_new_adapter_changes_no_logits(load_nano, lora):
    before = logits_of(load_nano()[0], *ROWS)
    assert torch.equal(logits_of(add_lora(load_nano()[0], lora, 42).eval(), *ROWS), before)


def test_the_new_adapter_depends_only_on_the_seed(load_nano, lora):
    def first_a(seed):
        classifier = add_lora(load_nano()[0], lora, seed)
        return next(p for name, p in classifier.named_parameters() if "lora_A" in name)

    assert torch.equal(first_a(42), first_a(42))
    assert not torch.equal(first_a(42), first_a(43))


@pytest.mark.parametrize("trains", [True, False])
def test_the_head_is_trained_unless_it_is_frozen(load_nano, lora, trains):
    classifier = add_lora(load_nano()[0], lora, 42)
    if not trains:
        freeze_head(classifier)
    before = head_of(classifier).clone()
    names = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert all("lora" in name or "score" in name for name in names)
    assert any("score" in name for name in names) == trains
    train_a_step(classifier)
    assert torch.equal(head_of(classifier), before) != trains


@pytest.mark.parametrize(
    ("targets", "unknown"),
    [
        (["w_pack"], "named w_pack"),
        (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"], "named o_proj, gate_proj"),
        (["q_proj", "score"], "named score"),  # the head, which is trained without LoRA
        (["score"], "named score"),
        ([".*_proj", "q_proj"], r"named \.\*_proj"),  # names in a list are no regular expressions
        (r".*\.w_pack", r"that match the regular expression \.\*\\\.w_pack \(names go into a list\)"),
        ("score", r"that match the regular expression score \(names go into a list\)"),
    ],
    ids=str,
)
def test_the_error_names_the_target_modules_that_the_model_lacks_and_those_that_it_has(
    load_nano, make_params, targets, unknown
):
    """PEFT ignores them if another one matches, and report and model card would list them as trained."""
    lora_params = make_params(lora__target_modules=targets).lora
    existing = "dense, fc1, fc2, k_proj, q_proj, v_proj"
    line = rf"^params\.yaml: lora\.target_modules: this model has no layers for LoRA {unknown}\. It has: {existing}\.$"
    with pytest.raises(UserError, match=line):
        add_lora(load_nano()[0], lora_params, 42)


@pytest.mark.parametrize(
    ("targets", "tuned"),
    [
        (["q_proj", "fc2"], ["fc2", "q_proj"]),
        (["self_attn.q_proj", "model.layers.0.mlp.fc1"], ["fc1", "q_proj"]),
        (r".*\.(q_proj|v_proj)", ["q_proj", "v_proj"]),
        ("all-linear", ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"]),
    ],
    ids=str,
)
def test_lora_is_added_to_exactly_the_target_modules(load_nano, make_params, targets, tuned):
    classifier = add_lora(load_nano()[0], make_params(lora__target_modules=targets).lora, 42)
    layers = [name for name, module in classifier.named_modules() if isinstance(module, LoraLayer)]
    assert sorted({name.rpartition(".")[2] for name in layers}) == tuned


PHI_2 = PhiConfig(
    vocab_size=51200,
    hidden_size=2560,
    num_hidden_layers=32,
    num_attention_heads=32,
    intermediate_size=10240,
    partial_rotary_factor=0.4,
    num_labels=3,
)


def make_quantised_on_meta(config):
    """A 4-bit classifier without memory: on the meta device, with bitsandbytes' packed weights."""
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    for parent in list(classifier.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "score":
                linear = bnb.nn.Linear4bit(child.in_features, child.out_features, device="meta", quant_type="nf4")
                packed = torch.empty((child.weight.numel() // 2, 1), dtype=torch.uint8, device="meta")
                linear.weight = bnb.nn.Params4bit(packed, requires_grad=False, bnb_quantized=True)
                setattr(parent, name, linear)
    return classifier


def test_phi_2_has_the_published_number_of_parameters():
    published_recipe = params.load(COMMITTED / "params.yaml").lora
    base = make_quantised_on_meta(PHI_2)
    # The parameters that quantisation leaves trainable: the notebook printed 131,248,640; the biases are new since.
    trainable = sum(p.numel() for p in base.parameters() if p.requires_grad)
    biases = sum(m.bias.numel() for m in base.modules() if isinstance(m, bnb.nn.Linear4bit))
    assert (trainable, trainable - biases) == (131_985_920, 131_248_640)

    base.requires_grad_(False)
    assert count_parameters(base) == {"stored": 1_390_277_120, "total": 2_648_568_320, "trainable": 0}
    tuned = add_lora(base, published_recipe, 42)
    counts = count_parameters(tuned)
    assert counts["stored"] == 1_413_877_760
    assert counts["trainable"] == 23_600_640
    assert sum(p.numel() for name, p in tuned.named_parameters() if "lora_" in name) == 23_592_960


def test_the_notebooks_loop_leaves_only_lora_trainable():
    base = make_quantised_on_meta(PHI_2).requires_grad_(False)
    tuned = add_lora(base, params.load(COMMITTED / "params.yaml").lora, 42)
    freeze_head(tuned)
    assert count_parameters(tuned)["trainable"] == 23_592_960


def test_a_loaded_model_has_the_counts_of_meta_tensors(load_nano):
    """The tests above count meta tensors."""
    base, _, _ = load_nano()
    loaded = count_parameters(base)
    shape = make_quantised_on_meta(base.config).requires_grad_(False)
    assert count_parameters(shape) == loaded
    exact = count_parameters(load_nano(quantization="none")[0])
    assert exact["stored"] == exact["total"] == loaded["total"] > loaded["stored"]


# --- saved and loaded ---


def test_a_saved_adapter_on_a_newly_loaded_base_has_the_same_logits(trained, load_nano, tmp_path):
    classifier, tokenizer, manifest = trained
    before = logits_of(classifier, *ROWS)
    assert not torch.equal(before, logits_of(load_nano()[0], *ROWS)), "training has changed the logits"
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    del classifier
    reloaded = load_adapter(load_nano()[0], tmp_path / "adapter", manifest)
    assert torch.equal(logits_of(reloaded, *ROWS), before)
    assert not reloaded.training
    assert not any(p.requires_grad for p in reloaded.parameters())


def test_the_head_comes_from_the_adapter_not_from_the_seed(trained, load_nano, tmp_path):
    classifier, tokenizer, manifest = trained
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    reloaded = load_adapter(load_nano(seed=7)[0], tmp_path / "adapter", manifest)
    assert torch.equal(head_of(reloaded), head_of(classifier))


def test_plain_transformers_and_peft_load_the_adapter(trained, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    classifier, tokenizer, manifest = trained
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    saved, loaded = (
        {name.split(".", 2)[-1]: p for name, p in m.named_parameters() if "lora_" in name} for m in (classifier, plain)
    )
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    labels = json.loads((tmp_path / "adapter/config.json").read_text())["id2label"]
    assert labels == {"0": "entailment", "1": "neutral", "2": "contradiction"}


def test_a_saved_adapter_is_the_same_bytes_each_time(trained, tmp_path):
    classifier, tokenizer, manifest = trained
    for name in ("one", "two"):
        save_adapter(classifier, tokenizer, manifest, {}, tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    targets = json.loads(one["adapter_config.json"])["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) > 4
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in one)


def test_the_saved_tokenizer_pads_as_training_did(trained, nano_copy, tmp_path):
    """Some tokenizer classes pad on the left (Gemma, Cohere), which shifts learnt positions."""
    classifier, _, manifest = trained
    settings = nano_copy / "tokenizer_config.json"
    config = json.loads(settings.read_text())
    del config["padding_side"]
    settings.write_text(json.dumps(config | {"tokenizer_class": "CohereTokenizer"}))
    assert AutoTokenizer.from_pretrained(nano_copy).padding_side == "left"
    save_adapter(classifier, load_tokenizer(manifest_of(nano_copy)), manifest, {}, tmp_path / "adapter")
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").padding_side == "right"


def test_an_adapter_of_another_base_is_rejected(trained, load_nano, nano_copy, tmp_path):
    classifier, tokenizer, manifest = trained
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    (nano_copy / "generation_config.json").write_text("{}")
    base, _, other = load_nano(nano_copy)
    with pytest.raises(UserError, match="trained on another base"):
        load_adapter(base, tmp_path / "adapter", other)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_adapter_is_an_error_of_one_line(trained, load_nano, tmp_path, damage):
    classifier, tokenizer, manifest = trained
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000]) if damage == "cut" else weights.unlink()
    with pytest.raises(UserError, match=r"adapter.*not loadable as an adapter"):
        load_adapter(load_nano()[0], tmp_path / "adapter", manifest)


def test_an_adapter_without_its_manifest_is_an_error_of_one_line(trained, load_nano, tmp_path):
    classifier, tokenizer, manifest = trained
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    (tmp_path / "adapter/base.json").unlink()
    with pytest.raises(UserError, match=r"base\.json"):
        load_adapter(load_nano()[0], tmp_path / "adapter", manifest)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])  # without a head PEFT itself fails
def test_an_adapter_that_lacks_a_weight_is_an_error_of_one_line(trained, load_nano, tmp_path, part):
    classifier, tokenizer, manifest = trained
    save_adapter(classifier, tokenizer, manifest, {}, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if part in name)
    safetensors.torch.save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: lacks 1 of the adapter's weights"):
        load_adapter(load_nano()[0], tmp_path / "adapter", manifest)


def test_the_config_maps_classes_to_numbers_and_back(load_nano):
    config = load_nano()[0].config
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: code for code, name in enumerate(CLASSES)}


# --- bases that are rejected ---


def test_a_base_that_comes_with_an_adapter_is_rejected_at_its_load(load_nano, nano_copy):
    """`download` rejects it too, but a file may have entered the hub's cache since."""
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(nano_copy), adapter).save_pretrained(nano_copy)
    with pytest.raises(UserError, match=r"^model: .*nano: transformers loaded an adapter .*adapter_config\.json"):
        load_nano(nano_copy)


def test_truncated_weights_are_an_error_of_one_line(load_nano, nano_copy):
    weights = nano_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not loadable as a model"):
        load_nano(nano_copy)


def test_weights_changed_since_download_are_an_error_of_one_line(nano_copy):
    manifest = manifest_of(nano_copy)
    (nano_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing or changed since `download`"):
        find_model_folder(manifest)


def test_a_pickled_checkpoint_is_rejected_even_if_it_is_harmless(nano_copy, load_nano):
    weights = safetensors.torch.load_file(nano_copy / "model.safetensors")
    (nano_copy / "model.safetensors").unlink()
    torch.save(weights, nano_copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="not loadable as a model"):
        load_nano(nano_copy)


def test_the_code_in_a_pickled_checkpoint_never_runs(nano_copy, load_nano, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (nano_copy / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, nano_copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="not loadable as a model"):
        load_nano(nano_copy)
    assert not (tmp_path / "opened").exists()


def test_a_tokenizer_larger_than_the_embedding_is_an_error_of_one_line(nano_copy, load_nano):
    config = json.loads((nano_copy / "config.json").read_text())
    (nano_copy / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, the model 100"):
        load_nano(nano_copy)


def test_an_encoder_is_an_error_of_one_line(nano_copy, load_nano):
    size = json.loads((nano_copy / "config.json").read_text())["vocab_size"]
    config = BertConfig(vocab_size=size, hidden_size=24, intermediate_size=64, num_hidden_layers=1)
    AutoModelForMaskedLM.from_config(config).save_pretrained(nano_copy)
    with pytest.raises(UserError, match=r"BertForSequenceClassification has no linear head `score`"):
        load_nano(nano_copy, hidden_act=None)


def test_a_model_that_needs_trust_remote_code_is_rejected(nano_copy, load_nano):
    config = json.loads((nano_copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (nano_copy / "config.json").write_text(json.dumps(config))
    (nano_copy / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"not loadable as a model|no usable tokenizer"):
        load_nano(nano_copy)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_download_names_the_folder_that_has_no_model(nano_copy, raw_params, tmp_path, missing):
    (nano_copy / missing).unlink()
    folder = tmp_path / "run"
    folder.mkdir()
    use(raw_params, "model", str(nano_copy))
    use(raw_params, "data", str(DEMO / "assets/everyday-nli"))
    (folder / "params.yaml").write_text(yaml.safe_dump(raw_params))
    line = error_line(run_stage("download", folder))
    assert f"params.yaml: model.folder: {nano_copy}" in line
    assert written(folder) == []


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(load_nano):
    base, tokenizer, _ = load_nano()
    assert json.loads((NANO / "config.json").read_text()).get("pad_token_id") is None
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == base.config.pad_token_id
    assert tokenizer.padding_side == "right"


# --- the device ---


def test_the_error_for_a_missing_gpu_names_make_demo(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"params\.yaml: device: cuda.*make demo"):
        pick_device("cuda", None)


@pytest.mark.parametrize(("device", "gpus_here", "warned"), [("cuda", 0, True), ("cuda", 1, False), ("cpu", 0, False)])
def test_download_warns_of_a_missing_gpu_before_it_fetches(
    raw_params, tmp_path, monkeypatch, capsys, device, gpus_here, warned
):
    """It continues: on a cluster the machine that downloads is often not the one that computes."""
    raw_params["device"] = device
    use(raw_params, "data", "./none")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw_params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if gpus_here:
        monkeypatch.setattr(gpu_selection, "list_visible_gpus", lambda: ["GPU-0"])
    with pytest.raises(UserError, match=r"data\.folder: \./none: no such folder or file"):
        download.main()
    line = "params.yaml: device: cuda, but CUDA shows no GPU on this machine: eval_base will stop here"
    assert capsys.readouterr().out.startswith(line) == warned


def test_pick_device_sets_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        assert pick_device("cpu", 2) == CPU
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_auto_precision_on_a_cpu_is_fp32(make_params):
    model_params = make_params().model
    assert pick_precision(model_params, CPU) == "fp32"
    assert pick_precision(model_params.model_copy(update={"precision": "bf16"}), CPU) == "bf16"


@pytest.mark.parametrize(
    ("quantization", "bf16", "precision"), [("nf4", True, "bf16"), ("nf4", False, "fp16"), ("none", False, "fp32")]
)
def test_a_gpu_without_bf16_uses_fp16_only_for_4_bit_products(make_params, monkeypatch, quantization, bf16, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    model_params = make_params(model__quantization=quantization).model
    assert pick_precision(model_params, torch.device("cuda")) == precision


# --- activations and attention ---


@pytest.mark.parametrize("name", sorted(TANH_GELUS))
def test_all_tanh_gelus_are_one_function(name):
    x = torch.linspace(-8, 8, 2001)
    assert torch.allclose(ACT2FN[name](x), ACT2FN["gelu_new"](x), atol=1e-6)


@pytest.mark.parametrize(
    ("original", "allowed"),
    [
        ({"hidden_act": "gelu_new"}, True),
        ({"activation_function": "gelu_fast"}, True),
        ({"hidden_act": "gelu_new", "hidden_activation": "gelu_pytorch_tanh"}, True),
        ({"hidden_act": "silu"}, False),
        ({"hidden_act": "gelu"}, False),
        ({"hidden_act": "gelu_new", "hidden_activation": "silu"}, False),
        ({}, False),
    ],
)
def test_an_activation_is_replaced_only_by_another_form_of_itself(original, allowed):
    config = SimpleNamespace(**original)
    if allowed:
        replace_activation(config, "gelu_pytorch_tanh", "x")
        assert vars(config) == dict.fromkeys(original, "gelu_pytorch_tanh")
    else:
        with pytest.raises(UserError, match=r"params\.yaml: model\.hidden_act: .*x computes .*allowed: null"):
            replace_activation(config, "gelu_pytorch_tanh", "x")
        assert vars(config) == original


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_model(folder, config):
    """Replace the model of a folder by another with random weights. The tokenizer stays."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    config.update({"vocab_size": size})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def test_a_llama_keeps_its_activation(nano_copy, load_nano):
    save_model(nano_copy, LlamaConfig(**SMALL))
    with pytest.raises(UserError, match=r"model\.hidden_act: gelu_pytorch_tanh, but .* computes silu"):
        load_nano(nano_copy)
    assert load_nano(nano_copy, hidden_act=None)[0].config.hidden_act == "silu"


@pytest.mark.parametrize("setting", [{"use_bidirectional_attention": True}, {"is_causal": False}], ids=str)
def test_a_bidirectional_base_is_rejected(nano_copy, load_nano, setting):
    """Batches carry no mask, so a row's prediction would depend on the length of other rows."""
    config = (
        Gemma3TextConfig(**SMALL, head_dim=16, num_key_value_heads=2)
        if "use_bidirectional_attention" in setting
        else LlamaConfig(**SMALL)
    )
    save_model(nano_copy, config)
    assert load_nano(nano_copy, hidden_act=None)
    written_config = json.loads((nano_copy / "config.json").read_text())
    (nano_copy / "config.json").write_text(json.dumps(written_config | setting))
    with pytest.raises(UserError, match=r"model: .* is bidirectional"):
        load_nano(nano_copy, hidden_act=None)
