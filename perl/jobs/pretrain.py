"""Stage `pretrain`: next-token prediction, from scratch or from a checkpoint. Its result is a base.

Pretraining is full tuning of random weights: the same step, the same adapter protocol, and at the
end one merge.
"""

from ml_collections import ConfigDict

from perl import trees
from perl.jobs import _artefacts as artefacts
from perl.jobs import _language as language
from perl.jobs import _setting as settings
from perl.models import lm
from perl.peft import adapters
from perl.train import loop, sharding
from perl.train import step as steps


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves base/ in workdir; returns the dev loss, nats per token."""
  setting = settings.begin(config, workdir, 'pretrain')
  model = setting.model(setting.tokenizer.vocab_size)
  rows = setting.rows(setting.examples('train', 'document'), 'document')
  dev = setting.rows(setting.examples('dev', 'document'), 'document')
  if config.model.checkpoint:
    params = artefacts.load_published(setting, model).params
  else:
    params = lm.init(model, setting.key)
    params = sharding.place(params, sharding.base_shardings(params, setting.mesh))
  adapter = artefacts.place_adapter(adapters.init(setting.key, params, 'full'), params, setting)
  tx = setting.optimizer()
  state, places = artefacts.first_state(setting, params, adapter, tx)
  step = steps.make_train_step(
    language.make_loss(model, dropout=False), tx, split=adapters.split, shardings=places,
    microbatches=config.pretrain.microbatches,
  )
  batches = [setting.place(b) for b in setting.evaluation_batches(dev, 'document')]
  meta = {'seed': config.seed, 'tokenizer': setting.tokenizer.digest}
  state, result = loop.fit(
    lambda state, batch: step(state, params, setting.place(batch)),
    state,
    setting.stream(rows, 'document'),
    meta=meta | {k: v for k, v in config.pretrain.to_dict().items() if k != 'log_every_steps'},
    evaluate=language.make_evaluation(model, params, batches),
    **setting.loop_options(),
  )
  artefacts.save_base(setting, model, adapters.merge(params, state.adapters))
  total = trees.count(params)
  return setting.finish({**result, 'parameters_total': total, 'parameters_trainable': total})
