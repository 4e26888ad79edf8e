"""What guesses right with less: the marks that a tuned model must pass."""

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def majority_class(train_gold: np.ndarray) -> int:
    """The label that most training rows have, the first of equals."""
    return int(np.bincount(train_gold).argmax())


ALL = "guess"  # the column of the case table that holds what all texts' words guess


def guess_of(column: str) -> str:
    """The column of the case table that holds what one text column's words guess."""
    return f"guess_{column}"


def bag_of_words(train_texts: pd.DataFrame, train_gold: np.ndarray, texts: pd.DataFrame) -> np.ndarray:
    """Labels predicted from words and pairs of words, whatever their order: TF-IDF, logistic regression.

    Given one of several columns, what it gets right above the majority class is what that column tells by itself. Of
    NLI's hypotheses that is an artefact of how they were written (Gururangan et al. 2018).

    Args:
        train_texts, texts: the same columns of text; words count for each column apart.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, dtype=np.float32)
    readable = [column for column in train_texts if train_texts[column].str.contains(r"\S").any()]
    learns = readable and len(np.unique(train_gold)) > 1
    classifier = make_pipeline(
        ColumnTransformer([(f"text {place}", words, column) for place, column in enumerate(readable)])
        if learns
        else "passthrough",
        LogisticRegression(max_iter=1000, tol=1e-3) if learns else DummyClassifier(),
    )
    return classifier.fit(train_texts, train_gold).predict(texts)
