"""Compile all kernels of stages.kernels for a GPU that this machine need not have, with Triton's own ptxas.

    PYTHONPATH=.:tests python -m helpers.compile_kernels 75 float32 80 bfloat16

prints a line for each GPU: its compute capability, the shared memory that it gives a program, in bytes, and {kernel:
bytes that it uses}. A fork compiles for each, because Triton compiles a kernel only once in a process. The functions
that launch the kernels run as they are, with tensors on the CPU. Each kernel is compiled instead of launched, so the
tensors' values stay undefined.
"""

import dataclasses
import json
import os
import sys
from collections import defaultdict

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from stages.kernels import attention, dropout, gated_mlp, last_token_attention, lora_kernels, multi_tensor_copy, norm
from stages.kernels.attention import AttentionConfig, RowLayout, attention_backward, attention_forward

SHARED_MEMORY = {75: 64 * 1024, 80: 163 * 1024}  # bytes that a program may use, from CUDA's guide


class Target:
    """All that Triton asks of a GPU's driver before a launch."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_all(capability, dtype):
    """{kernel: bytes of shared memory that its largest variant uses}"""
    shared = defaultdict(int)

    def compile_kernel(kernel, grid):
        def launch(*args, **options):
            compiled = kernel.run(*args, grid=grid, warmup=True, **options)
            name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
            shared[name] = max(shared[name], compiled.metadata.shared)

        return launch

    triton.runtime.driver.set_active(Target(capability))
    JITFunction.__getitem__ = compile_kernel
    attention.shared_memory = lambda device: SHARED_MEMORY[capability]
    widest = 256 if dtype.itemsize == 2 else 128  # of the supported families
    launch_attention(AttentionConfig(4, 1, widest, 0.1, window=100), 64, dtype)
    launch_lora(64, 1024, dtype)
    if dtype.itemsize == 2:
        launch_attention(AttentionConfig(2, 2, 80, 0.1), 32, dtype)  # blocks of two parts
        launch_lora(32, lora_kernels.MANY_TOKENS, dtype)  # other tiles
    launch_dropout_and_copies(dtype)
    launch_norms_and_gate(dtype)
    return shared


def launch_attention(config, rotary, dtype):
    """All kernels of an attention."""

    tokens = 256
    qkv = torch.empty(tokens, sum(config.qkv_widths), dtype=dtype)
    dqkv, angles = torch.empty_like(qkv), torch.empty(tokens, rotary, dtype=dtype)
    layout = RowLayout(torch.tensor([0, tokens], dtype=torch.int32), tokens, angles, angles)
    out, lse = attention_forward(qkv, config, layout)
    attention_backward(qkv, out, lse, out, dqkv, config, layout)
    q, kv = qkv[:1, : config.qkv_widths[0]], torch.empty(tokens, 2 * config.qkv_widths[1], dtype=dtype)
    layout = dataclasses.replace(layout, last=torch.tensor([tokens - 1]))
    out, lse = last_token_attention.last_token_forward(q, kv, config, layout)
    last_token_attention.last_token_backward(q, kv, out, lse, out, q, config, layout)


def launch_lora(lora_rank, tokens, dtype):
    width, mask = 2048, make_mask(tokens)
    x, a = torch.empty(tokens, width, dtype=dtype), torch.empty(2, lora_rank, width, dtype=dtype)
    xu = lora_kernels.down_project(x, a, *mask, gelu=True)
    lora_kernels.compute_input_grad(xu, a, *mask, gelu=True, x=x)
    grads, offsets = torch.empty(a.numel()), torch.zeros(2, dtype=torch.int64)
    lora_kernels.write_a_grads(grads, offsets, lora_rank, xu[:, width:], x, *mask, add=False)


def launch_dropout_and_copies(dtype):
    x, mask = torch.empty(32, 2048, dtype=dtype), make_mask(32)
    dropout.apply_dropout([x, x], *mask, residual=x)
    dropout.apply_two_masks(x, *mask)
    multi_tensor_copy.MultiTensorCopy([(torch.empty(16, 64), torch.empty(16, 64, dtype=dtype), 1.0)]).run()


def make_mask(tokens):
    return dropout.Dropout(0.1, torch.zeros((), dtype=torch.int64), 0, torch.zeros(tokens, dtype=torch.int32))


def launch_norms_and_gate(dtype):
    x, weight = torch.empty(8, 1024, dtype=dtype, requires_grad=True), torch.empty(1024, dtype=dtype)
    rms = norm.Norm(weight, 1e-6, 1.0)
    normed, total = norm.add_norm(x, x, norm=rms, norm_y=rms)
    (normed + total).sum().backward()
    normed, total = norm.add_norm(x, norm=norm.Norm(weight, 1e-5, 0.0, weight))
    (normed + total).sum().backward()
    heads = norm.Norm(weight[:128], 1e-6, 0.0)
    norm.norm_heads(x, heads, heads, 4, 2).sum().backward()
    gated_mlp.GatedActivation.apply(x, True).sum().backward()


if __name__ == "__main__":
    for capability, dtype in zip(map(int, sys.argv[1::2]), sys.argv[2::2], strict=True):
        if os.fork() == 0:
            shared = compile_all(capability, getattr(torch, dtype))
            print(json.dumps([capability, SHARED_MEMORY[capability], shared]))
            sys.exit()
        if os.wait()[1]:
            sys.exit(1)
