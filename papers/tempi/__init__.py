"""TEMPI: MPI datatypes that are nested strides have one canonical form, and for that one kernel packs everything at once.

The translation happens in a layer between an unchanged application and an unchanged MPI library; it also chooses, by a
model of the machine's own measurements, how a message goes. Pearson, Wu, Chung, Xiong and Hwu, HPDC 2021, arXiv 2012.14363.
"""
