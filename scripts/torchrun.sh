#!/usr/bin/env bash
# Fine-tunes on one machine or several with torchrun. When a process dies, a machine is lost or the
# link between them is cut, all begin again from the last checkpoint.
#
#   scripts/torchrun.sh DATA --output RUN [further words of `finetune fit`]
#
# On several machines run the same on each, with DATA and RUN that all of them see:
#
#   NNODES=2 RDZV=host1:29500 scripts/torchrun.sh /shared/photos --output /shared/runs/photos
#
# What may stand in the environment, and what stands there if you say nothing:
#
#   NNODES=1            machines; 1:2 begins with two and goes on with one, if the batch divides
#   NPROC               processes on each machine: as many as it has GPUs, else 1
#   RDZV                host:port of one of the machines, where they all meet
#   NODE_RANK           this machine's number, 0 for the one in RDZV; without, torchrun goes by names
#   RDZV_ID=finetune    keeps two jobs that meet at one place apart
#   MAX_RESTARTS=3      how often all begin again in this job
#   JOIN_SECONDS=600    how long machines wait for one another
#   OUTAGE_SECONDS=120  how long the link between them may be away
#   STOP_SECONDS=110    how long saving may take after SIGTERM or SIGUSR1 (with torch 2.10 always 30)
#   INTERFACE           network interface between the machines, as eth1
#   LOCAL_ADDR          address by which the others reach this machine
#   PYTHON=python       in whose environment finetune is installed
#
# Kubeflow's PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT,
# PET_RDZV_ENDPOINT and PET_MAX_RESTARTS, and the JOB_COMPLETION_INDEX of an Indexed Job, are
# understood as well.
#
# Exit codes are those of finetune: 85 says that the run was asked to stop and is saved; run the same
# command again. 2 to 5 (config, images, weights, run folder) are final: nothing is started anew.
#
# Without the link for good, processes end after trainer.collective_timeout_seconds (600); torchrun
# itself, on machines other than that in RDZV, when the kernel gives the connection up (15 minutes).
set -euo pipefail

fail() { echo "torchrun.sh: $*" >&2; exit 2; }

gpus() { nvidia-smi --list-gpus 2>/dev/null | wc -l; }

[ $# -gt 0 ] || fail "usage: scripts/torchrun.sh DATA --output RUN [...]; the file's head says more"
[[ " $* " == *" --output"* || " $* " == *" output="* ]] \
  || fail "all processes need one run folder: add --output runs/NAME"

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
  fail "NNODES=$nnodes: say with RDZV=host:port where the machines meet"
else
  [ -z "$node_rank" ] || conf+=",is_host=$([ "$node_rank" = 0 ] && echo true || echo false)"
  if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
    [ -n "$local_addr" ] || local_addr=$(
      ip -oneline -4 addr show dev "$INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
    )
  elif [ -z "${GLOO_SOCKET_IFNAME:-}" ] && getent hosts "$(hostname)" | grep -q '^127\.'; then
    echo "torchrun.sh: $(hostname) is its own name for 127.x, an address that no other machine" \
      "reaches. If they do not find each other, set INTERFACE=eth0, or what leads to them." >&2
  fi
fi

case $nproc in
  *[!0-9]*) ;;  # torchrun's own words
  *) cores=$(nproc); export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > nproc ? cores / nproc : 1))} ;;
esac

# Workers that share the agents' store find addresses of the attempt before and fail again
# (https://github.com/pytorch/pytorch/issues/167288).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-110}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

words=("$@")
[[ " $* " == *" resume="* || " $* " == *" --resume"* ]] || words+=("resume=auto")
options=(
  --nnodes="$nnodes" --nproc-per-node="$nproc" --max-restarts="${MAX_RESTARTS:-${PET_MAX_RESTARTS:-3}}"
  --rdzv-backend=c10d --rdzv-endpoint="$rdzv" --rdzv-id="${RDZV_ID:-finetune}" --rdzv-conf="$conf"
)
[ -z "$local_addr" ] || options+=(--local-addr="$local_addr")

# exec: a scheduler's signals reach torchrun itself; --: its options end here
exec "${PYTHON:-python}" "$(dirname "$0")/torchrun_agent.py" \
  "${options[@]}" --module -- finetune fit "${words[@]}"
