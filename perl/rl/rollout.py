"""Rollouts: prompts -> sampled responses with their behaviour log-probs, one compiled program."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl.models import decode, lm, stack
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.types import Rollout, Tree

STATIC = ('model', 'max_new_tokens', 'temperature', 'top_k', 'top_p', 'eos_id', 'pad_id', 'samples',
          'merged', 'cache')


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
  eos_id: int,
  pad_id: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  samples: int = 1,
  merged: bool | None = None,
  cache: str = 'model',
) -> Rollout:
  """Samples until every row has its EOS or `max_new_tokens` tokens.

  Row b of the B = N n rows draws from fold_in(key, b), so that neighbours and batch size change
  nothing. The prompts pass through the model once, whatever the number of samples.

  Args:
    model, base, adapter: the policy; the adapter is an argument, so it is never a stale one.
    tokens: i32[N, P], left-padded prompts.
    mask: bool[N, P], with the last column True.
    key: typed PRNG key.
    max_new_tokens: R.
    eos_id: the token that ends a response; it belongs to the response.
    pad_id: fills the slots after it (masks, not ids, say what counts: it may equal eos_id).
    temperature: of the sampling distribution; 0 for the most likely token.
    top_k: keep the k most likely tokens; 0 for all.
    top_p: keep the smallest set of tokens whose mass reaches p; 1 for all.
    samples: n, responses to each prompt, in rows that follow one another.
    merged: fold the adapter into a copy of the base for this rollout alone; nothing is ever trained
      on the copy. None: where a copy is made anyway and rounding is float32's.
    cache: how keys and values are stored, of models.cache.KINDS.

  Returns:
    a Rollout of B rows of T = P + R. Its log-probs are those of the distribution that was sampled
    from (at temperature 0, of the distribution at temperature 1).
  """
  rows, prompt = tokens.shape[0] * samples, tokens.shape[1]
  parts = ready(model, base, adapter, merged)
  sizes = stages(max_new_tokens)
  logits, kv = decode.prefill(
    model, parts, tokens, mask, sizes[0], count=samples, kind=cache)
  draw = make_draw(
    rows, key, eos_id=eos_id, pad_id=pad_id, temperature=temperature, top_k=top_k, top_p=top_p)
  state = (
    jnp.zeros((), jnp.int32),  # tokens of the response so far
    jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
    jnp.zeros((rows, max_new_tokens), bool),
    jnp.zeros((rows, max_new_tokens), jnp.float32),
    jnp.zeros(rows, bool),
  )
  state = draw(jnp.repeat(logits, samples, 0), state)

  def body(carry, size):
    state, kv = carry
    count, tokens, mask = state[:3]
    token = jax.lax.dynamic_index_in_dim(tokens, count - 1, 1, keepdims=False)
    logits, kv = decode.step(model, parts, kv, token, mask[:, :size], count - 1)
    return draw(logits, state), kv

  for size in sizes:  # early tokens look at few slots
    kv = decode.grow(kv, size)
    last = size == max_new_tokens
    unfinished = lambda carry, end=size + (not last): (
      (carry[0][0] < end) & ~jnp.all(carry[0][4]))
    state, kv = jax.lax.while_loop(unfinished, functools.partial(body, size=size), (state, kv))
  _, response, counted, logprobs, finished = state
  before = lambda x: jnp.repeat(x, samples, 0)
  join = lambda first, rest: jnp.concatenate([before(first), rest], 1)
  nothing = jnp.zeros((tokens.shape[0], prompt), bool)
  return Rollout(
    tokens=join(tokens, response), mask=join(mask, counted),
    response_mask=join(nothing, counted), logprobs=join(nothing.astype(jnp.float32), logprobs),
    finished=finished,
  )


def ready(model: Transformer, base: Tree, adapter: Tree, merged: bool | None) -> decode.Parts:
  """The weights as decoding reads them; `merged` as in `rollout`."""
  if merged is None:
    merged = stack.copies(base) and model.config.dtype == model.config.param_dtype == 'float32'
  if merged:
    base, adapter = adapters.merge(base, adapter), {}
  return decode.parts(model, base, adapter)


def stages(max_new_tokens: int, smallest: int = 32, most: int = 3) -> list[int]:
  """Rising sizes of the cache of responses, the last one R: each a program of its own."""
  sizes = [max_new_tokens]
  while len(sizes) < most and sizes[0] >= 2 * smallest:
    sizes.insert(0, -(-sizes[0] // 2))
  return sizes


def make_draw(
  rows: int, key: jax.Array, *, eos_id: int, pad_id: int, **sampling
) -> Callable[[jax.Array, tuple], tuple]:
  """The function (logits, state) -> state that writes the next token of every unfinished row."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

  def draw(logits, state):
    count, tokens, mask, logprobs, finished = state
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
    token, logprob = sample(logits, step_keys, **sampling)
    token = jnp.where(finished, pad_id, token)
    put = lambda array, column: jax.lax.dynamic_update_slice_in_dim(
      array, column[:, None].astype(array.dtype), count, 1
    )
    return (
      count + 1,
      put(tokens, token),
      put(mask, ~finished),
      put(logprobs, jnp.where(finished, 0.0, logprob)),
      finished | (token == eos_id),
    )

  return draw


def sample(
  logits: jax.Array, keys: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Tokens i32[B] and their log-probs f32[B] under the distribution that they were drawn from.

  Args:
    logits: f32[B, V].
    keys: B keys.
    temperature, top_k, top_p: see `rollout`.
  """
  if temperature == 0:
    token = jnp.argmax(logits, -1)
    return token, lm.token_logprobs(logits, token)
  kept = _keep(logits / temperature, top_k, top_p)
  token = jax.vmap(jax.random.categorical)(keys, kept)
  if top_k or top_p < 1.0:
    return token, lm.token_logprobs(kept, token)
  return token, lm.token_logprobs(logits, token, temperature)


def _keep(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """The logits, with -inf where top-k and top-p leave a token out; the likeliest always stays."""
  if top_k:
    smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  if top_p < 1.0:
    ranked = -jnp.sort(-logits, -1)
    before = jnp.cumsum(jax.nn.softmax(ranked, -1), -1) - jax.nn.softmax(ranked, -1)
    smallest = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), -1, keepdims=True)
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  return logits
