"""The fields of reward models, a part of perl/config/schema.py."""

from perl.config.fields import Field

FIELDS: dict[str, Field] = {
  'reward.kind': Field('pairwise', 'Loss: -log sigmoid(r_w - r_l) of pairs, cross-entropy of '
                       'thumbs, the mean over all pairs of a ranking (InstructGPT, eq. 1), or '
                       'squared error of ratings.', source='PERL',
                       choices=('pairwise', 'pointwise', 'ranking', 'regression')),
  'reward.responses': Field(4, 'K, most responses to a prompt of a ranking; of more, the best, the '
                            'worst and some evenly between them.', 'responses',
                            'Ouyang et al. 2022, 3.5', low=2),
  'reward.members': Field(1, 'Reward models of an ensemble, stacked over one base and trained in '
                          'one program on the same batches; they differ by their initialisation.',
                          'models', 'Coste et al. 2023', low=1),
  'reward.max_examples': Field(0, 'Examples that are learnt from: the first so many of the train '
                               'split\'s, shuffled by `seed`; 0 is all.', 'examples', low=0),
  'reward.skip_examples': Field(0, 'Of those, as many at the beginning are passed over: a second '
                                'model then learns from other examples than a first one of so many '
                                '(a judge of policies that it did not reward).', 'examples',
                                low=0),
  'reward.margin': Field(False, 'Subtract the pair\'s own margin inside the sigmoid (pairwise).',
                         source='Llama 2, 3.2.2'),
  'reward.centre': Field(0.0, 'Coefficient of (r_w + r_l)^2, which centres the scores (pairwise, '
                         'ranking).', source='Eisenstein et al. 2023', low=0.0),
  'reward.share_prompt': Field(False, 'The prompt of a pair passes through the model once for both '
                               'of its responses (pairwise): less work where prompts are long.'),
  'reward.reads': Field((), 'What the head reads beside the last hidden state: the mean ones of '
                        'response and prompt, the mean input and output of the first layer over '
                        'the response, how likely the model finds the response '
                        '(models.lm.score); not in the paper, whose models are large.',
                        choices=('mean', 'early', 'likelihood')),
  'reward.probe': Field(False, 'Start the head from a logistic regression over the anchor.',
                        source='Kumar et al. 2022'),
  'reward.probe_c': Field(0.03, 'Inverse strength of the probe\'s L2 penalty, on standardised '
                          'features; less where the head reads more.', low=1e-6),
  'reward.patience': Field(0, 'Evaluations in a row without a better validation metric, after '
                           'which the stage ends; 0 is never.', 'evaluations', low=0),
  'reward.keep': Field('best', 'The checkpoint that is the result: the best by validation (pair '
                       'accuracy, AUC of thumbs, rank correlation of ratings) or the last.',
                       source='PERL', choices=('best', 'last')),
}
"""Path -> Field."""
