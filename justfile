# `just check` runs what CI runs.
check:
    bash .ci/run
