"""Figures of the paper and its released data that computations here start from; nothing that is predicted stands here."""

VERDICTS = {
    ("GPT-4", "Guanaco 65B"): (129, 16, 15),
    ("GPT-4", "Guanaco 33B"): (138, 16, 6),
    ("GPT-4", "Vicuna 13B"): (142, 12, 6),
    ("GPT-4", "ChatGPT"): (133, 20, 7),
    ("GPT-4", "Guanaco 13B"): (144, 12, 3),
    ("GPT-4", "Bard"): (143, 11, 6),
    ("GPT-4", "Guanaco 7B"): (148, 7, 5),
    ("Guanaco 65B", "Guanaco 33B"): (78, 21, 61),
    ("Guanaco 65B", "Vicuna 13B"): (75, 24, 60),
    ("Guanaco 65B", "ChatGPT"): (70, 33, 57),
    ("Guanaco 65B", "Guanaco 13B"): (90, 27, 43),
    ("Guanaco 65B", "Bard"): (99, 20, 41),
    ("Guanaco 65B", "Guanaco 7B"): (103, 23, 34),
    ("Guanaco 33B", "Vicuna 13B"): (71, 32, 57),
    ("Guanaco 33B", "ChatGPT"): (70, 28, 62),
    ("Guanaco 33B", "Guanaco 13B"): (83, 27, 50),
    ("Guanaco 33B", "Bard"): (90, 21, 49),
    ("Guanaco 33B", "Guanaco 7B"): (92, 22, 38),
    ("Vicuna 13B", "ChatGPT"): (69, 30, 61),
    ("Vicuna 13B", "Guanaco 13B"): (77, 22, 61),
    ("Vicuna 13B", "Bard"): (92, 16, 52),
    ("Vicuna 13B", "Guanaco 7B"): (90, 25, 44),
    ("ChatGPT", "Guanaco 13B"): (78, 19, 63),
    ("ChatGPT", "Bard"): (77, 34, 49),
    ("ChatGPT", "Guanaco 7B"): (87, 18, 55),
    ("Guanaco 13B", "Bard"): (67, 15, 77),
    ("Guanaco 13B", "Guanaco 7B"): (74, 27, 58),
    ("Bard", "Guanaco 7B"): (70, 22, 68),
}
"""GPT-4's verdicts on 80 Vicuna prompts in both orders: wins, ties, losses of the first, without invalid ones. Released
with the authors' code."""

SCORES = {
    "65B": ((687, 664), (681, 668)),
    "33B": ((678.5, 654.5), (668, 673.5)),
    "13B": ((683, 596.5), (640, 685)),
    "7B": ((687, 577.5), (624, 694.5)),
}
"""GPT-4's scores summed over 80 prompts: (ChatGPT, Guanaco) with ChatGPT shown first, (Guanaco, ChatGPT) with Guanaco
first. Released with the authors' code."""

LLAMA_65B = {"width": 8192, "depth": 80, "heads": 64, "hidden": 22016, "vocabulary": 32000}
"""Touvron et al., LLaMA (arXiv 2302.13971), Table 2; the feed-forward width and vocabulary are the released model's."""

RECIPE_65B = {"rank": 64, "length": 512, "batch": 1}
"""QLoRA, appendix B.2 and the authors' script: adapter rank, tokens of a sequence, sequences of one step (of 16 gathered)."""
