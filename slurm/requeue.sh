# What the batch scripts share: running a step that hears of signals, and deciding whether its job goes on.
# They source it from the folder they were submitted from.
#
#   METAOPT_PYTHON   the Python that has metaopt (default: python)
#   MAX_RESTARTS     how often a job may go on (default: 100)

python=${METAOPT_PYTHON:-python}

# Since 22.05 srun no longer takes this over from the job.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# One element of an array needs both numbers: the last element's own is also the number of the whole array.
job=$SLURM_JOB_ID
[[ ${SLURM_ARRAY_JOB_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

say() { echo "[$(date +%T)] job $job, life ${SLURM_RESTART_COUNT:-0}: $*"; }

# Runs a command on every task of the job; its exit code is left in $rc.
#
# A first task that fails must not end the others, which may be saving. SIGUSR1 (the time limit is near) reaches this
# shell alone and is passed on; SIGTERM reaches the tasks by itself and must only not end this shell.
step() { # step COMMAND...
  local child interrupted=1
  trap 'interrupted=1; kill -USR1 "$child" 2>/dev/null' USR1
  trap 'interrupted=1' TERM
  srun --kill-on-bad-exit=0 --wait=300 "$@" &
  child=$!
  while [[ $interrupted ]]; do # a signal ends "wait", not the child
    interrupted=
    wait "$child"
    rc=$?
  done
  say "the step ended with exit code $rc"
}

# Whether SLURM asked the job to make room. It counts on the job to come back by itself if it leaves in time.
preempted() { scontrol show job "$job" | grep -q 'PreemptTime=[0-9]'; }

# Puts the job back into the queue. One that the user canceled or requeued, or that ran into its time limit, is
# already ending (COMPLETING, no longer RUNNING) and is left alone: a canceled job stays canceled. So is one that lives
# elsewhere by now, where SLURM has given up this node.
go_on() { # go_on WHY
  local state attempt
  state=$(squeue -h -j "$job" -o %T)
  if [[ $state != RUNNING ]]; then
    say "not requeued: SLURM is ending the job ($state)"
  elif ! scontrol show job "$job" | grep -q "Restarts=${SLURM_RESTART_COUNT:-0} "; then
    say "not requeued: the job is in a later life"
  elif ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-100})); then
    say "not requeued: it has gone on ${MAX_RESTARTS:-100} times (MAX_RESTARTS)"
  else
    say "requeued: $1"
    for attempt in 1 2 3; do # the controller may be busy
      scontrol requeue "$job" && exec sleep 300 # until SLURM ends it
      sleep "${attempt}0"
    done
    say "scontrol requeue failed; continue with: scontrol requeue $job"
  fi
}

# srun ends with 0 also where a node was lost.
is_finished() { # is_finished RUN
  local steps
  steps=$(sed -n 's/.*"outer_steps": \([0-9]*\).*/\1/p' "$1/config.json")
  [[ $steps && $(newest_state "$1") == "$steps" ]]
}

# The last outer step that is saved: the sums come last.
newest_state() { # newest_state RUN
  (cd "$1/state" 2>/dev/null && ls -d [0-9]*/SHA256SUMS 2>/dev/null) | cut -d/ -f1 | sort -n | tail -n 1
}

# Begins a run or goes on with it, and puts the job back into the queue where that helps.
train() { # train RUN RECIPE [name=value ...]
  local run=$1 before what
  shift
  before=$(newest_state "$run")
  rm -f "$run/REQUEUE"
  what=("$@" --dir "$run")
  [[ -e $run/config.json ]] && what=(--resume "$run")
  step "$python" -m meta_train.cli train "${what[@]}"
  if ((rc == 0)) && is_finished "$run"; then
    say "$run is finished"
    exit 0
  elif ((rc == 2)); then
    say "not requeued: the message above says what to change"
  elif preempted; then
    go_on "it was preempted"
  elif [[ $(newest_state "$run") != "$before" ]]; then
    if [[ -e $run/REQUEUE ]]; then
      go_on "it stopped early and saved"
    elif ((rc == 85)); then
      say "not requeued: it was stopped by hand"
    else
      go_on "it crashed, but had got further: to outer step $(newest_state "$run")"
    fi
  elif [[ -e $run/REQUEUE ]]; then
    if ((${SLURM_RESTART_COUNT:-0} == 0)); then
      go_on "it stopped early"
    else
      say "not requeued: the time was too short to get further (outer step ${before:-0}): ask for more --time"
    fi
  else
    say "not requeued: it crashed without getting further (outer step ${before:-0})"
  fi
  exit $((rc ? rc : 1))
}
