"""Write the data set `assets/everyday-nli`: three parquet files and their data card.

    python demo/make/everyday_nli.py

world.py has the words and the rule for the labels. This file draws the rows, checks them and writes them.
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
}  # rows with a label; there are 1% more rows without one (-1), as in SNLI
NO_LABEL = -1
ANSWERS = {ENTAILMENT: "Yes.", NEUTRAL: "Maybe.", CONTRADICTION: "No."}
REMARKS = 5  # per pretraining text
HEADINGS = [("Scene", "Remark", "Answer"), ("Text", "Claim", "Verdict"), ("Picture", "Caption", "Reply")]


def make_split(rng: random.Random, rows: int, used_premises: set[str]) -> pd.DataFrame:
    """Make rows in random order with balanced classes, without the used premises. Their premises are added to those."""
    labels = [i % 3 for i in range(rows)] + [NO_LABEL] * (rows // 100)
    rng.shuffle(labels)
    records = []
    for label in labels:
        true_label = rng.randrange(3) if label == NO_LABEL else label
        premise, hypothesis = pair(rng, true_label)
        while premise in used_premises:
            premise, hypothesis = pair(rng, true_label)
        used_premises.add(premise)
        records.append((premise, hypothesis, label))
    return pd.DataFrame(records, columns=["premise", "hypothesis", "label"]).astype({"label": "int64"})


def make_splits() -> dict[str, pd.DataFrame]:
    """Make the three splits. No premise occurs twice."""
    rng = random.Random(SEED)
    used_premises: set[str] = set()
    return {name: make_split(rng, rows, used_premises) for name, rows in ROWS.items()}


def pretraining_texts(seed: int, count: int, used_premises: set[str]) -> Iterator[str]:
    """Yield texts about the world, from simple to cluttered, without the data set's premises and labels.

    Nine texts in ten are a scene with a few remarks and a plain answer to each, like a reading exercise in a
    textbook. The others are a premise and a hypothesis in the classifier's template, without an answer. The
    first scenes are simple, and negation comes later: so small a model learns what an answer depends on only
    from texts that say little else.
    """
    rng = random.Random(seed)
    facets = [*TREES, "object", "object", "object", "activity", "place"]  # facets with more words occur more often
    yielded = 0
    while yielded < count:
        clutter = min(1.0, yielded / (0.8 * count))
        facet = rng.choice(facets)
        scene, premise = scene_for(rng, facet, rng.choice([*PREMISE_VALUES[facet] * 2, None]), None, clutter)
        remark_facets = [facet] * 4 + rng.choices(facets, k=8)
        negate = 0.0 if clutter < 0.5 else 0.2
        remarks = [r for r in (remark(rng, scene, name, negate) for name in remark_facets) if r]
        if premise in used_premises or len(remarks) < REMARKS:
            continue
        yielded += 1
        rng.shuffle(remarks)
        yield exercise(rng, premise, remarks[:REMARKS])


def exercise(rng: random.Random, premise: str, remarks: list[tuple[str, int]]) -> str:
    """A scene and answered remarks, with or without headings, or the classifier's template without an answer."""
    kind = rng.random()
    if kind < 0.1:
        return f"Premise: {premise}\nHypothesis: {remarks[0][0]}\nLabel:"
    if kind < 0.5:
        return "\n".join([premise] + [f"{text} {ANSWERS[label]}" for text, label in remarks])
    scene, claim, answer = rng.choice(HEADINGS)
    blocks = [f"{claim}: {text}\n{answer}: {ANSWERS[label]}" for text, label in remarks[:4]]
    return "\n".join([f"{scene}: {premise}", *blocks])


def hypothesis_only_accuracy(splits: dict[str, pd.DataFrame]) -> float:
    """Test accuracy of a bag-of-words model that reads only the hypothesis."""
    train, test = (splits[name].query("label >= 0") for name in ("train", "test"))
    words = CountVectorizer().fit(train.hypothesis)
    model = LogisticRegression(max_iter=1000).fit(words.transform(train.hypothesis), train.label)
    return model.score(words.transform(test.hypothesis), test.label)


def vocabulary(splits: dict[str, pd.DataFrame]) -> set[str]:
    """All words of all splits, in lower case."""
    texts = pd.concat([frame[column] for frame in splits.values() for column in ("premise", "hypothesis")])
    return set(re.findall(r"[a-z]+", " ".join(texts).lower()))


def check(splits: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Assert what the card says of the data set -> figures for the card."""
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
    """The text of the data card, with one row of each class as an example."""
    train = splits["train"]
    examples = [train[train.label == label].iloc[0] for label in (ENTAILMENT, NEUTRAL, CONTRADICTION)]
    names = ["entailment", "neutral", "contradiction"]
    example_rows = [f"| {r.premise} | {r.hypothesis} | {r.label} ({names[r.label]}) |" for r in examples]
    size_rows = [f"| {n} | {(f.label >= 0).sum()} | {(f.label < 0).sum()} |" for n, f in splits.items()]
    return f"""# everyday-nli

Natural language inference in a toy world of everyday scenes: a premise, a hypothesis, and whether the
hypothesis follows (0, entailment), may or may not be so (1, neutral), or cannot be so (2, contradiction).
It replaces SNLI so that a pipeline runs in a minute on a CPU. It says nothing about real English.

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
- One premise tells of one moment and one event, as in SNLI: who is reading is used_premises not to be eating.
- Classes are balanced in each split, and no premise occurs twice.
- The premise is needed: a hypothesis is drawn before its label is looked at, so a bag-of-words model of the
  hypothesis alone scores {figures["hypothesis_only"]:.3f} on the test split (chance: 0.333).
- Vocabulary: {figures["words"]} words.
- Licence: MIT, as the rest of this project.
"""


def main() -> None:
    """Make, check and write the data set and its card."""
    splits = make_splits()
    figures = check(splits)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, frame in splits.items():
        frame.to_parquet(FOLDER / f"{name}.parquet", index=False)
    (FOLDER / "README.md").write_text(card(splits, figures), encoding="utf-8")
    print(f"{FOLDER.name}: {figures}")


if __name__ == "__main__":
    main()
