"""Stage `train_qlora`: LoRA on the quantised base; the adapter of one epoch is kept, the best or the last."""

import gc

import pandas as pd

from stages.data.batching import TokenizedRows
from stages.data.task import Task
from stages.data.tokenization import load_configured_tokenizer
from stages.model.adapter import add_lora, count_parameters, save_adapter
from stages.model.base import load_base
from stages.model.devices import pick_device, report_out_of_memory
from stages.model.head import freeze_head
from stages.model.verify_saved import AdapterSnapshot, verify_saved_adapter
from stages.runtime import distributed, errors, files, params
from stages.runtime.usage_recorder import Recorder, read_versions
from stages.training import checkpoints, history
from stages.training.loss import balanced_weights, weigh_classes
from stages.training.trainer import make_trainer


def main() -> None:
    p = params.load()
    device = pick_device(p.device, p.threads)
    distributed.init_process_group(device)
    manifest, task = files.read_json("outs/base_model.json"), Task.read("outs/task.json")
    paths = {split: f"outs/tokenized/{split}.parquet" for split in ("train", "validation")}
    rows = {split: TokenizedRows(files.read_columns(path, ["input_ids", "label"])) for split, path in paths.items()}
    tokenizer = load_configured_tokenizer(manifest, p.tokenize.template)
    groups = {name: getattr(p, name).model_dump() for name in ("batches", "lora", "train")}
    groups["model"] = p.model.model_dump(exclude={"name", "revision"})  # the manifest's digest stands for these
    folder = checkpoints.TOP / checkpoints.run_digest(
        groups, task.classes, p.tokenize.max_length, p.seed, p.device, p.threads, manifest["digest"],
        [files.sha256(path) for path in paths.values()], checkpoints.code_digests(__file__), read_versions(device),
    )  # fmt: skip
    files.check_same_on_all_ranks(lambda: folder, "parameters, base, rows, versions, kind of GPU")

    with Recorder(device) as recorder:
        recorder.mark("before_loading")
        base = load_base(manifest, p.model, task.classes, device, p.seed, tokenizer)
        recorder.mark("loaded")
        classifier = add_lora(base, p.lora, p.seed)
        if p.train.class_weights == "balanced":
            weigh_classes(base, balanced_weights(rows["train"].labels, len(task.classes)))
        if p.train.freeze_head:
            freeze_head(classifier)
        trainer = make_trainer(
            classifier, rows["train"], rows["validation"], p, tokenizer.pad_token_id, folder, recorder
        )
        resumed = distributed.broadcast(checkpoints.checkpoint_to_resume(folder) if distributed.is_main() else None)
        files.check_same_on_all_ranks(
            lambda: resumed is None or resumed.exists(), f"{checkpoints.TOP}/, one folder for all machines,"
        )
        if resumed:
            print(f"resuming from {resumed}")
        recorder.mark("before_training")
        start = recorder.elapsed_seconds()
        with report_out_of_memory(
            f"params.yaml: train.batch_size: {p.train.batch_size} rows do not fit this GPU's memory; less takes "
            "train.dequantize_once: false, then train.gradient_checkpointing: true, or a smaller batch"
        ):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        seconds = checkpoints.seconds_before(resumed, trainer.state) + recorder.elapsed_seconds() - start
        recorder.mark("after_training")
    if not distributed.is_main():
        return

    steps, epochs = history.read_curves(trainer.state)
    best, last = history.best_epoch(epochs if p.train.keep == "best" else epochs[-1:]), epochs[-1]["epoch"]
    if best is None:
        checkpoints.remove_checkpoints(folder)
        raise errors.UserError(
            f"params.yaml: train.learning_rate: {p.train.learning_rate}: training diverged: the loss of epoch {last} "
            "is NaN or infinite; a smaller learning rate is needed"
        )
    if not history.is_finite(epochs[-1]):
        print(f"training diverged in epoch {last}: train.keep: best keeps epoch {best}")
    base_as = groups["model"] | {"name": manifest["name"], "revision": manifest["revision"]}
    reading = {
        "classes": task.classes, "seed": p.seed, "model": base_as, "tokenize": p.tokenize.model_dump(),
        "batches": groups["batches"],
    }  # fmt: skip
    parameters, trained = count_parameters(classifier), AdapterSnapshot.take(classifier, rows["validation"])
    with files.atomic_folder("outs/adapter") as adapter:
        save_adapter(classifier, tokenizer, manifest, reading, adapter)
        del base, classifier, trainer  # two bases at a time need not fit
        gc.collect()
        verify_saved_adapter(adapter, trained, manifest, p.model, device)
    with files.atomic_folder("outs/results/train") as results:
        files.write_csv(results / "steps.csv", pd.DataFrame(steps))
        files.write_csv(results / "epochs.csv", pd.DataFrame(epochs))
        files.write_json(results / "summary.json", {"best_epoch": best, "parameters": parameters})
    recorder.save("outs/measurements/train", {"seconds": seconds, "resumed": resumed is not None})
    checkpoints.remove_checkpoints(folder)


if __name__ == "__main__":
    errors.run(main)
