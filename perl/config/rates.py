"""Learning rates by method: those of LoRA, times a factor that belongs to the method.

The factors are those of the least SFT loss on coffee's dev split, of rates a factor of about three
apart, one seed, over a base that SFT can still teach (configs/coffee_methods.py):
experiments/results/coffee_rates.json. LoRA and full tuning are best there at that file's own rates.
Nothing was tried for reward models and RL, which take the same factors. The fewer numbers a method
trains, and the closer to 1 or 0 they stay, the larger a rate it bears.
"""

from collections.abc import Mapping

from perl import choices
from perl.config import arguments

COPIES = ('full', 'topk')
"""Methods that train copies of kernels: at full tuning's rates, and over no quantized base."""

FACTORS = {
  'adalora': 12.0, 'bitfit': 4.0, 'dora': 1.0, 'full': 1.0, 'houlsby': 1.0, 'ia3': 10.0,
  'intrinsic': 3.0, 'lntuning': 12.0, 'lora': 1.0, 'lora_fa': 2.0, 'lora_plus': 0.075, 'mole': 1.0,
  'pfeiffer': 3.0, 'pissa': 1.5, 'prefix': 100.0, 'prompt': 10.0, 'rslora': 0.5, 'topk': 6.0,
  'vera': 10.0,
}
"""Of LoRA's rates; of full tuning's for COPIES."""

PAPER = {
  'lora': {'sft': 1e-4, 'reward': 1e-4, 'rl': 1e-4, 'value': 1e-4},
  'full': {'sft': 1e-5, 'reward': 1e-5, 'rl': 1e-5, 'value': 1e-5},
}
"""PERL's (A.3), for PaLM 2: where a published model takes the place of a small one."""

SMALL = {
  'lora': {'sft': 5e-4, 'reward': 5e-4, 'rl': 3e-4, 'value': 1e-3},
  'full': {'sft': 5e-5, 'reward': 3e-5, 'rl': 2e-5, 'value': 1e-4},
}
"""For published models of some 100 M parameters, short runs; no sweep stands behind them yet."""

ARGUMENT = arguments.Argument('lora', 'what is trained', choices.names('perl.peft.methods'))
"""The argument `peft` of a config file."""


def of(method: str, lora: Mapping[str, float], full: Mapping[str, float]) -> dict[str, float]:
  """{stage: rate} of a method, of LoRA's and full tuning's."""
  rates = full if method in COPIES else lora
  return {stage: FACTORS.get(method, 1.0) * rate for stage, rate in rates.items()}
