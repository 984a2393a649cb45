"""ZO2: fine-tuning by two forward passes, with all weights but three blocks outside the device.

Wang, Ren, Xu, Wang, Xie, Keyes and Wang (2025, arXiv 2503.12668) stream the blocks of a transformer through the device once
a step. MeZO (Malladi et al. 2023, arXiv 2305.17333) needs no gradients and no optimizer state, only weights and a seed: ZO2
runs both of its forward passes while a block is there, and puts off the update of a step until the block comes again.
"""
