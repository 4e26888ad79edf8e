"""Stage `eval_lora`: a fresh process loads base, adapter and head from disk, and predicts."""

from pathlib import Path

from stages.eval_base import evaluate
from stages.runtime import errors


def main() -> None:
    evaluate("tuned", adapter=Path("outs/adapter"))


if __name__ == "__main__":
    errors.run(main)
