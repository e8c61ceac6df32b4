"""The bag of words that every reward model has to beat, and the folds to compare them on.

TF-IDF of the 1- and 2-grams of the response, and apart from them of the prompt's last 400
characters; logistic regression with C = 1 and balanced classes. The label of a turn depends on its
context (the right call, arguments copied), which a bag of words can hardly see.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

from perl.data.examples import Labelled
from perl.evaluate import classification

CONTEXT_CHARACTERS = 400


def fit(examples: Sequence[Labelled]) -> Pipeline:
  """The baseline, trained on the examples; score others with `predict`.

  Raises:
    ValueError: the examples do not show both labels.
  """
  labels = [int(e.label) for e in examples]
  if len(set(labels)) < 2:
    raise ValueError(f'expected examples of both labels to learn from, found {sorted(set(labels))} '
                     f'in {len(labels)} examples; use a larger train split')
  # Case tells copied arguments from prose: without it the coffee AUC falls by 0.02.
  words = lambda: TfidfVectorizer(ngram_range=(1, 2), lowercase=False)
  features = ColumnTransformer([('response', words(), 0), ('context', words(), 1)])
  classifier = LogisticRegression(C=1.0, class_weight='balanced', max_iter=1000)
  return make_pipeline(features, classifier).fit(_texts(examples), labels)


def predict(model: Pipeline, examples: Sequence[Labelled]) -> np.ndarray:
  """f64[N], log-odds of thumbs up."""
  return np.asarray(model.decision_function(_texts(examples)), np.float64)


def fit_predict(train: Sequence[Labelled], test: Sequence[Labelled]) -> np.ndarray:
  """f64[N], log-odds for the test examples of the baseline that was trained on the others."""
  return predict(fit(train), test)


def folds(
  labels: Sequence[float], groups: Sequence, n: int = 5
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Pairs (inside, outside) of row indices: a row is outside once, a group never on both sides.

  StratifiedGroupKFold(n, shuffle=True, random_state=0) on the groups as they are sorted, so that
  everyone who compares methods on the same rows has the same folds.

  Raises:
    ValueError: fewer than n groups.
  """
  count = len(set(groups))
  if not 2 <= n <= count:
    raise ValueError(f'expected between 2 and {count} folds (there are {count} groups), found {n}; '
                     'set another data.folds, or give the examples their groups')
  labels = np.asarray(labels).astype(int)
  split = StratifiedGroupKFold(n, shuffle=True, random_state=0).split(labels, labels, list(groups))
  return [(inside, outside) for inside, outside in split]


def cross_validate(examples: Sequence[Labelled], n: int = 5) -> list[float]:
  """AUC of the baseline on each of the n folds, trained on the others."""
  labels, groups = [e.label for e in examples], [e.group for e in examples]
  pick = lambda where: [examples[i] for i in where]
  return [
    classification.auc(fit_predict(pick(inside), pick(outside)), np.asarray(labels)[outside])
    for inside, outside in folds(labels, groups, n)]


def _texts(examples: Sequence[Labelled]) -> np.ndarray:
  """object[N, 2]: the response, and the end of the prompt."""
  rows = [(e.response, e.prompt[-CONTEXT_CHARACTERS:]) for e in examples]
  return np.array(rows, dtype=object).reshape(len(rows), 2)
