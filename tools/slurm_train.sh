#!/usr/bin/env bash
# Train on a Slurm cluster, one process a GPU.
if [ $# -lt 3 ]; then
    cat >&2 <<USAGE
usage: [GPUS=4] [GPUS_PER_NODE=4] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PORT=29500] \\
    bash $0 PARTITION JOB_NAME CONFIG [options of train.py ...]

GPUS is the number of processes over all nodes.
USAGE
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In a checkout that isn't installed, the package is found beside tools/.
[ -d "$TOOLS/../mmseg_cmdl" ] && export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
export MASTER_PORT="${PORT:-${MASTER_PORT:-29500}}"

# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
exec srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres="gpu:${GPUS_PER_NODE:-4}" \
    --ntasks="${GPUS:-4}" \
    --ntasks-per-node="${GPUS_PER_NODE:-4}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    $SRUN_ARGS \
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}"
