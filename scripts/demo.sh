#!/usr/bin/env bash
# Makes the environment and runs `swarm-inference demo`: a small model, a real
# llama-server with 4 slots, and one batched SWARM run of 12 LLM agents.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment demo
exec swarm-inference demo "$@"
