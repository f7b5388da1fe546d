#!/bin/sh
# Makes the bases of deploy/docker/Dockerfile under their names, from Debian's packages and this machine's Go, Node and npm:
# to build the image where no registry is reached. They are stand-ins: what is released is built upon the real ones. Wants root, buildah and debootstrap.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
base() { # the image whose name in the Dockerfile has this word
	sed -n 's/^FROM \(--platform=[^ ]* \)\{0,1\}\([^ ]*'"$1"'[^ ]*\).*/\2/p' deploy/docker/Dockerfile | head -n 1
}
commit() { # a folder as an image
	container=$(buildah from scratch)
	buildah copy -q "$container" "$2" / >/dev/null
	shift 2
	buildah config "$@" "$container"
	buildah commit -q --format docker "$container" "$image" >/dev/null
	buildah rm "$container" >/dev/null
	echo "$image"
}

builder=$(base golang)
node=$(base node)
if ! buildah inspect --type image "$builder" >/dev/null 2>&1; then
	debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,libstdc++6 bookworm "$work/debian" >"$work/log" 2>&1 ||
		{ tail "$work/log" >&2; exit 1; }
	rm -rf "$work/debian/var/cache/apt/archives" "$work/debian/usr/share/doc" "$work/debian/usr/share/locale"
	npm=$(dirname "$(dirname "$(realpath "$(command -v npm)")")")
	mkdir -p "$work/debian/usr/local/bin" "$work/debian/usr/local/lib"
	cp -L "$(command -v node)" "$work/debian/usr/local/bin/"
	cp -a "$npm" "$work/debian/usr/local/lib/npm"
	ln -s ../lib/npm/bin/npm-cli.js "$work/debian/usr/local/bin/npm"
	cp /etc/ssl/certs/ca-certificates.crt "$work/debian/etc/ssl/certs/" # what this machine trusts
	trust=/etc/ssl/certs/ca-certificates.crt
	path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	image=$node commit node "$work/debian" --env PATH=$path --env NODE_EXTRA_CA_CERTS=$trust
	cp -a "$(go env GOROOT)" "$work/debian/usr/local/go"
	image=$builder commit golang "$work/debian" --env GOPATH=/root/go --env GOTOOLCHAIN=local \
		--env PATH=/usr/local/go/bin:$path
fi

# C and C++ libraries, certificates, zones, and a user that is not root: no shell, no package manager.
final=$(base distroless)
if ! buildah inspect --type image "$final" >/dev/null 2>&1; then
	mkdir -p "$work/packages" "$work/final/etc/ssl/certs" "$work/final/tmp" "$work/final/home/nonroot"
	(cd "$work/packages" && apt-get download -q libc6 libgcc-s1 libstdc++6 tzdata >/dev/null)
	for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/final"; done
	cp /etc/ssl/certs/ca-certificates.crt "$work/final/etc/ssl/certs/"
	echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$work/final/etc/passwd"
	echo 'nonroot:x:65532:' >"$work/final/etc/group"
	chown -R 65532:65532 "$work/final/home/nonroot"
	chmod 1777 "$work/final/tmp"
	rm -rf "$work/final/usr/share/doc" "$work/final/usr/share/lintian"
	image=$final commit final "$work/final" --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
fi
