"""The largest train.micro_batch_size that this device holds, and what each size up to it takes and gives.

    python scripts/find_batch_size.py [--limit_gib N] --config kl_f8 [--SECTION.FIELD VALUE ...]

Takes the options of `ldm-vae train`; data is not read. The limit is, by default, what is free now less a tenth.
"""

from __future__ import annotations

import argparse

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from ldm_vae.training.batch_size import Trial, available_memory, try_micro_batches
from ldm_vae.training.capacity import GIB


def main() -> None:
    """Try, and print a line a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit_gib", type=float)
    parser.add_argument("--largest", type=int, default=1024, help="where to stop doubling")
    arguments, rest = parser.parse_known_args()
    config = parse(Config, rest, prog="find_batch_size")
    limit = arguments.limit_gib or 0.9 * available_memory() / GIB
    print(f"limit {limit:.2f} GiB\nmicro-batch  peak GiB  images/s")
    fitting: list[Trial] = []
    for trial in try_micro_batches(config, limit_bytes=int(limit * GIB), largest=arguments.largest):
        if trial.peak_bytes is None:
            print(f"{trial.micro_batch_size:11d}  too large", flush=True)
        else:
            line = f"{trial.micro_batch_size:11d} {trial.peak_bytes / GIB:9.2f} {trial.images_per_second:9.2f}"
            print(line, flush=True)
            fitting.append(trial)
    if not fitting:
        raise SystemExit("not even one image fits")
    largest = max(trial.micro_batch_size for trial in fitting)
    fastest = max(fitting, key=lambda trial: trial.images_per_second or 0.0)
    print(f"the largest that fits: {largest}; the most images a second: {fastest.micro_batch_size}")


if __name__ == "__main__":
    main()
