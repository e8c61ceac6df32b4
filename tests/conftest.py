"""Eight virtual CPU devices for every test; set before jax is imported for the first time."""

import gc
import os

import quick

DEVICES = '--xla_force_host_platform_device_count=8'

flags = os.environ.get('XLA_FLAGS', '')
os.environ.update(quick.ENVIRON, XLA_FLAGS=f'{DEVICES} {quick.ENVIRON["XLA_FLAGS"]} {flags}')

# What jax has traced stays until the end: it is not worth looking through it every 700 objects.
gc.set_threshold(50_000, 20, 100)
