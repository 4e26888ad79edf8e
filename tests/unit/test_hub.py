"""The stage `download` with the real client and a faulty hub on 127.0.0.1; local folders; cached hashes."""

import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import hub_server
from helpers.hub_server import refuse, send_file
from helpers.parameters import manifest_of, source_of, use_hub
from helpers.project import COMMITTED, NANO
from helpers.stages import assert_refused, error_line, run_stage_in_each, written
from huggingface_hub import constants

from stages.runtime.errors import UserError
from stages.sources import hashes
from stages.sources.fetch import fetch, find_model_folder
from stages.sources.manifest import build_manifest

REVISION = "0123456789abcdef0123456789abcdef01234567"
CHUNK = constants.DOWNLOAD_CHUNK_SIZE  # if the connection is lost, the client keeps the whole chunks
LARGE = bytes(2 * CHUNK + 4_000_000)
TOKEN = "hf_ThisTokenMustNeverBeSeen"
PASSWORD = "pw_ThisPasswordMustNeverBeSeen"
WEIGHTS = "model.safetensors"
OUTS = [
    "outs/base_model.json", "outs/data_source.json", "outs/splits/test.parquet", "outs/splits/train.parquet",
    "outs/splits/validation.parquet",
]  # fmt: skip


def model_files():
    return {path.name: path.read_bytes() for path in NANO.iterdir()}


def adapter_file():
    """A file with the name of a LoRA adapter's, next to the base's weights."""
    return {"adapter_config.json": b"{}"}


def second_copies():
    """Further copies of the weights, in a model's repository, that nobody loads."""
    names = ("consolidated.safetensors", "original/model.safetensors", "original/params.json", "onnx/config.json")
    return dict.fromkeys((*names, "model.gguf", "pytorch_model.bin", "onnx/model.onnx"), b"{}")


def data_files():
    columns = {"premise": ["A man runs."] * 3, "hypothesis": ["He moves.", "It rains.", "He sits."], "label": [0, 1, 2]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    content = sink.getvalue().to_pybytes()
    return {f"data/{split}-00000-of-00001.parquet": content for split in ("train", "validation", "test")}


def sharded_data_files():
    """The same data, with the training rows in two files."""
    files = data_files()
    content = files.pop("data/train-00000-of-00001.parquet")
    return files | {f"data/train-0000{number}-of-00002.parquet": content for number in range(2)}


def only_first(count, answer):
    """A fault for the first `count` requests of each kind and file."""
    remaining = {}

    def fault(request, asked, file):
        remaining.setdefault((asked, file), count)
        remaining[asked, file] -= 1
        return remaining[asked, file] >= 0 and answer(request, asked, file)

    return fault


def gated(request, asked, file):
    if asked in ("head", "get"):
        refuse(
            request, 401 if request.headers.get("authorization") is None else 403, "GatedRepo", "Access is restricted"
        )
        return True


def busy(request, asked, file):
    refuse(request, 429, "", "Too many requests", Retry_After=1)
    return True


def broken(request, asked, file):
    refuse(request, 500, "", "Internal error")
    return True


def cut(request, asked, file):
    if asked == "get" and file == WEIGHTS:
        send_file(request, REVISION, file, LARGE, cut=CHUNK + 1_000_000)
        return True


def cut_at_once(request, asked, file):
    if asked == "get" and file == WEIGHTS:
        send_file(request, REVISION, file, model_files()[file], cut=0)
        return True


def other_bytes(request, asked, file):
    if asked == "get" and file == WEIGHTS:
        content = model_files()[file]
        send_file(request, REVISION, file, content, body=content[:-1] + bytes([content[-1] ^ 1]))
        return True


def other_text(request, asked, file):
    if asked == "get" and file == "tokenizer_config.json":
        content = model_files()[file]
        send_file(request, REVISION, file, content, body=content.replace(b"e", b"a"))
        return True


FAULTS = {
    "good": None,
    "gated": gated,
    "busy": only_first(1, busy),
    "recovering": only_first(1, broken),
    "broken-file": only_first(1, lambda request, asked, file: asked == "get" and broken(request, asked, file)),
    "cut": only_first(2, cut),
    "always-cut": cut_at_once,
    "other-bytes": other_bytes,
    "other-text": other_text,
    "bytes-once": only_first(1, other_bytes),
    "rewritten": None,
}


def make_case(top, folder, model="tests/good", revision=REVISION, data="tests/nli"):
    """Create a folder with a params.yaml that names these repositories."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    use_hub(raw, "model", model, revision)
    use_hub(raw, "data", data, REVISION)
    (top / folder).mkdir()
    (top / folder / "params.yaml").write_text(yaml.safe_dump(raw))
    return top / folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Results of `download` for each case, first with the hub, then some without a network."""
    top = tmp_path_factory.mktemp("hub")
    with hub_server.Hub() as served:
        for name, fault in FAULTS.items():
            extra_files = {"cut": {WEIGHTS: LARGE}, "good": second_copies()}.get(name, {})
            served.add("models", f"tests/{name}", REVISION, model_files() | extra_files, fault)
        served.add("models", "tests/moving", REVISION, model_files())
        served.add("models", "tests/adapter", REVISION, model_files() | adapter_file())
        served.add("datasets", "tests/nli", REVISION, data_files())
        served.add("datasets", "tests/shards", REVISION, sharded_data_files())
        folders = [make_case(top, name, f"tests/{name}") for name in FAULTS]
        folders += [
            make_case(top, "no repository", "tests/none"),
            make_case(top, "no data repository", data="tests/none"),
            make_case(top, "no revision", revision="f" * 40),
            make_case(top, "no branch", revision="elsewhere"),
            make_case(top, "branch", "tests/moving", revision=hub_server.BRANCH),
            make_case(top, "pwned", "$(touch pwned)"),
            make_case(top, "bytes again", "tests/bytes-once"),
            make_case(top, "shards", data="tests/shards"),
            make_case(top, "adapter", "tests/adapter"),
        ]
        env = {
            "HF_ENDPOINT": served.url,
            "HF_HOME": str(top / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_DEBUG": "",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = run_stage_in_each("download", folders, **env)
        # tokenize on another machine: its cache is empty, and one repository was rewritten since
        served.add("models", "tests/rewritten", REVISION, model_files() | {"generation_config.json": b"{ }"})
        for name in ("good", "rewritten"):
            shutil.copytree(top / name, top / f"{name} elsewhere")
        elsewhere = [top / "good elsewhere", top / "rewritten elsewhere"]
        done |= run_stage_in_each("tokenize", elsewhere, **env | {"HF_HOME": str(top / "hf elsewhere")})
        # a cache that cannot be written, and a full disk
        (top / "frozen").write_text("a file where the cache's folder should be")
        done |= run_stage_in_each("download", [make_case(top, "no cache")], **env | {"HF_HOME": str(top / "frozen")})
        full = {"HF_HOME": str(top / "hf full"), "LARGEST_FILE": "1000000"}
        done |= run_stage_in_each("download", [make_case(top, "full")], **env | full)
    offline = [make_case(top, "offline warm"), make_case(top, "offline cold", "tests/never")]
    shutil.copytree(top / "hf", top / "hf in part", symlinks=True)
    (repository,) = (top / "hf in part").glob("hub/*shards")
    shutil.rmtree(
        repository / "trees"
    )  # the listing of files, which is missing after older clients and single downloads
    next(repository.glob("snapshots/*/data/train-00001-of-00002.parquet")).unlink()
    in_part = {**env, "HF_HUB_OFFLINE": "1", "HF_HOME": str(top / "hf in part")}
    done |= run_stage_in_each("download", [make_case(top, "offline in part", data="tests/shards")], **in_part)
    done |= run_stage_in_each("download", offline, **env | {"HF_HUB_OFFLINE": "1"})
    unreachable = [make_case(top, "unreachable warm"), make_case(top, "unreachable cold", "tests/never")]
    done |= run_stage_in_each("download", unreachable, **env)
    with_password = {**env, "HF_ENDPOINT": served.url.replace("://", f"://user:{PASSWORD}@")}
    done |= run_stage_in_each("download", [make_case(top, "endpoint with a password", "tests/never")], **with_password)
    for name, outcome in done.items():
        outcome.written = written(top / name)
    return SimpleNamespace(done=done, served=served, top=top)


@pytest.mark.parametrize(
    "name",
    ["good", "busy", "recovering", "broken-file", "cut", "bytes again", "offline warm", "unreachable warm", "shards"],
)
def test_the_files_arrive(outcomes, name):
    done = outcomes.done[name]
    assert done.returncode == 0, done.stderr
    assert done.written == OUTS
    manifest = json.loads((outcomes.top / name / "outs/base_model.json").read_text())
    _, served = outcomes.served.repos["models", manifest["name"]]
    assert {path: file["sha256"] for path, file in manifest["files"].items()} == {
        path: hub_server.sha256(content)
        for path, content in served.items()
        if path.endswith((".json", ".safetensors")) and path not in second_copies()
    }
    assert manifest["revision"] == REVISION


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gated", ["model.name", "tests/gated is gated", "HF_TOKEN"]),
        ("no repository", ["params.yaml: model.name", "no tests/none on the hub"]),
        ("no data repository", ["params.yaml: data.name", "no tests/none on the hub"]),
        ("no revision", ["params.yaml: model.revision", "f" * 40]),
        ("no branch", ["params.yaml: model.revision", "elsewhere"]),
        ("branch", ["params.yaml: model.revision: main", "allowed: a commit of tests/moving", REVISION]),
        ("always-cut", ["model.name", "gave no answer", "closed connection"]),
        ("other-bytes", ["params.yaml: model.name: tests/other-bytes", WEIGHTS, "not what the hub announced"]),
        (
            "other-text",
            ["params.yaml: model.name: tests/other-text", "tokenizer_config.json", "not what the hub announced"],
        ),
        ("no cache", ["data.name", "Not a directory", "hub cache"]),
        ("full", ["model.name", "File too large", "hub cache"]),
        ("offline cold", ["model.name", "not in the local cache", "HF_HUB_OFFLINE", "make demo"]),
        ("unreachable cold", ["model.name", "not in the local cache", "refused", "make demo"]),
        ("offline in part", ["params.yaml: data.name: tests/shards", "1 of 2 files data/train-"]),
        ("endpoint with a password", ["model.name", "not in the local cache", "http://127.0.0.1"]),
        ("pwned", ["params.yaml: model.name", "$(touch pwned)"]),
        ("adapter", ["params.yaml: model.name: tests/adapter", "adapter_config.json", "allowed: "]),
    ],
)
def test_a_failure_is_reported_in_one_line_and_nothing_is_written(outcomes, name, words):
    assert_refused(outcomes.done[name], words)


def test_further_copies_of_the_weights_are_not_fetched(outcomes):
    fetched = {path for name, kind, path in outcomes.served.seen if (name, kind) == ("tests/good", "get")}
    assert WEIGHTS in fetched
    assert fetched.isdisjoint(second_copies())


def test_a_branch_is_rejected_before_anything_is_fetched(outcomes):
    assert {kind for name, kind, _ in outcomes.served.seen if name == "tests/moving"} == {"info"}


def test_an_interrupted_download_continues_where_it_stopped(outcomes):
    assert outcomes.served.seen["tests/cut", "get", WEIGHTS] == 3
    ranges = [headers["Range"] for headers in outcomes.served.headers if headers["Range"]]
    assert ranges == [f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


def test_a_busy_hub_is_asked_again_after_the_time_that_it_names(outcomes):
    assert outcomes.served.seen["tests/busy", "tree", None] == 2
    assert outcomes.served.seen["tests/busy", "get", WEIGHTS] == 2


def test_a_file_with_wrong_bytes_is_fetched_again_by_the_next_run(outcomes):
    assert "not what the hub announced" in error_line(outcomes.done["bytes-once"])
    assert outcomes.done["bytes again"].returncode == 0


def test_cached_files_are_not_fetched_again(outcomes):
    """All cases use the same data and one cache, except the full disk, which has its own."""
    counts = {path: n for (name, kind, path), n in outcomes.served.seen.items() if (name, kind) == ("tests/nli", "get")}
    assert max(counts.values()) <= 2, counts


def test_the_token_is_sent_to_the_hub_and_shown_nowhere(outcomes):
    assert any(headers.get("authorization") == f"Bearer {TOKEN}" for headers in outcomes.served.headers)
    for done in outcomes.done.values():
        assert TOKEN not in done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
    for name in outcomes.done:
        for path in written(outcomes.top / name):
            assert TOKEN.encode() not in (outcomes.top / name / path).read_bytes()


def test_a_stage_on_another_machine_fetches_the_same_files_again(outcomes):
    assert outcomes.done["good elsewhere"].returncode == 0, outcomes.done["good elsewhere"].stderr
    assert "outs/data_summary.json" in outcomes.done["good elsewhere"].written


def test_files_that_changed_on_the_hub_since_download_are_rejected(outcomes):
    line = error_line(outcomes.done["rewritten elsewhere"])
    assert f"the files of tests/rewritten at revision {REVISION} have changed on the hub" in line
    assert outcomes.done["rewritten elsewhere"].written == OUTS


# --- folders ---


def test_a_folder_pinned_by_its_digest_is_checked(nano_copy):
    digest = fetch(source_of(nano_copy), "model")[1]["digest"]
    source = source_of(nano_copy, digest)
    assert fetch(source, "model")[1]["digest"] == digest
    (nano_copy / "generation_config.json").write_text("{}")
    changed = manifest_of(nano_copy)["digest"]
    with pytest.raises(UserError, match=rf"params\.yaml: model\.digest: .* digest {changed}; set model.digest to it"):
        fetch(source, "model")


@pytest.mark.parametrize("digest", [None, "0" * 64], ids=["no pin", "pin"])
def test_a_base_with_an_adapter_next_to_its_weights_is_rejected(nano_copy, capsys, digest):
    """transformers would load both, and the base would be tuned."""
    for name, content in adapter_file().items():
        (nano_copy / name).write_bytes(content)
    with pytest.raises(UserError, match=r"^params\.yaml: model\.folder: .*nano has a LoRA adapter .*adapter_config"):
        fetch(source_of(nano_copy, digest), "model")
    assert capsys.readouterr().out == "", "no digest to pin is printed"


def test_for_a_folder_without_a_pin_the_stage_prints_how_to_pin_it(nano_copy, capsys):
    digest = fetch(source_of(nano_copy), "model")[1]["digest"]
    assert f"set model.digest: {digest}" in capsys.readouterr().out


@pytest.mark.parametrize("digest", [None, "0" * 64], ids=["no pin", "pin"])
@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("model", "no model here; allowed: a folder with config.json and *.safetensors"),
        ("data", "no table here; allowed: "),
    ],
)
def test_for_a_folder_without_model_or_table_no_digest_is_printed(tmp_path, capsys, section, words, digest):
    (tmp_path / "README.md").write_text("# Reviews\n")
    with pytest.raises(UserError) as caught:
        fetch(source_of(tmp_path, digest), section)
    assert f"params.yaml: {section}.folder: {tmp_path}: {words}" in str(caught.value)
    assert "digest" not in capsys.readouterr().out + str(caught.value)


def test_the_digest_depends_on_names_and_bytes_but_not_on_dates(nano_copy):
    def digest():
        return build_manifest(nano_copy, "x", "y", "model")["digest"]

    first = digest()
    os.utime(nano_copy / "config.json", (0, 0))
    (nano_copy / ".hidden.json").write_text("{}")
    (nano_copy / "picture.png").write_bytes(b"1")
    for copy in second_copies():
        (nano_copy / copy).parent.mkdir(exist_ok=True)
        (nano_copy / copy).write_bytes(b"{}")
    assert digest() == first
    (nano_copy / "generation_config.json").rename(nano_copy / "generation.json")
    assert digest() != first


@pytest.mark.parametrize("folder", ["./none", "none", "/none"])
@pytest.mark.parametrize(("section", "kind"), [("model", "folder"), ("data", "folder or file")])
def test_a_missing_folder_is_an_error_that_says_what_is_allowed(section, kind, folder):
    with pytest.raises(UserError, match=rf"params\.yaml: {section}\.folder: {folder}: no such {kind}; .* set from_hub"):
        fetch(source_of(folder), section)


def test_a_file_is_rejected_as_a_model(nano_copy):
    file = nano_copy / WEIGHTS
    with pytest.raises(UserError, match=rf"model\.folder: {file}: is a file; allowed: a folder; set {nano_copy}"):
        fetch(source_of(file), "model")


def test_of_a_single_data_file_the_other_files_in_its_folder_are_neither_read_nor_pinned(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\na,b\n")
    folder, alone = fetch(source_of(file), "data")
    for other in ("README.md", "other.csv", "train.parquet"):
        (tmp_path / other).write_text("---\nconfigs: other.csv\n---\n")
    assert fetch(source_of(file), "data") == (folder, alone) == (tmp_path, alone)
    assert list(alone["files"]) == ["mine.csv"]


@pytest.mark.parametrize("folder", ["outs/splits", "outs/mine", "metrics", ".", "../demo", "link", "{here}/outs"])
def test_a_folder_that_the_stages_write_is_rejected_as_a_source(tmp_path, monkeypatch, folder):
    """DVC deletes the files in an out. A folder that has the outs in it would be read with them."""
    demo = tmp_path / "demo"
    for name in ("outs/splits", "outs/mine", "metrics"):
        (demo / name).mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (demo / "link").symlink_to("outs/splits")
    monkeypatch.chdir(demo)
    folder = folder.format(here=demo)
    with pytest.raises(UserError, match=rf"params\.yaml: data\.folder: {folder}: the pipeline writes .*; allowed: "):
        fetch(source_of(folder), "data")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("../nano", "is outside the repository, "),
        ("mine/../../nano", "is outside the repository, "),
        ("~/nano", "DVC does not replace ~; "),
    ],
)
def test_for_a_path_that_works_only_here_the_error_has_the_whole_path(nano_copy, monkeypatch, folder, words):
    repository = nano_copy.parent / "repository"
    (repository / ".git").mkdir(parents=True)
    (repository / "mine").mkdir()
    monkeypatch.setenv("HOME", str(nano_copy.parent))
    monkeypatch.chdir(repository)
    with pytest.raises(UserError) as caught:
        fetch(source_of(folder), "model")
    assert str(caught.value).startswith(f"params.yaml: model.folder: {folder}: {words}")
    assert str(caught.value).endswith(f"set the whole path, {nano_copy}")
    assert fetch(source_of(nano_copy), "model")[0] == nano_copy


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("at", ["mine", "mine/all.csv"])
@pytest.mark.parametrize(
    ("tracked", "is_in_copies"),
    [([], False), (["mine/more.csv"], False), (["mine/all.csv", "mine/more.csv"], True), (["mine.dvc"], True)],
    ids=["nothing", "one file", "all files", "by DVC"],
)
def test_download_says_when_a_copy_of_the_repository_would_lack_the_files(
    tmp_path, monkeypatch, capsys, at, tracked, is_in_copies
):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "mine").mkdir()
    for name in ("mine.dvc", "mine/all.csv", "mine/more.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    if tracked:
        git(tmp_path, "add", *tracked)
    monkeypatch.chdir(tmp_path)
    fetch(source_of(at), "data")
    line = f"{at} is not in Git: experiments in DVC's queue or with --temp"
    printed = capsys.readouterr().out
    assert (line not in printed) == is_in_copies
    assert (f"set data.folder: {tmp_path}/{at}\n" in printed) == (not is_in_copies)


@pytest.mark.parametrize("change", ["same size", "removed", "added"])
def test_a_folder_whose_files_changed_since_download_is_rejected_at_every_load(nano_copy, change):
    manifest = manifest_of(nano_copy)
    assert find_model_folder(manifest) == nano_copy
    weights, stat = nano_copy / WEIGHTS, (nano_copy / WEIGHTS).stat()
    if change == "same size":
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "removed":
        weights.unlink()
    else:
        (nano_copy / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="missing or changed since `download`"):
        find_model_folder(manifest)


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet"],
        ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ["model.safetensors.index.json", "other.safetensors"],
    ],
)
@pytest.mark.parametrize("digest", [None, "0" * 64], ids=["no pin", "pin"])
def test_a_source_with_missing_shards_is_rejected(tmp_path, capsys, names, digest):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"weight_map": {"w": "model-00002-of-00002.safetensors"}}')
    kind = "data" if "data" in names[0] else "model"
    with pytest.raises(UserError, match="fetch or copy it whole"):
        fetch(source_of(tmp_path, digest), kind)
    assert capsys.readouterr().out == "", "no digest to pin is printed"


# --- hashes of large files ---


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large, and was not changed recently -> (its path, list of the paths that were hashed)."""
    monkeypatch.setattr(hashes, "LARGE_BYTES", 4)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    hashed, sha256 = [], hashes.sha256
    monkeypatch.setattr(hashes, "sha256", lambda path: hashed.append(path) or sha256(path))
    (tmp_path / "weights").write_bytes(b"12345678")
    return tmp_path / "weights", hashed


def test_a_large_file_is_hashed_once(large):
    path, hashed = large
    assert hashes.cached_sha256(path) == hashes.cached_sha256(path) == hub_server.sha256(b"12345678")
    assert len(hashed) == 1


def test_a_large_file_that_changed_in_place_is_hashed_again_even_with_the_same_size_and_time(large):
    path, _ = large
    hashes.cached_sha256(path)
    stat = path.stat()
    path.write_bytes(b"12345670")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashes.cached_sha256(path) == hub_server.sha256(b"12345670")


def test_a_file_that_was_just_changed_is_hashed_again(large, monkeypatch):
    """It may change again within the same tick of the clock."""
    path, hashed = large
    monkeypatch.setattr(hashes, "SETTLED_NS", 2 * 10**9)
    hashes.cached_sha256(path)
    hashes.cached_sha256(path)
    assert len(hashed) == 2


@pytest.mark.parametrize("damage", ["[", "{}", None])
def test_with_a_damaged_cache_of_hashes_the_file_is_hashed_again(large, damage, monkeypatch):
    path, _ = large
    hashes.cached_sha256(path)
    cache = path.parent / "hf" / hashes.CACHE_NAME
    cache.unlink()
    cache.mkdir() if damage is None else cache.write_text(damage)
    assert hashes.cached_sha256(path) == hub_server.sha256(b"12345678")
