"""What the hub of `hub_server` answers to `hf upload`: create a repository, check the card, take files, commit."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler

from huggingface_hub.repocard import REGEX_YAML_BLOCK
from yaml import YAMLError, safe_load

from helpers import hub_server
from stages.report.licenses import LICENSES

NAME = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)


def answer(hub: "hub_server.Hub", request: BaseHTTPRequestHandler) -> None:
    """Answer a POST or a PUT as the hub does. A token is needed to create a repository and to change it."""
    body = request.rfile.read(int(request.headers["Content-Length"]))
    parts = request.path.split("?")[0].strip("/").split("/")
    if parts[0] == "lfs":  # lfs/SHA256: a large file
        hub.large[hub_server.sha256(body)] = body
        hub_server.send(request, "")
    elif parts == ["api", "validate-yaml"]:
        messages = [{"message": message} for message in find_card_errors(json.loads(body)["content"].encode())]
        hub_server.send(request, json.dumps({"errors": messages, "warnings": []}), 400 if messages else 200)
    elif not request.headers.get("authorization"):
        hub_server.refuse(request, 401, "", "Invalid username or password.")
    elif parts == ["api", "repos", "create"]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        exists = ("models", name) in hub.repos
        hub.repos.setdefault(("models", name), (None, {}))
        hub_server.send(request, json.dumps({"url": f"{hub.url}/{name}"}), 409 if exists else 200)
    elif parts[-1] == "batch":  # OWNER/NAME.git/info/lfs/objects/batch
        objects = json.loads(body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}
        hub_server.send(request, json.dumps({"transfer": "basic", "objects": objects}))
    elif parts[4] == "preupload":  # api/models/OWNER/NAME/preupload/BRANCH
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(hub_server.LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        hub_server.send(request, json.dumps({"files": files}))
    else:  # api/models/OWNER/NAME/commit/BRANCH
        name = "/".join(parts[2:4])
        commit = hashlib.sha1(body).hexdigest()
        hub.commit("models", name, commit, dict(read_operation(hub, line) for line in body.splitlines()[1:]))
        hub_server.send(request, json.dumps({"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit}))


def read_operation(hub: "hub_server.Hub", line: bytes) -> tuple[str, bytes]:
    """A line of a commit -> (path, content)."""
    operation = json.loads(line)
    value = operation["value"]
    content = hub.large[value["oid"]] if operation["key"] == "lfsFile" else base64.b64decode(value["content"])
    return value["path"], content


def read_card_data(card: bytes) -> dict | None:
    """The metadata of a card; None if it has none, or is not valid YAML."""
    match = REGEX_YAML_BLOCK.search(card.decode())
    try:
        return safe_load(match[2]) if match else None
    except YAMLError:
        return None


def find_card_errors(card: bytes) -> list[str]:
    """What the hub rejects in a card's metadata, by its specification (huggingface/hub-docs, modelcard.md)."""
    data = read_card_data(card)
    errors = [] if data.get("license", "mit") in LICENSES else ['"license" must be one of the identifiers']
    for key in ("base_model", "datasets"):
        names = data.get(key, [])
        for name in names if isinstance(names, list) else [names]:
            errors += [] if NAME.fullmatch(name) else [f'"{key}" with value "{name}" is not valid']
    for result in (result for model in data.get("model-index", []) for result in model["results"]):
        needed = (result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"])
        errors += [] if all(isinstance(value, str) for value in needed) else ['"model-index" lacks a required key']
        errors += [] if NAME.fullmatch(result["dataset"]["type"]) else ['"dataset.type" is not valid']
        errors += [] if all(isinstance(m["value"], float) for m in result["metrics"]) else ['"value" is required']
    return errors
