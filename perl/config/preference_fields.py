"""The fields of the stage `preference` and of its methods, a part of perl/config/schema.py.

`preference.<method>.*` are the options of perl/preference/methods/<method>.py; each default is its
paper's, where it gives one. Sources in short: Rafailov = arXiv 2305.18290 (DPO), Azar = arXiv
2310.12036 (IPO), Liu = arXiv 2309.06657 (RSO), Ethayarajh = arXiv 2402.01306 (KTO), Hong = arXiv
2403.07691 (ORPO), Meng = arXiv 2405.14734 (SimPO), Xu = arXiv 2401.08417 (CPO), Lambert = arXiv
2411.15124 (Tulu 3). SLiC-HF (arXiv 2305.10425) has the equation; its numbers here are ours.
"""

from perl.config.fields import Field

FIELDS: dict[str, Field] = {
  'preference.method': Field('dpo', 'What is minimised: a file of perl/preference/methods.',
                             source='Rafailov', package='perl.preference.methods'),
  'preference.reference': Field('step', 'Log-probs of the reference, where a method has one: '
                                'computed in each step, or of all rows once before the first one, '
                                'which saves a forward pass in every epoch but the first.',
                                choices=('step', 'precomputed')),
  'preference.answers': Field(None, 'Test prompts that are answered before and after, for KL and '
                              'length; None is all that evaluate.max_examples leaves.', 'prompts',
                              low=0, kind=int),
  'preference.share_prompt': Field(False, 'The prompt of a pair passes through the model once for '
                                   'both of its responses: less work where prompts are long.'),

  'preference.dpo.beta': Field(0.1, 'Strength of the KL that the loss stands for.',
                               source='Rafailov B', low=1e-6),
  'preference.dpo.smoothing': Field(0.0, 'Share of the labels that are taken to be wrong '
                                    '(conservative DPO).', 'probability', 'Mitchell 2023', low=0.0,
                                    high=0.499),
  'preference.dpo.per_token': Field(False, 'Means over tokens in place of sums (length-normalised; '
                                    'beta is then 5 there).', source='Lambert'),
  'preference.ipo.tau': Field(0.1, 'Strength of the KL: D is regressed on 1 / (2 tau).',
                              source='Azar', low=1e-6),
  'preference.ipo.per_token': Field(False, 'Means over tokens in place of sums, as TRL has it.'),
  'preference.hinge.beta': Field(0.05, 'Scale of D, whose margin is 1; the paper\'s gamma.',
                                 source='Liu', low=1e-6),
  'preference.slic.delta': Field(1.0, 'Margin of log P of the chosen over the rejected response.',
                                 'nats', low=1e-6),
  'preference.slic.sft': Field(0.1, 'Weight of -log P of the chosen response; the paper\'s lambda.',
                               low=0.0),
  'preference.kto.beta': Field(0.1, 'Strength of the KL.', source='Ethayarajh 4', low=1e-6),
  'preference.kto.desirable': Field(1.0, 'Weight of thumbs up.', source='Ethayarajh 4', low=0.0),
  'preference.kto.undesirable': Field(1.0, 'Weight of thumbs down.', source='Ethayarajh 4',
                                      low=0.0),
  'preference.orpo.beta': Field(0.1, 'Weight of the odds ratio; the paper\'s lambda.',
                                source='Hong', low=0.0),
  'preference.simpo.beta': Field(2.0, 'Scale of the difference of mean log-probs.', source='Meng',
                                 low=1e-6),
  'preference.simpo.gamma': Field(1.0, 'Margin that the scaled difference should have; half of '
                                  'beta.', source='Meng', low=0.0),
  'preference.cpo.beta': Field(0.1, 'Scale of the difference of log-probs.', source='Xu 4.2',
                               low=1e-6),
  'preference.cpo.alpha': Field(1.0, 'Weight of -log P of the chosen response, a token.',
                                source='Xu 3', low=0.0),
}
"""Path -> Field."""
