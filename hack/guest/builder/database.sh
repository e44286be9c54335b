#!/bin/sh
# Builds the database of manifests/samples/provisioner.yaml: one record, for whoever asks by HTTP.
set -eu
mkdir -p /srv/database
echo "Hello from $VS_INSTANCE_NAME." >/srv/database/greeting
# What init runs at every start of the container; this first time it has been started already.
echo 'httpd -p 3306 -h /srv/database' >/etc/rc.local
sh /etc/rc.local
