"""The fields of the stage `rl`, a part of perl/config/schema.py.

None is the algorithm's own value: `OWN` of its file in perl/rl/algorithms, or else `OPEN` there. So
 rl.algorithm alone makes another algorithm, as its paper has it. Sources in short: Sun = arXiv
2309.09055, Ziegler = 1909.08593, Ouyang = 2203.02155 (InstructGPT), Yu = 2503.14476 (DAPO), Ye =
1912.09729.
"""

from perl.config.fields import Field

FIELDS: dict[str, Field] = {
  'rl.algorithm': Field('reinforce', 'Algorithm: a file of perl/rl. Fields that are None take its '
                        'own values.', source='PERL', package='perl.rl.algorithms'),
  'rl.samples': Field(None, 'Responses to each prompt of an update, which share its computation; '
                      'divides rl.batch_size, which counts responses.', 'responses', low=1,
                      kind=int),
  'rl.epochs': Field(None, 'Passes over a rollout.', low=1, kind=int),
  'rl.minibatches': Field(None, 'Updates in a pass, each on its own rows of the rollout.', low=1,
                          kind=int),
  'rl.baseline': Field(None, 'reinforce: subtracted from the return: a learnt value (PERL), the '
                       'mean return of the other responses of the batch, or of those to the same '
                       'prompt, a moving average over the batches before, or nothing.',
                       source='PERL', kind=str,
                       choices=('value', 'batch_mean', 'leave_one_out', 'moving_average', 'none')),
  'rl.baseline_decay': Field(0.95, 'Weight of what came before in the moving average.', low=0.0,
                             high=0.9999),
  'rl.beta': Field(0.05, 'Weight of what holds to the anchor: in the reward (1 - beta) r - beta KL '
                   'is maximised, in the loss beta KL is added.', source='PERL A.3', low=0.0,
                   high=1.0),
  'rl.regularizer': Field(None, 'What holds the policy to the anchor, of sampled tokens or (the '
                          'last three, in the loss alone) of whole distributions: '
                          'perl/objectives/regularizers.py. With none the anchor is not read.',
                          source='Sun', kind=str,
                          choices=('none', 'kl', 'clamped_kl', 'squared_error', 'bregman',
                                   'jensen_shannon', 'reverse_kl', 'forward_kl',
                                   'exact_jensen_shannon')),
  'rl.regularize': Field(None, 'Where it does so: in the reward of each token, or in the loss.',
                         choices=('reward', 'loss'), kind=str),
  'rl.regularizer_ratio': Field(False, 'In the loss, weigh it by pi / pi_old: its gradient is then '
                                'that of the divergence itself.', source='DeepSeek-V3.2'),
  'rl.kl_target': Field(0.0, 'KL that beta is steered to, rl.beta being its start; 0 keeps beta.',
                        'nats a response', 'Ziegler', low=0.0),
  'rl.kl_horizon': Field(10000.0, 'Responses in which beta may change by a fifth.', 'responses',
                         'Ziegler', low=1.0),
  'rl.clip': Field(None, 'Bound on pi / pi_old - 1, below 0 and above.', source='PPO', low=0.0,
                   high=1.0, kind=float),
  'rl.clip_high': Field(None, 'Another bound above 0.', source='Yu', low=0.0, kind=float),
  'rl.dual_clip': Field(0.0, 'Largest loss of a token with a negative advantage, in units of it; 0 '
                        'is none, else above 1.', source='Ye', low=0.0),
  'rl.level': Field(None, 'What pi / pi_old is of: a token, a response (the product), or a '
                    'sequence (the geometric mean of its tokens).', kind=str,
                    choices=('token', 'response', 'sequence')),
  'rl.aggregation': Field(None, 'How a loss of tokens becomes one number: the mean over tokens, '
                          'over responses of their means or sums, or of sums over the longest '
                          'length.', kind=str,
                          choices=('token', 'sequence', 'sequence_sum', 'constant')),
  'rl.gamma': Field(1.0, 'Discount a token.', source='PERL', low=0.0, high=1.0),
  'rl.lam': Field(0.95, 'ppo: lambda of GAE.', source='Sun', low=0.0, high=1.0),
  'rl.whiten_advantages': Field(None, 'ppo: advantages of a rollout to mean 0 and variance 1.',
                                kind=bool),
  'rl.whiten_rewards': Field(False, 'ppo: rewards of tokens to variance 1, their mean kept.',
                             source='Sun'),
  'rl.value_clip': Field(0.2, 'ppo: bound on the move of a value; 0 is none.', source='PPO',
                         low=0.0),
  'rl.value_weight': Field(1.0, 'Weight of the critic\'s loss, whose optimizer is its own: it '
                           'matters to clipping and decay alone.', low=0.0),
  'rl.critic_from': Field('zero', 'The critic begins with values of 0, or as the reward model, '
                          'adapter and head (what its head reads of the last hidden state).',
                          source='Sun', choices=('zero', 'reward')),
  'rl.entropy': Field(0.0, 'Weight of the exact entropy of each token\'s distribution, which is '
                      'raised.', low=0.0),
  'rl.stop_kl': Field(0.0, 'No more updates on a rollout once a minibatch\'s KL from the policy '
                      'that sampled is larger; 0 makes all.', 'nats a token', low=0.0),
  'rl.ptx': Field(0.0, 'Weight of the next-token loss of training documents, rl.batch_size of them '
                  'an update, each cut to the longest row; 0 is none.', source='Ouyang', low=0.0),
  'rl.reward_scale': Field('none', 'Scores, less the anchor\'s mean, as they are or over their '
                           'standard deviation so far.', choices=('none', 'running')),
  'rl.reward_clip': Field(0.0, 'Bound of a score after that; 0 is none.', low=0.0),
  'rl.reward_centre': Field(True, 'Take the anchor\'s mean score on dev prompts from every score.'),
  'rl.overlong': Field(None, 'Share of rl.max_new_tokens at its end in which a response loses up '
                       'to 1 of its score; 0 is none.', source='Yu', low=0.0, high=1.0, kind=float),
  'rl.rounds': Field(None, 'Rollouts that an update may take until it has as many prompts as it '
                     'needs whose responses score differently; 1 takes them as they come.',
                     'rollouts', 'Yu', low=1, kind=int),
  'rl.preference_beta': Field(0.1, 'online_dpo: beta of DPO.', low=0.0),
  'rl.threshold': Field(0.0, 'expert_iteration: score, less the anchor\'s mean, above which a '
                        'response is imitated.'),
  'rl.reward_temperature': Field(1.0, 'reward_weighted: score by which a response weighs e times '
                                 'another.', low=1e-6),
  'rl.reward_weight': Field(1.0, 'Weight of the reward model\'s score in the reward; 0 needs no '
                            'reward model.', low=0.0),
  'rl.ensemble': Field('mean', 'How the scores of an ensemble (reward.members) make one: their '
                       'mean, the least of them, or the mean less rl.ensemble_penalty times their '
                       'variance.', source='Coste et al. 2023',
                       choices=('mean', 'minimum', 'uncertainty')),
  'rl.ensemble_penalty': Field(0.0, 'lambda, weight of the variance over members in '
                               'rl.ensemble=uncertainty.', source='Coste et al. 2023', low=0.0),
  'rl.rules': Field((), 'Rules that score responses too: files of perl/rl/rules, or '
                    '\'module:function\' of your own.'),
  'rl.rule_weights': Field((), 'Weight of each rule in the reward; () is 1 each.',
                           kind=float),
  'rl.scale_rewards': Field(None, 'What the advantages of responses to a prompt are divided by: '
                            'the standard deviation within them, that of the batch, or nothing.',
                            choices=('group', 'batch', 'none'), kind=str),
  'rl.mask_truncated': Field(False, 'A response that does not end is compared with the others, but '
                             'not learnt from.', source='Yu'),
  'rl.behaviour': Field('auto', 'Whose log-probs of the samples an update compares itself with: '
                        'the sampler\'s own, or those that the trainer gives to the same tokens; '
                        'auto takes the trainer\'s where the two compute otherwise (narrow types '
                        'or caches, merged weights, accelerators).',
                        choices=('auto', 'sampler', 'trainer')),
  'rl.correction': Field('auto', 'Where they are the trainer\'s, the loss of a token is weighed by '
                         'pi_trainer / pi_sampler, of the token or of its response, cut to '
                         'rl.correction_cap or 0 beyond it; auto is sequence_mask then.',
                         source='TRL', choices=('auto', 'none', 'token_truncate', 'token_mask',
                                                'sequence_truncate', 'sequence_mask')),
  'rl.correction_cap': Field(3.0, 'Largest such weight.', source='TRL', low=1.0),
  'rl.keep': Field('last', 'The checkpoint that is the result: the last one, or the best by '
                   'rl.best_metric.', choices=('last', 'best')),
  'rl.best_metric': Field('reward', 'What of the evaluation on dev picks the best checkpoint, and '
                          'is waited for by rl.patience.',
                          choices=('reward', 'gold_reward', 'kl', 'response_tokens', 'finished',
                                   'entropy', 'repetition', 'distinct_2')),
  'rl.best_mode': Field('max', 'Whether more of it is better, or less.', choices=('max', 'min')),
  'rl.patience': Field(0, 'Evaluations in a row without a better rl.best_metric, after which the '
                       'stage ends; 0 is never.', 'evaluations', low=0),
  'rl.layout': Field('shared', 'One base for all roles, or a copy of it for each, as is the '
                     'custom: the baseline of tables of memory.', choices=('shared', 'separate')),
  'rl.forwards': Field('auto', 'Reference and reward model read the responses in a pass each, or '
                       'in one as stacked adapters; auto is the faster where that was measured.',
                       choices=('auto', 'separate', 'stacked')),
  'rl.decode': Field('auto', 'Sampling reads base and adapter, or a copy of the base with the '
                     'adapter merged in, made anew for each rollout and never trained on; auto '
                     'merges where weights are copied anyway (small ones, on CPU, in float32).',
                     choices=('auto', 'adapter', 'merged')),
  'rl.cache': Field('model', 'How sampling stores keys and values: as the model computes, or '
                    'narrower.', choices=('model', 'float32', 'bfloat16', 'int8')),
  'rl.rollout': Field('auto', 'A batch of prompts decodes together until its last response ends, '
                      'or in slots: one that ends makes room for the next prompt. auto takes slots '
                      'where prompts outnumber them and lengths of responses vary.',
                      choices=('auto', 'batch', 'slots')),
  'rl.slots': Field(0, 'Rows that decode at a time in an update; 0 is the whole batch.',
                    'responses', low=0),
  'rl.temperature': Field(0.7, 'Temperature of sampling and of every log-prob.', source='PERL A.3',
                          low=1e-3),
  'rl.top_k': Field(0, 'Sample from the k likeliest; 0 is off, and training demands it.', 'tokens',
                    low=0),
  'rl.top_p': Field(1.0, 'Sample from the likeliest of this mass; 1 is off, and training demands '
                    'it.', 'probability', low=0.0, high=1.0),
  'rl.max_new_tokens': Field(64, 'Longest sampled response, its EOS included.', 'tokens', low=1),
  'rl.value_learning_rate': Field(1e-4, 'Peak learning rate of the value model.', 'per step',
                                  low=0.0),
  'rl.missing_eos_penalty': Field(0.0, 'Taken from the reward of a response that does not end.',
                                  'reward', low=0.0),
  'rl.optim.eps': Field(None, 'Added to the root of the mean square; None is the algorithm\'s own.',
                        source='AdamW', low=0.0, kind=float),
}
"""Path -> Field."""
