#!/bin/sh
# Installs the Debian packages the tests use, where they are missing and may be installed; says so where not.
wanted=""
[ -f /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] || wanted="$wanted dataset-fashion-mnist"
[ -x /usr/bin/chromium ] || wanted="$wanted chromium"
[ -n "$wanted" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends $wanted >/dev/null && exit 0
fi
echo "not installed, tests that need them are skipped:$wanted" >&2
