"""The tree as text."""

from textwrap import dedent

from worldlm.topology import draw_tree, parse_topology


def test_shows_corpora_steps_and_settings_where_they_change() -> None:
    topology = parse_topology(
        dedent("""\
            name: t
            description: Two laws.
            settings: {num_local_steps: 5, outer_optimizer: {name: SGD, lr: 0.7, nesterov: true}}
            root:
              name: world
              children:
                - name: west
                  settings:
                    jurisdiction: eu
                    privacy: {clip_norm: 0.5, noise_multiplier: 1, max_epsilon: 8}
                    residuals: {share: false, accept_from: [eu]}
                    link: {bandwidth_mbps: 100, latency_ms: 80, jitter: 0.3}
                    dropout: 0.1
                    deadline_seconds: 60
                    participation: 0.5
                    sampling: fixed
                  children:
                    - {name: it, corpus: italian, weight: 2}
                    - {name: fr, corpus: fr, settings: {num_local_steps: 7, link: null}}
                - {name: uk, corpus: uk, settings: {batch_size: 4, optimizer_state: reset}}
        """),
        "t.yaml",
    )
    west = (
        "├── west    participation 0.5 · sampling fixed · dropout 0.1 · deadline 60 s · "
        "jurisdiction eu · privacy C=0.5 σ=1 δ=1e-05 ε≤8 · "
        "residuals kept, accepted from eu · link 100 Mbit/s 80 ms jitter 0.3"
    )
    assert draw_tree(topology).splitlines() == [
        "t: Two laws.",
        "world       outer SGD(lr=0.7, nesterov=True)",
        west,
        "│   ├── it  corpus italian · 5 steps · weight 2",
        "│   └── fr  corpus fr · 7 steps · link none",
        "└── uk      corpus uk · 5 steps · batch 4 · optimizer state reset",
    ]
