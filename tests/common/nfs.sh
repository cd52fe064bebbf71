# nfs.sh: for scripts that are the first process of a User-Mode Linux whose root is this machine's: modules, and an NFS server.
# Read before anything is mounted: this checkout may be below.
# shellcheck shell=bash

modules=/usr/lib/uml/modules/$(uname -r)

# load MODULE: with what it needs; nothing where the kernel has it built in.
load() {
    local file dependency
    grep -q "^${1//-/_} " /proc/modules && return
    file=$(find "$modules" -name "$1.ko")
    [ -n "$file" ] || return 0
    for dependency in $(modinfo -F depends "$file" | tr ',' ' '); do load "$dependency"; done
    insmod "$file"
}

# export_folder: /mnt/export, which it makes, by NFS to this machine.
export_folder() {
    ip link set lo up
    load nfsv4
    load nfsd
    mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs /mnt/export
    touch /var/lib/nfs/{etab,rmtab}
    mount -t tmpfs tmpfs /mnt/export
    mount -t nfsd nfsd /proc/fs/nfsd
    exportfs -o rw,no_root_squash,insecure,fsid=0,no_subtree_check 127.0.0.1:/mnt/export
    rpc.mountd -N 3
    rpc.nfsd -N 3 -V 4.2 2
    echo Y >/proc/fs/nfsd/v4_end_grace
}

# mount_export FOLDER [OPTION,...]: mounts it there, which it makes.
mount_export() {
    mkdir -p "$1"
    mount -i -t nfs4 -o "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,$2" 127.0.0.1:/ "$1" || echo "no mount"
}
