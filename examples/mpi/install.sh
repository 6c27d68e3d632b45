#!/bin/sh
# Installs Open MPI where the system's package manager is known and lets us: sh examples/mpi/install.sh
set -eu
. "$(dirname "$0")/../../tests/lib.sh"
install libopenmpi-dev openmpi-bin
