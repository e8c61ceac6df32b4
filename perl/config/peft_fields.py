"""The fields of PEFT methods, a part of perl/config/schema.py.

Sources in short: Hu = arXiv 2106.09685 (LoRA), Kalajdzievski = arXiv 2312.03732 (rsLoRA), Hayou =
arXiv 2402.12354 (LoRA+), Zhang = arXiv 2303.10512 (AdaLoRA), Aghajanyan = arXiv 2012.13255, Houlsby
= arXiv 1902.00751, Li = arXiv 2101.00190 (prefix tuning).
"""

from perl.config.fields import Field

FIELDS: dict[str, Field] = {
  'peft.name': Field('lora', 'What is trained: a file of perl/peft; full is the paper\'s baseline.',
                     source='PERL', package='perl.peft.methods'),
  'peft.rank': Field(8, 'Rank r of each adapter; the paper tries 1, 4, 8, 16.', source='PERL',
                     low=1),
  'peft.alpha': Field(16.0, 'The adapter\'s output is scaled by alpha / r.', source='Hu 4.1',
                      low=0.0),
  'peft.rslora': Field(False, 'Scale by alpha / sqrt(r) instead.', source='Kalajdzievski'),
  'peft.dropout': Field(0.0, 'Dropout of the adapter\'s input in sft and reward (never in '
                        'preference or rl); below 1.', 'probability', 'PERL A.3', low=0.0,
                        high=0.999),
  'peft.targets': Field(('attn/(q|k|v|o)',), 'Regular expressions over the paths of projections: '
                        'which get an adapter. The paper\'s choice; methods with places of their '
                        'own ignore them.', source='PERL'),
  'peft.top_layers': Field(0, 'Only the last so many layers are adapted, and have a backward pass; '
                           '0: the method\'s own choice (topk: a quarter), mostly all.', 'layers',
                           low=0),
  'peft.rate_ratio': Field(16.0, 'lora_plus: learning rate of B over that of A.',
                           source='Hayou 5', low=0.0),
  'peft.projection_seed': Field(0, 'vera, intrinsic: seed of the frozen random matrices.', low=0),
  'peft.dimension': Field(1000, 'intrinsic: entries of the one vector that is trained.',
                          source='Aghajanyan', low=1),
  'peft.experts': Field(4, 'mole: LoRA experts beside a matrix, each of rank peft.rank.', 'experts',
                        low=1),
  'peft.top_experts': Field(2, 'mole: experts that a token goes to.', 'experts', low=1),
  'peft.initial_rank': Field(0, 'adalora: rank at the start; 0 is peft.rank and half as much '
                             'again.', source='Zhang 4', low=0),
  'peft.orthogonality': Field(0.1, 'adalora: weight of the distance of P and Q from orthogonal '
                              'ones.', source='Zhang 4', low=0.0),
  'peft.budget_start': Field(0.1, 'adalora: share of the steps before ranks are first cut.',
                             source='Zhang', low=0.0, high=1.0),
  'peft.budget_end': Field(0.5, 'adalora: share of the steps after the last cut.', source='Zhang',
                           low=0.0, high=1.0),
  'peft.budget_every_steps': Field(10, 'adalora: steps from one cut to the next.', 'steps', 'Zhang',
                                   low=1),
  'peft.bottleneck': Field(64, 'houlsby, pfeiffer: width of the adapter\'s inner layer.',
                           source='Houlsby', low=1),
  'peft.virtual_tokens': Field(16, 'prefix, prompt: tokens that lead every row.', 'tokens', low=1),
  'peft.prefix_width': Field(0, 'prefix: width of the network that makes keys and values while '
                             'they are trained; 0 trains them themselves.', source='Li 4.3', low=0),
}
"""Path -> Field."""
