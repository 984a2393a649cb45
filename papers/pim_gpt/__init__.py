"""PIM-GPT (Wu, Wang, Lu 2023, arXiv 2310.09385): a multiply-accumulate unit beside every DRAM bank reads all weights of a GPT
in place, a small companion chip does the rest, and a mapping keeps every bank at work and every open row in use. Here: the
memory image and its mapping, a simulator in whole nanoseconds that also computes, and the cost in closed form."""
