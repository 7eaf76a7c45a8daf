"""Lines for the user beside results and errors."""

import subprocess
import sys

from ldm_vae.system.telling import counted

_SCRIPT = """
import warnings
from ldm_vae.system.telling import Note, show_notes_as_lines
show_notes_as_lines()
warnings.warn("the fp16 variant is read", Note)
warnings.warn("something else")
"""


def test_numbers_with_their_noun() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2, 3000)] == [
        "0 shards",
        "1 shard",
        "2 shards",
        "3,000 shards",
    ]
    assert counted(2, "box", "boxes") == "2 boxes"


def test_a_note_is_a_plain_line_and_other_warnings_stay() -> None:
    ended = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    note, *others = ended.stderr.splitlines()
    assert note == "ldm-vae: the fp16 variant is read"
    assert others[0].endswith("UserWarning: something else")
