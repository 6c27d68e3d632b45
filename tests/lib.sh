# Sourced by the scripts of tests/: the list of the units, and the one way to skip and to install.
# shellcheck shell=sh

# The units that units.txt gives this mark, or all.
units() { # UNITS.TXT [MARK]
  sed 's/#.*//' "$1" | awk -v mark="${2:-}" 'NF { if (!mark || index(" " $0 " ", " " mark " ")) print $1 }'
}

has() { command -v "$1" >/dev/null 2>&1; }

# Ends the script as skipped, as CMake's SKIP_RETURN_CODE has it.
skip() { # REASON
  echo "SKIP: $*"
  exit 77
}

# The command that installs packages, which have Debian's names; nothing where no package manager is known.
install_command() { # PACKAGE...
  if has apt-get; then
    echo "apt-get install -y --no-install-recommends $*"
  elif has dnf; then
    echo "dnf install -y $*" | sed 's/libcmocka-dev/libcmocka-devel/; s/g++/gcc-c++/; s/libclang-rt[^ ]*/compiler-rt/'
  elif has brew; then
    echo "brew install $*" | sed 's/libcmocka-dev/cmocka/'
  fi
}

# Installs packages, says so before, and why not where it cannot: without root (or sudo that asks nothing) or network.
# Several tests may do so at a time.
# shellcheck disable=SC2086 # commands are words
install() { # PACKAGE...
  to_install=$(install_command "$@")
  as_root=
  case $to_install in
  '') echo "cannot install $*: no apt-get, dnf or brew" && return 1 ;;
  brew*) ;;
  *)
    if [ "$(id -u)" != 0 ]; then
      sudo -n true 2>/dev/null || { echo "cannot install $*: not root" && return 1; }
      as_root="sudo -n"
    fi
    ;;
  esac
  echo "installing $*: $as_root $to_install"
  case $to_install in
  apt-get*)
    ! has flock || as_root="$as_root flock /var/lib/apt"
    apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600"
    said=$($apt ${to_install#apt-get } 2>&1) ||
      said=$({ $apt update && $apt ${to_install#apt-get }; } 2>&1)
    ;;
  *) said=$($as_root $to_install 2>&1) ;;
  esac || { echo "cannot install $*: $(echo "$said" | tail -n 1)" && return 1; }
}

# A command, installed by its package where it is missing; skips where that cannot be done.
need() { # COMMAND PACKAGE...
  needed=$1
  shift
  has "$needed" || install "$@" || skip "no $needed"
  has "$needed" || skip "no $needed in $*"
}
