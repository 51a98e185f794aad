#!/bin/bash
# Ends only what up.sh started (by pid file) and this HOME's API server. --purge also removes users, hosts lines, state.
RIG=${RIG:?a folder for the rig}
[ -f "$RIG/env.sh" ] && ( . "$RIG/env.sh"; cd "$RIG"; timeout 60 sky api stop >/dev/null 2>&1 )
endpid(){ [ -s "$1" ] || return 0; p=$(cat "$1"); kill -0 "$p" 2>/dev/null && grep -qE "$2" "/proc/$p/comm" 2>/dev/null && kill "$p" 2>/dev/null && for i in $(seq 30); do kill -0 "$p" 2>/dev/null || break; sleep .1; done; rm -f "$1"; }
for d in "$RIG"/us-*/; do c=$(basename "$d"); export SLURM_CONF=$d/etc/slurm.conf
  [ -f "$SLURM_CONF" ] && for j in $(timeout 5 squeue -h -o %i 2>/dev/null); do timeout 5 scancel "$j"; done
  sleep 1
  for f in "$d"slurmd-*.pid; do endpid "$f" slurmd; done
  endpid "${d}slurmctld.pid" slurmctld
  endpid "$RIG/ssh/sshd_$c.pid" sshd
done
endpid "$RIG/munge/munged.pid" munged
# ssh sessions and job steps of the two users that only up.sh creates, by pid
for u in skyeast skywest; do for p in $(ps -u "$u" -o pid= 2>/dev/null); do kill "$p" 2>/dev/null; done; done; sleep 1
if [ "${1:-}" = --purge ]; then
  sed -i '/# vlaunch-rig$/d' /etc/hosts; for u in skyeast skywest; do userdel "$u" 2>/dev/null; done
  rm -rf "$RIG"/us-east "$RIG"/us-west "$RIG"/munge "$RIG"/users "$RIG"/nodetmp "$RIG"/run "$RIG"/home/.sky "$RIG"/home/sky_logs
fi
echo "down.sh: done"
