# Functions of the batch scripts: running a step that receives signals, and deciding whether its job is requeued.
# The scripts source it from the folder that they were submitted from.
#
#   METAOPT_PYTHON   Python with metaopt installed (default: python)
#   MAX_RESTARTS     how often a job may be requeued (default: 100)

python=${METAOPT_PYTHON:-python}

# Since SLURM 22.05 srun no longer inherits this from the job.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# An element of an array is named by both ids, because the job id of the last element is also that of the whole array.
job=$SLURM_JOB_ID
[[ ${SLURM_ARRAY_JOB_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
say() { echo "[$(date +%T)] job $job, attempt $attempt: $*"; }

# Runs a command on every task of the job; its exit code is left in $rc.
#
# A task that fails must not end the others, which may be saving. SIGUSR1 (the time limit is near) is sent to this shell
# only and is passed on to the tasks. SLURM sends SIGTERM to the tasks as well; it only must not end this shell.
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

# Whether SLURM has preempted the job. If the job exits during the grace period, it has to requeue itself.
preempted() { scontrol show job "$job" | grep -q 'PreemptTime=[0-9]'; }

# Puts the job back into the queue. A job that the user canceled or requeued, or that reached its time limit, is already
# ending (COMPLETING, no longer RUNNING) and is not requeued: a canceled job stays canceled. Neither is a job that SLURM
# has restarted on other nodes because it considers this node lost.
requeue() { # requeue REASON
  local state try
  state=$(squeue -h -j "$job" -o %T)
  if [[ $state != RUNNING ]]; then
    say "not requeued: SLURM is ending the job ($state)"
  elif ! scontrol show job "$job" | grep -q "Restarts=${SLURM_RESTART_COUNT:-0} "; then
    say "not requeued: SLURM has already restarted the job"
  elif ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-100})); then
    say "not requeued: it was requeued ${MAX_RESTARTS:-100} times already (MAX_RESTARTS)"
  else
    say "requeued: $1"
    for try in 1 2 3; do # the controller may be busy
      scontrol requeue "$job" && exec sleep 300 # until SLURM ends the job
      sleep "${try}0"
    done
    say "scontrol requeue failed; continue with: scontrol requeue $job"
  fi
}

# Exit code 0 of srun is not enough, because srun also exits with 0 if a node was lost.
is_finished() { # is_finished RUN
  local steps
  steps=$(sed -n 's/.*"outer_steps": \([0-9]*\).*/\1/p' "$1/config.json")
  [[ $steps && $(newest_state "$1") == "$steps" ]]
}

# The newest outer step that is completely saved; its checksums are written last.
newest_state() { # newest_state RUN
  (cd "$1/state" 2>/dev/null && ls -d [0-9]*/SHA256SUMS 2>/dev/null) | cut -d/ -f1 | sort -n | tail -n 1
}

# Starts or resumes a run, and puts the job back into the queue if another attempt can continue.
train() { # train RUN RECIPE [name=value ...]
  local run=$1 before arguments
  shift
  before=$(newest_state "$run")
  rm -f "$run/REQUEUE"
  arguments=("$@" --dir "$run")
  [[ -e $run/config.json ]] && arguments=(--resume "$run")
  step "$python" -P -m meta_train.cli train "${arguments[@]}"
  if ((rc == 0)) && is_finished "$run"; then
    say "$run is finished"
    exit 0
  elif ((rc == 2)); then
    say "not requeued: the message above says what to change"
  elif preempted; then
    requeue "it was preempted"
  elif [[ $(newest_state "$run") != "$before" ]]; then
    if [[ -e $run/REQUEUE ]]; then
      requeue "it stopped early and saved"
    elif ((rc == 85)); then
      say "not requeued: it was interrupted by the user"
    else
      requeue "it crashed after saving outer step $(newest_state "$run")"
    fi
  elif [[ -e $run/REQUEUE ]]; then
    if ((${SLURM_RESTART_COUNT:-0} == 0)); then
      requeue "it stopped early"
    else
      say "not requeued: the time was too short to save a new state (outer step ${before:-0}): ask for more --time"
    fi
  else
    say "not requeued: it crashed without saving a new state (outer step ${before:-0})"
  fi
  exit $((rc ? rc : 1))
}
