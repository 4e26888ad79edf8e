"""README and docs/: tables and figures equal those in the result files; commands, parameters and links exist."""

import importlib.util
import json
import os
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest
import yaml
from dvc.cli import DvcParserError, parse_args
from dvc.utils.hydra import apply_overrides
from helpers.parameters import list_leaves, set_key
from helpers.project import COMMITTED, ROOT

from stages.runtime import params

sys.path.insert(0, str(ROOT / "benchmarks"))
import speed_tables

sys.path.insert(0, str(ROOT / "benchmarks/real"))
import accuracy_tables

RESULTS = ROOT / "benchmarks/results"
README = (ROOT / "README.md").read_text()
SPEED = (ROOT / "docs/speed.md").read_text()
SPEED_IN_A_LINE = " ".join(SPEED.split())
STARTUP = (ROOT / "docs/startup.md").read_text()
REPRODUCIBILITY = (ROOT / "docs/reproducibility.md").read_text()
NOTEBOOK = (ROOT / "docs/notebook.md").read_text()
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/*/README.md"))
}
COMMAND = r"(?:make|dvc|python|pytest) .+"
PARAMS = yaml.safe_load((COMMITTED / "params.yaml").read_text())


def commands(text):
    """The command lines of a document, in its blocks and between backticks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for block in (block for language, block in blocks if language in ("", "sh")):
        shell = [line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines()]
        yield from (part for line in shell for part in line.split(" && ") if re.fullmatch(COMMAND, part))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(rf"^    ({COMMAND})$", prose, re.MULTILINE)
    # Joined lines: a line break inside backticks is a space.
    yield from (code for code in re.findall(r"`([^`]+)`", " ".join(prose.split())) if re.fullmatch(COMMAND, code))


def words(command):
    """The words of a command, without its comment and its redirections."""
    return shlex.split(re.split(r" [<>|] ", command)[0], comments=True)


COMMANDS = sorted({(name, command) for name, text in DOCUMENTS.items() for command in commands(text)})


def figures(text):
    """All numbers of a text, as strings."""
    return set(re.findall(r"\d[\d,]*(?:\.\d+)?", text.replace(", ", " , ")))


NEWEST = speed_tables.find_results()[0].name


def results_of(name):
    """(a whole result, {(variant, batch size): its first line of SNLI's own texts and the result's first model})."""
    results = json.loads((RESULTS / name).read_text())
    return results, speed_tables.main_lines(results)


def test_the_speeds_of_several_gpus_are_those_in_the_results():
    results = json.loads((RESULTS / "h200-x2.json").read_text())
    text = " ".join(DOCUMENTS["docs/several-gpus.md"].split())  # without line breaks
    names = {("phi-2", "snli"): "phi-2", ("phi-2", 512): "phi-2, texts of up to 512 tokens"}
    names["llama-3-8b", "snli"] = "Llama-3-8B"
    blocks, speeds, rows = {}, {}, []
    for run in results["by_turns"]:
        for line in run["training"]:
            blocks.setdefault((run["model"], line["texts"], line["gpus"], line["batch_size"]), []).append(line)
    for key in sorted(blocks, key=lambda key: (list(names).index(key[:2]), key[3] // key[2], key[2])):
        (model, texts, gpus, batch), lines = key, blocks[key]
        speeds[key] = statistics.median(line["rows_per_second"] for line in lines)
        slowest, fastest = min(line["slowest"] for line in lines), max(line["fastest"] for line in lines)
        name = names[model, texts] if (gpus, batch) == (1, 16) else ""
        faster = f"**{speeds[key] / speeds[model, texts, 1, batch // 2]:.2f} times**" if gpus == 2 else ""
        ms = f"{statistics.median(line['ms_per_step'] for line in lines):.1f}"
        cells = (name, gpus, batch, f"{speeds[key]:,.0f} ({slowest:,.0f} to {fastest:,.0f})", faster, ms)
        rows.append(" ".join(f"| {cell}".rstrip() for cell in cells) + " |")
    assert " ".join(rows) in text
    two = "phi-2", "snli", 2, 256
    assert f"two GPUs: {speeds[two] / speeds['phi-2', 'snli', 1, 128]:.2f} times the rows per second" in REPRODUCIBILITY
    alone = {"phi-2": [], "llama-3-8b": []}
    for (model, _, gpus, _), lines in blocks.items():
        alone[model] += [line["all_reduce_ms"] for line in lines if gpus == 2]
    phi, llama = map(statistics.median, alone.values())
    assert f"the all-reduce takes {phi:.2f} ms, with Llama's shape {llama:.2f} ms" in text
    shortest = statistics.median(line["ms_per_step"] for line in blocks["phi-2", "snli", 1, 16])
    assert f"at most {phi / shortest:.1%} of a step" in text
    rows = {(line["gpus"], line["variant"]): line for run in results["evaluation"] for line in run["evaluation"]}
    base, tuned = ([rows[gpus, name]["rows_per_second"] for gpus in (1, 2)] for name in ("ours, base", "ours, tuned"))
    assert f"{base[0]:,.0f} rows/s on one GPU and {base[1]:,.0f} on two with the base" in text
    assert f"{tuned[0]:,.0f} and {tuned[1]:,.0f} with the adapter" in text
    (line,) = results["second_gpu_with_14_gb_free"][0]["training"]
    assert re.search(r"max_tokens=1152\)", line["plan"]) and f"at {line['rows_per_second']:.0f} rows/s" in text
    (line,) = results["all_rows"][0]["training"]
    assert f"{line['rows_per_second']:,.0f} rows/s ({line['slowest']:,.0f} to {line['fastest']:,.0f})" in text
    assert f"takes {60 * line['hours_an_epoch']:.1f} min" in text
    assert (
        f"{line['host_peak_gb']:.1f} GB of the host's" in text and f"{line['nvml_used_gb']:.1f} GB of its GPU" in text
    )


@pytest.mark.parametrize("document", speed_tables.DOCUMENTS)
def test_what_is_written_from_the_speed_results_is_up_to_date(document):
    """`python benchmarks/speed_tables.py --write` would change nothing."""
    text = (COMMITTED if document == "params.yaml" else ROOT).joinpath(document).read_text()
    filled = speed_tables.fill(text, speed_tables.make_blocks())
    assert speed_tables.replace_figures(filled, results_of(NEWEST)[0]) == text


def test_each_block_of_the_speed_results_is_in_a_document():
    names = [
        match[2] for name in speed_tables.DOCUMENTS for match in speed_tables.BLOCK.finditer(DOCUMENTS.get(name, ""))
    ]
    assert sorted(names) == sorted({*speed_tables.make_blocks(), "what-fits", "gpus"})


def test_the_speeds_in_the_text_are_those_in_the_results():
    results, lines = results_of(NEWEST)
    peer, ours, checkpointing = (lines[name, 16] for name in ("trainer at its best", "ours", "ours, checkpointing"))
    notebook = speed_tables.notebook_ms(results["training"])[16]
    medians = [r["ms_median"] for r in results["training"] if (r["variant"], r["batch_size"]) == ("notebook", 16)]
    recorder, limits, fast = results["recorder"], results["limits"], lines["ours", 128]["rows_per_second"]
    times = [notebook / ours["ms_per_step"], peer["ms_per_step"] / ours["ms_per_step"]]
    times += [min(medians) / ours["ms_median"], peer["ms_median"] / ours["ms_median"]]
    times += [notebook / checkpointing["ms_per_step"]]
    assert {f"{value:.1f}" for value in times} <= figures(SPEED)
    assert {f"{recorder[key]:.1f}" for key in ("ms_per_step_with", "ms_per_step_without")} <= figures(SPEED)
    assert f"{recorder['ms_per_sample']:.2f} ms" in SPEED_IN_A_LINE
    assert f"{limits['product_ms']:.1f} ms" in SPEED_IN_A_LINE and f"{limits['moved_ms']:.1f} ms" in SPEED_IN_A_LINE
    assert f"{limits['matrix_tflops']:.0f} TFLOP/s" in SPEED_IN_A_LINE
    assert f"{fast:.0f} rows/s" in SPEED_IN_A_LINE and f"{549_367 / fast / 60:.0f} minutes" in SPEED_IN_A_LINE
    assert checkpointing["peak_allocated_gb"] < lines["notebook", 16]["peak_allocated_gb"]
    less, more = (r["peak_allocated_gb"] for r in (checkpointing, ours))
    slower = checkpointing["ms_per_step"] / ours["ms_per_step"]
    comments = (COMMITTED / "params.yaml").read_text()
    assert f"{less:.1f} GB instead of {more:.1f}, {slower:.1f} times the time" in comments


def test_the_speeds_of_the_other_machine_are_those_in_its_results():
    _, lines = results_of("h100-other-host.json")
    notebook, peer, ours, checkpointing = (
        lines[name, 16]["ms_per_step"] for name in ("notebook", "trainer at its best", "ours", "ours, checkpointing")
    )
    times = {f"{notebook:.0f}", f"{peer:.0f}", f"{ours:.1f}"}
    assert times | {f"{notebook / value:.1f}" for value in (ours, checkpointing)} <= figures(SPEED)
    assert f"{peer / ours:.1f}" in figures(SPEED)


def test_the_speeds_in_readme_are_those_in_the_results():
    _, lines = results_of(NEWEST)
    ours, peer = (lines[name, 16]["ms_per_step"] for name in ("ours", "trainer at its best"))
    assert f"a training step takes {speed_tables.ms(ours)} ms" in README
    assert f"Trainer takes {speed_tables.ms(peer)} ms" in " ".join(README.split())


def test_the_effects_of_the_speed_parameters_are_those_in_the_results():
    _, lines = results_of(NEWEST)
    ours = lines["ours", 16]
    rows = dict(re.findall(r"^\| `(train\.\w+: \w+)` \| (.*) \|$", SPEED, re.MULTILINE))
    for parameter, name in (
        ("train.cuda_graphs: false", "ours, eager"),
        ("train.dequantize_once: false", "ours, dequantizing each"),
        ("train.gradient_checkpointing: true", "ours, checkpointing"),
    ):
        line = lines[name, 16]
        times = f"{speed_tables.ms(line['ms_per_step'])} instead of {speed_tables.ms(ours['ms_per_step'])} ms a step"
        assert rows[parameter].startswith(times)
        if " GB" in rows[parameter]:
            memory = f"in {line['peak_allocated_gb']:.1f} instead of {ours['peak_allocated_gb']:.1f} GB"
            assert rows[parameter].endswith(memory)
    large = lines["ours", 128]
    assert (
        rows["train.batch_size: 128"]
        == f"{large['rows_per_second']:.0f} instead of {ours['rows_per_second']:.0f} rows/s"
    )


def test_what_live_curves_cost_is_what_was_measured():
    variants = json.loads((RESULTS / "h200-live-curves.json").read_text())["variants"]
    text = " ".join((ROOT / "docs/long-trainings.md").read_text().split())
    times = {name: f"{results['ms_per_step']:.2f} ms" for name, results in variants.items()}
    assert f"a step takes {times['none']} with the points of the progress line" in text
    assert f"{times['tensorboard']} with TensorBoard too, and {times['without points']} without any" in text
    assert all(results["ratio"] < 1.02 for results in variants.values())


def test_what_a_gpu_run_needs_is_what_was_measured():
    _, lines = results_of(NEWEST)
    (memory,) = re.findall(r"^\| GPU memory \| (.*) \|$", README, re.MULTILINE)
    measured = [lines[name, 16]["nvml_used_gb"] for name in ("ours", "ours, dequantizing each", "ours, checkpointing")]
    assert {f"{gb:.1f}" for gb in measured} <= figures(memory)
    (repeat,) = json.loads((RESULTS / "startup-h200.json").read_text())["commands"]["dvc repro"]
    assert f"| time | {repeat['wall']:.0f} s on an H200, measured with random weights, without" in README


def test_the_scores_of_the_demo_are_those_in_its_metrics():
    report = (COMMITTED / "demo/metrics/report.md").read_text().splitlines()
    headline = [line for line in report if line.startswith("**")][:2]
    assert len(headline) == 2 and all(line in README.splitlines() for line in headline)
    tuned_on_cpu = re.match(r"\*\*([\d.]+%)\*\*", headline[0])[1]
    assert f"| {tuned_on_cpu}, committed in" in REPRODUCIBILITY
    results = json.loads((RESULTS / "demo-on-h200.json").read_text())
    tuned = f"{results['tuned']['accuracy']:.1%}"
    assert f"| {tuned} ([scores]" in REPRODUCIBILITY
    digests = [run["adapter_sha256"] for run in json.loads((RESULTS / "h200-twice.json").read_text())["runs"]]
    assert len(digests) == 4 and digests[::2] == digests[1::2] and "gave the same adapter" in REPRODUCIBILITY
    in_a_line = " ".join(REPRODUCIBILITY.split())
    assert f"It scores {tuned} on an H200" in in_a_line and f"and {tuned_on_cpu} on a CPU" in in_a_line
    on_cpu = json.loads((COMMITTED / "demo/metrics/details.json").read_text())["comparison"]
    assert on_cpu["best"] == results["best_reference"] == "probe" and on_cpu["verdict"] == results["verdict"]
    probes = [100 * scores["references"]["probe"]["accuracy"] for scores in (results, on_cpu)]
    assert "the linear probe, with {:.1f} and {:.1f}%".format(*probes) in in_a_line
    assert f'the verdict is "{results["verdict"]}"' in in_a_line


def test_the_notebooks_figures_are_the_published_ones():
    published = json.loads((ROOT / "stages/report/published.json").read_text())
    written = figures(NOTEBOOK)
    for stage, key in (
        ("base", "stored"),
        ("base", "trainable"),
        ("train", "stored"),
        ("train", "trainable"),
    ):
        assert f"{published[stage]['parameters'][key]:,}" in written
    best = min(published["train"]["epochs"], key=lambda epoch: epoch["validation_loss"])
    losses = {f"{loss:.2f}" for loss in (published["train"]["validation_loss"], best["validation_loss"])}
    assert losses <= written and f"at epoch {best['epoch']}" in NOTEBOOK
    untrained = published["comparison"]["references"]["untrained_head"]
    accuracies = [f"{scores['accuracy']:.0%}" for scores in (untrained, published["tuned"])]
    assert " -> ".join(accuracies) in NOTEBOOK and all(value in README for value in accuracies)
    trained = published["train"]["parameters"]["trainable"] + 7_680  # the notebook froze the head, of 3 x 2,560
    assert f"{trained:,}" in written


def test_each_fix_has_a_parameter_with_the_notebooks_value():
    """The last column of the table in docs/notebook.md: `key: value`."""
    rows = [re.findall(r"`([\w.]+): ([^`]+)`", line.rsplit(" | ", 1)[-1]) for line in NOTEBOOK.splitlines()]
    fixes = [fix for row in rows if row for fix in row]
    assert len(fixes) >= 11
    for key, value in fixes:
        changed = yaml.safe_load((COMMITTED / "params.yaml").read_text())
        set_key(changed, key, yaml.safe_load(value))
        assert params.Params.model_validate(changed) != params.Params.model_validate(PARAMS), key


def test_the_accuracies_on_real_weights_are_those_in_the_results(capsys):
    accuracy_tables.main()
    scored, changed, calibrated, worth = capsys.readouterr().out.strip().split("\n\n")
    document = DOCUMENTS["benchmarks/real/README.md"]
    assert all(f"{table}\n\n" in document for table in (scored, changed, calibrated))
    for line in worth.splitlines()[2:]:
        parameters, points = line.strip("| ").split(" | ")
        row = next(row for row in NOTEBOOK.splitlines() if f"| `{parameters.split(', ')[0]}: " in row)
        assert f" | {points} | " in row
    by_name = {line.split(" | ")[0]: line.split(" | ") for line in scored.splitlines()[2:]}
    for line in (
        "| the base with an untrained head",
        "| zero-shot: the base's own head on the class names",
        "| a linear probe on the frozen base, 1,000 training rows",
        "| ours: 1,000 training rows, the notebook's recipe with our fixes",
        "| 26,282 training rows, 3 epochs, batch 32, learning rate 3e-4",
    ):
        accuracy = re.sub(r"([\d.]+) \(([\d.]+ to [\d.]+)\)", r"\1% (\2%)", by_name[line][3])
        assert accuracy in README.replace("**", "")
    times = json.loads((ROOT / "benchmarks/real/results.json").read_text())["times"]
    for rows, name in (("1,000 rows, five", "ours"), ("26,282 rows, three", "all rows")):
        assert f"{rows} seeds | {times[name]['train']['seconds']:.0f} s |" in README


def test_the_effect_of_the_temperature_is_that_in_the_results(capsys):
    accuracy_tables.main()
    calibrated = capsys.readouterr().out.strip().split("\n\n")[2]
    ours, best_epoch = (line.strip("| ").split(" | ")[2:] for line in calibrated.splitlines()[2:4])
    loss, loss_with, error, error_with = ours
    assert f"| {loss} | {loss_with} |" in NOTEBOOK and f"| {error}% | {error_with}% |" in NOTEBOOK
    assert {loss, loss_with, *best_epoch[:2]} <= figures(NOTEBOOK)
    assert f"test loss of the 1,000-row model from {loss} to {loss_with}" in " ".join(README.split())


def test_the_cost_of_keeping_the_best_epoch_is_that_in_the_results(capsys):
    accuracy_tables.main()
    changed = capsys.readouterr().out.strip().split("\n\n")[1]
    (line,) = (line for line in changed.splitlines() if "lowest validation loss" in line)
    cost, most, least = re.match(r".* \| −([\d.]+) \(−([\d.]+) to −([\d.]+)\)", line).groups()
    assert f"costs {cost} points of accuracy ({least} to {most})" in " ".join(NOTEBOOK.split())
    assert f"on Gemma {cost} points less accuracy" in (COMMITTED / "params.yaml").read_text()


def test_the_example_report_is_that_of_a_run_in_the_results():
    example = ROOT / "benchmarks/real/example"
    runs = json.loads((ROOT / "benchmarks/real/results.json").read_text())["runs"]
    run = next(run for run in runs if (run["setting"], run["seed"]) == ("ours", 42))
    summary = json.loads((example / "summary.json").read_text())
    assert (summary["accuracy"], summary["loss_test"]) == (run["accuracy"], run["loss"])
    report = (example / "report.md").read_text()
    assert f"**{run['accuracy']:.1%}** accuracy of the tuned model" in report
    assert "| row | gold | tuned |" in report, "the table of errors has texts of SNLI"
    assert all((example / name).exists() for name in re.findall(r'src="([^"]+)"', report))


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_exists(document, command):
    program, *arguments = words(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "dvc":
        try:
            parsed = parse_args(arguments)
        except DvcParserError as error:
            pytest.fail(f"{document}: {command}: {error}")
        for change in getattr(parsed, "set_param", None) or ():
            value = PARAMS
            for key in change.partition("=")[0].split("."):
                value = value[key]
    elif program == "pytest" or arguments[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests"))
    elif arguments[0] == "-m":
        assert arguments[1] == "venv" or importlib.util.find_spec(arguments[1])
    else:
        assert (ROOT / arguments[0]).is_file()


YAML = [
    (name, block) for name, text in DOCUMENTS.items() for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
]


@pytest.mark.parametrize(("document", "block"), YAML)
def test_a_block_of_parameters_is_valid(document, block):
    """A reader can copy it into params.yaml."""
    changed = yaml.safe_load((COMMITTED / "params.yaml").read_text())
    for key, value in list_leaves(yaml.safe_load(block)):
        set_key(changed, key, value)
    params.validate(changed, params.Params, document)


PARAMETERS = [(name, (COMMITTED / name).read_text()) for name in ("params.yaml", "demo/params.yaml")]


@pytest.mark.parametrize(("document", "block"), [*PARAMETERS, *YAML])
def test_a_change_by_dvc_and_its_reversal_leave_no_difference(tmp_path, document, block):
    """`-S` rewrites the whole file, with lists in block style and quotes only where YAML needs them."""
    path, text = tmp_path / "params.yaml", f"{block}of_the_test: 1\n"
    path.write_text(text)
    for value in (2, 1):
        apply_overrides(path, [f"of_the_test={value}"])
    assert path.read_text() == text


def test_blocks_of_parameters_are_found():
    assert {"README.md", "docs/several-gpus.md"} == {document for document, _ in YAML}


def test_what_a_run_changes_in_git_is_named_for_the_commit():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outs = [out for stage in stages for out in stage["outs"] if isinstance(out, dict)]
    in_git = {f"{path.split('/')[0]}/" for out in outs for path, options in out.items() if "cache" in options}
    named = set(re.findall("`([^`]+)`", re.search("so commit your run: (.*)\\.", README)[1]))
    assert named == {"params.yaml", "dvc.lock", *in_git}


def test_commands_are_found():
    """If the search found no commands, the tests above would pass."""
    assert {"make", "dvc", "python", "pytest"} == {words(command)[0] for _, command in COMMANDS}
    assert ("README.md", "dvc exp run -S lora.r=8") in COMMANDS
    assert ("docs/comparing-runs.md", "python -m tools.compare --all") in COMMANDS


def anchors(text):
    """The anchors that a Git host makes of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[document]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        name = os.path.normpath(Path(document).parent / path) if path else document
        assert (ROOT / name).exists() or (COMMITTED / name).exists(), target  # metrics/ may hold the user's results
        assert not anchor or anchor in anchors((ROOT / name).read_text()), target
