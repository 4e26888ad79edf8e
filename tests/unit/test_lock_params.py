"""`predict` after a change of params.yaml: the adapter in outs/ is still that of the last run."""

import re
import shutil

import pytest
import yaml
from helpers.project import COMMITTED

from stages.runtime.errors import UserError
from tools.lock_params import check_rows, find_changed_params, hash_out
from tools.predict.__main__ import warn_of_other_params


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(COMMITTED / "demo" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(folder, pattern, value):
    text = (folder / "params.yaml").read_text()
    changed = re.sub(pattern, value, text, count=1, flags=re.MULTILINE)
    assert changed != text
    (folder / "params.yaml").write_text(changed)


def test_after_a_run_nothing_is_said(folder, capsys):
    warn_of_other_params()
    assert capsys.readouterr() == ("", "")


def test_a_change_of_the_training_or_of_its_data_is_said_in_one_line(folder, capsys):
    change(folder, r"^  learning_rate: \S+", "  learning_rate: 2e-05")  # as `-S` writes it: PyYAML reads text
    change(folder, r"^  folder: assets/everyday-nli", "  folder: mine.csv")
    warn_of_other_params()
    assert capsys.readouterr() == (
        "",
        "outs/adapter was not trained as params.yaml says now (data.folder, train.learning_rate); `dvc repro` trains "
        "anew\n",
    )


@pytest.mark.parametrize(
    ("pattern", "value"), [(r"^  confidence: \S+", "  confidence: 0.9"), (r"^  digest: \S+", "  digest:")]
)
def test_a_change_that_trains_no_other_adapter_is_not_said(folder, pattern, value):
    change(folder, pattern, value)
    assert find_changed_params(folder) == []


def test_a_key_that_is_gone_has_changed(folder):
    change(folder, r"^  learning_rate: .*\n", "")
    assert find_changed_params(folder) == ["train.learning_rate"]


def edit_lock(folder, edit):
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    edit(lock["stages"])
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))


def test_a_parameter_of_a_run_that_failed_before_the_training_is_not_its(folder):
    """`-S device=cuda` without a GPU: `download` ran, and params.yaml was restored."""
    edit_lock(folder, lambda stages: stages["download"]["params"]["params.yaml"].update(device="cuda"))
    assert find_changed_params(folder) == []
    edit_lock(folder, lambda stages: stages["train_qlora"]["params"]["params.yaml"].update(device="cuda"))
    assert find_changed_params(folder) == ["device"]


def test_rows_that_are_tokenized_anew_since_the_training_are_said(folder):
    edit_lock(folder, lambda stages: [out.update(md5="other") for out in stages["tokenize"]["outs"]])
    change(folder, r"^  learning_rate: \S+", "  learning_rate: 2e-05")
    assert find_changed_params(folder) == ["other rows", "train.learning_rate"]


@pytest.fixture
def trained(folder):
    """The folder with an adapter and rows, of which dvc.lock has the hashes."""
    for name in ("outs/adapter", "outs/tokenized"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(name)
    hashes = {name: hash_out(folder / name) for name in ("outs/adapter", "outs/tokenized")}

    def set_hashes(stages):
        for entry in (*stages["train_qlora"]["deps"], *stages["train_qlora"]["outs"]):
            entry["md5"] = hashes.get(entry["path"], entry["md5"])

    edit_lock(folder, set_hashes)
    return folder


@pytest.mark.parametrize("changed", ["outs/adapter", "outs/tokenized"])
def test_an_adapter_that_was_trained_on_other_rows_is_rejected(trained, changed):
    check_rows(trained / "outs/adapter")
    (trained / changed / "file").write_text("another run")
    with pytest.raises(UserError, match=r"^outs/adapter: not trained on the rows that outs/tokenized has now; run"):
        check_rows(trained / "outs/adapter")
    check_rows(trained / "elsewhere/adapter")
    (trained / "dvc.lock").unlink()
    check_rows(trained / "outs/adapter")


def test_without_a_pipeline_nothing_is_said(folder):
    for name, content in (("dvc.lock", "stages: {}"), ("dvc.lock", "a: ["), ("params.yaml", "")):
        (folder / name).write_text(content)
        assert find_changed_params(folder) == []
    (folder / "params.yaml").unlink()
    assert find_changed_params(folder) == []
