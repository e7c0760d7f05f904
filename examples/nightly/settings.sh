# What the nightly job attacks: the embedded clips behind two defenses, in a few seconds.
SETTINGS=(
    --clips 8 --frames 4 --size 16 --iterations 30 --enhance none
    --attack matching --defense dp:noise_multiplier=0.01 --defense prune:fraction=0.9
)
VLEAK=${VLEAK:-vleak}
RUNS=${RUNS:-runs}
HERE=$(dirname "${BASH_SOURCE[0]}")
