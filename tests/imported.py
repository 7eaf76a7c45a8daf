"""What the server that tests' processes are forked from imports: all that takes long, and nothing with threads."""

import gc

import tests.training.drive  # noqa: F401
from ldm_vae.config.fields import all_fields
from ldm_vae.config.run import Config

all_fields(Config)  # reads the docstrings of all fields, which it keeps
gc.collect()
gc.freeze()  # so that the processes needn't copy what they don't change
