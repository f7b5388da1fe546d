#!/bin/sh
# Runs an image with podman as a stranger should be able to run it: no capabilities, a read-only root, nothing writable but the
# cache, 1 GiB of memory. It has to serve, have no shell, and end in order.   scripts/test-image.sh mmserve:latest
set -eu
cd "$(dirname "$0")/.."
command -v podman >/dev/null || { echo "test-image is skipped: no podman"; exit 0; }
image=$1
# cgroupfs and runc: it works where no systemd runs, as in a container.
podman="podman --cgroup-manager cgroupfs"
command -v runc >/dev/null && podman="$podman --runtime runc"
name=mmserve-test-$$
port=${PORT:-21090}
trap '$podman rm -f "$name" >/dev/null 2>&1; $podman volume rm "$name" >/dev/null 2>&1' EXIT
fail() { echo "test-image: $*" >&2; $podman logs "$name" >&2 || true; exit 1; }

$podman run -d --name "$name" --read-only --read-only-tmpfs=false --cap-drop all --security-opt no-new-privileges \
	--memory 1g --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --no-healthcheck --network host \
	-v "$name":/var/cache/mmserve -e MMSERVE_LISTEN=127.0.0.1:"$port" -e MMSERVE_ADMIN_ADDRESS= "$image" >/dev/null
for i in $(seq 100); do
	$podman exec "$name" /usr/local/bin/mmserve health >/dev/null 2>&1 && break
	[ "$i" -lt 100 ] || fail "it does not serve"
	sleep 0.3
done
pid=$($podman inspect "$name" --format '{{.State.Pid}}')
for shell in sh bash busybox; do
	if $podman exec "$name" "$shell" -c true >/dev/null 2>&1; then fail "it has a $shell"; fi
done
grep -q '^CapEff:[[:space:]]*0*$' "/proc/$pid/status" || fail "it has capabilities"
[ "$(awk '/^Uid:/ {print $2}' "/proc/$pid/status")" != 0 ] || fail "it runs as root"
writable=$(findmnt -N "$pid" -n -l -o TARGET,OPTIONS | awk '$2 ~ /^rw/ {print $1}' | grep -Ev '^/(proc|dev|sys)(/|$)')
[ "$writable" = /var/cache/mmserve ] || fail "it can write to: $writable"
bin/mmserve caption --server 127.0.0.1:"$port" vision/testdata/pictures/*.jpg >/dev/null || fail "no captions"
$podman stop -t 40 "$name" >/dev/null
[ "$($podman inspect "$name" --format '{{.State.ExitCode}}')" = 0 ] || fail "it did not end in order"
echo "test-image: $image serves read-only, without capabilities, shell or root, in 1 GiB; it writes to $writable only"
