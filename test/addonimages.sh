#!/bin/sh
# Makes images from Debian's packages, as docker archives, for tests without a registry:
#
#     test/addonimages.sh FOLDER [NAME...]
#
# writes FOLDER/NAME.tar (NAME:e2e), unless it is there, for postgres and redis, or those that are named: python and node
# as well. It needs apt-get, dpkg-deb and tar, for node also npm; nothing is installed.
set -eu

out=$1
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The libraries that packages need, each by its name in Debian 12. LLVM is left out: it only makes large queries faster.
base="libc6 libc-bin libgcc-s1 libstdc++6 zlib1g libssl3 libzstd1 liblz4-1 libsystemd0 liblzma5 libgcrypt20 libgpg-error0 libcap2 busybox-static"
postgres="postgresql-15 postgresql-client-15 libpq5 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1
  libicu72 libldap-2.5-0 libsasl2-2 libpam0g libaudit1 libcap-ng0 libselinux1 libpcre2-8-0 libuuid1 libxml2 libxslt1.1 libreadline8 libtinfo6 tzdata
  libgnutls30 libp11-kit0 libffi8 libidn2-0 libunistring2 libtasn1-6 libnettle8 libhogweed6 libgmp10"
redis="redis-server redis-tools libatomic1 libjemalloc2 liblzf1 liblua5.1-0"

python="python3-minimal python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libexpat1 libffi8 libbz2-1.0 libdb5.3 libncursesw6
  libtinfo6 libreadline8 libsqlite3-0 libuuid1 libcrypt1 python3-distutils python3-lib2to3 python3-pip python3-setuptools python3-pkg-resources python3-wheel"
node="nodejs libnode108 libc-ares2 libuv1 libnghttp2-14 libicu72 libbrotli1 libcrypt1 node-acorn node-cjs-module-lexer node-undici node-busboy
  node-xtend"

fetch() { # PACKAGE...: into debs/, from what is installed or the archive
    mkdir -p "$work/debs"
    chmod 0755 "$work" "$work/debs"
    (cd "$work/debs" && for package in "$@"; do
        ls "${package}"_*.deb >/dev/null 2>&1 || apt-get download -q "$package" >/dev/null 2>&1 ||
            apt-get download -q "$package=$(apt-cache madison "$package" | awk 'NR == 1 {print $3}')" >/dev/null # another is installed
    done)
}

image() { # NAME PACKAGE...
    name=$1
    shift
    if [ -s "$out/$name.tar" ]; then
        return
    fi
    fetch $base "$@"
    root="$work/$name"
    mkdir -p "$root/bin" "$root/etc" "$root/tmp" "$root/data" "$root/proc" "$root/sys" "$root/dev" "$root/usr/lib" "$root/usr/lib64" "$root/usr/bin" "$root/usr/sbin"
    rmdir "$root/bin"
    ln -s usr/bin "$root/bin"
    ln -s usr/lib "$root/lib"
    ln -s usr/lib64 "$root/lib64"
    chmod 1777 "$root/tmp"
    for package in $base "$@"; do
        # Through tar, so that /lib and /bin of packages go through the links.
        dpkg-deb --fsys-tarfile "$work/debs/${package}"_*.deb | tar -C "$root" --keep-directory-symlink -xf -
    done
    rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" "$root/usr/share/postgresql/15/man" "$root/var/lib/redis" \
        "$root/usr/lib/postgresql/15/lib/bitcode" "$root/usr/lib/postgresql/15/lib/llvmjit.so"
    if [ "$name" = node ]; then
        npm install --silent --no-audit --no-fund --global --prefix "$root/usr" npm@10 pnpm@10 yarn@1
    fi
    for applet in sh cat cut chmod date echo grep head ls mkdir mv rm sed sha256sum sleep sync tail test true id env ps kill printf tr wc; do
        [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
    done
    echo "root:x:0:0::/:/bin/sh
$name:x:999:999::/data:/bin/sh" >"$root/etc/passwd"
    echo "root:x:0:
$name:x:999:" >"$root/etc/group"
    tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/layer.tar" .
    sum=$(sha256sum "$work/layer.tar" | cut -c1-64)
    cat >"$work/config.json" <<JSON
{"architecture":"$(dpkg --print-architecture)","os":"linux","created":"1970-01-01T00:00:00Z",
"config":{"Env":["PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]},
"rootfs":{"type":"layers","diff_ids":["sha256:$sum"]}}
JSON
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"docker.io/library/$name:e2e\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
    tar -C "$work" -cf "$out/$name.tar.part" manifest.json config.json layer.tar
    mv "$out/$name.tar.part" "$out/$name.tar"
    rm -rf "$root" "$work/layer.tar"
}

[ $# -gt 0 ] || set -- postgres redis
for wanted in "$@"; do
    case $wanted in
    postgres) image postgres $postgres ;;
    redis) image redis $redis ;;
    python) image python $python ;;
    node) image node $node ;;
    *) echo "addonimages: there is no recipe for $wanted" >&2; exit 2 ;;
    esac
done
