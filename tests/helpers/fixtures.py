"""Fixtures that several test files use."""

import copy
import importlib.util
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from helpers.blank_figures import draw_svg, leave_figures_blank
from helpers.clone import SHORT, Clone
from helpers.parameters import manifest_of, set_key, unpinned_params
from helpers.project import CPU, DEMO, NANO
from helpers.tables import LABELS

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on a CPU

if os.environ.get("TRITON_INTERPRET") and importlib.util.find_spec("triton"):
    from helpers.triton_interpreter import make_faster

    make_faster()

from helpers import faster_analyze
from stages.data.tokenization import load_tokenizer
from stages.model.base import load_base
from stages.runtime import params

torch.set_num_threads(1)
faster_analyze.make_faster()


@pytest.fixture
def raw_params():
    """The demo params.yaml as plain dicts, which a test may change."""
    return unpinned_params()


@pytest.fixture
def make_params(raw_params):
    """Make validated parameters: `make_params(lora__r=4)` is the demo's with another `lora.r`."""

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
        tokenizer = load_tokenizer(manifest)
        settings = make_params().model.model_copy(update=changes)
        return load_base(manifest, settings, LABELS, CPU, seed, tokenizer), tokenizer, manifest

    return load


@pytest.fixture
def one_pixel_pngs(monkeypatch):
    """Let `analyze` draw its pictures as SVG only, which takes a third of the time. The same code draws both."""
    draw_svg(monkeypatch.setattr)


@pytest.fixture
def blank_figures(monkeypatch):
    """Let `analyze` write blank pictures, for tests of texts and numbers."""
    leave_figures_blank(monkeypatch.setattr)


@pytest.fixture
def nano_copy(tmp_path):
    """A writable copy of the nano model's folder, which a test may damage."""
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


@pytest.fixture(scope="session")
def repro(tmp_path_factory):
    """A clone with the results of the demo pipeline. If demo/ has results of the same code, it takes no training.

    Returns:
        namespace with `clone`, and `metrics` ({name: content})
    """
    clone = Clone(tmp_path_factory.mktemp("pipeline"), figures=False)
    clone.take_run(DEMO)
    run = clone.dvc("repro")
    assert run.returncode == 0, run.stdout + run.stderr
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "demo results")
    return SimpleNamespace(clone=clone, metrics=clone.metrics())


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """A clone in which `dvc repro` ran once with few rows, started as a user starts it. Imports take most of its time.

    Returns:
        namespace with `clone`, `run` (the outcome of `dvc`), `metrics` ({name: content}), `status` (of Git, after the
        run) and `reads` ({stage: parameters read, `STAGE.files`: files opened})
    """
    clone = Clone(tmp_path_factory.mktemp("short"), figures=False)  # new processes draw them
    clone.change_params(SHORT)
    clone.commit("few rows")
    run = clone.dvc_in_new_processes("repro")
    assert run.returncode == 0, run.stdout + run.stderr
    status = clone.git("status", "--porcelain")
    clone.commit("results")
    reads = {path.name: set(path.read_text().splitlines()) for path in clone.reads.iterdir()}
    return SimpleNamespace(clone=clone, run=run, metrics=clone.metrics(), status=status, reads=reads)
