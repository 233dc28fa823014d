#!/usr/bin/env bash
# A real SLURM on this machine only, for tests and for trying batch scripts: no systemd, no cgroups, no data base.
#
#   local_cluster.sh start [NODES] [CPUS]   start it (default: one node with the machine's cores)
#   local_cluster.sh stop                   cancel its jobs, end its daemons, remove its files
#   local_cluster.sh status                 list its nodes; exit code 3 if it is not running
#   local_cluster.sh env                    print the command that makes sbatch, srun and squeue use it
#
# Needs the apt packages slurmctld, slurmd, slurm-client and munge, no root. Nodes may have more CPUs than the machine.
# Files are in $SLURM_LOCAL_DIR (default /tmp/slurm-local-UID), ports start at $SLURM_LOCAL_PORT (default 17800).
set -euo pipefail

DIR=${SLURM_LOCAL_DIR:-/tmp/slurm-local-$(id -u)}
PORT=${SLURM_LOCAL_PORT:-17800}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$DIR/slurm.conf

die() { echo "local_cluster.sh: $*" >&2; exit 1; }

# A zombie process does not count as alive: in a container it may stay for long.
is_alive() { grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; } # is_alive PID
alive() { [[ -s $1 ]] && is_alive "$(<"$1")"; } # alive PIDFILE
gone() { ! is_alive "$1"; } # gone PID

running() { alive "$DIR/slurmctld.pid"; }

await() { # await SECONDS COMMAND...: until the command succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

check_programs() {
  local program
  for program in slurmctld slurmd munged sbatch scontrol; do
    command -v "$program" >/dev/null ||
      die "$program is not installed: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
  done
}

# A munge with its own key and socket: no system daemon, no root.
start_munge() {
  mkdir -m 700 "$DIR/munge"
  (umask 377 && head -c 128 /dev/urandom >"$DIR/munge/key")
  munged --force --num-threads=2 --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" \
    --pid-file="$DIR/munge/pid" --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed"
  await 10 test -S "$DIR/munge/socket" || die "munged did not start"
  chmod 711 "$DIR/munge" # jobs of other users reach the socket
}

# Nodes are named by address: jax.distributed takes the first node's name for the coordinator's host.
write_conf() { # write_conf NODES CPUS
  local nodes=$1 cpus=$2 me host memory i
  me=$(id -un) host=$(hostname -s)
  memory=$(awk -v nodes="$nodes" '/MemTotal/ {print int($2 / 1024 * 0.9 / nodes)}' /proc/meminfo)
  cat <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: 5 seconds, not 2 minutes.
AuthInfo=socket=$DIR/munge/socket,cred_expire=5

SlurmctldPidFile=$DIR/slurmctld.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
StateSaveLocation=$DIR/state
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmdSpoolDir=$DIR/spool.%n
# CPUs as written below, whatever the machine has.
SlurmdParameters=config_overrides

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true

ReturnToService=2
KillWait=10
MinJobAge=600
InactiveLimit=0
SlurmdTimeout=10
MessageTimeout=30
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1,requeue_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

NodeName=DEFAULT CPUs=$cpus RealMemory=$memory State=UNKNOWN
CONF
  for ((i = 1; i <= nodes; i++)); do
    echo "NodeName=127.0.0.$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + i))"
  done
  cat <<CONF
# A job of urgent takes the place of one of batch, which has 30 seconds to save.
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
}

# Before 23.11 there is no "disabled"; the plugin for v1 with a mount point of ours touches nothing.
write_cgroup_conf() {
  case $(slurmctld -V) in
    *" 2"[0-2].* | *" 23.02"*)
      mkdir "$DIR/no-cgroup"
      printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=%s\n' "$DIR/no-cgroup"
      ;;
    *) echo 'CgroupPlugin=disabled' ;;
  esac
}

all_idle() { [[ $(sinfo -h -o %T | sort -u) == idle ]]; }

start() {
  local nodes=${1:-1} cpus=${2:-$(nproc)} i
  [[ $nodes =~ ^[1-9][0-9]*$ && $cpus =~ ^[1-9][0-9]*$ ]] || die "NODES and CPUS are numbers, got '$nodes' and '$cpus'"
  # Names of sockets end at 107 characters, and slurmd makes some in its spool directory.
  ((${#DIR} <= 60)) || die "SLURM_LOCAL_DIR is too long for the sockets in it: at most 60 characters, got $DIR"
  if running; then
    echo "already running: export SLURM_CONF=$SLURM_CONF"
    return
  fi
  check_programs
  stop # removes what a crash may have left
  mkdir -p "$DIR"/{state,log}
  start_munge
  write_conf "$nodes" "$cpus" >"$DIR/slurm.conf"
  write_cgroup_conf >"$DIR/cgroup.conf"
  slurmctld -c -f "$SLURM_CONF"
  for ((i = 1; i <= nodes; i++)); do
    mkdir "$DIR/spool.127.0.0.$i"
    slurmd -N "127.0.0.$i" -f "$SLURM_CONF"
  done
  if ! await 30 all_idle; then
    tail -n 5 "$DIR"/log/*.log >&2
    stop
    die "the cluster did not come up; the end of its logs is above"
  fi
  echo "running: export SLURM_CONF=$SLURM_CONF"
}

# Processes that are still alive after the daemons have ended: those of a job or of SLURM whose environment names this
# cluster. A shell of the user, in which SLURM_CONF is exported, is not one of them.
leftovers() {
  local process
  for process in /proc/[0-9]*; do
    grep -qzx "SLURM_CONF=$SLURM_CONF" "$process/environ" || continue
    grep -q '^slurm' "$process/comm" || grep -qz '^SLURM_JOB_ID=' "$process/environ" || continue
    echo "${process#/proc/}"
  done 2>/dev/null
}

sweep() { # ends the leftovers; succeeds once there are none
  local pids
  pids=$(leftovers) || true
  [[ -z $pids ]] || { kill -9 $pids; return 1; }
}

no_jobs() { [[ -z $(squeue -h) ]]; }

end() { # end PIDFILE: asks, then forces
  local pid
  alive "$1" || return 0
  pid=$(<"$1")
  kill "$pid"
  await 10 gone "$pid" || kill -9 "$pid"
}

stop() {
  local file
  [[ -d $DIR ]] || return 0
  if running; then
    timeout 10 scancel --user="$(id -un)" || true
    await 20 no_jobs || true
  fi
  for file in "$DIR"/slurmd.*.pid "$DIR/slurmctld.pid"; do end "$file"; done
  await 10 sweep || true
  end "$DIR/munge/pid"
  rm -rf "$DIR"
}

status() {
  running || { echo "not running"; exit 3; }
  sinfo -N -l
}

case ${1:-} in
  start) start "${@:2}" ;;
  stop) stop ;;
  status) status ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  *) sed -n '2,10s/^# \?//p' "$0"; exit 2 ;;
esac
