"""The tape itself: nodes, the walker, grad mode and anomaly mode. ``trident.autograd`` is its
face.
"""
