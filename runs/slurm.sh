#!/usr/bin/env bash
# Pretraining on several machines under SLURM, as an example: adapt the #SBATCH lines and the preset.
#
#   mkdir -p logs && sbatch runs/slurm.sh                    runs/d20.toml
#   sbatch runs/slurm.sh scripts.mid_train runs/d20.toml     any other training stage, once this one has ended
#
# Before: `bash dev/setup.sh`, and the tokenizer and the text (one process is enough for them):
#   .venv/bin/python -m nanochat.dataset -n 240 && .venv/bin/python -m scripts.tok_train runs/d20.toml
#
# The repository and NANOCHAT_BASE_DIR must lie where all machines see them: every rank writes its part of a checkpoint.
# Two minutes before the time is up, or when the job is pre-empted, all ranks save and end, and the job queues again; it
# goes on with --resume, also on another number of machines.
#
# Saving speaks over gloo, also where the ranks speak over NCCL: where a machine's own name leads to 127.0.1.1, set
# GLOO_SOCKET_IFNAME to the network between the machines.

#SBATCH --job-name=nanochat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.txt
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?this is a job for sbatch}"
if [ $# = 0 ]; then
    set -- scripts.base_train runs/d20.toml
fi

# One torchrun a machine (srun starts them), one rank a GPU (torchrun starts those). They meet at the first machine; the
# port follows from the job's number, so that two jobs that share a machine do not meet each other.
# srun does not take --cpus-per-task over from the job since SLURM 22.05, and would give each torchrun one core.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110 # seconds that the ranks have to save
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} .venv/bin/python -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" \
    -m "$@" --resume &
ranks=$!

again=""
stop() { # srun passes the signal on to every torchrun, and that to its ranks
    kill -TERM "$ranks"
}
trap 'again=yes; stop' USR1 # the time is up
trap stop TERM              # scancel: this job is not to come back; after a pre-emption SLURM itself queues it again
wait "$ranks"
status=$?
while kill -0 "$ranks" 2>/dev/null; do # the signal ended the waiting, not yet the ranks
    wait "$ranks"
    status=$?
done
if [ -n "$again" ] && [ "$status" != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
