#!/usr/bin/env bash
# Installs the daemons and commands of SLURM if they are missing, with apt, as root or with sudo without a password.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
packages=(slurmctld slurmd slurm-client munge)

for program in slurmctld slurmd sbatch munged; do command -v "$program" >/dev/null || missing=$program; done
[[ ${missing:-} ]] || exit 0

as_root=()
((EUID == 0)) || as_root=(sudo -n)
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
  echo "SLURM is missing and cannot be installed from here: have an administrator install ${packages[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
{
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}"
} >/dev/null || { echo "apt-get could not install ${packages[*]}: see its message above" >&2; exit 1; }
