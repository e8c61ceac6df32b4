"""Responses of a policy to the prompts of a split, with what is known of each."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from perl.data import chat
from perl.data.examples import Example, Prompt
from perl.jobs.artefacts import Base
from perl.jobs.setting import Setting
from perl.rl.experience import make_experience
from perl.rl.rollout import rollout
from perl.types import Tree


@dataclasses.dataclass(frozen=True)
class Responses:
  """One response a prompt, in the order of the examples; N prompts."""

  texts: list[str]
  tokens: list[list[int]]  # of the response, EOS included
  finished: np.ndarray  # bool[N]
  scores: np.ndarray  # f32[N], the reward model's; NaN without one
  kl: np.ndarray  # f32[N], nats, log pi - log pi_ref of the sample; NaN without a reference


def examples(setting: Setting, split: str, kind: str = 'prompt') -> list[Example]:
  """Examples to answer: at most config.evaluate.max_examples, spread evenly over the split.

  Returns:
    none where the dataset has no examples of that kind.
  """
  try:
    found = setting.examples(split, kind)
  except ValueError:
    return []
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
) -> Responses:
  """Samples one response to each example's prompt.

  Args:
    setting: its config.rl says how to sample.
    base: of all adapters.
    policy: the adapter that samples.
    examples: what to answer.
    key: typed PRNG key.
    temperature: None for config.rl's; 0 for the likeliest token.
    frozen: 'reference' and 'reward' adapters, to fill `kl` and `scores`.
  """
  rl = setting.config.rl
  temperature = rl.temperature if temperature is None else temperature
  prompts = [chat.as_prompt(e) for e in examples]
  rows = setting.rows(prompts, 'prompt')
  _check_whole(rows, prompts)
  build = None
  if frozen:
    build = make_experience(
      base.model, max_new_tokens=rl.max_new_tokens, beta=rl.beta, temperature=temperature or 1.0
    )
  found: dict[int, tuple] = {}
  for number, batch in enumerate(setting.evaluation_batches(rows, 'prompt')):
    placed = setting.place(batch)
    out = rollout(
      base.model, base.params, policy, placed['tokens'], placed['mask'],
      jax.random.fold_in(key, number), max_new_tokens=rl.max_new_tokens, temperature=temperature,
      eos_id=setting.tokenizer.eos_id, pad_id=setting.tokenizer.pad_id,
    )
    scores, kl = _judge(build, base, frozen, out, placed['weight'])
    tokens, mask, finished = jax.device_get((out.tokens, out.response_mask, out.finished))
    for i in np.flatnonzero(batch['weight']):
      found[int(batch['index'][i])] = (
        tokens[i][mask[i]].tolist(), bool(finished[i]), scores[i], kl[i]
      )
  ordered = [found[i] for i in range(len(prompts))]
  tokens, finished, scores, kl = zip(*ordered)
  texts = [_text(setting, ids) for ids in tokens]
  return Responses(texts, list(tokens), np.array(finished), np.array(scores), np.array(kl))


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
