"""Ten files as people have them, none of which is ready for a pipeline, with what must become of each.

The texts are of the demo's toy world (demo/make/world.py), and each label follows from the words: the nano model can
learn them. Each file is small and comes from a seed. No text occurs twice, so that a text tells which row it is.
"""

import csv
import functools
import json
import random
import runpy
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from helpers.project import DEMO

SPLIT_VALUES = {"train": "train", "validation": "dev", "test": "test"}  # of the file with a split column
NO_DIALECT = dict.fromkeys(("sep", "encoding", "quotechar"))
CHINESE = {  # {class: (judgements, advice)}
    "好评": (["非常好吃", "很新鲜", "十分周到", "特别干净", "又快又好"], ["下次还会再来", "推荐给朋友", "值得五星"]),
    "差评": (["非常难吃", "不新鲜", "十分冷淡", "特别脏", "又慢又差"], ["再也不会来了", "要求退款", "不推荐"]),
}
CHINESE_THINGS = [
    "这家店的面条",
    "昨天点的外卖",
    "服务员的态度",
    "酒店的房间",
    "这里的水果",
    "快递的包装",
    "餐厅的环境",
]


@dataclass(frozen=True)
class OwnFile:
    """A file and what must become of it.

    Attributes:
        name: the file's name. Its ending says the format.
        rows: the rows in the file's order.
        label: the label column. A file without a header gets the columns' names from `tools.init`.
        classes: in the order of their numbers.
        texts: the text columns, in the order of the template.
        group: a column of which no value may be in two splits.
        split: the column with the file's own splits, whose values are SPLIT_VALUES.
        dialect: sep, encoding and quotechar for `data.read`; None where the default reads the file.
        has_header: whether the first line names the columns.
    """

    name: str
    rows: pd.DataFrame
    label: str
    classes: tuple[str, ...]
    texts: tuple[str, ...]
    group: str | None = None
    split: str | None = None
    dialect: dict[str, str | None] = field(default_factory=NO_DIALECT.copy)
    has_header: bool = True

    def write(self, folder: Path) -> Path:
        """Write the file to a folder -> its path."""
        path = folder / self.name
        if path.suffix == ".json":
            text = json.dumps(self.rows.to_dict("records"), ensure_ascii=False, indent=1)
            path.write_text(text, encoding="utf-8")
            return path
        quotechar = self.dialect["quotechar"]
        self.rows.to_csv(
            path, index=False, header=self.has_header, sep=self.dialect["sep"] or ",", quotechar=quotechar or '"',
            encoding=self.dialect["encoding"] or "utf-8", quoting=csv.QUOTE_ALL if quotechar else csv.QUOTE_MINIMAL,
        )  # fmt: skip
        return path


@functools.cache
def _world() -> dict:
    return runpy.run_path(str(DEMO / "make" / "world.py"))


def draw_texts(rng: random.Random, facet: str, value: tuple, count: int, used: set[str]) -> list[str]:
    """Draw texts that have a value of a facet, such as ("mood", ("sad", "sad")); none of them is in `used`.

    They are added to `used`.
    """
    texts: list[str] = []
    while len(texts) < count:
        text = _world()["scene_for"](rng, facet, value)[1]
        if text not in used:
            used.add(text)
            texts.append(text)
    return texts


def draw_rows(facet: str, counts: dict[str, int], seed: int, classes: dict[str, str] | None = None) -> pd.DataFrame:
    """Draw rows with the columns `text` and `label`, sorted by class.

    Args:
        counts: {leaf of the facet, such as "sad": number of rows}.
        classes: {leaf: label}, where they differ.
    """
    rng, used = random.Random(seed), set()
    values = {leaf: (kind, leaf) for kind, leaf in _world()["PREMISE_VALUES"][facet]}
    rows = [
        (text, (classes or {}).get(leaf, leaf))
        for leaf, count in counts.items()
        for text in draw_texts(rng, facet, values[leaf], count, used)
    ]
    return pd.DataFrame(rows, columns=["text", "label"])


def shuffle(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    return rows.sample(frac=1, random_state=seed).reset_index(drop=True)


def make_sorted_by_class() -> OwnFile:
    rows = draw_rows("mood", {"angry": 80, "happy": 90, "sad": 70}, seed=1)
    return OwnFile("moods.csv", rows.rename(columns={"label": "mood"}), "mood", ("angry", "happy", "sad"), ("text",))


def make_german_dialect() -> OwnFile:
    """Semicolons, Windows-1252, cells quoted by '. The texts hold all three: `;`, `'` and the euro sign."""
    classes = {"kitchen": "Küche", "office": "Büro", "street": "Straße"}
    rows = shuffle(draw_rows("place", dict.fromkeys(classes, 70), seed=2, classes=classes), seed=2)
    rng = random.Random(2)
    endings = ["", " Preis: {} €; für zwei.", " Größe: {} m²", " 'geöffnet' bis {} Uhr", ' "schön"; Nr. {}']
    texts = [text + rng.choice(endings).format(rng.randint(2, 99)) for text in rows["text"]]
    rows = pd.DataFrame({"Beschreibung": texts, "Ort": rows["label"]})
    dialect = {"sep": ";", "encoding": "cp1252", "quotechar": "'"}
    return OwnFile("Räume.csv", rows, "Ort", ("Büro", "Küche", "Straße"), ("Beschreibung",), dialect=dialect)


def make_without_header() -> OwnFile:
    rows = shuffle(draw_rows("weather", {"rain": 80, "snow": 80, "sun": 80}, seed=3), seed=3)
    return OwnFile("weather.csv", rows, "label", ("rain", "snow", "sun"), ("text",), has_header=False)


def make_json_by_rows() -> OwnFile:
    """One list of rows, with a number of each row and two text columns."""
    rows = shuffle(draw_rows("time", {"morning": 70, "noon": 70, "night": 70}, seed=4), seed=4)
    titles = draw_texts(random.Random(44), "place", ("indoors", None), len(rows), set())
    rows = pd.DataFrame(
        {"id": range(1000, 1000 + len(rows)), "title": titles, "body": rows["text"], "daytime": rows["label"]}
    )
    return OwnFile("daytimes.json", rows, "daytime", ("morning", "night", "noon"), ("title", "body"))


def make_with_splits() -> OwnFile:
    """A column with the value train, dev or test. Its rows are mixed, and its sizes are not those of a holdout."""
    rows = shuffle(draw_rows("posture", {"lie": 100, "sit": 100, "stand": 100}, seed=5), seed=5)
    rng = random.Random(5)
    rows["set"] = rng.choices(list(SPLIT_VALUES.values()), weights=[60, 20, 20], k=len(rows))
    rows = rows[["set", "text", "label"]].rename(columns={"label": "posture"})
    return OwnFile("postures.csv", rows, "posture", ("lie", "sit", "stand"), ("text",), split="set")


def make_with_authors() -> OwnFile:
    """60 authors with 1 to 9 rows each."""
    rows = shuffle(draw_rows("mood", {"happy": 100, "sad": 100, "tired": 100}, seed=6), seed=6)
    rng = random.Random(6)
    authors = [f"author_{n:02}" for n in range(60) for _ in range(rng.randint(1, 9))][: len(rows)]
    authors += [f"author_{n:02}" for n in range(len(rows) - len(authors))]
    rng.shuffle(authors)
    rows = pd.DataFrame({"author": authors, "text": rows["text"], "feeling": rows["label"]})
    return OwnFile("posts.csv", rows, "feeling", ("happy", "sad", "tired"), ("text",), group="author")


def make_many_classes() -> OwnFile:
    """77 classes with 5 to 13 rows each, sorted."""
    rng, used = random.Random(7), set()
    values = [
        (facet, value) for facet in ("activity", "object", "number") for value in _world()["PREMISE_VALUES"][facet]
    ]
    rows = []
    for number, (facet, value) in enumerate(values[:77]):
        label = " ".join(filter(None, dict.fromkeys((facet, *value))))
        rows += [(text, label) for text in draw_texts(rng, facet, value, 5 + number * number % 9, used)]
    frame = pd.DataFrame(rows, columns=["utterance", "intent"]).sort_values("intent", kind="stable", ignore_index=True)
    return OwnFile("intents.csv", frame, "intent", tuple(sorted(frame["intent"].unique())), ("utterance",))


def make_uneven() -> OwnFile:
    """Two classes, 87 to 13."""
    classes = {"happy": "ham", "angry": "spam"}
    rows = shuffle(draw_rows("mood", {"happy": 261, "angry": 39}, seed=8, classes=classes), seed=8)
    return OwnFile("mails.csv", rows.rename(columns={"label": "kind"}), "kind", ("ham", "spam"), ("text",))


def make_chinese() -> OwnFile:
    rng, texts = random.Random(9), {}
    while len(texts) < 200:
        label = list(CHINESE)[len(texts) % 2]
        judgements, advice = CHINESE[label]
        text = (
            f"{rng.choice(CHINESE_THINGS)}{rng.choice(judgements)},{rng.choice(advice)}。花了{rng.randint(10, 99)}元。"
        )
        texts.setdefault(text, label)
    rows = pd.DataFrame(texts.items(), columns=["评论", "情感"])
    return OwnFile("评论.csv", rows, "情感", ("好评", "差评"), ("评论",))


def make_codes() -> OwnFile:
    """Labels that are codes: as integers, 01 and 02 would lose their zeros."""
    classes = {"cook": "01", "music": "02", "sport": "10"}
    rng, used = random.Random(10), set()
    rows = [
        (code, text)
        for kind, code in classes.items()
        for text in draw_texts(rng, "activity", (kind, None), 25, used)
        + [
            text
            for value in _world()["PREMISE_VALUES"]["activity"]
            if value[0] == kind and value[1]
            for text in draw_texts(rng, "activity", value, 15, used)
        ]
    ]
    frame = shuffle(pd.DataFrame(rows, columns=["code", "text"]), seed=10)
    return OwnFile("codes.csv", frame, "code", ("01", "02", "10"), ("text",))


MAKERS = {
    "sorted by class": make_sorted_by_class, "semicolons, cp1252 and '": make_german_dialect,
    "no header": make_without_header, "json by rows": make_json_by_rows, "split column": make_with_splits,
    "authors": make_with_authors, "77 classes": make_many_classes, "87 to 13": make_uneven, "Chinese": make_chinese,
    "leading zeros": make_codes,
}  # fmt: skip
