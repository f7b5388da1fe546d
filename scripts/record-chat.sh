#!/usr/bin/env bash
# Types a session of two minutes into a terminal of 100 columns, as a person would, and prints what it showed: the
# recording in docs/chat.md. It wants tmux, and bin/mmserve (make build).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d)
socket=$dir/tmux
trap 'tmux -S "$socket" kill-server 2>/dev/null; sleep 1; rm -rf "$dir"' EXIT
cp "$root/model/tiny-vlm/samples/sample0.png" "$dir/my star.png"
cp "$root/model/tiny-vlm/samples/sample1.png" "$dir/crosses.png"
head -c 2000 "$dir/my star.png" >"$dir/cut.png"
printf 'Where is the orange object?\n' >"$dir/question.txt"

tmux -S "$socket" -f /dev/null new-session -d -s chat -x 100 -y 50 -c "$dir" \
  "env PS1='\$ ' PATH=$root/bin:$PATH HOME=$dir XDG_STATE_HOME=$dir/state TERM=xterm NO_COLOR=1 bash --norc --noprofile -i"
tmux -S "$socket" set-option -g history-limit 5000
began=$(date +%s)

# keys are typed one by one, 12 a second; then a person reads for as long as the first argument says.
type_in() {
  local pause=$1 text=$2 i
  for ((i = 0; i < ${#text}; i++)); do
    tmux -S "$socket" send-keys -l -- "${text:i:1}"
    sleep 0.08
  done
  sleep 0.4
  tmux -S "$socket" send-keys Enter
  sleep "$pause"
}
key() { tmux -S "$socket" send-keys "$2"; sleep "$1"; }

sleep 1
type_in 3 'mmserve chat'
type_in 3 'Describe the image. ./cut.png'
key 1 C-u
type_in 5 "Describe the image. 'my star.png'"
type_in 2 '/choices red,orange,blue'
type_in 4 'What colour is the star?'
type_in 2 '/choices off'
type_in 4 'Describe the image. crosses.png'
type_in 2 '/read question.txt'
key 4 Enter
type_in 3 '/tokens'
type_in 3 '/set temprature 0'
type_in 2 '/set temperature 0'
type_in 4 '/retry'
type_in 5 '/timing'
type_in 2 '/undo'
type_in 3 '/save talk.json'
type_in 2 '/bye'
type_in 3 'mmserve chat --load talk.json'
tmux -S "$socket" send-keys -l 'half a message'
sleep 1
key 2 C-c
type_in 4 '/show'
key 2 C-d
type_in 4 'mmserve ask "Describe the image." "my star.png"'
took=$(($(date +%s) - began))
tmux -S "$socket" capture-pane -p -J -S - -t chat | sed -e 's/[[:space:]]*$//' | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
echo "$took s" >&2
