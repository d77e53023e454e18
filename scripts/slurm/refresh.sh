#!/bin/bash
# Puts finetune/commands/batch_body.sh below the head of each batch script beside this one:
#
#   bash scripts/slurm/refresh.sh
set -euo pipefail
cd "$(dirname "$0")"
body=../../finetune/commands/batch_body.sh
for script in *.sbatch; do
    head=$(sed '/^# --- the same from here on/,$d' "$script")
    { printf '%s\n\n' "$head"; cat "$body"; } >"$script.new"
    mv "$script.new" "$script"
done
