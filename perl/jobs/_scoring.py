"""Scores of reward models over lists of examples, and the head that a linear probe gives."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from perl import masked
from perl.data.examples import Example, Labelled
from perl.data.text import chat
from perl.evaluate import probe
from perl.jobs._artefacts import Base
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.models import lm
from perl.models.context import Rows
from perl.preference import reward_losses, reward_model
from perl.rl.rewards import Rewards
from perl.train import metrics
from perl.types import Tree

EXAMPLES = {
  'pairwise': 'preference', 'pointwise': 'labelled', 'ranking': 'ranked', 'regression': 'rated'}
"""reward.kind -> the kind of examples that it learns from."""


def example_kind(run: Run) -> str:
  """The kind of examples that config.reward.kind asks for."""
  return EXAMPLES[run.config.reward.kind]


class Answer(NamedTuple):
  """A response that a policy sampled, as it is judged later."""

  text: str
  finished: bool  # it ended by itself; else it was cut at its longest length
  ids: tuple[int, ...] | None = None  # as sampled, where the judge's tokenizer made them


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Reads examples with reward models over an anchor."""

  run: Run
  data: Data
  anchor: Base

  def predict(self, adapter: Tree, examples: list[Example]) -> np.ndarray:
    """Scores of the examples in their order: f32[N], f32[N, 2] (chosen, rejected) of pairs, or
    f32[N, K] of rankings; of an ensemble the mean over its members.

    Examples that were left out (overlong, identical pairs), and responses that are not there, score
    NaN.
    """
    return self.of_members(adapter, examples).mean(0)

  def of_members(self, adapter: Tree, examples: list[Example]) -> np.ndarray:
    """`predict` of every member of an ensemble: f32[n, N, ...]; n is 1 for a single adapter."""
    columns = [self._over_examples(_scores, adapter, examples, example_kind(self.run), field)
               for field in self._fields]
    scores = columns[0] if len(columns) == 1 else np.stack(columns, 1)
    return np.moveaxis(scores, -1, 0)

  def of_answers(
    self, rewards: Rewards, prompts: list[Example], answers: Sequence[Answer]
  ) -> np.ndarray:
    """f32[N]: what each is worth as the response to its prompt; NaN of one that is left out.

    One that was cut is judged as it was sampled, without an EOS.

    Args:
      rewards: with the reward model among its frozen adapters, if its weight asks for one.
      prompts: the examples that are answered.
      answers: N responses, all with their ids or none.
    """
    scores, rows = np.zeros(len(answers), np.float32), self._rows(prompts, answers)
    if 'reward' in rewards.frozen:
      scores = self._over_rows(
        _scores, rewards.frozen['reward'], rows, 'labelled', 'tokens', len(answers)).mean(-1)
    texts = [answer.text for answer in answers]
    ids = _responses(rows, len(answers), rewards.max_new_tokens)
    return rewards.of_scores(scores, prompts, texts, ids)

  def _rows(self, prompts: list[Example], answers: Sequence[Answer]) -> list[dict]:
    """Rows of kind labelled."""
    if all(answer.ids is not None for answer in answers):
      return self.data.sampled(prompts, [answer.ids for answer in answers])
    examples = [_as_labelled(example, answer.text) for example, answer in zip(prompts, answers)]
    # Another tokenizer may need more tokens for what ours sampled.
    rows = self.data.rows(examples, 'labelled', longest=2 * self.run.config.rl.max_new_tokens)
    return [row if answers[row['index']].finished else row | {'tokens': self._open(row['tokens'])}
            for row in rows]

  def _open(self, ids: np.ndarray) -> np.ndarray:
    """The ids without what ends them."""
    return ids[:-1] if ids[-1] in self.data.tokenizer.stop_ids else ids

  @property
  def _fields(self) -> tuple[str, ...]:
    pairs = self.run.config.reward.kind == 'pairwise'
    return ('chosen', 'rejected') if pairs else ('tokens',)

  def _over_examples(
    self, function: Callable, adapter: Tree, examples: list[Example], kind: str, field: str
  ) -> np.ndarray:
    """`_over_rows` of examples."""
    return self._over_rows(
      function, adapter, self.data.rows(examples, kind), kind, field, len(examples))

  def _over_rows(
    self, function: Callable, adapter: Tree, rows: list[dict], kind: str, field: str, count: int
  ) -> np.ndarray:
    """f32[count, ...]: function(model, base, adapter, tokens, mask, prompt_tokens) of each row, by
    index; NaN where there is no row.
    """

    def parts():
      batches = self.data.evaluation_batches(rows, kind)
      for batch in metrics.watched(batches, f'{self.run.stage}, rows read'):
        placed = self.run.place(batch)
        mask = placed['mask' if field == 'tokens' else f'{field}_mask']
        values = np.array(function(
          self.anchor.model, self.anchor.params, adapter, placed[field], mask,
          placed['prompt_tokens']))
        if 'present' in batch:
          values[~batch['present']] = np.nan
        yield values, batch['index'], batch['weight']

    return probe.gather(parts(), count)

  def features(
    self, adapter: Tree, examples: list[Example], reads: Sequence[str] = ()
  ) -> np.ndarray:
    """f32[N, F] of `lm.head_features`, or f32[N, 2, F] of pairs; NaN of examples left out."""
    columns = self._columns(adapter, examples, tuple(reads))
    return columns[0] if len(columns) == 1 else np.stack(columns, 1)

  def _columns(
    self, adapter: Tree, examples: list[Example], reads: tuple[str, ...]
  ) -> list[np.ndarray]:
    function = functools.partial(_features, reads=reads)
    return [self._over_examples(function, adapter, examples, example_kind(self.run), field)
            for field in self._fields]

  def probed_head(self, adapter: Tree, examples: list[Example]) -> Tree:
    """The adapter's head, fitted to what the anchor says of the training examples."""
    columns = self._columns(adapter, examples, lm.head_reads(adapter['head']))
    keep = np.isfinite(columns[0]).all(-1)
    c = self.run.config.reward.probe_c
    if len(columns) == 2:
      return probe.fit_pair_head(columns[0][keep], columns[1][keep], adapter['head'], c=c)
    labels = np.array([example.label for example in examples])[keep]
    return probe.fit_head(columns[0][keep], labels, adapter['head'], c=c)


def _responses(rows: list[dict], count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens i32[count, length], mask) of the responses in rows, what ends them included."""
  tokens, mask = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
  for row in rows:
    ids = row['tokens'][row['prompt_tokens']:][:length]
    tokens[row['index'], :len(ids)], mask[row['index'], :len(ids)] = ids, True
  return tokens, mask


def _as_labelled(example: Example, text: str) -> Labelled:
  prompt = chat.as_prompt(example).messages
  messages = (*prompt, {'role': 'assistant', 'content': text}) if prompt else ()
  return Labelled(example.prompt, text, 0.0, messages=messages)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model, base, adapter, tokens, mask, prompt_tokens) -> jax.Array:
  """f32[B, n], or f32[B, K, n] of rankings."""
  flat, mask, prompt_tokens = reward_losses.flat(tokens, mask, prompt_tokens)
  response_mask, rows = masked.after(mask, prompt_tokens), Rows(mask, right_padded=True)
  scores = reward_model.scores(model, base, adapter, flat, rows, response_mask=response_mask)
  return scores.T.reshape(*tokens.shape[:-1], -1)


@functools.partial(jax.jit, static_argnums=0, static_argnames='reads')
def _features(model, base, adapter, tokens, mask, prompt_tokens, *, reads) -> jax.Array:
  response_mask, rows = masked.after(mask, prompt_tokens), Rows(mask, right_padded=True)
  return lm.head_features(
    model, base, adapter, tokens, rows, reads=reads, response_mask=response_mask)
