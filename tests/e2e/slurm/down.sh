#!/bin/bash
# Ends and removes all that up.sh made, but the Debian packages and the cached runtime: RIG=/tmp/rig bash down.sh
# Processes are ended by their pid files, and those of the two users that only up.sh creates.
RIG=${RIG:?a folder for the rig}
end() {  # a pid file and the name of its program
  [ -s "$1" ] || return 0
  local pid; pid=$(cat "$1")
  grep -qs "$2" "/proc/$pid/comm" || return 0
  kill "$pid"; for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || return 0; sleep .1; done
  kill -9 "$pid" 2>/dev/null
}

if [ -f "$RIG/env.sh" ]; then
  ( . "$RIG/env.sh"; cd "$RIG"; timeout 60 sky api stop >/dev/null 2>&1 )
  # The controllers of managed jobs outlive the server on purpose.
  for pid in $(cut -d, -f1 "$RIG/home/.sky/job_controller_pid" 2>/dev/null); do
    grep -qsz "HOME=$RIG/home" "/proc/$pid/environ" && kill "$pid"
  done
fi
for d in "$RIG"/us-*/; do
  export SLURM_CONF=$d/etc/slurm.conf
  for j in $(timeout 5 squeue -h -o %i 2>/dev/null); do timeout 5 scancel "$j"; done
done
sleep 1
for d in "$RIG"/us-*/; do
  for f in "$d"slurmd-*.pid; do end "$f" slurmd; done
  end "${d}slurmctld.pid" slurmctld
  end "$RIG/ssh/sshd_$(basename "$d").pid" sshd
done
end "$RIG/munge/munged.pid" munged
for u in skyeast skywest; do
  for p in $(ps -u "$u" -o pid= 2>/dev/null); do kill -9 "$p" 2>/dev/null; done
done
sleep 1
for u in skyeast skywest; do userdel "$u" 2>/dev/null; done
sed -i '/# vlaunch-rig$/d' /etc/hosts
rm -rf "$RIG"
