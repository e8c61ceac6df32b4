"""Scores of reward models over lists of examples, and the head that a linear probe gives."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from perl import masked
from perl.data.examples import Example, Labelled
from perl.data.text import chat
from perl.evaluate import probe
from perl.jobs._artefacts import Base
from perl.jobs._setting import Setting
from perl.models import lm
from perl.models.context import Rows
from perl.preference import reward_losses, reward_model
from perl.types import Tree

EXAMPLES = {
  'pairwise': 'preference', 'pointwise': 'labelled', 'ranking': 'ranked', 'regression': 'rated'}
"""reward.kind -> the kind of examples that it learns from."""


def example_kind(setting: Setting) -> str:
  """The kind of examples that config.reward.kind asks for."""
  return EXAMPLES[setting.config.reward.kind]


def predict(
  setting: Setting, anchor: Base, adapter: Tree, examples: list[Example]
) -> np.ndarray:
  """Scores of the examples in their order: f32[N], f32[N, 2] (chosen, rejected) of pairs, or
  f32[N, K] of rankings; of an ensemble the mean over its members.

  Examples that were left out (overlong, identical pairs), and responses that are not there, score
  NaN.
  """
  return of_members(setting, anchor, adapter, examples).mean(0)


def of_members(
  setting: Setting, anchor: Base, adapter: Tree, examples: list[Example]
) -> np.ndarray:
  """`predict` of every member of an ensemble: f32[n, N, ...]; n is 1 for a single adapter."""
  kind = example_kind(setting)
  columns = [
    _over_rows(_scores, setting, anchor, adapter, examples, kind, field)
    for field in _fields(setting)
  ]
  found = columns[0] if len(columns) == 1 else np.stack(columns, 1)
  return np.moveaxis(found, -1, 0)


def of_texts(
  setting: Setting, anchor: Base, adapter: Tree, prompts: list[Example], texts: Sequence[str]
) -> np.ndarray:
  """f32[N], the score of each text as the response to its prompt; NaN of one that is left out."""
  examples = []
  for example, text in zip(prompts, texts):
    asked = chat.as_prompt(example).messages
    said = (*asked, {'role': 'assistant', 'content': text}) if asked else ()
    examples.append(Labelled(example.prompt, text, 0.0, messages=said))
  return _over_rows(
    _scores, setting, anchor, adapter, examples, 'labelled', 'tokens').mean(-1)


def _fields(setting: Setting) -> tuple[str, ...]:
  pairs = setting.config.reward.kind == 'pairwise'
  return ('chosen', 'rejected') if pairs else ('tokens',)


def _over_rows(
  function: Callable, setting: Setting, anchor: Base, adapter: Tree,
  examples: list[Example], kind: str, field: str,
) -> np.ndarray:
  """f32[N, ...]: function(model, base, adapter, tokens, mask, prompt_tokens) of every example."""

  def parts():
    for batch in setting.evaluation_batches(setting.rows(examples, kind), kind):
      placed = setting.place(batch)
      mask = placed['mask' if field == 'tokens' else f'{field}_mask']
      found = function(
        anchor.model, anchor.params, adapter, placed[field], mask, placed['prompt_tokens']
      )
      found = np.array(found)
      if 'present' in batch:
        found[~batch['present']] = np.nan
      yield found, batch['index'], batch['weight']

  return probe.gather(parts(), len(examples))


def probed_head(
  setting: Setting, anchor: Base, adapter: Tree, examples: list[Example]
) -> Tree:
  """The adapter's head, fitted to what the anchor says of the training examples."""
  features = functools.partial(_features, reads=lm.head_reads(adapter['head']))
  kind = example_kind(setting)
  found = [
    _over_rows(features, setting, anchor, adapter, examples, kind, field)
    for field in _fields(setting)
  ]
  keep = np.isfinite(found[0]).all(-1)
  c = setting.config.reward.probe_c
  if len(found) == 2:
    return probe.fit_pair_head(found[0][keep], found[1][keep], adapter['head'], c=c)
  labels = np.array([e.label for e in examples])[keep]
  return probe.fit_head(found[0][keep], labels, adapter['head'], c=c)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model, base, adapter, tokens, mask, prompt_tokens) -> jax.Array:
  """f32[B, n], or f32[B, K, n] of rankings."""
  flat, mask, prompt_tokens = reward_losses.flat(tokens, mask, prompt_tokens)
  response_mask, rows = masked.after(mask, prompt_tokens), Rows(mask, right_padded=True)
  found = reward_model.scores(model, base, adapter, flat, rows, response_mask=response_mask)
  return found.T.reshape(*tokens.shape[:-1], -1)


@functools.partial(jax.jit, static_argnums=0, static_argnames='reads')
def _features(model, base, adapter, tokens, mask, prompt_tokens, *, reads) -> jax.Array:
  response_mask, rows = masked.after(mask, prompt_tokens), Rows(mask, right_padded=True)
  return lm.head_features(
    model, base, adapter, tokens, rows, reads=reads, response_mask=response_mask
  )
