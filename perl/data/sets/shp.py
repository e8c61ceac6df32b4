"""SHP: which of two comments readers of Reddit preferred (Stanford Human Preferences).

From huggingface.co/datasets/stanfordnlp/SHP (Ethayarajh et al. 2022, arXiv 2110.08420): 385 K
comparisons of top-level comments on one post, in 18 subreddits, which are the parts (for
data.parts). A comment that was written later and yet has the higher score is the better one.
Rows {post_id, history, human_ref_A, human_ref_B, labels, score_ratio, ...}; labels is 1 where A is
the better. Splits are the published ones, by post. meta['score_ratio'] says how sure a
comparison is: its authors train on those of at least 2.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sources import records, tfds

PARTS = ('askacademia', 'askanthropology', 'askbaking', 'askcarguys', 'askculinary', 'askdocs',
         'askengineers', 'askhistorians', 'askhr', 'askphilosophy', 'askphysics', 'askscience',
         'asksciencefiction', 'asksocialscience', 'askvet', 'changemyview', 'explainlikeimfive',
         'legaladvice')
_FILES = {'train': 'train', 'validation': 'dev', 'test': 'test'}


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
  if row['labels'] not in (0, 1):
    raise ValueError(f'labels {row["labels"]!r} is neither 0 nor 1')
  comments = [row['human_ref_B'], row['human_ref_A']]
  reply = lambda text: [records.turn('assistant', text.strip())]
  return {'prompt': [records.turn('user', row['history'].strip())],
          'chosen': reply(comments[row['labels']]), 'rejected': reply(comments[1 - row['labels']]),
          'group': row['post_id'], 'meta': {'score_ratio': float(row['score_ratio'])}}


def _read(part: str, files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  for name, record in tfds.each_by_file(files, _record):
    yield _FILES[name.removeprefix(f'{part}/').removesuffix('.json')], record


SOURCE = tfds.Source(
  'shp', 'https://huggingface.co/datasets/stanfordnlp/SHP/resolve/main',
  {part: tfds.Part(tuple(f'{part}/{name}.json' for name in _FILES),
                   functools.partial(_read, part)) for part in PARTS},
  """@inproceedings{ethayarajh2022understanding, title={Understanding Dataset Difficulty with
  V-Usable Information}, author={Ethayarajh et al.}, booktitle={ICML}, year={2022}}""")
KINDS = dict.fromkeys(('document', 'demonstration', 'preference', 'prompt'), PARTS)
"""Documents and demonstrations are the preferred comments."""
load = records.loader(SOURCE, KINDS)
