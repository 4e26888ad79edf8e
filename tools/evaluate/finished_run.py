"""The finished run of the workspace: what `tools.evaluate` needs of it, and the check that it is finished."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stages import analyze
from stages.analysis.case_table import build_case_table
from stages.data.dataset import SEPARATOR, read_group_column
from stages.data.task import Task
from stages.report.run_description import RunDescription
from stages.runtime import files, params
from stages.runtime.errors import UserError
from tools.lock_params import flatten, hash_out
from tools.read_runs import WORKSPACE, check_finished, parse_yaml


@dataclass(frozen=True)
class FinishedRun:
    """The run in outs/.

    Attributes:
        description: with the run's own test rows.
        inputs: of `analyze`.
        earlier: {"train", "validation"}: the rows that the model has seen, with the text of their `group`.
    """

    description: RunDescription
    inputs: analyze.Inputs
    earlier: dict[str, pd.DataFrame]

    @classmethod
    def read(cls) -> "FinishedRun":
        """Read it from this folder.

        Raises:
            UserError: there is none, or outs/ or params.yaml are not those of dvc.lock.
        """
        for path in map(Path, ("params.yaml", "dvc.lock")):
            if not path.is_file():
                raise UserError(
                    f"{path}: not in this folder; run the command in a pipeline's folder, after `dvc repro`"
                )
        check_workspace()
        p, task = params.load(), Task.read("outs/task.json")
        description = analyze.describe_run(p, task, analyze.load_usage())
        earlier = {split: read_seen_rows(split, p.data, task) for split in ("train", "validation")}
        return cls(description, analyze.load_inputs(task), earlier)

    @property
    def task(self) -> Task:
        return self.description.task

    @property
    def params(self) -> params.Params:
        return self.description.params

    def build_cases(self) -> pd.DataFrame:
        """The case table of the run's own test rows."""
        inputs, references = self.inputs, self.params.analysis.references
        return build_case_table(inputs.base, inputs.tuned, inputs.tokenized, self.task, references)


def check_workspace() -> None:
    """Reject parameters or outs of another run than that of dvc.lock: the report would describe the wrong one."""
    parameters, lock = (parse_yaml(WORKSPACE, path, Path(path).read_bytes()) for path in ("params.yaml", "dvc.lock"))
    stages = lock.get("stages", {})
    outs = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
    check_finished(WORKSPACE, flatten(parameters), stages, outs)
    for path, md5 in outs.items():
        if path.startswith("outs/") and hash_out(Path(path)) != md5:
            raise UserError(f"{path}: missing, or not the one of dvc.lock; run `dvc repro`, or `dvc checkout`")


def read_seen_rows(split: str, data: params.Data, task: Task) -> pd.DataFrame:
    """The texts of a split. `group` is the text in the group column, for which outs/tokenized has a number."""
    rows = files.read_table(f"outs/tokenized/{split}.parquet", ["row", *task.text_columns])
    if task.group is None:
        return rows
    source = split if getattr(data.splits, split) is not None else "train"  # held-out rows keep their number there
    groups = read_group_column(files.read_columns(f"outs/splits/{source}.parquet", [task.group]), task.group)
    values = groups.iloc[rows["row"]].reset_index(drop=True)
    return rows.assign(group=values.fillna(SEPARATOR + split))  # no row of other data has this group
