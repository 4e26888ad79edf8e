"""Stage `eval_lora`: a fresh process loads base, adapter and head from disk, and predicts."""

from pathlib import Path

from stages.model import evaluation_stage
from stages.runtime import errors


def main():
    evaluation_stage.evaluate("eval_lora", adapter=Path("models/adapter"), name="tuned")


if __name__ == "__main__":
    errors.run(main)
