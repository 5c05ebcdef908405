#!/usr/bin/env bash
# A cluster of real hosts on one Linux machine (root; no systemd, no containers).
#
#   up N           head <PREFIX>0 and workers <PREFIX>1..N; starts only what is missing
#   down           end everything that `up` started, by pid; remove networks. May be repeated
#   exec HOST ...  run a command inside HOST (all its namespaces, same working directory)
#   ip HOST        its address
#   cut|heal HOST  pull / plug its network cable
#   slow HOST      delay and lose packets on the way to it (tc netem; tbf where the kernel has no netem); "slow HOST off"
#   kill HOST      SIGKILL to its pid 1, and so to its sshd and all else (peers see a reset); `up` boots it again
#   crash HOST     power failure: cable out, then SIGKILL to its pid 1 (peers see silence); `up` boots it again
#
# A host is its own network, UTS (hostname), PID, IPC and mount namespaces with its own sshd, /dev/shm, /run,
# /etc/hosts and ~/.ssh. All share the root file system, which plays the cluster's shared file system.
# Nothing outside the namespaces is edited. LAB_PREFIX, LAB_NET and LAB_STATE keep instances apart.
set -euo pipefail
PREFIX=${LAB_PREFIX:?} NET=${LAB_NET:?} STATE=${LAB_STATE:?}
BRIDGE=${PREFIX}br
SSHD=$(command -v sshd || echo /usr/sbin/sshd)

number() { echo "${1#"$PREFIX"}"; }
address() { echo "$NET.$(($(number "$1") + 10))"; }
cable() { echo "${PREFIX}v$(number "$1")"; }
pid1() { cat "$STATE/$1/pid1" 2>/dev/null || true; }
started() { awk '{print $22}' "/proc/$1/stat" 2>/dev/null || true; }
alive() { # the pid may have been taken by another process since: compare start times
    local pid
    pid=$(pid1 "$1")
    [[ -n $pid && -e /proc/$pid && $(cat "$STATE/$1/started" 2>/dev/null) == $(started "$pid") ]]
}
hosts() { find "$STATE" -mindepth 1 -maxdepth 1 -type d -name "$PREFIX[0-9]*" -printf '%f\n' 2>/dev/null | sort -V; }

host_main() { # pid 1 of a host, inside all its namespaces
    hostname "$1"
    mount --make-rprivate /
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /run
    mkdir -p /run/sshd /run/munge /run/lock /root/.ssh
    mount --bind "$STATE/hosts" /etc/hosts
    mount --bind "$STATE/ssh" /root/.ssh
    "$SSHD" -D -e -f "$STATE/sshd_config" >"$STATE/$1/sshd.log" 2>&1 &
    echo $! >"$STATE/$1/sshd.pid"
    touch "$STATE/$1/ready"
    trap 'exit 0' TERM
    while :; do wait -n 2>/dev/null || sleep 1; done # reaps orphans
}

configure() {
    mkdir -p "$STATE/ssh"
    chmod 700 "$STATE/ssh"
    [[ -f $STATE/hostkey ]] || ssh-keygen -q -t ed25519 -N '' -f "$STATE/hostkey"
    if [[ ! -f $STATE/ssh/id_ed25519 ]]; then
        ssh-keygen -q -t ed25519 -N '' -C lab -f "$STATE/ssh/id_ed25519"
        cp "$STATE/ssh/id_ed25519.pub" "$STATE/ssh/authorized_keys"
        printf 'Host *\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n  ServerAliveInterval 5\n' >"$STATE/ssh/config"
        echo "* $(cat "$STATE/hostkey.pub")" >"$STATE/ssh/known_hosts"
        chmod 600 "$STATE/ssh/"*
    fi
    printf '%s\n' 'Port 22' "HostKey $STATE/hostkey" 'PidFile none' 'UsePAM no' 'PasswordAuthentication no' \
        'PermitRootLogin prohibit-password' 'AuthorizedKeysFile /root/.ssh/authorized_keys' 'StrictModes no' \
        'MaxStartups 100' 'UseDNS no' >"$STATE/sshd_config"
    { echo "127.0.0.1 localhost"; for i in $(seq 0 "$1"); do echo "$(address "$PREFIX$i") $PREFIX$i"; done; } >"$STATE/hosts"
    ip link show "$BRIDGE" >/dev/null 2>&1 || ip link add "$BRIDGE" type bridge
    ip link set "$BRIDGE" up
}

boot() {
    local host=$1 pid i
    mkdir -p "$STATE/$host"
    rm -f "$STATE/$host"/{ready,pid1,started}
    ip link del "$(cable "$host")" 2>/dev/null || true
    ip netns del "$host" 2>/dev/null || true
    ip netns add "$host"
    ip link add "$(cable "$host")" type veth peer name eth0 netns "$host"
    ip link set "$(cable "$host")" master "$BRIDGE" up
    ip -n "$host" link set eth0 address "$(printf '02:4c:41:42:01:%02x' "$(number "$host")")" # stable: no stale ARP after a crash
    ip -n "$host" addr add "$(address "$host")/24" dev eth0
    ip -n "$host" link set eth0 up
    ip -n "$host" link set lo up
    ip netns exec "$host" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
        setsid bash "$0" _host "$host" </dev/null >"$STATE/$host/host.log" 2>&1 &
    pid=$!
    for i in $(seq 600); do [[ -e $STATE/$host/ready ]] && break; sleep 0.05; done
    pid=$(tr ' ' '\n' <"/proc/$pid/task/$pid/children" | head -1)
    echo "$pid" >"$STATE/$host/pid1"
    started "$pid" >"$STATE/$host/started"
    for i in $(seq 100); do inside "$host" ssh -o BatchMode=yes "$host" true 2>/dev/null && return; sleep 0.1; done
    echo "$host: sshd does not answer" >&2
    return 1
}

inside() {
    local host=$1
    shift
    alive "$host" || { echo "$host is not up" >&2; return 1; }
    nsenter -t "$(pid1 "$host")" -m -u -i -n -p --wd="$PWD" -- "$@"
}

down() {
    local host pid i
    for host in $(hosts); do
        if alive "$host"; then
            pid=$(pid1 "$host")
            kill -9 "$pid" 2>/dev/null || true # the kernel ends all processes of the host with its pid 1
            for i in $(seq 50); do [[ -e /proc/$pid ]] || break; sleep 0.1; done
        fi
        ip link del "$(cable "$host")" 2>/dev/null || true
        ip netns del "$host" 2>/dev/null || true
        rm -rf "${STATE:?}/$host"
    done
    ip link del "$BRIDGE" 2>/dev/null || true
}

command=${1:?}
shift
case $command in
    up) configure "$1"; for i in $(seq 0 "$1"); do alive "$PREFIX$i" || boot "$PREFIX$i"; done ;;
    down) down ;;
    exec) inside "$@" ;;
    ip) address "$1" ;;
    cut) ip link set "$(cable "$1")" down ;;
    heal) ip link set "$(cable "$1")" up ;;
    slow)
        cable=$(cable "$1")
        tc qdisc del dev "$cable" root 2>/dev/null || true
        [[ ${2:-on} == off ]] || tc qdisc add dev "$cable" root netem delay 20ms loss 0.1% 2>/dev/null ||
            tc qdisc add dev "$cable" root tbf rate 40mbit burst 32kbit latency 20ms # what does not fit is dropped
        ;;
    kill) kill -9 "$(pid1 "$1")" ;; # its network outlives it: ip netns keeps that
    crash) ip link set "$(cable "$1")" down; kill -9 "$(pid1 "$1")" ;;
    _host) host_main "$1" ;;
    *) sed -n '2,18p' "$0"; exit 2 ;;
esac
