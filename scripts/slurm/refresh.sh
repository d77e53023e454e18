#!/bin/bash
# Replaces the common body of each batch script in this folder by that of
# finetune/commands/submit/batch_body.sh:
#
#   bash scripts/slurm/refresh.sh
set -euo pipefail
cd "$(dirname "$0")"
body=../../finetune/commands/submit/batch_body.sh
for script in *.sbatch; do
    head=$(sed '/^# --- common body of all/,$d' "$script")
    { printf '%s\n\n' "$head"; cat "$body"; } >"$script.new"
    mv "$script.new" "$script"
done
