"""The references that need the language model: zero-shot by its own head, and the linear probe."""

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, GQA_SIZE, SIZE, save, save_family
from helpers.parameters import manifest_of
from helpers.project import NANO
from helpers.tables import CLASSES, LABELS
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MiniCPM3Config, PhiConfig

from stages.data.labels import MultiLabel
from stages.data.tokenization import load_tokenizer
from stages.model import linear_probe
from stages.model.classifier import Classifier
from stages.model.head import remove_head
from stages.model.linear_probe import STRENGTHS, calibrated_loss, choose_strength, fit_probe
from stages.model.linear_reference import LinearReference, classify_all, stack_heads
from stages.model.zero_shot import LanguageModelHead, Unavailable, estimate_log_prior, find_first_tokens

TEMPLATE = "{text} Label:"
rng = np.random.default_rng(0)
ROWS = [{"input_ids": rng.integers(1, 900, length), "labels": 0} for length in (9, 3, 14, 5, 23, 2)]


@pytest.fixture
def read_states(load_nano, make_params):
    """The last states of `ROWS` by the base in a folder -> (base, states [rows, hidden], manifest, tokenizer)."""

    def read(folder):
        base, tokenizer, manifest = load_nano(folder, quantization="none", hidden_act=None)
        remove_head(base)
        classifier = Classifier(base, tokenizer, make_params().batches, 128, LABELS)
        return base, classifier.compute_logits(ROWS, 4), manifest, tokenizer

    return read


def logits_of_language_model(folder, tokens):
    """What transformers' language model computes at each row's end, for some tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor(row["input_ids"])[None]).logits[0, -1, tokens] for row in ROWS]
    return torch.stack(rows).double().numpy()


# --- zero-shot ---

SCALED = {
    "soft-capped": Gemma2Config(**GQA_SIZE, head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=2.0),
    "divided": MiniCPM3Config(
        **SIZE, intermediate_size=128, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=16, dim_model_base=16,
    ),
    "tied": LlamaConfig(**GQA_SIZE, tie_word_embeddings=True),
}  # fmt: skip


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_zero_shot_logits_are_those_of_the_language_model(read_states, tmp_path, family):
    if family in FAMILIES:
        save_family(family, tmp_path)
    else:
        save(AutoModelForCausalLM.from_config(SCALED[family]), tmp_path)
    base, states, manifest, tokenizer = read_states(tmp_path)
    head = LanguageModelHead.read(base, manifest, tokenizer, TEMPLATE, LABELS)
    logits = head.to_logits(states @ head.weight.double().numpy().T + head.bias.double().numpy())
    expected = logits_of_language_model(tmp_path, find_first_tokens(tokenizer, TEMPLATE, CLASSES))
    scale = np.ptp(expected)
    assert scale > 0.01
    assert abs(logits - expected).max() < 1e-4 * scale


def test_the_head_is_read_from_a_checkpoint_of_several_files(read_states, tmp_path):
    save(AutoModelForCausalLM.from_config(PhiConfig(**SIZE, intermediate_size=128)), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    base, _, manifest, tokenizer = read_states(tmp_path)
    head = LanguageModelHead.read(base, manifest, tokenizer, TEMPLATE, LABELS)
    tokens = find_first_tokens(tokenizer, TEMPLATE, CLASSES)
    assert torch.equal(head.weight, model.lm_head.weight[tokens])
    assert torch.equal(head.bias, model.lm_head.bias[tokens])


def test_a_checkpoint_without_a_language_models_head_is_left_out(read_states, tmp_path):
    model = save(AutoModelForCausalLM.from_config(PhiConfig(**SIZE, intermediate_size=128)), tmp_path)
    AutoModelForCausalLM.from_pretrained(model).model.save_pretrained(tmp_path)
    base, _, manifest, tokenizer = read_states(tmp_path)
    with pytest.raises(Unavailable, match=r"the model's files have no lm_head\.weight"):
        LanguageModelHead.read(base, manifest, tokenizer, TEMPLATE, LABELS)


@pytest.fixture
def tokenizer():
    return load_tokenizer(manifest_of(NANO))


@pytest.mark.parametrize("template", ["{a} Label:", "{a}\nLabel: {b}", "{a} Label:\n"])
def test_a_class_is_its_names_first_token_after_the_template(tokenizer, template):
    tokens = find_first_tokens(tokenizer, template, CLASSES)
    text = template.replace("{a}", "A dog sleeps.").replace("{b}", "A dog.")
    for token, name in zip(tokens, CLASSES, strict=True):
        whole = tokenizer(text + ("" if text.endswith("\n") else " ") + name)["input_ids"]
        assert whole[len(tokenizer(text)["input_ids"])] == token


def test_two_names_with_the_same_first_token_are_left_out(tokenizer):
    with pytest.raises(Unavailable, match="'good day' and 'good night' begin with the same token"):
        find_first_tokens(tokenizer, TEMPLATE, ["bad", "good day", "good night"])


def test_a_template_that_ends_with_a_space_is_left_out(tokenizer):
    """The tokenizer joins the space with the name, so the classified token is not the one before the name."""
    with pytest.raises(Unavailable, match="'entailment' follows it: end the template with a word"):
        find_first_tokens(tokenizer, "{text} Label: ", CLASSES)


def test_the_prior_is_the_mean_probability_of_a_class():
    logits = np.log([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]]) + np.array([[3], [-2]])
    assert np.exp(estimate_log_prior(logits)) == pytest.approx([0.6, 0.15, 0.25])


def test_calibration_takes_off_the_prior(read_states, tmp_path):
    """A constant that the model adds to the logits of one class changes no answer."""
    save_family("phi", tmp_path)
    base, states, manifest, tokenizer = read_states(tmp_path)
    head = LanguageModelHead.read(base, manifest, tokenizer, TEMPLATE, LABELS)
    states = states / 20  # small logits: one class alone would otherwise have all probability
    plain = head.calibrate(states)
    head.bias[1] += 3
    biased = head.calibrate(states)
    answers = [ref.classify(states @ ref.weight.T + ref.bias) for ref in (plain, biased)]
    assert len(set(answers[0])) > 1
    assert set((states @ biased.weight.T + biased.bias).argmax(axis=1)) == {1}
    assert len(set(answers[1])) > 1


# --- the probe ---


def make_states(rows, classes, noise=1.0, seed=0):
    """States of which a few directions reveal the class, with unequal scales -> (states, labels)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    centers = np.random.default_rng(1).normal(size=(classes, 40))
    states = centers[labels] + noise * generator.normal(size=(rows, 40))
    return states * np.logspace(-2, 2, 40) + 5, labels


def answers_of(probe, states):
    outputs = states.astype(np.float32) @ probe.weight.T.astype(np.float32) + probe.bias.astype(np.float32)
    return probe.classify(outputs)


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_the_probe_finds_what_is_linear_in_the_states(classes):
    states, labels = make_states(600, classes)
    unseen, gold = make_states(600, classes, seed=2)
    probe, strength = fit_probe(states, labels, np.arange(600))
    assert strength in STRENGTHS
    assert (answers_of(probe, unseen) == gold).mean() > 0.95


def make_hard_states(rows, seed):
    """More directions than rows, each of which says little about the class -> (states, labels)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, rows)
    centers = 0.1 * np.random.default_rng(1).normal(size=(3, 300))
    return centers[labels] + generator.normal(size=(rows, 300)), labels


def test_the_penalty_is_the_best_for_unseen_rows(monkeypatch):
    """A wrong penalty would flatter the tuned model."""
    (states, labels), (unseen, gold) = make_hard_states(200, 0), make_hard_states(4000, 5)

    def accuracy():
        return (answers_of(fit_probe(states, labels, np.arange(200))[0], unseen) == gold).mean()

    chosen, strengths, accuracies = accuracy(), STRENGTHS, []
    for strength in strengths:
        monkeypatch.setattr(linear_probe, "STRENGTHS", (strength,))
        accuracies.append(accuracy())
    assert chosen > max(accuracies) - 0.01
    assert chosen > max(accuracies[0], accuracies[-1]) + 0.01, "any penalty would do"


def test_overconfidence_does_not_matter_for_the_penalty():
    """It changes no answer, and the plain log loss chose too strong a penalty."""
    logits, targets = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    logits[np.arange(50), targets] += 1
    assert calibrated_loss(10 * logits, targets) == pytest.approx(calibrated_loss(logits, targets), rel=1e-4)
    assert calibrated_loss(logits, targets) < calibrated_loss(logits - 0.5 * np.eye(3)[targets], targets)


def test_rows_of_one_group_are_in_one_fold():
    """Copies of a row in both parts would reward a model that memorises them."""
    states, labels = make_hard_states(200, 0)
    copies = np.repeat(np.arange(200), 4)
    grouped = choose_strength(states[copies], labels[copies], copies)
    assert grouped < choose_strength(states[copies], labels[copies], np.arange(800))


def test_a_class_without_training_rows_is_never_the_answer():
    states, labels = make_states(200, 2)
    probe, _ = fit_probe(states, np.array([1, 4])[labels], np.arange(200))
    assert set(answers_of(probe, states)) == {1, 4}


def test_a_single_class_in_training_is_the_only_answer():
    probe, strength = fit_probe(make_states(20, 2)[0], np.full(20, 2), np.arange(20))
    assert strength is None
    assert list(answers_of(probe, make_states(5, 2)[0])) == [2] * 5


@pytest.mark.parametrize("groups", [np.zeros(6), np.arange(6)])
def test_a_probe_is_fitted_to_a_handful_of_rows(groups):
    labels = np.array([0, 1, 2, 0, 1, 0])  # class 2 is in one row
    states = np.eye(3)[labels] + 0.01 * rng.normal(size=(6, 3))
    assert list(answers_of(fit_probe(states, labels, groups)[0], states)) == list(labels)


def test_a_probe_uses_no_more_threads_than_pytorch(monkeypatch):
    threads = []

    def record(*arguments):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return STRENGTHS[0]

    monkeypatch.setattr(linear_probe, "choose_strength", record)
    for most in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda most=most: most)
        fit_probe(*make_states(20, 2), np.arange(20))
        assert threads and max(threads) == most
        threads.clear()


def test_a_state_that_is_constant_does_not_matter():
    states, labels = make_states(100, 3)
    states[:, 0] = 7.0
    assert (answers_of(fit_probe(states, labels, np.arange(100))[0], states) == labels).mean() > 0.95


def test_one_product_answers_for_all_references():
    states, weight = rng.normal(size=(10, 4)), rng.normal(size=(5, 4))
    one = LinearReference(weight[:3], np.array([0.0, 1, 2]), LABELS.decide_by_logits)
    two = LinearReference(weight[3:], np.array([3.0, 4]), lambda outputs: 10 + outputs.argmin(axis=1))
    stacked, bias = stack_heads([one, two])
    answers = classify_all({"one": one, "two": two}, states @ stacked.numpy().T + bias.numpy())
    assert list(answers["one"]) == list((states @ weight[:3].T + [0, 1, 2]).argmax(axis=1))
    assert list(answers["two"]) == list(10 + (states @ weight[3:].T + [3, 4]).argmin(axis=1))


# --- several labels a row ---


def make_several(rows, seed=0):
    """States, and labels that follow from them: of half, of a tenth, of all and of no rows."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, 8)) * [1, 100, 1, 1, 1, 1, 1, 0] + 5
    scores = states @ rng.normal(size=(8, 2))
    edges = np.quantile(scores, 0.5, axis=0)[0], np.quantile(scores, 0.9, axis=0)[1]
    labels = np.stack(
        [scores[:, 0] > edges[0], scores[:, 1] > edges[1], *np.array([[True], [False]]).repeat(rows, 1)], 1
    )
    return states, labels


def test_the_probe_of_several_labels_learns_each_of_them():
    states, labels = make_several(600)
    probe, strength = fit_probe(states[:300], labels[:300], np.arange(300))
    answers = answers_of(probe, states[300:])
    assert answers.dtype == bool and strength in STRENGTHS
    assert (answers == labels[300:]).mean(axis=0).min() > 0.9
    assert answers[:, 2].all() and not answers[:, 3].any()


def test_a_label_s_regression_is_scikit_learn_s():
    states, labels = make_several(300)
    standard = ((states - states.mean(axis=0)) / np.maximum(states.std(axis=0), 1e-9)).astype(np.float32)
    *_, (weight, bias) = linear_probe.fit_path(standard, labels, (1e-2, 1e-1))
    expected = LogisticRegression(C=1e-1, tol=1e-8, max_iter=1000).fit(standard, labels[:, 0])
    assert weight[0] == pytest.approx(expected.coef_[0], abs=0.01)
    assert bias[0] == pytest.approx(expected.intercept_[0], abs=0.01)


def test_zero_shot_is_left_out_if_a_row_may_have_several_labels(load_nano):
    base, tokenizer, manifest = load_nano()
    with pytest.raises(Unavailable, match="not with several labels"):
        LanguageModelHead.read(base, manifest, tokenizer, TEMPLATE, MultiLabel(CLASSES))
