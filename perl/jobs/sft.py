"""Stage `sft`: supervised fine-tuning of an adapter on demonstrations. Its result is the anchor."""

import jax
import numpy as np
from ml_collections import ConfigDict

from perl import trees
from perl.evaluate import merging
from perl.jobs import _artefacts as artefacts
from perl.jobs import _language as language
from perl.jobs import _responses as responses
from perl.jobs import _setting as settings
from perl.peft import adapters
from perl.train import loop
from perl.train import step as steps


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ in workdir; returns the dev loss, and the gold reward where there is one."""
  setting = settings.begin(config, workdir, 'sft')
  base = artefacts.load_base(setting)
  rows, dev = (setting.demonstrations(split) for split in ('train', 'dev'))
  adapter = artefacts.new_adapter(setting, base, setting.key, start=config.sft.adapter)
  tx = setting.optimizer()
  state, places = artefacts.first_state(setting, base.params, adapter, tx)
  step = steps.make_train_step(
    language.make_loss(base.model, dropout=config.peft.dropout > 0), tx, split=adapters.split,
    shardings=places, microbatches=config.sft.microbatches,
  )
  limit = config.evaluate.max_examples or len(dev)
  batches = [setting.place(b) for b in setting.evaluation_batches(dev[:limit], 'demonstration')]
  state, result = loop.fit(
    lambda state, batch: step(state, base.params, setting.place(batch)),
    state,
    setting.stream(rows, 'demonstration'),
    meta=artefacts.run_meta(setting, base, head=False),
    evaluate=language.make_evaluation(base.model, base.params, batches),
    best_metric='loss',
    best_mode='min',
    **setting.loop_options(),
  )
  artefacts.save_adapter(setting, base, state.adapters)
  if hasattr(setting.dataset, 'gold_reward'):
    result |= _gold(setting, base, state.adapters)
  if adapters.mergeable(base.params, state.adapters):
    result['merge_logit_difference'] = merging.logit_difference(
      base.model, base.params, state.adapters, batches[0]['tokens'], batches[0]['mask'])
  if config.sft.test:
    result |= _test(setting, base, state)
  return setting.finish({
    **result,
    'parameters_trainable': adapters.count(state.adapters),
    'parameters_total': trees.count(base.params),
  })


def _test(setting: settings.Setting, base: artefacts.Base, state: steps.TrainState) -> dict:
  """Of test, as many as are answered: the loss, and the likeliest against the agents' own turns."""
  rows = responses.some(setting, setting.demonstrations('test'))
  batches = [setting.place(b) for b in setting.evaluation_batches(rows, 'demonstration')]
  loss = language.make_evaluation(base.model, base.params, batches)(state)
  turns = responses.examples(setting, 'test', 'demonstration')
  found = responses.respond(setting, base, state.adapters, turns, setting.key, temperature=0.0)
  means = {name: float(np.nanmean(values))
           for name, values in responses.compared(setting, turns, found).items()}
  return {f'test_{name}': value for name, value in {**loss, **means}.items()}


def _gold(setting: settings.Setting, base: artefacts.Base, adapter) -> dict:
  """The mean gold reward of one sample for each test prompt, where the dataset knows one."""
  examples = responses.examples(setting, 'test')
  answers = responses.respond(setting, base, adapter, examples, jax.random.fold_in(setting.key, 1))
  gold = responses.gold_rewards(setting, examples, answers.texts)
  return {'gold_reward': float(gold.mean())}
