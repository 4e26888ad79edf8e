"""`analyze` on made runs: what it writes, that it escapes and repeats itself and is quick; the page by clicks."""

import csv
import html
import html.parser
import json
import re
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import browser, finished_run
from helpers.project import ROOT
from helpers.stages import run_stage, stage_env
from huggingface_hub import ModelCard
from sklearn.metrics import matthews_corrcoef

from stages import analyze
from stages.analysis import metrics as model_metrics
from stages.report import figures
from stages.runtime import errors
from stages.task.labels import LABELS

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
NASTY = """</script><script>document.title='pwned'</script><b>|`*\u2028 "quoted" & 'so'"""


def analyze_in(folder, **settings):
    """Run `analyze` on a made run -> its metrics folder."""
    finished_run.make(folder, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        analyze.main()
    return folder / "metrics"


@pytest.fixture
def analyzed(tmp_path):
    return partial(analyze_in, tmp_path)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """What `analyze` makes of a run on a CPU; its first row is text that wants to be more than text."""
    return analyze_in(tmp_path_factory.mktemp("finished"), rows=220, model="assets/<i>nano & co</i>", premise=NASTY)


@pytest.fixture(scope="module")
def gpu_metrics(tmp_path_factory):
    return analyze_in(
        tmp_path_factory.mktemp("finished"), gpu="NVIDIA H100", model="microsoft/phi-2", data="stanfordnlp/snli"
    )


def details(metrics):
    return json.loads((metrics / "details.json").read_text())


def measured(metrics, name):
    """What one of the three runs measured of itself."""
    return json.loads((metrics / "measurements/stages.json").read_text())[name]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_that_dvc_yaml_declares_and_nothing_else(metrics):
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


def test_numbers(metrics):
    cases = pd.read_csv(metrics / "cases.csv")
    for column in ("base", "tuned"):
        values = details(metrics)[column]
        assert values["accuracy"] == pytest.approx((cases[column] == cases["gold"]).mean())
        assert values["rows"] == 220
        for key in ("accuracy", "f1_weighted"):
            assert values[f"{key}_interval"]["low"] < values[key] < values[f"{key}_interval"]["high"]
        assert 0 <= values["calibration_error"] <= 1 and 0 <= values["brier"] <= 2
    gained = details(metrics)["comparison"]
    assert {fate: gained[fate] for fate in set(cases["fate"])} == cases["fate"].value_counts().to_dict()
    assert gained["accuracy_gain"] == pytest.approx((gained["fixed"] - gained["broken"]) / 220)
    assert gained["accuracy_gain_interval"]["low"] < gained["accuracy_gain"] < gained["accuracy_gain_interval"]["high"]
    assert gained["mcnemar_p"] < 0.001
    train = details(metrics)["train"]
    assert (train["best_epoch"], train["validation_loss"], train["parameters"]["trainable"]) == (2, 0.6, 1)
    run = measured(metrics, "train")
    assert "gpu" not in run and run["memory_peak_gb"] == 4.2


def test_what_is_declared_to_dvc_is_few_and_finite(metrics):
    found = details(metrics)
    summary = json.loads((metrics / "summary.json").read_text())
    assert list(summary) == sorted(summary), "as DVC will sort it: scores first"
    assert summary == {
        "accuracy_base": found["base"]["accuracy"],
        "accuracy_tuned": found["tuned"]["accuracy"],
        "accuracy_gain": found["comparison"]["accuracy_gain"],
        "f1_base": found["base"]["f1_weighted"],
        "f1_tuned": found["tuned"]["f1_weighted"],
        "loss_train": 0.7,
        "loss_validation": 0.6,
        "parameters_trained": 1,
        "peak_gb_train": 4.2,
        **dict.fromkeys(("seconds_eval_base", "seconds_eval_tuned", "seconds_train"), 12.5),
    }
    assert PIPELINE["metrics"] == ["metrics/summary.json"]


def test_what_a_run_measured_of_itself_is_apart_from_what_it_found(tmp_path):
    """The same run, on a machine that is slower and fuller."""
    first = contents(analyze_in(tmp_path, gpu="NVIDIA H100"))
    for name in ("base", "train", "tuned"):
        path = tmp_path / f"measurements/{name}/run.json"
        run = json.loads(path.read_text())
        memory = {key: value if key == "name" else 3 * value for key, value in run["gpu"].items()}
        path.write_text(json.dumps(run | {"seconds": 99, "gpu": memory, "versions": {"python": "3.12"}}))
        path = path.with_name("usage.csv")
        pd.read_csv(path).assign(memory_gb=9.0).to_csv(path, index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        analyze.main()
    second = contents(tmp_path / "metrics")
    measurements = {f"measurements/{name}" for name in ("stages.json", "usage.csv", "usage.png")}
    assert {name for name in first if first[name] != second[name]} == {"summary.json", "report.html", *measurements}


def test_a_metric_is_one_entry(tmp_path, monkeypatch):
    """Matthews correlation: in every output that shows metrics, with its interval and the hub's name."""

    def matthews(confusion):
        right, rows = np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1))
        gold, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
        apart = [rows**2 - (side**2).sum(axis=-1) for side in (gold, predicted)]
        return (right * rows - (gold * predicted).sum(axis=-1)) / np.sqrt(apart[0] * apart[1])

    entry = model_metrics.Metric(
        "matthews",
        "Matthews correlation",
        lambda made: matthews(made.confusion),
        interval=lambda made: made.interval(matthews),
        form="number",
        hub=("matthews_correlation", None),
    )
    monkeypatch.setattr(model_metrics, "METRICS", (*model_metrics.METRICS, entry))
    metrics = analyze_in(tmp_path, rows=100)
    cases = pd.read_csv(metrics / "cases.csv")
    texts = []
    for name in ("base", "tuned"):
        scores = details(metrics)[name]
        value, ends = scores["matthews"], scores["matthews_interval"]
        assert value == pytest.approx(matthews_corrcoef(cases["gold"], cases[name]))
        assert ends["low"] < value < ends["high"]
        texts.append((f"{value:.3f}", f"({ends['low']:.3f} to {ends['high']:.3f})"))
    line = "| Matthews correlation | {} {} | {} {} |".format(*texts[0], *texts[1])
    for name in ("report.md", "model_card.md"):
        assert line in (metrics / name).read_text().splitlines(), name
    row = re.search(r"<tr><th>Matthews correlation</th>.*?</tr>", (metrics / "report.html").read_text())[0]
    assert re.findall(r">([^<>]+)</span>", row) == [*texts[0], *texts[1]]
    data = ModelCard.load(metrics / "model_card.md").data
    assert data.metrics == ["accuracy", "f1", "matthews_correlation"]
    (result,) = (r for r in data.eval_results if r.metric_type == "matthews_correlation")
    assert result.metric_name == "Matthews correlation"
    assert result.metric_value == pytest.approx(details(metrics)["tuned"]["matthews"], abs=5e-5)


def test_the_report_says_how_its_claims_are_tested(metrics):
    for name in ("report.md", "report.html"):
        assert "Each of these 6 claims is tested at 95% by itself" in (metrics / name).read_text(), name


def test_a_class_that_is_not_there_has_no_f1(analyzed):
    """One row: two classes are neither gold nor predicted."""
    metrics = analyzed(rows=1, tuned=1)
    scores = details(metrics)["tuned"]
    (there,) = scores["f1"]
    assert scores["f1"][there] == scores["f1_macro"] == 1
    page = (metrics / "report.html").read_text()
    for label in {"entailment", "neutral", "contradiction"} - {there}:
        assert re.search(rf"<th>F1, {label}</th>.*?<td class=\"number\">–</td></tr>", page), label


ODD_TEXTS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tA1", "\r=1", "a\rb", "a\r\nb\nc", 'a "b", c', "'quoted'", "", "plain ="]


def test_odd_texts_are_read_back_from_the_cases_and_no_formula(tmp_path, monkeypatch):
    finished_run.make(tmp_path, rows=len(ODD_TEXTS))
    for name in ("base", "tuned"):
        path = tmp_path / f"results/{name}/predictions.parquet"
        pd.read_parquet(path).assign(premise=ODD_TEXTS, hypothesis=ODD_TEXTS[::-1]).to_parquet(path)
    monkeypatch.chdir(tmp_path)
    analyze.main()
    expected = [f"'{text}" for text in ODD_TEXTS[:6]] + ODD_TEXTS[6:]
    by_pandas = pd.read_csv("metrics/cases.csv", keep_default_na=False)
    with open("metrics/cases.csv", newline="", encoding="utf-8") as file:
        by_csv = list(csv.DictReader(file))
    for rows in (by_pandas.to_dict("records"), by_csv):
        assert [row["premise"] for row in rows] == expected
        assert [row["hypothesis"] for row in rows] == expected[::-1]
        assert [row["gold"] in LABELS and float(row["base_neutral"]) <= 1 for row in rows] == [True] * len(rows)
    assert by_pandas["base_neutral"].dtype == float and by_pandas["negated"].dtype == bool


def test_no_interval_collapses_where_all_is_right(analyzed):
    metrics = analyzed(rows=100, base=1, tuned=1)
    gain = details(metrics)["comparison"]["accuracy_gain_interval"]
    assert gain["low"] == pytest.approx(-gain["high"]) and 0.03 < gain["high"] < 0.05
    assert "Interval of the gain: −3.7 to +3.7." in (metrics / "report.md").read_text()
    scores = details(metrics)["tuned"]
    for name in ("accuracy", "f1_weighted", "f1_macro"):
        assert 0.94 < scores[f"{name}_interval"]["low"] < 0.99 and scores[f"{name}_interval"]["high"] == 1, name


def test_rows_that_say_the_same_of_a_premise_narrow_no_interval(tmp_path):
    """Each row once, and four times: four times the rows, none of which says anything new."""
    once, often = (analyze_in(folder(tmp_path / str(copies)), rows=80, copies=copies) for copies in (1, 4))
    for name in ("base", "tuned", "comparison"):
        first, second = details(once)[name], details(often)[name]
        assert second["rows"] == 4 * first["rows"] and first["design_effect"] == 1 and second["design_effect"] >= 4
        compared = [(first, second), *((first[key], second[key]) for key in first if isinstance(first[key], dict))]
        keys = [(a[key], b[key]) for a, b in compared for key in a if key.endswith("_interval")]
        assert len(keys) == 3
        for a, b in keys:
            assert b["high"] - b["low"] > 0.99 * (a["high"] - a["low"]), (name, a, b)  # draws differ
    first, second = details(once)["comparison"], details(often)["comparison"]
    assert second["mcnemar_p"] >= first["mcnemar_p"] and second["claims"] == first["claims"]
    for report, effects in ((once, "base 1.00, tuned 1.00; gain 1.00"), (often, "base 4.04, tuned 4.04; gain 4.04")):
        for name in ("report.md", "report.html", "model_card.md"):
            assert f"(accuracy: {effects})" in (report / name).read_text(), name
    first, second = (pd.read_csv(metrics / "plots/slices_tuned.csv") for metrics in (once, often))
    narrower = (second["high"] - second["low"]) < (first["high"] - first["low"]) - 1e-12
    assert len(first) > 10 and not narrower.any()


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "settings",
    [{"rows": 1}, {"rows": 2, "base": 0, "tuned": 1}, {"base": 1, "tuned": 1}, {"base": 0, "tuned": 0}, {"tuned": 0.1}],
    ids=str,
)
def test_any_outcome_makes_a_report_without_nan(analyzed, settings):
    metrics = analyzed(**settings)
    for path in metrics.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    for name in ("report.md", "report.html", "model_card.md"):
        assert not re.search(r"\bnan\b", (metrics / name).read_text().split('id="data"')[0]), name


def test_a_loss_that_is_not_finite_is_a_dash(tmp_path, monkeypatch):
    """Epoch 2 is kept; the first began with infinite steps, the last ended in NaN."""
    folder = finished_run.make(tmp_path)
    epochs, steps = (pd.read_csv(folder / f"results/train/{name}.csv") for name in ("epochs", "steps"))
    epochs["train_loss"] = [float("inf"), 0.7, float("nan")]
    epochs["validation_loss"] = [float("inf"), 0.6, float("nan")]
    steps.loc[3, "loss"], steps.loc[30:, "loss"] = float("inf"), float("nan")
    epochs.to_csv(folder / "results/train/epochs.csv", index=False)
    steps.to_csv(folder / "results/train/steps.csv", index=False)
    monkeypatch.chdir(folder)
    analyze.main()
    metrics = folder / "metrics"
    for path in metrics.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    page = (metrics / "report.html").read_text().split('id="data"')[0]
    for epoch, losses in ((1, ["–", "–"]), (2, ["0.700", "0.600"]), (3, ["–", "–"])):
        cells = re.search(rf"<tr><td>{epoch}</td>(.*?)</tr>", page)[1]
        assert re.findall(r">([^<]+)</td>", cells)[-2:] == losses
    for path in (*metrics.glob("report.*"), metrics / "model_card.md", *metrics.glob("plots/*s.csv")):
        assert not re.search(r"\b(nan|inf)\b", path.read_text().split('id="data"')[0]), path.name
    for name in ("loss", "validation"):
        assert (metrics / f"figures/{name}.png").stat().st_size > 10_000


def test_a_gpu_run(gpu_metrics):
    assert measured(gpu_metrics, "train")["gpu"]["after_training"] == 4.0
    page = (gpu_metrics / "report.html").read_text()
    assert "allocated by PyTorch" in page and "NVIDIA H100" in page


def test_published_figures_compare_with_phi_2_on_snli_alone(metrics, gpu_metrics):
    assert "These do not compare" in (metrics / "report.html").read_text()
    page = (gpu_metrics / "report.html").read_text()
    assert "These do not compare" not in page and "The same base model, microsoft/phi-2" in page
    assert "the same data, stanfordnlp/snli" in page
    published = json.loads(analyze.PUBLISHED.read_text())
    assert published["tuned"]["accuracy"] == 0.91 and published["train"]["parameters"]["stored"] == 1413877760


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"model": "microsoft/phi-2"}, "The published data is stanfordnlp/snli, this run's assets/everyday-nli."),
        ({"data": "stanfordnlp/snli"}, "The published base model is microsoft/phi-2, this run's assets/nano-phi."),
        ({}, "The published base model is microsoft/phi-2, this run's assets/nano-phi. "
             "The published data is stanfordnlp/snli, this run's assets/everyday-nli."),
    ],
    ids=("data", "model", "both"),
)  # fmt: skip
def test_figures_that_do_not_compare_say_what_differs(analyzed, settings, said):
    page = (analyzed(rows=3, **settings) / "report.html").read_text()
    words = html.unescape(re.search(r"These do not compare:</strong>(.*?)They stand here", page, re.DOTALL).group(1))
    assert " ".join(words.split()) == said


@pytest.mark.parametrize(
    "in_train, said",
    [
        ((0, 0), "No test row stands in the training rows, and none shares its premise with one."),
        ((0, 1), "No test row stands in the training rows; 1 of 60 shares its premise with one."),
        ((0, 7), "No test row stands in the training rows; 7 of 60 share their premise with one."),
        ((1, 7), "Of 60 test rows, 1 stands in the training rows, premise and hypothesis, and 7 share"),
        ((5, 5), "Of 60 test rows, 5 stand in the training rows, premise and hypothesis, and 5 share"),
    ],
)
def test_test_rows_that_were_trained_on_are_named(analyzed, in_train, said):
    metrics = analyzed(in_train=in_train)
    for name in ("report.md", "report.html", "model_card.md"):
        text = (metrics / name).read_text()
        assert said in text and ("Warning" in text) == (in_train[0] > 0), name
    assert details(metrics)["data"]["test"]["in_train"] == dict(zip(("rows", "premises"), in_train, strict=True))


def test_equal_inputs_make_equal_bytes(tmp_path):
    """In two processes with other hash seeds."""
    finished_run.make(tmp_path)
    first, second = ({}, {})
    for seed, result in (("1", first), ("2", second)):
        done = run_stage("analyze", tmp_path, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        result.update(contents(tmp_path / "metrics"))
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) >= 20


class Elements(html.parser.HTMLParser):
    """Elements of a page and what they refer to."""

    def __init__(self, page):
        super().__init__()
        self.names, self.references = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.references += [
            value for key, value in attributes if key in ("src", "href", "xlink:href", "srcset", "action")
        ]


def test_nasty_text_stays_text(metrics):
    names = Elements((metrics / "report.html").read_text()).names
    assert names.count("script") == 2 and "i" not in names  # the data's own and the page's own
    assert names.count("b") == 3  # of the headline


def test_the_page_needs_no_network(metrics):
    page = (metrics / "report.html").read_text()
    assert [reference for reference in Elements(page).references if not reference.startswith("#")] == []
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_pictures_of_the_markdown_are_there(metrics):
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (metrics / "report.md").read_text())
    assert len(set(shown)) == 7
    assert {str(path.relative_to(metrics)) for path in metrics.rglob("*.png")} == set(shown)
    assert all((metrics / path).read_bytes().startswith(b"\x89PNG") for path in shown)


def test_svg_is_drawn_in_the_colours_of_the_page(metrics):
    page = (metrics / "report.html").read_text()
    for name in ("ink", "muted", "line", "base", "tuned"):
        assert f"var(--{name})" in page and f"--{name}:" in page
    assert not any(colour in page for colour in figures.STAND_INS.values())


def test_9824_rows_in_under_20_seconds(tmp_path):
    finished_run.make(tmp_path, rows=9824)
    start = time.perf_counter()
    done = run_stage("analyze", tmp_path)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert seconds < 20


def test_analyze_leaves_the_heavy_libraries_alone():
    code = "import sys, stages.analyze; print(sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=stage_env(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_predictions_of_different_rows_are_refused(tmp_path, monkeypatch):
    finished_run.make(tmp_path)
    path = tmp_path / "results/tuned/predictions.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match="different rows"):
        analyze.main()
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_by_clicks(metrics, width):
    cases = pd.read_csv(metrics / "cases.csv")
    fixed = cases[(cases["fate"] == "fixed") & (cases["gold"] == "neutral")]
    word = fixed["hypothesis"].iloc[0].split()[1]
    wanted = fixed[(fixed["premise"] + "\n" + fixed["hypothesis"]).str.lower().str.contains(word.lower(), regex=False)]
    with browser.browser(width) as page:
        page.open(metrics / "report.html")
        assert page.text("#count") == "220 of 220 rows"
        assert page.run("return document.querySelector('#cases td').textContent") == NASTY
        assert page.run("return document.title") != "pwned"
        page.click("#next")
        assert page.text("#page") == "page 2 of 5"
        page.click("#fate option[value=fixed]")
        page.click("#class option[value='1']")
        assert page.text("#count") == f"{len(fixed)} of 220 rows"
        page.write("#text", word.upper())
        assert page.text("#count") == f"{len(wanted)} of 220 rows"
        shown = page.run("return [...document.querySelectorAll('#cases tbody tr')].map(tr => tr.cells[1].textContent)")
        assert shown == list(wanted["hypothesis"])[:50]
        page.write("#text", "no such words")
        assert page.text("#count") == "0 of 220 rows" and page.text("#page") == "page 1 of 1"
        assert page.run("return document.documentElement.scrollWidth") <= width  # nothing sticks out
        assert page.log() == []
