#!/usr/bin/env bash
# A make-believe cluster on one machine: hosts h1..hN with network, host name, mounts, IPC and processes of their own, at 10.77.0.I on
# a bridge, with their own /dev/shm; every directory but that is shared, as on a network file system. For root.
#
#   cluster.sh up DIR N            make it; DIR holds the pids
#   cluster.sh exec DIR HOST ...   run a command on a host, in the same directory and environment
#   cluster.sh link DIR HOST down  pull the cable of a host out; up: put it back
#   cluster.sh slurm DIR N CPUS    start Slurm on it, the controller on h1; SLURM_CONF is DIR/slurm/slurm.conf
#   cluster.sh down DIR            end it: everything in a host dies with its first process
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
command=$1 dir=$(cd "$2" && pwd)
shift 2

# Start the first process of a host, and note its pid as this machine sees it.
hold() {
    # shellcheck disable=SC2016  # it is expanded in the host
    setsid unshare --net --uts --mount --ipc --pid --fork --kill-child --mount-proc bash -c '
        trap "exit 0" TERM; hostname "$0"; touch "$1/$0.ready"; while :; do sleep 1000 & wait $!; done' \
        "$1" "$dir" </dev/null >"$dir/$1.log" 2>&1 &
    local outer=$!
    for _ in $(seq 500); do [ ! -e "$dir/$1.ready" ] || break; sleep 0.02; done
    tr -d ' \n' <"/proc/$outer/task/$outer/children" >"$dir/$1.pid"
}

enter() {
    local host=$1
    shift
    nsenter --target "$(cat "$dir/$host.pid")" "$@"
}

run_on() {
    local host=$1
    shift
    enter "$host" --net --uts --mount --ipc --pid --wd="$PWD" -- "$@"
}

case $command in
up)
    printf '127.0.0.1 localhost\n' >"$dir/hosts"
    for i in $(seq "$1"); do printf '10.77.0.%d h%d\n' "$i" "$i" >>"$dir/hosts"; done
    hold switch
    enter switch --net ip link add br0 type bridge
    enter switch --net ip link set br0 up
    for i in $(seq "$1"); do
        hold "h$i"
        enter switch --net ip link add "v$i" type veth peer name eth0 netns "$(cat "$dir/h$i.pid")"
        enter switch --net ip link set "v$i" master br0 up
        enter "h$i" --net ip address add "10.77.0.$i/24" dev eth0
        enter "h$i" --net ip link set lo up
        enter "h$i" --net ip link set eth0 up
        enter "h$i" --mount --pid sh -c "mount --bind '$dir/hosts' /etc/hosts && mount -t tmpfs -o size=256m shm /dev/shm"
    done
    ;;
exec) run_on "$@" ;;
link) enter switch --net ip link set "v${1#h}" "$2" ;;
slurm)
    slurm=$dir/slurm
    mkdir -p "$slurm"/{state,spool,log,run}
    chmod 755 "$dir" "$slurm" "$slurm/run"
    dd if=/dev/urandom of="$slurm/munge.key" bs=128 count=1 status=none
    chmod 400 "$slurm/munge.key"
    cat >"$slurm/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=h1(10.77.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$slurm/run/munge.socket
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool/%n
SlurmctldPidFile=$slurm/run/slurmctld.pid
SlurmdPidFile=$slurm/run/slurmd-%n.pid
SlurmctldLogFile=$slurm/log/slurmctld.log
SlurmdLogFile=$slurm/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
PropagateResourceLimits=NONE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for i in $(seq "$1"); do
        echo "NodeName=h$i NodeAddr=10.77.0.$i CPUs=$2 RealMemory=1000 State=UNKNOWN" >>"$slurm/slurm.conf"
        mkdir -p "$slurm/spool/h$i"
    done
    export SLURM_CONF=$slurm/slurm.conf
    # The socket of munge is a file, so one daemon serves all hosts.
    run_on h1 munged --force --key-file="$slurm/munge.key" --socket="$slurm/run/munge.socket" --pid-file="$slurm/run/munged.pid" \
        --log-file="$slurm/log/munged.log" --seed-file="$slurm/run/munge.seed"
    run_on h1 slurmctld -c -f "$SLURM_CONF"
    for i in $(seq "$1"); do run_on "h$i" slurmd -c -N "h$i" -f "$SLURM_CONF"; done
    for _ in $(seq 300); do
        [ "$(run_on h1 sinfo -h -N -o %t 2>/dev/null | grep -c '^idle$')" != "$1" ] || exit 0
        sleep 0.1
    done
    echo "Slurm did not come up" >&2
    tail -n 5 "$slurm"/log/*.log >&2
    exit 1
    ;;
down)
    for file in "$dir"/*.pid; do kill -KILL "$(cat "$file")" 2>/dev/null || true; done
    rm -f "$dir"/*.pid
    ;;
esac
