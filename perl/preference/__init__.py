"""Learning from preferences: pairs, reward models and their losses, DPO and its kin."""
