"""600 random changes of params.yaml from a seed: each is read as written, or reported in one line with its key."""

import copy
import math
import random

import pytest
import yaml
from helpers.parameters import set_key
from helpers.project import COMMITTED
from helpers.stages import error_line, run_stage_in_each, written

from stages.runtime import params
from stages.runtime.errors import UserError

COUNT, RUN_BY_A_STAGE = 600, 20
GOOD = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
TEXT = (COMMITTED / "demo/params.yaml").read_text()
VALUES = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-300, 1e300, 10**9 + 1, 10**30, -(10**30), 16**5000, float("nan"),
    float("inf"), -float("inf"), "", " ", "abc", "1", "-1", "2e-05", "1e400", "nan", "0x10", "1_000", "٣", "null",
    "\0", "\ud800", "🙂", "a\nb", "x" * 100_000, "$(touch pwned)", "../../..", "~", [], [1], ["a"], [[]], [None], {},
    {"a": 1}, {"r": 16}, [["x"] * 1000] * 1000,
]  # fmt: skip
RAW = [  # YAML text that no dumper writes
    "9" * 5000, "2001-99-99", "!!python/object/apply:os.system ['touch pwned']", "!!binary x", "*none", "&a [*a]",
    "[" * 2000, "{", "'", '"', "\t", "%", "@", "`", "!!int x", "!!float x", "? a", "- 1", "<<: 1", "\u2028", "1:30",
    "{a: 1, a: 2}", "#",
]  # fmt: skip


def leaves(raw, prefix=""):
    for name, value in raw.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]


LEAVES = list(leaves(GOOD))
SECTIONS = [name for name, value in GOOD.items() if isinstance(value, dict)]


def find_section(raw, key):
    """(the dict that has a dotted key, the last part of the key)."""
    *sections, leaf = key.split(".")
    for section in sections:
        raw = raw[section]
    return raw, leaf


def mutation(rng):
    """(description, content of params.yaml, words of which the message must have one, {changed key: value})."""
    raw, kind = copy.deepcopy(GOOD), rng.choice(KINDS)
    key = rng.choice(LEAVES)
    section, leaf = find_section(raw, key)
    if kind == "value":
        value = rng.choice(VALUES)
        section[leaf] = value
        return f"{key}: {value!r:.40}" if value != 16**5000 else key, dump(raw), [key], {key: value}
    if kind == "two values":
        other = rng.choice(LEAVES)
        changes = {key: rng.choice(VALUES), other: rng.choice(VALUES)}
        for name, value in changes.items():
            set_key(raw, name, value)
        return f"{key}, {other}", dump(raw), [key, other], changes
    if kind == "section":
        name = rng.choice(SECTIONS)
        raw[name] = rng.choice(VALUES)
        return f"{name} is not a section", dump(raw), [name], None
    if kind == "missing":
        del section[leaf]
        return f"no {key}", dump(raw), [f"{key}: missing"], None
    if kind == "unknown":
        name = rng.choice(["rank", "R", "r ", "lr", "seeds", "__class__", "lora.r", "é", "a\nb", 1, None, True, 2.5])
        section[name] = 1
        return f"{name!r} next to {key}", dump(raw), [str(name).split()[0], "keys"], None
    if kind == "misplaced":
        raw[leaf + "_"] = {leaf: section.pop(leaf)}
        return f"{key} elsewhere", dump(raw), [key], None
    if kind == "nested":
        section[leaf] = {leaf: section[leaf]}
        return f"{key} one deeper", dump(raw), [key], None
    line = rng.choice(
        [line for line in TEXT.splitlines() if line.startswith("  ") and ": " in line and "#" not in line]
    )
    name = line.split(":")[0].strip()
    if kind == "twice":
        return f"{name} twice", TEXT.replace(line, f"{line}\n{line}", 1).encode(), [f"the key {name} "], None
    if kind == "raw":
        value = rng.choice(RAW)
        text = TEXT.replace(line, f"{line.split(':')[0]}: {value}", 1)
        return f"{name}: {value:.30}", text.encode(), [name, "not valid YAML"], None
    if kind == "cut":
        cut = rng.randrange(len(TEXT))
        return f"cut at {cut}", TEXT[:cut].encode(), ["missing", "not valid YAML", "must hold", "not "], None
    if kind == "bytes":
        content = bytearray(TEXT.encode())
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return "bytes changed", bytes(content), [": "], None
    assert kind == "indent"
    text = TEXT.replace(line, rng.choice(["", "   ", "      ", "\t"]) + line.strip(), 1)
    return f"{name} indented otherwise", text.encode(), [name, "not valid YAML"], None


KINDS = ["value"] * 9 + ["raw"] * 2
KINDS += ["two values", "section", "missing", "unknown", "misplaced", "nested", "twice", "cut", "bytes", "indent"]


def dump(raw):
    if any(isinstance(value, int) and value > 16**4000 for value in _values(raw)):  # too long for str()
        raw = _replace_huge(raw)
    return yaml.safe_dump(raw).replace("'HUGE'", "0x1" + "0" * 5000).replace("HUGE", "0x1" + "0" * 5000).encode(
        "utf-8", "surrogatepass"
    )  # fmt: skip


def _values(raw):
    for value in raw.values():
        yield from _values(value) if isinstance(value, dict) else [value]


def _replace_huge(raw):
    return {
        key: _replace_huge(value) if isinstance(value, dict) else ("HUGE" if value == 16**5000 else value)
        for key, value in raw.items()
    }


def is_same(value, written):
    """Whether a value was read as written. A number may be written as text."""
    if isinstance(value, bool) or isinstance(written, bool) or value is None or written is None:
        return value == written or (isinstance(value, bool) and str(written) in "01")
    if isinstance(value, (int, float)):
        return math.isclose(value, float(written))
    return value == written


@pytest.fixture(scope="module")
def mutations():
    rng = random.Random(20)
    return [mutation(rng) for _ in range(COUNT)]


def test_each_change_is_read_as_written_or_reported_with_its_key(mutations, tmp_path):
    path = tmp_path / "params.yaml"
    accepted = rejected = 0
    failures = []
    for description, content, words, changes in mutations:
        path.write_bytes(content)
        try:
            p = params.load(path).model_dump()
        except UserError as error:
            rejected += 1
            line = " ".join(str(error).split())
            if not any(word in line for word in words) or len(line) > 3000:
                failures.append(f"{description}: {line[:300]}")
            continue
        except Exception as error:
            failures.append(f"{description}: {type(error).__name__} {error!s:.200}")
            continue
        accepted += 1
        for key, value in (changes or {}).items():
            section, leaf = find_section(p, key)
            if not is_same(section[leaf], value):
                failures.append(f"{description}: read as {section[leaf]!r:.60}")
    assert not failures, "\n".join(failures)
    assert rejected > 300 and accepted > 30, (rejected, accepted)


def test_a_stage_reports_the_same_in_one_line_and_writes_nothing(mutations, tmp_path):
    path = tmp_path / "params.yaml"
    folders = []
    for number, (_, content, _, _) in enumerate(mutations):
        path.write_bytes(content)
        try:
            params.load(path)
        except UserError as error:
            folders.append((tmp_path / f"{number}", " ".join(str(error).replace(str(path), "params.yaml").split())))
            folders[-1][0].mkdir()
            path.rename(folders[-1][0] / "params.yaml")
        if len(folders) == RUN_BY_A_STAGE:
            break
    outcomes = run_stage_in_each("download", [folder for folder, _ in folders])
    assert len(outcomes) == RUN_BY_A_STAGE
    for folder, message in folders:
        line = error_line(outcomes[folder.name])
        assert outcomes[folder.name].stderr.count("\n") == 1
        expected = f"error: {message}".encode("utf-8", "backslashreplace").decode()
        by_depth = " while calling a Python object"  # of a nesting that is too deep: it depends on where Python stops
        assert line.replace(by_depth, "") == expected.replace(by_depth, "")
        assert written(folder) == []
