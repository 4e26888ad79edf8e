"""The stages that use a GPU. DVC starts them by `launcher`, and each records its GPU while it runs."""

# Stage in dvc.yaml: its folder in outs/results and in outs/measurements.
GPU_STAGES = {"eval_base": "base", "train_qlora": "train", "eval_lora": "tuned"}
