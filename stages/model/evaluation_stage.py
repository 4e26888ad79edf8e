"""What the two evaluation stages have in common: all but the adapter."""

from stages.model import evaluation, model
from stages.runtime import files, monitor, params
from stages.task import batching
from stages.task.tokenizer import load_tokenizer


def evaluate(title, adapter, name):
    """Predict the test rows; write what was found to results/, what the run measured of itself to measurements/.

    Args:
        title: names the progress bar.
        adapter: folder of a trained adapter, or None for the base alone.
        name: of the folder below each of the two.
    """
    p = params.load()
    device = model.pick_device(p.device, p.threads)
    manifest = files.read_json("models/base.json")
    table = files.read_table("data/tokenized/test.parquet")
    tokenizer = load_tokenizer(manifest)
    with monitor.Recorder(device) as recorder:
        recorder.mark("before_loading")
        classifier = model.load_base(manifest, p.model, device, p.seed, tokenizer)
        if adapter:
            classifier = model.load_adapter(classifier, adapter, manifest)
        evaluation.speed_up(classifier)
        recorder.mark("loaded")
        start = recorder.seconds()
        with model.out_of_memory_means(
            f"params.yaml: eval.batch_size: {p.eval.batch_size} rows do not fit this GPU's memory"
        ):
            probabilities = evaluation.predict(
                classifier,
                batching.as_examples(table),
                tokenizer.pad_token_id,
                p.eval.batch_size,
                p.batches,
                p.tokenize.max_length,
                title,
            )
        seconds = recorder.seconds() - start
        recorder.mark("after_evaluation")
    with files.new_folder(f"results/{name}") as folder:
        evaluation.prediction_table(table, probabilities).to_parquet(folder / "predictions.parquet", index=False)
        files.write_json(folder / "summary.json", {"parameters": model.count_parameters(classifier)})
    recorder.save(f"measurements/{name}", {"seconds": seconds, "rows_per_second": len(table) / seconds})
