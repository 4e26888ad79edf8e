"""The report: numbers, sentences and pictures as one web page that needs no network, and as Markdown."""

import json
import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from stages.analysis import claims
from stages.analysis.claims import bounds, percent
from stages.task.labels import LABELS, SPLITS

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {
    "accuracy": ("Accuracy", "On the test rows, with intervals: base, tuned, and two guesses that read no premise."),
    "confusion": ("Confusion", "Test rows by gold label and prediction; darker is a greater share of the gold class."),
    "loss": ("Loss", "Training and validation by epoch; behind them the loss of each step."),
    "validation": ("Validation", "Accuracy and weighted F1 on the validation rows after each epoch."),
    "slices": ("Slices", "Accuracy with intervals; in brackets a slice's rows (base / tuned where they differ)."),
    "reliability": (
        "Calibration",
        "On the dotted line a model is as often right as it is sure. Larger dots, more rows.",
    ),
    "usage": ("Memory and load", "Over the three stages that run the model, laid end to end."),
}
LOSSES = ("train_loss", "validation_loss")
FATES = {
    "fixed": "corrected by tuning",
    "broken": "broken by tuning",
    "both_right": "right twice",
    "both_wrong": "wrong twice",
}


def html(context):
    """The page; whatever stands in the data is escaped."""
    return environment().get_template("report.html").render(context)


def markdown(context):
    """The short report, with its pictures beside it in figures/."""
    return environment().get_template("report.md").render(context)


def environment():
    """Templates that escape in HTML, and that stop at a name they are not given."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(percent=percent, interval=lambda ends: bounds((ends["low"], ends["high"])))
    return made


def context(metrics, findings, cases, tables, pictures, about):
    """What the templates show.

    Args:
        metrics: {name of the file in metrics/: its values}.
        findings: from `claims.claims`.
        cases: one line a test row, as `analyze` joins them.
        tables: {"epochs", "slices_base", "slices_tuned", ...}: data frames.
        pictures: {name: (PNG bytes, SVG text)}.
        about: {"model": manifest, "data": source, "params": all of params.yaml}.
    """
    gained = metrics["analysis"]
    ends = gained["accuracy_gain_interval"]
    level = level_of(about)
    return {
        "model": Path(about["model"]["name"]).name,
        "data": Path(about["data"]["name"]).name,
        "level": level,
        "base": metrics["eval_base"],
        "tuned": metrics["eval_lora"],
        "gained": gained,
        "headline": claims.headline(gained, gained["mcnemar_p"], (ends["low"], ends["high"])),
        "intervals": intervals(metrics, level),
        "in_train": in_train(metrics["data"]["test"]),
        "claims_note": f"Each of these {len(findings)} claims is tested at {level} by itself, not all of them at once.",
        "findings": findings.values(),
        "pictures": {
            name: {"title": title, "caption": caption, "svg": labelled(pictures[name][1], title)}
            for name, (title, caption) in PICTURES.items()
        },
        "slices": list(zip(tables["slices_base"].itertuples(), tables["slices_tuned"].itertuples(), strict=True)),
        "published": metrics["published"],
        "differing": differing(metrics["published"], about),
        "beside": beside(metrics),
        "epochs": epochs_beside(metrics["published"]["train"]["epochs"], tables["epochs"]),
        "recipe": recipe(metrics, about),
        "fates": {fate: (name, gained[fate]) for fate, name in FATES.items()},
        "classes": LABELS,
        "groups": {name: int(inside.sum()) for name, inside in groups(cases).items()},
        "rows_json": script_json(case_rows(cases)),
    }


def level_of(about):
    """The confidence of every interval, in words."""
    return f"{about['params'].analysis.confidence * 100:g}%"


def intervals(metrics, level):
    """Which intervals the report shows, and by what they are widened."""
    effects = [metrics[name]["design_effect"] for name in ("eval_base", "eval_lora", "analysis")]
    base, tuned, gain = (f"{effect:.2f}" for effect in effects)
    return (
        f"Intervals of {level}: Wilson's of accuracies and shares, Newcombe's of differences between groups of rows, "
        "Tango's of the gain, percentiles of a Dirichlet posterior for F1. Rows that share a premise are not "
        "independent: counts are divided by the design effect first "
        f"(accuracy: base {base}, tuned {tuned}; gain {gain}). The gain's p is the largest of three McNemar tests: "
        "exact by rows, exact by premises, and the score test that goes with Tango's interval."
    )


def in_train(test):
    """How far the test rows were seen in training: {"warning": whether whole rows were, "text"}.

    Args:
        test: {"kept", "in_train": {"rows", "premises"}}, of data/summary.json.
    """
    kept, rows, premises = test["kept"], test["in_train"]["rows"], test["in_train"]["premises"]
    share = "shares its premise with one" if premises == 1 else "share their premise with one"
    if rows:
        stand = f"{rows:,} {'stands' if rows == 1 else 'stand'} in the training rows, premise and hypothesis"
        text = f"Of {kept:,} test rows, {stand}, and {premises:,} {share}: scores may be too high."
    elif premises:
        text = f"No test row stands in the training rows; {premises:,} of {kept:,} {share}."
    else:
        text = "No test row stands in the training rows, and none shares its premise with one."
    return {"warning": rows > 0, "text": text}


def differing(published, about):
    """What makes the published figures and this run's another matter: list of (what, the published one, this run's)."""
    pairs = [
        ("base model", published["model"], about["model"]["name"]),
        ("data", published["data"], about["data"]["name"]),
    ]
    return [pair for pair in pairs if pair[1] != pair[2]]


def labelled(svg, title):
    """An SVG that a screen reader names."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))


def groups(cases):
    """The groups of rows that the published report argues from: {name: whether a row is in it}."""
    low, high = claims.overlap_ends(cases)
    missed = cases["tuned"] != cases["gold"]
    entailment, neutral = LABELS.index("entailment"), LABELS.index("neutral")
    return {
        "the first ten rows": cases.index < 10,
        "neutral, missed by tuned": missed & (cases["gold"] == neutral),
        "high overlap, taken for entailment": missed & high & (cases["tuned"] == entailment),
        "low overlap, missed by tuned": missed & low,
    }


def case_rows(cases):
    """The cases as lists: row, premise, hypothesis, gold, base, tuned, fate, groups (a bit each), percentages."""
    bits = sum(inside.astype(int) * 2**place for place, inside in enumerate(groups(cases).values()))
    columns = [cases[name].tolist() for name in ("row", "premise", "hypothesis", "gold", "base", "tuned", "fate")]
    shares = [
        (cases[[f"{name}_{label}" for label in LABELS]] * 100).round().astype(int).to_numpy().tolist()
        for name in ("base", "tuned")
    ]
    return list(zip(*columns, bits.tolist(), *shares, strict=True))


def script_json(value):
    """JSON that stays data inside a <script> element: without `<` nothing can end it."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def beside(metrics):
    """The published figures beside this run's, as text: (name, published, measured)."""
    figures = [
        ("test rows", "{:,}", "eval_lora.rows"),
        ("accuracy, base", "{:.1%}", "eval_base.accuracy"),
        ("accuracy, tuned", "{:.1%}", "eval_lora.accuracy"),
        ("weighted F1, base", "{:.1%}", "eval_base.f1_weighted"),
        ("weighted F1, tuned", "{:.1%}", "eval_lora.f1_weighted"),
        ("stored parameters, base", "{:,}", "eval_base.parameters.stored"),
        ("stored parameters, with LoRA", "{:,}", "train.parameters.stored"),
        ("trained parameters", "{:,}", "train.parameters.trainable"),
        ("training, seconds", "{:,.0f}", "train.seconds"),
        ("GPU memory with the base loaded, GB", "{:.2f}", "eval_base.gpu.loaded"),
        ("GPU memory before training, GB", "{:.2f}", "train.gpu.before_training"),
        ("GPU memory after training, GB", "{:.2f}", "train.gpu.after_training"),
        ("epoch kept", "{}", "train.best_epoch"),
        ("validation loss of that epoch", "{:.3f}", "train.validation_loss"),
    ]
    return [(name, found(metrics["published"], key, show), found(metrics, key, show)) for name, show, key in figures]


def found(values, key, show):
    """A nested value as text, or a dash where it was not measured or is not finite."""
    for part in key.split("."):
        if part not in values:
            return "–"
        values = values[part]
    return show.format(values) if math.isfinite(values) else "–"


def epochs_beside(published, epochs):
    """Losses by epoch: (epoch, published training, published validation, this run's training, and validation)."""
    theirs = {line["epoch"]: line for line in published}
    ours = epochs.set_index("epoch").to_dict("index")
    return [
        (epoch, *(found(run.get(epoch, {}), key, "{:.3f}") for run in (theirs, ours) for key in LOSSES))
        for epoch in sorted({*theirs, *ours})
    ]


def recipe(metrics, about):
    """What was run, as text: (name, value)."""
    p, rows, model, data = about["params"], metrics["data"], about["model"], about["data"]

    def listed(group):
        values = group.model_dump(exclude={"name", "revision"})
        return ", ".join(f"{key} {'none' if value is None else value}" for key, value in values.items())

    return [
        ("base model", f"{model['name']}, revision {model['revision']}"),
        ("its weights", listed(p.model)),
        ("data", f"{data['name']}, revision {data['revision']}"),
        ("rows", ", ".join(f"{rows[split]['kept']:,} {split}" for split in SPLITS)),
        ("rows without a gold label", {"drop": "dropped", "neutral": "taken for neutral"}[p.data.unlabelled]),
        ("input", p.tokenize.template),
        ("LoRA", listed(p.lora)),
        ("training", f"{listed(p.train)}, seed {p.seed}"),
        ("device", metrics["train"].get("gpu", {}).get("name", "CPU")),
    ]
