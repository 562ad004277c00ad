"""From a dataset to the batches of one rank.

``sources`` list labelled files (with the help of ``originals``), ``packing`` makes shards of them, ``inspection`` looks
at these, ``index`` opens them, wherever they lie (``storage``). ``planning`` orders an epoch, ``reader``, ``decoding``
and ``transforms`` make pixels, ``loader`` joins them. Nothing is imported here: the processes that pack should not wait
for torch.
"""
