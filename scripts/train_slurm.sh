#!/bin/bash
# Trains on several nodes under Slurm, and goes on by itself after each end of time and each preemption:
#
#   sbatch --nodes 2 --gpus-per-node 8 scripts/train_slurm.sh --config kl_f8 --data.train /data/photos --output_dir runs/f8
#
# Five minutes before the end the run saves, and the job is put back into the queue. Whatever else ends it (a lost node,
# a kill), starting it again goes on from the last whole checkpoint. output_dir must be on storage that all nodes share.
#SBATCH --job-name=ldm-vae
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
rendezvous="$(head -n 1 <<<"$nodes"):$((20000 + SLURM_JOB_ID % 12000))" # no port that Linux gives out by itself
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 # after SIGTERM the launcher leaves the run this long to save

# USR1 comes to this shell alone, which passes it on to all processes of the step. Those that train save and end; the
# launchers have to ignore it, or they would die of it and take the run with them.
stopped=
trap 'stopped=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec torchrun "$@"' launcher \
  --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$rendezvous" \
  -m ldm_vae train --train.resume_from_checkpoint latest "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # the trap ends the first wait early
  wait "$step"
  status=$?
done
if [[ -n $stopped && $status -eq 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
