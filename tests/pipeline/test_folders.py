"""Model and data in local folders: `dvc repro` notices that their files have changed."""

import subprocess

import pandas as pd
import pytest
import yaml
from helpers.clone import Clone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone that downloaded and tokenized once, with a model and data that are not pinned."""
    clone = Clone(tmp_path_factory.mktemp("watch"))
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["model"]["revision"] = raw["data"]["revision"] = "none"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    (clone.folder / "demo/dvc.lock").unlink()
    assert run(clone) == ["download", "tokenize"]
    return clone


def run(clone, **env):
    done = clone.dvc("repro", "tokenize", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.ran


def test_unchanged_folders_run_nothing(clone):
    assert run(clone) == []


def test_weights_that_change_in_place_with_equal_size_run_again(clone):
    weights = clone.folder / "demo/assets/nano-phi/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(clone) == ["download", "tokenize"]


def test_changed_rows_run_again_and_are_read(clone):
    path = clone.folder / "demo/assets/everyday-nli/test.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    last = pd.read_parquet(path)["premise"].iloc[0]
    assert run(clone) == ["download", "tokenize"]
    assert pd.read_parquet(clone.folder / "demo/outs/splits/test.parquet")["premise"].iloc[0] == last


def test_a_new_file_in_the_folder_runs_again(clone):
    (clone.folder / "demo/assets/everyday-nli/more.md").write_text("not data\n")
    assert run(clone) == ["download"]
    readme = clone.folder / "demo/assets/everyday-nli/README.md"
    readme.chmod(0o644)
    readme.write_text(f"{readme.read_text()}\nOnce more.\n")
    assert "download" in run(clone)


def test_a_pinned_folder_that_has_changed_is_rejected(clone):
    path = clone.folder / "demo/params.yaml"
    committed = yaml.safe_load(clone.git("show", "HEAD:demo/params.yaml"))
    path.write_text(yaml.safe_dump(committed, sort_keys=False))
    done = clone.dvc("repro", "tokenize")
    assert done.returncode != 0
    assert "params.yaml: data.revision: the files in assets/everyday-nli have the digest" in done.stderr


def test_another_folder_is_rejected_and_the_error_names_every_key_to_set(clone):
    clone.git("checkout", "--", "demo")
    done = clone.dvc("exp", "run", "download", "-S", "data.name=assets/nano-phi")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "set watch.data: assets/nano-phi" in line and "set data.revision to it, or to none" in line


def test_a_users_files_in_data_and_models_are_not_deleted(clone):
    """Many projects keep their original data in `data/raw`."""
    clone.git("checkout", "--", "demo")
    mine = [clone.folder / "demo" / name for name in ("data/raw/mine.csv", "models/adapter/mine.txt")]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    assert clone.dvc("repro", "--force", "tokenize").ran == ["download", "tokenize"]
    subprocess.run(["make", "clean"], cwd=clone.folder, check=True)
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert not (clone.folder / "demo/outs").exists()


@pytest.mark.parametrize("watched", ["pinned_on_hub.txt", "outs/splits"])
def test_a_data_folder_that_is_an_out_is_rejected_before_dvc_deletes_it(clone, watched):
    clone.git("checkout", "--", "demo")
    mine = clone.folder / "demo/outs/splits/mine.csv"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("text,label")
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["data"]["name"], raw["watch"]["data"] = "outs/splits", watched
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    assert clone.dvc("repro", "download").returncode != 0
    assert mine.read_text() == "text,label"
