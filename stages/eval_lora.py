"""Stage `eval_lora`: a new process loads base, adapter and head from disk, and predicts the test rows."""

from pathlib import Path

from stages.evaluation import evaluate
from stages.runtime import errors


def main() -> None:
    evaluate("tuned", adapter=Path("outs/adapter"))


if __name__ == "__main__":
    errors.run(main)
