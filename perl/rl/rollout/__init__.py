"""Rollouts: prompts -> sampled responses with their behaviour log-probs, one compiled program."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl.models import decode
from perl.models.transformer import Transformer
from perl.peft import adapters, rounding
from perl.quantized import scheme_of
from perl.rl.rollout import batch
from perl.rl.rollout import slots as continuous
from perl.rl.rollout.sampling import sample
from perl.types import Rollout, Tree

STATIC = ('model', 'max_new_tokens', 'temperature', 'top_k', 'top_p', 'eos_id', 'pad_id', 'samples',
          'slots', 'merged', 'copy', 'cache')


@functools.partial(jax.jit, static_argnames=STATIC)
def rollout(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  tokens: jax.Array,
  mask: jax.Array,
  key: jax.Array,
  *,
  max_new_tokens: int,
  eos_id: int | tuple[int, ...],
  pad_id: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  samples: int = 1,
  slots: int | None = None,
  merged: bool | None = None,
  copy: bool | None = None,
  cache: str = 'model',
) -> Rollout:
  """Samples until every row has its EOS or `max_new_tokens` tokens.

  Row b of the B = N n rows draws from fold_in(key, b), so that neighbours, batch size and slots
  change nothing.

  Args:
    model, base, adapter: the policy; the adapter is an argument, so it is never a stale one.
    tokens: i32[N, P], left-padded prompts.
    mask: bool[N, P], with the last column True.
    key: typed PRNG key.
    max_new_tokens: R.
    eos_id: the token that ends a response, or all that do; it belongs to the response.
    pad_id: fills the slots after it (masks, not ids, say what counts: it may equal eos_id).
    temperature: of the sampling distribution; 0 for the most likely token.
    top_k: keep the k most likely tokens; 0 for all.
    top_p: keep the smallest set of tokens whose mass reaches p; 1 for all.
    samples: n, responses to each prompt, in rows that follow one another.
    slots: how many rows decode at a time (`slots.py`; each row's prompt then passes through the
      model by itself), if that is less than B; None: all (`batch.py`; a prompt passes once,
      whatever the number of its samples).
    merged: fold the adapter into a copy of the base for this rollout alone (where `kept_apart` does
      not object); nothing is ever trained on the copy. None: where a copy is made anyway and
      rounding is float32's; never a quantized one.
    copy: read the weights out of a copy of the base; None: where `decode.copies` says so.
    cache: how keys and values are stored, of models.cache.KINDS.

  Returns:
    a Rollout of B rows of T = P + R. Its log-probs are those of the distribution that was sampled
    from (at temperature 0, of the distribution at temperature 1).

  Raises:
    ValueError: a quantized base shall be merged into.
  """
  rows = tokens.shape[0] * samples
  parts = _ready(model, base, adapter, merged, copy)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
  draw = functools.partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)
  common = dict(length=max_new_tokens, eos_id=eos_id, pad_id=pad_id, cache=cache)
  repeated = lambda x: jnp.repeat(x, samples, 0)
  if continuous.fewer(slots, rows) is None:
    responses = batch.respond(model, parts, tokens, mask, keys, draw, samples=samples, **common)
  else:
    responses = continuous.respond(
      model, parts, repeated(tokens), repeated(mask), keys, draw, slots=slots, **common)
  join = lambda first, rest: jnp.concatenate([repeated(first), rest], 1)
  nothing = jnp.zeros(tokens.shape, bool)
  return Rollout(
    tokens=join(tokens, responses.tokens), mask=join(mask, responses.mask),
    response_mask=join(nothing, responses.mask),
    logprobs=join(nothing.astype(jnp.float32), responses.logprobs), finished=responses.finished,
  )


def kept_apart(sample: Callable, base: Tree, adapter: Tree) -> dict[str, bool]:
  """{'merged': False} where `merged` is asked for, and merging would round the policy away.

  Measured, not traced: outside of jit. Kernels narrower than float32 hold an adapter badly while it
  is small, and a fresh one changes nothing yet: it stays apart from the start.

  Args:
    sample: functools.partial(rollout, model, ...).
    base, adapter: the policy.
  """
  if not getattr(sample, 'keywords', {}).get('merged'):
    return {}
  config = sample.args[0].config
  if config.dtype == config.param_dtype == 'float32':
    return {}
  lost = rounding.error(base, adapter, config.dtype)
  return {} if 0 < lost <= rounding.LIMIT else {'merged': False}


def merges(
  model: Transformer, base: Tree, adapter: Tree, merged: bool | None = None,
  copy: bool | None = None,
) -> bool:
  """Whether a rollout reads a merged copy; the arguments are those of `rollout`, by shapes too."""
  if merged is not None:
    return merged
  exact = model.config.dtype == model.config.param_dtype == 'float32'
  copy = decode.copies(base) if copy is None else copy
  return copy and exact and adapters.mergeable(base, adapter)


def wide(model: Transformer, *, cache: str = 'model') -> bool:
  """Whether sampling computes in float32 throughout, as an update does, so that their log-probs
  differ by the rounding of sums alone: no narrow type, no narrow cache, no accelerator (whose
  products of float32 are narrower).
  """
  narrow = model.config.dtype != 'float32' or cache not in ('model', 'float32')
  return jax.default_backend() == 'cpu' and not narrow


def read_anew(model: Transformer, behaviour: str, *, cache: str = 'model') -> bool:
  """Whether the trainer reads log-probs of samples anew, for an update, a KL, an evaluation: where
  `behaviour` is 'trainer', or 'auto' and sampling is not `wide`.
  """
  return behaviour == 'trainer' or behaviour == 'auto' and not wide(model, cache=cache)


def _ready(
  model: Transformer, base: Tree, adapter: Tree, merged: bool | None, copy: bool | None
) -> decode.Parts:
  """The weights as decoding reads them; `merged` and `copy` as in `rollout`."""
  merged = merges(model, base, adapter, merged, copy)
  if merged and (scheme := scheme_of(base)) is not None:
    raise ValueError(
      f'expected a dense base to merge adapters into, found {scheme.tag} kernels, which would '
      'become dense; set rl.decode=adapter')
  if merged:
    base, adapter = adapters.merge(base, adapter), {}
  return decode.parts(model, base, adapter, copy=copy)
