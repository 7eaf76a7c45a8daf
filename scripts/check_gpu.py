"""Is this GPU right, and is it fast? A table, a verdict a line, and all figures as JSON.

    python scripts/check_gpu.py [--output check.json] [--only machine kernels coding ...] [--size full|small]
        [--data PHOTOS] [--jobs 3] [--keep FOLDER]

    machine     what is there, and what its arithmetic and memory do
    kernels     the group-norm kernels beside torch's operators: errors, and the part of the memory's rate they reach
    coding      latents and pictures in float32 and bf16 beside the CPU's float32
    training    a run in float32 and in bf16, eager and compiled, beside the CPU's; resumed, beside uninterrupted, bit
                by bit; on all local devices beside one
    speed       images a second of encoder, decoder and training step, with MFU, the ratio to the floor and the share
                of the convolutions; with --data also `ldm-vae encode` from JPEG files
    jpeg        JPEG files decoded, cropped and resized by the GPU beside Pillow: is `encode --jpeg_decoder nvjpeg`
                as right, and faster? (needs --data)

Each part is processes of its own with a time limit, so that one that hangs or fails costs no other; the JSON file is
written after each. On a CPU the same checks run with what there is, at the small size. The exit status is 0 where
nothing is wrong and no part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from check_gpu_training import check_training, kill_group
from check_gpu_verdicts import Verdict

SCRIPTS = Path(__file__).parent
PARTS = ("machine", "kernels", "coding", "training", "speed", "jpeg")
SECONDS = {"machine": 120, "kernels": 240, "coding": 240, "speed": 900, "jpeg": 240}


def main() -> None:
    """Run the parts one after the other."""
    options = parse_arguments()
    if options.keep is None:
        with tempfile.TemporaryDirectory() as folder:
            verdicts = run_parts(options, Path(folder))
    else:
        options.keep.mkdir(parents=True, exist_ok=True)
        verdicts = run_parts(options, options.keep)
    bad = [verdict for verdict in verdicts if verdict.verdict in ("wrong", "failed")]
    slow = [verdict for verdict in verdicts if verdict.verdict == "slow"]
    print(
        f"{'This device is right' if not bad else 'This device is not right: ' + ', '.join(v.check for v in bad)}; "
        f"{'nothing is slow' if not slow else 'slow: ' + ', '.join(v.check for v in slow)}"
    )
    raise SystemExit(1 if bad else 0)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--output", type=Path, help="JSON file of all verdicts and figures")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="parts to run")
    parser.add_argument("--size", choices=["full", "small"], default="full" if on_gpu else "small")
    parser.add_argument("--data", type=Path, help="folder of JPEG files, for what begins with files")
    parser.add_argument("--jobs", type=int, default=3 if on_gpu else 1, help="training runs at once")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs and their logs in")
    options = parser.parse_args()
    options.only = [part for part in PARTS if part in options.only]
    return options


def run_parts(options: argparse.Namespace, folder: Path) -> list[Verdict]:
    """Run the parts, print each verdict as it comes, and write the file after each part."""
    verdicts: list[Verdict] = []
    seconds: dict[str, float] = {}
    print(f"{'check':42}{'verdict':9}what was found", flush=True)
    for part in options.only:
        start = time.monotonic()
        for verdict in run_part(part, options, folder):
            print(verdict, flush=True)
            verdicts.append(verdict)
        seconds[part] = time.monotonic() - start
        if options.output is not None:
            report = {
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
                "torch": torch.__version__,
                "seconds": seconds,
                "checks": [asdict(verdict) for verdict in verdicts],
            }
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    return verdicts


def run_part(part: str, options: argparse.Namespace, folder: Path) -> Iterator[Verdict]:
    """Yield a part's verdicts; one that says so where it can't be run, fails or takes too long."""
    if part == "jpeg" and options.data is None:
        yield Verdict(check="jpeg", verdict="skipped", found="no --data")
    elif part == "training":
        yield from check_training(folder, jobs=options.jobs)
    else:
        yield from from_child(part, options)


def from_child(part: str, options: argparse.Namespace) -> Iterator[Verdict]:
    """Yield what a part's own process prints as JSON, a verdict a line, as it prints them."""
    command = [sys.executable, str(SCRIPTS / "check_gpu_parts.py"), part, options.size, str(options.data or "")]
    environment = dict(os.environ)
    if part == "kernels" and not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        assert process.stdout is not None
        timer = threading.Timer(SECONDS[part], kill_group, [process])
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield Verdict(**json.loads(line))
            status = process.wait()
        finally:
            timer.cancel()
            kill_group(process)
        if status == -signal.SIGKILL:
            yield Verdict(check=part, verdict="failed", found=f"killed, as after {SECONDS[part]} s or for its memory")
        elif status != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
            yield Verdict(check=part, verdict="failed", found=last)


if __name__ == "__main__":
    main()
