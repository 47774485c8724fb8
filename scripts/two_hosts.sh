#!/usr/bin/env bash
# Train on two hosts that are one machine: two network namespaces joined by a cable (veth), a torchrun in each, gloo
# between them. Then train the same steps in one process, and compare. Linux, as root; no GPU.
#
#   sudo -E scripts/two_hosts.sh [STEPS]
#
# It reads data/tokens of this folder (`dvc repro retokenize`), and writes nothing here.
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
steps=${1:-4}
seconds=300 # after which a run that hangs is ended
port=29400
work=$(mktemp -d)
hosts=("golf-$$-a" "golf-$$-b")
addresses=(10.77.0.1 10.77.0.2)

fail() { echo "two_hosts: $1" >&2; exit 2; }

end() {
    for host in "${hosts[@]}"; do ip netns delete "$host" 2> /dev/null || true; done
    rm -rf "$work"
}

[[ $steps =~ ^[1-9][0-9]*$ ]] || fail "STEPS must be a whole number above 0, found $steps"
[[ -f $project/data/tokens/manifest.json ]] || fail "there is no data/tokens: dvc repro retokenize"
command -v ip > /dev/null || fail "there is no ip: apt-get install iproute2"
trap end EXIT
ip netns add "${hosts[0]}" 2> "$work/error" || fail "no network namespace can be made: $(< "$work/error")"
ip netns add "${hosts[1]}"
ip link add "golf$$" netns "${hosts[0]}" type veth peer name "golf$$" netns "${hosts[1]}"
for i in 0 1; do
    ip -n "${hosts[$i]}" address add "${addresses[$i]}/24" dev "golf$$"
    ip -n "${hosts[$i]}" link set "golf$$" up
    ip -n "${hosts[$i]}" link set lo up
done

mkdir "$work/data"
ln -s "$project/data/tokens" "$work/data/tokens"
ln -s "$project/recipes" "$work/recipes"
cd "$work"
export PYTHONPATH=$project OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=golf$$
python -m paramgolf.cli use sample train.steps="$steps" train.batch_tokens=2048 train.micro_batch_tokens=1024 \
    train.sequence_length=64 train.validation_tokens=2048 train.checkpoint_every=0 model.width=64 model.heads=2 \
    model.kv_heads=1 model.mlp_hidden=128 runtime.device=cpu \
    runtime.processes=1 > /dev/null

pids=()
for i in 0 1; do
    timeout $seconds ip netns exec "${hosts[$i]}" python -m torch.distributed.run --nnodes=2 --nproc-per-node=1 \
        --node-rank="$i" --master-addr="${addresses[0]}" --master-port=$port "$project/stages/train.py" \
        > "host$i.log" 2>&1 &
    pids+=($!)
done
for i in 0 1; do
    wait "${pids[$i]}" || { cat host?.log >&2; fail "host $i failed"; }
done
mv artifacts two
timeout $seconds python "$project/stages/train.py" > one.log 2>&1 || { cat one.log >&2; fail "one process failed"; }

python - << 'END'
import json
from pathlib import Path

two, one = (json.loads(Path(f"{name}/metrics/train.json").read_text()) for name in ("two", "artifacts"))
print(f"two hosts: {two['world_size']} processes, {two['steps']} steps, val_bpb {two['val_bpb']:.6f}")
print(f"one host:  {one['world_size']} process, {one['steps']} steps, val_bpb {one['val_bpb']:.6f}")
difference = abs(two["val_bpb"] - one["val_bpb"])
print(f"difference {difference:.1e} bits a byte")
raise SystemExit(0 if two["world_size"] == 2 and difference < 1e-3 else 1)
END
