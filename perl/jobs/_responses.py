"""Responses of a policy to the prompts of a split, and what they are worth."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from perl.data.examples import Example
from perl.data.text import chat
from perl.evaluate import references
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.peft import adapters
from perl.rl.rewards import Rewards, make_judge
from perl.rl.rollout import kept_apart, read_anew, rollout, slots
from perl.rl.rules import Rules
from perl.types import Batch, Rollout, Tree

MERGED = {'auto': None, 'adapter': False, 'merged': True}
"""rl.decode -> `merged` of a rollout."""


@dataclasses.dataclass(frozen=True)
class Responses:
  """Responses in the order of their prompts, those to one prompt in turn; N in all."""

  texts: list[str]
  tokens: list[list[int]]  # of the response, EOS included
  finished: np.ndarray  # bool[N]
  scores: np.ndarray  # f32[N], of reward model and rules; NaN where nobody judges
  kl: np.ndarray  # f32[N], nats, log pi - log pi_ref of the sample; NaN without a reference
  logprobs: np.ndarray  # f32[N], nats, log pi of the sample
  ruled: np.ndarray  # f32[N], what rules give of the scores


def sampling(run: Run, data: Data, **changes) -> dict:
  """The arguments of a rollout that config.rl and the tokenizer hold, with these changes."""
  rl, ids = run.config.rl, data.tokenizer
  return dict(
    max_new_tokens=rl.max_new_tokens, temperature=rl.temperature, top_k=rl.top_k, top_p=rl.top_p,
    eos_id=ids.stop_ids if len(ids.stop_ids) > 1 else ids.eos_id, pad_id=ids.pad_id, cache=rl.cache,
    merged=MERGED[rl.decode],
  ) | changes


def rewarding(run: Run, data: Data) -> dict:
  """The arguments of `Rewards` that config.rl and the data hold."""
  rl = run.config.rl
  return dict(rules=Rules(rl.rules, rl.rule_weights, data.dataset), decode=data.decode,
              reward_weight=rl.reward_weight)


def rewards(
  run: Run, data: Data, base: Base, frozen: dict[str, Tree], *, temperature: float | None = None,
  samples: int = 1,
) -> Rewards:
  """What judges responses outside of training, as training does: perl/rl/rewards.py.

  Args:
    run, data: whose config says how.
    base: of all adapters.
    frozen: 'reference', for the KL, and 'reward' adapters, as far as they are there.
    temperature: at which responses are sampled; None for config.rl's.
    samples: responses to each prompt, which share its computation.
  """
  rl = run.config.rl
  judge = make_judge(
    base.model, max_new_tokens=rl.max_new_tokens, samples=samples, ensemble=rl.ensemble,
    temperature=(rl.temperature if temperature is None else temperature) or 1.0,
    ensemble_penalty=rl.ensemble_penalty)
  return Rewards(
    judge, frozen, max_new_tokens=rl.max_new_tokens, place=run.place, **rewarding(run, data))


def judges(artefacts: Artefacts, base: Base) -> dict[str, Tree]:
  """{'reward': the reward model's adapter}; {} where config.rl.reward_weight needs none.

  Raises:
    ValueError: config.rl.ensemble asks for several, and there is one.
  """
  rl = artefacts.run.config.rl
  if not rl.reward_weight:
    return {}
  folder = artefacts.run.input('reward')
  reward, _ = artefacts.adapter(folder, base)
  if rl.ensemble != 'mean' and not adapters.members(reward):
    raise ValueError(
      f'expected an ensemble in {folder} for rl.ensemble={rl.ensemble}, found one '
      'reward model; train it with reward.members, or set rl.ensemble=mean')
  return {'reward': reward}


def respond(
  run: Run,
  data: Data,
  base: Base,
  policy: Tree,
  examples: list[Example],
  key: jax.Array,
  *,
  temperature: float | None = None,
  frozen: dict[str, Tree] | None = None,
  samples: int = 1,
) -> Responses:
  """Samples responses to each example's prompt.

  Args:
    run, data: whose config says how to sample.
    base: of all adapters.
    policy: the adapter that samples.
    examples: what to answer.
    key: typed PRNG key.
    temperature: None for config.rl's; 0 for the likeliest token.
    frozen: 'reference' and, where there is one, 'reward' adapters, to fill `kl` and `scores`.
    samples: responses to each prompt, which share its computation.
  """
  temperature = run.config.rl.temperature if temperature is None else temperature
  judge = rewards(
    run, data, base, frozen, temperature=temperature, samples=samples) if frozen else None
  anew = read_anew(base.model, run.config.rl.behaviour, cache=run.config.rl.cache)
  own = policy if frozen and anew else None
  if judge:
    judge.rules.check(examples)
  rows = data.rows([chat.as_prompt(example) for example in examples], 'prompt')
  _check_whole(rows, examples)
  by_index: dict[int, tuple] = {}
  for batch, out in _rollouts(run, data, base, policy, rows, key, temperature, samples):
    weight = np.repeat(batch['weight'], samples)
    index = (samples * batch['index'][:, None] + np.arange(samples)).ravel()
    prompts = [examples[i] for i in np.repeat(batch['index'], samples)]
    scores, kl, ruled = _judged(judge, base, out, prompts, own)
    tokens, mask, finished, logprobs = jax.device_get(
      (out.tokens, out.response_mask, out.finished, out.logprobs.sum(-1)))
    for i in np.flatnonzero(weight):
      by_index[int(index[i])] = (
        tokens[i][mask[i]].tolist(), bool(finished[i]), scores[i], kl[i], logprobs[i], ruled[i])
  tokens, *columns = zip(*(by_index[i] for i in range(samples * len(examples))))
  return Responses([data.decode(ids) for ids in tokens], list(tokens), *map(np.array, columns))


def compared(
  data: Data, turns: list[Example], responses: Responses
) -> dict[str, np.ndarray]:
  """By response: the dataset's metrics against the agent's own turn; NaN where one is absent.

  The agent's turn is as the tokenizer can write it: one that lower-cases has no other way.
  """
  score = getattr(data.dataset, 'response_metrics', lambda *_: {})
  own = [data.tokenizer.decode(ids, skip_special=False)
         for ids in data.tokenizer.encode_batch([turn.response for turn in turns])]
  rows = [score(turn.prompt, text, turn_text)
          for turn, text, turn_text in zip(turns, responses.texts, own)]
  names = sorted({name for row in rows for name in row})
  return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def beside_references(
  data: Data, turns: list[Example], responses: Responses
) -> dict[str, float]:
  """BLEU and ROUGE-L (perl/evaluate/references.py) of responses to turns that bring references.

  {} where none does, or where the libraries are missing: the log says how to have them.
  """
  rows = [(text, those) for turn, text in zip(turns, responses.texts)
          if (those := turn.meta.get(references.NAME))]
  if not rows:
    return {}
  config = data.run.config
  try:
    return references.report(*zip(*rows), bootstrap=config.evaluate.bootstrap, seed=config.seed)
  except ImportError as error:
    logging.warning('%s: %s', data.run.stage, error)
    return {}


def _judged(
  judge: Rewards | None, base: Base, out: Rollout, examples: Sequence[Example], policy: Tree | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(scores, KL estimates, what rules give) f32[B] of a rollout; NaN where nobody judges."""
  nothing = np.full(out.tokens.shape[0], np.nan, np.float32)
  if judge is None:
    return nothing, nothing, nothing
  judged, each = judge(base.params, out, examples, policy)
  scores = np.asarray(judged.scores)
  if judged.left_out is not None:
    scores = np.where(judged.left_out, np.nan, scores)
  ruled = judge.rules.total(each) if each else np.zeros_like(scores)
  if judged.reference_logprobs is None:
    return scores, nothing, ruled
  logprobs = out.logprobs if judged.policy_logprobs is None else judged.policy_logprobs
  gap = np.where(out.response_mask, logprobs - judged.reference_logprobs, 0.0).sum(-1)
  return scores, gap, ruled


def _rollouts(
  run: Run, data: Data, base: Base, policy: Tree, rows: list[dict], key: jax.Array,
  temperature: float, samples: int,
) -> Iterator[tuple[Batch, Rollout]]:
  """(batch, its rollout) over all rows; a bucket at a time in slots, where that is the faster way.

  The first batch of a bucket says how much lengths vary.
  """
  how, size = run.config.rl.rollout, run.config.evaluate.batch_size
  options = sampling(run, data, temperature=temperature, top_k=0, top_p=1.0, samples=samples)
  sample = functools.partial(rollout, base.model, **options)
  sample = functools.partial(sample, **kept_apart(sample, base.params, policy))
  number, lengths = 0, np.zeros(0)
  for batches in _by_length(data.evaluation_batches(rows, 'prompt')):
    while batches:
      key_now, one = jax.random.fold_in(key, number), len(batches) == 1
      together = how == 'slots' and not one
      if how == 'auto' and len(lengths) and not one:
        together = slots.pays(lengths, size * len(batches), size)
      batch, batches = (_joined(batches), []) if together else (batches[0], batches[1:])
      placed = run.place(batch)
      out = sample(
        base.params, policy, placed['tokens'], placed['mask'], key_now,
        slots=size if together else None)
      lengths = np.asarray(out.response_mask.sum(-1))
      yield batch, out
      number += 1


def _by_length(batches: list[Batch]) -> list[list[Batch]]:
  """Batches of one padded length together."""
  by_length: dict[int, list[Batch]] = {}
  for batch in batches:
    by_length.setdefault(batch['tokens'].shape[1], []).append(batch)
  return list(by_length.values())


def _joined(batches: list[Batch]) -> Batch:
  return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _check_whole(rows: list[dict], examples: list[Example]) -> None:
  if len(rows) != len(examples):
    raise ValueError(
      f'expected to answer all {len(examples)} prompts, found {len(examples) - len(rows)} too '
      "long; set config.data.overlong='truncate' or raise config.data.max_prompt_tokens")
