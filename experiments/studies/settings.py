r"""The settings of configs/published.py against others: LoRA's rate, rank, matrices; full tuning.

    python -m experiments.studies settings --seeds=0 --workdir=runs/settings_sft \
        --config=configs/published.py:checkpoint=models/smollm2,data=e2e \
        --config.stages="('sft',)" --config.sft.steps=40 --config.sft.test=True \
        --config.evaluate.max_examples=64 --json=experiments/results/published.json
    python -m experiments.studies settings --seeds=0 --workdir=runs/settings_reward \
        --config=configs/published.py:checkpoint=models/smollm2,data=hh_rlhf_test \
        --config.stages="('reward',)" --config.inputs.anchor=base --config.reward.steps=23 \
        --config.data.parts="('harmless-base',)" --config.data.max_prompt_tokens=160 \
        --config.data.max_response_tokens=96 \
        --json=experiments/results/published_reward.json

One thing is varied at a time around the config's own LoRA. Attention alone has a rank at which it
trains as many numbers as all linear layers do. Folders: see _supervised.py.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies import _jobs as jobs
from experiments.studies import _supervised as supervised
from experiments.studies._engine import Table
from experiments.studies._estimates import Rows, about, by_seed, over_seeds, show
from experiments.studies._jobs import Job, Row, Spec
from perl import trees
from perl.jobs._plan import Plan

ATTENTION = ('attn/(q|k|v|o)',)
OWN = 'lora'
PERL = {'lora': 1e-4, 'full': 1e-5}
"""Rates that PERL prints (arXiv 2403.10704, A.3), of PaLM 2."""
FIGURES = (
  ('SFT loss, dev', 'sft', 'loss', 4), ('SFT loss, test', 'sft', 'test_loss', 4),
  ('BLEU', 'sft', 'test_bleu', 1), ('RM loss, test', 'reward', 'loss', 4),
  ('RM AUC', 'reward', 'auc', 3), ('RM pair accuracy', 'reward', 'pair_accuracy', 3))
BY = ('loss', 'loss')
"""What rates are chosen by: the dev loss of SFT, the test loss of reward models."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """What is varied, and the seeds."""
  jobs.add_seeds(parser)
  parser.add_argument('--factors', default='0.3,1,3', help='times the learning rates, 1 among them')
  parser.add_argument('--ranks', default='4,64', help='of LoRA, beside the config\'s own')


def rows(spec: Spec, options: argparse.Namespace) -> list[Row]:
  """The config's own LoRA; other rates, ranks and matrices; full tuning at several rates."""
  alpha = spec.config().peft.alpha / spec.config().peft.rank
  factors = [float(x) for x in jobs.words(options.factors, '--factors=0.3,1,3') if float(x) != 1]
  of_rank = lambda rank, **more: {'peft.rank': rank, 'peft.alpha': alpha * rank, **more}
  attention = of_rank(equal_rank(spec), **{'peft.targets': ATTENTION})
  return [
    Row(OWN, 'lora'), Row('full', 'full'),
    *(Row(f'{name}_x{factor:g}', name, {}, factor) for name in ('lora', 'full')
      for factor in factors),
    Row('lora_attention', 'lora', attention),
    *(Row(f'lora_r{rank}', 'lora', of_rank(rank))
      for rank in jobs.numbers(options.ranks, '--ranks=4,64'))]


def equal_rank(spec: Spec) -> int:
  """The rank at which LoRA of attention alone trains as many numbers as the config's own."""
  config = spec.config(peft='lora')
  stage = next(s for s in supervised.STAGES if s in config.stages)

  def trained(**fields: Any) -> int:
    other = config.copy_and_resolve_references()
    other.peft.update(fields)
    plan = Plan(other, stage)
    adapter = plan.adapter(lambda base: plan.artefacts.new_adapter(base, plan.run.key))
    return trees.count(adapter)

  one = trained(rank=1, targets=ATTENTION)
  return max(1, round(trained() / one))


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """All rows over one base, of whichever of SFT and reward the config has."""
  stages = [stage for stage in supervised.STAGES if stage in spec.config().stages]
  return supervised.phases(
    spec, rows(spec, options), options, stages=stages, test=spec.config().sft.test)


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """What is finished of the rows."""
  return supervised.collect(spec, rows(spec, options))


def table(results: Mapping[str, Any]) -> Table:
  """A row a setting, its figures; then the best rates beside the rules."""
  records, body = results['rows'], []
  figures = [figure for figure in FIGURES if by_seed(records, *figure[1:3])]
  for name in dict.fromkeys(row['name'] for row in records):
    row = next(row for row in records if row['name'] == name)
    trained = next(row[stage]['parameters_trainable'] for stage in supervised.STAGES
                   if stage in row)
    body.append([name, f'{trained:,}', f'{row["learning_rate"]:.2g}', *(
      show(over_seeds(records, stage, field, name=name), digits)
      for _, stage, field, digits in figures)])
  head = ['setting', 'trained', 'rate', *(title for title, *_ in figures)]
  return head, body, [*_rates(records), *about(records)]


def _rates(records: Rows) -> list[str]:
  """The rate of the least loss of LoRA and full tuning, and their ratio."""
  notes = []
  for stage, field in zip(supervised.STAGES, BY):
    best = {method: _best([r for r in records if r['peft'] == method and stage in r and (
      r['name'] == method or '_x' in r['name'])], stage, field) for method in PERL}
    if all(best.values()):
      notes.append(
        f'{stage}: least loss of LoRA at {best["lora"]:.2g}, of full tuning at {best["full"]:.2g}, '
        f'{best["lora"] / best["full"]:.3g} times less (expected 10, in short runs 15: '
        f'"LoRA without regret"); PERL prints {PERL["lora"]:g} and {PERL["full"]:g}.')
  return notes


def _best(rows: Sequence[Mapping[str, Any]], stage: str, field: str) -> float | None:
  losses = {r['learning_rate']: over_seeds(rows, stage, field, name=r['name']) for r in rows}
  known = {rate: loss.mean for rate, loss in losses.items() if loss}
  return min(known, key=known.get) if len(known) > 1 else None
