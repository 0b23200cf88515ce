"""The operations of an integer graph, computed exactly as onnxruntime computes them on x86.

A tensor on a grid is carried **centred**: each value is its code minus the zero point, an integer
held in float32, which holds all integers up to 2**24 (16-bit codes too). A convolution then needs
no zero points, a border of zeros is the real zero, and one multiplication requantizes.
"""
