"""Stage `eval_base`: predict the test rows with the quantised base and an untrained head."""

from stages.evaluation import evaluate
from stages.runtime import errors


def main() -> None:
    evaluate("base", adapter=None)


if __name__ == "__main__":
    errors.run(main)
