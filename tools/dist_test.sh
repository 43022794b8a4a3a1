#!/usr/bin/env bash
# Evaluate a checkpoint on all GPUs of one or several machines; without GPUs, in so many processes.
#
#     tools/dist_test.sh CONFIG CHECKPOINT 8 [arguments of tools/test.py]
#
# On several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine PORT=29500
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
ROOT="$(cd "$(dirname "$0")/.." && pwd)"

PYTHONPATH="$ROOT:$PYTHONPATH" exec ${PYTHON:-python} -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$GPUS" \
    "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
