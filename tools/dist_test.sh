#!/usr/bin/env bash
# Test on several GPUs (or CPU processes) of one or more machines, through torchrun.
if [ $# -lt 3 ]; then
    cat >&2 <<USAGE
usage: [NNODES=1] [NODE_RANK=0] [MASTER_ADDR=127.0.0.1] [PORT=29500] \\
    bash $0 CONFIG CHECKPOINT GPUS [options of test.py ...]

GPUS is the number of processes on this machine. On CPUs add
    --cfg-options env_cfg.dist_cfg.backend=gloo
USAGE
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In a checkout that isn't installed, the package is found beside tools/.
[ -d "$TOOLS/../mmseg_cmdl" ] && export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
