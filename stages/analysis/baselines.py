"""What guesses right without the premise: the marks that a tuned model must pass."""

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from stages.task.labels import LABELS


def majority_class(train_gold: np.ndarray) -> int:
    """The label that most training rows have, the first of equals."""
    return int(np.bincount(train_gold, minlength=len(LABELS)).argmax())


def hypothesis_only(train_hypotheses: pd.Series, train_gold: np.ndarray, hypotheses: pd.Series) -> np.ndarray:
    """Labels predicted from the hypothesis alone, the premise unread: TF-IDF of words and pairs, logistic regression.

    What it gets right above the majority class is an artefact of how hypotheses were written (Gururangan et al. 2018).
    """
    one_class = len(np.unique(train_gold)) == 1
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, dtype=np.float32),
        DummyClassifier() if one_class else LogisticRegression(max_iter=1000, tol=1e-3),
    )
    return classifier.fit(train_hypotheses, train_gold).predict(hypotheses)
