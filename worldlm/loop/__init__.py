"""A package of former versions. Importing it fails with the present place of every name."""

raise ImportError(
    "worldlm.loop was divided: FederationCallback and WorldTrainer are in worldlm.trainer, Context and World in "
    "worldlm.rounds, Paging in worldlm.storage, RankLost in worldlm.distributed; log_scalars and log_text are now "
    "context.log and context.log_text"
)
