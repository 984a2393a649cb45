"""Figures of the paper and its code that the models here are fitted on; nothing that is predicted stands here.

TGS is tokens per GPU and second in training on two A100 80 GB (paper, Table 1). Milliseconds are of one attention layer on
an A100, batch 4, 32 heads, d = e = 128, bfloat16 (README of the authors' code, "Benchmark").
"""

KI = 1024

TGS_ENDS = {
    "LLaMA-FA2 0.4B": {1 * KI: 35931, 92 * KI: 4078},
    "TNL-LA1 0.4B": {1 * KI: 41789, 92 * KI: 6012},
    "TNL-LA2 0.4B": {1 * KI: 38615, 92 * KI: 38596},
    "LLaMA-FA2 1B": {1 * KI: 14897, 80 * KI: 3167},
    "TNL-LA1 1B": {1 * KI: 21195, 80 * KI: 4625},
    "TNL-LA2 1B": {1 * KI: 20052, 80 * KI: 20186},
    "LLaMA-FA2 3B": {1 * KI: 7117, 32 * KI: 2558},
    "TNL-LA1 3B": {1 * KI: 8001, 32 * KI: 3512},
    "TNL-LA2 3B": {1 * KI: 7524, 32 * KI: 7545},
}

MILLISECOND_ENDS = {
    "LA2 forward": {8 * KI: 4.414397, 32 * KI: 17.661427},
    "FA2 forward": {8 * KI: 10.392551, 32 * KI: 162.895615},
    "LA2 backward": {8 * KI: 18.617611, 32 * KI: 74.594788},
    "FA2 backward": {8 * KI: 31.986572, 32 * KI: 470.666473},
}

TNL_15B = {"depth": 42, "heads": 40, "width": 5120}
"""Paper, section 4.3. Vocabulary and feed-forward width are not given; see the README for what is assumed."""
