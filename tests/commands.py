"""Commands of the command line, called in this process."""

from __future__ import annotations

from ldm_vae.cli import main


def command(name: str, *words: object, **options: object) -> None:
    """Call `ldm-vae NAME` with options as a user writes them: True is a bare option, a list one of several words."""
    arguments = [*name.split(), *map(str, words)]
    for option, value in options.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        arguments += [f"--{option}", *map(str, values)]
    main(arguments)
