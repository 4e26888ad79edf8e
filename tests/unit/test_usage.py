"""The measurements of a run: figures, device, and the joined samples of its stages."""

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
def test_the_figures_of_a_run_depend_on_its_device(run, figures, count, device):
    measured = usage.RunUsage.from_run(run)
    assert measured.record == figures
    assert (measured.process_count, measured.device) == (count, device)


@pytest.mark.parametrize("train, peak", [(OF_TWO, 1.5), (ON_GPUS, 8.5)])
def test_the_summary_has_the_seconds_and_the_memory_of_the_training(train, peak):
    measured = usage.Usage(*(usage.RunUsage.from_run(run) for run in (ON_CPU, train, ON_GPU)))
    assert measured.summarize() == {
        "peak_gb_train": peak, "seconds_eval_base": 3, "seconds_eval_tuned": 5, "seconds_train": train["seconds"],
    }  # fmt: skip


def test_samples_of_stages_follow_each_other_in_the_order_of_the_stages():
    first, second, third = (pd.DataFrame({"seconds": seconds}) for seconds in ([0.5, 2.0004], [1, 3], [1]))
    joined = usage.join_samples({"b": first, "a": second, "c": third})
    assert joined["seconds"].tolist() == [0.5, 2, 3, 5, 6]
    assert joined["stage"].tolist() == ["b", "b", "a", "a", "c"]
