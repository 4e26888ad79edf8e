"""The kernels compile for GPUs that the project supports and that its tests do not run on: a T4 and an A100."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.project import ROOT

pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")


@pytest.fixture(scope="module")
def shared_memory():
    """{compute capability: (bytes of shared memory, {kernel: bytes that it uses})}, with the activations' type there.

    The process is a new one, in which Triton does not interpret its kernels.
    """
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.compile_kernels", "75", "float32", "80", "bfloat16"],
        cwd=ROOT, env=env | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {capability: results for capability, *results in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("capability", [75, 80])
def test_all_kernels_compile_and_fit_the_shared_memory(shared_memory, capability):
    limit, shared = shared_memory[capability]
    sources = {path.stem: path.read_text() for path in (ROOT / "stages/kernels").glob("*.py")}
    kernels = {
        f"stages.kernels.{module}.{name}"
        for module, source in sources.items()
        for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)
    }
    assert kernels and kernels == set(shared)
    assert {name: used for name, used in shared.items() if used > limit} == {}
