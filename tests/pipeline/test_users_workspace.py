"""An experiment in the workspace makes no test fail."""

import shutil
import subprocess
import sys

import pytest
from dvc.utils.serialize import modify_yaml
from helpers.clone import Clone
from helpers.parameters import set_key
from helpers.stages import stage_env

TESTS = ["unit/test_params.py", "unit/test_readme.py", "pipeline/test_dvc_yaml.py"]


@pytest.mark.slow
def test_the_tests_pass_after_the_readmes_experiment(tmp_path):
    """With the parameters that `dvc exp run -S lora.r=8` leaves, and others that change more, and without metrics."""
    clone = Clone(tmp_path, omit=())
    for folder in ("demo", "."):
        with modify_yaml(clone.folder / folder / "params.yaml") as raw:
            for key, value in {"lora.r": 8, "train.epochs": 1, "seed": 7, "tokenize.max_length": 64}.items():
                set_key(raw, key, value)
        shutil.rmtree(clone.folder / folder / "metrics")
    tests = [f"tests/{name}" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu and not slow", *tests]
    done = subprocess.run(command, cwd=clone.folder, env=stage_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
