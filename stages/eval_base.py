"""Stage `eval_base`: what the quantised base answers with an untrained head."""

from stages.model import evaluation_stage
from stages.runtime import errors


def main():
    evaluation_stage.evaluate("eval_base", adapter=None, name="base")


if __name__ == "__main__":
    errors.run(main)
