"""RL algorithms, or regularizers, at equal budgets: rewards against KL."""
