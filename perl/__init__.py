"""Parameter-efficient reinforcement learning from human feedback, in JAX and Flax."""
