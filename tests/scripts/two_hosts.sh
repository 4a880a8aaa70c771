#!/bin/sh
# Run a command on host n1 of two, n1 and n2: network namespaces on one machine, joined by a link.
# mpirun places two ranks on each and reaches n2 by /run/enter in place of ssh.
#
# Start it under `unshare --net --mount --uts`: then all that it sets up is the command's own (its
# /run and /etc/hosts, too) and goes with the last process, however that ends.
set -eu
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
printf '127.0.0.1 localhost\n10.77.0.1 n1\n10.77.0.2 n2\n' >/run/hosts
mount --bind /run/hosts /etc/hosts
hostname n1

ip netns add n2
ip link add veth type veth peer name veth netns n2
ip link set lo up
ip addr add 10.77.0.1/24 dev veth
ip link set veth up
ip -n n2 link set lo up
ip -n n2 addr add 10.77.0.2/24 dev veth
ip -n n2 link set veth up
# Some ends come up a second later, and MPI passes over a device without a carrier.
until ip link show veth | grep -q "state UP" && ip -n n2 link show veth | grep -q "state UP"; do
    sleep 0.02
done

cat >/run/enter <<'END'
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done # ssh's options
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; exec $*"
END
chmod +x /run/enter
printf 'n1:2\nn2:2\n' >/run/machines
export HYDRA_LAUNCHER=rsh HYDRA_LAUNCHER_EXEC=/run/enter HYDRA_HOST_FILE=/run/machines
exec "$@"
