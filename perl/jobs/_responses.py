"""Responses of a policy to the prompts of a split, with what is known of each."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from perl.data.examples import Example, Prompt
from perl.data.text import chat
from perl.jobs import _artefacts as artefacts
from perl.jobs._artefacts import Base
from perl.jobs._setting import Setting
from perl.peft import adapters
from perl.rl.experience import make_experience
from perl.rl.rollout import rollout, slots
from perl.rl.rules import Rules
from perl.types import Batch, Rollout, Tree


@dataclasses.dataclass(frozen=True)
class Responses:
  """Responses in the order of their prompts, those to one prompt in turn; N in all."""

  texts: list[str]
  tokens: list[list[int]]  # of the response, EOS included
  finished: np.ndarray  # bool[N]
  scores: np.ndarray  # f32[N], of reward model and rules; NaN without judges
  kl: np.ndarray  # f32[N], nats, log pi - log pi_ref of the sample; NaN without a reference
  logprobs: np.ndarray  # f32[N], nats, log pi of the sample


def examples(setting: Setting, split: str, kind: str = 'prompt') -> list[Example]:
  """Examples to answer: `some` of the split.

  Returns:
    none where the dataset has no examples of that kind.
  """
  try:
    return some(setting, setting.examples(split, kind))
  except ValueError:
    return []


def some(setting: Setting, found: list) -> list:
  """At most config.evaluate.max_examples of them, spread evenly."""
  limit = setting.config.evaluate.max_examples or len(found)
  return found[:: max(1, len(found) // limit)][:limit]


def respond(
  setting: Setting,
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
    setting: its config.rl says how to sample.
    base: of all adapters.
    policy: the adapter that samples.
    examples: what to answer.
    key: typed PRNG key.
    temperature: None for config.rl's; 0 for the likeliest token.
    frozen: 'reference' and, where there is one, 'reward' adapters, to fill `kl` and `scores`.
    samples: responses to each prompt, which share its computation.
  """
  rl = setting.config.rl
  temperature = rl.temperature if temperature is None else temperature
  prompts = [chat.as_prompt(e) for e in examples]
  rows = setting.rows(prompts, 'prompt')
  _check_whole(rows, prompts)
  build = None
  if frozen:
    build = make_experience(
      base.model, max_new_tokens=rl.max_new_tokens, beta=rl.beta, temperature=temperature or 1.0,
      reward_weight=rl.reward_weight, samples=samples, ensemble=rl.ensemble,
      ensemble_penalty=rl.ensemble_penalty,
    )
  found: dict[int, tuple] = {}
  for batch, out in _rollouts(setting, base, policy, rows, key, temperature, samples):
    weight = np.repeat(batch['weight'], samples)
    index = (samples * batch['index'][:, None] + np.arange(samples)).ravel()
    scores, kl = _judge(build, base, frozen, out, weight)
    tokens, mask, finished, logprobs = jax.device_get(
      (out.tokens, out.response_mask, out.finished, out.logprobs.sum(-1)))
    for i in np.flatnonzero(weight):
      found[int(index[i])] = (
        tokens[i][mask[i]].tolist(), bool(finished[i]), scores[i], kl[i], logprobs[i]
      )
  ordered = [found[i] for i in range(samples * len(prompts))]
  tokens, finished, scores, kl, logprobs = zip(*ordered)
  texts, scores = [_text(setting, ids) for ids in tokens], np.array(scores)
  if frozen and (ruled := rules(setting)):
    asked = [example for example in examples for _ in range(samples)]
    scores = scores + ruled.total(ruled.each(asked, texts, *_rows(tokens, rl.max_new_tokens)))
  return Responses(
    texts, list(tokens), np.array(finished), scores, np.array(kl), np.array(logprobs))


def _rows(tokens: Sequence[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens i32[N, length], mask) of responses."""
  mask = np.arange(length) < np.array([len(ids) for ids in tokens])[:, None]
  rows = np.zeros(mask.shape, np.int32)
  rows[mask] = np.concatenate(tokens)
  return rows, mask


def rules(setting: Setting) -> Rules:
  """Those of config.rl, which score responses beside the reward model."""
  return Rules(setting.config.rl.rules, setting.config.rl.rule_weights, setting.dataset)


def judges(setting: Setting, base: Base) -> dict[str, Tree]:
  """{'reward': the reward model's adapter}; {} where config.rl.reward_weight needs none.

  Raises:
    ValueError: config.rl.ensemble asks for several, and there is one.
  """
  if not setting.config.rl.reward_weight:
    return {}
  folder = setting.input('reward')
  reward, _ = artefacts.load_adapter(setting, folder, base)
  if setting.config.rl.ensemble != 'mean' and not adapters.members(reward):
    raise ValueError(
      f'expected an ensemble in {folder} for rl.ensemble={setting.config.rl.ensemble}, found one '
      'reward model; train it with reward.members, or set rl.ensemble=mean')
  return {'reward': reward}


def texts_of(setting: Setting, out: Rollout) -> list[str]:
  """The text of each response of a rollout."""
  tokens, mask = jax.device_get((out.tokens, out.response_mask))
  return [_text(setting, ids[counts].tolist()) for ids, counts in zip(tokens, mask)]


def compared(
  setting: Setting, turns: list[Example], found: Responses
) -> dict[str, np.ndarray]:
  """By response: the dataset's metrics against the agent's own turn; NaN where one is absent.

  The agent's turn is as the tokenizer can write it: one that lower-cases has no other way.
  """
  score = getattr(setting.dataset, 'response_metrics', lambda *_: {})
  said = [setting.tokenizer.decode(ids, skip_special=False)
          for ids in setting.tokenizer.encode_batch([e.response for e in turns])]
  rows = [score(e.prompt, text, own) for e, text, own in zip(turns, found.texts, said)]
  names = sorted({name for row in rows for name in row})
  return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def sampling(setting: Setting, **changes) -> dict:
  """The arguments of a rollout that config.rl and the tokenizer hold, with these changes."""
  rl, ids = setting.config.rl, setting.tokenizer
  return dict(
    max_new_tokens=rl.max_new_tokens, temperature=rl.temperature, top_k=rl.top_k, top_p=rl.top_p,
    eos_id=ids.eos_id, pad_id=ids.pad_id, cache=rl.cache,
    merged={'auto': None, 'adapter': False, 'merged': True}[rl.decode],
  ) | changes


def _rollouts(
  setting: Setting, base: Base, policy: Tree, rows: list[dict], key: jax.Array, temperature: float,
  samples: int,
) -> Iterator[tuple[Batch, Rollout]]:
  """(batch, its rollout) over all rows; a bucket at a time in slots, where that is the faster way.

  The first batch of a bucket says how much lengths vary.
  """
  how, size = setting.config.rl.rollout, setting.config.evaluate.batch_size
  options = sampling(setting, temperature=temperature, top_k=0, top_p=1.0, samples=samples)
  number, seen = 0, np.zeros(0)
  for batches in _by_length(setting.evaluation_batches(rows, 'prompt')):
    while batches:
      key_now, one = jax.random.fold_in(key, number), len(batches) == 1
      together = how == 'slots' and not one
      if how == 'auto' and len(seen) and not one:
        together = slots.pays(seen, size * len(batches), size)
      batch, batches = (_joined(batches), []) if together else (batches[0], batches[1:])
      placed = setting.place(batch)
      out = rollout(
        base.model, base.params, policy, placed['tokens'], placed['mask'], key_now,
        slots=size if together else None, **options)
      seen = np.asarray(out.response_mask.sum(-1))
      yield batch, out
      number += 1


def _by_length(batches: list[Batch]) -> list[list[Batch]]:
  """Batches of one padded length together."""
  found: dict[int, list[Batch]] = {}
  for batch in batches:
    found.setdefault(batch['tokens'].shape[1], []).append(batch)
  return list(found.values())


def _joined(batches: list[Batch]) -> Batch:
  return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _text(setting: Setting, ids: list[int]) -> str:
  """The response's text without its EOS; other special tokens show, for they are mistakes."""
  ids = ids[:-1] if ids and ids[-1] == setting.tokenizer.eos_id else ids
  return setting.tokenizer.decode(ids, skip_special=False).strip()


def _judge(
  build: Callable | None, base: Base, frozen, out, weight
) -> tuple[np.ndarray, np.ndarray]:
  """(scores, KL estimates) f32[B] of a rollout; NaN without judges."""
  if build is None:
    nothing = np.full(out.tokens.shape[0], np.nan, np.float32)
    return nothing, nothing
  e, _ = build(base.params, frozen, out, weight)
  gap = np.where(e.response_mask, e.behaviour_logprobs - e.reference_logprobs, 0.0).sum(-1)
  return np.asarray(e.scores), gap


def _check_whole(rows: list[dict], prompts: list[Prompt]) -> None:
  if len(rows) != len(prompts):
    raise ValueError(
      f'expected to answer all {len(prompts)} prompts, found {len(prompts) - len(rows)} too long; '
      "set config.data.overlong='truncate' or raise config.data.max_prompt_tokens"
    )


def gold_rewards(setting: Setting, examples: list[Example], texts: list[str]) -> np.ndarray | None:
  """f64[N], the dataset's gold reward of each response; None where there is no gold."""
  gold = getattr(setting.dataset, 'gold_reward', None)
  if gold is None:
    return None
  return np.array([gold(e.prompt, text) for e, text in zip(examples, texts)])
