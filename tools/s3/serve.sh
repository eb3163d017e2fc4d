#!/bin/bash
# An S3 server on one machine, from Ceph's parts: a monitor, an object store in one sparse file, the S3 gateway.
# Runs in the foreground until it is stopped; needs no root. The container image and the tests start this same script.
#
#   S3_ACCESS_KEY, S3_SECRET_KEY   the account, made at the first start
#   S3_BUCKET                      made at every start unless it is there
#   S3_DIR       /var/lib/s3       where everything lies, kept between starts
#   S3_BIND      0.0.0.0           address of the gateway; the other parts listen on the loopback interface only
#   S3_PORT      9000
#   S3_MON_PORT  the next port
#   S3_SIZE_GIB  50                upper bound of the sparse file
set -uo pipefail
: "${S3_ACCESS_KEY:?}" "${S3_SECRET_KEY:?}" "${S3_BUCKET:?}"
dir=${S3_DIR:-/var/lib/s3}
port=${S3_PORT:-9000}
mon_port=${S3_MON_PORT:-$((port + 1))}
export CEPH_CONF=$dir/ceph.conf

# Debian's build looks for the gateway's classes in a path relative to the working directory.
cd /
ulimit -n "$(ulimit -Hn)"

stop() {
    trap - TERM INT EXIT
    # In this order: the store says goodbye to the monitor, and waits for seconds when it is gone.
    local pid
    for pid in ${gateway:-} ${store:-} ${monitor:-}; do
        kill "$pid" 2>/dev/null
        wait "$pid"
    done
}
trap 'stop; exit 0' TERM INT
trap 'stop' EXIT

fail() {
    echo "s3: $*" >&2
    exit 1
}

configure() {
    cat > "$CEPH_CONF" <<CONF
[global]
fsid = $(cat "$dir/fsid")
mon host = v2:127.0.0.1:$mon_port
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $dir/keyring
mon data = $dir/mon
osd data = $dir/osd0
run dir = $dir/run
admin socket = $dir/run/\$name.asok
pid file =
setuser match path =
osd class dir = /usr/lib/$(uname -m)-linux-gnu/rados-classes
# To standard error only: files of logs would grow for ever.
log file =
log to stderr = true
mon cluster log file =
mon cluster log to stderr = false
auth allow insecure global id reclaim = false
# One copy of everything, and no second machine to wait for.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon pg warn min per osd = 0
mon max pg per osd = 1000
# With these the first start takes seconds instead of a quarter of a minute.
paxos propose interval = 0.05
paxos min wait = 0.01
objecter tick interval = 1
objecter timeout = 2
osd objectstore = bluestore
bluestore block size = $((${S3_SIZE_GIB:-50} << 30))
bluestore fsck on mount = false
osd memory target = 939524096
# A disk that fills up with other things must not turn the store read-only too early.
mon data avail crit = 1
mon data avail warn = 2
osd failsafe full ratio = .99
mon osd full ratio = .99
mon osd nearfull ratio = .98
mon osd backfillfull ratio = .985
[client.rgw]
rgw frontends = beast endpoint=${S3_BIND:-0.0.0.0}:$port
rgw enable ops log = false
rgw dns name =
rgw data = $dir/rgw
rgw thread pool size = 64
debug rgw = 0
CONF
}

make_keys() {
    local all=(--cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *')
    ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' &&
        ceph-authtool "$dir/keyring" --gen-key -n client.admin "${all[@]}" &&
        ceph-authtool "$dir/keyring" --gen-key -n client.rgw "${all[@]}" &&
        ceph-authtool "$dir/keyring" --gen-key -n osd.0 \
            --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
}

make_monitor() {
    local fsid
    fsid=$(cat "$dir/fsid")
    monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_port]" "$dir/monmap" &&
        ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
}

make_store() {
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph osd new "$uuid" 0 && ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
}

make_account() {
    radosgw-admin -n client.rgw user create --uid=zhub --display-name=zhub \
        --access-key="$S3_ACCESS_KEY" --secret-key="$S3_SECRET_KEY"
}

# The account goes through standard input: every user of a machine can read a process's arguments. The header: curl
# before version 8 signs a request without it, and the gateway refuses that.
make_bucket() {
    curl --silent --output /dev/null --write-out '%{http_code}' --max-time 20 --request PUT --config - \
        "http://127.0.0.1:$port/$S3_BUCKET" <<CURL
user = "$S3_ACCESS_KEY:$S3_SECRET_KEY"
aws-sigv4 = "aws:amz:us-east-1:s3"
header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"
CURL
}

[ -e "$dir/made" ] && new= || new=1
# A first start that broke off left nothing worth keeping.
[ -z "$new" ] || find "$dir" -mindepth 1 -delete 2>/dev/null
umask 077
mkdir -p "$dir/run" "$dir/mon" "$dir/osd0" "$dir/rgw" || fail "$dir cannot be written"
rm -f "$dir"/run/*.asok "$dir/ready"
[ -z "$new" ] || cat /proc/sys/kernel/random/uuid > "$dir/fsid"
configure
if [ -n "$new" ]; then
    { make_keys && make_monitor; } > /dev/null || fail "the monitor's files could not be made"
fi
ceph-mon -f -i a &
monitor=$!
if [ -n "$new" ]; then
    make_store || fail "the object store could not be made"
fi
ceph-osd -f -i 0 &
store=$!
if [ -n "$new" ]; then
    make_account > /dev/null || fail "the account could not be made"
    touch "$dir/made"
fi
radosgw -f -n client.rgw &
gateway=$!

answer=none
for _ in $(seq 120); do
    answer=$(make_bucket)
    [ "$answer" = 200 ] && break
    sleep 0.25
done
[ "$answer" = 200 ] || fail "the bucket $S3_BUCKET could not be made: HTTP $answer"
touch "$dir/ready"
echo "s3: bucket $S3_BUCKET at port $port"

# Any part that ends takes the others with it; whoever started this script starts it again.
wait -n
fail "a part of the store ended"
