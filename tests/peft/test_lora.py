"""LoRA: its papers' numbers, scales, dropout, and what its gradient does not compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from perl import trees
from perl.models import lm
from perl.models.config import Config, sized
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.peft.methods import lora

KEY = jax.random.key(0)


def by_shapes(config, **options):
  base = lm.abstract(Transformer(config))
  return jax.eval_shape(lambda: adapters.init(KEY, base, 'lora', **options))


def test_counts_of_sun_et_al():
  """LLaMA-7B, r = 8 on q, k, v, o: 8,388,608 a role, and 4,097 of the value head."""
  config = sized('llama-2-7b')
  policy = by_shapes(config, rank=8)
  critic = by_shapes(config, rank=8, head=True)
  assert adapters.count(policy) == 8_388_608
  assert adapters.count({'policy': policy, 'critic': critic}) == 16_781_313


@pytest.mark.parametrize('layers, width, heads, rank, expected', [
  (12, 768, 12, 8, 294_912),  # RoBERTa base: 0.3 M (Hu et al., table 2)
  (24, 1024, 16, 8, 786_432),  # RoBERTa large: 0.8 M (table 2)
  (96, 12288, 96, 1, 4_718_592),  # GPT-3 175B: 4.7 M (table 4)
  (96, 12288, 96, 8, 37_748_736),  # GPT-3 175B: 37.7 M (table 4)
])
def test_counts_of_the_lora_paper(layers, width, heads, rank, expected):
  """2 L r (d + d) for q and v."""
  config = Config(
    vocab_size=100, layers=layers, width=width, heads=heads, kv_heads=heads,
    head_dim=width // heads, mlp_width=4 * width,
  )
  found = adapters.count(by_shapes(config, rank=rank, targets=('attn/(q|v)',)))
  assert found == expected == 2 * layers * rank * 2 * width


@pytest.mark.parametrize('rank, rslora, scale', [
  (4, False, 2.0), (4, True, 4.0), (1, False, 8.0), (5, True, 8 / 5**0.5)])
def test_scale_is_alpha_over_rank_or_its_root(rank, rslora, scale):
  delta = lora.init(KEY, jnp.zeros((3, 6, 5)), rank=rank, alpha=8.0, rslora=rslora)
  np.testing.assert_allclose(delta.scale, np.full(3, scale), rtol=1e-6)


@pytest.mark.parametrize('method, scale', [('rslora', 4.0), ('lora', 2.0), ('lora_fa', 2.0)])
def test_what_a_method_decides_no_option_undoes(method, scale):
  """A config's peft.rslora is False by default, and so it comes to rsLoRA too."""
  _, base = tiny.make()
  tree = adapters.init(KEY, base, method, rank=4, alpha=8.0, rslora=False)
  (made, *others) = adapters.nodes(tree).values()
  assert others and type(made).__name__ == ('LoRAFA' if method == 'lora_fa' else 'LoRA')
  np.testing.assert_allclose(made.scale, scale, rtol=1e-6)


def test_projection_by_hand():
  delta = lora.LoRA(
    a=jnp.asarray([[1.0], [2.0]]), b=jnp.asarray([[3.0, 5.0]]), scale=jnp.float32(0.5))
  x, w = jnp.asarray([[1.0, 1.0]]), jnp.eye(2)
  np.testing.assert_allclose(delta.project(x, w), [[1 + 4.5, 1 + 7.5]])
  np.testing.assert_allclose(delta.merge(w), [[1 + 1.5, 2.5], [3.0, 1 + 5.0]])
  np.testing.assert_allclose(delta.unmerge(delta.merge(w)), w)


def test_init_is_uniform_within_one_over_root_rows_and_zero():
  delta = lora.init(KEY, jnp.zeros((400, 60)), rank=16)
  assert np.abs(delta.a).max() <= 1 / 20 and np.std(delta.a) == pytest.approx(
    1 / 20 / 3**0.5, rel=0.03)
  np.testing.assert_array_equal(delta.b, 0.0)


@pytest.mark.parametrize('options, message', [
  (dict(rank=0), 'from 1 to 5 for a matrix of 6 x 5, found 0'),
  (dict(rank=6), 'found 6; lower config.peft.rank'),
  (dict(rank=2, dropout=1.0), 'dropout'),
])
def test_what_does_not_fit_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    lora.init(KEY, jnp.zeros((6, 5)), **options)


def test_dropout_acts_on_the_adapter_alone_and_is_unbiased():
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 6), (6, 5)))
  delta = {'x': lora.init(KEY, w, rank=2, dropout=0.5)}
  delta = tiny.trained(delta, 0.5)['x']
  mapped = jax.jit(jax.vmap(lambda key: delta.project(x, w, key)))
  draws = mapped(jax.random.split(KEY, 4000))
  expected = delta.project(x, w)
  error = np.std(draws, 0) / 4000**0.5
  assert (np.abs(draws.mean(0) - expected) < 5 * error).all()
  whole = delta.replace(b=jnp.zeros_like(delta.b))
  np.testing.assert_array_equal(whole.project(x, w, KEY), x @ w)


def test_dropout_is_on_only_where_a_key_is_given():
  model, base = tiny.make('llama')
  adapter = tiny.trained(tiny.lora(base, dropout=0.5))
  plain = tiny.trained(tiny.lora(base))
  mask = tiny.right_mask([10, 7, 1, 4])
  ask = jax.jit(functools.partial(lm.score, model, base, tokens=tiny.tokens(), mask=mask))
  keys = jax.random.split(KEY, 2)
  np.testing.assert_array_equal(ask(adapter), ask(plain))
  a, b, again = (ask(adapter, dropout_key=k) for k in (keys[0], keys[1], keys[0]))
  np.testing.assert_array_equal(a, again)
  assert not np.allclose(a, b) and not np.allclose(a, ask(adapter))
  np.testing.assert_array_equal(ask(plain, dropout_key=keys[0]), ask(plain))


def products(jaxpr):
  """Shapes of every matrix product and scatter of a jaxpr, inner ones included."""
  for equation in jaxpr.eqns:
    if 'dot_general' in equation.primitive.name or 'scatter' in equation.primitive.name:
      yield from (v.aval.shape for v in equation.outvars)
    for inner in jaxprs_in_params(equation.params):
      yield from products(getattr(inner, 'jaxpr', inner))


def test_the_gradient_of_the_base_is_never_formed():
  """No product of the backward pass has the shape of a weight; full tuning's has."""
  model, base = tiny.make('untied', width=14, mlp_width=22, heads=3, kv_heads=3)
  mask = tiny.right_mask([10, 7, 1, 4])
  matrices = [x for n, x in trees.flat(base).items() if n.endswith(('kernel', 'embedding'))]
  weights = {x.shape[-2:] for x in matrices}
  weights |= {shape[::-1] for shape in weights}

  def formed(method):
    learnt = adapters.split(adapters.init(KEY, base, method, rank=2))
    loss = lambda learnt, fixed: lm.logprobs(
      model, base, trees.combine(learnt, fixed), tiny.tokens(), mask).sum()
    return {s[-2:] for s in products(jax.make_jaxpr(jax.grad(loss))(*learnt).jaxpr)} & weights

  assert formed('lora') == set()
  assert formed('full')
