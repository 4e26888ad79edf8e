"""A GPU for each process, on a machine of two and more: `pytest -m gpu tests/gpu/test_gpu_locks.py`."""

import itertools
import os
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
import yaml
from helpers.processes import TORCHRUN
from helpers.project import COMMITTED
from helpers.stages import stage_env

from stages.runtime import gpu_selection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees fewer than two CUDA GPUs"),
]

# A stage in its first seconds: `import stages` takes the GPU, then PyTorch asks CUDA what there is.
STAGE = """
import os, time
import stages
begun = time.monotonic()
from stages.runtime import gpu_selection, distributed
import torch
torch.ones(1, device="cuda", requires_grad=True).sum().backward()
time.sleep(1)
device = torch.device("cuda", distributed.local_rank())
names = [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
line = f"used {os.getpid()} {names[0]} {torch.cuda.device_count()} {begun} {time.monotonic()}"
holder = gpu_selection._read_holder(names[0])[0]
os.write(1, f"{line} {holder}\\n".encode())
"""


@pytest.fixture
def start(tmp_path):
    """Start a program in a folder whose params.yaml says `device: cuda`; its locks are this test's."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"device": "cuda"}))
    (tmp_path / "stage.py").write_text(STAGE)
    started = []

    def begin(*command, shown):
        env = stage_env(TMPDIR=str(tmp_path), DVC_STAGE="train_qlora", DVC_PID=str(os.getpid()))
        env["CUDA_VISIBLE_DEVICES"] = shown
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finish(processes):
    """What processes printed; all end well."""
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


def used(said):
    """{GPU: [(begun, ended)], in order}, {devices that PyTorch saw} of what stages printed."""
    spans, seen = defaultdict(list), set()
    for line in "".join(said).splitlines():
        if line.startswith("used "):
            _, process, name, count, begun, ended, holder = line.split()
            assert process == holder, "the lock is that of the GPU which PyTorch uses"
            spans[name].append((float(begun), float(ended)))
            seen.add(int(count))
    return {name: sorted(times) for name, times in spans.items()}, seen


def apart(times):
    return all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(times))


def test_cuda_shows_what_pytorch_sees():
    of_torch = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    assert gpu_selection.list_visible_gpus() == of_torch


@pytest.mark.parametrize("form", ["numbers", "other order", "UUIDs", "prefixes", "an invalid one after them"])
def test_cuda_visible_devices_is_obeyed_in_all_its_forms(monkeypatch, form):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    every = gpu_selection.list_visible_gpus()
    two = every[:2]
    prefixes = [next(name[:n] for n in range(5, 41) if sum(o.startswith(name[:n]) for o in every) == 1) for name in two]
    value, names = {
        "numbers": ("0,1", two),
        "other order": ("1,0", two[::-1]),
        "UUIDs": (",".join(two[::-1]), two[::-1]),
        "prefixes": (",".join(prefixes), two),
        "an invalid one after them": ("1,-1,0", two[1:]),
    }[form]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpu_selection.list_visible_gpus() == names


def test_four_stages_share_two_gpus_two_at_a_time(start):
    two = gpu_selection.list_visible_gpus()[:2]
    said = finish([start("stage.py", shown=",".join(two)) for _ in range(4)])
    spans, seen = used(said)
    assert seen == {1}
    assert sorted(spans) == sorted(two)
    assert sum(map(len, spans.values())) == 4
    assert all(map(apart, spans.values()))
    assert sum(text.count("waiting for a GPU: ") for text in said) == 2


def test_two_runs_of_two_ranks_take_both_gpus_in_turn(start):
    two = gpu_selection.list_visible_gpus()[:2]
    command = (*TORCHRUN[1:], "--standalone", "--nproc-per-node=2", "stage.py")
    said = finish([start(*command, shown=",".join(order)) for order in (two, two[::-1])])
    spans, seen = used(said)
    assert seen == {2}
    assert {name: len(times) for name, times in spans.items()} == dict.fromkeys(two, 2)
    assert all(map(apart, spans.values()))


def test_a_killed_stage_leaves_its_gpu(start):
    one = gpu_selection.list_visible_gpus()[0]
    first = start("-c", f"import stages\nprint('has it', flush=True)\n{STAGE}\ntime.sleep(600)", shown=one)
    assert first.stdout.readline() == "has it\n"
    second = start("stage.py", shown=one)
    assert second.stdout.readline() == f"waiting for a GPU: {one} is held by process {first.pid}\n"
    first.kill()
    finish([second])
