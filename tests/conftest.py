"""Fixtures that the tests share, and the order in which they run."""

import copy
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.clone import Clone
from helpers.parameters import manifest_of, set_key, unpinned_params
from helpers.project import CPU, NANO
from xdist.scheduler import LoadScopeScheduling

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on a CPU

from stages.model.base import load_base
from stages.runtime import params
from stages.task.tokens import load_tokenizer

torch.set_num_threads(1)


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


@pytest.fixture
def make_params(raw_params):
    """Checked parameters: the embedded ones, changed at dotted keys."""

    def make(**changes):
        raw = copy.deepcopy(raw_params)
        for key, value in changes.items():
            set_key(raw, key.replace("__", "."), value)
        return params.Params.model_validate(raw)

    return make


@pytest.fixture
def load_nano(make_params):
    """Load the nano base as the stages do: `load_nano(quantization="none", seed=1)` -> (base, tokenizer, manifest)."""

    def load(folder=NANO, seed=42, **changes):
        manifest = manifest_of(folder)
        words = load_tokenizer(manifest)
        group = make_params().model.model_copy(update=changes)
        return load_base(manifest, group, CPU, seed, words), words, manifest

    return load


@pytest.fixture
def nano_copy(tmp_path):
    """A copy of the nano model's folder, to be damaged."""
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


class ByFixture(LoadScopeScheduling):
    """What runs in one process of several."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return "repro" if file.endswith(("test_dvc_yaml.py", "test_pipeline.py", "test_predict.py")) else file


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
