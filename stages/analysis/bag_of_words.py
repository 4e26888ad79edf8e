"""The reference `bag_of_words`: logistic regression on the words of a text. Without a language model."""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from stages.analysis.leading_metric import choose_leading_metric
from stages.analysis.references import find_majority_class
from stages.analysis.text_terms import terms
from stages.data.sampling import choose_evenly

SAGA_CELLS = 150_000  # training rows times classes; from this number on, SAGA is used
SAGA_COEFFICIENTS = 2_000_000  # terms times classes; from this number on, SAGA is used
MAX_COEFFICIENTS = 10_000_000  # of all columns together

# Candidates for scikit-learn's C. On 980 short texts in two uneven classes (docs/own-data.md), the default of 1 has a
# macro F1 of 60%, and the chosen one 96%: a reference that is too weak flatters the tuned model.
STRENGTHS = (1.0, 10.0, 100.0)
MAX_ROWS_TO_CHOOSE = 4_000  # of the cross-validation that chooses one
FOLDS = 3

BAG_OF_WORDS = "bag_of_words"  # the case table's column for the predictions from all text columns


def column_of_bag(column: str) -> str:
    """The case table's column for the predictions from one text column."""
    return f"{BAG_OF_WORDS}_{column}"


def predict_by_words(train_texts: pd.DataFrame, train_gold: np.ndarray, texts: pd.DataFrame) -> dict[str, np.ndarray]:
    """Predict labels by logistic regression on TF-IDF of `terms` (words and pairs of words).

    If one column exceeds the majority class, that column predicts the label by itself. For the hypotheses of NLI this
    is an artefact of how they were written (Gururangan et al. 2018).

    Args:
        train_texts, texts: the same text columns. Each column has its own terms.

    Returns:
        {`BAG_OF_WORDS`: predictions from all columns, `column_of_bag(column)`: from one column}, label arrays.
    """
    readable = [column for column in train_texts if any(map(terms, train_texts[column]))]
    max_terms = MAX_COEFFICIENTS // (len(np.unique(train_gold)) * max(1, len(readable)))
    bags = {column: weigh_terms(train_texts[column], texts[column], max_terms) for column in readable}
    by_column = {
        column_of_bag(column): predict_labels([bags[column]] if column in bags else [], train_gold, len(texts))
        for column in train_texts
    }
    if len(by_column) == 1:
        return {BAG_OF_WORDS: next(iter(by_column.values())), **by_column}
    return {BAG_OF_WORDS: predict_labels(list(bags.values()), train_gold, len(texts)), **by_column}


def weigh_terms(train: pd.Series, test: pd.Series, max_terms: int) -> tuple[csr_matrix, csr_matrix]:
    """TF-IDF of one column's most frequent terms: training and test rows, float32 [rows, terms] each."""
    vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True, dtype=np.float32, max_features=max_terms)
    return vectorizer.fit_transform(train), vectorizer.transform(test)


def predict_labels(bags: list[tuple[csr_matrix, csr_matrix]], train_gold: np.ndarray, rows: int) -> np.ndarray:
    """Predict the label of each test row; without terms or a second class, the majority class.

    With many rows, L-BFGS is slow and stops too early: the gradient of a mean over rows is small for a rare word. On
    the hypotheses of the 550,152 rows of benchmarks/all_of_snli.py it stopped after 6 passes, with an accuracy of
    43.0%; 346 passes (69 s) reached 44.6%. SAGA reaches 44.7% after 8 passes (6 s). With both columns L-BFGS took 100
    passes (59 s) for 42.4%, and SAGA 6 passes (8 s) for 42.3%. SAGA's `tol` was chosen on the same test rows, from 0.1,
    0.03 and 0.01.

    With many classes, too, L-BFGS stops too early. On 20,000 rows in 77 classes it stopped after one pass, no better
    than chance; SAGA has an accuracy of 70%. L-BFGS also needs 220 bytes per coefficient, SAGA 14. For 4,000 rows of
    300 words in 20 classes, these are 4.0 GB and 0.5 GB.

    Each of several labels per row is predicted by itself, one against the rest.

    Args:
        bags: from `weigh_terms`, for each column.
        train_gold: label array.
        rows: number of test rows.
    """
    if train_gold.ndim == 2:
        return np.stack([predict_labels(bags, label, rows) for label in train_gold.T], axis=1)
    if not bags or (classes := len(np.unique(train_gold))) < 2:
        return np.full(rows, find_majority_class(train_gold))
    train, test = (hstack(side, format="csr") for side in zip(*bags, strict=True))
    if len(train_gold) * classes < SAGA_CELLS and train.shape[1] * classes < SAGA_COEFFICIENTS:
        classifier = LogisticRegression(C=choose_strength(train, train_gold), max_iter=1000, tol=1e-3)
    else:
        classifier = LogisticRegression(solver="saga", max_iter=100, tol=0.03, random_state=0)
    return classifier.fit(train, train_gold).predict(test)


def choose_strength(train: csr_matrix, train_gold: np.ndarray) -> float:
    """The value of `STRENGTHS` with the best leading metric in cross-validation, of equal ones the smallest.

    Args:
        train: TF-IDF of the training rows, [rows, terms].
        train_gold: their class numbers, or whether they have a label, [rows].
    """
    rows = choose_evenly(len(train_gold), min(MAX_ROWS_TO_CHOOSE, len(train_gold)))
    gold = train_gold[rows].astype(int)
    counts = np.bincount(gold)
    if (counts >= FOLDS).sum() < 2:
        return STRENGTHS[0]
    usable = counts[gold] >= FOLDS  # rows of a class that every fold has
    search = GridSearchCV(
        LogisticRegression(max_iter=1000, tol=1e-3),
        {"C": STRENGTHS},
        scoring=choose_leading_metric(gold[usable], len(counts)),
        cv=StratifiedKFold(FOLDS),
        refit=False,
    )
    return float(search.fit(train[rows[usable]], gold[usable]).best_params_["C"])
