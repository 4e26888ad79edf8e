"""An experiment in the workspace makes no test fail."""

import shutil

import pytest
from dvc.utils.serialize import modify_yaml
from helpers.clone import Clone
from helpers.parameters import set_key
from helpers.stages import run_module, stage_env

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
    env = stage_env(PYTHONPATH=str(clone.folder))
    done = run_module(
        "pytest", ["-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow", *tests], clone.folder, env
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
