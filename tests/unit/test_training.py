"""The parts of training: orders, digests, histories, checkpoints, class weights."""

import copy
import importlib.metadata
import math
import sys
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.families import FAMILIES
from helpers.project import CPU, ROOT
from helpers.tables import LABELS
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoModelForSequenceClassification

from stages import train_qlora
from stages.data.labels import MultiLabel
from stages.data.task import Task
from stages.model.adapter import add_lora
from stages.model.head import freeze_head, scale_head
from stages.runtime import files
from stages.runtime.usage_recorder import read_versions
from stages.training import checkpoints, history
from stages.training.calibration import BOUNDS, fit_temperature
from stages.training.epoch_batches import EpochBatches
from stages.training.loss import compute_balanced_weights, compute_loss, set_loss, weigh_classes
from stages.training.trainer import checksum


def test_the_newest_complete_checkpoint_is_resumed_and_partial_ones_are_removed(tmp_path):
    for step, complete in ((5, True), (40, True), (300, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
        if complete:
            (tmp_path / f"checkpoint-{step}" / checkpoints.WHOLE).touch()
    assert checkpoints.checkpoint_to_resume(tmp_path) == tmp_path / "checkpoint-40"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-40", "checkpoint-5"]


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    assert checkpoints.checkpoint_to_resume(tmp_path / "none") is None


def test_removing_a_runs_checkpoints_leaves_those_of_other_runs_and_no_remains(tmp_path, capsys):
    """The run of `c` was killed while it removed its checkpoints."""
    for name, size in (("a", 1), ("b", 2_500_000), (".c.old.12.tmp", 1)):
        (tmp_path / f"outs/checkpoints/{name}/checkpoint-5").mkdir(parents=True)
        (tmp_path / f"outs/checkpoints/{name}/checkpoint-5/optimizer.pt").write_bytes(b"0" * size)
    checkpoints.remove_checkpoints(tmp_path / "outs/checkpoints/a")
    assert [path.name for path in (tmp_path / "outs/checkpoints").iterdir()] == ["b"]
    assert "outs/checkpoints/b (2.5 MB)" in capsys.readouterr().out
    checkpoints.remove_checkpoints(tmp_path / "outs/checkpoints/b")
    assert not (tmp_path / "outs/checkpoints").exists()
    assert capsys.readouterr().out == ""


def test_other_parameters_have_another_digest(make_params):
    def digest(**changes):
        p = make_params(**changes)
        return checkpoints.compute_run_digest(
            {"lora": p.lora.model_dump(), "train": p.train.model_dump()}, p.seed, ["data"]
        )

    assert digest() == digest()
    assert len({digest(), digest(lora__r=8), digest(seed=1), digest(train__keep="last")}) == 4


def test_one_and_several_labels_a_row_have_different_digests(make_params, monkeypatch):
    monkeypatch.setattr(files, "sha256", lambda path: "the same rows")
    monkeypatch.setattr(checkpoints, "hash_code", lambda script: {})

    def digest(multi_label):
        inputs = SimpleNamespace(task=Task(("a", "b"), "{text}", None, multi_label), manifest={"digest": "d" * 64})
        return train_qlora.digest_run(make_params(), inputs, CPU)

    assert digest(True) == digest(True) != digest(False)


def test_the_hashed_code_is_everything_that_the_stage_imports():
    files = checkpoints.hash_code(ROOT / "stages/train_qlora.py")
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train_qlora"]["deps"]
    parts = {name if name.count("/") == 1 else name.rpartition("/")[0] for name in files}
    assert parts == {dep for dep in deps if dep.startswith("stages/")}
    assert "stages/kernels/lora_kernels.py" in files, "an import inside a function counts"


def test_an_edit_changes_the_digests_only_if_the_script_imports_the_file(tmp_path):
    def digests():
        return checkpoints.hash_code(tmp_path / "stages/script.py")

    (tmp_path / "stages").mkdir()
    (tmp_path / "torch").mkdir()  # a user's folder with the name of a library
    for name in ("__init__", "used", "other"):
        (tmp_path / f"stages/{name}.py").touch()
    (tmp_path / "stages/script.py").write_text("import torch\n\ndef f():\n    from stages import used\n")
    before = digests()
    assert list(before) == ["stages/script.py", "stages/__init__.py", "stages/used.py"]
    (tmp_path / "stages/other.py").write_text("edited = 1\n")
    assert digests() == before
    (tmp_path / "stages/used.py").write_text("edited = 1\n")
    assert digests() != before


def test_an_import_in_any_form_is_hashed(tmp_path):
    """Prose in a string that looks like an import only costs time."""
    (tmp_path / "stages/deep").mkdir(parents=True)
    names = ["a", "b", "c", "d", "e", "f", "deep/g", "deep/h"]
    for name in ("__init__", "deep/__init__", *names):
        (tmp_path / f"stages/{name}.py").touch()
    (tmp_path / "stages/deep/g.py").write_text("from .. import e\nfrom .h import x\n")
    code = """
if True: import stages.a as a
x = 1; from stages import b
from stages import (  # noqa (a reason)
    c,
)
from stages \\
  import d, \\
  f
try:
    from stages.deep import g
except* ValueError:
    'import'
\"\"\"
import nothing, or
from nothing import anything: prose
\"\"\"
"""
    (tmp_path / "stages/script.py").write_text(code)
    files = checkpoints.hash_code(tmp_path / "stages/script.py")
    assert set(files) == {f"stages/{name}.py" for name in ("script", "__init__", "deep/__init__", *names)}


RARE = ["from .import a", "from.a import b", "from . a import b", "from stages . a import b", "\fimport stages.a"]
BLOCKS = [
    "try:\n f()\nexcept E:\n {}", "try:\n f()\nfinally:\n {}", "for x in y:\n f()\nelse:\n {}",
    "if x:\n f()\nelif y:\n {}", "match x:\n case 1:\n  {}", "class A:\n async def f():\n  with x: {}",
]  # fmt: skip


@pytest.mark.parametrize("code", RARE + [block.format("import stages.a") for block in BLOCKS])
def test_an_import_in_a_rare_form_or_in_any_block_is_hashed(tmp_path, code):
    (tmp_path / "stages").mkdir()
    for name in ("__init__", "a"):
        (tmp_path / f"stages/{name}.py").touch()
    (tmp_path / "stages/script.py").write_text(code)
    assert "stages/a.py" in checkpoints.hash_code(tmp_path / "stages/script.py")


def test_no_import_of_a_stage_is_missed():
    """Python's own finder of modules is slower, and finds the same files."""

    class Imports(ModuleFinder):
        def find_module(self, name, path, parent=None):
            spec = PathFinder.find_spec(name, path or self.path)
            if spec and spec.loader is None:  # a folder without `__init__.py`
                raise ImportError(name)
            return super().find_module(name, path, parent)

    finder = Imports([str(ROOT)])
    finder.run_script(str(ROOT / "stages/train_qlora.py"))
    files = {
        Path(module.__file__).relative_to(ROOT).as_posix() for module in finder.modules.values() if module.__file__
    }
    assert files == checkpoints.hash_code(ROOT / "stages/train_qlora.py").keys()


def test_another_version_or_gpu_has_another_digest(monkeypatch):
    def digest(device=CPU, **others):
        version = importlib.metadata.version
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name: others.get(name) or version(name))
            patch.setattr(torch.cuda, "get_device_name", lambda device: others.get("gpu", "NVIDIA H100"))
            return checkpoints.compute_run_digest(read_versions(device))

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    gpu = torch.device("cuda", 0)
    changed = [digest(**{name: "0.1"}) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")]
    assert digest() == digest()
    assert len({digest(), digest(gpu), digest(gpu, gpu="Tesla T4"), *changed}) == 8
    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert read_versions(CPU) == {
        "python": "{}.{}".format(*sys.version_info), "cpu": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def test_a_checksum_changes_with_changed_and_moved_elements():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    others = [weight.flip(0), weight.clone(), weight * (1 + 1e-6), weight + 0.0]
    others[1][3, 4] = -others[1][3, 4]
    sums = [checksum(weight), *(checksum(other) for other in others)]
    assert sums[0] == sums[4] and len(set(sums)) == 4


def test_the_order_of_rows_depends_only_on_seed_and_epoch():
    def row_order(seed, epoch, order):
        lengths = [3, 1, 4, 1, 5, 9, 2, 6] * 4
        rows = [{"input_ids": length * [row], "labels": 0} for row, length in enumerate(lengths)]
        batches = EpochBatches(rows, 4, order, seed, lambda rows, **_: {"input_ids": rows})
        batches.set_epoch(epoch)
        return [row["input_ids"][0] for (part,) in batches for row in part["input_ids"]]

    for order in ("balanced", "grouped", "random"):
        assert row_order(1, 0, order) == row_order(1, 0, order)
        assert sorted(row_order(1, 0, order)) == list(range(32))
        assert row_order(1, 0, order) != row_order(1, 1, order) != row_order(2, 1, order)


def epochs_of(validation, training=None):
    """The epochs of a run with these losses."""
    training = training or [1.0] * len(validation)
    losses = enumerate(zip(training, validation, strict=True), start=1)
    return [{"epoch": n, "train_loss": train, "validation_loss": loss} for n, (train, loss) in losses]


def test_the_best_epoch_is_the_first_with_the_lowest_validation_loss():
    assert history.best_epoch(epochs_of(validation=[0.5, 0.3, 0.4, 0.3])) == 2


def test_an_epoch_with_a_loss_that_is_not_finite_is_never_the_best():
    epochs = epochs_of(validation=[math.nan, math.inf, 0.4, 0.3, -math.inf])
    assert history.best_epoch(epochs) == 4
    assert history.best_epoch(epochs[:2]) is None
    assert history.best_epoch(epochs_of(validation=[0.4, 0.3, 0.2], training=[1.0, math.nan, math.inf])) == 1


def test_the_curves_join_steps_and_evaluations():
    scores = {"eval_accuracy": 0.5, "eval_f1_weighted": 0.4}
    log = [
        *({"step": step, "step_loss": float(step)} for step in (1, 2)),
        {"step": 2, "loss": 99.0},
        {"step": 2, "eval_loss": 0.7, **scores},
        *({"step": step, "step_loss": float(step)} for step in (3, 4)),
        {"step": 4, "eval_loss": 0.6, **scores},
        {"step": 4, "train_runtime": 3.0},
    ]
    steps, epochs = history.read_curves(SimpleNamespace(log_history=log))
    assert steps == [{"step": n, "loss": float(n)} for n in (1, 2, 3, 4)]
    assert [(e["epoch"], e["train_loss"], e["validation_loss"]) for e in epochs] == [(1, 1.5, 0.7), (2, 3.5, 0.6)]
    assert epochs[0]["validation_accuracy"] == 0.5
    assert epochs[0]["validation_f1_weighted"] == 0.4


@pytest.mark.parametrize("rows", [1, 4, 60])
def test_validation_scores_are_those_of_scikit_learn(rows):
    rng = np.random.default_rng(rows)
    gold, logits = rng.integers(0, 4, rows), rng.normal(size=(rows, 5))  # class 4 is predicted, but never gold
    logits[:, 0] += 2 * (gold == 0)
    scores = history.compute_validation_metrics(gold, logits)
    predicted = logits.argmax(axis=1)
    assert scores["accuracy"] == accuracy_score(gold, predicted)
    for average in ("weighted", "macro"):
        f1 = f1_score(gold, predicted, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(f1, rel=1e-12)


# --- class weights ---


def test_balanced_weights_are_those_of_scikit_learn():
    gold = np.array([0, 0, 0, 0, 0, 0, 2, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=gold)
    assert compute_balanced_weights(gold, 4).tolist() == pytest.approx([expected[0], 1, expected[1], 1])


@pytest.mark.parametrize("rows", [[0, 0, 0, 2], [0, 0, 0, 0], [2]])
def test_a_weighted_loss_is_the_mean_of_weight_times_loss_over_rows(load_nano, rows):
    base = load_nano(quantization="none")[0]
    ids, labels = torch.randint(1, 900, (len(rows), 9), generator=torch.Generator().manual_seed(1)), torch.tensor(rows)
    row_losses = torch.nn.functional.cross_entropy(base(input_ids=ids).logits, labels, reduction="none")
    weights = torch.tensor([0.5, 1.0, 3.0])
    weigh_classes(base, weights)
    loss = base(input_ids=ids, labels=labels).loss
    assert loss.item() == pytest.approx((row_losses * weights[labels]).mean().item(), rel=1e-5)


def families_as_classifiers(labels=LABELS):
    """Small classifiers, of which GPT-2, OPT and others compute their loss without `loss_function`."""
    for family in ("phi", "llama", "gpt2", "opt", "bloom", "mpt", "falcon"):
        config = copy.deepcopy(FAMILIES[family])
        config.update({"num_labels": 3, "pad_token_id": 0, "problem_type": labels.problem_type})
        torch.manual_seed(0)
        yield family, AutoModelForSequenceClassification.from_config(config).eval()


def loss_and_gradients(model, loss):
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def test_the_loss_of_the_logits_is_to_the_last_bit_that_of_the_model_s_own_forward():
    ids, labels = torch.randint(1, 900, (4, 9), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1, 0])
    for family, model in families_as_classifiers():
        own, own_gradients = loss_and_gradients(model, model(input_ids=ids, labels=labels).loss)
        wrapped = SimpleNamespace(get_base_model=lambda model=model: model)
        ours, gradients = loss_and_gradients(model, compute_loss(wrapped, model(input_ids=ids).logits, labels))
        assert torch.equal(own, ours), family
        assert own_gradients.keys() == gradients.keys(), family
        assert all(torch.equal(own_gradients[name], gradients[name]) for name in gradients), family


def test_class_weights_change_the_loss_of_every_family():
    ids, labels = torch.randint(1, 900, (3, 9), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 2])
    for family, model in families_as_classifiers():
        logits = model(input_ids=ids).logits
        set_loss(model, LABELS, np.array([0, 0, 1, 2]), balanced=True)
        loss = compute_loss(SimpleNamespace(get_base_model=lambda model=model: model), logits, labels)
        weights = compute_balanced_weights(np.array([0, 0, 1, 2]), 3)
        expected = (F.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), family


def test_rows_that_only_fill_a_batch_do_not_change_the_loss(load_nano):
    base = load_nano(quantization="none")[0]
    weigh_classes(base, torch.tensor([0.5, 1.0, 3.0]))
    ids = torch.randint(1, 900, (4, 9), generator=torch.Generator().manual_seed(1))
    part = base(input_ids=ids[:2], labels=torch.tensor([0, 2])).loss.item()
    assert base(input_ids=ids, labels=torch.tensor([0, 2, -100, -100])).loss.item() == pytest.approx(part, rel=1e-5)


# --- the temperature ---


def draw_rows(rows, temperature=4.0, size=4.0, groups=None, seed=0):
    """(logits, gold, groups) of a model whose logits are too large by the factor `temperature`."""
    rng = np.random.default_rng(seed)
    logits = size * rng.normal(size=(rows, 3))
    luck = rng.random(rows) if groups is None else rng.random(groups)[np.arange(rows) % groups]
    gold = (softmax(logits, axis=1).cumsum(axis=1) < luck[:, None]).sum(axis=1)
    return temperature * logits, gold, np.arange(rows) % (groups or rows)


def mean_loss(logits, gold):
    return -log_softmax(logits, axis=1)[np.arange(len(gold)), gold].mean()


def test_the_temperature_is_the_one_that_makes_the_logits_right():
    fitted = fit_temperature(*draw_rows(20_000))
    assert fitted.value == pytest.approx(4, rel=0.03)
    assert fitted.low < 4 < fitted.high and fitted.high / fitted.low < 1.15
    assert fitted.rows == 20_000


def test_with_many_rows_the_temperature_has_the_lowest_cross_entropy():
    logits, gold, groups = draw_rows(2_000, temperature=0.3)
    value = fit_temperature(logits, gold, groups).value
    losses = [mean_loss(logits / other, gold) for other in (value / 1.05, value, value * 1.05)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("rows", [2, 100])
def test_rows_that_are_all_right_do_not_make_the_model_certain(rows):
    """About half an error is expected among them."""
    logits, _, groups = draw_rows(rows)
    gold = logits.argmax(axis=1)
    fitted = fit_temperature(logits, gold, groups)
    errors = 1 - softmax(logits / fitted.value, axis=1).max(axis=1)
    assert 0.2 < errors.sum() < 0.8
    assert BOUNDS[0] <= fitted.low < fitted.value < fitted.high <= BOUNDS[1]


def test_answers_that_do_not_depend_on_the_text_get_nearly_equal_probabilities():
    logits, gold, groups = draw_rows(300)
    fitted = fit_temperature(logits, np.random.default_rng(1).permutation(gold), groups)
    assert 20 < fitted.value <= fitted.high <= BOUNDS[1]


@pytest.mark.parametrize("logits", [np.zeros((30, 3)), np.full((30, 3), 1e4) * [1, 0, 0]])
def test_the_temperature_of_extreme_logits_is_within_its_bounds(logits):
    fitted = fit_temperature(logits, np.arange(30) % 3, np.arange(30))
    assert BOUNDS[0] <= fitted.low <= fitted.value <= fitted.high <= BOUNDS[1]


def test_an_added_constant_does_not_change_the_temperature():
    logits, gold, groups = draw_rows(100)
    assert fit_temperature(logits + np.arange(100)[:, None], gold, groups) == fit_temperature(logits, gold, groups)


@pytest.mark.parametrize("groups", [None, 30])
def test_the_interval_covers_the_temperature(groups):
    """The share of 200 samples is 0.95 ± 0.03 by chance alone."""
    fits = [fit_temperature(*draw_rows(120, groups=groups, seed=seed)) for seed in range(200)]
    assert 0.9 <= np.mean([fit.low <= 4 <= fit.high for fit in fits]) <= 0.99


def test_rows_that_are_alike_in_groups_have_a_wider_interval():
    logits, gold, _ = draw_rows(100)
    logits, gold = np.repeat(logits, 10, axis=0), np.repeat(gold, 10)
    alike = fit_temperature(logits, gold, np.repeat(np.arange(100), 10))
    independent = fit_temperature(logits, gold, np.arange(1000))
    assert alike.value == independent.value
    assert np.log(alike.high / alike.low) == pytest.approx(
        np.sqrt(10) * np.log(independent.high / independent.low), rel=0.2
    )


def test_a_temperature_of_100_rows_is_nearly_as_good_as_the_true_one():
    test, test_gold, _ = draw_rows(20_000, seed=1000)
    losses = [mean_loss(test / fit_temperature(*draw_rows(100, seed=seed)).value, test_gold) for seed in range(20)]
    best, raw = mean_loss(test / 4, test_gold), mean_loss(test, test_gold)
    assert raw - best > 0.3
    assert np.mean(losses) - best < 0.03


@pytest.mark.parametrize("frozen", [False, True])
def test_a_scaled_head_divides_the_logits_and_nothing_else(load_nano, make_params, frozen):
    model = add_lora(load_nano(quantization="none")[0], make_params().lora, 42).eval()
    if frozen:
        freeze_head(model)
    ids = torch.randint(1, 900, (4, 9), generator=torch.Generator().manual_seed(1))
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        scale_head(model, 4.0)
        after = model(input_ids=ids).logits
    assert torch.equal(after * 4, before)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trainable


# --- several labels a row ---

SEVERAL = MultiLabel(("a", "b", "c"))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_of_several_labels_is_pytorch_s_binary_cross_entropy_of_the_real_rows(load_nano, balanced):
    base = load_nano(quantization="none")[0]
    train = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    set_loss(base, SEVERAL, train, balanced)
    logits = torch.randn((4, 3), generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [-100] * 3, [-100] * 3])
    weights = torch.tensor([1.5, 1, 1]) if balanced else None  # a label of all rows or of none says nothing
    expected = F.binary_cross_entropy_with_logits(logits[:2], labels[:2].float(), pos_weight=weights)
    loss = compute_loss(SimpleNamespace(get_base_model=lambda: base), logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert (logits.grad[2:] == 0).all() and (logits.grad[:2] != 0).all()


def test_an_overflow_in_a_row_that_only_fills_the_batch_does_not_reach_the_loss(load_nano):
    base = load_nano(quantization="none")[0]
    set_loss(base, SEVERAL, np.eye(3, dtype=bool), balanced=False)
    logits = torch.tensor([[1.0, -1.0, 0.5], [math.inf, math.nan, -math.inf]], requires_grad=True)
    loss = compute_loss(SimpleNamespace(get_base_model=lambda: base), logits, torch.tensor([[1, 0, 1], [-100] * 3]))
    loss.backward()
    assert math.isfinite(loss.item()) and logits.grad.isfinite().all()


def test_without_weights_several_labels_have_the_loss_and_gradients_of_every_family_s_own_forward():
    ids = torch.randint(1, 900, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    for family, model in families_as_classifiers(SEVERAL):
        own, own_gradients = loss_and_gradients(model, model(input_ids=ids, labels=labels.float()).loss)
        set_loss(model, SEVERAL, labels.bool().numpy(), balanced=False)
        wrapped = SimpleNamespace(get_base_model=lambda model=model: model)
        ours, gradients = loss_and_gradients(model, compute_loss(wrapped, model(input_ids=ids).logits, labels))
        assert ours.item() == pytest.approx(own.item(), rel=1e-6), family
        for name, gradient in own_gradients.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-7), (family, name)


def test_validation_scores_of_several_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    gold, logits = rng.random((60, 4)) < 0.3, rng.normal(size=(60, 4))
    for labels in (gold, gold.astype(np.int64)):  # as in a table, and as in a batch
        scores = history.compute_validation_metrics(labels, logits + gold)
        predicted = logits + gold > 0
        assert scores["accuracy"] == accuracy_score(gold, predicted)
        assert scores["f1_weighted"] == pytest.approx(f1_score(gold, predicted, average="weighted", zero_division=0))
        assert scores["f1_micro"] == pytest.approx(f1_score(gold, predicted, average="micro"))


def test_the_line_of_an_epoch_names_the_scores_of_its_kind_of_labels():
    gold = np.eye(2, dtype=bool)
    for labels, line in ((gold, "micro F1 50.0%, subset accuracy 50.0%"),
                         (np.array([0, 1]), "accuracy 50.0%, macro F1 33.3%")):  # fmt: skip
        scores = history.compute_validation_metrics(labels, np.array([[1.0, -1.0], [1.0, -1.0]]))
        assert history.describe_scores({f"eval_{name}": score for name, score in scores.items()}) == line


def draw_several(rows, temperature, seed=0, classes=5):
    """Logits and labels of rows with several labels, whose logits are right after division by the temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (rows, classes))
    return logits * temperature, rng.random((rows, classes)) < expit(logits)


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_the_temperature_of_several_labels_is_found(temperature):
    fitted = fit_temperature(*draw_several(4_000, temperature), np.arange(4_000))
    assert fitted.low < temperature < fitted.high
    assert fitted.value == pytest.approx(temperature, rel=0.05)


def test_labels_that_copy_each_other_make_the_interval_of_the_temperature_wider():
    logits, gold = draw_several(300, 2, classes=1)
    single = fit_temperature(logits, gold, np.arange(300))
    copied = fit_temperature(np.repeat(logits, 4, axis=1), np.repeat(gold, 4, axis=1), np.arange(300))
    assert copied.value == pytest.approx(single.value, rel=0.02)
    assert np.log(copied.high / copied.low) == pytest.approx(np.log(single.high / single.low), rel=0.15)
