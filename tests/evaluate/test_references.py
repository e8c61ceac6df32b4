"""BLEU and ROUGE-L of responses with several references."""

import builtins

import pytest

from perl.evaluate import references

TEXTS = ['A coffee shop in the city centre called Blue Spice.', 'The Eagle is cheap.', 'No.']
THEIRS = [['Blue Spice is a coffee shop in the city centre.', 'A coffee shop called Blue Spice.'],
          ['The Eagle is a cheap pub.'], ['The Eagle is not cheap.', 'No.', 'It is not so.']]


def test_bleu_of_a_corpus_is_that_of_the_library():
  sacrebleu = pytest.importorskip('sacrebleu')
  width = max(map(len, THEIRS))
  columns = [[row[i] if i < len(row) else None for row in THEIRS] for i in range(width)]
  assert references.bleu(TEXTS, THEIRS) == pytest.approx(
    sacrebleu.corpus_bleu(TEXTS, columns).score)


def test_a_response_that_is_a_reference_is_perfect_and_its_intervals_hold_it():
  pytest.importorskip('sacrebleu')
  own = [those[-1] for those in THEIRS[:2]]
  report = references.report(own, THEIRS[:2], bootstrap=20)
  assert report['bleu'] == pytest.approx(100) and report['rouge_l'] == 1.0
  worse = references.report(TEXTS, THEIRS, bootstrap=50)
  for name in ('bleu', 'rouge_l'):
    assert worse[f'{name}_low'] <= worse[name] <= worse[f'{name}_high'] and worse[name] < 99


def test_rouge_l_by_hand():
  pytest.importorskip('rouge_score')
  # 'the eagle is cheap' in 'the eagle is a cheap pub': 4 of 4 and of 6 words, F = 0.8
  assert references.rouge_l(TEXTS, THEIRS)[1:] == pytest.approx([0.8, 1.0])


def test_a_response_without_references_and_a_missing_library_are_named(monkeypatch):
  with pytest.raises(ValueError, match='expected references to each of 1 responses'):
    references.report(['a'], [[]])
  imports = builtins.__import__

  def without(name, *more, **how):
    if name.startswith('sacrebleu'):
      raise ImportError('no sacrebleu')
    return imports(name, *more, **how)

  monkeypatch.setattr(builtins, '__import__', without)
  with pytest.raises(ImportError, match=r'sacrebleu for BLEU.*pip install .perl-rlhf\[references'):
    references.bleu(['a'], [['a']])
