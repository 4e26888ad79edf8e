"""Fixtures that the tests share, and the order in which they run."""

import copy
import gc
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.clone import Clone
from helpers.parameters import manifest_of, set_key, unpinned_params
from helpers.project import CPU, NANO
from helpers.tables import CLASSES
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on a CPU

from stages.data.tokenization import load_tokenizer
from stages.model.base import load_base
from stages.runtime import params

torch.set_num_threads(1)


# Files whose tests share the session's fixture `repro`, and then those that take longest, longest first.
SHARE_REPRO = tuple(f"pipeline/test_{name}.py" for name in ("pipeline", "dvc_yaml", "predict", "export"))
LONGEST = (
    *SHARE_REPRO, "pipeline/test_own_data.py", "pipeline/test_examples.py", "faults/test_kill.py",
    "pipeline/test_sweep.py", "pipeline/test_train_stage.py", "pipeline/test_several_processes.py",
    "pipeline/test_compare.py",
    "faults/test_process_failure.py", "unit/test_predict.py", "pipeline/test_watch.py", "unit/test_families.py",
    "unit/test_report.py", "pipeline/test_determinism.py", "unit/test_hub.py", "unit/test_kernels.py",
)  # fmt: skip


def file_of(item_or_id: pytest.Item | str) -> str:
    """A test's file, seen from tests/."""
    return getattr(item_or_id, "nodeid", item_or_id).split("::")[0].removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, so that a mistake shows in seconds; where two processes share the tests, the longest files
    first, so that none is left to one process alone in the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(file_of(item), len(order)))
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported: a collection then takes 0.01 s instead of 0.3."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """For `-n 2`: a file's tests in one process, and so those of the files that share the fixture `repro`.

    Not by xdist_group: xdist 3.8 does not find the marks of pytest 9.2.
    """
    return ByFixture(config, log)


@pytest.fixture
def raw_params():
    """The demo params.yaml as plain dicts, to be changed at will."""
    return unpinned_params()


@pytest.fixture
def make_params(raw_params):
    """Checked parameters: the demo ones, changed at dotted keys."""

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
        return load_base(manifest, group, CLASSES, CPU, seed, words), words, manifest

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

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return "repro" if file in SHARE_REPRO else file


@pytest.fixture(scope="session")
def repro(tmp_path_factory):
    """A clone in which `dvc repro` ran once in demo/, and what came of it. About a minute."""
    clone = Clone(tmp_path_factory.mktemp("pipeline"))
    done = clone.dvc_in_new_processes("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    status = clone.git("status", "--porcelain")
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "demo results")
    reads = {path.name: set(path.read_text().splitlines()) for path in clone.reads.iterdir()}
    return SimpleNamespace(clone=clone, run=done, metrics=clone.metrics(), status=status, reads=reads)
