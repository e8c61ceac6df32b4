"""TRL's own loss code on our tensors (extra `peers`): GRPO and its kin, RLOO, DPO and its kin, KTO.

The trainers' loss methods are called on an object that has what they read and nothing else; their
models return the given log-probs.
"""

import collections
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import advantages, policy, preferences, regularizers

torch = pytest.importorskip('torch')
pytest.importorskip('trl')

B, T = 6, 5
MASK = np.arange(T) < np.asarray([5, 3, 1, 4, 2, 5])[:, None]
LONGEST = 9


def draw(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NEW, ADVANTAGES, REFERENCE = draw(B, T, seed=0) - 2, draw(B, seed=2), draw(B, T, seed=3) - 2
OLD = NEW + 0.6 * draw(B, T, seed=1)
ONES = jnp.ones(B)


def trainer(**fields):
  """What a loss method reads of its trainer, in a process of its own."""
  same = lambda x, *_, **__: x
  accelerator = SimpleNamespace(
    num_processes=1, device='cpu', gather=same, gather_for_metrics=same, reduce=same,
    unwrap_model=same, sync_gradients=True)
  return SimpleNamespace(
    accelerator=accelerator, model=SimpleNamespace(training=True), aux_loss_enabled=False,
    _metrics={'train': collections.defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **fields)


def tensor(x):
  return torch.tensor(np.array(x))


def grpo(loss_type, *, beta=0.0, delta=None, level='token', low=0.2, high=0.28):
  from trl.trainer.grpo_trainer import GRPOTrainer

  found = trainer(
    _get_per_token_logps_and_entropies=lambda *_, **__: (tensor(NEW), torch.zeros(B, T), None),
    top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level,
    beta=beta, loss_type=loss_type, epsilon_low=low, epsilon_high=high, use_vllm=False,
    vllm_importance_sampling_correction=False, current_gradient_accumulation_steps=1,
    max_completion_length=LONGEST, _entropy_bonus_enabled=False,
    args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1))
  tokens = torch.zeros(B, T, dtype=torch.long)
  inputs = {
    'prompt_ids': tokens[:, :1], 'prompt_mask': tokens[:, :1] + 1, 'completion_ids': tokens,
    'completion_mask': tensor(MASK).long(), 'advantages': tensor(ADVANTAGES),
    'old_per_token_logps': tensor(OLD), 'ref_per_token_logps': tensor(REFERENCE),
    'num_items_in_batch': tensor(MASK.sum())}
  return GRPOTrainer._compute_loss(found, None, inputs).item()


def ours(how, *, beta=0.0, dual=None, level='token', low=0.2, high=0.28):
  rho = policy.ratios(NEW, OLD, MASK, level=level)
  a = advantages.per_token(jnp.asarray(ADVANTAGES), MASK)
  loss = policy.clipped(rho, a, low=low, high=high, dual=dual)
  loss = loss + beta * regularizers.bregman(NEW, REFERENCE)
  return policy.aggregate(loss, MASK, ONES, how=how, tokens=LONGEST).value()


@pytest.mark.parametrize('beta', [0.0, 0.1])
@pytest.mark.parametrize('loss_type, how', [
  ('grpo', 'sequence'), ('dapo', 'token'), ('bnpo', 'token'), ('dr_grpo', 'constant')])
def test_grpo_and_its_aggregations(loss_type, how, beta):
  np.testing.assert_allclose(ours(how, beta=beta), grpo(loss_type, beta=beta), rtol=1e-5)


def test_gspo():
  options = dict(level='sequence', low=3e-2, high=4e-2)
  np.testing.assert_allclose(ours('sequence', **options), grpo('grpo', **options), rtol=1e-5)


def test_dual_clip():
  assert ours('token', dual=1.3) != ours('token')
  np.testing.assert_allclose(ours('token', dual=1.3), grpo('dapo', delta=1.3), rtol=1e-5)


def test_cispo():
  """TRL's epsilon_high is the bound itself, ours is above 1; its log-probs carry the gradient."""
  a = advantages.per_token(jnp.asarray(ADVANTAGES), MASK)
  loss = policy.cispo(NEW, policy.ratios(NEW, OLD, MASK), a, high=0.1)
  found = policy.aggregate(loss, MASK, ONES, how='token').value()
  np.testing.assert_allclose(found, grpo('cispo', high=1.1), rtol=1e-5)


def test_rloo():
  from trl.trainer.rloo_trainer import RLOOTrainer

  found = trainer(
    _get_per_token_logps_and_entropies=lambda *_, **__: (tensor(NEW), torch.zeros(B, T), None),
    epsilon_low=0.2, epsilon_high=0.2)
  found.accelerator.reduce = lambda x, **_: x
  tokens = torch.zeros(B, T, dtype=torch.long)
  theirs = RLOOTrainer._compute_loss(found, None, {
    'prompt_ids': tokens[:, :1], 'prompt_mask': tokens[:, :1] + 1, 'completion_ids': tokens,
    'completion_mask': tensor(MASK).long(), 'advantages': tensor(ADVANTAGES),
    'old_logps': tensor((OLD * MASK).sum(-1))})
  rho = policy.ratios(NEW, OLD, MASK, level='response')
  loss = policy.clipped(rho, advantages.per_token(jnp.asarray(ADVANTAGES), MASK))
  found = policy.aggregate(loss, MASK, ONES, how='sequence').value()
  np.testing.assert_allclose(found, theirs.item(), rtol=1e-5)


# --- Pairs: the chosen half of the rows, then the rejected half


def outputs():
  zeros = torch.zeros(B, T)
  return SimpleNamespace(log_probs=tensor(NEW * MASK), entropy=zeros, mean_logits=zeros,
                         is_top1=zeros.bool())


def inputs():
  mask = np.concatenate([np.zeros((B, 1), bool), MASK], 1)
  tokens = torch.zeros(B, T + 1, dtype=torch.long)
  return {'input_ids': tokens, 'attention_mask': tokens + 1, 'completion_mask': tensor(mask).long()}


def dpo(loss_type):
  from trl.trainer.dpo_trainer import DPOTrainer

  found = trainer(
    ld_alpha=None, precompute_ref_logps=True, f_divergence_type='reverse_kl', beta=0.3,
    loss_types=[loss_type], loss_weights=[1.0], use_weighting=False, label_smoothing=0.1)
  reference = tensor((REFERENCE * MASK).sum(-1)).chunk(2)
  batch = {**inputs(), 'ref_chosen_logps': reference[0], 'ref_rejected_logps': reference[1]}
  return DPOTrainer._compute_loss(found, lambda **_: outputs(), batch, False).item()


@pytest.mark.parametrize('loss_type, loss, mean', [
  ('sigmoid', lambda d: preferences.dpo(d, beta=0.3), False),
  ('sigmoid_norm', lambda d: preferences.dpo(d, beta=0.3), True),
  ('ipo', lambda d: preferences.ipo(d, beta=0.3), True),
  ('hinge', lambda d: preferences.hinge(d, beta=0.3), False)])
def test_dpo_and_its_kin(loss_type, loss, mean):
  sums = [jnp.asarray((x * MASK).sum(-1)) for x in (NEW, REFERENCE)]
  if mean:
    sums = [preferences.per_token(x, MASK.sum(-1)) for x in sums]
  (chosen, rejected), reference = (jnp.split(x, 2) for x in sums)
  found = loss(preferences.margin(chosen, rejected, *reference)).mean()
  np.testing.assert_allclose(found, dpo(loss_type), rtol=1e-5)


def test_kto():
  from trl.trainer.kto_trainer import KTOTrainer

  drift, label = draw(B, seed=5), np.asarray([1, 0, 1, 1, 0, 0])
  found = trainer(
    precompute_ref_logps=True, calculate_KL=True, loss_type='kto', beta=0.3, desirable_weight=1.5,
    undesirable_weight=0.7, _compute_kl_logps=lambda *_: tensor(drift))
  theirs = KTOTrainer._compute_loss(found, lambda **_: outputs(), {
    **inputs(), 'label': tensor(label), 'ref_logps': tensor((REFERENCE * MASK).sum(-1)),
    'ref_KL_logps': torch.zeros(B)}, False).item()
  log_ratio = jnp.asarray(((NEW - REFERENCE) * MASK).sum(-1))
  loss = preferences.kto(
    log_ratio, jnp.asarray(label, jnp.float32), preferences.kto_drift(jnp.asarray(drift)),
    beta=0.3, desirable=1.5, undesirable=0.7)
  np.testing.assert_allclose(loss.mean(), theirs, rtol=1e-5)
