#!/usr/bin/env bash
# Gets the recommended model and runs one llama-server on this machine; `help` tells how.
# Runs on Linux and on macOS, whose bash is 3.2 and whose tools are BSD's.
set -euo pipefail

ROOT="$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SELF="${BASH_SOURCE[0]}"
RECOMMENDED_FILE=Llama-3.2-3B-Instruct-Q4_K_M.gguf
RECOMMENDED_URL="https://huggingface.co/bartowski/Llama-3.2-3B-Instruct-GGUF/resolve/5ab33fa94d1d04e903623ae72c95d1696f09f9e8/$RECOMMENDED_FILE"
RECOMMENDED_SIZE=2019377696
RECOMMENDED_SHA256=6c1a2b41161032677be168d354123594c0e6e67d2b9227c84f296ad037c728ff

RUN_DIR="${RUN_DIR:-$ROOT/runs}" # holds llama-server.pid and llama-server.log
PID_FILE="$RUN_DIR/llama-server.pid" LOG="$RUN_DIR/llama-server.log"

usage() {
    cat <<END
usage: $SELF COMMAND

  download   get the recommended model (Llama 3.2 3B Instruct, Q4_K_M, 2.0 GB) into models/;
             continues where it was interrupted, checks size and sha256
  start      start a llama-server on 127.0.0.1 in the background and wait until it is ready;
             exits with 0 as well when it runs already with the same options
    -m, --model FILE        GGUF file (default: the one that download gets)
    --port N                (default: 8080)
    --slots, --parallel N   requests at once (default: 4)
    --ctx-per-slot N        tokens of prompt and answer that a slot holds (default: 4096)
    --threads N             CPU threads (default: one per physical core, of more than 4 one less)
    -ngl, --gpu-layers N    layers on the GPU (default: 0)
    --alias NAME            the model name that the server reports
    --timeout SECONDS       how long it may load (default: 120)
  stop       stop what start started, and nothing else; exits with 0 as well when nothing runs
    --timeout SECONDS       how long it may take to end before it is killed (default: 10)
  status     exits with 0 when it is ready, 1 when it runs but is not ready, 3 when it does not run

Variables: LLAMA_SERVER is the program ('xllamacpp': the wheel in the Python named by PYTHON);
MODEL_URL, MODEL_SHA256, MODEL_SIZE, MODEL_FILE are another model, MODEL_DIR is its folder;
RUN_DIR is for the pid file and the log. LLAMA_ARG_* are not used.
END
}

# What went wrong, and what to type.
die() {
    printf 'error: %s\n  %s\n' "$1" "$2" >&2
    exit 1
}

check() { [[ "$2" =~ $3 ]] || die "$1 is '$2', but it must be $4" "for example: $5"; }
check_count() { check "$1" "$2" '^[1-9][0-9]{0,7}$' "a whole number from 1 up" "$1 $3"; }
require() { type -P "$1" >/dev/null || die "$1 is needed, and is not on PATH" "get it: apt-get install $1 | brew install $1"; }

# Sets MODEL_URL, MODEL_FILE, MODEL_DIR, MODEL_SIZE and MODEL_SHA256; the last two may be empty.
choose_model() {
    local size="" sha256=""
    MODEL_URL="${MODEL_URL:-$RECOMMENDED_URL}"
    check MODEL_URL "$MODEL_URL" '^https?://[^[:space:]]+$' "an http:// or https:// address" "MODEL_URL=https://example.org/model.gguf"
    [ "$MODEL_URL" != "$RECOMMENDED_URL" ] || size=$RECOMMENDED_SIZE sha256=$RECOMMENDED_SHA256
    MODEL_FILE="${MODEL_FILE:-$(basename "${MODEL_URL%%[?#]*}")}"
    MODEL_DIR="${MODEL_DIR:-$ROOT/models}"
    MODEL_SIZE="${MODEL_SIZE:-$size}"
    MODEL_SHA256="$(printf '%s' "${MODEL_SHA256:-$sha256}" | tr A-F a-f)"
    check MODEL_FILE "$MODEL_FILE" '^[A-Za-z0-9_][A-Za-z0-9_+-]*([.][A-Za-z0-9_+-]+)*$' "a plain file name" MODEL_FILE=model.gguf
    [[ "/$MODEL_DIR/" != */../* ]] || die "MODEL_DIR is '$MODEL_DIR', but it must not hold '..'" "for example: MODEL_DIR=$ROOT/models"
    check MODEL_SIZE "$MODEL_SIZE" '^([1-9][0-9]{0,17})?$' "a number of bytes" "MODEL_SIZE=$RECOMMENDED_SIZE"
    check MODEL_SHA256 "$MODEL_SHA256" '^([0-9a-f]{64})?$' "64 hexadecimal digits" "MODEL_SHA256=$RECOMMENDED_SHA256"
}

size_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }
sha256_of() { if type -P sha256sum >/dev/null; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -d ' ' -f 1; }
first_bytes() { head -c "$2" "$1" | tr -d '\0'; }

# What is wrong with the model file $1; nothing if it is the wanted one.
fault_of() {
    if [ -n "$MODEL_SIZE" ] && [ "$(size_of "$1")" != "$MODEL_SIZE" ]; then
        echo "it has $(size_of "$1") bytes, not $MODEL_SIZE"
    elif [ "$(first_bytes "$1" 4)" != GGUF ]; then
        echo "it is not a GGUF file"
    elif [ -n "$MODEL_SHA256" ] && [ "$(sha256_of "$1")" != "$MODEL_SHA256" ]; then
        echo "its sha256 is not $MODEL_SHA256"
    fi
}

# Gets what is missing of the file $1, or all of it where the server can't continue.
fetch() {
    local options status=0 code=""
    options=(--fail --location --globoff --proto '=http,https' --proto-redir '=http,https')
    options+=(--connect-timeout 30 --speed-limit 1024 --speed-time 60 --continue-at - --output "$1")
    [ -z "$MODEL_SIZE" ] || options+=(--max-filesize "$MODEL_SIZE")
    [ -t 2 ] || options+=(--silent --show-error)
    code="$(curl "${options[@]}" --write-out '%{http_code}' "$MODEL_URL")" || status=$?
    if [ -s "$1" ] && { [ "$status" -eq 33 ] || [ "$code" = 416 ]; }; then
        echo "the server can't continue: starting over"
        rm -f "$1" && fetch "$1" && return
    fi
    [ -s "$1" ] || rm -f "$1"
    [ "$status" -eq 0 ] || die "no complete answer from $MODEL_URL (curl exit status $status, HTTP $code)" \
        "$(size_of "$1") bytes are kept; to continue, type: $SELF download"
}

download() {
    local target part fault missing free
    [ $# -eq 0 ] || die "download does not know '$1'" "see: $SELF help"
    choose_model
    require curl
    type -P sha256sum >/dev/null || require shasum
    target="$MODEL_DIR/$MODEL_FILE" part="$MODEL_DIR/$MODEL_FILE.part"
    if [ -e "$target" ]; then
        fault="$(fault_of "$target")"
        [ -z "$fault" ] || die "$target is there, but $fault" "if it is not needed: rm '$target'"
        echo "$target is there already; next: $SELF start"
        return
    fi
    mkdir -p "$MODEL_DIR"
    # Without a checksum nobody would see that the halves of two files were joined.
    [ -n "$MODEL_SHA256" ] || rm -f "$part"
    [ "$(size_of "$part")" -le "${MODEL_SIZE:-0}" ] || [ -z "$MODEL_SIZE" ] || rm -f "$part"
    missing=$(((${MODEL_SIZE:-0} - $(size_of "$part")) / 1024))
    # What stands before the percentage: names of file systems may hold spaces.
    free="$(df -Pk "$MODEL_DIR" | sed -n 's/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p')"
    [ "$missing" -le "${free:-$missing}" ] || die "$MODEL_DIR has room for $free KiB, but $missing are missing" "make room, or type: MODEL_DIR=/larger/disk $SELF download"
    echo "downloading $MODEL_URL"
    [ "$MODEL_URL" != "$RECOMMENDED_URL" ] || echo "licence: Llama 3.2 Community License, https://www.llama.com/llama3_2/license/"
    [ "$(size_of "$part")" = "${MODEL_SIZE:-none}" ] || fetch "$part"
    fault="$(fault_of "$part")"
    [ -z "$fault" ] || { rm -f "$part" && die "$MODEL_URL is not the wanted file: $fault; it was removed" "check MODEL_URL, or try again: $SELF download"; }
    mv "$part" "$target"
    [ -n "$MODEL_SHA256" ] || echo "without MODEL_SHA256 it was not checked; its sha256 is $(sha256_of "$target")"
    echo "$target is complete; next: $SELF start"
}

# Sets SERVER to the words that start one.
find_server() {
    local named="${LLAMA_SERVER:-}" python
    if [ -n "$named" ] && [ "$named" != xllamacpp ]; then
        type -P "$named" >/dev/null || die "LLAMA_SERVER names '$named', which can't be run" "for example: LLAMA_SERVER=/usr/local/bin/llama-server"
        SERVER=("$named")
    elif [ -z "$named" ] && type -P llama-server >/dev/null; then
        SERVER=(llama-server)
    # Other tools install a script of this name; llama.cpp's is a binary.
    elif [ -z "$named" ] && type -P llama >/dev/null && [ "$(first_bytes "$(type -P llama)" 2)" != '#!' ]; then
        SERVER=(llama)
    else
        for python in "${PYTHON:-}" "$ROOT/.venv/bin/python" python3 python; do
            # -P, because that folder's `types` and `queue` would hide the standard library's.
            SERVER=("$python" -P "$ROOT/scheduler/xllamacpp_server.py")
            "$python" -P -c 'import xllamacpp' >/dev/null 2>&1 && return
        done
        die "no llama-server was found" "brew install llama.cpp; or winget install llama.cpp; or https://github.com/ggml-org/llama.cpp/releases; or pip install \"swarm-inference-scheduler[server]\""
    fi
    [ "$(basename "${SERVER[0]}")" != llama ] || SERVER+=(serve)
}

# As the scheduler counts them: one per physical core, of more than 4 one less: llama.cpp's threads wait for
# each other by spinning; a container may have fewer cores than the machine.
count_threads() {
    local physical usable
    physical="$({ lscpu -p=CORE,SOCKET 2>/dev/null || true; } | awk '/^[0-9]/ && !seen[$0]++ { n++ } END { print n + 0 }')"
    [ "$physical" -gt 0 ] || physical="$(sysctl -n hw.perflevel0.physicalcpu 2>/dev/null || sysctl -n hw.physicalcpu 2>/dev/null || echo 0)"
    usable="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
    [ "$physical" -gt 0 ] || physical=$((usable / 2))
    [ "$physical" -lt "$usable" ] || physical="$usable"
    if [ "$physical" -gt 4 ]; then echo $((physical - 1)); else echo "$physical"; fi
}

# When process $1 started, which tells it from a later one with its id; nothing if it has ended.
birth_of() {
    if [ -d /proc/self ]; then
        # In ticks since boot (field 22): the date that ps shows moves with the clock.
        sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }' || true
    else
        LC_ALL=C TZ=UTC ps -o stat=,lstart= -p "$1" | awk '$1 !~ /^Z/ { $1 = ""; print substr($0, 2) }' || true
    fi
}

# True while our server runs. Sets PID, PORT, MODEL and COMMAND from the pid file.
is_running() {
    local birth=""
    PID="" PORT="" MODEL="" COMMAND=""
    [ -f "$PID_FILE" ] || return 1
    { read -r PID && read -r birth && read -r PORT && read -r MODEL && read -r COMMAND; } <"$PID_FILE" || true
    [[ "$PID" =~ ^[1-9][0-9]*$ && -n "$birth" && "$(birth_of "$PID")" == "$birth" ]]
}

# Ends our server: SIGTERM, and SIGKILL after $1 seconds.
end_server() {
    local signal deadline
    ! is_running || echo "stopping the server (pid $PID)"
    for signal in TERM KILL; do
        ! is_running || kill "-$signal" "$PID" || true
        deadline=$((SECONDS + $1))
        while is_running && [ "$SECONDS" -le "$deadline" ]; do sleep 0.1; done
    done
    ! is_running || die "the server does not end" "as its owner or as root: kill -KILL $PID"
    rm -f "$PID_FILE"
}

ask() { curl -q --silent --fail --noproxy '*' --max-time 5 "http://127.0.0.1:$PORT$1"; }

# Waits for the new server, and leaves none behind when it does not get ready.
wait_until_ready() {
    local deadline=$((SECONDS + $1)) fault=""
    trap 'end_server 5; die "interrupted: the server was stopped" "to start it: $SELF start"' INT TERM HUP
    # In this order: what answers may be another program, if ours has ended.
    until ask /health >/dev/null && is_running; do
        is_running || fault="the server ended before it was ready"
        [ "$SECONDS" -lt "$deadline" ] || fault="the server was not ready after $1 s (more time: --timeout SECONDS)"
        [ -z "$fault" ] || break
        sleep 0.1
    done
    [ -n "$fault" ] || { trap - INT TERM HUP && return; }
    end_server 5
    { echo "The end of $LOG:" && tail -n 15 "$LOG" | sed 's/^/  /'; } >&2
    ! grep -q 'invalid argument' "$LOG" || die "$fault: it does not know an option" "update llama.cpp, and try again"
    die "$fault" "see $LOG, then try again: $SELF start"
}

start() {
    local model="" port=8080 slots=4 ctx=4096 threads="" layers=0 alias="" timeout=120 command about any="" status=0
    while [ $# -gt 0 ]; do
        case "$1" in
            -m | --model) model="${2:-}" ;;
            --port) port="${2:-}" ;;
            --slots | --parallel) slots="${2:-}" ;;
            --ctx-per-slot) ctx="${2:-}" ;;
            --threads) threads="${2:-}" ;;
            -ngl | --gpu-layers) layers="${2:-}" ;;
            --alias) alias="${2:-}" ;;
            --timeout) timeout="${2:-}" ;;
            *) die "start does not know '$1'" "see: $SELF help" ;;
        esac
        [ -n "${2:-}" ] || die "$1 needs a value" "see: $SELF help"
        shift 2
    done
    choose_model
    require curl
    model="${model:-$MODEL_DIR/$MODEL_FILE}"
    threads="${threads:-$(count_threads)}"
    check --port "$port" '^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$' "from 1 to 65535" "--port 8081"
    check_count --slots "$slots" 4; check_count --ctx-per-slot "$ctx" 4096
    check_count --threads "$threads" 4; check_count --timeout "$timeout" 120
    check --gpu-layers "$layers" '^[0-9]{1,4}$' "a whole number" "--gpu-layers 99"
    [[ "$model" == /* ]] || model="$PWD/$model"
    [ -e "$model" ] || die "there is no file $model" "get a model: $SELF download"
    [ "$(first_bytes "$model" 4 2>/dev/null)" = GGUF ] || die "$model is not a GGUF file that can be read" "get one: $SELF download"
    find_server
    command=("${SERVER[@]}" --model "$model" --host 127.0.0.1 --port "$port" --parallel "$slots")
    # The server divides the context among its slots, and without a stream for each, one that is full stops them all.
    command+=(--ctx-size $((slots * ctx)) --n-gpu-layers "$layers" --no-kv-unified --flash-attn on --jinja --slots --metrics)
    # By default it would keep up to 8 GiB of old prompts in RAM, and corrupt answers when a client picks its slots.
    command+=(--cache-ram 0 --no-cache-idle-slots --threads "$threads")
    # Where there is AVX-512, prompts are read faster from Q4_K weights as they are; told by the name.
    if [ "$layers" = 0 ] && [[ "${model##*/}" == *[Qq]4_[Kk]* ]] && grep -qw avx512_vnni /proc/cpuinfo 2>/dev/null && ! grep -qw amx_int8 /proc/cpuinfo; then command+=(--no-repack); fi
    [ -z "$alias" ] || command+=(--alias "$alias")
    [ ! -s "$PID_FILE" ] || is_running || rm -f "$PID_FILE"
    if is_running; then
        [ "$COMMAND" = "${command[*]}" ] || die "a server with other options runs already (pid $PID, port $PORT)" "$SELF stop; or set RUN_DIR to run a second one"
        echo "the server runs already (pid $PID): http://127.0.0.1:$PORT/v1"
        return
    fi
    PORT="$port"
    ask / >/dev/null || status=$?
    [ "$status" -eq 7 ] || die "port $port is taken by another program" "type: $SELF start --port $((port + 1)); or find it: lsof -nP -iTCP:$port"
    mkdir -p "$RUN_DIR"
    # -C: of several starts at once, one gets the file, which names that start until there is a server.
    about=("$port" "$model" "${command[*]}")
    (set -C && printf '%s\n' $$ "$(birth_of $$)" "${about[@]}" >"$PID_FILE") 2>/dev/null ||
        die "another start came first, or $PID_FILE can't be written" "see: $SELF status; if nothing runs: rm '$PID_FILE'"
    [ ! -e "$LOG" ] || mv -f "$LOG" "$LOG.1"
    # The command line alone configures it, or a variable could open it to the network.
    unset "${!LLAMA_ARG_@}" LLAMA_API_KEY
    # A process group of its own (-m), which neither Ctrl-C nor the end of the terminal reaches.
    set -m
    nohup "${command[@]}" >"$LOG" 2>&1 </dev/null &
    set +m && disown
    printf '%s\n' $! "$(birth_of $!)" "${about[@]}" >"$PID_FILE.new" && mv "$PID_FILE.new" "$PID_FILE"
    wait_until_ready "$timeout"
    echo "ready: http://127.0.0.1:$port/v1 ($slots slots of $ctx tokens, threads: $threads, pid $PID, log $LOG)"
    [ "$PWD" = "$ROOT" ] || echo "next: cd '$ROOT'"
    # The scenario names the recommended model; with this configuration any model will do.
    [[ "$model" == */"$RECOMMENDED_FILE" || -n "$alias" ]] || any=configs/llama_server.yaml
    [ "$port" = 8080 ] || echo "next: write base_url: http://127.0.0.1:$port/v1 into ${any:-the scenario}"
    echo "next: swarm run scenarios/llm_llama_cpp.yaml --seed 42 --inference-scheduler batch${any:+ --inference-config $any}"
}

stop() {
    [ $# -eq 0 ] || [ "$1 $#" = "--timeout 2" ] || die "stop does not know '$*'" "see: $SELF help"
    check_count --timeout "${2-10}" 10
    is_running || echo "nothing to stop: no server that $SELF started runs"
    end_server "${2-10}"
}

status() {
    local total busy
    require curl
    is_running || { echo "state:  not running; to start it: $SELF start" && return 3; }
    printf 'pid:    %s\nmodel:  %s\nlog:    %s\nurl:    http://127.0.0.1:%s/v1\n' "$PID" "$MODEL" "$LOG" "$PORT"
    ask /health >/dev/null || { echo "state:  running, but not ready" && return 1; }
    total="$(ask /props | sed -n 's/.*"total_slots": *\([0-9]*\).*/\1/p')" || total="?"
    busy="$(ask /slots | awk '{ n += gsub(/"is_processing": *true/, "") } END { print n + 0 }')" || busy="?"
    printf 'slots:  %s of %s busy\nstate:  ready\n' "$busy" "$total"
}

case "${1:-help}" in
    download | start | stop | status) "$@" ;;
    help | -h | --help) usage ;;
    *) die "'$1' is not a command" "see: $SELF help" ;;
esac
