#!/usr/bin/env bash
# Runs a real Kubernetes with one node, n1, for the tests: API server, controller manager,
# scheduler, kubelet, etcd, and containerd with runc. scripts/setup-kubernetes.sh installs them.
# Needs root, and Linux with version 1 of control groups.
#
#   cluster.sh start DIR [PORT]      Starts the cluster, and returns when the node is ready. The API
#                                    is at 127.0.0.1:PORT (36443).
#   cluster.sh keep DIR [PORT]       Starts the cluster, prints "ready", and stops the cluster when
#                                    its own input ends.
#   cluster.sh stop DIR              Ends all that is left of the cluster. Only DIR/log stays.
#   cluster.sh down DIR PART         Kills a part: etcd, containerd, apiserver, controller-manager,
#                                    scheduler or kubelet.
#   cluster.sh up DIR PART           Starts a part again, and waits until it answers.
#   cluster.sh image DIR NAME:TAG [FOLDER [AT]]
#                                    Makes an image for the pods: a shell, and the files of FOLDER
#                                    over it. Programs start in the folder AT. FOLDER may also be an
#                                    archive of the whole image.
#   cluster.sh forward DIR PORT      Lets the pods reach this port of the machine's loopback at the
#                                    node's address, which it prints.
#   cluster.sh enter DIR COMMAND...  Becomes the command, in the cluster's mount namespace. Programs
#                                    that mount for pods run there.
#   cluster.sh env DIR               Prints what a client needs, as lines NAME=value.
#
# The parts run in a network namespace and a mount namespace of their own, so that no address and no
# mount is left behind. They also run in a control group of their own, so that the script finds
# every process at the end, whatever happened to its parents. A port of the machine's loopback is
# forwarded to the API, so the same kubeconfig serves inside and outside.
set -euo pipefail

deadline=${ION_TEST_CLUSTER_SECONDS:-120}
kubernetes=${ION_TEST_CACHE:-$HOME/.cache/ion-test}/kubernetes
node_address=10.244.0.1 # the bridge of the pods
api_address=10.0.0.1    # of the Service "kubernetes"
# Debian has some of the programs in folders that are not in a user's PATH.
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

# wait_for WHAT COMMAND...: waits until the command succeeds. If the caller has set $part, it fails
# when that part ends.
wait_for() {
    local what=$1 end=$((SECONDS + deadline))
    shift
    until "$@" >/dev/null 2>&1; do
        [ -z "${part-}" ] || alive "$part" || fail "$part has ended; see $dir/log/$part"
        [ "$SECONDS" -lt "$end" ] || fail "waited $deadline s for $what"
        sleep 0.1
    done
}

kubectl() { timeout 20 "$kubernetes/kubectl" --kubeconfig="$dir/kubeconfig" --cache-dir="$dir/kubectl" "$@"; }
ctr() { timeout 60 ctr --address "$dir/containerd.sock" --namespace k8s.io "$@"; }
alive() { [ -s "$dir/pid/$1" ] && ! gone "$(<"$dir/pid/$1")"; }
gone() {
    local state
    # Where no process collects orphans, a process that has ended stays a zombie.
    state=$(ps -o stat= -p "$1") || return 0
    [ "${state#Z}" != "$state" ]
}

# --- processes ------------------------------------------------------------------------------------

# spawn PART COMMAND...: runs the command in the background, in the cluster's control group.
spawn() {
    local part=$1
    shift
    (
        echo "$BASHPID" >"$group/parts/cgroup.procs"
        exec setsid "$@" >>"$dir/log/$part" 2>&1 </dev/null
    ) &
    echo $! >"$dir/pid/$part"
    disown # the part's log says how it ends; this shell need not report it
}

inside() { nsenter --target "$(<"$dir/pid/namespaces")" --mount --net -- "$@"; }
spawn_inside() {
    local part=$1
    shift
    spawn "$part" nsenter --target "$(<"$dir/pid/namespaces")" --mount --net -- "$@"
}

# Runs in the cluster's namespaces: makes everything that the parts expect to find there.
furnish() {
    # A mount that is made for a pod must appear in its container. Nothing appears outside, because
    # `unshare --propagation private` has separated this namespace.
    mount --make-rshared /
    # The kubelet, containerd and the network plugins write to these folders, whatever their
    # settings say.
    mount -t tmpfs -o mode=755 tmpfs /run
    mount --bind "$dir/var/lib" /var/lib
    mount --bind "$dir/var/log" /var/log
    # The kubelet sets these for the whole machine, unless ordinary files cover them.
    local name
    for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
        cat "/proc/sys/$name" >"$dir/sysctl/${name//\//.}"
        mount --bind "$dir/sysctl/${name//\//.}" "/proc/sys/$name"
    done
    ip link set lo up
    ip address add "$api_address/32" dev lo
    ip link add cni0 type bridge
    ip address add "$node_address/24" dev cni0
    # There is no route beyond the bridge, so a program that asks a cloud for credentials, or a
    # registry for an image, fails at once.
    ip link set cni0 up
    echo >"$dir/furnished"
    exec sleep infinity
}

launch() {
    local port
    port=$(<"$dir/port")
    case $1 in
    etcd)
        spawn_inside etcd etcd --name=n1 --data-dir="$dir/etcd" --unsafe-no-fsync --log-level=warn \
            --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
            --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
            --initial-cluster=n1=http://127.0.0.1:2380
        ;;
    containerd)
        spawn_inside containerd containerd --config "$dir/containerd.toml"
        ;;
    apiserver)
        # TTLAfterFinished is on in every Kubernetes since 1.21.
        spawn_inside apiserver "$kubernetes/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
            --bind-address=127.0.0.1 --secure-port="$port" --insecure-port=0 --advertise-address="$node_address" \
            --endpoint-reconciler-type=none --tls-cert-file="$dir/pki/server.pem" --tls-private-key-file="$dir/pki/server.key" \
            --client-ca-file="$dir/pki/ca.pem" --token-auth-file="$dir/pki/tokens.csv" \
            --service-account-key-file="$dir/pki/accounts.key" --service-account-signing-key-file="$dir/pki/accounts.key" \
            --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.0.0.0/24 \
            --kubelet-preferred-address-types=InternalIP --authorization-mode=RBAC,Node --allow-privileged=true --feature-gates=TTLAfterFinished=true
        ;;
    controller-manager)
        spawn_inside controller-manager "$kubernetes/kube-controller-manager" --kubeconfig="$dir/kubeconfig" --leader-elect=false \
            --port=0 --bind-address=127.0.0.1 --root-ca-file="$dir/pki/ca.pem" --kube-api-qps=200 --kube-api-burst=400 \
            --service-account-private-key-file="$dir/pki/accounts.key" --feature-gates=TTLAfterFinished=true
        ;;
    scheduler)
        spawn_inside scheduler "$kubernetes/kube-scheduler" --kubeconfig="$dir/kubeconfig" --leader-elect=false \
            --port=0 --bind-address=127.0.0.1 --kube-api-qps=200 --kube-api-burst=400
        ;;
    kubelet)
        # The kubelet must not evict pods or remove images because a test machine's disk is full,
        # and must start although the machine has swap.
        spawn_inside kubelet "$kubernetes/kubelet" --kubeconfig="$dir/kubeconfig" --hostname-override=n1 --node-ip="$node_address" \
            --root-dir="$dir/kubelet" --cert-dir="$dir/pki" --volume-plugin-dir="$dir/kubelet/volume-plugins" \
            --container-runtime=remote --container-runtime-endpoint="unix://$dir/containerd.sock" \
            --cgroup-driver=cgroupfs --cgroup-root="/$id" --enforce-node-allocatable= --eviction-hard= \
            --image-gc-high-threshold=100 --fail-swap-on=false --make-iptables-util-chains=false --resolv-conf= --cluster-dns= \
            --kube-api-qps=200 --kube-api-burst=400 --event-qps=0 --registry-qps=0 --serialize-image-pulls=false --read-only-port=0 --node-status-update-frequency=1s
        ;;
    *) fail "there is no part $1" ;;
    esac
}

answers() {
    local part=$1 question
    case $part in
    containerd) question=(ctr version) ;;
    apiserver) question=(kubectl get --raw /readyz) ;;
    etcd) question=(listens 2379) ;;
    controller-manager) question=(listens 10257) ;;
    scheduler) question=(listens 10259) ;;
    kubelet) question=(listens 10248) ;;
    esac
    wait_for "$part to answer; see $dir/log/$part" "${question[@]}"
}
listens() { inside bash -c ": </dev/tcp/127.0.0.1/$1"; }

down() {
    alive "$1" || fail "$1 is not running"
    local pid
    pid=$(<"$dir/pid/$1")
    kill -KILL "$pid"
    wait_for "$1 to end" gone "$pid"
    rm -f "$dir/pid/$1"
}

# --- files ----------------------------------------------------------------------------------------

certificates() {
    local admin ion
    cd "$dir/pki"
    openssl ecparam -genkey -name prime256v1 -noout -out accounts.key
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=Ion test CA" \
        -keyout ca.key -out ca.pem 2>/dev/null
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=kube-apiserver \
        -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1,IP:10.0.0.1,DNS:kubernetes.default.svc \
        -CA ca.pem -CAkey ca.key -keyout server.key -out server.pem 2>/dev/null
    admin=$(openssl rand -hex 16) ion=$(openssl rand -hex 16)
    # The token `admin` may do everything. The token `ion` may do what a test grants to the user
    # ion.
    printf '%s,admin,admin,system:masters\n%s,ion,ion\n' "$admin" "$ion" >tokens.csv
    echo "$admin" >admin.token
    echo "$ion" >ion.token
    cd "$OLDPWD"
    cat >"$dir/kubeconfig" <<END
{"apiVersion": "v1", "kind": "Config", "current-context": "test",
 "clusters": [{"name": "test", "cluster": {"server": "https://127.0.0.1:$port", "certificate-authority": "$dir/pki/ca.pem"}}],
 "users": [{"name": "admin", "user": {"token": "$admin"}}],
 "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}]}
END
}

configuration() {
    cat >"$dir/containerd.toml" <<END
version = 2
root = "$dir/containerd"
state = "$dir/containerd-state"
# This plugin would write to /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "$dir/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/pause:ion"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$dir/cni"
END
    cat >"$dir/cni/pods.conflist" <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "$api_address/32"}]}}]}
END
}

# image NAME:TAG FOLDER AT COMMAND: makes an archive like those of `docker save`, without a registry
# or an engine, and imports it. If FOLDER is an archive, imports that.
image() {
    local name=$1 folder=$2 at=$3 command=$4 work applet layer
    if [ -f "$folder" ]; then
        ctr images import "$folder" >/dev/null
        wait_for "the kubelet's runtime to know $name" known "$name"
        return
    fi
    work=$(mktemp -d "$dir/image.XXXXXX")
    mkdir "$work/files"
    # A folder that has a shell is used as the whole root filesystem.
    if [ -z "$folder" ] || [ ! -e "$folder/bin/sh" ]; then
        mkdir -p "$work"/files/{bin,etc,root} && mkdir -m 1777 "$work/files/tmp"
        cp "$(command -v busybox)" "$work/files/bin/busybox"
        for applet in $(busybox --list); do
            [ "$applet" = busybox ] || ln -s busybox "$work/files/bin/$applet"
        done
        echo root:x:0:0:root:/root:/bin/sh >"$work/files/etc/passwd"
    fi
    [ -z "$folder" ] || cp -a "$folder/." "$work/files/"
    tar --create --owner=0 --group=0 --numeric-owner --file "$work/layer.tar" --directory "$work/files" .
    layer=$(sha256sum <"$work/layer.tar")
    cat >"$work/config.json" <<END
{"architecture": "$(dpkg --print-architecture)", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:${layer%% *}"]},
 "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": $command, "WorkingDir": "$at"}}
END
    echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
    tar --create --file "$work/image.tar" --directory "$work" manifest.json config.json layer.tar
    ctr images import "$work/image.tar" >/dev/null
    rm -rf "$work"
    wait_for "the kubelet's runtime to know $name" known "$name"
}
# The part of containerd that serves the kubelet notices an import a moment later, and then marks
# the image.
known() { ctr images list "name~=(^|/)$1\$" | grep -qF io.cri-containerd.image=managed; }

# --- the cluster ----------------------------------------------------------------------------------

start() {
    [ "$(id -u)" = 0 ] || fail "only root can start a cluster"
    [ -d /sys/fs/cgroup/pids ] || fail "version 1 of control groups is needed: there is no /sys/fs/cgroup/pids"
    [ -x "$kubernetes/kubelet" ] || fail "$kubernetes/kubelet is missing; scripts/setup-kubernetes.sh builds it"
    # The folder has sockets, and the kernel accepts at most 107 bytes of a socket's path.
    [ ${#dir} -le 70 ] || fail "the path $dir is longer than 70 characters"
    [ -z "$(processes)" ] || fail "the cluster of $dir is running; stop it first"
    mkdir -p "$dir"
    [ -e "$dir/.cluster" ] || [ -z "$(ls -A "$dir")" ] || fail "$dir is neither empty nor the folder of a cluster"
    : >"$dir/.cluster" # the script may remove the files beside this one
    stop # removes what a cluster that was not stopped has left behind
    rm -rf "${dir:?}/log"
    trap 'failed' EXIT
    trap 'exit 130' INT TERM HUP

    mkdir -p "$dir"/{log,pid,pki,sysctl,cni,kubelet,var/lib,var/log}
    port=$1
    echo "$port" >"$dir/port"
    local hierarchy name
    for hierarchy in $hierarchies; do mkdir -p "$hierarchy/$id"; done
    mkdir "$group/parts"

    # This socat accepts connections outside the namespaces, and forward-inside passes each of them
    # on to the API server inside.
    spawn forward-outside socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" "UNIX-CONNECT:$dir/api.sock"
    spawn namespaces unshare --mount --net --propagation private "$0" furnish "$dir"
    certificates
    configuration
    wait_for "the namespaces; see $dir/log/namespaces" test -e "$dir/furnished"
    spawn_inside forward-inside socat "UNIX-LISTEN:$dir/api.sock,fork,mode=600" "TCP:127.0.0.1:$port"
    alive forward-outside || fail "port $port is taken; see $dir/log/forward-outside"
    # There is no kube-proxy, so this socat serves the address of the Service "kubernetes", the only
    # one that is used.
    spawn_inside service socat "TCP-LISTEN:443,bind=$api_address,reuseaddr,fork" "TCP:127.0.0.1:$port"
    launch etcd
    launch apiserver
    launch containerd
    answers containerd
    image pause:ion '' / '["sleep", "infinity"]'
    answers apiserver
    for name in controller-manager scheduler kubelet; do launch "$name"; done
    for name in controller-manager scheduler kubelet; do answers "$name"; done
    wait_for "the node to be ready" ready
    # Pods are refused until the account exists.
    wait_for "the default service account" kubectl get serviceaccount default
    trap - EXIT INT TERM HUP
}
ready() {
    local state
    state=$(kubectl get node n1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints}')
    [ "$state" = "True " ]
}

failed() {
    local status=$? log
    if [ "$status" != 130 ]; then
        for log in "$dir"/log/*; do
            echo "--- the end of $log" >&2
            tail -n 12 "$log" | cut -c 1-240 >&2
        done
    fi
    stop
}

# Every process in the control group belongs to the cluster: its parts, the containers and their
# shims, and the commands of `enter`.
processes() { find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null || true; }
none_runs() {
    local pids
    mapfile -t pids < <(processes)
    [ ${#pids[@]} -gt 0 ] || return 0
    kill -KILL "${pids[@]}" || true # one may have ended meanwhile
    return 1
}
no_groups() {
    local hierarchy left=0
    for hierarchy in $hierarchies; do
        [ ! -e "$hierarchy/$id" ] || find "$hierarchy/$id" -depth -type d -exec rmdir {} + || left=1
    done
    return "$left"
}

stop() {
    trap - EXIT     # a failure in here must not call `failed` again
    local name part # hides the caller's $part, so that wait_for watches no part any more
    deadline=30
    [ ! -e "$group" ] || wait_for "the cluster's processes to end: $(processes | tr '\n' ' ')" none_runs
    wait_for "the control groups $id to empty" no_groups
    # The cluster's mounts ended with its namespace, so only plain files are left below.
    [ -e "$dir/.cluster" ] || return 0
    for name in pid pki kubectl sysctl cni kubelet var etcd containerd containerd-state containerd.sock containerd.sock.ttrpc containerd.toml \
        api.sock kubeconfig port furnished; do
        rm -rf "${dir:?}/$name"
    done
    rm -rf "${dir:?}"/image.* "${dir:?}"/port-*.sock
}

[ $# -ge 2 ] || fail "usage: cluster.sh start|keep|stop|down|up|image|forward|enter|env DIR ..."
verb=$1
dir=$(realpath -m "$2")
shift 2
id=ion-test-$(sha256sum <<<"$dir" | cut -c 1-12)
hierarchies=$(find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d)
group=/sys/fs/cgroup/pids/$id

case $verb in
start | keep)
    start "${1:-36443}"
    [ "$verb" = keep ] || exit 0
    trap stop EXIT
    trap 'exit 130' INT TERM HUP
    echo ready
    while read -r _; do :; done
    ;;
stop) stop ;;
down) down "$1" ;;
up)
    ! alive "$1" || fail "$1 is running"
    launch "$1"
    answers "$1"
    ;;
image) image "$1" "${2-}" "${3-/}" '["sh"]' ;;
forward)
    spawn "forward-$1-outside" socat "UNIX-LISTEN:$dir/port-$1.sock,fork,mode=600" "TCP:127.0.0.1:$1"
    wait_for "$dir/port-$1.sock" test -S "$dir/port-$1.sock"
    spawn_inside "forward-$1-inside" socat "TCP-LISTEN:$1,bind=$node_address,reuseaddr,fork" "UNIX-CONNECT:$dir/port-$1.sock"
    wait_for "port $1 inside" inside bash -c ": </dev/tcp/$node_address/$1"
    echo "$node_address:$1"
    ;;
enter)
    echo $$ >"$group/parts/cgroup.procs"
    # The command stays in the machine's network, where it reaches the API at the forwarded port,
    # and the stores of the test.
    exec nsenter --target "$(<"$dir/pid/namespaces")" --mount --wd="$PWD" -- "$@"
    ;;
env)
    printf '%s\n' "KUBECONFIG=$dir/kubeconfig" "KUBERNETES_API=https://127.0.0.1:$(<"$dir/port")" "KUBERNETES_CA=$dir/pki/ca.pem" \
        "KUBERNETES_TOKEN=$(<"$dir/pki/admin.token")" "KUBERNETES_ION_TOKEN=$(<"$dir/pki/ion.token")" "KUBELET_ROOT=$dir/kubelet"
    ;;
furnish) furnish ;;
*) fail "there is no command $verb" ;;
esac
