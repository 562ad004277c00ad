"""Finds what keeps a run from working, on this machine or on every node of a cluster, before the run finds it.

A file is a topic. In each, functions named ``look_*`` run on the nodes and return plain facts; functions named
``judge_*`` turn the facts of all nodes into findings, and need no cluster.
"""
