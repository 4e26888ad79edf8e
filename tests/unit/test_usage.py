"""What a run measured of itself: its figures, its device, the stages laid end to end."""

import pandas as pd
import pytest

from stages.analysis import usage

ON_CPU = {"seconds": 3, "gpu": {"name": "cpu", "peak": 1.5}}
OF_TWO = {"seconds": 4, "gpu": {"name": "cpu", "peak": 1.5, "count": 2, "peak_sum": 2.5}}
ON_GPU = {"seconds": 5, "gpu": {"name": "H200", "peak": 7.5}}
ON_GPUS = {"seconds": 6, "gpu": {"name": "H200", "peak": 8.5, "count": 4}}


@pytest.mark.parametrize(
    "run, figures, count, device",
    [
        (ON_CPU, {"seconds": 3, "memory_peak_gb": 1.5}, 1, "CPU"),
        (OF_TWO, {"seconds": 4, "memory_peak_gb": 1.5, "processes": 2, "memory_peak_sum_gb": 2.5}, 2,
         "CPU, 2 processes"),
        (ON_GPU, ON_GPU, 1, "H200"),
        (ON_GPUS, ON_GPUS, 4, "4 GPUs (H200)"),
    ],
)  # fmt: skip
def test_figures_of_a_run_are_named_by_its_device(run, figures, count, device):
    found = usage.figures(run)
    assert found == figures
    assert (usage.process_count(found), usage.device(found)) == (count, device)


@pytest.mark.parametrize("train, peak", [(OF_TWO, 1.5), (ON_GPUS, 8.5)])
def test_runs_are_compared_by_seconds_and_the_trainings_memory(train, peak):
    measured = {"base": ON_CPU, "train": train, "tuned": ON_GPU}
    assert usage.summary({name: usage.figures(run) for name, run in measured.items()}) == {
        "peak_gb_train": peak, "seconds_eval_base": 3, "seconds_eval_tuned": 5, "seconds_train": train["seconds"],
    }  # fmt: skip


def test_stages_are_laid_end_to_end_in_their_order():
    first, second, third = (pd.DataFrame({"seconds": seconds}) for seconds in ([0.5, 2.0004], [1, 3], [1]))
    found = usage.end_to_end({"b": first, "a": second, "c": third})
    assert found["seconds"].tolist() == [0.5, 2, 3, 5, 6]
    assert found["stage"].tolist() == ["b", "b", "a", "a", "c"]
