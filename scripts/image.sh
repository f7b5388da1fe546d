#!/bin/sh
# Builds the image for processors with docker, or with buildah where that is what there is.
#   scripts/image.sh NAME[:TAG] [VERSION]
# BASES=local makes the bases from Debian's packages and this machine's Go first (scripts/local-bases.sh), for places that
# reach no registry; IMAGE_FLAGS goes to the builder as it is.
set -eu
cd "$(dirname "$0")/.."
name=$1
version=${2:-unknown}
if [ -z "${BUILDER:-}" ]; then
	if command -v docker >/dev/null && docker info >/dev/null 2>&1; then BUILDER=docker; else BUILDER=buildah; fi
fi
case $BUILDER in
docker)
	# shellcheck disable=SC2086
	exec docker build -f deploy/docker/Dockerfile --build-arg VERSION="$version" -t "$name" ${IMAGE_FLAGS:-} .
	;;
buildah)
	command -v buildah >/dev/null || { echo "make image: neither a docker daemon nor buildah is here" >&2; exit 1; }
	pull=--pull
	if [ "${BASES:-}" = local ]; then
		scripts/local-bases.sh
		pull=--pull-never
	fi
	# chroot and the host's network: it works without privileges of its own, in a container too. Health checks are docker's format.
	arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
	# shellcheck disable=SC2086
	exec buildah bud --isolation chroot --network host --format docker --layers $pull ${IMAGE_FLAGS:-} \
		-f deploy/docker/Dockerfile --build-arg VERSION="$version" --build-arg BUILDPLATFORM="linux/$arch" \
		--build-arg TARGETARCH="${ARCH:-$arch}" -t "$name" .
	;;
esac
