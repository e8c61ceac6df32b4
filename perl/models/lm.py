"""What a language model is asked for: logits, log-probs, values, scores. Pure; adapter may be {}.

Common arguments: model, a `Transformer`; base, its frozen parameters; adapter, {} or a tree of
adapters beside the base, with a 'head' for values and scores; tokens i32[B, T]; mask bool[B, T],
True for real tokens, padding on either side, or a `context.Rows` that says more of them; start, the
first column that is asked for (the prompts' length P); shared, how many rows in turn have the same
prompt, which is then computed once for them (columns up to start - 1); dropout_key, a key to train
with adapter dropout (SFT and reward models only), None elsewhere.

The last layer computes only the tokens that are asked for.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from perl import masked, trees
from perl.models import chunked, top_layers, virtual
from perl.models.context import Branches, Read, Rows
from perl.models.transformer import Transformer
from perl.types import HEAD_READS, Tree


def init(model: Transformer, key: jax.Array) -> Tree:
  """Random base parameters: unit norms, zero biases, and normal matrices.

  Standard deviations: 1 / sqrt(I) of a projection that reads the residual stream, 0.02 of one that
  writes to it, 1 / sqrt(D) of embeddings, so that tied logits begin with unit variance.
  """
  tokens, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
  return model.init({'params': key}, tokens, mask, method='logits')['params']


@functools.lru_cache(maxsize=16)
def abstract(model: Transformer) -> Tree:
  """The base tree by shapes alone, one tree for all who ask; nothing is allocated."""
  return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def variables(base: Tree, adapter: Tree) -> dict:
  """The collections of `model.apply`: a head is read by lm, not by the model."""
  body = trees.spread(base, {k: v for k, v in adapter.items() if k != 'head'})
  return {'params': base, 'adapter': body}


def hidden(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  tokens: jax.Array,
  mask: jax.Array | Rows,
  *,
  read: Read = None,
  shared: int = 1,
  start: int = 0,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Hidden states after the last norm at the tokens that are read, f[B, t, D]; see the module."""
  return _states(
    model, base, adapter, tokens, mask, dropout_key, read=read, shared=shared, start=start)[0]


def _states(model, base, adapter, tokens, mask, dropout_key, *, read=None, early=False, shared=1,
            start=0):
  """`Transformer.states` of rows, of which `shared` in turn have the same first columns."""
  rngs = None if dropout_key is None else {'dropout': dropout_key}
  context = mask if isinstance(mask, Rows) else Rows(mask)
  if shared > 1 and start > 1:
    tokens, context = Branches.of(tokens, context.mask, start - 1, shared)
  weights = variables(base, adapter)
  h, first = model.apply(weights, tokens, context, read, early, rngs=rngs, method='states')
  if read is None and isinstance(context, Branches):
    h, first = context.rows(h), context.rows(first) if early else None
  return h, first


def _mask(mask: jax.Array | Rows) -> jax.Array:
  return mask.mask if isinstance(mask, Rows) else mask


def logits(
  model: Transformer, base: Tree, adapter: Tree, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
  """Next-token logits f32[B, T, V]: entry t is for the token at t + 1. Not for training: large."""
  return model.apply(variables(base, adapter), tokens, mask, method='logits')


def token_logprobs(logits: jax.Array, targets: jax.Array, temperature: float = 1.0) -> jax.Array:
  """Log softmax(logits / temperature)[targets] in float32: the one log-prob formula of this house.

  Sampler, trainer and reference all use it, so that a ratio of equals is 1 and a KL of equals 0.

  Args:
    logits: f[..., V].
    targets: i32[...].
    temperature: > 0.
  """
  scaled = logits.astype(jnp.float32) / temperature
  chosen = jnp.take_along_axis(scaled, targets[..., None], -1)[..., 0]
  return chosen - jax.nn.logsumexp(scaled, -1)


def logprobs(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  tokens: jax.Array,
  mask: jax.Array | Rows,
  *,
  temperature: float = 1.0,
  start: int = 0,
  shared: int = 1,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """f32[B, T]: log pi(tokens[t] | tokens[:t]); 0 at t = 0, under the mask and before `start`.

  The one shift by a token lives here and in `values`. Logits are formed a chunk of positions at a
  time, so that [B, T, V] never exists. In packed rows the first token of a text has 0 too.

  Args:
    model, base, adapter, tokens, mask, start, shared, dropout_key: see the module's docstring.
    temperature: of the distribution (Rollouts are sampled at it).
  """
  start = max(start, 1)
  h = hidden(
    model, base, adapter, tokens, mask, read=slice(start - 1, tokens.shape[1] - 1), shared=shared,
    start=start, dropout_key=dropout_key,
  )
  return logprobs_of(model, base, adapter, h, tokens, mask, temperature=temperature, start=start)


def logprobs_of(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  h: jax.Array,
  tokens: jax.Array,
  mask: jax.Array | Rows,
  *,
  temperature: float = 1.0,
  start: int = 1,
) -> jax.Array:
  """`logprobs` of hidden states f[B, T - start, D], those of the columns start - 1 to T - 2."""
  parts = top_layers.outside(variables(base, adapter))

  def of_chunk(parts: Tree, h: jax.Array, targets: jax.Array) -> jax.Array:
    return token_logprobs(model.apply(parts, h, method='unembed'), targets, temperature)

  out = chunked.rowwise(
    of_chunk, parts, h, tokens[:, start:], model.config.vocab_size,
    frozen=virtual.unembedding_is_frozen(adapter))
  real = _mask(mask)
  counted = real[:, start:] & real[:, start - 1 : -1]
  if isinstance(mask, Rows) and mask.segments is not None:
    counted &= mask.segments[:, start:] == mask.segments[:, start - 1 : -1]
  return jnp.pad(jnp.where(counted, out, 0.0), ((0, 0), (start, 0)))


def _read(head: Tree, h: jax.Array) -> jax.Array:
  """f32[...]: h [..., D] times the head's kernel [D, 1], plus its bias."""
  h = h.astype(jnp.float32)
  return (h @ head['kernel'].astype(jnp.float32))[..., 0] + head['bias'].astype(jnp.float32)[0]


def _head(adapter: Tree) -> Tree:
  if 'head' not in adapter:
    raise ValueError(
      f'expected an adapter with a head, found only {sorted(adapter) or "an empty adapter"}; '
      'make it with peft.adapters.init(..., head=True)')
  return adapter['head']


def values(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  tokens: jax.Array,
  mask: jax.Array | Rows,
  *,
  start: int = 0,
  shared: int = 1,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """f32[B, T]: entry t is V(tokens[:t]), read one token earlier; 0 at t = 0, under the mask and
  before `start`.
  """
  head, start = _head(adapter), max(start, 1)
  h = hidden(
    model, base, adapter, tokens, mask, read=slice(start - 1, tokens.shape[1] - 1), shared=shared,
    start=start, dropout_key=dropout_key,
  )
  real = _mask(mask)
  counted = real[:, start:] & real[:, start - 1 : -1]
  return jnp.pad(jnp.where(counted, _read(head, h), 0.0), ((0, 0), (start, 0)))


def score(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  tokens: jax.Array,
  mask: jax.Array | Rows,
  *,
  response_mask: jax.Array | None = None,
  start: int = 0,
  shared: int = 1,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """f32[B]: the head's value at the last real token of each row, but those it leaves `unread`.

  A head may hold weights for more of what the same forward pass knows, which the last hidden state
  of a small model hardly says:

    score += mean . (mean hidden states of the response, and of the prompt)    mean f32[2 D]
    score += early . (mean of the response's embeddings, and of what the first layer makes of them:
                      its words, and words in their company)               early f32[2 D]
    score += likelihood . `likelihood_features` of the response                likelihood f32[4]

  Args:
    model, base, adapter, tokens, mask, start, shared, dropout_key: see the module's docstring.
    response_mask: bool[B, T], the response's tokens, its EOS included; only such a head needs it.

  Raises:
    ValueError: the adapter has no head, or its head needs a response_mask and there is none.
  """
  head = _head(adapter)
  features = head_features(
    model, base, adapter, tokens, mask, reads=head_reads(head), response_mask=response_mask,
    start=start, shared=shared, dropout_key=dropout_key,
  )
  return score_of(head, features)


def score_of(head: Tree, features: jax.Array) -> jax.Array:
  """f32[B] of what the head reads, f32[B, F]: see `head_features`."""
  width = head['kernel'].shape[0]
  out = _read(head, features[:, :width])
  if not (reads := head_reads(head)):
    return out
  more = jnp.concatenate([head[name].astype(jnp.float32) for name in reads])
  return out + features[:, width:] @ more


def head_reads(head: Tree) -> tuple[str, ...]:
  """What a head reads beside the last hidden state, in the order of `head_features`."""
  return tuple(name for name in HEAD_READS if name in head)


def head_features(
  model: Transformer,
  base: Tree,
  adapter: Tree,
  tokens: jax.Array,
  mask: jax.Array | Rows,
  *,
  reads: Sequence[str] = (),
  response_mask: jax.Array | None = None,
  start: int = 0,
  shared: int = 1,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """What a reward head reads: f32[B, D], the hidden state at the last real token, then the `reads`.

  'mean' and 'early' add 2 D columns each, 'likelihood' 4: see `score`, also for the arguments and
  what it raises.
  """
  if reads and response_mask is None:
    raise ValueError(f'expected a response_mask, for the head reads the {" and the ".join(reads)} '
                     'of the response; found none')
  real = _mask(mask)
  last = masked.last_index(real & masked.unlike(tokens, adapter.get('head', {}).get('unread')))
  h, early = _states(
    model, base, adapter, tokens, mask, dropout_key, read=None if reads else last,
    early='early' in reads, shared=shared, start=start)
  at_last = jnp.take_along_axis(h, last[:, None, None], 1) if reads else h
  features = [at_last[:, 0].astype(jnp.float32)]
  of_response = real if response_mask is None else real & response_mask
  if 'mean' in reads:
    for part in (of_response, real & ~response_mask):
      features.append(masked.masked_mean(h.astype(jnp.float32), part[..., None], axis=1))
  if 'early' in reads:
    features.append(masked.masked_mean(early.astype(jnp.float32), of_response[..., None], axis=1))
  if 'likelihood' in reads:
    logprobs = logprobs_of(model, base, adapter, h[:, :-1], tokens, mask)
    features.append(likelihood_features(logprobs, of_response))
  return jnp.concatenate(features, -1)


def likelihood_features(logprobs: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[B, 4]: mean, least, last and sum / 16 of logprobs f32[B, T] over mask bool[B, T].

  A model that was trained on good responses finds bad ones unlikely.
  """
  least = jnp.where(mask, logprobs, 0.0).min(-1)  # log-probs are never above 0
  last = jnp.take_along_axis(logprobs, masked.last_index(mask)[:, None], 1)[:, 0]
  total = masked.masked_sum(logprobs, mask, axis=-1)
  return jnp.stack([masked.masked_mean(logprobs, mask, axis=-1), least, last, total / 16], -1)
