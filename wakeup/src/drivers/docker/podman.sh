#!/bin/sh
# A Podman service for a test, with everything of it in the folder $1 and an image of busybox.
# Says "ready" when its socket answers; ends, with its containers, when standard input does.
# Fails where containers cannot run. Needs root, in a mount namespace of its own.
set -eu
cd "$1"
# Whoever is left behind holds no pipe of the test's.
exec 2> errors.log
mkdir -p rootfs/bin rootfs/www
cp "$(command -v busybox)" rootfs/bin/busybox
for name in sh httpd; do ln -s busybox "rootfs/bin/$name"; done
echo "from podman" > rootfs/www/index.html
# No more than what we may have ourselves: raising a limit takes a privilege.
cat > containers.conf << END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
END
export CONTAINERS_CONF="$PWD/containers.conf"
# crun refuses this layout, which it does not need.
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
set -- --root "$PWD/root" --runroot "$PWD/runroot" --tmpdir "$PWD/tmp"
set -- "$@" --storage-driver vfs --cgroup-manager cgroupfs --log-level error
tar -C rootfs -c . | podman "$@" import - localhost/web:1 > import.log 2>&1
podman "$@" run --rm --network host localhost/web:1 /bin/busybox true
podman "$@" system service --time 0 "unix://$PWD/engine.sock" &
service=$!
while [ ! -S engine.sock ]; do kill -0 $service; sleep 0.05; done
echo ready
cat > /dev/null
podman "$@" rm --all --force --time 0 > /dev/null
kill $service
# Ended by our signal.
wait $service || true
