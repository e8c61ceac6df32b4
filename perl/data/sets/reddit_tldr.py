"""Reddit TL;DR: posts with their authors' summaries, and people's choices between two summaries.

From openaipublic.blob.core.windows.net/summarize-from-feedback (Stiennon et al. 2020, arXiv
2009.01325; posts: Völske et al. 2017). Part `posts`: rows {id, subreddit, title, post, summary},
116,722 to train on, 6,447 to validate, 6,553 to test. Part `comparisons`: rows {info: the post,
summaries: [{text}, {text}], choice: 0 or 1, split: train, valid1 (dev) or valid2 (test), extra:
{confidence}}; those of news articles have no post and are left out.

The prompt is the paper's: subreddit, title, post and 'TL;DR:'; a summary follows after a space.
Splits are the published ones; a post is its own group.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sources import records, tfds

_POSTS = {f'datasets/tldr_3_filtered/{name}.jsonl': split
          for name, split in (('train', 'train'), ('valid', 'dev'), ('test', 'test'))}
_BATCHES = tuple(f'dataset/comparisons/batch{i}.json' for i in (*range(3, 21), 22))
_SPLITS = {'train': 'train', 'valid1': 'dev', 'valid2': 'test'}


def prompt_of(post: Mapping[str, Any]) -> str:
  """SUBREDDIT, TITLE, POST and 'TL;DR:' in paragraphs; subreddit and title only where there are."""
  head = [('SUBREDDIT', f'r/{post["subreddit"]}' if post.get('subreddit') else ''),
          ('TITLE', post.get('title') or ''), ('POST', post['post'])]
  return '\n\n'.join([*(f'{name}: {text.strip()}' for name, text in head if text), 'TL;DR:'])


def _summary(text: str) -> str:
  return f' {text.strip()}'


def _posts(files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  parse = lambda row: {'prompt': prompt_of(row), 'response': _summary(row['summary']),
                       'group': row['id'], 'meta': {'subreddit': row['subreddit']}}
  for name, record in tfds.each_by_file(files, parse):
    yield _POSTS[name], record


def _comparison(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
  if not row['info'].get('post'):
    return None
  if row['choice'] not in (0, 1):
    raise ValueError(f'choice {row["choice"]!r} is neither 0 nor 1')
  chosen, rejected = (row['summaries'][i]['text'] for i in (row['choice'], 1 - row['choice']))
  return _SPLITS[row['split']], {
    'prompt': prompt_of(row['info']), 'chosen': _summary(chosen), 'rejected': _summary(rejected),
    'group': row['info']['id'], 'meta': {'confidence': row.get('extra', {}).get('confidence')}}


SOURCE = tfds.Source(
  'reddit_tldr', 'https://openaipublic.blob.core.windows.net/summarize-from-feedback',
  {'posts': tfds.Part(tuple(_POSTS), _posts),
   'comparisons': tfds.Part(
     _BATCHES, lambda files: filter(None, tfds.each(files, _comparison)))},
  """@inproceedings{stiennon2020learning, title={Learning to summarize from human feedback},
  author={Stiennon et al.}, booktitle={NeurIPS}, year={2020}}""")
KINDS = {'document': ('posts',), 'demonstration': ('posts',), 'preference': ('comparisons',),
         'prompt': ('posts',)}
"""Preferences are the comparisons, all else comes from the posts."""
load = records.loader(SOURCE, KINDS)
