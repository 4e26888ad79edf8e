"""Write the data set `assets/everyday-nli`: three parquet files and their data card.

    python demo/make/everyday_nli.py

The words and the rule for the labels are in world.py; this file draws the rows, checks them and writes them.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from world import CONTRADICTION, ENTAILMENT, NEUTRAL, PREMISE_VALUES, TREES, pair, remark, scene_for

FOLDER = Path(__file__).parent.parent / "assets" / "everyday-nli"
SEED = 2024
ROWS = {
    "train": 1000,
    "validation": 300,
    "test": 1000,
}  # rows with a label; 1% more have none (-1), as in SNLI
NO_LABEL = -1
ANSWERS = {ENTAILMENT: "Yes.", NEUTRAL: "Maybe.", CONTRADICTION: "No."}
REMARKS = 5  # in a pretraining text
HEADINGS = [("Scene", "Remark", "Answer"), ("Text", "Claim", "Verdict"), ("Picture", "Caption", "Reply")]


def make_split(rng: random.Random, rows: int, taken: set[str]) -> pd.DataFrame:
    """Rows in random order, classes balanced, no premise that is already taken."""
    labels = [i % 3 for i in range(rows)] + [NO_LABEL] * (rows // 100)
    rng.shuffle(labels)
    records = []
    for label in labels:
        true_label = rng.randrange(3) if label == NO_LABEL else label
        premise, hypothesis = pair(rng, true_label)
        while premise in taken:
            premise, hypothesis = pair(rng, true_label)
        taken.add(premise)
        records.append((premise, hypothesis, label))
    return pd.DataFrame(records, columns=["premise", "hypothesis", "label"]).astype({"label": "int64"})


def make_splits() -> dict[str, pd.DataFrame]:
    """The three splits; no premise occurs twice."""
    rng, taken = random.Random(SEED), set()
    return {name: make_split(rng, rows, taken) for name, rows in ROWS.items()}


def pretraining_texts(seed: int, count: int, taken: set[str]) -> Iterator[str]:
    """Texts about the world, from simple to cluttered, without the data set's premises and its labels.

    Nine in ten are a scene with a few remarks and a plain answer to each, the kind of reading exercise that
    textbooks are full of; the others are a premise and a hypothesis in the classifier's template, unanswered.
    The scenes begin simple, and negation comes later, because a model this small finds out what an answer
    depends on only where little else is said.
    """
    rng = random.Random(seed)
    facets = [*TREES, "object", "object", "object", "activity", "place"]  # more where there are more words
    made = 0
    while made < count:
        clutter = min(1.0, made / (0.8 * count))
        facet = rng.choice(facets)
        scene, premise = scene_for(rng, facet, rng.choice([*PREMISE_VALUES[facet] * 2, None]), None, clutter)
        asked = [facet] * 4 + rng.choices(facets, k=8)
        negate = 0.0 if clutter < 0.5 else 0.2
        remarks = [r for r in (remark(rng, scene, name, negate) for name in asked) if r]
        if premise in taken or len(remarks) < REMARKS:
            continue
        made += 1
        rng.shuffle(remarks)
        yield exercise(rng, premise, remarks[:REMARKS])


def exercise(rng: random.Random, premise: str, remarks: list[tuple[str, int]]) -> str:
    """A scene and answered remarks, bare or with headings; or the classifier's template without an answer."""
    kind = rng.random()
    if kind < 0.1:
        return f"Premise: {premise}\nHypothesis: {remarks[0][0]}\nLabel:"
    if kind < 0.5:
        return "\n".join([premise] + [f"{text} {ANSWERS[label]}" for text, label in remarks])
    scene, claim, answer = rng.choice(HEADINGS)
    blocks = [f"{claim}: {text}\n{answer}: {ANSWERS[label]}" for text, label in remarks[:4]]
    return "\n".join([f"{scene}: {premise}", *blocks])


def hypothesis_only_accuracy(splits: dict[str, pd.DataFrame]) -> float:
    """Test accuracy of a bag-of-words model that never sees the premise: what the wording gives away."""
    train, test = (splits[name].query("label >= 0") for name in ("train", "test"))
    words = CountVectorizer().fit(train.hypothesis)
    model = LogisticRegression(max_iter=1000).fit(words.transform(train.hypothesis), train.label)
    return model.score(words.transform(test.hypothesis), test.label)


def vocabulary(splits: dict[str, pd.DataFrame]) -> set[str]:
    """All words of all splits, lower case."""
    texts = pd.concat([frame[column] for frame in splits.values() for column in ("premise", "hypothesis")])
    return set(re.findall(r"[a-z]+", " ".join(texts).lower()))


def check(splits: dict[str, pd.DataFrame]) -> dict[str, float]:
    """What the data set promises, asserted; returns the figures for the card."""
    premises = pd.concat([frame.premise for frame in splits.values()])
    assert premises.is_unique
    for frame in splits.values():
        counts = frame.label.value_counts()
        assert counts[[0, 1, 2]].max() - counts[[0, 1, 2]].min() <= 1
    figures = {"words": len(vocabulary(splits)), "hypothesis_only": hypothesis_only_accuracy(splits)}
    assert figures["words"] >= 300, figures
    assert figures["hypothesis_only"] <= 0.50, figures
    return figures


def card(splits: dict[str, pd.DataFrame], figures: dict[str, float]) -> str:
    """The data card, with one row of each class as an example."""
    train = splits["train"]
    examples = [train[train.label == label].iloc[0] for label in (ENTAILMENT, NEUTRAL, CONTRADICTION)]
    names = ["entailment", "neutral", "contradiction"]
    example_rows = [f"| {r.premise} | {r.hypothesis} | {r.label} ({names[r.label]}) |" for r in examples]
    size_rows = [f"| {n} | {(f.label >= 0).sum()} | {(f.label < 0).sum()} |" for n, f in splits.items()]
    return f"""# everyday-nli

Natural language inference in a toy world of everyday scenes: a premise, a hypothesis, and whether the
hypothesis follows (0, entailment), may or may not be so (1, neutral), or cannot be so (2, contradiction).
It stands in for SNLI where a pipeline is to run in a minute on a CPU. It says nothing about real English.

| premise | hypothesis | label |
| --- | --- | --- |
{chr(10).join(example_rows)}

| split | rows with a label | rows without (label -1) |
| --- | --- | --- |
{chr(10).join(size_rows)}

- Columns: `premise` (string), `hypothesis` (string), `label` (int64). As in SNLI, -1 means that there is no
  gold label; such rows are to be dropped.
- Made by `demo/make/everyday_nli.py` from the grammar in `demo/make/world.py`, seed and all: synonyms,
  hypernyms, negation, numbers, places, activities that exclude each other, and details that the premise leaves open.
- One premise tells of one moment and one event, as in SNLI: who is reading is taken not to be eating.
- Classes are balanced in each split, and no premise occurs twice.
- The premise is needed: a hypothesis is drawn before its label is looked at, so a bag-of-words model of the
  hypothesis alone scores {figures["hypothesis_only"]:.3f} on the test split (chance: 0.333).
- Vocabulary: {figures["words"]} words.
- Licence: MIT, as the rest of this project.
"""


def main() -> None:
    """Make, check and write everything."""
    splits = make_splits()
    figures = check(splits)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, frame in splits.items():
        frame.to_parquet(FOLDER / f"{name}.parquet", index=False)
    (FOLDER / "README.md").write_text(card(splits, figures), encoding="utf-8")
    print(f"{FOLDER.name}: {figures}")


if __name__ == "__main__":
    main()
