"""The stages that use a GPU: `launcher` starts them, and each records what it uses of the GPU."""

# The name of a stage in dvc.yaml: the name of its folder in outs/results and in outs/measurements.
GPU_STAGES = {"eval_base": "base", "train_qlora": "train", "eval_lora": "tuned"}
