"""How GPUs are chosen on a machine that has two or more: `pytest -m gpu tests/gpu/test_gpu_locks.py`."""

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

# The first seconds of a stage: `import stages` selects the GPU, then PyTorch asks CUDA for its GPUs.
STAGE = """
import os, time
import stages
start = time.monotonic()
from stages.runtime import gpu_selection, distributed
import torch
torch.ones(1, device="cuda", requires_grad=True).sum().backward()
time.sleep(1)
device = torch.device("cuda", distributed.local_rank())
names = [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
line = f"used {os.getpid()} {names[0]} {torch.cuda.device_count()} {start} {time.monotonic()}"
holder = gpu_selection._read_holder(names[0])[0]
os.write(1, f"{line} {holder}\\n".encode())
"""


@pytest.fixture
def start(tmp_path):
    """Function that starts a program with `device: cuda` in params.yaml. Its locks end with the test."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"device": "cuda"}))
    (tmp_path / "stage.py").write_text(STAGE)
    processes = []

    def begin(*command, visible):
        env = stage_env(TMPDIR=str(tmp_path), DVC_STAGE="train_qlora", DVC_PID=str(os.getpid()))
        env["CUDA_VISIBLE_DEVICES"] = visible
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def finish(processes):
    """Wait for processes and return their outputs. All exit codes must be 0."""
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def read_spans(outputs):
    """({GPU: sorted [(start, end)] of its use}, {number of GPUs that PyTorch saw}), from the stages' outputs."""
    spans, counts = defaultdict(list), set()
    for line in "".join(outputs).splitlines():
        if line.startswith("used "):
            _, process, gpu, count, start, end, holder = line.split()
            assert process == holder, "the process has locked the GPU that PyTorch uses"
            spans[gpu].append((float(start), float(end)))
            counts.add(int(count))
    return {gpu: sorted(times) for gpu, times in spans.items()}, counts


def do_not_overlap(times):
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def test_cuda_shows_what_pytorch_sees():
    torch_gpus = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    assert gpu_selection.list_visible_gpus() == torch_gpus


@pytest.mark.parametrize("form", ["numbers", "other order", "UUIDs", "prefixes", "an invalid one after them"])
def test_every_form_of_cuda_visible_devices_is_read(monkeypatch, form):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = gpu_selection.list_visible_gpus()
    two = gpus[:2]
    prefixes = [next(gpu[:n] for n in range(5, 41) if sum(g.startswith(gpu[:n]) for g in gpus) == 1) for gpu in two]
    value, names = {
        "numbers": ("0,1", two),
        "other order": ("1,0", two[::-1]),
        "UUIDs": (",".join(two[::-1]), two[::-1]),
        "prefixes": (",".join(prefixes), two),
        "an invalid one after them": ("1,-1,0", two[1:]),
    }[form]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpu_selection.list_visible_gpus() == names


def test_four_stages_run_on_two_gpus_two_at_a_time(start):
    two = gpu_selection.list_visible_gpus()[:2]
    outputs = finish([start("stage.py", visible=",".join(two)) for _ in range(4)])
    spans, counts = read_spans(outputs)
    assert counts == {1}
    assert sorted(spans) == sorted(two)
    assert sum(map(len, spans.values())) == 4
    assert all(map(do_not_overlap, spans.values()))
    assert sum(output.count("waiting for a GPU: ") for output in outputs) == 2


def test_two_runs_of_two_ranks_use_both_gpus_one_after_the_other(start):
    two = gpu_selection.list_visible_gpus()[:2]
    command = (*TORCHRUN[1:], "--standalone", "--nproc-per-node=2", "stage.py")
    outputs = finish([start(*command, visible=",".join(order)) for order in (two, two[::-1])])
    spans, counts = read_spans(outputs)
    assert counts == {2}
    assert {gpu: len(times) for gpu, times in spans.items()} == dict.fromkeys(two, 2)
    assert all(map(do_not_overlap, spans.values()))


def test_a_killed_stage_releases_its_gpu(start):
    one = gpu_selection.list_visible_gpus()[0]
    first = start("-c", f"import stages\nprint('locked', flush=True)\n{STAGE}\ntime.sleep(600)", visible=one)
    assert first.stdout.readline() == "locked\n"
    second = start("stage.py", visible=one)
    assert second.stdout.readline() == f"waiting for a GPU: {one} is held by process {first.pid}\n"
    first.kill()
    finish([second])
