"""Rollouts: prompts -> sampled responses with their behaviour log-probs, one compiled program."""

import functools

import jax
import jax.numpy as jnp

from perl.models import decode, lm
from perl.models.transformer import Transformer
from perl.types import Rollout, Tree


@functools.partial(
  jax.jit,
  static_argnames=('model', 'max_new_tokens', 'temperature', 'top_k', 'top_p', 'eos_id', 'pad_id'),
)
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
) -> Rollout:
  """Samples until every row has its EOS or `max_new_tokens` tokens.

  Row b of the batch draws from fold_in(key, b), so that neighbours and batch size change nothing.

  Args:
    model, base, adapter: the policy.
    tokens: i32[B, P], left-padded prompts.
    mask: bool[B, P], with the last column True.
    key: typed PRNG key.
    max_new_tokens: R.
    eos_id: the token that ends a response; it belongs to the response.
    pad_id: fills the slots after it (masks, not ids, say what counts: it may equal eos_id).
    temperature: of the sampling distribution; 0 for the most likely token.
    top_k: keep the k most likely tokens; 0 for all.
    top_p: keep the smallest set of tokens whose mass reaches p; 1 for all.

  Returns:
    a Rollout of T = P + R. Its log-probs are those of the distribution that was sampled from
    (at temperature 0, of the distribution at temperature 1).
  """
  batch, prompt = tokens.shape
  total = prompt + max_new_tokens
  parts = decode.parts(model, base, adapter)
  logits, cache = decode.prefill(model, parts, tokens, mask, total)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
  room = ((0, 0), (0, max_new_tokens))
  start = (
    jnp.zeros((), jnp.int32),  # tokens of the response so far
    jnp.pad(tokens, room, constant_values=pad_id),
    jnp.pad(mask, room),
    jnp.zeros((batch, total), jnp.float32),
    jnp.zeros(batch, bool),
  )

  def draw(logits, state):
    """Writes the next token of every unfinished row."""
    count, tokens, mask, logprobs, finished = state
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
    token, logprob = sample(
      logits, step_keys, temperature=temperature, top_k=top_k, top_p=top_p
    )
    token = jnp.where(finished, pad_id, token)
    put = lambda array, column: jax.lax.dynamic_update_slice_in_dim(
      array, column[:, None].astype(array.dtype), prompt + count, 1
    )
    return (
      count + 1,
      put(tokens, token),
      put(mask, ~finished),
      put(logprobs, jnp.where(finished, 0.0, logprob)),
      finished | (token == eos_id),
    )

  def body(carry):
    state, cache = carry
    count, tokens, mask = state[:3]
    index = prompt + count - 1
    token = jax.lax.dynamic_index_in_dim(tokens, index, 1, keepdims=False)
    logits, cache = decode.step(model, parts, cache, token, mask, index)
    return draw(logits, state), cache

  def unfinished(carry):
    count, finished = carry[0][0], carry[0][4]
    return (count < max_new_tokens) & ~jnp.all(finished)

  state, _ = jax.lax.while_loop(unfinished, body, (draw(logits, start), cache))
  _, tokens, mask, logprobs, finished = state
  response_mask = mask & (jnp.arange(total) >= prompt)
  return Rollout(tokens, mask, response_mask, logprobs, finished)


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
