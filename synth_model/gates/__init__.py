"""Quality gates: what a synthesized pair must pass, each off or on by config.

`config` says which are on, `pair_scores` measures a pair, `judging` holds the scores against their bounds, and
`context_dependence` asks the model itself.
"""
