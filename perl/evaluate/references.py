"""Responses beside several references each: BLEU and ROUGE-L, by sacrebleu and rouge-score.

BLEU is of the corpus (Papineni et al. 2002), 0 to 100, on sacrebleu's 13a tokens; ROUGE-L (Lin
2004) is the F of the longest common subsequence, 0 to 1, with the reference that it is largest
with, a mean over responses. The libraries are the extra `references` of setup.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perl.evaluate.bootstrap import group_bootstrap

NAME = 'references'
"""Of a list of texts in the `meta` of an example: all that a response may say."""
_EXTRA = "; pip install 'perl-rlhf[references]'"


def report(
  texts: Sequence[str], references: Sequence[Sequence[str]], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float]:
  """Figures of N responses with their 95 % bootstrap intervals over responses.

  Args:
    texts: [N], responses.
    references: [N], at least one each.
    bootstrap: replicates; 0 leaves the intervals out.
    seed: of the bootstrap.

  Returns:
    {'bleu', 'rouge_l'}, each with _low and _high.

  Raises:
    ImportError: a library is missing; the remedy is named.
    ValueError: other numbers of responses and references, or a response without one.
  """
  if len(texts) != len(references) or not len(texts) or not all(map(len, references)):
    raise ValueError(f'expected references to each of {len(texts)} responses, at least one, found '
                     f'{[len(those) for those in references][:5]}')
  figures: dict[str, float] = {}
  columns = {'bleu': (_corpus, _statistics(texts, references)),
             'rouge_l': (lambda rows: float(rows.mean()), rouge_l(texts, references))}
  for name, (statistic, rows) in columns.items():
    figures[name] = statistic(rows)
    if bootstrap:
      figures[f'{name}_low'], figures[f'{name}_high'] = group_bootstrap(
        statistic, np.arange(len(rows)), rows, n=bootstrap, seed=seed)
  return figures


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU of the corpus, 0 to 100."""
  return _corpus(_statistics(texts, references))


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
  """f64[N]: ROUGE-L of each response, the largest over its references."""
  try:
    from rouge_score import rouge_scorer
  except ImportError as error:
    raise ImportError(f'expected rouge-score for ROUGE-L, found {error}{_EXTRA}') from None
  scorer = rouge_scorer.RougeScorer(['rougeL'])
  return np.array([scorer.score_multi(list(those), text)['rougeL'].fmeasure
                   for text, those in zip(texts, references)], np.float64)


def _sacrebleu() -> Any:
  try:
    from sacrebleu.metrics import bleu as library
  except ImportError as error:
    raise ImportError(f'expected sacrebleu for BLEU, found {error}{_EXTRA}') from None
  return library.BLEU


def _statistics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
  """f64[N, 10] of each response: matches and n-grams of 1 to 4, its length, the reference's.

  Those of a corpus are their sums.
  """
  scorer = _sacrebleu()(effective_order=True)
  scores = [scorer.sentence_score(text, list(those)) for text, those in zip(texts, references)]
  return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], np.float64)


def _corpus(rows: np.ndarray) -> float:
  """BLEU of the rows of `_statistics`."""
  *grams, length, reference = rows.sum(0).astype(int).tolist()
  return float(_sacrebleu().compute_bleu(grams[:4], grams[4:], length, reference).score)
