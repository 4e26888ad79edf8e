"""Kill the pipeline at many moments and check that no result is lost.

    python tests/faults/campaign.py --times 20 --seed 1
    python tests/faults/campaign.py --times 100 --seed 1 --stage train_qlora

The second command runs the stages before train_qlora once, and kills only trainings. tests/helpers/kill.py says how it
kills, and what must hold after each kill.
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

import yaml

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # helpers, stages

from helpers.kill import MOMENTS, STAGES, WAYS, WRITTEN, contents, killed_run, small_clone, start


def undisturbed(clone, target):
    """Run once without a kill -> ({stage: seconds}, contents)."""
    log = clone.folder.parent / "log"
    with log.open("w") as file:
        dvc = start(clone, file, target=target)
    starts = {}
    while dvc.poll() is None:
        text = log.read_text()
        for stage in STAGES:
            if f"Running stage '{stage}'" in text:
                starts.setdefault(stage, time.monotonic())
        time.sleep(0.02)
    assert dvc.returncode == 0, log.read_text()
    times = [*starts.values(), time.monotonic()]
    return dict(zip(starts, (b - a for a, b in pairwise(times)), strict=True)), contents(clone)


def remove_results(clone, stage=""):
    """Remove everything that a run wrote, DVC's cache too; or only what a stage wrote, and DVC's record of it."""
    if stage:
        lock = clone.folder / "demo/dvc.lock"
        recorded = yaml.safe_load(lock.read_text())
        for out in recorded["stages"].pop(stage)["outs"]:
            shutil.rmtree(clone.folder / "demo" / out["path"])
        lock.write_text(yaml.safe_dump(recorded))
        shutil.rmtree(clone.folder / "demo/.dvc/cache/runs")
        return
    for name in (*WRITTEN, "dvc.lock"):
        path = clone.folder / "demo" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in ("cache", "tmp"):
        shutil.rmtree(clone.folder / "demo/.dvc" / name, ignore_errors=True)


def random_hits(rng, seconds, most):
    """One kill in each of at most `most` random stages, at a random second, in a random way."""
    stages = sorted(rng.sample(STAGES, min(most, len(STAGES))), key=STAGES.index)
    return [
        SimpleNamespace(
            stage=stage, moment=None, way=rng.choice(WAYS), after=rng.uniform(0, seconds[stage]), in_training=False
        )
        for stage in stages
    ]


def training_hits(rng, most):
    """At most 5 kills of one training, in random ways, each up to 1.5 seconds after the first step since the last."""
    return [
        SimpleNamespace(
            stage="train_qlora", moment=None, way=rng.choice(WAYS), after=rng.uniform(0, 1.5), in_training=True
        )
        for _ in range(min(most, 5))
    ]


def campaign(clone, hits, expected, counts, stage=""):
    """Run everything once, with the kills `hits`; count (way, survived) in `counts`.

    Returns:
        (number of kills, survived)
    """
    remove_results(clone, stage)
    ways = []

    def report(hit, way, stage, saved, lost):
        ways.append(way)
        begin = "first step" if hit.in_training else "start"
        place = hit.moment[1] if hit.moment else f"{hit.after:.1f} s after the {begin} of {hit.stage}"
        print(f"  {way:22} {stage:15} step saved {saved:2}, {lost:.2f} s lost  {place}", flush=True)

    survived = True
    try:
        killed_run(clone, hits, expected, report, stage)
    except AssertionError as error:
        print(f"LOST: {error}")
        survived = False
    counts.update((way, survived) for way in ways)
    print(f"run {'survived' if survived else 'lost'}, killed {len(ways)} times")
    return len(ways), survived


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="kills at random seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-moments", action="store_true", help="skip the chosen moments")
    parser.add_argument("--stage", default="", choices=["", "train_qlora"], help="kill only this stage")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    top = Path(tempfile.mkdtemp())
    clone = small_clone(top)
    stage = arguments.stage
    seconds, expected = undisturbed(clone, stage)
    print(f"undisturbed: {sum(seconds.values()):.0f} s; " + ", ".join(f"{s} {t:.1f}" for s, t in seconds.items()))
    counts, remaining, survived = Counter(), arguments.times, True
    while remaining and survived:  # a kill that came too late is replaced by another random one
        hits = training_hits(rng, remaining) if stage else random_hits(rng, seconds, remaining)
        kills, survived = campaign(clone, hits, expected, counts, stage)
        remaining -= kills
    if survived and not arguments.no_moments:
        offset = rng.randrange(len(WAYS))
        hits = [
            SimpleNamespace(
                stage=moment[0], moment=moment, way=WAYS[(i + offset) % len(WAYS)], after=0, in_training=False
            )
            for i, moment in enumerate(moment for moment in MOMENTS if stage in ("", moment[0]))
        ]
        _, survived = campaign(clone, hits, expected, counts, stage)
    shutil.rmtree(top)
    for way in WAYS:
        print(f"{way:22} {counts[way, True] + counts[way, False]:3} times, {counts[way, True]:3} survived")
    sys.exit(not survived)


if __name__ == "__main__":
    main()
