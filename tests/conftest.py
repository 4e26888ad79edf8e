"""What the tests share: parameters, the nano model, stages in processes of their own."""
# ruff: noqa: E402 -- the libraries read the environment when they are imported

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and two pools of threads on two cores wait for each other
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
for _name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)

import pytest
import torch
import yaml
from xdist.scheduler import LoadScopeScheduling

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on a CPU

from stages.model import model
from stages.runtime import params
from stages.sources import hub
from stages.task import tokenizer

EMBEDDED = ROOT / "embedded"
NANO = EMBEDDED / "assets" / "nano-phi"
SHARED = ROOT.parent / "shared"
RECORDER = Path(__file__).with_name("recorder")  # its sitecustomize.py writes down which parameters a stage reads
CPU = torch.device("cpu")

torch.set_num_threads(1)

# What a user changes by using the project: parameters by `dvc exp run -S`, results by any run. The tests take these as
# Git has them, staged or committed, so that an experiment in the workspace is no failure.
OF_THE_USER = ("params.yaml", "dvc.lock", "metrics", *(f"embedded/{n}" for n in ("params.yaml", "dvc.lock", "metrics")))


def _as_git_has(paths):
    """A temporary folder with these files and folders as Git's index has them; outside of Git, as they lie here."""
    folder = tempfile.TemporaryDirectory()
    git = shutil.which("git") and subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode == 0
    if git:
        listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, check=True).stdout
        command = ["git", "checkout-index", "-z", "--stdin", f"--prefix={folder.name}/"]
        subprocess.run(command, cwd=ROOT, input=listed, check=True)
    else:
        for path in (ROOT / path for path in paths):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            if path.exists():
                (folder.name / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                copy(path, folder.name / path.relative_to(ROOT))
    return folder


_committed = _as_git_has(OF_THE_USER)  # kept, since the folder goes with it
COMMITTED = Path(_committed.name)


def pytest_collection_modifyitems(items):
    """Fast tests first, so that a mistake shows in seconds."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_xdist_make_scheduler(config, log):
    """For `-n 2`: a file's tests in one process, and so those of the files that share the fixture `repro`.

    Not by xdist_group: xdist 3.8 does not find the marks of pytest 9.2.
    """
    return ByFixture(config, log)


@pytest.fixture
def raw_params():
    """The embedded params.yaml as plain dicts, to be changed at will."""
    return unpinned_params()


def unpinned_params():
    """The embedded params.yaml as plain dicts, without its pins: these would refuse any other folder."""
    raw = yaml.safe_load((COMMITTED / "embedded/params.yaml").read_text())
    raw["model"]["revision"] = raw["data"]["revision"] = "none"
    return raw


@pytest.fixture
def make_params(raw_params):
    """Checked parameters: the embedded ones, changed at dotted keys."""

    def make(**changes):
        raw = copy.deepcopy(raw_params)
        for key, value in changes.items():
            set_key(raw, key.replace("__", "."), value)
        return params.Params.model_validate(raw)

    return make


def set_key(raw, key, value):
    """Set a dotted key in nested dicts."""
    *groups, leaf = key.split(".")
    for group in groups:
        raw = raw[group]
    raw[leaf] = value


def use(raw, key, name):
    """Let nested parameters take their model or data from a folder, or from the hub."""
    raw[key]["name"] = name
    raw["watch"][key] = name if hub.is_folder(name) else hub.HUB


def manifest_of(folder):
    """The manifest that `download` would write for a model in a folder."""
    return hub.describe(Path(folder), SimpleNamespace(name=str(folder), revision="none"), "model")


@pytest.fixture
def load_nano(make_params):
    """Load the nano base as the stages do: `load_nano(quantization="none", seed=1)` -> (base, tokenizer, manifest)."""

    def load(folder=NANO, seed=42, **changes):
        manifest = manifest_of(folder)
        words = tokenizer.load_tokenizer(manifest)
        group = make_params().model.model_copy(update=changes)
        return model.load_base(manifest, group, CPU, seed, words), words, manifest

    return load


@pytest.fixture
def nano_copy(tmp_path):
    """A copy of the nano model's folder, to be damaged."""
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def stage_env(**changes):
    """Environment of a stage's process."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **changes}


def run_stage(stage, folder, **env):
    """Run one stage in a folder that holds a params.yaml."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=stage_env(**env), capture_output=True, text=True
    )


def run_stage_in_each(stage, folders, **env):
    """Run one stage in each of many folders; its modules are imported once, and each folder gets a fork.

    Returns:
        {folder's name: namespace with returncode, stdout, stderr}
    """
    folders = [str(folder) for folder in folders]
    command = [sys.executable, str(Path(__file__).with_name("stage_forks.py")), stage, *folders]
    done = subprocess.run(command, env=stage_env(**env), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        Path(folder).name: SimpleNamespace(**json.loads(Path(f"{folder}.result").read_text())) for folder in folders
    }


def error_line(done):
    """The one line that a failed stage owes its user."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def assert_refused(done, said):
    """A stage failed with one line that holds all words of `said`, and wrote nothing."""
    line = error_line(done)
    assert all(words in line for words in said), line
    assert done.written == []


def written(folder):
    """Files that a stage left in its folder, params.yaml aside."""
    return sorted(
        str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != "params.yaml"
    )


class ByFixture(LoadScopeScheduling):
    """What runs in one process of several."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return "repro" if file.endswith(("test_dvc_yaml.py", "test_pipeline.py", "test_predict.py")) else file


class Clone:
    """A new repository with the files of this one, in which `dvc` can run without touching anything else.

    Code is as it lies here; parameters and results are the committed ones.

    Attributes:
        folder: its root.
        reads: folder where the stages' parameter reads are written, one file a stage.
    """

    def __init__(self, top, left_out=("tests/",)):
        self.folder, self.reads = top / "clone", top / "reads"
        self.reads.mkdir()
        self.env = stage_env(
            PYTHONPATH=str(RECORDER),
            RECORD_READS=str(self.reads),
            HF_HOME=str(top / "hf"),
            HF_HUB_OFFLINE="1",
            **{
                f"DVC_{name}": str(top / name.lower())
                for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")
            },
            **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        )
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            there = (ROOT / name).is_file() or (ROOT / name).is_symlink()
            if there and not name.startswith((*left_out, *OF_THE_USER)):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name, follow_symlinks=False)
        shutil.copytree(COMMITTED, self.folder, dirs_exist_ok=True)
        self.git("init", "--quiet")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test")
        self.commit("as it is")

    def git(self, *arguments):
        done = subprocess.run(["git", *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self, message):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def dvc(self, *arguments, below="embedded", **env):
        """Run `dvc` -> namespace with returncode, stdout, stderr, and `ran`: the stages that it ran."""
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=self.folder / below, env={**self.env, **env},
            capture_output=True, text=True,
        )  # fmt: skip
        done.ran = re.findall(r"Running stage '(?:.*:)?(\w+)'", done.stdout)
        return done

    def metrics(self):
        """{name: content of embedded/metrics/name.json}."""
        return {path.stem: json.loads(path.read_text()) for path in (self.folder / "embedded/metrics").glob("*.json")}


@pytest.fixture(scope="session")
def repro(tmp_path_factory):
    """A clone in which `dvc repro` ran once in embedded/, and what came of it. About a minute."""
    clone = Clone(tmp_path_factory.mktemp("pipeline"))
    done = clone.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    status = clone.git("status", "--porcelain")
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "embedded results")
    reads = {path.name: set(path.read_text().splitlines()) for path in clone.reads.iterdir()}
    return SimpleNamespace(clone=clone, run=done, metrics=clone.metrics(), status=status, reads=reads)
