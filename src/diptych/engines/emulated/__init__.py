"""Engines that behave like a chip of the catalogue, in real time, from the same cost model as the planner's.

kv       KV that a prompt decides to the last bit, in both engines' forms                pure
words    from KV to tokens: every byte of it decides all of them                         pure
held     which prefixes an engine has read before                                        pure
costs    from a worker's settings to seconds
fault    what goes wrong on purpose
batch    continuous batching: who is in a step, and how long it takes                    pure
pacing   steps at absolute times
prefill  EmulatedPrefill
decode   EmulatedDecode
"""
