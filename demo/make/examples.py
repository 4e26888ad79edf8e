"""Write the three data sets of docs/own-data.md, next to `assets/everyday-nli`, each with its data card.

    python demo/make/examples.py

Run it after everyday_nli.py: the sets have none of its premises, and none of those in the texts that nano-phi was
pretrained on. The sets differ in format, columns and labels: jsonl with text labels and rows without a label, a single
csv file with imbalanced classes, parquet with many named classes.
"""

import json
import random
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars
from everyday_nli import FOLDER as NLI_FOLDER
from everyday_nli import pretraining_texts
from nano_phi import BATCH, STEPS
from nano_phi import SEED as PRETRAINING_SEED
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from world import ACTIVITIES, PEOPLE, PREMISE_VALUES, STATEMENT_VALUES, TREES, phrase, remark, scene_for

ASSETS = Path(__file__).parent.parent / "assets"
SEED = 2025

PAIRS = ASSETS / "everyday-pairs"
PAIR_CLASSES = ("entailment", "neutral", "contradiction")
NO_GOLD = "-"  # SNLI's mark for a row on which its annotators did not agree
PAIR_SCENES = {"train": 310, "dev": 70, "test": 110}  # three rows each

MOODS_FOLDER = ASSETS / "everyday-moods"
MOOD_ROWS = 1400
MOOD_OF = {"happy": "positive", "sad": "negative", "angry": "negative"}  # tired is neither positive nor negative
RARE = 5  # one row in RARE is negative

TOPICS_FOLDER = ASSETS / "everyday-topics"
TOPICS = [leaf for _, _, leaves in ACTIVITIES.values() for leaf in leaves]
TOPIC_ROWS = {"train": 1000, "validation": 200, "test": 400}
HEADLINES = ["{}", "Somebody {}", "People {}"]


def make_pairs() -> dict[str, pd.DataFrame]:
    """Make pairs with SNLI's column names. As in SNLI, each premise has a hypothesis of each class.

    No premise is in two splits. One row in a hundred has no gold label.
    """
    rng, used = random.Random(SEED), everyday_premises()
    pretraining = "\n".join(pretraining_texts(PRETRAINING_SEED, STEPS * BATCH, used))
    return {split: make_pair_split(rng, scenes, used, pretraining) for split, scenes in PAIR_SCENES.items()}


def everyday_premises() -> set[str]:
    """The premises of all splits of everyday-nli."""
    return {text for path in NLI_FOLDER.glob("*.parquet") for text in pd.read_parquet(path)["premise"]}


def make_pair_split(rng: random.Random, scenes: int, used: set[str], pretraining: str) -> pd.DataFrame:
    """Make `scenes` premises with three hypotheses each. No premise is used before or in the pretraining texts."""
    records = []
    while len(records) < 3 * scenes:
        facet = rng.choice(list(TREES))
        scene, premise = scene_for(rng, facet, rng.choice([*PREMISE_VALUES[facet], None]))
        hypotheses = three_hypotheses(rng, scene)
        if premise in used or premise in pretraining or hypotheses is None:
            continue
        used.add(premise)
        for label, hypothesis in zip(PAIR_CLASSES, hypotheses, strict=True):
            gold = NO_GOLD if rng.random() < 0.01 else label
            records.append({"gold_label": gold, "sentence1": premise, "sentence2": hypothesis})
    return pd.DataFrame(records)


def three_hypotheses(rng: random.Random, scene: dict) -> list[str] | None:
    """Three statements: entailed by the scene, neutral, contradicted. None if one of them is not found."""
    statements: dict[int, str] = {}
    for facet in rng.sample(list(TREES), len(TREES)) * 3:
        if statement := remark(rng, scene, facet):
            statements.setdefault(statement[1], statement[0])
    return [statements[label] for label in range(3)] if len(statements) == 3 else None


def make_moods() -> pd.DataFrame:
    """Make sentences with their sentiment, shuffled, without duplicates."""
    rng, texts = random.Random(SEED), {}
    while len(texts) < MOOD_ROWS:
        sentiment = "negative" if len(texts) % RARE == 0 else "positive"
        texts.setdefault(mood_text(rng, sentiment), sentiment)
    rows = list(texts.items())
    rng.shuffle(rows)
    return pd.DataFrame(rows, columns=["text", "sentiment"])


def mood_text(rng: random.Random, sentiment: str) -> str:
    """A scene with a person in that mood, or a mood that has changed or is denied, where single words don't decide."""
    mood, other = (rng.choice([m for m, s in MOOD_OF.items() if (s == sentiment) is same]) for same in (True, False))
    if rng.random() < 0.5:
        return scene_for(rng, "mood", (mood, mood))[1]
    who = rng.choice(list(PEOPLE))
    subject, objective, _ = PEOPLE[who][1]
    now, before = (phrase(rng, "mood", (name, name), 1) for name in (mood, other))
    doing = phrase(rng, "activity", rng.choice(STATEMENT_VALUES["activity"]), 1)
    form = rng.choice(
        [
            f"The {who} was {before} while {doing}, but now {subject} is {now}.",
            f"The {who} is {now} while {doing}, but before {subject} was {before}.",
            f"The {who} is no longer {before} while {doing}.",
            f"The {who} would be {before} if {subject} was not {doing}.",
            f"The {who} {doing} is anything but {before}.",
        ]
    )
    return form.replace("{him}", objective)


def make_topics() -> dict[str, pd.DataFrame]:
    """Make headlines and short texts of two scenes. The headline is about one scene, whose activity is the topic.

    The topics are as balanced as the number of rows allows. No text is in two splits.
    """
    rng, used, splits = random.Random(SEED), set(), {}
    for split, rows in TOPIC_ROWS.items():
        records = []
        while len(records) < rows:
            topic = TOPICS[len(records) % len(TOPICS)]
            title, body = topic_text(rng, topic)
            if body not in used:
                used.add(body)
                records.append({"title": title, "body": body, "topic": topic})
        rng.shuffle(records)
        splits[split] = pd.DataFrame(records)
    return splits


def topic_text(rng: random.Random, topic: str) -> tuple[str, str]:
    """(headline, text): the headline names a kind of activity; the text has the topic and another kind of activity."""
    kind = next(kind for kind, (_, _, leaves) in ACTIVITIES.items() if topic in leaves)
    others = [value for value in PREMISE_VALUES["activity"] if value[0] != kind and value[1]]
    activities = [(kind, topic), rng.choice(others)]
    rng.shuffle(activities)
    body = " ".join(scene_for(rng, "activity", value, clutter=0.5)[1] for value in activities)
    title = rng.choice(HEADLINES).format(phrase(rng, "activity", (kind, None), 1))
    return title[0].upper() + title[1:], body


def score_bag_of_words(train: pd.DataFrame, test: pd.DataFrame, text: str, label: str) -> tuple[float, float]:
    """(accuracy, macro F1) on `test` of a bag-of-words model of one column."""
    words = CountVectorizer().fit(train[text])
    model = LogisticRegression(max_iter=1000).fit(words.transform(train[text]), train[label])
    predicted = model.predict(words.transform(test[text]))
    return (predicted == test[label]).mean(), f1_score(test[label], predicted, average="macro")


def check_pairs(splits: dict[str, pd.DataFrame]) -> float:
    """Assert what the card says -> accuracy of a bag-of-words model of the hypothesis."""
    premises = [set(frame["sentence1"]) for frame in splits.values()]
    assert len(set.union(*premises)) == sum(map(len, premises)) == sum(PAIR_SCENES.values())
    assert not set.union(*premises) & everyday_premises()
    for frame in splits.values():
        assert {*PAIR_CLASSES, NO_GOLD} == set(frame["gold_label"])
    gold = {name: frame[frame["gold_label"] != NO_GOLD] for name, frame in splits.items()}
    accuracy, _ = score_bag_of_words(gold["train"], gold["test"], "sentence2", "gold_label")
    assert accuracy <= 0.5, accuracy
    return accuracy


def check_moods(rows: pd.DataFrame) -> float:
    """Assert what the card says -> macro F1 of a bag-of-words model that is trained on the first 80%."""
    assert rows["text"].is_unique
    assert (rows["sentiment"] == "negative").sum() * RARE == len(rows)
    first = len(rows) * 8 // 10
    _, macro_f1 = score_bag_of_words(rows[:first], rows[first:], "text", "sentiment")
    assert macro_f1 <= 0.85, macro_f1
    return macro_f1


def check_topics(splits: dict[str, pd.DataFrame]) -> tuple[float, float]:
    """Assert what the card says -> accuracy of bag-of-words models of the headline and of the text."""
    bodies = pd.concat([frame["body"] for frame in splits.values()])
    assert bodies.is_unique
    for frame in splits.values():
        counts = frame["topic"].value_counts()
        assert len(counts) == len(TOPICS) and counts.max() - counts.min() <= 1
    title, body = (
        score_bag_of_words(splits["train"], splits["test"], column, "topic")[0] for column in ("title", "body")
    )
    assert title <= 0.4 and body <= 0.6, (title, body)
    return title, body


def table(rows: pd.DataFrame) -> str:
    """A Markdown table of a few rows."""
    lines = [rows.columns, ["---"] * rows.shape[1], *rows.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_pairs() -> None:
    """Make, check and write everyday-pairs."""
    splits = make_pairs()
    accuracy = check_pairs(splits)
    PAIRS.mkdir(parents=True, exist_ok=True)
    for split, frame in splits.items():
        lines = (json.dumps(row) for row in frame.to_dict("records"))
        (PAIRS / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    sizes = ", ".join(
        f"{(frame['gold_label'] != NO_GOLD).sum()} {split} (and {(frame['gold_label'] == NO_GOLD).sum()} without label)"
        for split, frame in splits.items()
    )
    card = f"""# everyday-pairs

Natural language inference in the toy world of `everyday-nli`, laid out as SNLI's authors lay out theirs: jsonl, the
columns `sentence1`, `sentence2` and `gold_label`, classes as text, `{NO_GOLD}` where there is no gold label.

{table(splits["train"][:3])}

- Rows: {sizes}.
- Each premise occurs three times, with a hypothesis of each class: these rows are not independent.
- No premise is in two splits, in `everyday-nli`, or in the texts on which `nano-phi` was pretrained.
- A bag-of-words model of the hypothesis alone scores {accuracy:.3f} on the test rows (chance: 0.333).
- Made by `demo/make/examples.py`. Licence: MIT, as the rest of this project.
"""
    (PAIRS / "README.md").write_text(card, encoding="utf-8")
    print(f"{PAIRS.name}: {sizes}; hypothesis only: accuracy {accuracy:.3f}")


def write_moods() -> None:
    """Make, check and write everyday-moods."""
    rows = make_moods()
    macro_f1 = check_moods(rows)
    MOODS_FOLDER.mkdir(parents=True, exist_ok=True)
    rows.to_csv(MOODS_FOLDER / "moods.csv", index=False, lineterminator="\n")
    negative = (rows["sentiment"] == "negative").sum()
    card = f"""# everyday-moods

Sentiment of two classes in the toy world of `everyday-nli`: one csv file, not divided, its rows in random order.

{table(rows.groupby("sentiment").head(4))}

- Rows: {len(rows)}, of which {negative} are negative: uneven on purpose.
- In half of the rows a mood has changed, is over or is denied. Single words don't decide there: a bag-of-words model,
  trained on the first 80%, has a macro F1 of {macro_f1:.3f} on the others.
- No text occurs twice.
- Made by `demo/make/examples.py`. Licence: MIT, as the rest of this project.
"""
    (MOODS_FOLDER / "README.md").write_text(card, encoding="utf-8")
    print(f"{MOODS_FOLDER.name}: {len(rows)} rows, {negative} negative; bag of words: macro F1 {macro_f1:.3f}")


def write_topics() -> None:
    """Make, check and write everyday-topics."""
    splits = make_topics()
    title, body = check_topics(splits)
    TOPICS_FOLDER.mkdir(parents=True, exist_ok=True)
    features = Features({"title": Value("string"), "body": Value("string"), "topic": ClassLabel(names=TOPICS)})
    for split, frame in splits.items():
        codes = frame.assign(topic=frame["topic"].map(TOPICS.index))
        data = Dataset.from_dict(codes.to_dict("list"), features=features)
        data.to_parquet(TOPICS_FOLDER / f"{split}.parquet")
    sizes = ", ".join(f"{len(frame)} {split}" for split, frame in splits.items())
    card = f"""# everyday-topics

{len(TOPICS)} topics in the toy world of `everyday-nli`: a headline and a text of two scenes. The topic is what the
scene that the headline is about shows. Parquet by `datasets`, `topic` a ClassLabel: the files name their classes.

{table(splits["train"][:4])}

- Rows: {sizes}. The topics are even.
- Both columns are needed: a bag-of-words model scores {title:.3f} on the test rows from the headline alone, and
  {body:.3f} from the text alone.
- No text occurs twice.
- Made by `demo/make/examples.py`. Licence: MIT, as the rest of this project.
"""
    (TOPICS_FOLDER / "README.md").write_text(card, encoding="utf-8")
    print(f"{TOPICS_FOLDER.name}: {sizes}, {len(TOPICS)} topics; headline only: {title:.3f}, text only: {body:.3f}")


def main() -> None:
    """Make, check and write all three data sets."""
    disable_progress_bars()
    write_pairs()
    write_moods()
    write_topics()


if __name__ == "__main__":
    main()
