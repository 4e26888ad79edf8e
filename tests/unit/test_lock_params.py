"""`predict` after a change of params.yaml: the adapter in outs/ is still that of the last run."""

import re
import shutil

import pytest
from helpers.project import COMMITTED

from tools.lock_params import find_changed_params
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
        "outs/adapter was trained with other parameters than params.yaml has now (data.folder, train.learning_rate); "
        "`dvc repro` trains anew\n",
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


def test_without_a_pipeline_nothing_is_said(folder):
    for name, content in (("dvc.lock", "stages: {}"), ("dvc.lock", "a: ["), ("params.yaml", "")):
        (folder / name).write_text(content)
        assert find_changed_params(folder) == []
    (folder / "params.yaml").unlink()
    assert find_changed_params(folder) == []
