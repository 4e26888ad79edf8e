"""Tables as users have them: columns and values like those of well-known data sets, and the columns to be chosen."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

WORDS = re.findall(
    r"\w+",
    "the a of to and in was is it that for on with they this he she had not very good bad film room service food time "
    "people never again would really little story place staff price quick slow house water light night morning train "
    "city work money phone order late broken happy sad doctor pain left right small large old new green blue",
)
CHINESE = "这个酒店的服务很好房间干净早餐一般价格便宜位置方便下次还会来但是隔音不太行前台态度差等了很久"
THAI = "กขคงจฉชซดตถทนบปผพมยรลวสหอะาิีุูเแโ"
FIRST_NAMES = ("Anna", "Ben", "Carla", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kim", "Lena")


@dataclass(frozen=True)
class Example:
    """Columns of a table, and which of them are to be chosen.

    Attributes:
        columns: "name = kind" for each column, separated by "; ". `make_column` lists the kinds.
        label, group: any of these columns, separated by "|"; empty: none.
        texts: all of these columns, separated by ", ".
        split: {split: value}.
    """

    columns: str
    label: str
    texts: str = "text"
    group: str = ""
    split: dict[str, str] | None = None
    rows: int = 900

    def make(self) -> pa.Table:
        """The table; the same at each call."""
        rng = np.random.default_rng(7)
        table: dict[str, pa.Array | datasets.ClassLabel | list] = {}
        names = {}
        for part in self.columns.split("; "):
            name, kind = part.split(" = ")
            if kind.startswith("classes "):
                names[name] = datasets.ClassLabel(names=kind.split(" ")[1].split("|"))
                lowest = -1 if kind.endswith("unlabelled") else 0
                table[name] = rng.integers(lowest, len(names[name].names), self.rows)
            else:
                table[name] = make_column(kind, self.rows, rng, table)
        plain = pa.table(table)
        if not names:
            return plain
        features = datasets.Features.from_arrow_schema(plain.schema) | names
        return plain.replace_schema_metadata(datasets.Features(features).arrow_schema.metadata)


def make_column(kind: str, rows: int, rng: np.random.Generator, table: dict) -> list:
    """The cells of a column.

    Args:
        kind: `a|b|c`: one of these, a missing cell for an empty one; `ints 0|1`, `floats 0|1`, `bools`, `sorted a|b`;
            `text 5-25`: so many words; `texts 5-25 200`: one of 200 such texts; `title 3-8`; `html 5-25`;
            `chinese`, `thai`;
            `key`: another in each row; `key 150`: one of 150; `person 300`: one of 300, some more often;
            `row`: its number; `each 3 KIND`: three rows the same; `date %d.%m.%Y`; `count`; `number`;
            `of COLUMN {}`: a cell of another column in this format; `lists COLUMN`; `number of COLUMN`.
    """
    name, _, rest = kind.partition(" ")
    if name in ("text", "title", "texts", "html"):
        sizes, _, pool = rest.partition(" ")
        low, high = map(int, (sizes or "5-25").split("-"))
        texts = sentences(rng, int(pool or rows), low, high)
        forms = {"title": lambda text: text[:-1].title(), "html": "<p>{}</p>".format}
        texts = list(map(forms.get(name, str), texts))
        return pick(rng, texts, rows) if pool else texts
    if name == "key":
        keys = [f"{rng.integers(16**8):08x}{i:04x}" for i in range(int(rest or rows))]
        return pick(rng, keys, rows) if rest else keys
    if name == "person":
        people = [f"{FIRST_NAMES[i % 12]} {FIRST_NAMES[i // 12 % 12]}{'son' * (i // 144)}" for i in range(int(rest))]
        weights = 1 / (np.arange(len(people)) + 5)
        return pick(rng, people, rows, weights / weights.sum())
    if name == "row":
        return [str(row) for row in range(rows)]
    if name == "each":
        times, _, kind = rest.partition(" ")
        cells = make_column(kind, -(-rows // int(times)), rng, table)
        return [cell for cell in cells for _ in range(int(times))][:rows]
    if name == "date":
        start = np.datetime64("2019-01-01T00:00:00")
        moments = start + rng.integers(0, 10**8, rows).astype("timedelta64[s]")
        return [moment.item().strftime(rest or "%Y-%m-%d %H:%M:%S") for moment in moments]
    if name == "count":
        return [str(count) for count in rng.poisson(30, rows)]
    if name == "number":
        if rest.startswith("of "):
            values = list(dict.fromkeys(table[rest.removeprefix("of ")]))
            return [values.index(value) for value in table[rest.removeprefix("of ")]]
        return rng.random(rows).round(3).tolist()
    if name in ("chinese", "thai"):
        alphabet = list(CHINESE if name == "chinese" else THAI)
        return ["".join(pick(rng, alphabet, size)) for size in rng.integers(8, 60, rows)]
    if name == "of":
        column, _, form = rest.partition(" ")
        return [form.format(cell, first=" ".join(cell.split()[1:4])) for cell in table[column]]
    if name == "lists":
        return [[cell] for cell in table[rest]]
    if name == "sorted":
        return sorted(pick(rng, rest.split("|"), rows))
    if name == "bools":
        return pick(rng, [False, True], rows)
    if name in ("ints", "floats"):
        read = int if name == "ints" else float
        return pick(rng, [read(value) if value else None for value in rest.split("|")], rows)
    return pick(rng, [value or None for value in kind.split("|")], rows)


def sentences(rng: np.random.Generator, rows: int, low: int, high: int) -> list[str]:
    """Texts of `low` to `high` words."""
    ends = np.cumsum(rng.integers(low, high + 1, rows)).tolist()
    words = [WORDS[i] for i in rng.integers(0, len(WORDS), ends[-1])]
    return [" ".join(words[start:end]).capitalize() + "." for start, end in zip([0, *ends], ends, strict=False)]


def pick(rng: np.random.Generator, values: Sequence, rows: int, weights: Sequence[float] | None = None) -> list:
    """One of the values for each row."""
    return [values[i] for i in rng.choice(len(values), rows, p=weights)]


NLI = "entailment|neutral|contradiction"
TOPICS = "sports|politics|science|law"
INTENTS = "|".join(f"{a}_{b}_{i}" for i, (a, b) in enumerate(zip(WORDS, reversed(WORDS), strict=True)))
AMAZON = (
    "stars = ints 1|2|3|4|5; review_title = title 1-6; review_body = text 10-60; reviewer_id = key 600; "
    "product_id = key 500; language = en; product_category = home|book|shoes|toy|electronics|drugstore"
)
AMAZON_ON_THE_HUB = (
    "review_id = key; product_id = key 500; reviewer_id = key 600; stars = ints 1|2|3|4|5; review_body = text 10-60; "
    "review_title = title 1-6; language = de|en|fr; product_category = home|book|shoes|toy|electronics|drugstore"
)
SNLI_JSONL = (
    f"gold_label = {NLI}|{NLI}|{NLI}|-; annotator_labels = lists gold_label; captionID = each 3 key; pairID = row; "
    "sentence1 = each 3 text; sentence1_parse = of sentence1 (ROOT (S ({}))); sentence2 = text 4-10"
)
TWEETS = (
    "target = 0|4; ids = row; date = date %a %b %d %H:%M:%S PDT %Y; flag = NO_QUERY; user = person 200; text = text"
)
JIGSAW = "toxic|severe_toxic|obscene|threat|insult|identity_hate"
LIAR = (
    "id = row; label = true|false|half-true|pants-fire; statement = text 8-25; subject = taxes|economy,jobs|elections; "
    "speaker = person 200; job_title = title 1-3; state = Texas|Ohio|New York; party = republican|democrat; "
    "false_counts = count; context = title 2-5"
)
COMPLAINTS = (
    "Date received = date %m/%d/%Y; Product = Mortgage|Student loan|Debt collection; Sub-product = Loan|Other debt|; "
    "Issue = Fees|Loan servicing|Communication tactics; Consumer complaint narrative = text 30-80; "
    "Company = person 150; State = CA|TX|NY; Submitted via = Web; Complaint ID = row"
)
JOBS = (
    "job_id = row; title = title 2-5; location = US, NY, New York|DE, BE, Berlin; department = Sales|Marketing||; "
    "salary_range = 20000-28000|||||||; company_profile = texts 30-60 200; description = text 50-100; "
    "requirements = text 30-60; telecommuting = 0|0|0|1; has_company_logo = 0|1; "
    "employment_type = Full-time|Part-time; industry = title 1-2; function = Sales|IT; fraudulent = 0|0|0|1"
)
YELP = (
    "review_id = key; user_id = key 600; business_id = key 90; stars = floats 1|2|3|4|5; useful = count; "
    "funny = count; text = text 20-60; date = date"
)
FINE_FOOD = (
    "Id = row; ProductId = key 90; UserId = key 850; ProfileName = person 400; HelpfulnessNumerator = count; "
    "Score = 1|2|3|4|5; Time = count; Summary = title 1-5; Text = text 20-60"
)
PUBLIC_HEALTH = (
    "claim_id = row; claim = text 8-20; date_published = date %B %d, %Y; explanation = text 20-50; "
    "fact_checkers = person 60; main_text = text 60-120; sources = of claim_id https://example.org/{}; "
    "label = true|false|mixture|unproven; subjects = Health News, AP|Medical, Cancer|AP"
)

EXAMPLES = {
    # pairs of texts
    "sst2": Example("sentence = text; label = classes negative|positive; idx = row", "label", "sentence"),
    "mnli": Example(
        f"promptID = each 3 row; pairID = row; premise = each 3 text; hypothesis = text 4-10; "
        f"genre = government|fiction|travel; label = classes {NLI}",
        "label", "premise, hypothesis", "promptID|premise",
    ),
    "snli's own jsonl": Example(SNLI_JSONL, "gold_label", "sentence1, sentence2", "captionID|sentence1"),
    "e-snli": Example(
        f"premise = each 3 text; hypothesis = text 4-10; label = classes {NLI}; explanation_1 = text 6-15",
        "label", "premise, hypothesis", "premise",
    ),
    "questions": Example(
        "id = row; qid1 = row; qid2 = row; question1 = texts 5-12 5000; question2 = text 5-12; is_duplicate = 0|1",
        "is_duplicate", "question1, question2",
    ),
    "boolq": Example(
        "question = text 6-12; title = title 1-4; answer = bools; passage = texts 60-120 4000",
        "answer", "question, title, passage",
    ),
    "words in context": Example(
        f"word = {'|'.join(WORDS)}; sentence1 = text; sentence2 = text; start1 = count; idx = row; label = ints 0|1",
        "label", "sentence1, sentence2",
    ),
    "similarity, a number": Example("sentence1 = text; sentence2 = text; score = number", ""),
    "aspects": Example(
        "id = each 3 row; Sentence = each 3 text; aspect_term = title 1-2; polarity = positive|negative|neutral",
        "polarity", "Sentence, aspect_term", "id|Sentence",
    ),
    # one text, one label
    "banking77": Example(f"text = text 4-20; category = {INTENTS}", "category", rows=2000),
    "ag_news without header": Example(
        "column_1 = 1|2|3|4; column_2 = title 5-9; column_3 = text 20-40", "column_1", "column_2, column_3"
    ),
    "imdb, sorted": Example("review = text; sentiment = sorted positive|negative", "sentiment", "review", rows=50_000),
    "imdb with unlabelled rows": Example("text = text; label = classes neg|pos unlabelled", "label"),
    "spam": Example(
        "v1 = ham|ham|ham|spam; v2 = text; Unnamed: 2 = bt not|done|" + "|" * 200 + "; Unnamed: 3 = one|" + "|" * 200
        + "; Unnamed: 4 = ", "v1", "v2",
    ),
    "toxic": Example("id = key; comment_text = text; toxic = 0|0|0|1", "toxic", "comment_text"),
    "six labels of jigsaw": Example(
        "id = key; comment_text = text; " + "; ".join(f"{name} = ints 0|0|0|1" for name in JIGSAW.split("|")),
        JIGSAW, "comment_text",
    ),
    "tags of films": Example(
        "movieId = row; title = title 2-5; plot = text; genres = War|Drama|Comedy|Drama, War|War, Comedy",
        "genres", "title, plot",
    ),
    "one label next to other flags": Example(
        "text = text; is_short = 0|1; label = 0|1; has_link = 0|1; friendly = 0|1", "label"
    ),
    "chinese": Example("review = chinese; label = 0|1", "label", "review"),
    "chinese columns": Example("标题 = chinese; 类别 = 体育|财经|娱乐", "类别", "标题"),
    "thai": Example("texts = thai; category = pos|neu|neg|q", "category", "texts"),
    "german columns": Example(
        "Nr = row; Beschreibung = text; Kategorie = Rechnung|Technik", "Kategorie", "Beschreibung"
    ),
    "french columns": Example("avis = text; note = 1|2|3|4|5; auteur = person 600", "note", "avis", "auteur"),
    "german names": Example("Text = text; Klasse = gut|schlecht|egal; autor = person 40", "Klasse", "Text", "autor"),
    "codes": Example("text = text; code = 01|02|07|10|11", "code"),
    "floats": Example("text = text; label = floats 1|2|", "label"),
    "floats in csv": Example("text = text; rating = 1.0|2.0|3.0", "rating"),
    "label first": Example(f"kind_of_news = {TOPICS}; text = text", "kind_of_news"),
    "two labels": Example("text = text; emotion = joy|fear; topic = art|law; year = 2019|2020", "emotion|topic"),
    "intents": Example(f"text = text 3-12; intent = classes {INTENTS}", "intent", rows=3000),
    "coarse and fine": Example(
        f"text = text; coarse_label = classes {TOPICS}; fine_label = classes {INTENTS}", "coarse_label|fine_label"
    ),
    "numbers and names": Example(
        f"Unnamed: 0 = row; content = text 30-80; target_names = {TOPICS}; target = number of target_names",
        "target_names", "content",
    ),
    "cleaned only": Example("clean_text = text; category = -1|0|1", "category", "clean_text"),
    "cleaned too": Example("text = text; label = 0|1; text_clean = of text {first}", "label"),
    "selected text": Example(
        "textID = key; text = text; selected_text = of text {first}; sentiment = neutral|positive|negative", "sentiment"
    ),
    "resumes": Example("Category = Java Developer|HR|Advocate; Resume = text 80-150", "Category", "Resume"),
    "stance": Example(
        "ID = row; Target = Atheism|Climate Change is a Real Concern; Tweet = text; Stance = FAVOR|AGAINST|NONE",
        "Stance", "Tweet",
    ),
    "question quality": Example(
        "Id = row; Title = title 5-10; Body = html 30-60; Tags = <a><b>|<c>; "
        "CreationDate = date; Y = HQ|LQ",
        "Y", "Title, Body",
    ),
    "essays": Example(
        "essay_id = row; essay_set = 1|2|3|4; essay = text 100-150; rater1_domain1 = 1|2|3; domain1_score = 2|3|4|5|6",
        "domain1_score", "essay",
    ),
    "languages": Example("Text = text; language = Estonian|Swedish|Thai|Dutch", "language", "Text"),
    "authors": Example("text = text 50-90; author = person 40", "author"),
    # short texts
    "names": Example("name = key; gender = M|F", "gender", "name"),
    "phishing": Example("key = key; url = of key http://{}.com/a; type = benign|phishing", "type", "url"),
    # groups
    "amazon": Example(AMAZON, "stars", "review_title, review_body", "reviewer_id|product_id"),
    "amazon on the hub": Example(AMAZON_ON_THE_HUB, "stars", "review_body, review_title", "reviewer_id|product_id"),
    "tweets": Example(TWEETS, "target", group="user"),
    "medical notes": Example(
        "note_id = row; patient_id = key 200; age = count; gender = F|M; note = text 30-60; "
        "diagnosis = asthma|angina|none",
        "diagnosis", "note", "patient_id",
    ),
    "forty patients": Example("subject_id = key 40; text = text; label = ints 0|1", "label", group="subject_id"),
    "six patients": Example("patient = key 6; text = text; label = ints 0|1", "label"),
    "yelp": Example(YELP, "stars", "text", "user_id|business_id"),
    "fine food": Example(FINE_FOOD, "Score", "Summary, Text", "UserId|ProductId|ProfileName"),
    "fake news": Example(
        "id = row; title = title 6-12; author = person 200; text = text 30-80; label = 0|1",
        "label", "title, text", "author",
    ),
    "news by subject": Example(
        "title = title 6-12; text = text 30-80; subject = worldnews|left-news|Government News; "
        "date = date %B %d, %Y; label = fake|true", "label", "title, text",
    ),
    "liar": Example(LIAR, "label", "statement, job_title, context", "speaker"),
    "public health": Example(PUBLIC_HEALTH, "label", "claim, main_text"),
    "complaints": Example(COMPLAINTS, "Product|Issue", "Consumer complaint narrative"),
    "headlines": Example(
        f"key = key; link = of key https://news.com/entry/{{}}; headline = title 6-12; category = {TOPICS}; "
        "short_description = text 10-25; authors = person 200; date = date %Y-%m-%d",
        "category", "headline, short_description", "authors",
    ),
    "games": Example(
        "app_id = key 60; app_name = person 60; review_text = text; review_score = 1|-1; review_votes = 0|1",
        "review_score", "review_text", "app_id|app_name",
    ),
    "transcriptions": Example(
        "Unnamed: 0 = row; description = text 8-20; medical_specialty =  Surgery| Urology| Radiology; "
        "sample_name = title 2-4; transcription = text 80-150; keywords = text 5-9",
        "medical_specialty", "description, transcription",
    ),
    "dialogue acts": Example(
        "conversation_id = each 12 row; speaker = A|B; utterance = text 2-12; act = sd|b|sv|aa|qy",
        "act", "utterance", "conversation_id",
    ),
    "phrases": Example(
        "PhraseId = row; SentenceId = each 15 row; Phrase = title 1-12; Sentiment = 0|1|2|3|4",
        "Sentiment", "Phrase", "SentenceId",
    ),
    "jobs": Example(JOBS, "fraudulent", "title, company_profile, description, requirements", "company_profile"),
    "tickets": Example(
        "subject = title 2-7; body = text 20-60; priority = low|medium|high; "
        "queue = Billing and Payments|IT Support|Sales; agent = person 15; created_at = date",
        "priority|queue", "subject, body",
    ),
    # splits
    "split": Example(
        "text = text; label = a|b|c; split = train|train|train|dev|test", "label",
        split={"train": "train", "validation": "dev", "test": "test"},
    ),
    "train and test": Example(
        "Phase = Training|Training|TEST; text = text; y = ints 0|1", "y", split={"train": "Training", "test": "TEST"}
    ),
    "numbered splits": Example(
        "partition = ints 0|0|0|0|1|2; text = text; class = no|yes", "class",
        split={"train": "0", "validation": "1", "test": "2"},
    ),
    "is_valid": Example(
        "label = negative|positive; text = text 30-60; is_valid = False|False|False|True", "label",
        split={"train": "False", "validation": "True"},
    ),
    "folds": Example("text = text; fold = ints 0|1|2; class = no|yes", "class"),
    # no label
    "no label": Example("id = key; text = text; price = number", ""),
    "only users": Example("text = text; user = person 100; date = date %d/%m/%Y", ""),
    "each label once": Example("text = text; label = key", "", rows=2),
}  # fmt: skip
