#!/usr/bin/env bash
# A real systemd for tests, in namespaces and control groups of its own, with the units of deploy/systemd and nothing else. As root.
#
#   manager.sh PROGRAM ETC SCRIPT     PROGRAM becomes /usr/local/bin/ion, the files of ETC come into /etc/ion; runs SCRIPT beside it by sh
#
# Of the machine it sees everything and changes nothing: what it or its services write to is covered first.
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
    for name in /run/units/*.service; do # there is no journal
        mkdir "$name.d"
        printf '[Service]\nStandardOutput=append:/run/log\nStandardError=append:/run/log\n' >"$name.d/log.conf"
    done
    # A /dev/fuse that users may open, as distributions have it.
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
    # Credentials are mounted elsewhere first.
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
    [ -z "$manager" ] || kill -KILL "$manager" # the first process of its namespace: all others go with it
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
    [ "$SECONDS" -lt "$deadline" ] || { echo "manager.sh: systemd did not get ready in 60 s" >&2; exit 1; }
    sleep 0.05
done
inside sh -euc "$script"
