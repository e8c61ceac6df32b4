"""Laws that every file of perl/peft obeys; a new method is found and tested by itself."""

import functools
import inspect
import types

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import choices, trees
from perl.models import decode, lm
from perl.objectives import losses
from perl.peft import adapters, composition, protocol
from perl.products import dense
from perl.quantization import quantize_tree
from perl.quantized import Scheme, is_quantized
from perl.train import checkpoint, optim, sharding, step

OPTIONS = dict(rank=2, alpha=4.0, bottleneck=3, virtual_tokens=3, dimension=5, experts=3)
MASK = tiny.right_mask([10, 7, 1, 4])
COPIES = ('full', 'topk', 'lntuning')
"""Methods whose adapters are copies of the base's own parameters."""
LARGE = (*COPIES, 'intrinsic', 'mole')
"""Methods whose adapters hold as many bytes as so small a base, laid out."""


def language_loss(model):
  def loss(tree, base, batch, key):
    del key
    logprobs = lm.logprobs(model, base, tree, batch['tokens'], batch['mask'])
    return losses.next_token(logprobs, batch['mask']), {}

  return loss


@functools.cache
def model_and_bases():
  """With biases and learnt positions, every kind of parameter; the base, quantized, its values."""
  model, base = tiny.make('gpt2')
  quantized = quantize_tree(base, Scheme('nf4', 8, double=True))
  return model, base, quantized, jax.tree.map(dense, quantized, is_leaf=is_quantized)


def described(name):
  """A method with a base to lie over: fresh, and as training might leave it."""
  model, base, *_ = model_and_bases()
  init = functools.partial(adapters.init, base=base, method=name, **OPTIONS)
  fresh = init(jax.random.key(0))
  batch = {'tokens': tiny.tokens(), 'mask': MASK}
  loss = lambda learnt, fixed: language_loss(model)(
    trees.combine(learnt, fixed), base, batch, None)[0].value()
  return types.SimpleNamespace(
    name=name, module=adapters.find(name), model=model, base=base, init=init, batch=batch,
    fresh=fresh, adapter=tiny.trained(fresh), logits=jax.jit(functools.partial(lm.logits, model)),
    loss_and_grads=jax.jit(jax.value_and_grad(loss)))


@pytest.fixture(scope='module', params=choices.names('perl.peft.methods'))
def method(request):
  return described(request.param)


SAME = {'rslora': 'lora', 'lora_plus': 'lora', 'pfeiffer': 'houlsby'}
"""Methods whose adapters are another's: they differ in a number, or in how they train."""


def skip_the_same(method):
  """Laws that cost much hold for the class of an adapter."""
  if method.name in SAME:
    assert protocol.classes(method.module) == protocol.classes(adapters.find(SAME[method.name]))
    pytest.skip(f'its adapters are those of {SAME[method.name]}')


def delta_of(method, w):
  """The method's adapter of a matrix alone, as training might leave it; None where it has none."""
  hooks = inspect.signature(method.module.init).parameters
  if hasattr(method.module, 'places') and method.name not in ('full', 'topk', 'bitfit', 'ia3'):
    return None
  options = {n: v for n, v in OPTIONS.items() if n in hooks}
  options |= {'path': 'layers/block/attn/k/kernel'} if 'path' in hooks else {}
  made = method.module.init(jax.random.key(1), w, **options)
  made = made.replace(detach=False) if hasattr(made, 'detach') else made
  return tiny.trained({'kernel': made}, 0.3)['kernel']


def test_a_fresh_adapter_is_the_base_or_says_that_it_is_not(method):
  ask = lambda adapter: method.logits(method.base, adapter, tiny.tokens(), MASK)
  found, expected = ask(method.fresh), ask({})
  if not getattr(method.module, 'IDENTITY', True):
    assert np.abs(found - expected).max() > 0.01
  else:  # DoRA divides by the length that it multiplies with
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 if method.name == 'dora' else 0)


def test_project_is_merge(method):
  """x through the adapter == x through the merged matrix, and so for whole models."""
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 6), (6, 5)))
  delta = delta_of(method, w)
  if hasattr(delta, 'merge'):
    np.testing.assert_allclose(delta.project(x, w), x @ delta.merge(w), atol=1e-5)
  if not adapters.mergeable(method.base, method.adapter):
    with pytest.raises(ValueError, match='expected adapters that can be folded into the base'):
      adapters.merge(method.base, method.adapter)
    return
  merged = adapters.merge(method.base, method.adapter)
  assert jax.tree.map(lambda a: a.dtype, merged) == jax.tree.map(lambda a: a.dtype, method.base)
  apart = method.logits(method.base, method.adapter, tiny.tokens(), MASK)
  together = method.logits(merged, {}, tiny.tokens(), MASK)
  np.testing.assert_allclose(apart, together, atol=2e-5)


def test_unmerge_is_the_inverse_or_refused(method):
  if not adapters.mergeable(method.base, method.adapter):
    with pytest.raises(ValueError, match='keep the adapter apart'):
      adapters.unmerge(method.base, method.adapter)
    return
  merged = adapters.merge(method.base, method.adapter)
  other = tiny.trained(method.fresh, seed=1)
  try:
    back = adapters.unmerge(merged, method.adapter)
  except ValueError as error:
    assert 'expected' in str(error) and 'load the base again' in str(error)
    with pytest.raises(ValueError, match='load the base again'):
      adapters.swap(merged, method.adapter, other)
  else:
    tiny.close(back, method.base, atol=2e-6)
    swapped = adapters.swap(merged, method.adapter, other)
    tiny.close(swapped, adapters.merge(method.base, other), atol=2e-6)


def test_gradients_of_a_product_are_finite_differences(method):
  """Of project, in float64, with respect to the adapter and to x, along random directions."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, w = (jnp.asarray(rng.normal(size=s)) for s in ((3, 6), (6, 5)))
    delta = delta_of(method, w)
    if delta is None:
      pytest.skip('not beside a matrix: see the test of whole models')
    double = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
    learnt, fixed = adapters.split({'kernel': double(delta)})
    loss = lambda learnt, x: jnp.sin(
      trees.combine(learnt, fixed)['kernel'].project(x, w)).sum()
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (learnt, x))
    direction[0]['kernel'] = without_steered(direction[0]['kernel'])
    moved = lambda size: jax.tree.map(lambda a, d: a + size * d, (learnt, x), direction)
    expected = (loss(*moved(1e-6)) - loss(*moved(-1e-6))) / 2e-6
    grads = jax.grad(loss, (0, 1))(learnt, x)
    found = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction))))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def without_steered(node):
  """A direction that leaves alone what has no derivative in place of its gradient."""
  zero = {name: jnp.zeros_like(getattr(node, name)) for name in getattr(node, 'STEERED', ())}
  return node.replace(**zero)


def test_gradients_of_the_loss_are_finite_differences(method):
  """Of a whole model's, in float32, along the gradient itself."""
  loosen = lambda tree: jax.tree.map(
    lambda node: node.replace(detach=False) if hasattr(node, 'detach') else node, tree,
    is_leaf=protocol.is_adapter)
  learnt, fixed = adapters.split(loosen(method.adapter))
  loss = lambda learnt: method.loss_and_grads(learnt, fixed)[0]
  _, grads = method.loss_and_grads(learnt, fixed)
  direction = jax.tree.map(without_steered, grads, is_leaf=protocol.is_adapter)
  norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(direction)))
  moved = lambda size: jax.tree.map(lambda a, d: a + size * d / norm, learnt, direction)
  found = (loss(moved(3e-3)) - loss(moved(-3e-3))) / 6e-3
  np.testing.assert_allclose(found, norm, rtol=1e-2)


@pytest.fixture(scope='module')
def after(method):
  """What two steps with weight decay leave behind."""
  tx = optim.make('adamw', learning_rate=1e-2, steps=2, weight_decay=0.5)
  state = step.init_state(
    jax.tree.map(jnp.copy, method.adapter), tx, jax.random.key(0), adapters.split)
  run = step.make_train_step(language_loss(method.model), tx, split=adapters.split)
  before = trees.digest(method.base)
  for _ in range(2):
    state, metrics = run(state, method.base, method.batch)
  return types.SimpleNamespace(
    state=state, metrics=metrics, before=before, after=trees.digest(method.base), run=run)


def test_training_moves_the_adapter_and_no_bit_of_the_base(method, after):
  assert after.metrics['finite'] == 1.0
  assert after.before == after.after
  assert trees.digest(after.state.adapters) != trees.digest(method.adapter)


def test_fixed_data_is_never_trained(method, after):
  """Not even by weight decay; the optimizer holds nothing for it."""
  learnt, fixed = adapters.split(method.adapter)
  tiny.equal(adapters.split(after.state.adapters)[1], fixed)
  moments = [x.shape for x in jax.tree.leaves(after.state.opt_state) if x.ndim]
  assert sorted(moments) == sorted(2 * [x.shape for x in jax.tree.leaves(learnt)])


def test_the_step_is_compiled_once(after):
  assert after.run._cache_size() == 1


def test_the_first_step_moves_a_fresh_adapter(method):
  _, grads = method.loss_and_grads(*adapters.split(method.fresh))
  assert any(np.any(g) for g in jax.tree.leaves(grads))


def test_counts_are_those_of_the_shapes(method):
  shapes = jax.eval_shape(method.init, jax.random.key(0))
  learnt, fixed = adapters.split(method.adapter)
  assert adapters.count(shapes) == adapters.count(method.adapter) == trees.count(learnt) > 0
  assert adapters.size_bytes(shapes) == trees.size_bytes(learnt) + trees.size_bytes(fixed)


def test_counts_are_those_of_the_formula(method):
  leaves, module = trees.flat(method.base), method.module
  given = {'targets': ('attn/(q|k|v|o)',), **OPTIONS}
  takes = lambda f, more=(): {n: v for n, v in {**given, **dict(more)}.items()
                              if n in inspect.signature(f).parameters}
  places = module.places(leaves, given['targets']) if hasattr(module, 'places') else {
    f'{n}/kernel': f'{n}/kernel'
    for n in trees.match(adapters.projections(method.base), given['targets'])}
  layers = method.model.config.layers
  top = module.top(layers) if hasattr(module, 'top') else layers
  total = 0
  for source in places.values():
    path = source if isinstance(source, str) else source[0]
    shape = leaves[path].shape
    shape = (top, *shape[1:]) if path.startswith('layers/') else shape
    total += module.parameters(shape, **takes(module.parameters, {'path': path}))
  assert adapters.count(method.adapter) == total


def test_saved_and_loaded_is_the_same_to_the_bit(method, tmp_path):
  tree = flax.serialization.to_state_dict(method.adapter)
  about = {'method': method.name, 'targets': ['attn/(q|k|v|o)'], 'top_layers': 0, **OPTIONS}
  checkpoint.save_tree(tmp_path / 'adapter', tree, about)
  loaded, meta = checkpoint.load_tree(tmp_path / 'adapter')
  assert meta['method'] == method.name
  again = adapters.rebuild(loaded, meta['method'], meta)
  tiny.equal(again, method.adapter)
  ask = lambda adapter: method.logits(method.base, adapter, tiny.tokens(), MASK)
  np.testing.assert_array_equal(ask(again), ask(method.adapter))


def test_a_stack_of_three_is_three(method):
  skip_the_same(method)
  runs = [tiny.trained(method.fresh, seed=s) for s in range(3)]
  mapped = jax.jit(jax.vmap(functools.partial(lm.logits, method.model), (None, 0, None, None)))
  found = mapped(method.base, adapters.stack(runs), tiny.tokens(), MASK)
  for run, logits in zip(runs, found):
    expected = method.logits(method.base, run, tiny.tokens(), MASK)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_on_a_mesh_of_eight_devices(method):
  skip_the_same(method)
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  base = sharding.place(method.base, sharding.base_shardings(method.base, mesh))
  places = sharding.state_shardings(method.adapter, method.base, mesh)
  batch = sharding.place_batch({'tokens': tiny.tokens(), 'mask': MASK}, mesh)
  found = method.logits(base, sharding.place(method.adapter, places), **batch)
  assert len(found.sharding.device_set) == 8
  expected = method.logits(method.base, method.adapter, tiny.tokens(), MASK)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_adapters_are_float32_beside_a_bfloat16_base(method):
  model, base = tiny.make('bfloat16')
  fresh = adapters.init(jax.random.key(0), base, method.name, head=True, **OPTIONS)
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}
  plain = {'head': fresh['head']}
  tokens = tiny.tokens()
  both = jax.jit(lambda *a: [lm.score(model, base, x, tokens, MASK) for x in a])(plain, fresh)
  assert both[0].dtype == both[1].dtype == jnp.float32
  if getattr(method.module, 'IDENTITY', True):
    # Beside adapters as large as it the last layer is run whole, which rounds otherwise.
    np.testing.assert_allclose(*both, rtol=0, atol=0.02 if method.name in LARGE else 0.0)
  if adapters.mergeable(base, fresh):
    merged = adapters.merge(base, tiny.trained(fresh))
    assert jax.tree.map(lambda a: a.dtype, merged) == jax.tree.map(lambda a: a.dtype, base)


@pytest.mark.parametrize('copy', [True, False])
def test_decoding_with_a_cache_is_teacher_forcing(method, copy):
  """Token by token, two continuations of each prompt, from prompts that are padded on the left."""
  skip_the_same(method)
  rows, prompt, count = 4, 5, 2
  tokens = jnp.repeat(tiny.tokens(2, 9), count, 0).at[:, prompt:].set(tiny.tokens(rows, 4, seed=1))
  mask = jnp.ones((rows, 9), bool).at[2:, :2].set(False)
  expected = jax.nn.log_softmax(method.logits(method.base, method.adapter, tokens, mask))
  parts = decode.parts(method.model, method.base, method.adapter, copy=copy)
  step = jax.jit(functools.partial(decode.step, method.model))
  prefill = jax.jit(lambda *rows: decode.prefill(method.model, *rows, 4, count=count))
  first, cache = prefill(parts, tokens[::count, :prompt], mask[::count, :prompt])
  found = [jnp.repeat(first, count, 0)]
  for i in range(3):
    seen = jnp.broadcast_to(jnp.arange(4) <= i, (rows, 4))
    logits, cache = step(parts, cache, tokens[:, prompt + i], seen, jnp.int32(i))
    found.append(logits)
  found = jax.nn.log_softmax(jnp.stack(found, 1))
  np.testing.assert_allclose(found, expected[:, prompt - 1 : -1], atol=2e-5)


def test_padding_on_either_side_changes_nothing(method):
  """In a loop over checkpointed layers, with windows and with norms after sublayers."""
  skip_the_same(method)
  model, base = tiny.make('gemma2', remat='layer')
  adapter = tiny.trained(adapters.init(jax.random.key(0), base, method.name, **OPTIONS))
  ask = jax.jit(functools.partial(lm.logprobs, model))
  tokens, mask = tiny.tokens(4, 8), tiny.right_mask([8, 8, 5, 3], 8)
  found = ask(base, adapter, tokens, mask)
  left = lambda x: jnp.stack([jnp.roll(row, 8 - n) for row, n in zip(x, (8, 8, 5, 3))])
  again = ask(base, adapter, left(tokens), left(mask))
  np.testing.assert_allclose(again, left(found), atol=2e-5)


def test_of_the_last_layers_alone(method):
  """What lies below them has no gradient, and merging leaves it as it is."""
  skip_the_same(method)
  if method.name == 'prompt':
    pytest.skip('a soft prompt is no layer\'s')
  adapter = method.init(jax.random.key(0), top_layers=1)
  learnt, fixed = adapters.split(tiny.trained(adapter))
  if method.name not in ('intrinsic', 'prefix', 'topk', 'full', 'lntuning', 'bitfit'):
    assert 2 * adapters.count(adapter) == adapters.count(method.fresh)
  whole = trees.combine(learnt, fixed)
  layer = lambda i: jax.tree.map(lambda w: w[i], method.base['layers']['block'])
  if adapters.mergeable(method.base, whole):
    merged = adapters.merge(method.base, whole)
    tiny.equal(jax.tree.map(lambda w: w[0], merged['layers']['block']), layer(0))
    np.testing.assert_allclose(
      method.logits(merged, {}, tiny.tokens(), MASK),
      method.logits(method.base, whole, tiny.tokens(), MASK), atol=2e-5)
  _, grads = method.loss_and_grads(learnt, fixed)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_over_another_adapter(method):
  """What lies below stays to the bit, and the pair is what both make of the base."""
  skip_the_same(method)
  below = tiny.lora(method.base, head=False)
  below = tiny.trained(below, 0.3)
  both = composition.over(method.base, below, method.fresh)
  ask = lambda base, adapter: method.logits(base, adapter, tiny.tokens(), MASK)
  merged = adapters.merge(method.base, below)
  if getattr(method.module, 'IDENTITY', True) and method.name not in COPIES + ('dora',):
    np.testing.assert_allclose(ask(method.base, both), ask(merged, {}), atol=2e-5)
  assert adapters.count(both) == adapters.count(method.fresh)
  tiny.equal(adapters.split(composition.upper(both))[0], adapters.split(method.fresh)[0])
  if method.name in COPIES + ('dora', 'pissa'):  # made of the weights themselves
    return
  above = tiny.trained(method.fresh, 0.3)
  np.testing.assert_allclose(
    ask(method.base, composition.over(method.base, below, above)), ask(merged, above), atol=5e-5)


def test_over_a_quantized_base(method):
  """The function over its values; a step leaves its codes; copies of kernels are refused."""
  skip_the_same(method)
  model, _, base, values = model_and_bases()
  if method.name in ('full', 'topk'):
    with pytest.raises(ValueError, match='expected a base in full precision'):
      adapters.init(jax.random.key(0), base, method.name)
    return
  fresh = adapters.init(jax.random.key(0), base, method.name, **OPTIONS)
  adapter = tiny.trained(fresh)
  ask = lambda base, adapter: method.logits(base, adapter, tiny.tokens(), MASK)
  np.testing.assert_allclose(ask(base, adapter), ask(values, adapter), atol=2e-5)
  assert np.abs(ask(base, adapter) - ask(method.base, adapter)).max() > 1e-3
  before, tx = trees.digest(base), optim.make('sgd', learning_rate=1e-2, steps=1)
  state = step.init_state(jax.tree.map(jnp.copy, fresh), tx, jax.random.key(0), adapters.split)
  state, metrics = step.make_train_step(language_loss(model), tx, split=adapters.split)(
    state, base, method.batch)
  assert metrics['finite'] == 1.0 and trees.digest(base) == before
  assert trees.digest(state.adapters) != trees.digest(fresh)


def test_every_array_is_its_own(method):
  """A state is donated to its step: it shares no memory with itself or the base."""
  tx = adapters.optimizer(method.name, optim.make('adamw', learning_rate=1e-2, steps=4), steps=4)
  state = step.init_state(
    method.init(jax.random.key(0)), tx, jax.random.key(0), adapters.split)
  arrays = [x for x in jax.tree.leaves((state.adapters, state.opt_state, method.base))
            if x.size > 1]
  pointers = [x.unsafe_buffer_pointer() for x in arrays]
  assert len(set(pointers)) == len(pointers)
