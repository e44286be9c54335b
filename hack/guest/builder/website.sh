#!/bin/sh
# Builds a website of manifests/samples/provisioner.yaml: a page with what its database says, which its provisioner depends on and
# which has therefore been built before this runs.
set -eu
database=$(echo "$VS_DEPENDS" | sed 's/.*"ipv4":"\([^"]*\)".*/\1/')
mkdir -p /srv/www
# The address of a guest is known a moment before the guest has set it.
tries=0
until wget -q -O /srv/www/index.html "http://$database:3306/greeting"; do
    tries=$((tries + 1))
    [ $tries -lt 30 ] || exit 1
    sleep 1
done
echo "This is $VS_INSTANCE_NAME of the environment $VS_ENVIROMENT." >>/srv/www/index.html
# What init runs at every start of the container; this first time it has been started already.
echo 'httpd -h /srv/www' >/etc/rc.local
sh /etc/rc.local
