r"""What a frozen model knows of thumbs: logistic regressions on its states, over grouped folds.

    python -m experiments.studies frozen --config=configs/coffee.py:checkpoint=models/smollm2 \
        --workdir=runs/coffee_frozen --config.inputs.anchor=base

The anchor reads every judged row once; each fold is then a regression on the rows outside of it.
It is what a trained reward model has to beat to have learnt anything of its own. The folds are
those of `crossvalidate`, the penalty is reward.probe_c on standardised states.

<workdir>/{tokenizer,pretrain,sft}   what makes the anchor, where no input or checkpoint does
<workdir>/states.npz                 the states, kept for the next time
"""

import argparse
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.studies import crossvalidate
from experiments.studies._engine import Table
from experiments.studies._jobs import SHARED, Job, Spec
from perl.data import examples as kinds
from perl.data.examples import Example
from perl.evaluate import baseline, classification, probe
from perl.jobs import _folds as grouped
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._run import Run
from perl.jobs._scoring import Scorer
from perl.train import provenance

FILE = 'states.npz'
READS = ('mean', 'likelihood')
PARTS = {
  'last state': ('last',), 'mean states': ('mean',), 'last and mean states': ('last', 'mean'),
  'likelihood': ('likelihood',), 'mean states and likelihood': ('mean', 'likelihood')}
"""Title -> the states that a regression reads: see models.lm.score."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """How many folds."""
  parser.add_argument('--folds', default=5, type=int, help='folds')


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """What makes the anchor."""
  del options
  return [[spec.shared(spec.config(), tuple(SHARED), '')]]


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """{'rows': [{'reads', 'auc': one a fold}], 'bag_of_words': one a fold, ...}."""
  if options.table and not (spec.workdir / FILE).exists():
    return {'rows': []}  # nothing is to be run, and nothing is finished
  run = Run(spec.config(), str(spec.workdir / 'reward'), 'reward')
  artefacts = Artefacts(run)
  anchor = artefacts.anchor()
  examples = grouped.everything(artefacts.data.examples, 'labelled')
  columns = states(artefacts, anchor, examples, spec)
  labels, groups = np.array([e.label for e in examples]), [e.group for e in examples]
  folds = baseline.folds(labels, groups, options.folds)
  known = np.isfinite(next(iter(columns.values()))).all(-1)

  def auc(features: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
    inside, outside = inside[known[inside]], outside[known[outside]]
    head = probe.fit_head(features[inside], labels[inside],
                          {'kernel': np.zeros((features.shape[1], 1))},
                          c=run.config.reward.probe_c)
    return classification.auc(features[outside] @ head['kernel'][:, 0], labels[outside])

  rows = [
    {'reads': title, 'auc': [auc(features, *fold) for fold in folds]}
    for title, names in PARTS.items()
    for features in [np.concatenate([columns[name] for name in names], -1)]]
  return {'rows': rows, 'bag_of_words': baseline.cross_validate(examples, options.folds),
          'judged': len(examples), 'left_out': int((~known).sum()), 'anchor': anchor.digest,
          **provenance.record()}


def states(
  artefacts: Artefacts, anchor: Base, examples: list[Example], spec: Spec
) -> dict[str, np.ndarray]:
  """{'last': f32[N, D], 'mean': f32[N, 2 D], 'likelihood': f32[N, 4]}; NaN of a row left out."""
  file, width, data = spec.workdir / FILE, anchor.model.config.width, artefacts.run.config.data
  identity = json.dumps([
    anchor.digest, kinds.digest(examples), artefacts.text, data.max_prompt_tokens,
    data.max_response_tokens, data.overlong, data.special_text])
  if file.exists():
    with np.load(file, allow_pickle=False) as kept:
      if str(kept['identity']) == identity:
        return _columns(kept['states'], width)
  logging.info('frozen: the anchor reads %d judged rows', len(examples))
  read = Scorer(artefacts.run, artefacts.data, anchor).features({}, examples, READS)
  spec.workdir.mkdir(parents=True, exist_ok=True)
  np.savez(file, states=read, identity=identity)
  return _columns(read, width)


def _columns(read: np.ndarray, width: int) -> dict[str, np.ndarray]:
  last, mean, likelihood = np.split(read, [width, 3 * width], -1)
  return {'last': last, 'mean': mean, 'likelihood': likelihood}


def table(results: Mapping[str, Any]) -> Table:
  """A row a regression: mean AUC over the folds, each fold's, the gain over the bag of words."""
  words = results['bag_of_words']
  body = [crossvalidate.line(row['reads'], row['auc'], words) for row in results['rows']]
  return (['a frozen model and a logistic regression on', 'mean AUC', 'folds',
           'gain over the bag of words'],
          [*body, crossvalidate.line('bag of words', words, [])], [crossvalidate.NOTE])
