#!/bin/sh
# Arguments come as ARG_<NAME>, secrets as files in /run/secrets; what is put into $RUN_DIR is kept with the run.
set -eu
greeting="Hello, $ARG_WHO"
if [ "$ARG_STYLE" = loud ]; then greeting="$greeting!!!"; fi
n=0
while [ "$n" -lt "$ARG_TIMES" ]; do
    echo "$greeting"
    n=$((n + 1))
done
echo "$greeting" > "$RUN_DIR/greeting.txt"
