#!/usr/bin/env bash
# A real SLURM on the hosts of lab.sh: slurmctld on the head, slurmd on workers 1..N, munge; no systemd, no cgroups.
#   up N   start it (idempotent)      down   stop its daemons, by pid
# Partition `main` can be preempted (requeue) by `high`. CPUs are pretended.
set -euo pipefail
PREFIX=${LAB_PREFIX:?} S=${LAB_STATE:?}/slurm
LAB=$(dirname "$0")/lab.sh

configure() {
    mkdir -p "$S/etc" "$S/state" "$S/log" "$S/munge"
    [[ -f $S/munge/munge.key ]] || dd if=/dev/urandom of="$S/munge/munge.key" bs=128 count=1 status=none
    chown -R munge: "$S/munge"
    chmod 700 "$S/munge"
    chmod 400 "$S/munge/munge.key"
    chmod 711 "${LAB_STATE:?}"
    cat >"$S/etc/slurm.conf" <<X
ClusterName=$PREFIX
SlurmctldHost=${PREFIX}0($(bash "$LAB" ip "${PREFIX}0"))
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts only when the credential of its last life has expired (120 s by default).
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
RequeueExit=75
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
SlurmctldTimeout=30
SlurmdTimeout=20
InactiveLimit=0
KillWait=10
MessageTimeout=10
MinJobAge=600
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=${PREFIX}[1-$1] CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=${PREFIX}[1-$1] Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=60
PartitionName=high Nodes=${PREFIX}[1-$1] MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
X
    echo "CgroupPlugin=cgroup/v1" >"$S/etc/cgroup.conf" # slurmd insists on a plugin; v1 on an empty tmpfs satisfies it
}

start_on() { # runs inside the host
    local running
    running() { local pid; pid=$(cat "$1" 2>/dev/null) && [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null; }
    [[ $(stat -f -c %T /sys/fs/cgroup) == tmpfs ]] || mount -t tmpfs none /sys/fs/cgroup # of this host alone
    mkdir -p /etc/slurm
    mountpoint -q /etc/slurm || mount --bind "$S/etc" /etc/slurm
    chown munge: /run/munge
    running /run/munge/munged.pid || setpriv --reuid munge --regid munge --clear-groups munged \
        --key-file "$S/munge/munge.key" --log-file "$S/munge/$1.log" --seed-file "$S/munge/$1.seed"
    if [[ $1 == "${PREFIX}0" ]]; then
        running /run/slurmctld.pid || slurmctld
    else
        running /run/slurmd.pid || slurmd -N "$1"
    fi
}

stop_on() {
    local file pid
    for file in /run/slurmd.pid /run/slurmctld.pid /run/munge/munged.pid; do
        pid=$(cat "$file" 2>/dev/null) && kill "$pid" 2>/dev/null || true
    done
}

ready() { bash "$LAB" exec "${PREFIX}0" sinfo -h -N -p main -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated)$' || true; }

command=${1:?}
case $command in
    up)
        configure "$2"
        for i in $(seq 0 "$2"); do bash "$LAB" exec "$PREFIX$i" bash "$0" _start "$PREFIX$i"; done
        for i in $(seq 300); do [[ $(ready) == "$2" ]] && exit 0; sleep 0.2; done
        echo "slurm: nodes are not ready" >&2
        tail -n 5 "$S"/log/*.log >&2
        exit 1
        ;;
    down) for i in $(seq 0 "$2"); do bash "$LAB" exec "$PREFIX$i" bash "$0" _stop || true; done ;;
    _start) start_on "$2" ;;
    _stop) stop_on ;;
    *) sed -n '2,4p' "$0"; exit 2 ;;
esac
