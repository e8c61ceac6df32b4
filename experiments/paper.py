"""Published figures, to stand beside ours and never among them.

Parameter Efficient Reinforcement Learning from Human Feedback (PERL), Sidahmed et al.,
arXiv 2403.10704 v2, Table 1: best LoRA against full tuning of PaLM 2 S, on other tasks than ours.
VQA is left out: its figures are of another model and, in part, relative.
"""

SOURCE = 'PERL (arXiv 2403.10704 v2, Table 1), PaLM 2 S'
TASKS = ('HH harmless', 'SHP', 'Reddit TL;DR', 'BOLT SMS', 'UI automation')

REWARD_ACCURACY = {  # percent
  'full': {'HH harmless': 76.56, 'SHP': 83.2, 'Reddit TL;DR': 78.7, 'UI automation': 93.12},
  'lora': {'HH harmless': 78.71, 'SHP': 82.2, 'Reddit TL;DR': 79.7, 'UI automation': 91.8},
}
POLICY_WIN_RATE = {  # percent, win rate or accuracy
  'full': dict(zip(TASKS, (96.6, 63.0, 87, 73.2, 81.6))),
  'lora': dict(zip(TASKS, (98.2, 61.3, 86.5, 75.5, 86.4))),
}
RATIOS = {  # LoRA's, over tasks: least and greatest
  'reward_memory': '43 to 56 % of full', 'reward_speed': '1.5 to 1.9 times full',
  'rl_memory': '74 to 80 % of full', 'rl_speed': '1.05 to 1.3 times full',
}
PARAMETERS = 'under 0.1 %'


def spread(figures: dict[str, float]) -> str:
  """'76.6 to 93.1' over the tasks."""
  return f'{min(figures.values()):.1f} to {max(figures.values()):.1f}'

RANK_GRID = {  # Hu et al., arXiv 2106.09685, Table 6: GPT-3, accuracy in % at r = 1, 2, 4, 8, 64
  'WikiSQL': {'q': (68.8, 69.6, 70.5, 70.4, 70.0), 'q,v': (73.4, 73.3, 73.7, 73.8, 73.5),
              'q,k,v,o': (74.1, 73.7, 74.0, 74.0, 73.9)},
  'MultiNLI': {'q': (90.7, 90.9, 91.1, 90.7, 90.7), 'q,v': (91.3, 91.4, 91.3, 91.6, 91.4),
               'q,k,v,o': (91.2, 91.7, 91.7, 91.5, 91.4)},
}
