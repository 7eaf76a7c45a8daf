"""Does the panel agree with the probe? Trains small autoencoders, probes them, and correlates the ranks.

    python scripts/bench_probe.py --data PHOTOS --output runs/bench-probe
    python scripts/bench_probe.py --data PHOTOS --output runs/bench-probe --vae A --vae B …

Without --vae, each of VARIANTS is trained for `--train_steps`; `--variant "NAME: --loss.… …"` adds one with further
options of `ldm-vae train`. All are f8 at 128 pixels, unless `--options` has others for all. The control, whose latents
are scrambled, has to come out last.
What is there already isn't trained or probed again. It prints the probe's table, and for each measure of the panel
Spearman's correlation with the probe's distance over the autoencoders, with its interval.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ldm_vae.panel.measures import MEASURES
from ldm_vae.probing.correlation import rank_correlation
from ldm_vae.system.files import write_whole
from ldm_vae.system.markdown import markdown_table

COMMON = (
    "--report_to none --model.block_out_channels [32,64,64,64] --model.layers_per_block 1 --model.norm_num_groups 16 "
    "--model.init quiet --model.mid_block_add_attention false --data.resolution 128 --data.crop random "
    "--loss.perceptual efficientnet_lite0 --loss.perceptual_weight 0.1 --loss.kl_weight 1e-6 --loss.disc_weight 0 "
    "--train.batch_size 4 --train.learning_rate 1e-3 --train.lr_scheduler constant_with_decay "
    "--train.lr_warmup_steps 30 --train.adam_beta2 0.99 --train.ema_decay 0.98"
)
VARIANTS = {
    "plain": "",
    "short": "--train.max_train_steps {third}",
    "pixels": "--loss.perceptual none",
    "kl_1e-4": "--loss.kl_weight 1e-4",
    "kl_1e-2": "--loss.kl_weight 1e-2",
    "c8": "--model.latent_channels 8",
    "c16": "--model.latent_channels 16",
    "c16_kl_1e-3": "--model.latent_channels 16 --loss.kl_weight 1e-3",
    "deep": "--model.layers_per_block 2",
}


def run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "ldm_vae", *command], check=True)


def hold_to(settings: dict[str, Any], *, folder: Path) -> None:
    """Keep beside the autoencoders what they are trained with; end where those that are there have other settings."""
    file = folder / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{file} has other settings of what is trained there; give the same, or another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(settings, indent=1).encode())


def trained(name: str, flags: str, args: argparse.Namespace) -> str:
    """Return the export of an autoencoder, which is trained unless it is there."""
    export = args.output / "exports" / name
    if not export.exists():
        steps = args.train_steps
        chosen = f"{COMMON} {args.options} --train.max_train_steps {steps} {flags.format(third=steps // 3)}"
        output = str(args.output / "runs" / name)
        run("train", "--output_dir", output, "--data.train", args.data, *shlex.split(chosen),
            "--train.resume_from_checkpoint", "latest")  # fmt: skip
        run("export", "--run", output, "--output", str(export), "--data", args.data, *shlex.split(args.export))
    return str(export)


def report(metrics: dict[str, Any]) -> str:
    """Return the table of correlations, the strongest first."""
    entries = [entry for entry in metrics["autoencoders"] if not entry["name"].endswith("(control)")]
    score = metrics["scores"][0]
    probed = [entry["scores"][score]["mean"] for entry in entries]
    found = []
    for name, measure in MEASURES.items():
        figures = [entry["panel"]["figures"].get(name) for entry in entries]
        if None not in figures:
            found.append((rank_correlation(figures, probed), name, measure))
    reconstruction = rank_correlation([entry["reconstruction"][score] for entry in entries], probed)
    rows = [["measure", "better", f"rank correlation with {score}, n = {len(entries)}", "agrees with its direction"]]
    for correlation, name, measure in sorted(found, key=lambda each: -abs(each[0].value)):
        wanted = {"higher": -1, "lower": 1, "": 0}[measure.better]
        certain = correlation.low * correlation.high > 0
        agrees = "" if not (wanted and certain) else ("yes" if wanted * correlation.value > 0 else "no")
        rows.append([name, measure.better, str(correlation), agrees])
    rows.append(["reconstructions' distance", "lower", str(reconstruction), ""])
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="photographs to train, learn and compare by")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vae", action="append", default=[], help="autoencoders to take instead of training any")
    parser.add_argument("--variant", action="append", default=[], help="NAME: options of `ldm-vae train`")
    parser.add_argument("--only", action="append", default=[], help="variants to take, of those there are")
    parser.add_argument("--train_steps", type=int, default=1500)
    parser.add_argument("--options", default="", help="further options of `ldm-vae train`, for all")
    parser.add_argument("--export", default="", help="options of `ldm-vae export`")
    parser.add_argument("--budget", default="small")
    parser.add_argument("--probe", default="", help="further options of `ldm-vae probe`")
    args = parser.parse_args()

    variants = VARIANTS | {name.strip(): flags for name, _, flags in (each.partition(":") for each in args.variant)}
    chosen = {name: flags for name, flags in variants.items() if not args.only or name in args.only}
    if not args.vae:
        hold_to({"train_steps": args.train_steps, "options": args.options, "data": args.data}, folder=args.output)
    vaes = args.vae or [trained(name, flags, args) for name, flags in chosen.items()]
    output = args.output / f"probe-{args.budget}"
    if not (output / "metrics.json").exists():
        command = ["probe", "--data", args.data, "--output", str(output), "--budget", args.budget, "--control"]
        for vae in vaes:
            command += ["--vae", vae]
        status = subprocess.run([sys.executable, "-m", "ldm_vae", *command, *shlex.split(args.probe)]).returncode
        if not (output / "metrics.json").exists():
            raise SystemExit(status)
    metrics = json.loads((output / "metrics.json").read_text())
    score = metrics["scores"][0]
    ranked = sorted(metrics["autoencoders"], key=lambda entry: entry["scores"][score]["mean"])
    print((output / "table.md").read_text())
    print(report(metrics))
    last = ranked[-1]["name"]
    print("the control is last" if last.endswith("(control)") else f"the control isn't last: {last} is")


if __name__ == "__main__":
    main()
