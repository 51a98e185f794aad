#!/bin/bash
# Two real Slurm clusters on this machine, for SkyPilot: the clouds of the end-to-end tests. As root, on Debian 12.
#
#   RIG=/tmp/rig IMAGE=/path/of/.venv bash up.sh    then   . /tmp/rig/env.sh; sky check slurm
#
# A region of SkyPilot is a cluster (us-east, us-west), a zone one of its two partitions, a machine a slurmd with eight
# fake GPUs. Each cluster has an sshd of its own on the loopback. Everything lives below $RIG but two users, lines in
# /etc/hosts and the Debian packages; down.sh removes all of it but the packages. May be run again.
set -euo pipefail
RIG=${RIG:?a folder for the rig}
IMAGE=${IMAGE:?a virtual environment with vlaunch[train] and skypilot: what every machine has installed}
SKY_HOME=$RIG/home
RUNTIME=$RIG/runtime   # what SkyPilot would install on every machine from the internet
API_PORT=${API_PORT:-46591}
NODES_PER_ZONE=${NODES_PER_ZONE:-2}
NODE_CPUS=${NODE_CPUS:-64}
NODE_MEM_MB=${NODE_MEM_MB:-400000}
#        name    sshport ctldport slurmdbase user     gres-per-zone (a,b)
CLUSTERS=(
 "us-east 22021   26817    26900      skyeast  A100:8,A100:8"
 "us-west 22022   26818    26950      skywest  A100:8,H100:8"
)
HOSTN=$(hostname -s)
export PATH=$PATH:/usr/sbin:/sbin
log(){ echo "[up.sh $(date +%T)] $*"; }
alive(){ [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# ---- 1. packages ---------------------------------------------------------
need=()
for p in slurm-wlm slurmctld slurmd slurm-client munge openssh-server openssh-client rsync curl python3-venv procps lsof; do
  dpkg -s "$p" >/dev/null 2>&1 || need+=("$p")
done
if [ ${#need[@]} -gt 0 ]; then
  log "apt: ${need[*]}"
  # keep Debian from starting its own (unconfigured) daemons
  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; RCD=1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
  [ -z "${RCD:-}" ] || rm -f /usr/sbin/policy-rc.d
fi
mkdir -p "$RIG" "$RIG/run" "$SKY_HOME" "$RIG/users"; chmod 755 "$RIG" "$RIG/run" "$RIG/users"

# ---- 2. the runtime that SkyPilot puts on machines, made once per version of SkyPilot -------
read -r WHEEL WHASH < <(HOME=$SKY_HOME "$IMAGE/bin/python" - <<'PY' 2>/dev/null | tail -1
import glob
from sky.backends import wheel_utils
folder, digest = wheel_utils.build_sky_wheel()
print(glob.glob(f"{folder}/*.whl")[0], digest)
PY
)
CACHED=${RIG_CACHE:-/var/tmp/vlaunch-rig}/runtime-$WHASH
if [ ! -s "$CACHED/done" ]; then
  log "runtime of the machines: $CACHED"
  rm -rf "$CACHED"; mkdir -p "$CACHED"
  /usr/bin/python3 -m venv "$CACHED"    # not a python under /root: machines run as other users
  "$CACHED/bin/pip" install -q ${RIG_CONSTRAINTS:+-c "$RIG_CONSTRAINTS"} uv "$WHEEL[slurm,remote]"
  echo "$WHASH" > "$CACHED/done"
fi
chmod -R a+rX "$CACHED"
ln -sfn "$CACHED" "$RUNTIME"
# The image: a python3 that finds everything of $IMAGE but vlaunch itself, which the launcher must ship.
if [ ! -x "$RIG/image/bin/python3" ]; then
  /usr/bin/python3 -m venv --without-pip "$RIG/image"
  "$IMAGE/bin/python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))' \
    > "$RIG/image/lib/python3.11/site-packages/image.pth"
fi

# ---- 3. munge (own daemon, own socket) ------------------------------------
M=$RIG/munge; mkdir -p "$M"; chown munge:munge "$M"; chmod 755 "$M"
[ -s "$M/key" ] || { dd if=/dev/urandom of="$M/key" bs=1 count=256 status=none; chown munge:munge "$M/key"; chmod 400 "$M/key"; }
if ! alive "$M/munged.pid"; then
  log munged; rm -f "$M/socket"*
  setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --force --key-file="$M/key" --socket="$M/socket" \
    --pid-file="$M/munged.pid" --log-file="$M/munged.log" --seed-file="$M/seed"
fi

# ---- 4. ssh keys ----------------------------------------------------------
S=$RIG/ssh; mkdir -p "$S" /run/sshd
[ -f "$S/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$S/host_key"
[ -f "$S/id" ]       || ssh-keygen -q -t ed25519 -N '' -f "$S/id"
cp "$S/id.pub" "$S/authorized_keys"; chmod 644 "$S/authorized_keys"

# fake GPU device files (count-only gres without File= is refused by 22.05: "reported lower than configured (0 < 8)")
mkdir -p "$RIG/dev"; for i in 0 1 2 3 4 5 6 7; do [ -e "$RIG/dev/nvidia$i" ] || mknod -m 666 "$RIG/dev/nvidia$i" c 1 3 2>/dev/null || : >"$RIG/dev/nvidia$i"; done

mkdir -p "$SKY_HOME/.slurm"; : > "$SKY_HOME/.slurm/config.new"
for spec in "${CLUSTERS[@]}"; do
  read -r C SSHP CTLP SLDP U GRES <<<"$spec"
  D=$RIG/$C; mkdir -p "$D/state" "$D/spool" "$D/log" "$D/etc"; chmod 755 "$D" "$D/etc"
  UH=$RIG/users/$U
  id -u "$U" >/dev/null 2>&1 || useradd -M -d "$UH" -s /bin/bash "$U"
  usermod -p '*' "$U" 2>/dev/null || true      # not locked, no password
  mkdir -p "$UH"; chown "$U:$U" "$UH"; chmod 700 "$UH"
  [ -f "$UH/.bashrc" ] || { touch "$UH/.bashrc"; chown "$U:$U" "$UH/.bashrc"; }

  # -- prolog: "golden image".  Gives each SkyPilot allocation its runtime so
  #    that nothing is downloaded (uv: astral.sh, python 3.10: github).
  cat > "$D/etc/prolog.sh" <<PRO
#!/bin/bash
export SLURM_CONF=$D/etc/slurm.conf
name=\$(/usr/bin/scontrol -o show job "\$SLURM_JOB_ID" | sed -n 's/.* JobName=\([^ ]*\).*/\1/p')
case "\$name" in ''|*/*|.*|bash|hostname) exit 0;; esac
rt=$RIG/nodetmp/$C/\$name; home=$UH/.sky_clusters/\$name
# a new allocation starts with an empty node-local disk (a preempted one never ran its cleanup)
exec 9>"$RIG/run/prolog-$C.lock"; flock 9
[ "\$(cat "\$rt/.slurm_job_id" 2>/dev/null)" = "\$SLURM_JOB_ID" ] || rm -rf "\$rt"
mkdir -p "\$rt"; echo "\$SLURM_JOB_ID" > "\$rt/.slurm_job_id"; chown -R $U:$U "\$rt"
setpriv --reuid=$U --regid=$U --clear-groups bash -c '
 rt=\$1; home=\$2; src=\$3
 mkdir -p "\$rt/.sky" "\$home/.local/bin" "\$home/.sky/wheels"
 v=\$rt/skypilot-runtime
 if [ ! -e "\$v" ]; then   # thin per-allocation view of the shared venv; own activate script, so SkyPilot can deactivate it
  mkdir -p "\$v/bin"; ln -s "\$src/lib" "\$src/include" "\$src/pyvenv.cfg" "\$v/"; ln -s "\$src"/bin/* "\$v/bin/"
  rm -f "\$v/bin/activate"; sed "s#\$src#\$v#g" "\$src/bin/activate" > "\$v/bin/activate"
 fi
 ln -sfn "\$src/bin/uv" "\$home/.local/bin/uv"
 grep -qs rig-image "\$home/.bashrc" || echo "export PATH=$RIG/image/bin:\\\$PATH # rig-image" >> "\$home/.bashrc"
 cp "\$src/done" "\$home/.sky/wheels/current_sky_wheel_hash"
' _ "\$rt" "\$home" "$RUNTIME" >>$D/log/prolog.log 2>&1 || true
exit 0
PRO
  chmod 755 "$D/etc/prolog.sh"
  mkdir -p "$RIG/nodetmp/$C"; chmod 1777 "$RIG/nodetmp/$C"; touch "$D/log/prolog.log"

  # -- slurm.conf / gres.conf
  {
   cat <<CONF
ClusterName=$C
SlurmctldHost=$HOSTN(127.0.0.1)
SlurmctldPort=$CTLP
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$M/socket
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmctldDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=5
Prolog=$D/etc/prolog.sh
PrologFlags=Alloc
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
SlurmdTimeout=30
SlurmctldTimeout=30
MinJobAge=300
PluginDir=/usr/lib/x86_64-linux-gnu/slurm-wlm
PlugStackConfig=/dev/null
CONF
   i=0
   for z in a b; do
     g=$(cut -d, -f$([ $z = a ] && echo 1 || echo 2) <<<"$GRES"); ns=()
     for n in $(seq 1 "$NODES_PER_ZONE"); do
       echo "NodeName=$C-$z$n NodeHostname=$HOSTN NodeAddr=127.0.0.1 Port=$((SLDP+i)) CPUs=$NODE_CPUS RealMemory=$NODE_MEM_MB Gres=gpu:$g State=UNKNOWN"
       ns+=("$C-$z$n"); i=$((i+1))
     done
     echo "PartitionName=$C-$z Nodes=$(IFS=,; echo "${ns[*]}") Default=$([ $z = a ] && echo YES || echo NO) MaxTime=1-00:00:00 State=UP"
   done
  } > "$D/etc/slurm.conf"
  { for z in a b; do g=$(cut -d, -f$([ $z = a ] && echo 1 || echo 2) <<<"$GRES")
     for n in $(seq 1 "$NODES_PER_ZONE"); do echo "NodeName=$C-$z$n Name=gpu Type=${g%:*} Count=${g#*:} File=$RIG/dev/nvidia[0-$((${g#*:}-1))]"; done; done; } > "$D/etc/gres.conf"
  echo "CgroupAutomount=no" > "$D/etc/cgroup.conf"
  chmod 644 "$D"/etc/*.conf
  export SLURM_CONF=$D/etc/slurm.conf
  alive "$D/slurmctld.pid" || { log "slurmctld $C"; slurmctld -f "$SLURM_CONF"; }
  for nn in $(sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$SLURM_CONF"); do
    alive "$D/slurmd-$nn.pid" || { mkdir -p "$D/spool/$nn"; slurmd -f "$SLURM_CONF" -N "$nn"; }
  done
  # SkyPilot's executor does gethostbyname(<nodename>): make node names resolve (marked lines, down.sh --purge removes them)
  for nn in $(sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$SLURM_CONF"); do grep -qE "[[:space:]]$nn( |\$)" /etc/hosts || echo "127.0.0.1 $nn # vlaunch-rig" >> /etc/hosts; done
  # nodes left DOWN/DRAINED by an earlier test
  for nn in $(sinfo -h -N -o '%N %t' | awk '$2 ~ /down|drain|fail/{print $1}' | sort -u); do scontrol update nodename="$nn" state=resume || true; done
  for z in a b; do scontrol update partitionname="$C-$z" state=up || true; done

  # -- one sshd per cluster: SetEnv SLURM_CONF selects the cluster
  cat > "$S/sshd_$C.conf" <<SSHD
Port $SSHP
ListenAddress 127.0.0.1
HostKey $S/host_key
PidFile $S/sshd_$C.pid
AuthorizedKeysFile $S/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
AllowUsers $U
MaxStartups 200:30:400
MaxSessions 400
UseDNS no
PrintMotd no
LogLevel ERROR
SetEnv SLURM_CONF=$SLURM_CONF
Subsystem sftp internal-sftp
SSHD
  alive "$S/sshd_$C.pid" || { log "sshd $C :$SSHP"; /usr/sbin/sshd -f "$S/sshd_$C.conf" -E "$S/sshd_$C.log"; }
  cat >> "$SKY_HOME/.slurm/config.new" <<CFG
Host $C
  HostName 127.0.0.1
  Port $SSHP
  User $U
  IdentityFile $S/id
  IdentitiesOnly yes
CFG
done
mv "$SKY_HOME/.slurm/config.new" "$SKY_HOME/.slurm/config"

# ---- 5. SkyPilot config ----------------------------------------------------
mkdir -p "$SKY_HOME/.sky"
[ -f "$SKY_HOME/.sky/config.yaml" ] || cat > "$SKY_HOME/.sky/config.yaml" <<CFG
allowed_clouds: [slurm]
jobs:
  controller:
    consolidation_mode: true
slurm:
  provision_timeout: 20
  cluster_configs:
    us-east:
      tmpdir: $RIG/nodetmp/us-east
      pricing: {cpu: 0.01, memory: 0.001, accelerators: {A100: 1.10, H100: 2.50}}
    us-west:
      tmpdir: $RIG/nodetmp/us-west
      pricing: {cpu: 0.01, memory: 0.001, accelerators: {A100: 1.30, H100: 2.40}}
CFG
[ -f "$SKY_HOME/.sky/plugins.yaml" ] || cat > "$SKY_HOME/.sky/plugins.yaml" <<PY
plugins:
  - class: tests.e2e.slurm.offline.Offline
    parameters: {probe: "http://127.0.0.1:$API_PORT/api/health", status_check_gap: 5, retry_gap: 5}
PY
# The two catalog files that requests of GPUs need.
CAT=$SKY_HOME/.sky/catalogs/v8/common; mkdir -p "$CAT"
[ -f "$CAT/accelerators.csv" ] || printf '%s\n' 'AcceleratorName,Clouds' "A100,\"['AWS', 'GCP', 'Slurm']\"" "A100-80GB,\"['AWS', 'GCP', 'Slurm']\"" "H100,\"['AWS', 'GCP', 'Slurm']\"" > "$CAT/accelerators.csv"
[ -f "$CAT/metadata.csv" ] || printf '%s\n' 'GPU,MemoryGB,Manufacturer' 'A100,40,NVIDIA' 'A100-80GB,80,NVIDIA' 'H100,80,NVIDIA' > "$CAT/metadata.csv"
cat > "$RIG/env.sh" <<ENV
export HOME=$SKY_HOME PATH=$IMAGE/bin:\$PATH
export SKYPILOT_API_SERVER_LOCAL_PORT=$API_PORT
export SKYPILOT_DISABLE_USAGE_COLLECTION=1
ENV
for i in $(seq 1 30); do
  ok=1; for spec in "${CLUSTERS[@]}"; do read -r C _ <<<"$spec"
    SLURM_CONF=$RIG/$C/etc/slurm.conf sinfo -h -o %t 2>/dev/null | grep -qE 'idle|mix|alloc' || ok=0
    SLURM_CONF=$RIG/$C/etc/slurm.conf sinfo -h -o %t 2>/dev/null | grep -qE 'unk|down' && ok=0; done
  [ $ok = 1 ] && break; sleep 1
done
for spec in "${CLUSTERS[@]}"; do read -r C _ <<<"$spec"; SLURM_CONF=$RIG/$C/etc/slurm.conf sinfo -N -o '%N %P %t %G %c %m'; done
log "up"
