"""Model and data in local folders: `dvc repro` notices that their files have changed."""

import re
import subprocess

import pandas as pd
import pytest
import yaml
from helpers.clone import Clone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone that downloaded and tokenized once, with a model and data that are not pinned."""
    clone = Clone(tmp_path_factory.mktemp("folders"))
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["model"]["digest"] = raw["data"]["digest"] = None
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
    assert "params.yaml: data.digest: the files of assets/everyday-nli have the digest" in done.stderr


def test_another_folder_is_rejected_and_the_error_says_what_to_set(clone):
    clone.git("checkout", "--", "demo")
    done = clone.dvc("exp", "run", "download", "-S", "data.folder=assets/everyday-pairs")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    sentence = r"have the digest (\w{64}); set data.digest to it, or to null if they may change; for data with other "
    assert re.search(f"{sentence}columns: python -m tools.init PATH$", line)


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


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("outs/splits", "Same item(s) are defined as both a dependency and an output in stage: download"),
        ("link", "params.yaml: data.folder: link: the pipeline writes outs/ there"),
        ("nowhere", "No such file or directory: '{demo}/nowhere'"),
    ],
)
def test_a_folder_that_is_an_out_or_does_not_exist_is_rejected_and_no_file_is_lost(clone, folder, words):
    """DVC itself rejects the path of an out, before it deletes anything. `download` rejects a link to one."""
    clone.git("checkout", "--", "demo")
    demo = clone.folder / "demo"
    mine = demo / "outs/splits/mine.csv"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("text,label")
    if folder == "link":
        (demo / "link").symlink_to("outs/splits")
    change_data(clone, folder=folder)
    done = clone.dvc("repro", "download")
    assert done.returncode != 0 and words.format(demo=demo) in done.stderr
    assert mine.read_text() == "text,label"


# --- a single file, and copies of the repository ---


def change_data(clone, **changes):
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["data"] |= {"digest": None, **changes}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


@pytest.fixture(scope="module")
def file(clone):
    """`data.folder` is a single file that Git does not track -> (its path, what the first `download` printed)."""
    clone.git("checkout", "--", "demo")
    clone.git("clean", "--quiet", "--force", "-d")
    path = clone.folder / "demo/mine.csv"
    pd.read_parquet(clone.folder / "demo/assets/everyday-nli/train.parquet").head(100).to_csv(path, index=False)
    slices = {"train": "train[:60%]", "validation": "train[60%:80%]", "test": "train[80%:]"}
    change_data(clone, folder="mine.csv", splits=slices)
    done = clone.dvc("repro", "download")
    assert done.ran == ["download"], done.stderr
    return path, done.stdout


def test_a_single_file_that_changes_runs_again_and_its_neighbours_do_not_matter(clone, file):
    path, _ = file
    (path.parent / "README.md").write_text("---\nconfigs: nothing\n---\n")
    (path.parent / "train.csv").write_text("premise\n")
    assert clone.dvc("repro", "download").ran == []
    pd.read_csv(path).iloc[::-1].to_csv(path, index=False)
    assert clone.dvc("repro", "download").ran == ["download"]
    rows = pd.read_parquet(clone.folder / "demo/outs/splits/test.parquet")
    assert rows["premise"].tolist() == pd.read_csv(path)["premise"].tolist()[80:]


TEMPORARY = ("exp", "run", "--temp", "download", "-S", "data.splits.test='train[90%:]'")


def test_a_copy_of_the_repository_lacks_an_untracked_file_but_finds_its_whole_path(clone, file):
    path, printed = file
    assert "mine.csv is not in Git: " in printed and f"set data.folder: {path}\n" in printed
    done = clone.dvc(*TEMPORARY)
    assert done.returncode != 0 and "No such file or directory" in done.stderr
    done = clone.dvc(*TEMPORARY, "-S", f"data.folder={path}")
    assert done.ran == ["download"] and "not in Git" not in done.stdout


def test_a_copy_of_the_repository_has_folders_of_git_and_files_of_dvc_add(clone, file):
    """The model is in Git, the data are not."""
    assert clone.dvc("add", "mine.csv").returncode == 0
    clone.git("add", "demo/mine.csv.dvc", "demo/.gitignore")
    clone.git("commit", "--quiet", "--message", "data", "--", "demo/mine.csv.dvc", "demo/.gitignore")
    done = clone.dvc(*TEMPORARY)
    assert done.ran == ["download"], done.stderr
    assert "not in Git" not in done.stdout
