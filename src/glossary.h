/* Words: what each means in names and in comments. P, a query's position among the keys, is
   row + n_key - n_query.

   query, key, value  rows of the tensors; a query meets a key where their product is computed
   head, kv head      a head of queries; a head of keys and values, which heads_per_kv heads of queries share
   square             the part of a causal problem in which query i's own key is key i
   rectangle          a range of queries by a range of keys, all of which they see but for their windows
   level              the rectangles of one halving of the square, or the outer rectangle; of a lookup: the
                      estimate from which on a key of the index is kept for certain
   segment            the diagonal part of the square between rectangles, which is exact
   region             a segment or a rectangle; rect.region numbers rectangles and names their random numbers
   block              block_size keys that a query group meets exactly
   sub-block          key_group keys of a rectangle in the pairing's order
   superblock         HAI_SUPERBLOCK sub-blocks, scored together first in large rectangles
   query group        query_group queries in the pairing's order, which choose sub-blocks together
   pairing            an order of the rows, and each query group's choice of sub-blocks
   column             a sampled key, with the log-weight that makes up for the keys that were not drawn
   pin                a key that every query of a rectangle meets: a sink key, or one of large mass
   probe              a query that meets every key of a rectangle before the choice
   held-out query     a query that meets every key to judge a choice in which it had no part
   recipe             what the queries of a rectangle meet: blocks and columns, columns, or each its own
   trial              what held-out queries find a recipe in a pairing to be worth
   verdict            the recipe and the pairing that they found best
   record             what the report keeps of a rectangle and head
   sketch             codes of 8 bits for each key, by blocks of HAI_CHUNK keys (sketch.h)
   scan               estimates of a tile's scores with all keys of the sketch, by products of codes
   pilot              estimates of a few of them, made before the scan
   draw               the columns of a rectangle; of a scan: a key's random number, by which it is kept or not
   kept key           one that a tile meets exactly: with probability 1 where it matters to any of its queries
   budget, b          a key is kept with b times its largest estimated share of attention, at most 1
   missed row         one whose sample misses the tolerance: it is mended, that is attended exactly, later
   tally              what a task of the scan has done
   product            the dot product of a query and a key, times the scale
   score              a product after everything that changes it, before its log-weight
   weight             e^(score + log-weight - reference)
   state              (m, l, o) of a query: reference of its weights, their sum, weighted sum of values
   lse                m + ln l, the logarithm of a sum of e^score
   tile               up to `lanes` queries, packed transposed, with their states
   lane               the place of one query in a tile, and one element of vector registers
   chunk              up to HAI_CHUNK keys that tiles or few queries meet at a time; also a task's share of a
                      rectangle or of the call
   few queries        up to 4 to 16 queries of each head, by ISA, in a call that approximates nothing
                      (hai_is_few); their kernels keep them as rows, with coordinates in the lanes
   part               HAI_FEW_KEYS of the keys that few queries meet, where these are more than HAI_FEW_UNCUT
   kernel             the inner loops of an ISA; plan->kernel takes the problem's rows, plan->float_kernel
                      rows of float32
   row                one row of a tensor, or an index of it
   extent             the bytes that a tensor spans
   stage, step        a computation on all rectangles of a level; a stage at a level (also: a decoded token,
                      what a kernel takes at a time, a unit of an estimate)
   phase              a step, with those behind it that may run beside it
   task, job          a part of a phase, for one worker; what it works on
   workspace, array   the caller's memory; a part of it that has a name in hai_layout
   scratch            the part of the workspace that one worker uses during a task */
