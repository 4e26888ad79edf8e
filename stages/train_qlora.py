"""Stage `train_qlora`: LoRA on the quantised base; the best epoch's adapter is kept."""

from pathlib import Path

import pandas as pd

from stages.model import model
from stages.runtime import errors, files, monitor, params
from stages.task import batching
from stages.task.tokenizer import load_tokenizer
from stages.training import training


def main():
    p = params.load()
    device = model.pick_device(p.device, p.threads)
    manifest = files.read_json("models/base.json")
    tables = {split: files.read_table(f"data/tokenized/{split}.parquet") for split in ("train", "validation")}
    tokenizer = load_tokenizer(manifest)
    digests = [files.sha256(f"data/tokenized/{split}.parquet") for split in tables]
    groups = {name: getattr(p, name).model_dump() for name in ("batches", "lora", "train")}
    groups["model"] = p.model.model_dump(exclude={"name", "revision"})  # the manifest's digest stands for these
    checkpoints = Path("checkpoints") / training.run_digest(
        groups, p.tokenize.max_length, p.seed, p.device, p.threads, manifest["digest"], digests,
        training.code_digests(__file__), monitor.versions(device),
    )  # fmt: skip

    with monitor.Recorder(device) as recorder:
        recorder.mark("before_loading")
        base = model.load_base(manifest, p.model, device, p.seed, tokenizer)
        recorder.mark("loaded")
        classifier = model.add_lora(base, p.lora, p.seed, p.train.head)
        examples = {split: batching.as_examples(table) for split, table in tables.items()}
        trainer = training.make_trainer(
            classifier, examples["train"], examples["validation"], p, tokenizer.pad_token_id, checkpoints, recorder
        )
        resumed = training.checkpoint_to_resume(checkpoints)
        if resumed:
            print(f"resuming from {resumed}")
        recorder.mark("before_training")
        start = recorder.seconds()
        with model.out_of_memory_means(
            f"params.yaml: train.batch_size: {p.train.batch_size} rows do not fit this GPU's memory; less takes "
            "train.dequantize_once: false, then train.gradient_checkpointing: true, or a smaller batch"
        ):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        seconds = training.seconds_before(resumed, trainer.state) + recorder.seconds() - start
        recorder.mark("after_training")

    steps, epochs = training.history(trainer.state)
    keep_best = p.train.keep == "best"
    best = training.best_epoch(epochs if keep_best else epochs[-1:])
    if best is None:
        training.remove_checkpoints(checkpoints)
        raise errors.UserError(
            f"params.yaml: train.learning_rate: {p.train.learning_rate}: training diverged: the validation loss of "
            f"{'every' if keep_best else 'the last'} epoch is NaN or infinite; a smaller learning rate is needed"
        )
    base_as = groups["model"] | {"name": manifest["name"], "revision": manifest["revision"]}
    reading = {"seed": p.seed, "model": base_as, "tokenize": p.tokenize.model_dump(), "batches": groups["batches"]}
    model.save_adapter(classifier, tokenizer, manifest, reading, "models/adapter")
    with files.new_folder("results/train") as folder:
        pd.DataFrame(steps).to_csv(folder / "steps.csv", index=False)
        pd.DataFrame(epochs).to_csv(folder / "epochs.csv", index=False)
        summary = {"best_epoch": best, "parameters": model.count_parameters(classifier)}
        files.write_json(folder / "summary.json", summary)
    recorder.save("measurements/train", {"seconds": seconds, "resumed": resumed is not None})
    training.remove_checkpoints(checkpoints)


if __name__ == "__main__":
    errors.run(main)
