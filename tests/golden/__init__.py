"""Golden results: what the package computes, to the bit, recorded as digests and checked again after every change.

A change of structure must not change a result. From the root of the checkout::

    make golden                                   # or: OMP_NUM_THREADS=1 python -m tests.golden --check
    python -m tests.golden --record               # write the record of this kind of processor anew
    python -m tests.golden --check --cases digits # only the cases whose names hold "digits"
    QDIFF_KERNELS=avx2 python -m tests.golden --check

All cases take about five minutes on one core. Each quantizes a network through the public calls, from fixed seeds and
on one thread, and takes SHA-256 digests of:

* the tensors of the saved folder, without their names, each as often as it is stored (``tensors stored``), and each
  once (``tensors distinct``): storing one tensor once instead of three times changes the first and not the second;
* the outputs of each backend, converted directly and loaded from the folder, for several timesteps, batches of 1 and 2;
* what these come from: the calibration data, and the float network's own output.

Float results of torch differ between processors and releases. So each kind has a record of its own in ``records/``,
named after the instruction sets torch and the kernels use and a digest of what torch itself computes; where there is
none for this kind, the check says so (exit code 2). It exits with 1 on any difference, and lists each by its name.
The trained 63 M network is left out, and this is said, where it is not beside the checkout.

The record of the kernels of AVX-512 VNNI was written anew after second-order rounding and the search for ranges had
changed: 102 digests of the five cases that round or search so, all of whose stored tensors differ; no output differs
where the tensors do not. What saw a single timestep has one scale since, in place of a table: the tensors of
``random-handwritten_matmul``, whose outputs stay. Cases of the 63 M network are of a Xeon of the Sapphire Rapids
generation; on one of Cascade Lake, which has the same key, its float outputs differ, and so all that follows, as do two
outputs of ``x86``.
Since then parts of 2304 columns change the codes of ``anime-w4a8`` and ``anime-mixed``. The other records are of
release 0.1, and show these differences, and one more: `native` holds a value in float16 only where that is sure to
fit, so one convolution of ``anime-mixed`` hands on float32.
"""
