"""Only a few modules ask whether a row has one class or any number of them: one or two for each concern."""

import re

from helpers.project import ROOT

ASKS = re.compile(
    r"\.multi_label\b|\.ndim [!=]= [12]\b|has_several_labels\(|isinstance\([^)]*(Single|Multi)Label\)"
    r"|\bis (not )?(Single|Multi)Label\b"
)
MAKES = "make_labels(self.classes, self.multi_label)"  # the object of a file's key, which is no question
MODULES = {
    "the form of a label": ["stages/data/labels.py", "stages/data/confusion.py", "stages/model/adapter_files.py"],
    "thresholds": ["stages/data/thresholds.py"],
    "held-out rows": ["stages/data/holdout.py"],
    "loss and temperature": ["stages/training/loss.py", "stages/training/calibration.py"],
    "references": ["stages/model/linear_probe.py", "stages/model/zero_shot.py", "stages/analysis/bag_of_words.py"],
    "measures": [
        "stages/analysis/measures.py", "stages/analysis/metrics.py", "stages/analysis/calibration.py",
        "stages/analysis/label_errors.py", "stages/analysis/slices.py", "stages/analysis/nli.py",
    ],
    "report and cards": [
        "stages/report/label_words.py", "stages/report/alarms.py", "stages/report/templates/exported_card.md",
    ],
    "answers of the tools": ["tools/answers.py", "tools/export.py"],
    "labels of other data": ["tools/evaluate/read_set.py"],
}  # fmt: skip
ALLOWED = {module for modules in MODULES.values() for module in modules}
FILES = [*ROOT.glob("stages/**/*.py"), *ROOT.glob("stages/report/templates/*"), *ROOT.glob("tools/**/*.py")]


def test_no_other_file_asks_for_the_kind_of_the_task():
    asking = {str(path.relative_to(ROOT)) for path in FILES if ASKS.search(path.read_text().replace(MAKES, ""))}
    assert not asking - ALLOWED, "use `task.labels`, `measures`, `label_words` or `answers`, or name the concern above"
    assert not ALLOWED - asking, "remove them from the list"
