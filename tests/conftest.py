"""The order of the tests, and their division between processes. The fixtures are in tests/helpers/fixtures.py."""

import gc
import os

import pytest
from execnet import XSpec
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Files that use one of the fixtures that run the demo pipeline, `repro` and `short_run`.
SHARE_REPRO = tuple(
    f"pipeline/test_{name}.py"
    for name in ("pipeline", "dvc_yaml", "predict", "export", "publish", "evaluate", "sharing")
)
# These and the files that take longest, longest first: a file that starts late leaves the other process idle.
LONGEST = (
    *SHARE_REPRO,
    *(f"{name}.py" for name in (
        "pipeline/test_own_data", "pipeline/test_train_stage", "pipeline/test_sweep", "unit/test_report",
        "faults/test_kill", "faults/test_process_failure", "unit/test_predict", "pipeline/test_init",
        "pipeline/test_several_processes", "pipeline/test_examples", "unit/test_kernels", "unit/test_kernel_compile",
        "unit/test_analysis", "pipeline/test_compare", "unit/test_families", "pipeline/test_folders", "unit/test_hub",
        "unit/test_multi_seed", "unit/test_benchmarks", "pipeline/test_long_training", "unit/test_fused_families",
        "faults/test_data_keys_fuzz", "unit/test_last_layer", "unit/test_predict_files",
    )),
)  # fmt: skip


def file_of(item_or_id: pytest.Item | str) -> str:
    """A test's file, relative to tests/."""
    return getattr(item_or_id, "nodeid", item_or_id).split("::")[0].removeprefix("tests/")


def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures, and with them PyTorch, except in the process that only distributes the tests of `-n`.

    Until all tests are imported, collect no garbage: nearly all objects stay, and the collections take 6 s.
    """
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        gc.disable()
        config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort fast tests to the front, so that a mistake shows in seconds.

    With several processes, sort the longest files to the front: one that starts last leaves the other processes idle.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(file_of(item), len(order)))
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if {"repro", "short_run"} & set(getattr(item, "fixturenames", ())):
        assert file_of(item) in SHARE_REPRO, "add this file to SHARE_REPRO, or two processes may run the demo"


def pytest_collection_finish() -> None:
    """Exempt all imported objects from garbage collection: a collection then takes 0.01 s instead of 0.3."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else nanobind, which Triton uses, reports all its functions as leaked


def pytest_xdist_setupnodes(config: pytest.Config, specs: list[XSpec]) -> None:
    """Let the workers be forks of one process that has imported the large libraries."""
    from helpers.shared_forks import SharedForks  # pytest adds tests/ to sys.path after it has imported this file

    forks = SharedForks()
    config.add_cleanup(forks.stop)
    for spec in specs:
        spec.python = forks.python


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """For `-n 3`. The mark `xdist_group` has no effect: xdist 3.8 does not find the marks of pytest 9.2."""
    return ByFixture(config, log)


class ByFixture(LoadScopeScheduling):
    """Runs all tests of a file in one process, and all files that use the fixture `repro` in one."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return "repro" if file in SHARE_REPRO else file
