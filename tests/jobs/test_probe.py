"""A head that starts from a logistic regression over the frozen model."""

import numpy as np
import pytest
import toyrun as run
from sklearn.linear_model import LogisticRegression

from perl.evaluate import classification, probe
from perl.jobs import _run as runs
from perl.jobs import _scoring as scoring
from perl.jobs import reward
from perl.jobs._artefacts import Artefacts
from perl.types import HEAD_READS

C = 0.03


def features(rows=400, width=6, seed=0):
  """Features of very different scales, and labels that 80 % of the time follow them."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, width))
  labels = (x @ rng.normal(size=width) + rng.normal(size=rows) + 1.5 > 0).astype(float)
  return (x * 10.0 ** np.arange(-2, width - 2) + 5).astype(np.float32), labels


def like(width, **more):
  zeros = {name: np.zeros(size, np.float32) for name, size in more.items()}
  return {'kernel': np.zeros((width, 1), np.float32), 'bias': np.zeros(1, np.float32)} | zeros


def read(head, x):
  """The score that lm.score computes from features."""
  return x @ head['kernel'][:, 0] + head['bias'][0]


def test_the_head_is_the_balanced_regression_with_its_prior_put_back():
  x, labels = features()
  scaled = (x - x.mean(0)) / x.std(0)
  model = LogisticRegression(C=C, class_weight='balanced', max_iter=1000).fit(scaled, labels)
  prior = np.log(labels.sum() / (1 - labels).sum())
  expected = model.decision_function(scaled) + prior
  head = probe.fit_head(x, labels, like(6), c=C)
  np.testing.assert_allclose(read(head, x), expected, atol=1e-3)


def test_the_scores_are_calibrated_in_the_large():
  x, labels = features(rows=4000)
  scores = read(probe.fit_head(x, labels, like(6), c=C), x)
  assert np.mean(1 / (1 + np.exp(-scores))) == pytest.approx(labels.mean(), abs=0.06)


def test_weights_of_what_else_is_read_are_apart_and_in_the_order_of_the_features():
  x, labels = features(width=7)
  whole = probe.fit_head(x[:, 1:], labels, like(6), c=C)['kernel'][:, 0]
  parted = probe.fit_head(x, labels, like(1, likelihood=4, mean=2), c=C)
  np.testing.assert_array_equal(parted['kernel'], 0)  # the last state is left out beside the means
  np.testing.assert_allclose(parted['mean'], whole[:2], rtol=1e-3)
  np.testing.assert_allclose(parted['likelihood'], whole[2:], rtol=1e-3)


def test_the_last_hidden_state_is_fitted_where_the_head_reads_no_means():
  x, labels = features()
  whole = probe.fit_head(x, labels, like(6), c=C)
  parted = probe.fit_head(x, labels, like(2, likelihood=4), c=C)
  np.testing.assert_allclose(parted['kernel'], whole['kernel'][:2], rtol=1e-6)
  np.testing.assert_allclose(parted['likelihood'], whole['kernel'][2:, 0], rtol=1e-6)


def test_a_head_of_pairs_ranks_them_and_ignores_what_both_share():
  x, _ = features()
  direction = np.array([1.0, 0, 0, 0, 0, 0], np.float32) * 0.01
  head = probe.fit_pair_head(x + direction, x, like(6), c=C)
  assert (read(head, x + direction) > read(head, x)).all()
  assert head['bias'][0] == 0
  np.testing.assert_allclose(head['kernel'][1:], 0, atol=1e-6)


def test_features_that_do_not_vary_are_finite():
  x, labels = features()
  x[:, 2] = 3.0
  head = probe.fit_head(x, labels, like(6), c=C)
  assert all(np.isfinite(leaf).all() for leaf in head.values())


def test_labels_of_one_kind_are_refused():
  x, labels = features()
  with pytest.raises(ValueError, match='both labels'):
    probe.fit_head(x, np.ones_like(labels), like(6), c=C)


def test_rows_that_never_came_are_nan():
  parts = [(np.ones((2, 3)), np.array([3, 0]), np.array([1.0, 0.0]))]
  out = probe.gather(parts, 4)
  assert np.isfinite(out[3]).all() and np.isnan(out[:3]).all()


@pytest.mark.parametrize('kind', ['pointwise', 'pairwise'])
def test_a_reward_model_starts_from_the_probe(toyrun, tmp_path, kind):
  """Before any step its scores are the regression's: better than chance on the training rows."""
  for stage in ('tokenizer', 'pretrain', 'sft'):
    (tmp_path / stage).symlink_to(toyrun / stage)
  config = run.config(reward__kind=kind, reward__probe=True, reward__reads=HEAD_READS)
  with run.small_world():
    artefacts = Artefacts(runs.begin(config, str(tmp_path / 'reward'), 'reward'))
    scorer = scoring.Scorer(artefacts.run, artefacts.data, artefacts.anchor())
    examples = artefacts.data.examples('train', scoring.example_kind(artefacts.run))
    adapter = reward._initial_adapter(artefacts, scorer, examples)
    scores = scorer.predict(adapter, examples)
  if kind == 'pairwise':
    scores = scores[np.isfinite(scores).all(-1)]  # a pair that truncation made equal has none
    assert len(scores) > 20 and (scores[:, 0] > scores[:, 1]).mean() > 0.6
  else:
    assert classification.auc(scores, np.array([e.label for e in examples])) > 0.6
