"""One thread a process: what runs here is tiny, and some of it in several processes at once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in what tests start
