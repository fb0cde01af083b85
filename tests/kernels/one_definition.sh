#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# one_definition.sh COMPILER [FLAG...] SOURCE...: no name of these sources, linked into one program, has two
# definitions that differ, as private headers of two backends could give it. Only g++ can tell; its LTO compares types.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
compiler=$1
shift
flags="" objects="" number=0
for word in "$@"; do
  case $word in
    *.cpp)
      number=$((number + 1))
      "$compiler" -std=c++20 -O1 -flto=1 $flags -c "$word" -o "$folder/$number.o"
      objects="$objects $folder/$number.o"
      ;;
    *) flags="$flags $word" ;;
  esac
done
"$compiler" -flto=1 -Wodr -Wlto-type-mismatch -Werror -r -flinker-output=nolto-rel $objects -o "$folder/all.o"
echo "one definition of each name in $number sources"
