"""Record what a stage reads, and stop it at a chosen moment. Python imports this file if its folder is in PYTHONPATH.

In a stage that DVC runs, this code writes the dotted name of every parameter that the stage reads to
$RECORD_READS/<stage>, and every file that Python opens to read to $RECORD_READS/<stage>.files. It stops the process
before the first file operation that matches the pattern $STOP_AT. It writes the number and the start of each training
step, in seconds since 1970, to $STEP_LOG.
"""

import os
import sys
from pathlib import Path

if "DVC_STAGE" in os.environ and "RECORD_READS" in os.environ:
    opened = set()

    def note(event, arguments):
        """Log a file that is opened to be read; the import of a module opens its file too."""
        if event != "open" or not isinstance(arguments[0], str) or arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.path.abspath(arguments[0])  # noqa: PTH100 -- it must not follow links
        if path not in opened:
            opened.add(path)
            with open(f"{os.environ['RECORD_READS']}/{os.environ['DVC_STAGE'].rpartition(':')[2]}.files", "a") as file:
                file.write(f"{path}\n")

    sys.addaudithook(note)

if "DVC_STAGE" in os.environ and "RECORD_READS" in os.environ:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 -- `python -m` adds it too late
    from stages.runtime import params

    sys.path.pop(0)
    stage = os.environ["DVC_STAGE"].rpartition(":")[2]
    report = Path(os.environ["RECORD_READS"]) / stage

    def groups_of(kind, prefix):
        """{class of a group: the dotted prefix of its keys}, nested groups too."""
        prefixes = {kind: prefix}
        for name, field in kind.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                prefixes |= groups_of(field.annotation, f"{prefix}{name}.")
        return prefixes

    groups = groups_of(params.Params, "")
    seen = set()
    plain_read, plain_dump = params.Section.__getattribute__, params.Section.model_dump

    def record(group, name):
        if type(group) not in groups:  # the sections of other files, such as an adapter's
            return
        key = groups[type(group)] + name
        if key not in seen and key + "." not in groups.values():
            seen.add(key)
            with open(report, "a") as file:
                file.write(f"{key}\n")

    def read(self, name):
        if name in type(self).__pydantic_fields__:
            record(self, name)
        return plain_read(self, name)

    def dump(self, *, include=None, exclude=(), **options):
        for name in type(self).model_fields:
            if name not in exclude and (include is None or name in include):
                record(self, name)
        return plain_dump(self, include=include, exclude=set(exclude), **options)

    params.Section.__getattribute__, params.Section.model_dump = read, dump
    report.touch()

if os.environ.get("DVC_STAGE", "").endswith("train_qlora") and "STEP_LOG" in os.environ:
    import threading
    import time

    def log_steps():
        """Wait until the trainer's module is imported, seconds before its first step."""
        while not hasattr(module := sys.modules.get("stages.training.trainer"), "make_trainer"):
            time.sleep(0.01)
        plain = module.ClassifierTrainer.training_step

        def training_step(self, *arguments, **named):
            with open(os.environ["STEP_LOG"], "a") as file:
                file.write(f"{self.state.global_step + 1} {time.time()}\n")
            return plain(self, *arguments, **named)

        module.ClassifierTrainer.training_step = training_step

    threading.Thread(target=log_steps, daemon=True).start()

if "DVC_STAGE" in os.environ and os.environ.get("STOP_AT"):
    import re
    import signal

    moment = re.compile(os.environ["STOP_AT"])

    def stop(event, arguments):
        """Stop this process once, at the moment of $STOP_AT, so that a test can kill it."""
        global moment
        if moment and event in ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree"):
            line = f"{event} {' '.join(map(str, arguments))}"
            if moment.search(line):
                moment = None
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(stop)
