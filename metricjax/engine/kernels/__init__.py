"""Two sweeps as fused kernels, in Pallas: for NVIDIA GPUs and for TPUs, if they are asked for.

`row_sweeps.py` says what is done with the scores of a tile, in the arithmetic of `engine/tiles.py`; `nvidia.py` and
`tpu.py` how the tiles are gone through. The XLA form is the definition, and what runs where there is no kernel.
"""
