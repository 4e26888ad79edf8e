"""The notebook's recipe, an ordinary Trainer well set and ours, on one GPU in one process: time, memory.

    PYTHONPATH=. python benchmarks/compare.py MODEL DATA --out benchmarks/results/h100.json

MODEL is a folder with phi-2 or a model of its shape (benchmarks/random_phi.py): neither time nor memory depends on the
weights' values. DATA is a folder with SNLI's splits. After warm-up and captures each recipe takes as many steps as
take 1,000 rows once. They are timed in blocks, with a synchronisation between two. Ms a step is that of all blocks
together, since batches differ in length; beside it stand the fastest and the slowest block.
"""

import argparse
import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import table
import torch
from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from stages.model import evaluation, model
from stages.runtime import errors, monitor, params
from stages.sources import hub
from stages.task import batching, data
from stages.task.tokenizer import load_tokenizer
from stages.training import training

DEVICE = torch.device("cuda", 0)
GB = 1e9


class Clock(TrainerCallback):
    """Milliseconds a step, by blocks of `block` steps, after `warm_up` steps."""

    def __init__(self, warm_up, block):
        self.warm_up, self.block, self.times = warm_up, block, []

    def on_train_begin(self, args, state, control, **kwargs):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # captures are to count, loading is not

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.warm_up and (state.global_step - self.warm_up) % self.block == 0:
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    def blocks(self):
        """Milliseconds a step of each block, in their order."""
        return [(b - a) / self.block * 1e3 for a, b in pairwise(self.times)]


class RecorderByTurns(Clock):
    """The same, with a recorder that samples once a second in every second block, the first without."""

    recorder = None

    def on_step_end(self, args, state, control, **kwargs):
        ended = len(self.times)
        super().on_step_end(args, state, control, **kwargs)
        if len(self.times) == ended:
            return
        if self.recorder:
            self.recorder.__exit__()
        self.recorder = monitor.Recorder(DEVICE).__enter__() if len(self.times) % 2 == 0 else None


def notebook_base(folder, pad_id):
    """As published: NF4 with float16 products, all else fp32, reentrant checkpointing."""
    return prepare_model_for_kbit_training(quantised(folder, pad_id, torch.float16), use_gradient_checkpointing=True)


def notebook_model(folder, pad_id):
    """As published: LoRA on it, the head frozen."""
    lora = get_peft_model(notebook_base(folder, pad_id), lora_config())
    for name, parameter in lora.named_parameters():
        parameter.requires_grad_("lora" in name)
    return lora


def peer_model(folder, pad_id):
    """What a user would write today: NF4 with bf16 products, bf16 weights, no checkpointing."""
    return get_peft_model(quantised(folder, pad_id, torch.bfloat16), lora_config())


def quantised(folder, pad_id, dtype):
    """The base in NF4, its products and its other weights in `dtype`, as transformers makes it."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, quantization_config=config, device_map={"": DEVICE}, dtype=dtype
    )
    base.config.pad_token_id = pad_id
    return base


def lora_config():
    return LoraConfig(
        task_type=TaskType.SEQ_CLS, r=16, lora_alpha=64, lora_dropout=0.05, bias="none", target_modules="all-linear"
    )


def ordinary_trainer(peft_model, rows, tokenizer, batch_size, steps, **settings):
    """Hugging Face's Trainer as it is."""
    padding = settings.pop("padding")
    arguments = TrainingArguments(
        output_dir="/tmp/benchmark",
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-4,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        **settings,
    )
    collator = DataCollatorWithPadding(tokenizer, **padding)
    return Trainer(model=peft_model, args=arguments, train_dataset=rows, data_collator=collator)


def train_notebook(folder, rows, tokenizer, p, batch_size, steps):
    return ordinary_trainer(
        notebook_model(folder, tokenizer.pad_token_id), rows["notebook"], tokenizer, batch_size, steps,
        padding={"padding": "max_length", "max_length": 128}, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip


def train_peer(folder, rows, tokenizer, p, batch_size, steps):
    return ordinary_trainer(
        peer_model(folder, tokenizer.pad_token_id), rows["ours"], tokenizer, batch_size, steps,
        padding={"padding": "longest", "pad_to_multiple_of": 8}, bf16=True, optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length", dataloader_pin_memory=True,
    )  # fmt: skip


def train_ours(folder, rows, tokenizer, p, batch_size, steps, **changes):
    _, manifest = hub.fetch(SimpleNamespace(name=str(folder), revision=""), "model", str(folder))
    group = p.train.model_copy(update={"batch_size": batch_size, "keep": "last", **changes})
    p = p.model_copy(update={"train": group})
    classifier = model.add_lora(
        model.load_base(manifest, p.model, DEVICE, p.seed, tokenizer), p.lora, p.seed, "trained"
    )
    recorder = SimpleNamespace()  # only the name of the phase is set on it
    trainer = training.make_trainer(
        classifier, rows["ours"], rows["ours"][:100], p, tokenizer.pad_token_id, "/tmp/benchmark", recorder
    )
    trainer.args.max_steps, trainer.args.eval_strategy, trainer.args.save_strategy = steps, "no", "no"
    return trainer


VARIANTS = {
    "notebook": train_notebook,
    "trainer at its best": train_peer,
    "ours": train_ours,
    "ours, eager": functools.partial(train_ours, cuda_graphs=False),
    "ours, checkpointing": functools.partial(train_ours, gradient_checkpointing=True),
    "ours, dequantizing each": functools.partial(train_ours, dequantize_once=False),
}


def time_training(name, batch_size, warm_up, block, blocks, *inputs):
    """Train for warm_up + block * blocks steps; one line of the table."""
    clean()
    trainer = VARIANTS[name](*inputs, batch_size, warm_up + block * blocks)
    clock = Clock(warm_up, block)
    trainer.add_callback(clock)
    lengths = []  # of each batch's rows
    collate = trainer.data_collator

    def counting(batch):
        lengths.append([len(row["input_ids"]) for row in batch])
        return collate(batch)

    trainer.data_collator = counting
    with monitor.Recorder(DEVICE, interval=0.1) as recorder:
        try:
            trainer.train()
        except torch.OutOfMemoryError:
            return {"variant": name, "batch_size": batch_size, "error": "out of memory"}
        torch.cuda.synchronize()
        result = memory() | {"nvml_used_gb": max(sample["memory_gb"] for sample in recorder.samples)}
    times = clock.blocks()
    print(name, batch_size, [round(t, 1) for t in times])
    mean = statistics.mean(times)
    measured = lengths[warm_up : warm_up + block * blocks]
    step = getattr(trainer, "fast_step", None)
    captured = [graph is not None for graph in step.graphs.values()] if step else []
    del trainer
    return {
        "variant": name,
        "batch_size": batch_size,
        "ms_per_step": mean,
        "ms_median": statistics.median(times),
        "ms_fastest": min(times),
        "ms_slowest": max(times),
        "block_ms_per_step": times,
        "steps_per_block": block,
        "rows_per_second": statistics.mean(map(len, measured)) / mean * 1e3,
        "tokens_per_second": statistics.mean(map(sum, measured)) / mean * 1e3,
        "capture_seconds": step.capture_seconds if step else 0.0,
        "graphs": captured.count(True),
        "lengths_without_graph": captured.count(False),
        **result,
    }


def memory():
    return {
        "peak_allocated_gb": torch.cuda.max_memory_allocated(DEVICE) / GB,
        "peak_reserved_gb": torch.cuda.max_memory_reserved(DEVICE) / GB,
    }


def clean():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def time_recorder(folder, rows, tokenizer, p, block=63, blocks=12):
    """What watching costs: ms a step of ours with the recorder on in every second block, and ms to take one sample."""
    clean()
    trainer = train_ours(folder, rows, tokenizer, p, 16, block * (blocks + 2))
    turns = RecorderByTurns(2 * block, block)  # two epochs capture the graphs
    trainer.add_callback(turns)
    trainer.train()
    times, samples = turns.blocks(), []
    with monitor.Recorder(DEVICE) as recorder:
        for _ in range(100):
            begin = time.perf_counter()
            recorder.mark("now")
            samples.append((time.perf_counter() - begin) * 1e3)
    return {
        "ms_per_step_without": statistics.median(times[::2]),
        "ms_per_step_with": statistics.median(times[1::2]),
        "ms_fastest": min(times),
        "ms_slowest": max(times),
        "blocks_each": blocks // 2,
        "steps_per_block": block,
        "ms_per_sample": statistics.median(samples),
    }


def time_evaluation(folder, rows, tokenizer, p, repeats=3):
    """Rows a second, base and tuned: the notebook's one at a time, padded to 128, and ours."""
    results = []
    ids = [tokenizer.pad({"input_ids": [r["input_ids"]]}, padding="max_length", max_length=128, return_tensors="pt")
           for r in rows["notebook test"][:80]]  # fmt: skip
    for name, make in (("notebook, base", notebook_base), ("notebook, tuned", notebook_model)):
        clean()
        classifier = make(folder, tokenizer.pad_token_id).eval()
        speeds = [rows_per_second(16, one_by_one, classifier, part) for part in batched(ids, 16)]
        results.append({"variant": name, "batch_size": 1, **spread(speeds[1:]), **memory()})
        del classifier
    clean()
    _, manifest = hub.fetch(SimpleNamespace(name=str(folder), revision=""), "model", str(folder))
    classifier = model.load_base(manifest, p.model, DEVICE, p.seed, tokenizer)
    for name in ("ours, base", "ours, tuned"):
        if name == "ours, tuned":
            classifier = model.add_lora(classifier, p.lora, p.seed, "trained").eval()
        evaluation.speed_up(classifier)
        torch.cuda.reset_peak_memory_stats()
        speeds = [rows_per_second(len(rows["test"]), evaluation.predict, classifier, rows["test"],
                                  tokenizer.pad_token_id, p.eval.batch_size, p.batches, p.tokenize.max_length, name)
                  for _ in range(repeats + 1)]  # fmt: skip
        first = {"first_rows_per_second": speeds[0], "rows": len(rows["test"])}  # kernels are compiled and loaded in it
        results.append({"variant": name, "batch_size": p.eval.batch_size, **first, **spread(speeds[1:]), **memory()})
    return results


@torch.no_grad()
def one_by_one(classifier, batches):
    """As the notebook evaluates: a row, its answer, the next row."""
    for batch in batches:
        classifier(**batch.to(DEVICE)).logits.argmax().item()


def batched(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


def rows_per_second(rows, call, *inputs):
    """`call` ends with the answers on the host, so nothing is left to wait for."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call(*inputs)
    return rows / (time.perf_counter() - begin)


def spread(values):
    return {
        "rows_per_second": statistics.median(values),
        "slowest": min(values),
        "fastest": max(values),
        "repeats": len(values),
    }


def limits(tokens_per_step):
    """The least a step can take: frozen products forward and for the input's gradient at this GPU's measured rate, and
    the 4-bit weights read once for each (0.5 byte a weight, 4 bytes for 64 of them) at its measured bandwidth."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    source = torch.empty(4 * 2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds_product = median_seconds(lambda: a @ a)
    seconds_copy = median_seconds(lambda: target.copy_(source))
    weights = 32 * (4 * 2560**2 + 2 * 2560 * 10240)
    flops, moved = 4 * weights * tokens_per_step, 2 * weights * (0.5 + 4 / 64)
    rate, bandwidth = 2 * 8192**3 / seconds_product, 2 * source.numel() / seconds_copy
    return {
        "matrix_tflops": rate / 1e12,
        "bandwidth_tb_per_second": bandwidth / 1e12,
        "tokens_per_step": tokens_per_step,
        "product_ms": flops / rate * 1e3,
        "fewest_gb_moved": moved / GB,
        "moved_ms": moved / bandwidth * 1e3,
    }


def median_seconds(call, repeats=20):
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)[repeats // 2]


def load_rows(folder, tokenizer, p):
    """1,000 training rows, evenly spaced as published, and all test rows, as the notebook and as ours reads them."""
    source = SimpleNamespace(name=str(folder), revision="")
    splits = data.load_splits(folder, hub.fetch(source, "dataset", source.name)[1]["files"])
    train = data.resolve_unlabelled(data.choose(splits["train"], 1000), "drop")
    test = data.resolve_unlabelled(splits["test"], "drop")

    def examples(rows, template):
        return batching.as_examples(data.tokenize(rows, tokenizer, template, p.tokenize.max_length))

    glued = "{premise}{hypothesis}"
    as_lists = [{"input_ids": r["input_ids"].tolist(), "labels": r["labels"]} for r in examples(train, glued)]
    return {
        "notebook": as_lists,
        "notebook test": examples(test, glued),
        "ours": examples(train, p.tokenize.template),
        "test": examples(test, p.tokenize.template),
    }


def cpu_name():
    """The processor's name, where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(results):
    """Print the tables."""
    print(f"\n{'training':24}{'batch':>6}{'ms a step':>11}{'spread':>16}{'rows/s':>8}{'tokens/s':>10}"
          f"{'times':>7}{'peak GB':>9}{'reserved':>9}{'NVML':>7}{'capture s':>10}")  # fmt: skip
    notebook = table.notebook_ms(results["training"])
    for r in results["training"]:
        if "error" in r:
            print(f"{r['variant']:24}{r['batch_size']:6}  {r['error']}")
            continue
        times = notebook[r["batch_size"]] / r["ms_per_step"]
        print(f"{r['variant']:24}{r['batch_size']:6}{r['ms_per_step']:11.1f}"
              f"{r['ms_fastest']:8.1f}–{r['ms_slowest']:<7.1f}{r['rows_per_second']:8.0f}{r['tokens_per_second']:10.0f}"
              f"{times:7.1f}{r['peak_allocated_gb']:9.2f}{r['peak_reserved_gb']:9.2f}{r['nvml_used_gb']:7.2f}"
              f"{r['capture_seconds']:10.1f}")  # fmt: skip
    print(f"\n{'evaluation':24}{'batch':>6}{'rows/s':>9}{'spread':>16}{'peak GB':>9}")
    for r in results["evaluation"]:
        print(f"{r['variant']:24}{r['batch_size']:6}{r['rows_per_second']:9.1f}{r['slowest']:8.1f}–{r['fastest']:<7.1f}"
              f"{r['peak_allocated_gb']:9.2f}")  # fmt: skip
    print("\nrecorder: " + ", ".join(f"{key} {value:.2f}" for key, value in results["recorder"].items()))
    print("\nlimits: " + ", ".join(f"{key} {value:.2f}" for key, value in results["limits"].items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="commit of the code, where Git can't tell")
    arguments = parser.parse_args()

    p = params.load()
    source = SimpleNamespace(name=str(arguments.model), revision="")
    manifest = hub.fetch(source, "model", source.name)[1]
    tokenizer = load_tokenizer(manifest)
    rows = load_rows(arguments.data, tokenizer, p)
    inputs = (arguments.model, rows, tokenizer, p)
    plan = [  # of the 1,000 rows: 7 blocks of 9 batches of 16, or 4 of 2 of 128; ours captures for up to two epochs
        *[(name, 16, 8, 9, 7) for name in ("notebook", "trainer at its best", "ours, eager")],
        *[(name, 16, 126, 9, 7) for name in ("ours", "ours, dequantizing each", "ours, checkpointing")],
        *[(name, 128, 2, 2, 4) for name in ("notebook", "trainer at its best")],
        *[(name, 128, 24, 2, 4) for name in ("ours", "ours, dequantizing each")],
        ("notebook", 16, 8, 9, 7),  # once more at the end: a machine that has drifted would show
    ]
    results = {
        "gpu": torch.cuda.get_device_name(DEVICE),
        "cpu": f"{os.cpu_count()} cores, {cpu_name()}",  # eager recipes wait for it
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")},
        "command": "PYTHONPATH=. python " + " ".join(sys.argv),
        "commit": arguments.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "model": "phi-2's shape, random weights" if "random" in str(arguments.model) else str(arguments.model),
        "training": [],
        "evaluation": [],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def write():  # as it comes, so that a run that is cut short leaves what it measured
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")

    for line in tqdm(plan, desc="training"):
        results["training"].append(time_training(*line, *inputs))
        write()
    results["evaluation"] = time_evaluation(*inputs)
    write()
    results["recorder"] = time_recorder(*inputs)
    write()
    ours = next(r for r in results["training"] if r["variant"] == "ours")
    clean()
    results["limits"] = limits(ours["tokens_per_second"] * ours["ms_per_step"] / 1e3)
    write()
    show(results)


if __name__ == "__main__":
    errors.run(main)
