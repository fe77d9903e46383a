#!/usr/bin/env bash
# Train on several GPUs (or CPU processes) of one or more machines, through torchrun.
if [ $# -lt 2 ]; then
    cat >&2 <<USAGE
usage: [NNODES=1] [NODE_RANK=0] [MASTER_ADDR=127.0.0.1] [PORT=29500] \\
    bash $0 CONFIG GPUS [options of train.py ...]

GPUS is the number of processes on this machine. On CPUs add
    --cfg-options env_cfg.dist_cfg.backend=gloo
USAGE
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In a checkout that isn't installed, the package is found beside tools/.
[ -d "$TOOLS/../mmseg_cmdl" ] && export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
