"""A process that a signal asks to end: immediately, or after it has saved."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.stages import stage_env

from stages.runtime import shutdown

START = """
import time
from stages.runtime import shutdown
shutdown.REPEAT_SECONDS = 0.3
with shutdown.graceful("a_stage", lambda: "the next run continues"):
"""
READY = "    print('ready', flush=True)\n"
DEFER = f"    shutdown.defer()\n{READY}"
SLEEP = "    time.sleep(60)\n"
WAITS = """
    while not shutdown.requested():
        time.sleep(0.01)
    print("saved")
    shutdown.end(*shutdown.requested())
"""


def run(lines, *signals, pause=0.0):
    """Run a program that begins with START, and send signals when it is ready -> (exit code, stdout, stderr)."""
    command, pipe = [sys.executable, "-c", START + lines], subprocess.PIPE
    program = subprocess.Popen(command, env=stage_env(), stdout=pipe, stderr=pipe, text=True)
    assert program.stdout.readline() == "ready\n"
    for number in signals:
        program.send_signal(number)
        time.sleep(pause)
    stdout, stderr = program.communicate(timeout=20)
    return program.returncode, stdout, stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_with_one_line(number, code):
    line = f"a_stage: {signal.Signals(number).name}: the next run continues\n"
    assert run(READY + SLEEP, number) == (code, "", line)


def test_the_last_line_is_the_newest_that_was_given():
    lines = f"    shutdown.describe_next_run_by(lambda: 'the next run starts again')\n{READY}{SLEEP}"
    assert run(lines, signal.SIGTERM) == (143, "", "a_stage: SIGTERM: the next run starts again\n")


def test_a_training_that_has_not_read_its_rows_yet_ends_with_a_line_too(tmp_path):
    lines = "import time\nfrom stages import train_qlora\n"
    lines += "train_qlora.params.load = lambda: (print('ready', flush=True), time.sleep(60))\ntrain_qlora.main()\n"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", lines]
    program = subprocess.Popen(command, env=stage_env(), cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGTERM)
    line = "train_qlora: SIGTERM: `dvc repro` continues at the last checkpoint, if there is one\n"
    assert (program.communicate(timeout=20)[1], program.returncode) == (line, 143)


def test_after_defer_the_main_thread_saves_first():
    line = "a_stage: SIGTERM: the next run continues\n"
    assert run(DEFER + WAITS, signal.SIGTERM) == (143, "saved\n", line)


def test_a_signal_that_came_before_the_end_of_defer_ends_the_process_there():
    lines = "    while not shutdown.requested(): time.sleep(0.01)\n    shutdown.stop_deferring()\n    print('goes on')"
    code, stdout, stderr = run(DEFER + lines, signal.SIGTERM)
    assert (code, stdout, stderr.count("a_stage: SIGTERM")) == (143, "", 1)


def test_a_second_signal_ends_the_process_immediately():
    code, _, stderr = run(DEFER + SLEEP, signal.SIGTERM, signal.SIGTERM, pause=0.5)
    assert (code, stderr) == (143, "")


def test_a_signal_that_slurm_and_torchrun_both_send_counts_once():
    code, stdout, _ = run(f"{DEFER}    time.sleep(0.2){WAITS}", signal.SIGTERM, signal.SIGTERM)
    assert (code, stdout) == (143, "saved\n")


def test_a_process_that_does_not_save_in_time_is_ended():
    code, _, stderr = run(f"    shutdown.GRACE_SECONDS = 0.3\n{DEFER}{SLEEP}", signal.SIGTERM)
    assert (code, stderr) == (143, "a_stage: SIGTERM: the next run continues\n")


def test_a_call_that_blocks_the_main_thread_delays_nothing():
    """As a model that loads, or a rank that waits for another one: signal handlers in Python would have to wait."""
    lines = "    import ctypes\n    c = ctypes.CDLL(None)\n    mutex = ctypes.create_string_buffer(64)\n"
    lines += f"    c.pthread_mutex_lock(mutex)\n{READY}    c.pthread_mutex_lock(mutex)\n"
    code, _, stderr = run(lines, signal.SIGTERM)
    assert (code, stderr) == (143, "a_stage: SIGTERM: the next run continues\n")


def test_an_error_in_the_last_line_does_not_keep_the_process():
    lines = f"    shutdown._shutdown.describe_next_run = lambda: 1 / 0\n{READY}{SLEEP}"
    assert run(lines, signal.SIGTERM) == (143, "", "")


def test_a_pipe_that_nobody_reads_does_not_keep_the_process():
    """As that of `dvc repro 2>&1 | less`, where the last line waits for a reader too."""
    lines = f"    shutdown.PRINT_SECONDS = 0.3\n{READY}    while True: print('x' * 9999)\n"
    command, pipe = [sys.executable, "-c", START + lines], subprocess.PIPE
    program = subprocess.Popen(command, env=stage_env(), stdout=pipe, stderr=subprocess.STDOUT)
    assert program.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    program.send_signal(signal.SIGTERM)
    try:
        assert program.wait(timeout=10) == 143
    finally:
        program.kill()
        program.communicate()


def test_after_the_block_the_handlers_are_as_before():
    before = [signal.getsignal(number) for number in shutdown.SIGNALS]
    with shutdown.graceful("a_stage", str):
        assert [signal.getsignal(number) for number in shutdown.SIGNALS] != before
    assert [signal.getsignal(number) for number in shutdown.SIGNALS] == before
    assert shutdown.requested() is None
    shutdown.defer()
    shutdown.stop_deferring()
    shutdown.request("not in a block", 1)  # does not end this process


def test_another_thread_than_the_main_one_changes_no_handler():
    seen = []

    def work():
        with shutdown.graceful("a_stage", str):
            seen.append([signal.getsignal(number) for number in shutdown.SIGNALS])

    before = [signal.getsignal(number) for number in shutdown.SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
