#!/bin/sh
# Pretends to back a database up: shows how arguments, secrets and results reach and leave a job.
set -eu
echo "backing up $ARG_DATABASE to s3://$ARG_S3_BUCKET with $ARG_COMPRESSION"
if [ -r /run/secrets/token ]; then
    echo "token of $(wc -c </run/secrets/token) bytes at hand"
else
    echo "no token given" >&2
fi
printf '{"database":"%s","rows":42}\n' "$ARG_DATABASE" >"$RUN_DIR/report.json"
echo done
