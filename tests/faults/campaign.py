"""Kill the pipeline at many moments and see that nothing is lost.

    python tests/faults/campaign.py --times 20 --seed 1

How, and what must hold after each kill: tests/helpers/kill.py.
"""
# ruff: noqa: E402 -- the path comes first

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # helpers, stages

from helpers.kill import MADE, MOMENTS, STAGES, WAYS, contents, killed_run, small_clone, start


def undisturbed(clone):
    """Run once; returns seconds of each stage and the contents."""
    log = clone.folder.parent / "log"
    with log.open("w") as file:
        dvc = start(clone, file)
    begun = {}
    while dvc.poll() is None:
        text = log.read_text()
        for stage in STAGES:
            if f"Running stage '{stage}'" in text:
                begun.setdefault(stage, time.monotonic())
        time.sleep(0.02)
    assert dvc.returncode == 0, log.read_text()
    times = [*begun.values(), time.monotonic()]
    return dict(zip(begun, (b - a for a, b in pairwise(times)), strict=True)), contents(clone)


def wipe(clone):
    """Everything that a run made."""
    for name in (*MADE, "dvc.lock"):
        path = clone.folder / "demo" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in ("cache", "tmp"):
        shutil.rmtree(clone.folder / "demo/.dvc" / name, ignore_errors=True)


def random_hits(rng, seconds, most):
    """A hit in each stage, at a random second of it, in a random way; `most` of them at most, in stages drawn anew."""
    stages = sorted(rng.sample(STAGES, min(most, len(STAGES))), key=STAGES.index)
    return [
        SimpleNamespace(stage=stage, moment=None, way=rng.choice(WAYS), after=rng.uniform(0, seconds[stage]))
        for stage in stages
    ]


def campaign(clone, hits, expected, fates):
    """One run from nothing, killed by `hits`; counts (way, survived) in `fates`.

    Returns:
        (number of kills, survived)
    """
    wipe(clone)
    struck = []

    def report(hit, way, stage, kept):
        struck.append(way)
        place = hit.moment[1] if hit.moment else f"{hit.after:.1f} s after the start of {hit.stage}"
        print(f"  {way:22} {stage:15} epochs kept {kept}  {place}", flush=True)

    survived = True
    try:
        killed_run(clone, hits, expected, report)
    except AssertionError as error:
        print(f"LOST: {error}")
        survived = False
    fates.update((way, survived) for way in struck)
    print(f"run {'survived' if survived else 'lost'}, killed {len(struck)} times")
    return len(struck), survived


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="kills at random seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-moments", action="store_true", help="leave the chosen moments out")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    top = Path(tempfile.mkdtemp())
    clone = small_clone(top)
    seconds, expected = undisturbed(clone)
    print(f"undisturbed: {sum(seconds.values()):.0f} s; " + ", ".join(f"{s} {t:.1f}" for s, t in seconds.items()))
    fates, left, survived = Counter(), arguments.times, True
    while left and survived:  # a hit that comes too late is drawn again
        killed, survived = campaign(clone, random_hits(rng, seconds, left), expected, fates)
        left -= killed
    if survived and not arguments.no_moments:
        offset = rng.randrange(len(WAYS))
        hits = [
            SimpleNamespace(stage=moment[0], moment=moment, way=WAYS[(i + offset) % len(WAYS)], after=0)
            for i, moment in enumerate(MOMENTS)
        ]
        _, survived = campaign(clone, hits, expected, fates)
    shutil.rmtree(top)
    for way in WAYS:
        print(f"{way:22} {fates[way, True] + fates[way, False]:3} times, {fates[way, True]:3} survived")
    sys.exit(not survived)


if __name__ == "__main__":
    main()
