"""Published test protocols, each with its own ranking and scoring.

"Average precision" has seven definitions here, because each protocol has its own. This table shows
them side by side; none replaces another, because published figures could then not be compared. The
last column is the value for one query with two relevant items at ranks 2 and 4 of five, with all
cuts at R = k = 3.

=================================== ========================================== ============ =======
function                            average precision                          no relevant  example
=================================== ========================================== ============ =======
`evaluate.retrieval_metrics`,       mean over the relevant items of the        left out of  0.5
`backfill_curve` (FCT, FastFill)    precision at their rank; equal distances   the mean
                                    form one threshold (scikit-learn)
`evaluate.ranked_metrics` (mAP@R)   the sum of these up to rank R, over        left out     0.25
                                    min(relevant, R); the order given stands
`landmarks.revisited_map`           as the first, but each precision is the    left out     0.3333
(ROxford, RParis)                   mean of those just before and at the rank
                                    (trapezoid); junk leaves the ranking first
`landmarks.map_at_k` (GLDv2)        as mAP@R                                   counts as 0  0.25
`reid.market1501`                   as the first; the query's person by the    left out     0.5
                                    query's camera leaves the ranking first;
                                    of equal distances the lower row is first
`verification.identification`       as the first, of templates                 left out     0.5
(IJB-B, IJB-C)
`upgrade.ways.relevance.per_query`  as mAP@R, R being the depth of the search  not allowed  0.25
(``fct-jax assess``)
=================================== ========================================== ============ =======
"""
