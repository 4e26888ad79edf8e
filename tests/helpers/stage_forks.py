"""Run a stage in each of several folders: `stage_forks.py STAGE FOLDER...`; or several, `download,tokenize`.

The stage's modules are imported once, which takes seconds; each run is a fork, from its first line to its exit code.
FOLDER.result gets what came of it.
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from stages.runtime import errors

if "LARGEST_FILE" in os.environ:  # stands for a full disk
    limit = int(os.environ["LARGEST_FILE"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
modules = [importlib.import_module(f"stages.{stage}") for stage in sys.argv[1].split(",")]
for folder in sys.argv[2:]:
    outputs = [Path(f"{folder}.{name}") for name in ("stdout", "stderr")]
    child = os.fork()
    if child == 0:
        for number, path in enumerate(outputs, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(folder)
        for module in modules:
            errors.run(module.main)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    stdout, stderr = (path.read_text() for path in outputs)
    result = {"returncode": code, "stdout": stdout, "stderr": stderr}
    Path(f"{folder}.result").write_text(json.dumps(result))
