# --- the same from here on in every batch script; kept in finetune/commands/batch_body.sh ---------
# What the environment of sbatch may set:
#   RUN=FOLDER          where the run goes, and goes on when the job begins again
#   FINETUNE="…"        how finetune is called, as in "apptainer exec --nv image.sif finetune"
#   LOCAL_DISK=FOLDER   a disk of the node itself [$SLURM_TMPDIR, else /tmp/<user>]; decoded images
#                       are kept there, or in FINETUNE_CACHE
#   STAGE=1             copy the folder DATA to that disk of each node first. It pays where files
#                       are read in every epoch (data.cache=off): kept pixels are there already.
#                       Weights are read once by each process, and stay where they are
#   HF_HUB_OFFLINE=0    where compute nodes reach the internet; elsewhere weights have to be there
#                       before: finetune fetch BACKBONE
#   MAX_RESTARTS=20     how often the job may begin again
#   REQUEUE_ON_CRASH=1  begin again after a crash too, but not where that would not mend it: wrong
#                       options, images, weights or run folder (codes 2 to 5), or no such command
set -euo pipefail

# sent to the tasks, but scancel --full sends it here too. Not so SIGTERM, which scancel sends here:
# a script that outlives it would put a job that was cancelled back into the queue
trap : USR1

say() { printf '[%(%F %T)T] job %s: %s\n' -1 "$job" "$*" >&2; }

# The signal before the time limit may come a minute early, when Python is not there to handle it:
# it would end the task. Held back here, it waits until finetune listens; where env is older than
# coreutils 8.31 it is ignored until then. By itself srun takes neither the cores of a task from the
# job, since 22.05, nor what is exported here after --export=NONE; and where WaitTime is configured
# it would kill the first task, which measures and writes when the others have ended.
on_tasks() {
    srun --export=ALL --kill-on-bad-exit=1 --wait=0 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
        bash -c 'trap "" USR1 TERM
            env --block-signal=USR1,TERM true 2>/dev/null && set -- env --block-signal=USR1,TERM "$@"
            exec "$@"' _ "$@"
}

on_nodes() {
    srun --export=ALL --kill-on-bad-exit=1 --wait=0 --nodes="$SLURM_JOB_NUM_NODES" \
        --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c "trap '' USR1 TERM; set -e; $1" _ "${@:2}"
}

# shellcheck disable=SC2016 # for the shell of each node
remove='if [ -e "$1" ]; then chmod -R u+w "$1"; rm -rf "$1"; fi'
unstage() {
    [ -n "${staged:-}" ] || return 0
    trap - EXIT
    on_nodes "$remove" "$staged" || true
}

# A copy with the times of the files, by which kept pixels know them. It is removed when the job
# ends or begins again, but not when it is cancelled or its node is lost.
stage() {
    [ -d "$1" ] || { say "STAGE=1 copies a folder, and DATA is '$1'."; exit 2; }
    say "copies $1 to $staged on each node"
    trap unstage EXIT
    # shellcheck disable=SC2016 # for the shell of each node
    on_nodes "$remove"'; mkdir -p "$1"; cp -RL --preserve=timestamps "$2/." "$1"' "$staged" "$1" ||
        { say "cannot copy $1 to $staged; without STAGE=1 it is read where it is."; exit 6; }
}

# Ends this script, unless the job may not or cannot begin again. A task of an array is named with
# both of its numbers, since the first alone means the whole array.
begin_again() {
    if [ "$restarts" -ge "${MAX_RESTARTS:-20}" ]; then
        say "$1; began again $restarts times, and MAX_RESTARTS allows no more. $again"
        return
    fi
    say "$1; begins again"
    unstage
    scontrol requeue "$job" && sleep 60
    say "scontrol could not requeue it. $again"
}

job=${SLURM_JOB_ID:?is not set: this is a batch script, see its head}
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
restarts=${SLURM_RESTART_COUNT:-0}
run=$(realpath -m -- "$run")
mkdir -p -- "${run%/*}"
again=${again:-Submitted once more with RUN=$run it goes on.}
finetune=()
eval "finetune=(${FINETUNE:-finetune})" # words, quoted as for a shell
disk=${LOCAL_DISK:-${SLURM_TMPDIR:-/tmp/$(id -un)}}
if [ "${STAGE:-0}" = 1 ]; then
    staged=$disk/finetune-job-$SLURM_JOB_ID
    stage "${1:-}"
    set -- "$staged" "${@:2}"
fi

export FINETUNE_REQUEUE_FILE=$run.requeue # beside the run, which begins in an empty folder
export FINETUNE_CACHE=${FINETUNE_CACHE:-$disk/finetune}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
rm -f -- "$FINETUNE_REQUEUE_FILE"

say "restart $restarts on $SLURM_JOB_NODELIST, run $run"
code=0
on_tasks "${finetune[@]}" fit --output "$run" resume=auto "$@" || code=$?

stopped=0
[ ! -e "$FINETUNE_REQUEUE_FILE" ] || stopped=1
rm -f -- "$FINETUNE_REQUEUE_FILE"
case $code in
    [2-5] | 9 | 126 | 127) exit "$code" ;; # what starting anew would not mend, though srun then stops all
esac
if [ "$stopped" = 1 ]; then
    begin_again "stopped by a signal, and saved"
    exit 85
fi
case $code in
    0) ;;
    138) begin_again "ended by SIGUSR1 where nobody listened" ;;
    *) [ "${REQUEUE_ON_CRASH:-0}" = 0 ] || begin_again "ended with code $code" ;;
esac
exit "$code"
