# --- common body of all batch scripts; kept in finetune/commands/submit/batch_body.sh -------------
# Environment variables that sbatch may pass:
#   FINETUNE="…"        command that runs finetune, e.g. "apptainer exec --nv image.sif finetune"
#   LOCAL_DISK=FOLDER   local disk of the node [$SLURM_TMPDIR, else /tmp/<user>], for the pixel
#                       cache unless FINETUNE_CACHE is set
#   STAGE=1             first copy the folder DATA to the local disk of each node. Useful if files
#                       are read in every epoch (data.cache=off): cached pixels are local anyway.
#                       Predictions, which read each image once, refuse it.
#                       Weights are read once per process, from where they are
#   HF_HUB_OFFLINE=0    for compute nodes with internet access; otherwise download the weights
#                       before: finetune fetch BACKBONE
#   MAX_RESTARTS=20     maximum number of requeues
#   REQUEUE_ON_CRASH=1  also requeue after a crash, unless a restart cannot help: wrong options,
#                       images, weights or run folder (exit codes 2 to 5), or command not found
set -euo pipefail

# USR1 is sent to the tasks, but scancel --full also sends it to this script. SIGTERM, which scancel
# sends to this script, is not trapped: a script that survives it would requeue a cancelled job
trap : USR1

say() { printf '[%(%F %T)T] job %s: %s\n' -1 "$job" "$*" >&2; }

# The signal before the time limit may arrive a minute early, before Python has installed its
# handler: it would end the task. It is blocked here and stays pending until finetune unblocks it;
# where env is older than coreutils 8.31, it is ignored until then. By default srun inherits neither
# --cpus-per-task from the job (since 22.05) nor variables exported here after --export=NONE; and
# where WaitTime is configured, it would kill the first task, which evaluates and writes the bundle
# after the other tasks have ended.
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

# File times are preserved: they are part of the keys of the pixel cache. The copy is removed when
# the job ends or is requeued, but not when it is cancelled or its node fails.
stage() {
    [ -d "$1" ] || { say "STAGE=1 needs a folder, but DATA is '$1'."; exit 2; }
    say "copying $1 to $staged on each node"
    trap unstage EXIT
    # shellcheck disable=SC2016 # for the shell of each node
    on_nodes "$remove"'; mkdir -p "$1"; cp -RL --preserve=timestamps "$2/." "$1"' "$staged" "$1" ||
        { say "cannot copy $1 to $staged. Without STAGE=1, files are read from their own location."; exit 6; }
}

# Requeues the job and does not return, unless the job may not or cannot be requeued. An array task
# is addressed by both of its numbers: the first alone would requeue the whole array.
requeue() {
    if [ "$restarts" -ge "${MAX_RESTARTS:-20}" ]; then
        say "$1; not requeued: $restarts restarts, MAX_RESTARTS reached. $again"
        return
    fi
    say "$1; requeueing"
    unstage
    scontrol requeue "$job" && sleep 60
    say "scontrol could not requeue the job. $again"
}

job=${SLURM_JOB_ID:?is not set: submit this script with sbatch, see its header}
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
restarts=${SLURM_RESTART_COUNT:-0}
run=$(realpath -m -- "$run")
mkdir -p -- "${run%/*}"
finetune=()
eval "finetune=(${FINETUNE:-finetune})" # words with shell quoting
disk=${LOCAL_DISK:-${SLURM_TMPDIR:-/tmp/$(id -un)}}
if [ "${STAGE:-0}" = 1 ]; then
    [ "${verb:-fit}" = fit ] ||
        { say "STAGE=1 cannot apply to finetune $verb, which reads each image once. Leave it out."; exit 2; }
    staged=$disk/finetune-job-$SLURM_JOB_ID
    stage "${1:-}"
    set -- "$staged" "${@:2}"
fi

# next to the run folder, which must be empty at the start; tasks of an array may share the run
export FINETUNE_REQUEUE_FILE=$run${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID}.requeue
export FINETUNE_CACHE=${FINETUNE_CACHE:-$disk/finetune}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
rm -f -- "$FINETUNE_REQUEUE_FILE"

say "restart $restarts on $SLURM_JOB_NODELIST, run $run"
[ "${verb:=fit}" != fit ] || set -- --output "$run" resume=auto "$@"
code=0
on_tasks "${finetune[@]}" "$verb" "$@" || code=$?

stopped=0
[ ! -e "$FINETUNE_REQUEUE_FILE" ] || stopped=1
rm -f -- "$FINETUNE_REQUEUE_FILE"
case $code in
    [2-5] | 9 | 126 | 127) exit "$code" ;; # a restart cannot help
esac
if [ "$stopped" = 1 ]; then
    requeue "stopped by a signal and saved"
    exit 85
fi
case $code in
    0) ;;
    138) requeue "killed by SIGUSR1 before its handler was installed" ;;
    *) [ "${REQUEUE_ON_CRASH:-0}" = 0 ] || requeue "ended with exit code $code" ;;
esac
exit "$code"
