#!/usr/bin/env bash
# Fine-tunes on one or several nodes with torchrun. When a process dies, a node is lost or the network
# between nodes fails, all processes restart from the last checkpoint.
#
#   scripts/torchrun.sh DATA --output RUN [further arguments of `finetune fit`]
#
# On several nodes, run the same command on each, with DATA and RUN on shared storage:
#
#   NNODES=2 RDZV=host1:29500 scripts/torchrun.sh /shared/photos --output /shared/runs/photos
#
# Environment variables and their defaults:
#
#   NNODES=1            number of nodes; 1:2 starts with two and continues with one, if the global
#                       batch size is divisible
#   NPROC               processes per node: the number of GPUs, else 1
#   RDZV                rendezvous endpoint, host:port of one of the nodes
#   NODE_RANK           rank of this node, 0 for the host in RDZV; default: by host name
#   RDZV_ID=finetune    id that separates jobs with the same endpoint
#   MAX_RESTARTS=3      maximum number of restarts of this job
#   JOIN_SECONDS=600    timeout of the rendezvous
#   OUTAGE_SECONDS=120  maximum duration of a network failure
#   STOP_SECONDS=110    time for saving after SIGTERM or SIGUSR1 (with torch 2.10 always 30)
#   INTERFACE           network interface between the nodes, e.g. eth1
#   LOCAL_ADDR          address of this node for the others
#   PYTHON=python       interpreter with finetune installed
#
# Kubeflow's PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT,
# PET_RDZV_ENDPOINT and PET_MAX_RESTARTS, and the JOB_COMPLETION_INDEX of an Indexed Job, are used
# as well.
#
# The exit codes are those of finetune: 85 means that the run was stopped and saved; run the same
# command to resume. 2 to 5 (config, images, weights, run folder) are final: nothing is restarted.
#
# After a permanent network failure, processes exit after trainer.collective_timeout_seconds (600);
# torchrun itself, on nodes other than that in RDZV, when the kernel closes the connection (15 min).
set -euo pipefail

fail() { echo "torchrun.sh: $*" >&2; exit 2; }

gpus() { nvidia-smi --list-gpus 2>/dev/null | wc -l; }

[ $# -gt 0 ] || fail "usage: scripts/torchrun.sh DATA --output RUN [...]; see the header of the file"
[[ " $* " == *" --output"* || " $* " == *" output="* ]] \
  || fail "all processes need the same run folder: add --output runs/NAME"

nnodes=${NNODES:-${PET_NNODES:-1}}
nproc=${NPROC:-${PET_NPROC_PER_NODE:-auto}}
[ "$nproc" != auto ] || { nproc=$(gpus || true); [ "$nproc" -gt 0 ] || nproc=1; }
node_rank=${NODE_RANK:-${JOB_COMPLETION_INDEX:-${PET_NODE_RANK:-}}}
rdzv=${RDZV:-${PET_RDZV_ENDPOINT:-${PET_MASTER_ADDR:+$PET_MASTER_ADDR:${PET_MASTER_PORT:-29500}}}}
local_addr=${LOCAL_ADDR:-}

conf="join_timeout=${JOIN_SECONDS:-600},read_timeout=${OUTAGE_SECONDS:-120}"
if [ "$nnodes" = 1 ]; then
  rdzv=localhost:0  # a free port
  local_addr=127.0.0.1
elif [ -z "$rdzv" ]; then
  fail "NNODES=$nnodes needs a rendezvous endpoint: set RDZV=host:port"
else
  [ -z "$node_rank" ] || conf+=",is_host=$([ "$node_rank" = 0 ] && echo true || echo false)"
  if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
    [ -n "$local_addr" ] || local_addr=$(
      ip -oneline -4 addr show dev "$INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
    )
  elif [ -z "${GLOO_SOCKET_IFNAME:-}" ] && getent hosts "$(hostname)" | grep -q '^127\.'; then
    echo "torchrun.sh: $(hostname) resolves to 127.x, which other nodes cannot reach. If the" \
      "rendezvous fails, set INTERFACE to the network interface between the nodes, e.g. eth0." >&2
  fi
fi

case $nproc in
  *[!0-9]*) ;;  # a value of torchrun, e.g. gpu
  *) cores=$(nproc); export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > nproc ? cores / nproc : 1))} ;;
esac

# Workers that share the agents' store read addresses of the previous attempt and fail again
# (https://github.com/pytorch/pytorch/issues/167288).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-110}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

args=("$@")
[[ " $* " == *" resume="* || " $* " == *" --resume"* ]] || args+=("resume=auto")
options=(
  --nnodes="$nnodes" --nproc-per-node="$nproc" --max-restarts="${MAX_RESTARTS:-${PET_MAX_RESTARTS:-3}}"
  --rdzv-backend=c10d --rdzv-endpoint="$rdzv" --rdzv-id="${RDZV_ID:-finetune}" --rdzv-conf="$conf"
)
[ -z "$local_addr" ] || options+=(--local-addr="$local_addr")

# exec: signals of a scheduler reach torchrun itself; --: end of torchrun's options
exec "${PYTHON:-python}" "$(dirname "$0")/torchrun_agent.py" \
  "${options[@]}" --module -- finetune fit "${args[@]}"
