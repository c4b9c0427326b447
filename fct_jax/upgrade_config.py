"""The configuration keys of the upgrade commands, with defaults and meaning; see ``config.py``."""

from ml_collections import ConfigDict


def upgrade() -> ConfigDict:
    """Upgrading a gallery of vectors: keys that several subcommands share, and one section each."""
    config = ConfigDict()
    config.task = "upgrade"
    # A sample (fit) or test gallery (assess) embedded by both models: EmbeddingSets, .npy files
    # (ids in NAME_ids.npy beside, else row numbers), Parquet folders or Faiss files.
    config.old = ""
    config.new = ""
    config.labels = ""  # .npy of integers, a label for each new vector; "": those of the sets
    config.metric = ""  # "l2", "cosine"; "": as the new vectors' meta.json says
    config.map = ""  # directory of a map that `fit` made, or the run of an FCT or FastFill training
    config.seed = 0
    config.fit = ConfigDict()
    config.fit.method = "auto"  # "procrustes", "ridge", "fct", "fastfill"; "auto": the best
    config.fit.candidates = "procrustes,ridge,fct,fastfill"  # what "auto" tries
    config.fit.classifier = ""  # run or .npy (C, D) of the new model, for fastfill
    config.fit.held_out = 0.2  # share of the pairs for choosing between methods
    config.fit.inner_dim = 2048  # fct, fastfill: width of the hidden layers
    config.fit.epochs = 0  # fct, fastfill; 0: 80, fewer of a sample so large that it takes long
    config.fit.batch_size = 0  # fct, fastfill; 0: 1,024, or an eighth of a smaller sample
    config.assess = ConfigDict()
    config.assess.query_old = ""  # queries, embedded by both models; "": items query the others
    config.assess.query_new = ""
    config.assess.query_labels = ""  # .npy, where the gallery has labels
    # .npy: (Q,) the one relevant id of each query, or (P, 2 or 3) rows of query id, relevant id
    # and gain. Without judged pairs and labels: agreement with the new model's own neighbours.
    config.assess.judged = ""
    config.assess.groups = ""  # .npy of Q integers: the gap between groups of queries
    config.assess.target = ""  # what decides: "map", "mrr", "ndcg@10", "recall@10", "cmc@1"
    config.assess.shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # re-embedded, on the curves
    config.assess.ways = "translated,dual,fused"  # of serving a half-migrated gallery
    config.assess.depth = 0  # results of a query that are judged; 0: 1,000 by labels, else 100
    config.assess.max_queries = 2000
    config.assess.judged_calibration = 0.0  # share of judged queries to learn the calibration from
    config.assess.gallery_size = 0  # items of the whole gallery; 0: as many as are given
    config.assess.items_per_second = 0.0  # of the new model, for times; 0: none are given
    config.assess.cost_per_1000 = 0.0  # of embedding 1,000 items, for costs; 0: none are given
    config.assess.currency = "USD"
    config.assess.resamples = 1000  # of the bootstrap
    # The gallery of plan and apply: an EmbeddingSet, a Parquet folder or a Faiss IndexIDMap2 file.
    config.gallery = ""
    config.id_column = ""  # of tables; "": id, or the only one of its kind
    config.vector_column = ""
    config.probe = ""  # folder with `new` and `query` sets, which quality is measured on
    config.serve = "translated"  # or "dual", "fused": what forecast and probe measure is of
    config.batch_size = 4096  # vectors translated together
    config.plan = ConfigDict()
    config.plan.order = "uncertainty"  # "uncertainty", "random", "certainty": as assess advises
    config.plan.traffic = ""  # .npy with the fields "id" and "weight": queries that ask for an item
    config.plan.budget_items = 0  # 0: no such budget; of several, the smallest counts
    config.plan.budget_money = 0.0
    config.plan.target_quality = 0.0  # of the probe, by the forecast
    config.plan.items_per_second = 0.0  # of the new model, for times; 0: none are given
    config.plan.cost_per_1000 = 0.0  # of embedding 1,000 items, for costs; 0: none are given
    config.apply = ConfigDict()
    # New vectors: an EmbeddingSet, or "module:function" from ids to vectors; "": translate only.
    config.apply.reembed = ""
    config.apply.batch_items = 4096  # items re-embedded and recorded together
    config.apply.max_batches = 0  # stop after so many, to go on later; 0: all of the plan
    # True: also where there are no known answers, or a batch finds its own only by chance
    config.apply.unchecked = False
    config.rollback_to = -1  # number of the batch that `rollback` returns to; 0: none re-embedded
    return config
