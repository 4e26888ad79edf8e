"""What the name of a column says about it: words that labels, texts, groups and splits have in their names."""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# How sure a word is: a column called `label` is a label, one called `type` may be.
LABEL_WORDS = {
    **dict.fromkeys(_words("label labels gold class classes y"), 6.0),
    **dict.fromkeys(  # in German, French, Spanish, Italian, Portuguese, Dutch, Russian, Chinese and Japanese
        _words(
            "klasse kategorie etikett classe catégorie categorie étiquette clase categoría etiqueta categoria "
            "etichetta класс категория метка 标签 标注 类别 分类 標籤 類別 ラベル カテゴリ 分類"
        ),
        5.0,
    ),
    **dict.fromkeys(
        _words(
            "fraud fraudulent fake scam phishing "
            "emotion emotions intent intents category categories topic topics stance polarity "
            "toxic toxicity spam hate sarcasm sarcastic humor mood entailment duplicate acceptable verdict "
            "diagnosis outcome target annotation"
        ),
        5.0,
    ),
    **dict.fromkeys(_words("stars star rating ratings queue department priority severity urgency"), 4.5),
    **dict.fromkeys(_words("sentiment sentiments"), 5.5),
    "is": 3.0,
    **dict.fromkeys(_words("score grade type kind tag genre status level"), 2.5),
}
METADATA_WORDS = _words(
    "language lang locale country region city state location place year month day date time hour source version "
    "platform device os gender sex age domain split fold id idx index key hash code worker annotator annotators "
    "annotations keyword publisher verified anonymous channel unit"
)
COUNT_WORDS = _words("count counts num number n len length votes likes retweets age year price amount size confidence")
TEXT_WORDS = _words(
    "text texts sentence sentences review reviews comment comments tweet content body title subject headline message "
    "question answer premise hypothesis query utterance description summary abstract post passage context claim "
    "evidence statement document article paragraph dialogue note notes transcript prompt response caption phrase "
    "snippet aspect term sms email request narrative "
    "titel betreff kommentar satz frage antwort beschreibung nachricht texte titre commentaire phrase question texto "
    "título titulo comentario testo titolo commento tekst текст отзыв 文本 内容 正文 评论 标题 句子 テキスト 本文"
)
DERIVED = "is made from another"
NOT_TEXT_WORDS = {  # why a column of words is no input
    **dict.fromkeys(_words("explanation rationale justification"), "seems to be written after the label"),
    **dict.fromkeys(_words("tags keywords keyword hashtags hashtag"), "lists words"),
    **dict.fromkeys(_words("location address city country place"), "is a place"),
    **dict.fromkeys(_words("actors cast director directors artist artists"), "names"),
    **dict.fromkeys(
        _words(
            "parse lemmas lemmatized lemmatised stemmed tokens tokenized tokenised pos clean cleaned preprocessed "
            "processed normalized normalised"
        ),
        DERIVED,
    ),
}
# Rows of one person, conversation or document are not independent.
CLOSE_ENTITIES = _words(
    "author authors user users username userid reviewer patient customer client speaker writer respondent participant "
    "autor autorin nutzer benutzer kunde kunden patientin auteur utilisateur cliente usuario autore utente gebruiker "
    "автор пользователь 作者 用户 患者 "
    "student account session conversation dialog dialogue thread doc document article paper report premise passage "
    "context paragraph prompt question caption screen hadm encounter visit essay person pid uid subject case"
)
ENTITIES = CLOSE_ENTITIES | _words(
    "url link product movie film item business asin isbn book game app hotel restaurant seller video song"
)
NAME_WORDS = ENTITIES | {"name"}
SPLIT_WORDS = {
    **dict.fromkeys(_words("train training trn trainset"), "train"),
    **dict.fromkeys(_words("val valid validation dev development"), "validation"),
    **dict.fromkeys(_words("test testing tst eval evaluation holdout"), "test"),
}
KEY_WORDS = _words("id ids key hash uuid")
SPLIT_NAMES = _words("split fold set partition subset")
NAMELESS = _words("column col unnamed field var v c f x feature attribute")


def split_name(name: str) -> list[str]:
    """The words of a column's name in lower case: goldLabel_2 is gold, label, 2."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)", " ", name)
    words = re.findall(r"[^\W_]+", spaced.lower())
    numbered = [re.fullmatch(r"(.+?)(id|nr|nummer|number|key)", word) for word in words]  # userid, Kundennummer
    return [
        part
        for word, parts in zip(words, numbered, strict=True)
        for part in (parts.groups() if parts and parts[1] in ENTITIES else [word])
    ]


def is_nameless(name: str) -> bool:
    """Whether a name says nothing, such as column_1."""
    return all(word in NAMELESS or word.isdigit() for word in split_name(name))
