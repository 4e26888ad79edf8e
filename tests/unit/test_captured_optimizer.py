"""The captured optimizer computes what clip_grad_norm_ and AdamW do: on a GPU by a CUDA graph, else eagerly."""

import copy
import io

import numpy as np
import pytest
import torch

from stages.training.captured_optimizer import CapturedAdamW

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
pytestmark = [pytest.mark.gpu] if ON_GPU else []
STEPS, MAX_NORM = 6, 1.0
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}


def make_groups():
    """Two groups with other weight decays, as the Trainer makes them. Gradients stay at their addresses."""
    generator = torch.Generator().manual_seed(0)
    sizes = [((300, 40), 0.1), ((70,), 0.1), ((30,), 0.0)]
    parameters = [(torch.randn(size, generator=generator).to(DEVICE), decay) for size, decay in sizes]
    groups = [
        {"params": [torch.nn.Parameter(p) for p, d in parameters if d == decay], "weight_decay": decay}
        for decay in (0.1, 0.0)
    ]
    for parameter in list_parameters(groups):
        parameter.grad = torch.empty_like(parameter)
    return groups


def list_parameters(groups):
    return [parameter for group in groups for parameter in group["params"]]


def make_schedule(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (STEPS + 1))


def write_grads(parameters, step, bad_value=None):
    """Gradients of norms from 0.01, which is not clipped, to 100."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad.copy_(torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 * 2 - 4))
    if bad_value and step == 3:
        parameters[-1].grad[0] = bad_value


def run(optimizer, schedule, steps, bad_value=None):
    """Norms of the steps."""
    norms = []
    for step in steps:
        write_grads(list_parameters(optimizer.param_groups), step, bad_value)
        optimizer.step()
        schedule.step()
        norms.append(optimizer.grad_norm.item())
    return norms


def run_reference(bad_value=None):
    """PyTorch's clipping and AdamW, with learning rates in fp32 -> norms, parameters."""
    groups, norms = make_groups(), []
    optimizer = torch.optim.AdamW(groups, **SETTINGS)
    schedule, parameters = make_schedule(optimizer), list_parameters(groups)
    for step in range(STEPS):
        write_grads(parameters, step, bad_value)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM).item())
        for group in optimizer.param_groups:
            group["lr"] = float(np.float32(group["lr"]))
        optimizer.step()
        schedule.step()
    return norms, parameters


def assert_same_bytes(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad_value", [None, float("inf"), float("nan")])
def test_the_weights_are_those_of_clipping_and_adamw(bad_value):
    expected_norms, expected = run_reference(bad_value)
    groups = make_groups()
    optimizer = CapturedAdamW(groups, MAX_NORM, **SETTINGS)
    norms = run(optimizer, make_schedule(optimizer), range(STEPS), bad_value)
    assert_same_bytes(list_parameters(groups), expected)
    np.testing.assert_array_equal(norms, expected_norms)
    assert (optimizer.graph is not None) == ON_GPU


def test_a_resumed_optimizer_continues_as_an_uninterrupted_one():
    groups = make_groups()
    optimizer = CapturedAdamW(groups, MAX_NORM, **SETTINGS)
    schedule = make_schedule(optimizer)
    run(optimizer, schedule, range(3))
    files = [io.BytesIO(), io.BytesIO()]
    for owner, file in zip((optimizer, schedule), files, strict=True):
        torch.save(owner.state_dict(), file)
        file.seek(0)
    weights = copy.deepcopy([parameter.detach() for parameter in list_parameters(groups)])
    norms = run(optimizer, schedule, range(3, STEPS))

    resumed_groups = make_groups()
    resumed = CapturedAdamW(resumed_groups, MAX_NORM, **SETTINGS)
    resumed_schedule = make_schedule(resumed)
    run(resumed, resumed_schedule, range(2))  # its graph has other tensors than the checkpoint
    for parameter, weight in zip(list_parameters(resumed_groups), weights, strict=True):
        parameter.data.copy_(weight)
    for owner, file in zip((resumed, resumed_schedule), files, strict=True):
        owner.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    assert run(resumed, resumed_schedule, range(3, STEPS)) == norms
    assert_same_bytes(list_parameters(resumed_groups), list_parameters(groups))


def test_its_checkpoint_is_adamws():
    states = []
    for optimizer in (CapturedAdamW(make_groups(), MAX_NORM, **SETTINGS), torch.optim.AdamW(make_groups(), **SETTINGS)):
        for step in range(3):
            write_grads(list_parameters(optimizer.param_groups), step)
            optimizer.step()
        states.append(optimizer.state_dict())
    actual, expected = states
    assert actual["param_groups"] == expected["param_groups"]
    assert all(isinstance(group["lr"], float) for group in actual["param_groups"])
    assert [list(values) for values in actual["state"].values()] == [list(v) for v in expected["state"].values()]


def test_gradients_at_other_addresses_are_used():
    groups = make_groups()
    optimizer, (_, expected) = CapturedAdamW(groups, MAX_NORM, **SETTINGS), run_reference()
    schedule, parameters = make_schedule(optimizer), list_parameters(groups)
    run(optimizer, schedule, range(3))
    old = [parameter.grad for parameter in parameters]  # keeps their memory
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    run(optimizer, schedule, range(3, STEPS))
    assert_same_bytes(parameters, expected)
    assert len(old) == len(parameters)
