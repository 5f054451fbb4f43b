#!/usr/bin/env bash
# Runs a real systemd for the tests, in namespaces and control groups of its own, with the units of
# deploy/systemd and no other services. Needs root.
#
#   manager.sh PROGRAM ETC SCRIPT
#
# The systemd finds PROGRAM as /usr/local/bin/ion, and the files of the folder ETC in /etc/ion. When
# it is running, `sh` runs SCRIPT in its namespaces.
#
# The systemd sees the whole machine and changes nothing of it, because mounts cover everything that
# it or its services write to.
set -euo pipefail
here=$(realpath "$(dirname "$0")")

begin() {
    local name
    mount --make-rprivate /
    umount --lazy /proc && mount -t proc proc /proc
    for name in /run /var/lib /usr/local/bin /media; do mount -t tmpfs -o mode=755 tmpfs "$name"; done
    cp "$program" /usr/local/bin/ion
    cp -a /etc /run/etc
    mount --bind /run/etc /etc
    mkdir -p /etc/ion /run/units
    cp "$etc"/* /etc/ion/
    install -D -m 644 "$here"/../../../deploy/systemd/ion.sysusers /etc/sysusers.d/ion.conf
    systemd-sysusers ion.conf
    cp "$here"/../../../deploy/systemd/*.service /run/units/
    for name in test basic sysinit shutdown network-online; do printf '[Unit]\nDefaultDependencies=no\n' >"/run/units/$name.target"; done
    for name in /run/units/*.service; do # there is no journal, so the services log to a file
        mkdir "$name.d"
        printf '[Service]\nStandardOutput=append:/run/log\nStandardError=append:/run/log\n' >"$name.d/log.conf"
    done
    # Every user may open this /dev/fuse, as on ordinary distributions.
    mknod -m 666 /media/fuse c 10 229
    mount --bind /media/fuse /dev/fuse
    if [ -z "$hierarchies" ]; then
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    else
        mount -t tmpfs tmpfs /sys/fs/cgroup
        for name in $hierarchies; do
            mkdir "/sys/fs/cgroup/$name"
            mount -t cgroup -o "${name/#systemd/none,name=systemd}" cgroup "/sys/fs/cgroup/$name"
        done
    fi
    ip link set lo up
    # systemd mounts credentials in another mount namespace first, so mounts must propagate.
    mount --make-rshared /
    exec env -i container=ion-test PATH="$PATH" SYSTEMD_UNIT_PATH=/run/units \
        /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no --crash-reboot=no
}

if [ "$1" = begin ]; then
    program=$2 etc=$3 hierarchies=$4
    begin
fi
program=$(realpath "$1") etc=$(realpath "$2") script=$3
id=ion-systemd-$$
hierarchies='' groups=(/sys/fs/cgroup/"$id")
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    hierarchies='systemd devices memory pids'
    groups=()
    for name in $hierarchies; do groups+=("/sys/fs/cgroup/$name/$id"); done
fi
mkdir "${groups[@]}"
pid='' manager=''
finish() {
    # The manager is the first process of its namespace, so all other processes end with it.
    [ -z "$manager" ] || kill -KILL "$manager"
    [ -z "$pid" ] || wait "$pid" 2>/dev/null || true
    for group in "${groups[@]}"; do
        until find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.05; done
    done
}
trap finish EXIT
(
    for group in "${groups[@]}"; do echo "$BASHPID" >"$group/cgroup.procs"; done
    exec unshare --mount --pid --fork --net --uts --ipc --cgroup "$0" begin "$program" "$etc" "$hierarchies" </dev/null
) &
pid=$!
inside() { nsenter --target "$manager" --mount --pid --net --uts --ipc --cgroup -- "$@"; }
deadline=$((SECONDS + 60))
until manager=$(pgrep -P "$pid") && [ "$(inside systemctl is-system-running 2>/dev/null)" = running ]; do
    kill -0 "$pid"
    [ "$SECONDS" -lt "$deadline" ] || { echo "manager.sh: systemd did not become ready within 60 s" >&2; exit 1; }
    sleep 0.05
done
inside sh -euc "$script"
