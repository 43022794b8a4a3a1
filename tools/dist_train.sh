#!/usr/bin/env bash
# Train on all GPUs of one or several machines; without GPUs, in so many processes.
#
#     tools/dist_train.sh configs/retinanet_r50_fba.py 8 [arguments of tools/train.py]
#
# On several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine PORT=29500
# With MAX_RESTARTS=3, the processes are started again if one is lost, and go on from the last
# checkpoint. docs/distributed.md has more.
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
ROOT="$(cd "$(dirname "$0")/.." && pwd)"
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
PORT=${PORT:-29500}
if [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    # The machines have to find each other again: fixed ranks don't allow for that. And a store
    # that all attempts share would tell processes the addresses of those that are gone.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    RENDEZVOUS=(--rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$PORT" --rdzv-id="fba_mm_$PORT"
                --max-restarts="$MAX_RESTARTS")
else
    RENDEZVOUS=(--node-rank="${NODE_RANK:-0}" --master-addr="$MASTER_ADDR" --master-port="$PORT")
fi

PYTHONPATH="$ROOT:$PYTHONPATH" exec ${PYTHON:-python} -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --nproc-per-node="$GPUS" \
    "${RENDEZVOUS[@]}" \
    "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "${@:3}"
