"""`analyze` on synthetic runs: its files, escaping, equal bytes, speed; and the page in a browser."""

import csv
import html
import html.parser
import itertools
import json
import re
import shutil
import time
import warnings
import xml.etree.ElementTree
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from helpers import browser, finished_run
from helpers.blank_figures import draw_svg
from helpers.finished_run import NLI as LABELS
from helpers.project import ROOT
from helpers.stages import run_stage
from huggingface_hub import ModelCard
from matplotlib import font_manager
from sklearn.metrics import matthews_corrcoef
from threadpoolctl import threadpool_limits

from stages import analyze
from stages.analysis import metrics as model_metrics
from stages.analysis.best_threshold import ThresholdEffect
from stages.analysis.calibration import Calibration, ProbabilityScores
from stages.analysis.case_table import probability_columns
from stages.analysis.coverage import Coverage, CoverageOfGoal
from stages.analysis.intervals import Interval
from stages.analysis.metrics import Estimate
from stages.analysis.paired_difference import Difference
from stages.data.labels import SingleLabel
from stages.data.task import Task
from stages.report import cases as page_rows
from stages.report import fonts, formatting, render, wording
from stages.report.figures.axes import share_limits
from stages.report.figures.confusion import draw_confusion
from stages.report.figures.coverage import draw_coverage
from stages.report.figures.learning_curves import draw_loss, draw_validation
from stages.report.figures.scores import select_slices
from stages.report.figures.usage import draw_usage
from stages.report.verdict import IN_A_SENTENCE, REFERENCE_NAMES, name_reference
from stages.runtime import errors, usage_samples

NO_YES = SingleLabel(("no", "yes"))
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
NASTY = """</script><script>document.title='pwned'</script><b>|`*\u2028 "quoted" & 'so'"""


def analyze_in(folder, **settings):
    """Run `analyze` on a synthetic run -> its metrics folder."""
    finished_run.make(folder, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    return folder / "metrics"


@pytest.fixture
def analyzed(tmp_path, blank_figures):
    return partial(analyze_in, tmp_path)


@pytest.fixture
def analyzed_with_figures(tmp_path, one_pixel_pngs):
    return partial(analyze_in, tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """Function that sets which functions draw their pictures in `analyze`. The other pictures are blank."""
    return lambda *functions: draw_svg(monkeypatch.setattr, functions)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """The metrics of a run on a CPU. The first row's texts contain markup, and a script that must not run."""
    return analyze_in(tmp_path_factory.mktemp("finished"), rows=220, model="assets/<i>nano & co</i>", text=NASTY)


@pytest.fixture(scope="module")
def gpu_metrics(tmp_path_factory):
    return analyze_in(
        tmp_path_factory.mktemp("finished"), gpu="NVIDIA H100", model="microsoft/phi-2", data="stanfordnlp/snli"
    )


NAMES = ('a "quoted" <name> & more', "$\\frac$", "Ärger über Größe", "x" * 60, "not tested", "not trained")
ODD = {
    "classes": NAMES, "columns": ("title", "<body> of it", "label"), "words": 90, "untrained": 0.2, "tuned": 0.7,
    "rows": 150, "shares": (0.4, 0.2, 0.2, 0.1, 0, 0.1), "train_shares": (0.4, 0.2, 0.2, 0.1, 0.1, 0),
    "train_rows": 120,
}  # fmt: skip
TWO = {"classes": ("ham", "spam"), "columns": ("text",), "shares": (0.9, 0.1), "train_shares": (0.8, 0.2)}
LONG = ("intent {}, which has a long name", "card_payment_number_{}_with_a_long_name")
MANY = {
    "classes": [LONG[number % 2].format(number) for number in range(77)], "columns": ("text",),
    "rows": 3000, "train_rows": 3000, "untrained": 0.02, "zero_shot": 0.1, "probe": 0.3, "tuned": 0.85,
}  # fmt: skip


@pytest.fixture(scope="module")
def odd_metrics(tmp_path_factory):
    """Three columns, texts of over 600 characters, uneven classes with odd names, one not tested, one not trained."""
    with pytest.MonkeyPatch.context() as patch:
        draw_svg(patch.setattr)
        return analyze_in(tmp_path_factory.mktemp("odd"), **ODD)


@pytest.fixture(scope="module")
def two_metrics(tmp_path_factory):
    """One column, two classes. Nine of ten rows have the first class, and twelve rows are truncated."""
    with pytest.MonkeyPatch.context() as patch:
        draw_svg(patch.setattr)
        return analyze_in(tmp_path_factory.mktemp("two"), rows=300, cut=12, **TWO)


@pytest.fixture(scope="module")
def many_metrics(tmp_path_factory):
    """77 classes. The file `seconds` next to the metrics has the processor time of `analyze`."""
    folder = finished_run.make(tmp_path_factory.mktemp("many"), **MANY)
    (folder / "seconds").write_text(str(seconds_of_analyze(folder)))
    return folder / "metrics"


def seconds_of_analyze(folder):
    """Run `analyze` on one thread -> its CPU seconds without imports, which hardly depend on other programs."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.chdir(folder)
        start = time.process_time()
        analyze.main()
        return time.process_time() - start


def page_of(metrics):
    """The page without the rows' data and the script."""
    return (metrics / "report.html").read_text().split('id="data"')[0]


def cells_of(page, heading):
    """Texts of the cells of the first table after a heading of the page, a list a line."""
    table = re.search(r"<tbody>(.*?)</tbody>", page[page.index(heading) :], re.DOTALL)[1]
    lines = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    cell = r"<t[hd][^>]*>(.*?)</t[hd]>"
    return [[html.unescape(re.sub("<[^>]+>", "", text)) for text in re.findall(cell, line)] for line in lines]


def picture_of(metrics, title):
    """The SVG of a picture of the page."""
    return re.search(rf'<svg role="img" aria-label="{title}".*?</svg>', page_of(metrics), re.DOTALL)[0]


def words_of(svg):
    """What a picture says, as text."""
    return [html.unescape(word) for word in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


CLASS_TABLE = '<th class="number">no.</th>'


def details(metrics):
    return json.loads((metrics / "details.json").read_text())


def measured(metrics, name):
    """What one of the three runs measured of itself."""
    return json.loads((metrics / "measurements/stages.json").read_text())[name]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_analyze_writes_exactly_the_files_that_dvc_yaml_declares(metrics):
    stage = PIPELINE["stages"]["analyze"]
    declared = {key.removeprefix("metrics/") for out in stage["outs"] for key in out}
    assert {path.name for path in metrics.iterdir()} == declared
    assert all(out == {key: {"cache": False}} for out in stage["outs"] for key in out)


def test_plots_of_dvc_yaml_have_their_columns(metrics):
    templates = {"linear", "confusion", "scatter", *(path.stem for path in (ROOT / ".dvc/plots").iterdir())}
    for (name, plot), *others in (list(entry.items()) for entry in PIPELINE["plots"]):
        assert not others and plot.get("template", "linear") in templates, name
        for path, columns in plot["y"].items():
            header = pd.read_csv(metrics.parent / path, nrows=0).columns
            assert {plot["x"], *([columns] if isinstance(columns, str) else columns)} <= set(header), name
        assert plot["title"] and plot["y_label"], name


def test_the_template_by_gpu_finds_its_columns(metrics):
    """DVC checks only the columns that dvc.yaml names. Vega draws nothing for a missing column."""
    template = (ROOT / ".dvc/plots/by_gpu.json").read_text()
    fields = {*re.findall(r'"field": "(\w+)"', template), *re.findall(r"datum\.(\w+)", template)}
    columns = fields - set(re.findall(r'"as": "(\w+)"', template)) - {"rev", "label"}
    assert {"gpu", "memory_sum_gb"} <= columns
    plots = [plot for entry in PIPELINE["plots"] for plot in entry.values() if plot.get("template") == "by_gpu"]
    sources = [source for plot in plots for source in plot["y"].items()]
    assert sources == [("metrics/measurements/usage.csv", name) for name in ("memory_gb", "utilization_percent")]
    assert columns | {"memory_gb"} <= set(pd.read_csv(metrics / "measurements/usage.csv", nrows=0).columns)
    assert "== 'memory_gb'" in template, "the plot that has a sum"


def test_scores_and_counts_agree_with_the_cases(metrics):
    cases = pd.read_csv(metrics / "cases.csv")
    comparison = details(metrics)["comparison"]
    scores = {"tuned": details(metrics)["tuned"], **comparison["references"]}
    assert len(scores) == 8 and scores["tuned"]["rows"] == 220
    for column, values in scores.items():
        assert values["accuracy"] == pytest.approx((cases[column] == cases["gold"]).mean())
        for key in ("accuracy", "f1_weighted"):
            assert values[f"{key}_interval"]["low"] < values[key] < values[f"{key}_interval"]["high"]
    assert comparison["best"] == max(comparison["references"], key=lambda name: scores[name]["accuracy"]) == "probe"
    assert comparison["outcomes"] == cases["outcome"].value_counts().to_dict()
    difference = scores["probe"]["difference"]
    assert difference["value"] == pytest.approx(scores["tuned"]["accuracy"] - scores["probe"]["accuracy"])
    assert difference["interval"]["low"] < difference["value"] < difference["interval"]["high"]
    assert difference["p"] < 0.001
    train = details(metrics)["train"]
    assert (train["best_epoch"], train["validation_loss"], train["parameters"]["trainable"]) == (2, 0.6, 1)
    run = measured(metrics, "train")
    assert "gpu" not in run and run["memory_peak_gb"] == 4.2


def test_the_metrics_of_dvc_are_few_and_finite(metrics):
    results = details(metrics)
    summary = json.loads((metrics / "summary.json").read_text())
    names = sorted(summary)  # as DVC shows them
    assert names[0] == "accuracy" and [name.split("_")[0] for name in names[-4:]] == ["peak", *["seconds"] * 3]
    assert summary == {
        **{key: results["tuned"][key] for key in ("accuracy", "calibration_error", "f1_macro", "f1_weighted")},
        "best_reference_accuracy": results["comparison"]["references"]["probe"]["accuracy"],
        "gain_accuracy": results["comparison"]["references"]["probe"]["difference"]["value"],
        "loss_test": results["tuned"]["loss"],
        "loss_train": 0.7,
        "loss_validation": 0.6,
        "parameters_trained": 1,
        "peak_gb_train": 4.2,
        **dict.fromkeys(("seconds_eval_base", "seconds_eval_tuned", "seconds_train"), 12.5),
    }
    assert PIPELINE["metrics"] == ["metrics/summary.json"]


@pytest.mark.usefixtures("one_pixel_pngs")
def test_measurements_are_in_other_files_than_results(tmp_path):
    """The same run on a machine that is slower and has less free memory. A pixel tells pictures apart."""
    first = contents(analyze_in(tmp_path, gpu="NVIDIA H100"))
    for name in ("base", "train", "tuned"):
        path = tmp_path / f"outs/measurements/{name}/run.json"
        run = json.loads(path.read_text())
        memory = {key: value if key == "name" else 3 * value for key, value in run["gpu"].items()}
        other = {"memory_plan": "gradient checkpointing"} if name == "train" else {}
        path.write_text(json.dumps(run | {"seconds": 99, "gpu": memory} | other))
        path = path.with_name("usage.csv")
        pd.read_csv(path).assign(memory_gb=9.0).to_csv(path, index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        analyze.main()
    second = contents(tmp_path / "metrics")
    measurements = {f"measurements/{name}" for name in ("stages.json", "usage.csv", "usage.png")}
    assert {name for name in first if first[name] != second[name]} == {"summary.json", "report.html", *measurements}


def test_each_table_with_row_numbers_says_how_they_are_counted(metrics):
    page, sentence = page_of(metrics), "Rows are those of test.csv, numbered as in a spreadsheet."
    places = page.count(">row</th>")
    assert places > 1 and page.count(sentence) == places
    assert f"The most confident errors. {sentence}" in (metrics / "report.md").read_text()
    cases = pd.read_csv(metrics / "cases.csv")
    assert list(cases.columns[:3]) == ["row", "file", "file_row"]
    assert (cases["file_row"] == cases["row"] + 2).all() and {*cases["file"]} == {"test.csv"}
    errors = pd.read_csv(metrics / "label_errors.csv")
    assert list(errors.columns[:3]) == ["row", "file", "file_row"]


def test_shown_rows_of_several_files_name_the_file():
    places = {"file": ["a.csv", "b.csv", "b.csv"], "file_row": [2, 2, 9]}
    cases = pd.DataFrame({"row": range(3), **places})
    assert page_rows.list_places(cases[1:], cases) == ["b.csv: 2", "b.csv: 9"]
    assert page_rows.explain_places(cases) == "Rows are those of 2 files, numbered as in a spreadsheet."
    only = cases[1:]
    assert page_rows.list_places(only, only) == ["2", "9"]
    assert page_rows.explain_places(only.assign(file="x/a.parquet")) == "Rows are those of x/a.parquet, counted from 1."


def test_the_alarms_are_among_the_details(metrics, odd_metrics):
    for folder in (metrics, odd_metrics):
        alarms = [f"**Alarm:** {alarm}" for alarm in details(folder)["alarms"]]
        assert re.findall(r"^\*\*Alarm:.*", (folder / "report.md").read_text(), re.MULTILINE) == alarms
    assert alarms


def test_the_page_says_what_training_chose_for_the_gpus_memory(gpu_metrics, metrics):
    sentence = "What training chose for the GPU's memory: "
    assert f"{sentence}{finished_run.MEMORY_PLAN}." in page_of(gpu_metrics)
    assert measured(gpu_metrics, "train")["memory_plan"] == finished_run.MEMORY_PLAN
    assert sentence not in page_of(metrics)


@pytest.mark.usefixtures("blank_figures")
def test_a_new_metric_needs_only_one_entry(tmp_path, monkeypatch):
    """The entry of a Matthews correlation puts it in every output with metrics, with interval and the hub's name."""

    def matthews(counts):
        right, gold, predicted = np.moveaxis(counts, -2, 0)
        rows = gold.sum(axis=-1)
        apart = [rows**2 - (side**2).sum(axis=-1) for side in (gold, predicted)]
        return (right.sum(axis=-1) * rows - (gold * predicted).sum(axis=-1)) / np.sqrt(apart[0] * apart[1])

    entry = model_metrics.Metric(
        "matthews",
        "Matthews correlation",
        lambda p: matthews(p.counts),
        interval=lambda p: Interval(matthews(p.counts) - 0.1, matthews(p.counts) + 0.1),
        form="number",
        hub=("matthews_correlation", None),
    )
    monkeypatch.setattr(model_metrics, "METRICS", (*model_metrics.METRICS, entry))
    metrics = analyze_in(tmp_path, rows=100)
    cases = pd.read_csv(metrics / "cases.csv")
    scores = details(metrics)["tuned"]
    value, ends = scores["matthews"], scores["matthews_interval"]
    assert value == pytest.approx(matthews_corrcoef(cases["gold"], cases["tuned"]))
    assert ends["low"] < value < ends["high"]
    texts = [f"{value:.3f}", f"{ends['low']:.3f} to {ends['high']:.3f}"]
    for name in ("report.md", "model_card.md"):
        assert "| Matthews correlation | {} ({}) |".format(*texts) in (metrics / name).read_text().splitlines(), name
    row = re.search(r"<tr><th>Matthews correlation</th>.*?</tr>", (metrics / "report.html").read_text())[0]
    assert re.findall(r">([^<>]+)</span>", row) == texts
    data = ModelCard.load(metrics / "model_card.md").data
    assert data.metrics == ["accuracy", "f1", "matthews_correlation"]
    (result,) = (r for r in data.eval_results if r.metric_type == "matthews_correlation")
    assert result.metric_name == "Matthews correlation"
    assert result.metric_value == pytest.approx(details(metrics)["tuned"]["matthews"], abs=5e-5)


def test_the_report_explains_how_its_claims_are_tested(gpu_metrics):
    for name in ("report.md", "report.html"):
        assert "Each of these 7 claims is tested at 95% by itself" in (gpu_metrics / name).read_text(), name


def test_a_class_that_is_neither_gold_nor_predicted_has_no_f1(analyzed):
    """With one row, two classes are neither gold nor predicted."""
    metrics = analyzed(rows=1, tuned=1)
    scores = details(metrics)["tuned"]
    (gold,) = scores["f1"]
    assert scores["f1"][gold] == scores["f1_macro"] == 1
    page = (metrics / "report.html").read_text()
    scores = {line[1]: line[2:5] for line in cells_of(page, CLASS_TABLE)}
    for label in LABELS:
        assert scores[label] == (["100.0%"] * 3 if label == gold else ["–"] * 3), label


ODD_TEXTS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tA1", "\r=1", "a\rb", "a\r\nb\nc", 'a "b", c', "'quoted'", "", "plain ="]


@pytest.mark.usefixtures("blank_figures")
def test_odd_texts_are_read_back_from_the_cases_and_are_no_formulas(tmp_path, monkeypatch):
    finished_run.make(tmp_path, rows=len(ODD_TEXTS))
    path = tmp_path / "outs/results/tuned/predictions.parquet"
    pd.read_parquet(path).assign(text_premise=ODD_TEXTS, text_hypothesis=ODD_TEXTS[::-1]).to_parquet(path)
    monkeypatch.chdir(tmp_path)
    analyze.main()
    expected = [f"'{text}" for text in ODD_TEXTS[:6]] + ODD_TEXTS[6:]
    by_pandas = pd.read_csv("metrics/cases.csv", keep_default_na=False)
    with open("metrics/cases.csv", newline="", encoding="utf-8") as file:
        by_csv = list(csv.DictReader(file))
    for rows in (by_pandas.to_dict("records"), by_csv):
        assert [row["text_premise"] for row in rows] == expected
        assert [row["text_hypothesis"] for row in rows] == expected[::-1]
        assert [row["gold"] in LABELS and float(row["tuned_p_neutral"]) <= 1 for row in rows] == [True] * len(rows)
    assert by_pandas["tuned_p_neutral"].dtype == float and by_pandas["negated"].dtype == bool


@pytest.mark.parametrize("classes", [("=1+2", "plain ="), ("-", "+", "@SUM(A1)")])
def test_a_class_that_looks_like_a_formula_is_no_formula_in_any_csv(analyzed, classes):
    metrics = analyzed(classes=classes, columns=("text",), rows=40)
    quoted = {name if name == "plain =" else f"'{name}" for name in classes}
    for name in ("reference", "tuned"):
        table = pd.read_csv(metrics / f"plots/confusion_{name}.csv")
        assert set(table["actual"]) == quoted, "DVC's plot pairs the two columns by these names"
        assert set(table["predicted"]) <= quoted and table["predicted"].nunique() > 1
    for path in metrics.rglob("*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell in classes and cell != "plain ="], path


def test_no_interval_collapses_if_all_predictions_are_right(analyzed):
    metrics = analyzed(rows=100, probe=1, tuned=1)
    interval = details(metrics)["comparison"]["references"]["probe"]["difference"]["interval"]
    assert interval["low"] == pytest.approx(-interval["high"]) and 0.03 < interval["high"] < 0.05
    report = (metrics / "report.md").read_text()
    assert "**Not worth it:** the same accuracy as the best reference, a linear probe on the frozen base" in report
    assert "interval of the difference is −3.7 to +3.7 (p = 1.000)" in report
    scores = details(metrics)["tuned"]
    for name in ("accuracy", "f1_weighted", "f1_macro"):
        assert 0.94 < scores[f"{name}_interval"]["low"] < 0.99 and scores[f"{name}_interval"]["high"] == 1, name


@pytest.mark.usefixtures("blank_figures")
def test_repeated_rows_narrow_no_interval(tmp_path):
    """Each row occurs once, or four times. Repeated rows contain no new information."""
    once, often = (analyze_in(folder(tmp_path / str(copies)), rows=80, copies=copies) for copies in (1, 4))
    widths = []
    for metrics in (once, often):
        tuned, references = details(metrics)["tuned"], details(metrics)["comparison"]["references"]
        intervals = [scores[key] for scores in (tuned, *references.values()) for key in scores if "_interval" in key]
        intervals += [scores["difference"]["interval"] for scores in references.values()]
        widths.append(np.array([ends["high"] - ends["low"] for ends in intervals]))
    assert len(widths[0]) == 33 and (widths[1] > 0.99 * widths[0]).all()
    first, second = (details(metrics)["comparison"]["references"]["probe"]["difference"] for metrics in (once, often))
    assert second["p"] >= first["p"] and first["design_effect"] == 1 and second["design_effect"] >= 4
    for report, effects in ((once, "accuracy 1.00"), (often, "accuracy 4.04")):
        for name in ("report.md", "report.html", "model_card.md"):
            assert f"design effect ({effects}, difference from the best reference " in (report / name).read_text(), name
    first, second = (pd.read_csv(metrics / "plots/slices_tuned.csv") for metrics in (once, often))
    narrower = (second["high"] - second["low"]) < (first["high"] - first["low"]) - 1e-12
    assert len(first) > 10 and not narrower.any()


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"rows": 1},
        {"rows": 2, "probe": 0, "tuned": 1},
        {"probe": 1, "tuned": 1},
        {"probe": 0, "tuned": 0},
        {"tuned": 0.1},
        {"probe": None, "zero_shot": None, "untrained": None},
    ],
    ids=str,
)
def test_any_outcome_makes_a_report_without_nan(analyzed_with_figures, settings):
    metrics = analyzed_with_figures(**settings)
    for path in metrics.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    for name in ("report.md", "report.html", "model_card.md"):
        assert not re.search(r"\bnan\b", (metrics / name).read_text().split('id="data"')[0]), name


def test_the_explanation_of_the_intervals_is_about_the_leading_metric(metrics, two_metrics):
    for folder, words, other in ((metrics, "has Tango", "in macro F1 has"), (two_metrics, "in macro F1 has", "Tango")):
        for name in ("report.html", "report.md", "model_card.md"):
            text = (folder / name).read_text()
            assert words in text and other not in text, name


def test_classes_with_few_test_rows_are_named_next_to_the_intervals(analyzed, metrics):
    few = analyzed(rows=12)
    for name in ("report.md", "report.html", "model_card.md"):
        caution = "Classes with fewer than 10 test rows: "
        text = (few / name).read_text()
        assert text.index("macro F1") < text.index(caution), name
        assert caution not in (metrics / name).read_text(), name


def test_a_loss_that_is_not_finite_is_a_dash(tmp_path, monkeypatch, drawn):
    """Epoch 2 is kept. The first epoch began with infinite losses, the last one ended in NaN."""
    drawn(draw_loss, draw_validation)
    folder = finished_run.make(tmp_path, model="microsoft/phi-2", data="stanfordnlp/snli")
    epochs, steps = (pd.read_csv(folder / f"outs/results/train/{name}.csv") for name in ("epochs", "steps"))
    epochs["train_loss"] = [float("inf"), 0.7, float("nan")]
    epochs["validation_loss"] = [float("inf"), 0.6, float("nan")]
    steps.loc[3, "loss"], steps.loc[30:, "loss"] = float("inf"), float("nan")
    epochs.to_csv(folder / "outs/results/train/epochs.csv", index=False)
    steps.to_csv(folder / "outs/results/train/steps.csv", index=False)
    monkeypatch.chdir(folder)
    analyze.main()
    metrics = folder / "metrics"
    for path in metrics.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    losses = {line[0]: line[-2:] for line in cells_of(page_of(metrics), ">loss<")}
    assert losses["1"] == losses["3"] == ["–", "–"] and losses["2"] == ["0.700", "0.600"]
    for path in (*metrics.glob("report.*"), metrics / "model_card.md", *metrics.glob("plots/*s.csv")):
        assert not re.search(r"\b(nan|inf)\b", path.read_text().split('id="data"')[0]), path.name
    for title, name in (("Loss", "training"), ("Validation", "accuracy")):
        assert {name, "kept, epoch 2", "1", "2", "3"} <= set(words_of(picture_of(metrics, title)))


def test_the_report_of_a_gpu_run_shows_the_gpu(gpu_metrics):
    assert measured(gpu_metrics, "train")["gpu"]["after_training"] == 4.0
    page = (gpu_metrics / "report.html").read_text()
    assert "allocated by PyTorch" in page and "NVIDIA H100" in page
    assert "GPU 0" not in page and "A line for each" not in page


def test_the_report_of_a_run_on_two_gpus_shows_both(analyzed, drawn):
    drawn(draw_usage)
    metrics = analyzed(gpu="NVIDIA H100", gpus=2)
    for name in ("report.md", "report.html", "model_card.md"):
        assert "2 GPUs (NVIDIA H100)" in (metrics / name).read_text(), name
    caption = "One line for each of the 2 GPUs. The panel between memory and load is their total memory."
    for name in ("report.md", "report.html"):
        assert caption in (metrics / name).read_text(), name
    words = words_of(picture_of(metrics, "Memory and load"))
    assert {"GPU 0", "GPU 1", "memory, GB", "of all, GB", "load, %"} <= set(words)
    assert measured(metrics, "train")["gpu"]["peak_sum"] == 8
    assert json.loads((metrics / "summary.json").read_text())["peak_gb_train"] == 4.2
    usage = pd.read_csv(metrics / "measurements/usage.csv")
    assert usage.groupby("stage")["gpu"].agg(set).tolist() == 3 * [{0, 1}]
    assert usage["seconds"].is_monotonic_increasing


def test_the_report_of_two_processes_on_a_cpu_shows_their_number_and_memory(analyzed, drawn):
    drawn(draw_usage)
    metrics = analyzed(gpus=2)
    assert "CPU, 2 processes" in (metrics / "report.md").read_text()
    assert {"process 0", "process 1"} <= set(words_of(picture_of(metrics, "Memory and load")))
    run = measured(metrics, "train")
    assert (run["processes"], run["memory_peak_gb"], run["memory_peak_sum_gb"]) == (2, 4.2, 8)


@pytest.mark.parametrize("gpus", [2, 9])
def test_each_gpu_of_several_has_its_line_and_all_have_their_sum(gpus):
    samples = [
        [{"seconds": second, "memory_gb": 1.0 + gpu, "utilization_percent": 10.0 * gpu} for second in range(4)]
        for gpu in range(gpus)
    ]
    table = usage_samples.merge_samples([0.0] * gpus, samples)
    figure = draw_usage(table.assign(stage="train_qlora"), True, render.ON_WHITE)
    lines = [
        [list(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) == [0, 1, 2, 3]]
        for axes in figure.axes
    ]
    assert lines[0] == [[1.0 + gpu] * 4 for gpu in range(gpus)]
    assert lines[2] == [[10.0 * gpu] * 4 for gpu in range(gpus)]
    colours = [line.get_color() for line in figure.axes[0].lines[:gpus]]
    assert len({tuple(colour) for colour in colours}) == gpus
    (summed,) = (line.get_ydata() for line in figure.axes[1].lines if len(line.get_xdata()) > 2)
    assert summed[-1] == sum(range(1, gpus + 1)) < figure.axes[1].get_ylim()[1]
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == (["GPU 0", "GPU 1"] if gpus == 2 else ["GPU 0", "GPU 8"])


@pytest.mark.parametrize("model, data, shown", [
    ("microsoft/phi-2", "stanfordnlp/snli", True),
    ("/home/you/phi-2", "../copies/snli/", True),
    ("microsoft/phi-2", "assets/everyday-nli", False),
    ("microsoft/phi-1_5", "stanfordnlp/snli", False),
])  # fmt: skip
def test_only_a_run_of_phi_2_on_snli_is_compared_with_the_published_report(analyzed, model, data, shown):
    metrics = analyzed(rows=3, model=model, data=data)
    page, report = page_of(metrics), (metrics / "report.md").read_text()
    for part in ("The published report is a student", "Do its claims hold", 'href="#published"', "91.0%"):
        assert (part in page) == shown, part
    for part in ("The published report is a student", "| claim | verdict |", "the published figures"):
        assert (part in report) == shown, part


DUPLICATES = "5 of 60 test rows (8.3%) are duplicates of training rows: scores may be too high."
NEW_PREMISES = "with a training row: rows of a new premise may score lower."


@pytest.mark.parametrize(
    "in_train, sentences",
    [
        ((0, 0), ["No test row is also a training row, and none shares its premise with one."]),
        ((0, 1), [f"1 of 60 test rows shares its premise {NEW_PREMISES}", "No test row is also a training row."]),
        ((0, 7), [f"7 of 60 test rows share their premise {NEW_PREMISES}"]),
        ((1, 0), ["1 of 60 test rows (1.7%) is a duplicate of a training row: scores may be too high."]),
        ((5, 50), [DUPLICATES, f"50 of the other 55 test rows share their premise {NEW_PREMISES}"]),
        ((5, 1), [DUPLICATES, f"1 of the other 55 test rows shares its premise {NEW_PREMISES}"]),
    ],
)
def test_test_rows_that_were_trained_on_or_share_a_group_are_counted(analyzed, in_train, sentences):
    metrics = analyzed(in_train=in_train)
    for name in ("report.md", "report.html", "model_card.md"):
        text = (metrics / name).read_text()
        assert text.count("Warning:") == sum(count > 0 for count in in_train), name
        assert all(sentence in text for sentence in sentences), name
    assert details(metrics)["data"]["test"]["in_train"] == dict(zip(("rows", "groups"), in_train, strict=True))


def test_equal_inputs_make_equal_bytes(gpu_metrics, tmp_path):
    """Also in another process, whose hashes have another seed."""
    shutil.copytree(gpu_metrics.parent, tmp_path / "again", ignore=shutil.ignore_patterns("metrics"))
    done = run_stage("analyze", tmp_path / "again", PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    first, second = contents(gpu_metrics), contents(tmp_path / "again/metrics")
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) >= 20


def in_order(text, parts):
    places = [text.index(part) for part in parts]
    assert places == sorted(places), list(zip(parts, places, strict=True))


def test_page_and_markdown_have_the_same_sections_in_the_same_order(gpu_metrics):
    headings = re.findall("<h2 id=[^>]*>([^<]*)</h2>", page_of(gpu_metrics))
    assert headings == [
        "The tuned model and its references", "Where the tuned model is wrong", "Can you trust its probabilities?",
        "Training", "Data", "The published report", "All test rows", "Memory and load",
    ]  # fmt: skip
    report = (gpu_metrics / "report.md").read_text()
    assert re.findall("^## (.*)$", report, re.MULTILINE) == [name for name in headings if name != "All test rows"]
    for text in (page_of(gpu_metrics), report):
        in_order(text, ["above the best reference", "seed", "and its references", "most confident errors"])


def test_each_section_of_the_page_is_in_its_contents(gpu_metrics, metrics):
    for folder in (gpu_metrics, metrics):
        page = page_of(folder)
        assert re.findall('href="#([^"]*)"', page.split("<svg")[0]) == re.findall('<h2 id="([^"]*)"', page)


def test_what_was_run_names_seed_versions_and_digests(metrics):
    for name in ("report.html", "report.md", "model_card.md"):
        text = html.unescape((metrics / name).read_text())
        for words in ("m" * 64, "d" * 64, "python 3.11", "learning_rate 0.001", "tokens read", "order grouped"):
            assert words in text, (name, words)
    facts = re.search(r'<dl class="facts">(.*?)</dl>', page_of(metrics), re.DOTALL)[1]
    assert f"({'d' * 12}…)" in facts and "<dd>42</dd>" in facts
    assert "<details><summary>Everything that was run" in page_of(metrics)


def test_the_most_confident_errors_have_the_highest_probabilities(odd_metrics):
    cases = pd.read_csv(odd_metrics / "cases.csv", keep_default_na=False)
    wrong = cases[cases["tuned"] != cases["gold"]].sort_values("tuned_probability", ascending=False)[:10]
    lines = cells_of(page_of(odd_metrics), "most confident errors")
    best = details(odd_metrics)["comparison"]["best"]
    assert [line[4:] for line in lines] == [
        [case["gold"], case["tuned"], f"{case['tuned_probability'] * 100:.1f}%", case[best]]
        for _, case in wrong.iterrows()
    ]
    for line, row, text in zip(lines, wrong["file_row"], wrong["text_title"], strict=True):
        assert line[:2] == [str(row), f"{text[:100]}…"]  # 300 characters for three columns
    assert all(f"| {line[0]} | {line[1]} |" in (odd_metrics / "report.md").read_text() for line in lines)


def test_another_task_has_nothing_of_nli(metrics, odd_metrics, two_metrics, many_metrics):
    words = ("published", "premise", "hypothesis", "entailment", "overlap is", "claims", "natural language inf")
    for name in ("report.md", "report.html", "model_card.md", "details.json", "cases.csv"):
        texts = [(folder / name).read_text().lower() for folder in (odd_metrics, two_metrics, many_metrics)]
        for word in words:
            assert not any(word in text for text in texts), (name, word)
    assert "high overlap, wrongly entailment" in page_of(metrics)


@pytest.mark.parametrize("settings, words, colour", [
    ({"probe": 0.3, "zero_shot": 0.3}, "Worth it", "good"),
    ({"probe": 0.85}, "Too close to tell", "open"),
    ({"probe": 1, "tuned": 0.5}, "Not worth it", "bad"),
])  # fmt: skip
def test_the_verdict_is_in_words_and_in_its_colour(analyzed, settings, words, colour):
    metrics = analyzed(rows=200, **settings)
    comparison = details(metrics)["comparison"]
    score = comparison["references"][comparison["best"]]
    value, (low, high) = score["difference"]["value"], (score["difference"]["interval"][end] for end in ("low", "high"))
    reason = (
        f"{abs(value) * 100:.1f} points of accuracy {'above' if value > 0 else 'below'} the best reference, "
        f"{IN_A_SENTENCE[comparison['best']]} ({score['accuracy']:.1%}). The 95% interval of the difference is "
        f"{low * 100:+.1f} to {high * 100:+.1f} (p "
    ).replace("-", "−")
    assert comparison["verdict"] == words.lower()
    assert ("With more test rows it would be narrower." in page_of(metrics)) == (words == "Too close to tell")
    assert f'<strong class="{colour}">{words}:</strong> {reason}' in page_of(metrics)
    assert f'<b class="{colour}">{details(metrics)["tuned"]["accuracy"]:.1%}</b>' in page_of(metrics)
    for name in ("report.md", "model_card.md"):
        assert f"**{words}:** {reason}" in (metrics / name).read_text(), name


def test_the_gain_is_split_between_a_trained_head_and_lora(metrics):
    comparison = details(metrics)["comparison"]
    head, lora = (comparison[key]["value"] for key in ("head_gain", "lora_gain"))
    majority = comparison["references"]["majority_class"]["accuracy"]
    assert majority + head + lora == pytest.approx(details(metrics)["tuned"]["accuracy"])
    sentence = (
        f"Always answering the most frequent class of the training rows has an accuracy of {majority:.1%}. "
        "A head trained on the frozen "
        f"base (the linear probe) adds {head * 100:.1f} points, and LoRA adds {lora * 100:.1f} points."
    )
    for name in ("report.html", "report.md", "model_card.md"):
        assert sentence in (metrics / name).read_text(), name


def test_each_reference_has_its_score_and_its_paired_difference(metrics):
    lines = cells_of(page_of(metrics), '<th class="number">tuned minus this')
    words = words_of(picture_of(metrics, "Accuracy"))
    for key, scores in details(metrics)["comparison"]["references"].items():
        (line,) = (line for line in lines if line[0].startswith(name_reference(key, SingleLabel(LABELS))))
        ends, difference = scores["accuracy_interval"], scores["difference"]
        assert line[1].startswith(f"{scores['accuracy']:.1%} ({ends['low'] * 100:.1f} to"), key
        assert line[2].startswith(f"{difference['value'] * 100:+.1f} ({difference['interval']['low'] * 100:+.1f} to"), (
            key
        )
        assert ("best reference" in line[0]) == (key == "probe")
        assert words[words.index("accuracy on the test rows") :].count(f"{scores['accuracy']:.1%}") >= 1
    assert {line[0].split(" only")[0] for line in lines if " only" in line[0]} == {
        "words of premise", "words of hypothesis"
    }  # fmt: skip


@pytest.mark.usefixtures("blank_figures")
def test_a_reference_that_was_left_out_has_a_sentence(tmp_path):
    folder = finished_run.make(tmp_path, rows=20, zero_shot=None)
    path = folder / "outs/results/base/summary.json"
    summary = json.loads(path.read_text())
    summary["references"]["zero_shot"] = {"left_out": "two classes begin with the same token"}
    path.write_text(json.dumps(summary))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    for name in ("report.html", "report.md"):
        text = (folder / "metrics" / name).read_text()
        assert "Zero-shot is left out: two classes begin with the same token." in text, name


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("answers, sentence", [
    ({0: 0, 1: 0, 2: 0}, "The tuned model answers entailment to all 60 test rows: it learnt nothing."),
    ({0: 0, 1: 1, 2: 1}, "The tuned model never answers contradiction, but test rows have this class."),
])  # fmt: skip
def test_alarms_about_the_answers_come_right_after_the_verdict(tmp_path, answers, sentence):
    folder = finished_run.make(tmp_path, rows=60)
    path = folder / "outs/results/tuned/predictions.parquet"
    table = pd.read_parquet(path)
    table.assign(prediction=table["prediction"].map(answers)).to_parquet(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    page = page_of(folder / "metrics")
    assert f'</p>\n  <p class="notice alarm"><strong>Alarm:</strong> {sentence}</p>' in page.split('class="verdict"')[1]
    for name in ("report.md", "model_card.md"):
        assert f"\n\n**Alarm:** {sentence}\n" in (folder / "metrics" / name).read_text(), name


def rows_with_texts(metrics):
    """Numbers of the rows whose texts are in cases.csv, on the page, and in the table of report.md, from 0."""
    cases = pd.read_csv(metrics / "cases.csv", keep_default_na=False)
    rows = json.loads((metrics / "report.html").read_text().split('id="data">')[1].split("</script>")[0])
    lines = re.findall(r"^\| (\d+) \| [^|]* number \d+\. \|", (metrics / "report.md").read_text(), re.MULTILINE)
    in_cases = cases["row"][cases["text_premise"] != ""]
    return set(in_cases), {int(row[0]) - 2 for row in rows if any(row[1])}, {int(line) - 2 for line in lines}


def be_sure_of_errors(folder):
    """Change a run so that the tuned model's probability of each wrong prediction is 1."""
    be_sure(folder, lambda table: table["prediction"] != table["label"])


def be_sure(folder, choose=lambda table: table["row"] >= 0):
    """Change a run so that the tuned model's probability of each prediction is 1, in the rows that are chosen."""
    path = folder / "outs/results/tuned/predictions.parquet"
    table = pd.read_parquet(path)
    rows = choose(table).to_numpy()
    columns = [f"p_{name}" for name in LABELS]
    table.loc[rows, columns] = np.eye(3)[table["prediction"][rows]]
    table.to_parquet(path)


@pytest.mark.usefixtures("one_pixel_pngs")
@pytest.mark.parametrize("texts", ["all", "errors", "none"])
def test_only_the_texts_of_analysis_texts_are_written(tmp_path, texts):
    """Each premise ends with its row's number, so that a text in any file shows its row."""
    folder = finished_run.make(tmp_path, rows=200)
    path = folder / "params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["analysis"]["texts"] = texts
    path.write_text(yaml.safe_dump(raw))
    be_sure_of_errors(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    metrics = folder / "metrics"
    cases = pd.read_csv(metrics / "cases.csv", keep_default_na=False)
    errors = set(cases["row"][cases["tuned"] != cases["gold"]])
    allowed = {"all": set(range(200)), "errors": errors, "none": set()}[texts]
    files = [path for path in metrics.rglob("*") if path.is_file() and path.suffix != ".png"]
    written = {int(row) for path in files for row in re.findall(r"at number (\d+)\.", path.read_text())}
    assert written == allowed and 10 < len(errors) < 60
    suspects = pd.read_csv(metrics / "label_errors.csv", keep_default_na=False)
    assert set(suspects["row"]) == errors and (suspects["text_premise"] != "").all() == (texts != "none")
    in_cases, on_page, in_report = rows_with_texts(metrics)
    assert in_cases == on_page == allowed and in_report <= allowed and bool(in_report) == bool(allowed)
    assert (">premise</th>" in page_of(metrics)) == (texts != "none")
    assert len(cells_of(page_of(metrics), "most confident errors")) == 10


def test_with_uneven_classes_the_report_leads_with_macro_f1(metrics, two_metrics):
    results = details(two_metrics)
    share, rows = results["tuned"]["f1_macro"], results["data"]["test"]["classes"]
    why = (
        "leads with macro F1, in which every class has the same weight, because the classes are uneven: "
        f"{rows['ham']} test rows are ham, {rows['spam']} are spam."
    )
    assert share != results["tuned"]["accuracy"]
    assert f"{share:.1%}</b><small>macro F1 of the tuned model" in page_of(two_metrics)
    comparison = results["comparison"]
    difference = comparison["references"][comparison["best"]]["difference"]["value"]
    assert f"{abs(difference) * 100:.1f} points of macro F1 " in page_of(two_metrics)
    lines = cells_of(page_of(two_metrics), '<th class="number">macro F1</th>')
    for key, name in REFERENCE_NAMES.items():
        (cell,) = (line[1] for line in lines if line[0].startswith(name))
        assert cell.startswith(f"{comparison['references'][key]['f1_macro']:.1%}"), name
    assert "macro F1 on the test rows" in words_of(picture_of(two_metrics, "Macro F1"))
    for name in ("report.html", "report.md", "model_card.md"):
        assert why in (two_metrics / name).read_text(), name
    assert "<small>accuracy of the tuned model, " in page_of(metrics) and "uneven" not in page_of(metrics)


def test_cells_of_few_classes_have_rows_and_shares(two_metrics):
    cases = pd.read_csv(two_metrics / "cases.csv")
    words = words_of(picture_of(two_metrics, "Confusion"))
    for gold, predicted in itertools.product(("ham", "spam"), repeat=2):
        of_gold = cases[cases["gold"] == gold]
        count = (of_gold["tuned"] == predicted).sum()
        place = words.index(str(count))
        assert words[place + 1] == formatting.whole_percent(count / len(of_gold)), (gold, predicted)
    assert [words.count(name) for name in ("ham", "spam")] == [2, 2]


@pytest.mark.parametrize(
    "share, expected",
    [(0, "0%"), (0.009, "<1%"), (0.01, "1%"), (0.5, "50%"), (0.99, "99%"), (0.991, ">99%"), (1, "100%")],
)
def test_a_whole_percent_is_0_or_100_only_if_the_share_is(share, expected):
    assert formatting.whole_percent(share) == expected


def test_many_classes_are_a_heat_map_and_a_table_of_confusions(many_metrics):
    cases = pd.read_csv(many_metrics / "cases.csv")
    svg = picture_of(many_metrics, "Confusion")
    assert not {"1", "2", "3"} & set(words_of(svg)) and "predicted class, by its number" in words_of(svg)
    filled = cases.groupby(["gold", "tuned"]).ngroups
    squares = sum(path.count("M ") for path in re.findall(r'd="([^"]*)"[^>]*opacity', svg.replace("\n", " ")))
    assert squares == filled
    wrong = cases[cases["gold"] != cases["tuned"]]
    rows = wrong.groupby(["gold", "tuned"]).size()
    lines = cells_of(page_of(many_metrics), "<th>gold class</th>")
    assert len(lines) == 10 and [int(line[2]) for line in lines] == sorted(rows, reverse=True)[:10]
    for gold, tuned, count, share in lines:
        assert rows[gold, tuned] == int(count)
        assert share == f"{int(count) / (cases['gold'] == gold).sum():.1%}"
        report = (many_metrics / "report.md").read_text().replace("<wbr>", "")
        assert f"| {gold} | {tuned} | {count} | {share} |" in report


def test_few_classes_need_no_table_of_confusions(two_metrics):
    assert "share of" not in page_of(two_metrics).split("<h3>By class")[1].split("caption>")[2]
    assert "| gold class |" not in (two_metrics / "report.md").read_text()


@pytest.mark.parametrize("classes", [2, 4, 5, 10, 11, 30, 31])
def test_the_axes_show_the_names_of_classes_if_there_is_space(classes):
    names = (*(f"{number} of {classes}" for number in range(classes - 1)), "name " * 12)
    counts = np.eye(classes, dtype=int) * 7
    with warnings.catch_warnings(action="error"):  # matplotlib warns of a layout without space
        _, svg = render.render(partial(draw_confusion, counts, counts.sum(axis=1), names, "class"))
    words = words_of(svg)
    assert words.count("7") == (classes if classes <= 10 else 0)
    assert words.count(f"0 of {classes}") == (0 if classes > 30 else 2)
    assert ("name name n…me name name" in words) == (classes <= 30)


@pytest.fixture
def system_fonts(monkeypatch):
    """Function that sets the only font files of the system."""
    caches = (fonts.find_families, fonts._characters)

    def only(*paths):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in paths])
        monkeypatch.setattr(font_manager.fontManager, "ttflist", [
            entry for entry in font_manager.fontManager.ttflist if entry.fname.startswith(matplotlib.get_data_path())
        ])  # fmt: skip
        for cache in (*caches, font_manager.fontManager._findfont_cached):
            cache.cache_clear()

    yield only
    monkeypatch.undo()
    for cache in (*caches, font_manager.fontManager._findfont_cached):
        cache.cache_clear()


def font_file(folder, family, characters):
    """A font with a square for each of some characters, and no other characters."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    glyphs = [".notdef", *(f"u{ord(character):x}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(character): f"u{ord(character):x}" for character in characters})
    builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(folder / f"{family}.ttf")
    return folder / f"{family}.ttf"


ANIMALS = {"classes": ("猫", "犬と狐", "bird"), "columns": ("文本",), "rows": 60}


@pytest.mark.usefixtures("one_pixel_pngs")
@pytest.mark.parametrize("has_font", [True, False], ids=["a font has them", "no font has them"])
def test_class_names_that_matplotlibs_font_lacks_are_in_a_system_font_or_become_numbers(
    tmp_path, system_fonts, has_font
):
    part = font_file(tmp_path, "A part", "猫文本")
    system_fonts(part, font_file(tmp_path, "B all", "猫犬と狐文本")) if has_font else system_fonts(part)
    with warnings.catch_warnings(action="error"):  # matplotlib warns of a missing glyph
        metrics = analyze_in(tmp_path / "run", **ANIMALS)
    words = words_of(picture_of(metrics, "Confusion"))
    labels = ANIMALS["classes"] if has_font else ("0", "1", "2")
    assert set(labels) <= set(words) and ("bird" in words) == has_font
    assert ("predicted class, by its number" in words) != has_font
    assert ("The table of all classes has the numbers of the axes." in page_of(metrics)) != has_font
    slices = words_of(picture_of(metrics, "Slices"))
    assert [word.split(" (")[0] for word in slices[slices.index("accuracy") + 2 :][:3]] == list(labels)
    assert "words of 文本 only" not in words and "words in 文本" in slices, "both fonts have the column's name"
    numbers = [cells[:2] for cells in cells_of(page_of(metrics), CLASS_TABLE)]
    assert numbers == [[str(number), name] for number, name in enumerate(ANIMALS["classes"])]


def test_a_column_name_that_no_font_has_is_shown_as_boxes_without_a_warning(tmp_path, system_fonts, one_pixel_pngs):
    system_fonts()
    with warnings.catch_warnings(action="error"):
        metrics = analyze_in(tmp_path, **ANIMALS)
    assert "words in □□" in words_of(picture_of(metrics, "Slices"))


def test_for_names_that_matplotlibs_font_has_no_other_font_is_searched(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("asked"))
    counts = np.eye(2, dtype=int)
    names = ("Ärger", "Łódź")
    fonts.find_families.cache_clear()
    assert "WenQuan" not in render.render(partial(draw_confusion, counts, np.ones(2), names, "class"), names)[1]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("short", "short"),
        ("1234567890", "1234567890"),
        ("1234567890a", "1234…7890a"),
        ("two\n lines", "two lines"),
        ("ｗｉｄｅ１", "ｗｉｄｅ１"),
        ("ｗｉｄｅ１２", "ｗｉ…１２"),
    ],
)
def test_a_cut_name_has_an_ellipsis(name, expected):
    assert render.shorten(name, 10) == expected


@pytest.mark.parametrize("name, expected", [("五つの文字", "五つの文字"), ("六つの文字だ", "六つ…字だ")])
def test_a_chinese_or_japanese_character_is_as_wide_as_two(name, expected):
    assert render.shorten(name, 10) == expected


@pytest.mark.parametrize(
    "values, least, ends",
    [
        ([0.94, 0.96], 0.05, (0.925, 0.975)),  # no wider than necessary, but small differences must not look large
        ([0.5, 0.9], 0.05, (0.46, 0.94)),
        ([1, 1], 0.1, (0.95, 1)),
        ([0.01, 0.02, np.nan], 0.1, (0, 0.065)),
        ([np.nan], 0.1, (0, 1)),
    ],
)
def test_an_axis_is_as_narrow_as_its_values_allow(values, least, ends):
    assert share_limits(values, least) == pytest.approx(ends)


def test_the_kept_epoch_is_marked_and_the_caption_says_why_it_was_kept(metrics, tmp_path, blank_figures):
    for title in ("Loss", "Validation"):
        assert "kept, epoch 2" in words_of(picture_of(metrics, title))
    assert page_of(metrics).count("whose adapter is used: the one with the lowest validation loss") == 2
    folder = finished_run.make(tmp_path, rows=5)
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("keep: best", "keep: last"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    assert page_of(folder / "metrics").count("whose adapter is used: the last") == 2


@pytest.mark.parametrize("low, high, words", [
    (1.6, 2.5, "Without it the model was overconfident there: right less often"),
    (0.5, 0.9, "Without it the model was underconfident there: right more often"),
    (0.9, 1.2, "The interval contains 1, so these rows don't show whether it is needed."),
])  # fmt: skip
def test_the_temperature_and_its_interval_are_explained(low, high, words):
    scores = ProbabilityScores(0.1, 0.5, 0.4)
    (text, scale) = wording.explain_calibration(Calibration(1.05, low, high, 100, scores), 0.4, NO_YES)
    assert f"a temperature of 1.05 (95% interval {low} to {high})" in text and words in text
    assert "fitted to 100 validation rows" in text
    assert scale.startswith("On the test rows it lowers the loss from 0.500 to 0.400.") and "a loss of 0.693" in scale


def test_a_temperature_that_changes_little_leaves_the_loss_as_it_is():
    scores = ProbabilityScores(0.1, 0.4001, 0.4)
    (_, change) = wording.explain_calibration(Calibration(1.05, 0.9, 1.2, 100, scores), 0.4002, NO_YES)
    assert change.startswith("On the test rows it leaves the loss at 0.400.")


def test_accuracies_that_all_rows_or_no_rows_have_share_a_sentence():
    best = Coverage(0.95, 1, Interval(0.9, 1), 0.4)
    coverage = {goal: CoverageOfGoal(found, None) for goal, found in {"90%": best, "95%": best, "99%": None}.items()}
    assert wording.explain_coverage(coverage) == [
        "With an accuracy of 90% or 95% it can answer all rows.", "With an accuracy of 99% it can answer no rows."
    ]  # fmt: skip


def test_few_validation_rows_are_a_warning_about_the_temperature():
    scores = ProbabilityScores(0.1, 0.5, 0.4)
    few, enough = (wording.calibration_warnings(Calibration(1, 1, 1, rows, scores)) for rows in (49, 50))
    assert "only 49 validation rows" in few[0] and not enough


def test_scores_with_and_without_the_temperature_are_next_to_each_other(metrics):
    tuned, without = details(metrics)["tuned"], details(metrics)["calibration"]["without"]
    lines = {line[0]: line[1:] for line in cells_of(page_of(metrics), "with the temperature")}
    assert lines["loss (cross-entropy)"] == [f"{scores['loss']:.3f}" for scores in (tuned, without)]
    assert lines["expected calibration error"] == [f"{scores['calibration_error']:.1%}" for scores in (tuned, without)]
    assert len(set(lines["loss (cross-entropy)"])) == 2


def test_likely_label_errors_are_a_table_and_a_file(many_metrics, two_metrics):
    listed = pd.read_csv(many_metrics / "label_errors.csv")
    page, report = page_of(many_metrics), (many_metrics / "report.md").read_text()
    lines = cells_of(page, ">Likely label errors<")
    assert len(listed) > 10 == len(lines)
    for line, (_, row) in zip(lines, listed.iterrows(), strict=False):
        assert line[:3] == [str(row["file_row"]), row["text_text"], row["gold"]] and line[4] == row["predicted"]
        assert line[5] == f"{row['probability']:.1%}" and 0 < float(line[3][:-1]) < 1
    assert f"the gold label of {len(listed)} test rows nearly impossible" in page
    assert f"{len(listed)} likely label errors: " in report
    assert pd.read_csv(two_metrics / "label_errors.csv").empty and "Likely label errors" not in page_of(two_metrics)


@pytest.mark.usefixtures("blank_figures")
def test_gold_classes_that_the_model_never_predicts_are_no_likely_label_errors(tmp_path):
    """The model is sure. It has an error in a class that it predicts, and never predicts contradiction."""
    answers = [[0.95, 0.05, 0], [0.02, 0.98, 0], [0.9, 0.1, 0]]
    folder = finished_run.make(tmp_path, rows=200, tuned=np.array(answers), shares=(0.48, 0.48, 0.04))
    be_sure(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    listed = pd.read_csv(tmp_path / "metrics/label_errors.csv")
    cases = pd.read_csv(tmp_path / "metrics/cases.csv")
    wrong = cases[(cases["tuned"] != cases["gold"]) & (cases["gold"] != "contradiction")]
    assert set(listed["row"]) == set(wrong["row"]) and (cases["gold"] == "contradiction").any() and len(listed) > 1
    sentences = "the model may be sure and wrong. Classes that it never predicts are left out."
    report = (tmp_path / "metrics/report.md").read_text()
    assert f"{len(listed)} likely label errors: " in report and sentences in report
    assert f"the gold label of {len(listed)} test rows nearly impossible" in page_of(tmp_path / "metrics")


def test_the_share_of_rows_that_it_can_answer_is_a_sentence(tmp_path, drawn):
    """A tuned model that is surer of its right predictions."""
    drawn(draw_coverage)
    folder = finished_run.make(tmp_path, rows=300, tuned=0.8)
    for path in ("outs/results/tuned/predictions.parquet", "outs/results/train/validation.parquet"):
        table = pd.read_parquet(folder / path)
        right = (table["prediction"] == table["label"]).to_numpy()
        sure = np.where(right, 0.5 + 0.5 * np.arange(len(table)) / len(table), 0.4 + 0.3 * (table["row"] % 5 == 0))
        shares = np.full((len(table), 3), ((1 - sure) / 2)[:, None])
        shares[np.arange(len(table)), table["prediction"]] = sure
        table[[f"p_{name}" for name in LABELS]] = shares
        table.to_parquet(folder / path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    metrics = folder / "metrics"
    coverage = details(metrics)["coverage"]
    cases = pd.read_csv(metrics / "cases.csv")
    for goal in ("90%", "95%", "99%"):
        found = coverage[goal]["on_test"]
        answered = cases[cases["tuned_probability"] >= found["threshold"]]
        assert len(answered) / 300 == pytest.approx(found["coverage"]) and 0.3 < found["coverage"] < 1
        assert (answered["tuned"] == answered["gold"]).mean() >= found["goal"]
        sentence = f"With an accuracy of {goal} it can answer {found['coverage']:.1%} of the rows (interval "
        for name in ("report.html", "report.md"):
            assert sentence in (metrics / name).read_text(), (goal, name)
    line = cells_of(page_of(metrics), "accuracy on the validation rows")[0]
    chosen = coverage[line[0]]["from_validation"]
    answered = cases[cases["tuned_probability"] >= chosen["threshold"]]
    assert line[1] == f"{chosen['threshold']:.3f}" and line[2].startswith(f"{len(answered) / 300:.1%} (")
    assert line[3].startswith(f"{(answered['tuned'] == answered['gold']).mean():.1%} (")
    assert "accuracy of these rows" in words_of(picture_of(metrics, "Coverage"))


def test_the_best_threshold_of_two_classes_is_explained():
    estimate = Estimate(0.7, Interval(0.6, 0.8))
    gain = Difference(0.021, Interval(-0.01, 0.05), 0.2, 1.0)
    text = wording.explain_threshold(ThresholdEffect(0.31, Estimate(0.75, Interval(0.7, 0.8)), estimate, gain), {})
    assert "best macro F1 at 0.310" in text and "a macro F1 of 70.0% and an accuracy of 75.0%" in text
    assert "changes macro F1 by +2.1 points (interval −1.0 to +5.0)" in text
    assert "It also has the best macro F1" in wording.explain_threshold(
        ThresholdEffect(0.5, estimate, estimate, gain), {}
    )


@pytest.mark.usefixtures("blank_figures")
def test_without_calibration_the_page_says_so(tmp_path):
    folder = finished_run.make(tmp_path, rows=20)
    path = folder / "outs/results/train/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": None}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    page = page_of(folder / "metrics")
    assert "as training left them, since train.calibrate is false" in page and "without it" not in page


@pytest.mark.usefixtures("blank_figures")
def test_the_score_without_duplicates_of_training_rows_is_a_sentence(tmp_path):
    """Ten test rows are also training rows, and the tuned model is right in most rows."""
    folder = finished_run.make(tmp_path, rows=100, tuned=0.8)
    path = folder / "outs/tokenized/train.parquet"
    train, test = pd.read_parquet(path), pd.read_parquet(folder / "outs/tokenized/test.parquet")
    pd.concat([train, test[:10]], ignore_index=True).to_parquet(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    cases = pd.read_csv(folder / "metrics/cases.csv")
    rest = cases[10:]
    sentence = f"the tuned model&#39;s accuracy is {(rest['tuned'] == rest['gold']).mean():.1%} (95% interval "
    assert f"Without the test rows that are duplicates of training rows, {sentence}" in page_of(folder / "metrics")


def test_slices_without_rows_and_most_of_many_classes_are_not_drawn(many_metrics):
    reference, tuned = (pd.read_csv(many_metrics / f"plots/slices_{name}.csv") for name in ("reference", "tuned"))
    shown = select_slices(reference, tuned)[1]
    lowest = tuned[tuned["cut"] == "class"]["accuracy"].sort_values()[:10]
    assert shown["accuracy"].iloc[:10].tolist() == lowest.tolist()
    assert shown["cut"].iloc[10:].tolist() == tuned[(tuned["cut"] != "class") & (tuned["rows"] > 0)]["cut"].tolist()
    assert "Of 77 classes it shows the 10 with the lowest accuracy of the tuned model." in page_of(many_metrics)
    assert page_of(many_metrics).count("<td>class: ") == 77  # in the table of every slice


def test_pngs_are_sharp_on_a_dense_screen_and_small(metrics, many_metrics):
    for folder in (metrics, many_metrics):
        pictures = list((folder / "figures").glob("*.png"))
        assert len(pictures) == 7
        for path in pictures:
            width = int.from_bytes(path.read_bytes()[16:20], "big")
            assert width == 1000, path.name  # twice what report.md shows
        assert sum(path.stat().st_size for path in pictures) < 200_000
    assert (metrics / "report.md").read_text().count('width="500"') == 8


def test_the_table_of_data_has_the_rows_of_each_split(two_metrics):
    results = details(two_metrics)["data"]
    lines = {line[0]: line[1:] for line in cells_of(page_of(two_metrics), ">Data</h2>")}
    splits = [results[split] for split in ("train", "validation", "test")]
    assert lines["kept"] == ["200", "50", "300"] and lines["truncated"] == ["0", "0", "12"]
    assert lines["duplicates of training rows"] == ["–", "0", "0"]
    assert lines["duplicates of validation rows"] == ["–", "–", "0"]
    assert lines["with an empty text"] == ["0", "0", "0"] and "chosen" not in lines
    for name in ("ham", "spam"):
        assert lines[f"class {name}"] == [str(split["classes"][name]) for split in splits]
    assert "| truncated | 0 | 0 | 12 |" in (two_metrics / "report.md").read_text()


def test_many_classes_are_summed_up_in_the_data_table(many_metrics):
    rows = [list(split["classes"].values()) for split in (details(many_metrics)["data"][s] for s in ("train", "test"))]
    lines = {line[0]: line[1:] for line in cells_of(page_of(many_metrics), ">Data</h2>")}
    for name, value in (("smallest of 77 classes", min), ("median class", np.median), ("largest class", max)):
        assert [lines[f"rows of the {name}"][place] for place in (0, 2)] == [f"{value(each):g}" for each in rows]
    assert not any("intent" in name for name in lines)


def test_every_class_has_its_scores_and_rows(two_metrics, many_metrics):
    results = details(two_metrics)
    for number, name in enumerate(TWO["classes"]):
        line = [str(number), name, *(f"{results['tuned'][key][name]:.1%}" for key in ("precision", "recall", "f1"))]
        line += [str(results["data"][split]["classes"][name]) for split in ("test", "train")]
        assert cells_of(page_of(two_metrics), CLASS_TABLE)[number] == line
        assert f"| {' | '.join(line)} |" in (two_metrics / "report.md").read_text()
    assert "<summary>All classes" not in page_of(two_metrics)
    assert "<details><summary>All classes" in page_of(many_metrics)
    assert len(cells_of(page_of(many_metrics), CLASS_TABLE)) == 77


def test_odd_names_stay_text(odd_metrics):
    page = (odd_metrics / "report.html").read_text()
    assert "name" not in Elements(page).names and "text" not in Elements(page.split("<svg")[0]).names
    for svg in re.findall("<svg.*?</svg>", page, re.DOTALL):
        xml.etree.ElementTree.fromstring(svg)  # raises an error if a name is not escaped
    assert {'a "quoted" <name> & more', "$\\frac$", "Ärger über Größe"} <= set(
        words_of(picture_of(odd_metrics, "Confusion"))
    )
    report = (odd_metrics / "report.md").read_text()
    assert '| 0 | a "quoted" \\<name> \\& more |' in report and "| \\<body> of it |" in report


def test_a_class_without_rows_is_a_caution(odd_metrics):
    for name in ("report.html", "report.md", "model_card.md"):
        text = (odd_metrics / name).read_text()
        assert "No training row has the class not trained:" in text and "No test row has the class not tested:" in text
    lines = {line[1]: line for line in cells_of(page_of(odd_metrics), CLASS_TABLE)}
    assert lines["not tested"][5] == "0" and lines["not trained"][6] == "0"


def test_long_texts_are_cut_with_an_ellipsis_only_on_the_page(odd_metrics):
    rows = json.loads((odd_metrics / "report.html").read_text().split('id="data">')[1].split("</script>")[0])
    cases = pd.read_csv(odd_metrics / "cases.csv")
    assert [row[1][2] for row in rows] == [f"{text[:600]}…" for text in cases["text_label"]]


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("most, characters, rows", [(10_000, 10**9, 90), (40, 10**9, 40), (10_000, 1200, 20)])
def test_the_page_has_as_many_rows_as_fit(monkeypatch, tmp_path, most, characters, rows):
    """Texts of 30 characters in each of two columns, 90 rows."""
    monkeypatch.setattr(page_rows, "MAX_ROWS", most)
    monkeypatch.setattr(page_rows, "MAX_CHARACTERS", characters)
    finished_run.make(tmp_path, rows=90, tuned=0.8)
    path = tmp_path / "outs/results/tuned/predictions.parquet"
    pd.read_parquet(path).assign(text_premise="p" * 30, text_hypothesis="h" * 30).to_parquet(path)
    monkeypatch.chdir(tmp_path)
    analyze.main()
    page = (tmp_path / "metrics/report.html").read_text()
    shown = [int(row[0]) - 2 for row in json.loads(page.split('id="data">')[1].split("</script>")[0])]
    cases = pd.read_csv(tmp_path / "metrics/cases.csv")
    assert shown == sorted(set(shown)) and len(shown) == rows and len(cases) == 90
    assert ("All test rows" in page) == (rows == 90)
    wrong = cases[cases["tuned"] != cases["gold"]].sort_values("tuned_probability", ascending=False, kind="stable")
    assert 10 < len(wrong) < 20
    surest = set(wrong["row"][: rows // 2]) if rows < 90 else set()
    assert surest <= set(shown), "the most confident errors"
    others = [row for row in range(90) if row not in surest]
    room = rows - len(surest)
    assert sorted(set(shown) - surest) == [others[place * len(others) // room] for place in range(room)], (
        "others evenly"
    )


def test_the_rows_on_a_page_of_100000_fit_below_5_mb():
    """The texts have the greatest length at which the page takes 10,000 rows. The rest of the page has 0.3 MB."""
    rng = np.random.default_rng(0)
    gold, tuned = rng.integers(0, 3, (2, 100_000))
    task = Task(LABELS, "{premise}{hypothesis}", "premise")
    cases = pd.DataFrame({"row": range(100_000), "gold": gold, "probe": gold, "tuned": tuned, "outcome": "both_right"})
    cases[task.text_columns] = ["p" * 230, "h" * 120]
    shares = rng.dirichlet([1, 1, 1], 100_000)
    cases["tuned_probability"] = shares.max(axis=1)
    cases[probability_columns(task)] = shares
    page = page_rows.rows_as_json(cases, {}, "probe", task, LABELS)
    assert len(json.loads(page)) == 10_000 and len(page) < 4_700_000


def test_the_page_has_the_three_most_probable_classes_of_a_row(many_metrics):
    row = json.loads((many_metrics / "report.html").read_text().split('id="data">')[1].split("</script>")[0])[5]
    prediction = pd.read_parquet(many_metrics.parent / "outs/results/tuned/predictions.parquet").loc[5]
    shares = prediction[[f"p_{name}" for name in MANY["classes"]]].to_numpy(dtype=float)
    best, top = np.argsort(-shares, kind="stable")[:3], row[-1]
    assert top[::2] == best.tolist() and top[1::2] == np.round(shares[best] * 100).astype(int).tolist()
    assert "the 3 most probable classes, each with its probability" in page_of(many_metrics)


def test_cases_of_many_classes_have_no_column_for_each_class(two_metrics, many_metrics):
    few, many = (pd.read_csv(metrics / "cases.csv", nrows=1).columns for metrics in (two_metrics, many_metrics))
    assert {"tuned_p_ham", "tuned_p_spam", "tuned_probability"} <= set(few)
    assert {"gold", "tuned", "tuned_probability"} <= set(many) and not any("_p_" in column for column in many)


def test_77_classes_take_under_20_seconds_and_2_mb(many_metrics):
    assert float((many_metrics.parent / "seconds").read_text()) < 20
    assert (many_metrics / "report.html").stat().st_size < 2_000_000


class Elements(html.parser.HTMLParser):
    """Names of a page's elements, and the addresses that they refer to."""

    def __init__(self, page):
        super().__init__()
        self.names, self.references = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.references += [
            value for key, value in attributes if key in ("src", "href", "xlink:href", "srcset", "action")
        ]


def test_markup_in_a_text_is_escaped(metrics):
    names = Elements((metrics / "report.html").read_text()).names
    assert names.count("script") == 2 and "i" not in names  # the data and the page's code
    assert names.count("b") == 2  # of the headline


def test_the_page_needs_no_network(metrics):
    page = (metrics / "report.html").read_text()
    assert [reference for reference in Elements(page).references if not reference.startswith("#")] == []
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_the_pictures_of_the_markdown_exist(metrics):
    paths = re.findall(r'<img src="(.*?)" width="500" alt="', (metrics / "report.md").read_text())
    assert len(set(paths)) == 8
    assert {str(path.relative_to(metrics)) for path in metrics.rglob("*.png")} == set(paths)
    assert all((metrics / path).read_bytes().startswith(b"\x89PNG") for path in paths)


def test_svg_is_drawn_in_the_colours_of_the_page(metrics):
    page = (metrics / "report.html").read_text()
    for name in ("ink", "muted", "line", "base", "tuned"):
        assert f"var(--{name})" in page and f"--{name}:" in page
    assert not any(colour in page for colour in render.PLACEHOLDER_COLOURS.values())


def test_9824_rows_take_under_14_seconds(tmp_path, one_pixel_pngs):
    """PNGs and imports would take 6 more, as with few rows."""
    assert seconds_of_analyze(finished_run.make(tmp_path, rows=9824)) < 14


def test_predictions_of_different_rows_are_rejected(tmp_path, monkeypatch):
    finished_run.make(tmp_path)
    path = tmp_path / "outs/results/tuned/predictions.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match="different rows"):
        analyze.main()
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_filters_searches_and_pages_the_rows(metrics, width):
    cases = pd.read_csv(metrics / "cases.csv")
    fixed = cases[(cases["outcome"] == "fixed") & (cases["gold"] == "neutral")]
    word = fixed["text_hypothesis"].iloc[0].split()[1]
    matching = fixed[
        (fixed["text_premise"] + "\n" + fixed["text_hypothesis"]).str.lower().str.contains(word.lower(), regex=False)
    ]
    with browser.browser(width) as page:
        page.open(metrics / "report.html")
        assert page.text("#count") == "220 of 220 rows"
        assert page.run("return document.querySelector('#cases td.text').textContent") == NASTY
        assert page.run("return document.title") != "pwned"
        shares = page.run(
            "return [...document.querySelectorAll('#cases tr:first-child small span')].map(s => s.innerText)"
        )
        row = cases.loc[0, [f"tuned_p_{name}" for name in LABELS]].astype(float).set_axis(LABELS)
        ordered = row.sort_values(ascending=False).index
        expected = [f"{name}\u00a0{round(row[name] * 100)}" for name in ordered]
        assert shares == expected
        page.click("#next")
        assert page.text("#page") == "page 2 of 5"
        page.click("#outcome option[value=fixed]")
        page.click("#class option[value='1']")
        assert page.text("#count") == f"{len(fixed)} of 220 rows"
        page.write("#text", word.upper())
        assert page.text("#count") == f"{len(matching)} of 220 rows"
        hypotheses = page.run(
            "return [...document.querySelectorAll('#cases tbody tr')].map(tr => tr.cells[2].textContent)"
        )
        assert hypotheses == list(matching["text_hypothesis"])[:50]
        page.write("#text", "no such words")
        assert page.text("#count") == "0 of 220 rows" and page.text("#page") == "page 1 of 1"
        assert page.run("return document.documentElement.scrollWidth") <= width  # nothing is wider than the screen
        assert page.log() == []


@pytest.fixture(scope="module", params=[400, 1400])
def screen(request):
    """(browser, width of its screen). It takes over a second to start."""
    with browser.browser(request.param) as page:
        yield page, request.param


@pytest.mark.parametrize("task", ["gpu_metrics", "odd_metrics", "two_metrics", "many_metrics"])
def test_the_page_fits_its_screen(request, task, screen):
    """A table that is wider than the screen has its own scroll bar."""
    page, width = screen
    page.open(request.getfixturevalue(task) / "report.html")
    page.run("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.run("return document.documentElement.scrollWidth") <= width
    lefts = page.run("""return [...document.querySelectorAll('.columns')].map(
        columns => new Set([...columns.children].map(part => part.getBoundingClientRect().left)).size)""")
    assert set(lefts) == {1 if width == 400 else 2}
    clipped = page.run("""return [...document.querySelectorAll('main *:not(svg, svg *, nav, .scroll, .scroll *)')]
        .filter(part => part.clientWidth && part.scrollWidth > part.clientWidth + 1)
        .map(part => part.outerHTML.slice(0, 80))""")
    assert clipped == []


def test_a_long_class_name_breaks_after_an_underscore_only(many_metrics, screen):
    page, _ = screen
    page.open(many_metrics / "report.html")
    page.run("document.querySelectorAll('details').forEach(part => { part.open = true })")
    parts, broken = page.run("""
        const texts = [...document.querySelectorAll('td.name')].flatMap(cell => [...cell.childNodes])
            .filter(node => node.nodeType === Node.TEXT_NODE && !/\\s/.test(node.textContent));
        const range = new Range();
        const lines = node => (range.selectNode(node), range.getClientRects().length);
        return [texts.length, texts.filter(node => lines(node) > 1).map(node => node.textContent)]""")
    assert parts > 500 and broken == []


def test_a_long_name_in_a_table_of_the_markdown_may_break(many_metrics, two_metrics):
    names = "card_<wbr>payment_<wbr>number_<wbr>1_<wbr>with_<wbr>a_<wbr>long_<wbr>name"
    assert f"| {names} |" in (many_metrics / "report.md").read_text()
    assert "<wbr>" not in (two_metrics / "report.md").read_text()


def test_warnings_are_amber_and_alarms_red(odd_metrics, two_metrics):
    """A class without training rows is an alarm, a few truncated rows are a warning."""
    alarm = '<p class="notice alarm"><strong>Alarm:</strong> No training row has the class not trained:'
    warning = '<p class="notice warning"><strong>Warning:</strong> 12 of 300 test rows'
    assert alarm in page_of(odd_metrics) and warning in page_of(two_metrics)
    for name, colour in (("alarm", "var(--bad)"), ("warning", "#965800")):
        assert f"--{name}: {colour};" in page_of(odd_metrics)
        assert f".{name} strong {{ color: var(--{name}); }}" in page_of(odd_metrics)
    for folder, level, text in ((odd_metrics, "Alarm", "No training row"), (two_metrics, "Warning", "12 of 300 test")):
        for file in ("report.md", "model_card.md"):
            assert f"**{level}:** {text}" in (folder / file).read_text(), file


def test_one_epoch_has_one_tick_and_an_axis_of_whole_epochs():
    epochs = pd.DataFrame({"epoch": [1], "train_loss": [1.0], "validation_loss": [0.9], "validation_accuracy": [0.5],
                           "validation_f1_weighted": [0.4]})  # fmt: skip
    steps = pd.DataFrame({"step": range(1, 40), "loss": np.linspace(1.1, 0.4, 39)})
    for draw, expected in (
        (partial(draw_loss, epochs, steps, 1, "cross-entropy"), ["0", "1"]),
        (partial(draw_validation, epochs, 1), ["1"]),
    ):
        _, svg = render.render(draw)
        words = words_of(svg)
        assert words[: words.index("epoch")] == expected
    assert draw_validation(epochs, 1, render.ON_WHITE).axes[0].get_xlim() == (0.5, 1.5)
